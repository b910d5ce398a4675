/* kernels.h: the compute kernels, one table of functions per instruction set.
 *
 * Every table gives the same bits: every sum has one order, whatever the number of rows, columns
 * and threads, and every step rounds once (fma rounds the exact a * b + c):
 *   - float matrices: s = fma(weight k, value k, s) for k = 0, 1, 2, ...
 *   - quantized matrices: the codes q of a block times the column's int8 values v are summed as
 *     integers, which is exact: i = sum of q * v. Then for each block in ascending order, with the
 *     letters of panel.h, c the column's scale and C its scaled_sum:
 *       Q8_0        s = fma(i, d * c, s)
 *       Q4_0        s = fma(i - 8 * sum of v, d * c, s)
 *       Q4_1, Q5_1  s = fma(m, C, fma(i, d * c, s))
 *       Q4_K, Q5_K  s = fma(-(e * n), C, fma(i, (d * s) * c, s))
 *       Q6_K        s = fma(sum over both halves of s * (i - 32 * sum of v), d * c, s)
 *   - vectors: lane j of eight takes the elements j, j + 8, j + 16, ...; the lanes are added as
 *     ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)). A head of queries or keys that is normalized is such
 *     a vector, in the order of the panels' rows.
 *   - a bias is added to the finished sum of its row, after the products of adapters.
 *
 * Kernels know nothing of models, only pointers and sizes, and own no memory.
 */
#ifndef LLAMITA_KERNELS_H
#define LLAMITA_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/panel.h"
#include "kernels/tensor_type.h"

/* A quantized block of an activation vector: element i is about scale * values[i], with |values[i]|
 * <= 127. The scale is NaN if an element is not finite, so that damage is never hidden. */
typedef struct {
    float scale;
    float scaled_sum;     /* scale * (sum of values) */
    int32_t eight_sums;   /* 8 * sum of values */
    int32_t sums_of_half; /* 32 * sum of values[0 .. 15] */
    int8_t values[BLOCK_LENGTH];
} activation_block;

/* out[column * out_stride + row] = sum over k of weights[row][k] * columns[column][k]. */
typedef struct {
    const void *panels; /* [ceil(num_rows / 8)], aligned to 32 bytes (float formats: 16) */
    size_t panel_bytes; /* stride between panels */
    int64_t num_rows, row_length;
    const void *columns; /* [num_columns][row_length] floats; activation_blocks if quantized */
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
    /* Converts to 16-bit floats. Rounds to nearest, ties to even. */
    void (*to_halves)(const float *values, int64_t length, uint16_t *halves);

    float (*sum_of_squares)(const float *values, int64_t length);
    float (*maximum)(const float *values, int64_t length);
    /* values[i] = exp(values[i] - shift) with shift >= all values; returns the sum. */
    float (*exp_and_sum)(float *values, int64_t length, float shift);
    /* gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i] */
    void (*swiglu)(float *gate, const float *up, int64_t length);
};
typedef struct kernels kernels;

extern const kernels kernels_scalar; /* plain C for any processor: the reference */
#if defined(__x86_64__)
extern const kernels kernels_avx2;    /* AVX2, FMA, F16C */
extern const kernels kernels_avxvnni; /* plus AVX-VNNI; needs LLAMITA_HAS_AVXVNNI */
extern const kernels kernels_avx512;  /* AVX-512 F, BW, DQ, VL and VNNI */
extern const kernels kernels_amx;     /* plus AMX int8; needs LLAMITA_HAS_AMX */
#elif defined(__aarch64__)
extern const kernels kernels_neon;    /* any AArch64 processor */
extern const kernels kernels_dotprod; /* plus dot products; needs LLAMITA_HAS_DOTPROD */
extern const kernels kernels_i8mm;    /* plus products of 8-bit matrices; needs LLAMITA_HAS_I8MM */
#elif defined(__wasm_simd128__)
extern const kernels kernels_wasm; /* "simd128", or "relaxed" where compiled for relaxed SIMD */
/* Whether their sums are those of fma: relaxed_madd rounds once or twice, always the same way on one
 * processor. */
bool kernels_wasm_are_exact(void);
#endif

/* Returns the table of this name, or the fastest that this processor runs if name is NULL or
 * "auto". Returns NULL if there is no such table or the processor cannot run it. Tables are
 * static. */
const kernels *kernels_select(const char *name);
const char *kernels_name(const kernels *k);

#endif
