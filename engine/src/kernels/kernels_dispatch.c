/* kernels_dispatch.c: selects the fastest kernels that this processor can run. */
#include "kernels/kernels.h"

#include <stdbool.h>

#if defined(__x86_64__)
/* __builtin_cpu_supports also checks that the operating system saves the wide registers. */
static bool has_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#if defined(LLAMITA_HAS_AVXVNNI)
#include <cpuid.h>
static bool has_avxvnni(void) {
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1) != 0;
}
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#if !defined(HWCAP_ASIMDDP)
#define HWCAP_ASIMDDP (1UL << 20) /* for headers older than Linux 4.16 */
#endif
static bool has_dot_product(void) { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
static bool has_dot_product(void) {
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, NULL, 0) == 0 && found != 0;
}
#elif defined(__aarch64__)
static bool has_dot_product(void) { return false; } /* no known way to detect it */
#endif

#define MAX_TABLES 3 /* AVX-VNNI, AVX2, scalar: as many as find_tables can fill */

/* Fills tables with those that this processor can run, fastest first; returns the count. */
static int find_tables(const kernels *tables[MAX_TABLES]) {
    int count = 0;
#if defined(__x86_64__)
#if defined(LLAMITA_HAS_AVXVNNI)
    if (has_avxvnni()) tables[count++] = &kernels_avxvnni;
#endif
    if (has_avx2()) tables[count++] = &kernels_avx2;
#elif defined(__aarch64__)
    if (has_dot_product()) tables[count++] = &kernels_dotprod;
    tables[count++] = &kernels_neon;
#endif
    tables[count++] = &kernels_scalar;
    return count;
}

const kernels *kernels_select(const char *name) {
    const kernels *tables[MAX_TABLES];
    const int count = find_tables(tables);
    if (!name || strcmp(name, "auto") == 0) return tables[0];
    for (int i = 0; i < count; i++)
        if (strcmp(name, tables[i]->name) == 0) return tables[i];
    return NULL;
}

const char *kernels_name(const kernels *k) { return k->name; }
