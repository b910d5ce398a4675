/* kernels_select.c: which kernels this processor can run, and the fastest of them. */
#include "kernels.h"

#if defined(__x86_64__)
/* __builtin_cpu_supports also asks whether the operating system saves the wide registers. */
static const kernels *avx2_if_available(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
               ? &kernels_avx2
               : NULL;
}
#else
static const kernels *avx2_if_available(void) { return NULL; }
#endif

const kernels *kernels_select(const char *name) {
    const kernels *avx2 = avx2_if_available();
    if (name == NULL || strcmp(name, "auto") == 0) return avx2 != NULL ? avx2 : &kernels_scalar;
    if (strcmp(name, "scalar") == 0) return &kernels_scalar;
    if (strcmp(name, "avx2") == 0) return avx2;
    return NULL;
}

const char *kernels_name(const kernels *k) { return k->name; }
