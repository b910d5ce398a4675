/* quantize_avx2.c: the quantizers compiled for AVX2. */
#if defined(__x86_64__)
#define SIMD8_AVX2
#define QUANTIZE_TABLE quantize_avx2
#include "kernels/quantize_rows.h"
#endif
