/* kernels_dispatch.c: selects the fastest kernels that this processor can run. */
#include "kernels/kernels.h"

#include <string.h>

#include "platform/platform.h"

#define MAX_TABLES 5 /* AMX, AVX-512, AVX-VNNI, AVX2, scalar: as many as find_tables can fill */

/* Fills tables with those that this processor can run, fastest first; returns the count. */
static int find_tables(const kernels *tables[MAX_TABLES]) {
    int count = 0;
#if defined(__x86_64__)
#if defined(LLAMITA_HAS_AMX)
    if (platform_has_avx512() && platform_request_amx()) tables[count++] = &kernels_amx;
#endif
    if (platform_has_avx512()) tables[count++] = &kernels_avx512;
#if defined(LLAMITA_HAS_AVXVNNI)
    if (platform_has_avxvnni()) tables[count++] = &kernels_avxvnni;
#endif
    if (platform_has_avx2()) tables[count++] = &kernels_avx2;
#elif defined(__aarch64__)
#if defined(LLAMITA_HAS_I8MM)
    if (platform_has_arm_dot_product() && platform_has_arm_i8mm()) tables[count++] = &kernels_i8mm;
#endif
#if defined(LLAMITA_HAS_DOTPROD)
    if (platform_has_arm_dot_product()) tables[count++] = &kernels_dotprod;
#endif
    tables[count++] = &kernels_neon;
#elif defined(__wasm_simd128__)
    if (kernels_wasm_are_exact()) tables[count++] = &kernels_wasm;
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
