/* kernels.h: the arithmetic that a processor is good at: one table of functions for each instruction set.
 *
 * The order of every sum is fixed: an output of a matrix product depends on its row and its column alone, never on how
 * many rows or columns are asked for at once. So any split over threads, passes and batches gives the same bits.
 *   - float rows: lane j of eight adds the products k = j, j + 8, j + 16, ... in ascending k, then
 *     ((lane 0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7));
 *   - quantised rows: the products of a block of 32 are summed as integers, which is exact; then blocks in ascending
 *     order as floats (avx2: eight lanes, each with four neighbours of the block, added at the end as above).
 * Kernels know no models: only pointers and sizes. Weights are aligned to 4 bytes (floats) or 2 (all else).
 */
#ifndef LLAMITA_KERNELS_H
#define LLAMITA_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "tensor_type.h"

#define BLOCK_LENGTH 32 /* elements of one quantised block, of weights and of activations */

/* A block of an activation vector: value[i] is about scale * values[i]; |values[i]| <= 127. The scale is NaN where a
 * value was not finite, so that damage is never hidden. */
typedef struct {
    float scale;
    int8_t values[BLOCK_LENGTH];
} activation_block;

/* out[column * out_stride + row] = sum over k of weights[row][k] * columns[column][k]. */
typedef struct {
    const void *weights; /* [num_rows][row_length] in the kernel's format */
    size_t row_bytes;
    int64_t num_rows, row_length;
    const void *columns; /* [num_columns][row_length]: floats, or activation_blocks for quantised weights */
    size_t column_bytes;
    int64_t num_columns;
    float *out;
    size_t out_stride; /* in floats */
} matmul_job;

typedef void matmul_kernel(const matmul_job *job);

struct kernels {
    const char *name;

    /* Float activations. */
    matmul_kernel *matmul_f32, *matmul_f16, *matmul_bf16;
    /* activation_block activations. */
    matmul_kernel *matmul_q8_0, *matmul_q4_0, *matmul_q4_1;

    /* length is a multiple of BLOCK_LENGTH. Rounds to nearest, ties to even. */
    void (*quantise)(const float *values, int64_t length, activation_block *blocks);

    float (*sum_of_squares)(const float *values, int64_t length);
    float (*maximum)(const float *values, int64_t length);
    /* values[i] = exp(values[i] - shift), which is at most 1; returns their sum. */
    float (*exp_and_sum)(float *values, int64_t length, float shift);
    /* out[i] += sum over n of weights[n] * rows[n][i], in ascending n; rows are [num_rows][length]. */
    void (*add_weighted_rows)(const float *rows, const float *weights, int64_t num_rows, int64_t length, float *out);
    /* gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i] */
    void (*swiglu)(float *gate, const float *up, int64_t length);
};
typedef struct kernels kernels;

extern const kernels kernels_scalar; /* the oracle: plain C, everywhere */
#if defined(__x86_64__)
extern const kernels kernels_avx2; /* AVX2, FMA, F16C */
#endif

/* NULL or "auto": the fastest on this processor. NULL if there is no such table or the processor cannot run it. */
const kernels *kernels_select(const char *name);
const char *kernels_name(const kernels *k);

#endif
