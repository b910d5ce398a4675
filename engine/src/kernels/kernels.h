/* kernels.h: the arithmetic that a processor is good at: one table of functions for each instruction set.
 *
 * Every table gives the same bits, because every sum has one order, whatever the number of rows, columns and threads,
 * and every step one rounding (fma: of the exact a * b + c):
 *   - float matrices: s = fma(weight k, value k, s) for k = 0, 1, 2, ...
 *   - quantized ones: the codes of a block meet the column's bytes in integers, which is exact: i = sum of q * v.
 *     Then for each block in ascending order, with the letters of panel.h, c the column's scale and C its scaled_sum:
 *       Q8_0        s = fma(i, d * c, s)
 *       Q4_0        s = fma(i - 8 * sum of v, d * c, s)
 *       Q4_1, Q5_1  s = fma(m, C, fma(i, d * c, s))
 *       Q4_K, Q5_K  s = fma(-(e * n), C, fma(i, (d * s) * c, s))
 *       Q6_K        s = fma(sum over both halves of s * (i - 32 * sum of v), d * c, s)
 *   - vectors: lane j of eight takes the elements j, j + 8, j + 16, ...; the lanes are added as
 *     ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)).
 * Kernels know no models: only pointers and sizes.
 */
#ifndef LLAMITA_KERNELS_H
#define LLAMITA_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/panel.h"
#include "kernels/tensor_type.h"

/* A block of an activation vector: value[i] is about scale * values[i]; |values[i]| <= 127. The scale is NaN where a
 * value was not finite, so that damage is never hidden. */
typedef struct {
    float scale;
    float scaled_sum;     /* scale * (sum of values) */
    int32_t eight_sums;   /* 8 * sum of values */
    int32_t sums_of_half; /* 32 * sum of values[0 .. 15] */
    int8_t values[BLOCK_LENGTH];
} activation_block;

/* out[column * out_stride + row] = sum over k of weights[row][k] * columns[column][k]. */
typedef struct {
    const void *panels; /* the first of ceil(num_rows / 8), aligned to 32 bytes (float formats: 16) */
    size_t panel_bytes; /* from one panel to the next */
    int64_t num_rows, row_length;
    const void *columns; /* [num_columns][row_length]: floats, or activation_blocks for quantized weights */
    size_t column_bytes;
    int64_t num_columns;
    float *out;
    size_t out_stride; /* in floats */
} matmul_job;

typedef void matmul_kernel(const matmul_job *job);

struct kernels {
    const char *name;

    matmul_kernel *matmul[NUM_PANEL_FORMATS];

    /* length is a multiple of BLOCK_LENGTH. Rounds to nearest, ties to even. */
    void (*quantize)(const float *values, int64_t length, activation_block *blocks);
    /* To 16-bit floats, rounding to nearest, ties to even. */
    void (*to_halves)(const float *values, int64_t length, uint16_t *halves);

    float (*sum_of_squares)(const float *values, int64_t length);
    float (*maximum)(const float *values, int64_t length);
    /* values[i] = exp(values[i] - shift), which is at most 1; returns their sum. */
    float (*exp_and_sum)(float *values, int64_t length, float shift);
    /* gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i] */
    void (*swiglu)(float *gate, const float *up, int64_t length);
};
typedef struct kernels kernels;

extern const kernels kernels_scalar; /* the oracle: plain C, everywhere */
#if defined(__x86_64__)
extern const kernels kernels_avx2;    /* AVX2, FMA, F16C */
extern const kernels kernels_avxvnni; /* and AVX-VNNI; where the compiler knows it (LLAMITA_HAS_AVXVNNI) */
#elif defined(__aarch64__)
extern const kernels kernels_neon;    /* every such processor */
extern const kernels kernels_dotprod; /* NEON with the dot product extension */
#endif

/* NULL or "auto": the fastest on this processor. NULL if there is no such table or the processor cannot run it. */
const kernels *kernels_select(const char *name);
const char *kernels_name(const kernels *k);

#endif
