/* kernels_avx512.h: the functions that the tables kernels_avx512 and kernels_amx share. */
#ifndef LLAMITA_KERNELS_AVX512_H
#define LLAMITA_KERNELS_AVX512_H

#include "kernels/kernels_avx2.h"

#if defined(__x86_64__)
matmul_kernel avx512_matmul_f32, avx512_matmul_f16, avx512_matmul_bf16, avx512_matmul_i8;
#endif

#endif
