/* kernels_scalar.c: the kernels in plain C, which run anywhere and are the reference for the
 * others. */
#include "kernels/float_math.h"
#include "kernels/kernels.h"

#include <math.h>

static float sum_lanes(const float lane[LANES]) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/* ------------------------------------------------------------------ float matrices */

static inline float load_f32(const void *address) {
    float value;
    memcpy(&value, address, sizeof value);
    return value;
}

static inline float load_i8(const void *address) { return (float)*(const int8_t *)address; }

typedef float load_function(const void *address);

static inline void multiply_floats(const matmul_job *job, size_t element_bytes, load_function *load) {
    for (int64_t row = 0; row < job->num_rows; row++) {
        const char *lane = (const char *)job->panels + (size_t)(row / PANEL_ROWS) * job->panel_bytes +
                           (size_t)(row % PANEL_ROWS) * element_bytes;
        for (int64_t c = 0; c < job->num_columns; c++) {
            const char *column = (const char *)job->columns + (size_t)c * job->column_bytes;
            float sum = 0.0f;
            for (int64_t k = 0; k < job->row_length; k++)
                sum = fused_multiply_add(load(lane + (size_t)k * PANEL_ROWS * element_bytes), load_f32(column + 4 * k),
                                         sum);
            job->out[(size_t)c * job->out_stride + (size_t)row] = sum;
        }
    }
}

static void matmul_f32(const matmul_job *job) { multiply_floats(job, 4, load_f32); }
static void matmul_f16(const matmul_job *job) { multiply_floats(job, 2, float_from_half); }
static void matmul_bf16(const matmul_job *job) { multiply_floats(job, 2, float_from_bfloat); }
static void matmul_i8(const matmul_job *job) { multiply_floats(job, 1, load_i8); }

/* ------------------------------------------------------------------ quantized matrices */

/* One row of a quantized panel: its codes and headers. */
typedef struct {
    const uint8_t *codes, *headers, *supers;
    panel_layout layout;
    int row; /* within the panel */
} panel_row;

/* The code of element k of a block, 0 .. 31. */
static int code_at(const panel_row *p, panel_format format, int64_t block, int k) {
    const uint8_t *codes = p->codes + (size_t)block * p->layout.code_bytes;
    const int quad = k / 4, lane = 4 * p->row + k % 4;
    if (format == PANEL_Q8_0) return (int8_t)codes[32 * quad + lane];
    const int low = codes[32 * (quad % 4) + lane] >> (quad < 4 ? 0 : 4) & 15;
    if (format == PANEL_Q5_1 || format == PANEL_Q5_K) return low | (codes[128 + lane] >> quad & 1) << 4;
    if (format == PANEL_Q6_K) return low | (codes[128 + 32 * (quad / 4) + lane] >> 2 * (quad % 4) & 3) << 4;
    return low;
}

/* Sum of code * value over elements [first, last) of a block. */
static int32_t sum_of_codes(const panel_row *p, panel_format format, int64_t block, const int8_t *values, int first,
                            int last) {
    int32_t sum = 0;
    for (int k = first; k < last; k++) sum += code_at(p, format, block, k) * values[k];
    return sum;
}

static float add_block(const panel_row *p, panel_format format, int64_t block, const activation_block *a, float sum) {
    const uint8_t *header = p->headers + (size_t)block * p->layout.header_bytes,
                  *super = p->supers + (size_t)(block / (SUPER_LENGTH / BLOCK_LENGTH)) * p->layout.super_bytes;
    if (format == PANEL_Q6_K) {
        const int8_t *scales = (const int8_t *)header + p->row;
        const int32_t first = a->sums_of_half, second = 4 * a->eight_sums - first;
        const int32_t whole = scales[0] * (sum_of_codes(p, format, block, a->values, 0, 16) - first) +
                              scales[PANEL_ROWS] * (sum_of_codes(p, format, block, a->values, 16, 32) - second);
        return fused_multiply_add((float)whole, panel_scale(super, p->row) * a->scale, sum);
    }
    const int32_t whole = sum_of_codes(p, format, block, a->values, 0, BLOCK_LENGTH);
    if (format == PANEL_Q4_K || format == PANEL_Q5_K) {
        const float scale = panel_scale(super, p->row) * (float)header[p->row],
                    minimum = panel_scale(super + PANEL_SCALES, p->row) * (float)header[PANEL_ROWS + p->row];
        return fused_multiply_add(-minimum, a->scaled_sum, fused_multiply_add((float)whole, scale * a->scale, sum));
    }
    const float scale = panel_scale(header, p->row) * a->scale;
    if (format == PANEL_Q4_0) return fused_multiply_add((float)(whole - a->eight_sums), scale, sum);
    sum = fused_multiply_add((float)whole, scale, sum);
    if (format == PANEL_Q8_0) return sum;
    return fused_multiply_add(panel_scale(header + PANEL_SCALES, p->row), a->scaled_sum, sum); /* Q4_1, Q5_1 */
}

static inline void multiply_blocks(const matmul_job *job, panel_format format) {
    const int64_t num_blocks = job->row_length / BLOCK_LENGTH;
    for (int64_t row = 0; row < job->num_rows; row++) {
        panel_row p = {.layout = panel_layout_of(format), .row = (int)(row % PANEL_ROWS)};
        p.codes = (const uint8_t *)job->panels + (size_t)(row / PANEL_ROWS) * job->panel_bytes;
        p.headers = p.codes + (size_t)num_blocks * p.layout.code_bytes;
        p.supers = p.headers + (size_t)num_blocks * p.layout.header_bytes;
        for (int64_t c = 0; c < job->num_columns; c++) {
            const activation_block *column = (const void *)((const char *)job->columns + (size_t)c * job->column_bytes);
            float sum = 0.0f;
            for (int64_t b = 0; b < num_blocks; b++) sum = add_block(&p, format, b, column + b, sum);
            job->out[(size_t)c * job->out_stride + (size_t)row] = sum;
        }
    }
}

static void matmul_q8_0(const matmul_job *job) { multiply_blocks(job, PANEL_Q8_0); }
static void matmul_q4_0(const matmul_job *job) { multiply_blocks(job, PANEL_Q4_0); }
static void matmul_q4_1(const matmul_job *job) { multiply_blocks(job, PANEL_Q4_1); }
static void matmul_q5_1(const matmul_job *job) { multiply_blocks(job, PANEL_Q5_1); }
static void matmul_q4_k(const matmul_job *job) { multiply_blocks(job, PANEL_Q4_K); }
static void matmul_q5_k(const matmul_job *job) { multiply_blocks(job, PANEL_Q5_K); }
static void matmul_q6_k(const matmul_job *job) { multiply_blocks(job, PANEL_Q6_K); }

/* ------------------------------------------------------------------ vectors */

static void quantize(const float *values, int64_t length, activation_block *blocks) {
    for (int64_t b = 0; b < length / BLOCK_LENGTH; b++, values += BLOCK_LENGTH) {
        /* Magnitudes compare as integers: NaN > infinity > finite values. */
        uint32_t largest = 0;
        for (int i = 0; i < BLOCK_LENGTH; i++) {
            const uint32_t magnitude = bits_from_float(values[i]) & 0x7fffffffu;
            largest = magnitude > largest ? magnitude : largest;
        }
        const float magnitude = float_from_bits(largest);
        /* Below 1e-30 the block becomes zeros: 127 / magnitude must not overflow. */
        const float inverse = magnitude >= 1e-30f && largest < 0x7f800000u ? 127.0f / magnitude : 0.0f;
        int32_t sums[2] = {0, 0};
        for (int i = 0; i < BLOCK_LENGTH; i++) {
            blocks[b].values[i] = inverse > 0.0f ? (int8_t)lrintf(values[i] * inverse) : 0;
            sums[i / (BLOCK_LENGTH / 2)] += blocks[b].values[i];
        }
        blocks[b].scale = largest >= 0x7f800000u ? NAN : inverse > 0.0f ? magnitude / 127.0f : 0.0f;
        blocks[b].scaled_sum = blocks[b].scale * (float)(sums[0] + sums[1]);
        blocks[b].eight_sums = 8 * (sums[0] + sums[1]);
        blocks[b].sums_of_half = 32 * sums[0];
    }
}

static void to_halves(const float *values, int64_t length, uint16_t *halves) {
    for (int64_t i = 0; i < length; i++) halves[i] = half_from_float(values[i]);
}

static float sum_of_squares(const float *values, int64_t length) {
    float lane[LANES] = {0};
    for (int64_t i = 0; i < length; i++) lane[i % LANES] = fused_multiply_add(values[i], values[i], lane[i % LANES]);
    return sum_lanes(lane);
}

static float maximum(const float *values, int64_t length) {
    float largest = -INFINITY;
    for (int64_t i = 0; i < length; i++) largest = values[i] > largest ? values[i] : largest;
    return largest;
}

static float exp_and_sum(float *values, int64_t length, float shift) {
    float lane[LANES] = {0};
    for (int64_t i = 0; i < length; i++) {
        values[i] = exponential(values[i] - shift);
        lane[i % LANES] += values[i];
    }
    return sum_lanes(lane);
}

static void swiglu(float *gate, const float *up, int64_t length) {
    for (int64_t i = 0; i < length; i++) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

const kernels kernels_scalar = {
    .name = "scalar",
    .matmul = {matmul_f32, matmul_f16, matmul_bf16, matmul_i8, matmul_q8_0, matmul_q4_0, matmul_q4_1, matmul_q5_1,
               matmul_q4_k, matmul_q5_k, matmul_q6_k},
    .quantize = quantize,
    .to_halves = to_halves,
    .sum_of_squares = sum_of_squares,
    .maximum = maximum,
    .exp_and_sum = exp_and_sum,
    .swiglu = swiglu,
};
