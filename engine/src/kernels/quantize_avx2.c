/* quantize_avx2.c: the quantizers compiled for AVX2. */
#if defined(__x86_64__)
#define QUANTIZE_TABLE quantize_avx2
#include "kernels/quantize_rows.h"
#endif
