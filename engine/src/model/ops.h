/* ops.h: the operations of the network, each on the part that one worker computes.
 *
 * No function here waits at a barrier. Shapes: T tokens of this pass; the rest as in model.h. The
 * caller owns all arrays. */
#ifndef LLAMITA_OPS_H
#define LLAMITA_OPS_H

#include <stdbool.h>

#include "kernels/kernels.h"
#include "model/model.h"
#include "runtime/thread_pool.h"

/* Rows are split in these units: whole blocks, panels and cache lines of outputs. */
#define ROW_UNIT BLOCK_LENGTH

/* The columns that a matrix is multiplied with: floats, and the same values as blocks if the matrix
 * is quantized. */
typedef struct {
    float *values;            /* [T, length] */
    activation_block *blocks; /* [T, length / BLOCK_LENGTH] */
    int64_t length;
} activations;

/* out [T, D] = row ids[t] of the table, for tokens [begin, end). */
void embed(const tensor *table, const int32_t *ids, int64_t begin, int64_t end, float *out);

/* out = in / sqrt(mean(in^2) + epsilon) * weight, for rows [begin, end) of length out->length. */
void rms_norm(const kernels *k, const float *in, const float *weight, float epsilon, int64_t begin, int64_t end,
              activations *out);

/* Fills the blocks of tokens [begin, end) from values [T, length]. */
void quantize(const kernels *k, const float *values, int64_t begin, int64_t end, activations *columns);

/* Fills the blocks of elements [begin, end), whole blocks, of each of num_tokens tokens. */
void quantize_part(const kernels *k, int32_t num_tokens, int64_t begin, int64_t end, activations *columns);

/* out[t][row] for rows [begin, end) of the weights; begin is a multiple of 8. out is [T,
 * weights->num_rows]. */
void matmul(const kernels *k, const tensor *weights, const activations *columns, int32_t num_tokens, int64_t begin,
            int64_t end, float *out);

/* The same, added to what is in `out`. Float weights only. */
void matmul_add(const kernels *k, const tensor *weights, const activations *columns, int32_t num_tokens, int64_t begin,
                int64_t end, float *out);

/* residual [T, length] += update, elements [begin, end) of each token. */
void add(const float *update, int64_t length, int32_t num_tokens, int64_t begin, int64_t end, float *residual);

/* gate [T, length] = silu(gate) * up, elements [begin, end) of each token. */
void swiglu(const kernels *k, const float *up, int64_t length, int32_t num_tokens, int64_t begin, int64_t end,
            float *gate);

/* table [T, S/2] of (cos, sin) of position * frequency, times the factor, for tokens [begin,
 * end). */
void rope_fill_table(const float *frequency, float factor, int32_t head_dim, const int32_t *positions, int64_t begin,
                     int64_t end, float *table);

/* out [length] += bias, elements [begin, end). */
void add_bias(const float *bias, int64_t begin, int64_t end, float *out);

/* Normalizes in place, as rms_norm, each head of elements [begin, end), which are whole heads of a
 * token; weight [S]. */
void rms_norm_heads(const kernels *k, const float *weight, float epsilon, int32_t head_dim, int64_t begin, int64_t end,
                    float *heads);

/* Rotates the pairs (2i, 2i + 1) of elements [begin, end) of a token's heads by the angles [S/2] of
 * its position; begin and end are even. */
void rope(const float *angles, int32_t head_dim, int64_t begin, int64_t end, float *heads);

/* True if no value is infinite or NaN. */
bool all_finite(const float *values, int64_t length);

/* -ln softmax(logits)[id]. */
double negative_log_probability(const kernels *k, const float *logits, int32_t vocab_size, int32_t id);

#endif
