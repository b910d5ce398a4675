/* kernels_avx2.h: the functions that the tables of x86-64 share. */
#ifndef LLAMITA_KERNELS_AVX2_H
#define LLAMITA_KERNELS_AVX2_H

#include "kernels/kernels.h"

#if defined(__x86_64__)
matmul_kernel avx2_matmul_f32, avx2_matmul_f16, avx2_matmul_bf16, avx2_matmul_i8;
void avx2_quantize(const float *values, int64_t length, activation_block *blocks);
void avx2_to_halves(const float *values, int64_t length, uint16_t *halves);
float avx2_sum_of_squares(const float *values, int64_t length);
float avx2_maximum(const float *values, int64_t length);
float avx2_exp_and_sum(float *values, int64_t length, float shift);
void avx2_swiglu(float *gate, const float *up, int64_t length);
#endif

#endif
