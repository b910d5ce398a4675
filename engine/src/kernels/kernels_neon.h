/* kernels_neon.h: the functions that the tables kernels_neon, kernels_dotprod and kernels_i8mm
 * share. */
#ifndef LLAMITA_KERNELS_NEON_H
#define LLAMITA_KERNELS_NEON_H

#include "kernels/kernels.h"

#if defined(__aarch64__)
matmul_kernel neon_matmul_f32, neon_matmul_f16, neon_matmul_bf16, neon_matmul_i8;
void neon_quantize(const float *values, int64_t length, activation_block *blocks);
void neon_to_halves(const float *values, int64_t length, uint16_t *halves);
float neon_sum_of_squares(const float *values, int64_t length);
float neon_maximum(const float *values, int64_t length);
float neon_exp_and_sum(float *values, int64_t length, float shift);
void neon_swiglu(float *gate, const float *up, int64_t length);
#endif

#endif
