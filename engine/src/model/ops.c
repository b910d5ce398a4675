/* ops.c: the operations of the network, each on the part that one worker computes. */
#include "model/ops.h"

#include <float.h>
#include <math.h>

/* ------------------------------------------------------------------ rows and columns */

void embed(const tensor *table, const int32_t *ids, int64_t begin, int64_t end, float *out) {
    dequantize_function *dequantize = tensor_type_dequantize(table->type);
    for (int64_t t = begin; t < end; t++)
        dequantize((const char *)table->data + (size_t)ids[t] * table->row_bytes, table->row_length,
                   out + t * table->row_length);
}

/* in and out may be the same. */
static void rms_norm_row(const kernels *k, const float *in, const float *weight, float epsilon, int64_t length,
                         float *out) {
    const float scale = 1.0f / sqrtf(k->sum_of_squares(in, length) / (float)length + epsilon);
    for (int64_t i = 0; i < length; i++) out[i] = in[i] * scale * weight[i];
}

void rms_norm(const kernels *k, const float *in, const float *weight, float epsilon, int64_t begin, int64_t end,
              activations *out) {
    const int64_t length = out->length;
    for (int64_t t = begin; t < end; t++)
        rms_norm_row(k, in + t * length, weight, epsilon, length, out->values + t * length);
}

void rms_norm_heads(const kernels *k, const float *weight, float epsilon, int32_t head_dim, int64_t begin, int64_t end,
                    float *heads) {
    for (int64_t i = begin; i < end; i += head_dim) rms_norm_row(k, heads + i, weight, epsilon, head_dim, heads + i);
}

void add_bias(const float *bias, int64_t begin, int64_t end, float *out) {
    for (int64_t i = begin; i < end; i++) out[i] += bias[i];
}

void quantize(const kernels *k, const float *values, int64_t begin, int64_t end, activations *columns) {
    const int64_t first = begin * columns->length;
    k->quantize(values + first, (end - begin) * columns->length, columns->blocks + first / BLOCK_LENGTH);
}

void quantize_part(const kernels *k, int32_t num_tokens, int64_t begin, int64_t end, activations *columns) {
    for (int64_t t = 0; t < num_tokens; t++) {
        const int64_t first = t * columns->length + begin;
        k->quantize(columns->values + first, end - begin, columns->blocks + first / BLOCK_LENGTH);
    }
}

/* out is [num_tokens][out_stride]; its first element belongs to row `begin`. */
static void multiply(const kernels *k, const tensor *weights, const activations *columns, int64_t num_tokens,
                     int64_t begin, int64_t end, float *out, size_t out_stride) {
    if (begin >= end) return;
    const bool quantized = panel_is_quantized(weights->format);
    const size_t length = (size_t)columns->length;
    const matmul_job job = {
        .panels = panel_at(weights->panels, weights->panel_bytes, begin),
        .panel_bytes = weights->panel_bytes,
        .num_rows = end - begin,
        .row_length = weights->row_length,
        .columns = quantized ? (const void *)columns->blocks : columns->values,
        .column_bytes = quantized ? length / BLOCK_LENGTH * sizeof(activation_block) : length * sizeof(float),
        .num_columns = num_tokens,
        .out = out,
        .out_stride = out_stride,
    };
    k->matmul[weights->format](&job);
}

void matmul(const kernels *k, const tensor *weights, const activations *columns, int32_t num_tokens, int64_t begin,
            int64_t end, float *out) {
    multiply(k, weights, columns, num_tokens, begin, end, out + begin, (size_t)weights->num_rows);
}

/* One tile of the product at a time, so that it stays in the L1 cache. */
void matmul_add(const kernels *k, const tensor *weights, const activations *columns, int32_t num_tokens, int64_t begin,
                int64_t end, float *out) {
    enum { TILE_COLUMNS = 8, TILE_ROWS = 256 };
    float product[TILE_COLUMNS * TILE_ROWS];
    for (int64_t t = 0; t < num_tokens; t += TILE_COLUMNS)
        for (int64_t row = begin; row < end; row += TILE_ROWS) {
            const int64_t count = num_tokens - t < TILE_COLUMNS ? num_tokens - t : TILE_COLUMNS,
                          last = end - row < TILE_ROWS ? end : row + TILE_ROWS;
            const activations part = {columns->values + t * columns->length, NULL, columns->length};
            multiply(k, weights, &part, count, row, last, product, TILE_ROWS);
            for (int64_t i = 0; i < count; i++)
                for (int64_t r = row; r < last; r++)
                    out[(t + i) * weights->num_rows + r] += product[i * TILE_ROWS + (r - row)];
        }
}

void add(const float *update, int64_t length, int32_t num_tokens, int64_t begin, int64_t end, float *residual) {
    for (int64_t t = 0; t < num_tokens; t++)
        for (int64_t i = t * length + begin; i < t * length + end; i++) residual[i] += update[i];
}

void swiglu(const kernels *k, const float *up, int64_t length, int32_t num_tokens, int64_t begin, int64_t end,
            float *gate) {
    for (int64_t t = 0; t < num_tokens; t++) k->swiglu(gate + t * length + begin, up + t * length + begin, end - begin);
}

/* ------------------------------------------------------------------ rotary positions */

/* The angle is rounded to float before its cosine is taken, as in PyTorch and in llama2.c. */
void rope_fill_table(const float *frequency, float factor, int32_t head_dim, const int32_t *positions, int64_t begin,
                     int64_t end, float *table) {
    for (int64_t t = begin; t < end; t++) {
        for (int32_t i = 0; i < head_dim / 2; i++) {
            const float angle = (float)positions[t] * frequency[i];
            table[t * head_dim + 2 * i] = (float)cos((double)angle) * factor;
            table[t * head_dim + 2 * i + 1] = (float)sin((double)angle) * factor;
        }
    }
}

void rope(const float *angles, int32_t head_dim, int64_t begin, int64_t end, float *heads) {
    for (int64_t i = begin, a = begin % head_dim; i < end; i += 2, a += 2) {
        if (a == head_dim) a = 0;
        const float cosine = angles[a], sine = angles[a + 1], first = heads[i], second = heads[i + 1];
        heads[i] = first * cosine - second * sine;
        heads[i + 1] = first * sine + second * cosine;
    }
}

/* ------------------------------------------------------------------ logits */

bool all_finite(const float *values, int64_t length) {
    int not_finite = 0;
    for (int64_t i = 0; i < length; i++) not_finite |= !(fabsf(values[i]) <= FLT_MAX);
    return !not_finite;
}

/* Sums the weights of softmax in float, a few hundred at a time, and these sums in double: the
 * error is at most 1e-7 of the sum. */
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
