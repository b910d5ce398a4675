/* ops.h: the operations that forward.c is written in, each shared by the members of a team of threads.
 *
 * Every function here is called by all members with the same arguments but for the worker, does that worker's part, and
 * has no barrier inside. Shapes: T tokens of this pass; the rest as in model.h.
 */
#ifndef LLAMITA_OPS_H
#define LLAMITA_OPS_H

#include <stdbool.h>

#include "kernels.h"
#include "kv_cache.h"
#include "model.h"
#include "threads.h"

#define ROW_UNIT BLOCK_LENGTH /* rows are shared in these units: whole blocks and cache lines of outputs */

/* Columns that matrices are multiplied with: [T, length] floats, and the same as blocks once quantise has run. */
typedef struct {
    float *values;            /* [T, length] */
    activation_block *blocks; /* [T, length / BLOCK_LENGTH] */
    int64_t length;
} activations;

/* True for types whose products take quantised activations. */
bool tensor_is_quantised(const tensor *weights);

/* out [T, D] = row ids[t] of the table for each t. */
void embed(worker w, const tensor *table, const int32_t *ids, int32_t num_tokens, float *out);

/* out = in / sqrt(mean(in^2) + epsilon) * weight, for each of num_tokens rows of out->length. */
void rms_norm(worker w, const kernels *k, const float *in, const float *weight, float epsilon, int32_t num_tokens,
              activations *out);

/* Fills columns->blocks. Worker parts are whole blocks of each row. */
void quantise(worker w, const kernels *k, int32_t num_tokens, activations *columns);

/* out[t][row] for rows [begin, end) of the weights; out is [T, weights->num_rows]. */
void matmul_rows(const kernels *k, const tensor *weights, const activations *columns, int32_t num_tokens, int64_t begin,
                 int64_t end, float *out);

/* All rows, shared in ROW_UNITs: *begin and *end of threads_share(w, num_rows, ROW_UNIT). */
void matmul(worker w, const kernels *k, const tensor *weights, const activations *columns, int32_t num_tokens,
            float *out);

/* residual [T, length] += update, the same part of every row as matmul's with as many rows. */
void add(worker w, const float *update, int64_t length, int32_t num_tokens, float *residual);

/* gate [T, length] = silu(gate) * up, the same part of every row as matmul's. */
void swiglu(worker w, const kernels *k, const float *up, int64_t length, int32_t num_tokens, float *gate);

/* table [T, S/2] of (cos, sin) of (first_position + t) * frequency. */
void rope_table(worker w, const float *frequency, int32_t head_dim, int32_t first_position, int32_t num_tokens,
                float *table);

/* Turns the pairs (2i, 2i + 1) of one head [S] by the angles of one row of the table; out may be in. */
void rope(const float *angles, int32_t head_dim, const float *in, float *out);

/* What attention needs of a worker's own memory, in floats. */
size_t attention_scratch_floats(int32_t num_heads, int32_t num_kv_heads, int32_t head_dim);

typedef struct {
    const float *query;    /* [T, H, S] */
    const kv_cache *cache; /* holds positions 0 .. first_position + T - 1 */
    int32_t layer, num_heads, first_position, num_tokens;
    float *out; /* [T, H, S] */
} attention_job;

/* Each token attends to itself and all before it. scratch is the worker's own. */
void attention(worker w, const kernels *k, const attention_job *job, float *scratch);

/* True if no value of [T, length] is infinite or NaN, in the part of every row that matmul gives this worker. */
bool are_finite(worker w, const float *values, int64_t length, int32_t num_tokens);

/* -ln softmax(logits)[id]. */
double negative_log_probability(const kernels *k, const float *logits, int32_t vocab_size, int32_t id);

#endif
