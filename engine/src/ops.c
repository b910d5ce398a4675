/* ops.c: the operations that forward.c is written in, each shared by the members of a team of threads. */
#include "ops.h"

#include <float.h>
#include <math.h>

/* ------------------------------------------------------------------ rows and columns */

bool tensor_is_quantised(const tensor *weights) {
    return weights->type == TENSOR_Q8_0 || weights->type == TENSOR_Q4_0 || weights->type == TENSOR_Q4_1;
}

static matmul_kernel *matmul_of(const kernels *k, tensor_type type) {
    switch (type) {
    case TENSOR_F16: return k->matmul_f16;
    case TENSOR_BF16: return k->matmul_bf16;
    case TENSOR_Q8_0: return k->matmul_q8_0;
    case TENSOR_Q4_0: return k->matmul_q4_0;
    case TENSOR_Q4_1: return k->matmul_q4_1;
    default: return k->matmul_f32;
    }
}

void embed(worker w, const tensor *table, const int32_t *ids, int32_t num_tokens, float *out) {
    int64_t begin, end;
    threads_share(w, num_tokens, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        tensor_type_dequantise(table->type)((const char *)table->data + (size_t)ids[t] * table->row_bytes,
                                            table->row_length, out + t * table->row_length);
}

void rms_norm(worker w, const kernels *k, const float *in, const float *weight, float epsilon, int32_t num_tokens,
              activations *out) {
    const int64_t length = out->length;
    int64_t begin, end;
    threads_share(w, num_tokens, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        const float *row = in + t * length;
        const float scale = 1.0f / sqrtf(k->sum_of_squares(row, length) / (float)length + epsilon);
        for (int64_t i = 0; i < length; i++) out->values[t * length + i] = row[i] * scale * weight[i];
    }
}

void quantise(worker w, const kernels *k, int32_t num_tokens, activations *columns) {
    int64_t begin, end;
    threads_share(w, columns->length, BLOCK_LENGTH, &begin, &end);
    for (int64_t t = 0; t < num_tokens; t++) {
        const int64_t first = t * columns->length + begin;
        k->quantise(columns->values + first, end - begin, columns->blocks + first / BLOCK_LENGTH);
    }
}

void matmul_rows(const kernels *k, const tensor *weights, const activations *columns, int32_t num_tokens, int64_t begin,
                 int64_t end, float *out) {
    const bool quantised = tensor_is_quantised(weights);
    const size_t length = (size_t)columns->length;
    const matmul_job job = {
        .weights = (const char *)weights->data + (size_t)begin * weights->row_bytes,
        .row_bytes = weights->row_bytes,
        .num_rows = end - begin,
        .row_length = weights->row_length,
        .columns = quantised ? (const void *)columns->blocks : columns->values,
        .column_bytes = quantised ? length / BLOCK_LENGTH * sizeof(activation_block) : length * sizeof(float),
        .num_columns = num_tokens,
        .out = out + begin,
        .out_stride = (size_t)weights->num_rows,
    };
    matmul_of(k, weights->type)(&job);
}

void matmul(worker w, const kernels *k, const tensor *weights, const activations *columns, int32_t num_tokens,
            float *out) {
    int64_t begin, end;
    threads_share(w, weights->num_rows, ROW_UNIT, &begin, &end);
    matmul_rows(k, weights, columns, num_tokens, begin, end, out);
}

void add(worker w, const float *update, int64_t length, int32_t num_tokens, float *residual) {
    int64_t begin, end;
    threads_share(w, length, ROW_UNIT, &begin, &end);
    for (int64_t t = 0; t < num_tokens; t++)
        for (int64_t i = t * length + begin; i < t * length + end; i++) residual[i] += update[i];
}

void swiglu(worker w, const kernels *k, const float *up, int64_t length, int32_t num_tokens, float *gate) {
    int64_t begin, end;
    threads_share(w, length, ROW_UNIT, &begin, &end);
    for (int64_t t = 0; t < num_tokens; t++) k->swiglu(gate + t * length + begin, up + t * length + begin, end - begin);
}

/* ------------------------------------------------------------------ rotary positions */

/* The angle is rounded to float before its cosine is taken, as in PyTorch and in llama2.c. */
void rope_table(worker w, const float *frequency, int32_t head_dim, int32_t first_position, int32_t num_tokens,
                float *table) {
    int64_t begin, end;
    threads_share(w, num_tokens, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        for (int32_t i = 0; i < head_dim / 2; i++) {
            const float angle = (float)(first_position + t) * frequency[i];
            table[t * head_dim + 2 * i] = (float)cos((double)angle);
            table[t * head_dim + 2 * i + 1] = (float)sin((double)angle);
        }
    }
}

void rope(const float *angles, int32_t head_dim, const float *in, float *out) {
    for (int32_t i = 0; i < head_dim; i += 2) {
        const float cosine = angles[i], sine = angles[i + 1], first = in[i], second = in[i + 1];
        out[i] = first * cosine - second * sine;
        out[i + 1] = first * sine + second * cosine;
    }
}

/* ------------------------------------------------------------------ attention */

#define TILE_TOKENS 16 /* tokens that meet a page of keys at once */

/* A column is one query head of one token: TILE_TOKENS * H / K of them share the keys and values of one kv head. */
typedef struct {
    float *query;   /* [columns][S], times 1 / sqrt(S) */
    float *scores;  /* [columns][KV_PAGE_TOKENS] */
    float *sum;     /* [columns][S], of values weighted by exp(score - largest) */
    float *largest; /* [columns], of the scores so far */
    float *total;   /* [columns], of the weights so far */
} attention_tile;

static int64_t max_columns(int32_t num_heads, int32_t num_kv_heads) {
    return (int64_t)TILE_TOKENS * (num_heads / num_kv_heads);
}

size_t attention_scratch_floats(int32_t num_heads, int32_t num_kv_heads, int32_t head_dim) {
    return (size_t)max_columns(num_heads, num_kv_heads) * (size_t)(2 * head_dim + KV_PAGE_TOKENS + 2);
}

static attention_tile tile_in(float *scratch, int64_t columns, int32_t head_dim) {
    attention_tile tile = {.query = scratch};
    tile.sum = tile.query + columns * head_dim;
    tile.scores = tile.sum + columns * head_dim;
    tile.largest = tile.scores + columns * KV_PAGE_TOKENS;
    tile.total = tile.largest + columns;
    return tile;
}

/* Online softmax (Milakov and Gimelshein, 1805.02867) over one page, of which this column sees num_visible positions:
 * when a larger score appears, what was summed so far is scaled down to it. */
static void attend_to_page(const kernels *k, attention_tile *tile, int64_t column, const float *values,
                           int32_t num_visible, int32_t head_dim) {
    float *scores = tile->scores + column * KV_PAGE_TOKENS, *sum = tile->sum + column * head_dim;
    const float page_largest = k->maximum(scores, num_visible);
    if (page_largest > tile->largest[column]) {
        float scale = tile->largest[column];
        k->exp_and_sum(&scale, 1, page_largest);
        for (int32_t i = 0; i < head_dim; i++) sum[i] *= scale;
        tile->total[column] *= scale;
        tile->largest[column] = page_largest;
    }
    tile->total[column] += k->exp_and_sum(scores, num_visible, tile->largest[column]);
    k->add_weighted_rows(values, scores, num_visible, head_dim, sum);
}

/* Tokens [first, last) of the pass, all query heads of one kv head. */
static void attend(const kernels *k, const attention_job *job, int32_t kv_head, int32_t first, int32_t last,
                   float *scratch) {
    const int32_t head_dim = job->cache->head_dim, group = job->num_heads / job->cache->num_heads;
    const int64_t columns = (int64_t)(last - first) * group;
    const float scale = 1.0f / sqrtf((float)head_dim);
    attention_tile tile = tile_in(scratch, max_columns(job->num_heads, job->cache->num_heads), head_dim);
    for (int64_t c = 0; c < columns; c++) {
        const float *query =
            job->query + ((first + c / group) * job->num_heads + kv_head * group + c % group) * head_dim;
        for (int32_t i = 0; i < head_dim; i++) tile.query[c * head_dim + i] = query[i] * scale;
        for (int32_t i = 0; i < head_dim; i++) tile.sum[c * head_dim + i] = 0.0f;
        tile.largest[c] = -INFINITY;
        tile.total[c] = 0.0f;
    }
    for (int32_t position = 0; position < job->first_position + last; position += KV_PAGE_TOKENS) {
        const int32_t page = position / KV_PAGE_TOKENS, held = job->first_position + last - position;
        const size_t head_bytes = (size_t)head_dim * sizeof(float);
        k->matmul_f32(&(matmul_job){.weights = kv_cache_keys(job->cache, page, job->layer, kv_head),
                                    .row_bytes = head_bytes,
                                    .num_rows = held < KV_PAGE_TOKENS ? held : KV_PAGE_TOKENS,
                                    .row_length = head_dim,
                                    .columns = tile.query,
                                    .column_bytes = head_bytes,
                                    .num_columns = columns,
                                    .out = tile.scores,
                                    .out_stride = KV_PAGE_TOKENS});
        const float *values = kv_cache_values(job->cache, page, job->layer, kv_head);
        for (int64_t c = 0; c < columns; c++) {
            const int64_t visible = job->first_position + first + c / group + 1 - position;
            if (visible > 0)
                attend_to_page(k, &tile, c, values, visible < KV_PAGE_TOKENS ? (int32_t)visible : KV_PAGE_TOKENS,
                               head_dim);
        }
    }
    for (int64_t c = 0; c < columns; c++) {
        float *out = job->out + ((first + c / group) * job->num_heads + kv_head * group + c % group) * head_dim;
        for (int32_t i = 0; i < head_dim; i++) out[i] = tile.sum[c * head_dim + i] / tile.total[c];
    }
}

void attention(worker w, const kernels *k, const attention_job *job, float *scratch) {
    const int64_t num_tiles = (job->num_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    int64_t begin, end;
    threads_share(w, num_tiles * job->cache->num_heads, 1, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        const int32_t first = (int32_t)(item % num_tiles) * TILE_TOKENS, last = first + TILE_TOKENS;
        attend(k, job, (int32_t)(item / num_tiles), first, last < job->num_tokens ? last : job->num_tokens, scratch);
    }
}

/* ------------------------------------------------------------------ logits */

bool are_finite(worker w, const float *values, int64_t length, int32_t num_tokens) {
    int64_t begin, end;
    threads_share(w, length, ROW_UNIT, &begin, &end);
    int damaged = 0;
    for (int64_t t = 0; t < num_tokens; t++)
        for (int64_t i = t * length + begin; i < t * length + end; i++) damaged |= !(fabsf(values[i]) <= FLT_MAX);
    return !damaged;
}

/* The weights of softmax as floats, a few hundred at a time, their sums in double: 1e-7 of the sum is lost at most. */
double negative_log_probability(const kernels *k, const float *logits, int32_t vocab_size, int32_t id) {
    float part[256];
    const int32_t part_length = sizeof part / sizeof part[0];
    const float largest = k->maximum(logits, vocab_size);
    double total = 0.0;
    for (int32_t i = 0; i < vocab_size; i += part_length) {
        const int32_t length = vocab_size - i < part_length ? vocab_size - i : part_length;
        memcpy(part, logits + i, (size_t)length * sizeof *part);
        total += (double)k->exp_and_sum(part, length, largest);
    }
    return log(total) + (double)largest - (double)logits[id];
}
