/* kernels_scalar.c: the kernels in plain C: the oracle that the others are compared with, and what runs anywhere. */
#include "exponential.h"
#include "kernels.h"

#include <math.h>

#define LANES 8

static float sum_lanes(const float lane[LANES]) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

static float dot(const float *restrict a, const float *restrict b, int64_t length) {
    float lane[LANES] = {0};
    int64_t k = 0;
    for (; k + LANES <= length; k += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += a[k + j] * b[k + j];
    for (int j = 0; k + j < length; j++) lane[j] += a[k + j] * b[k + j];
    return sum_lanes(lane);
}

/* ------------------------------------------------------------------ matrix products */

/* A chunk of a 16-bit row is turned into floats once and met with every column. Its length is a multiple of LANES, and
 * the lanes of each column are kept between chunks, so that the order is dot's. */
#define CHUNK 256
#define COLUMNS 16

static void multiply_converted(const matmul_job *job, dequantise_function *convert, int64_t element_bytes) {
    for (int64_t r = 0; r < job->num_rows; r++) {
        const char *row = (const char *)job->weights + (size_t)r * job->row_bytes;
        for (int64_t first = 0; first < job->num_columns; first += COLUMNS) {
            const int64_t n = job->num_columns - first < COLUMNS ? job->num_columns - first : COLUMNS;
            float lanes[COLUMNS][LANES] = {{0}}, chunk[CHUNK];
            for (int64_t k = 0; k < job->row_length; k += CHUNK) {
                const int64_t length = job->row_length - k < CHUNK ? job->row_length - k : CHUNK;
                convert(row + k * element_bytes, length, chunk);
                for (int64_t c = 0; c < n; c++) {
                    const float *column =
                        (const float *)((const char *)job->columns + (size_t)(first + c) * job->column_bytes) + k;
                    int64_t i = 0;
                    for (; i + LANES <= length; i += LANES)
                        for (int j = 0; j < LANES; j++) lanes[c][j] += chunk[i + j] * column[i + j];
                    for (int j = 0; i + j < length; j++) lanes[c][j] += chunk[i + j] * column[i + j];
                }
            }
            for (int64_t c = 0; c < n; c++)
                job->out[(size_t)(first + c) * job->out_stride + (size_t)r] = sum_lanes(lanes[c]);
        }
    }
}

static void matmul_f32(const matmul_job *job) {
    for (int64_t r = 0; r < job->num_rows; r++) {
        const float *row = (const float *)(const void *)((const char *)job->weights + (size_t)r * job->row_bytes);
        for (int64_t c = 0; c < job->num_columns; c++) {
            const float *column =
                (const float *)(const void *)((const char *)job->columns + (size_t)c * job->column_bytes);
            job->out[(size_t)c * job->out_stride + (size_t)r] = dot(row, column, job->row_length);
        }
    }
}

static void matmul_f16(const matmul_job *job) { multiply_converted(job, dequantise_f16, 2); }
static void matmul_bf16(const matmul_job *job) { multiply_converted(job, dequantise_bf16, 2); }

typedef float block_dot(const uint8_t *weights, const activation_block *column);

static inline void multiply_blocks(const matmul_job *job, size_t block_bytes, block_dot *dot_of) {
    for (int64_t r = 0; r < job->num_rows; r++) {
        const uint8_t *row = (const uint8_t *)job->weights + (size_t)r * job->row_bytes;
        for (int64_t c = 0; c < job->num_columns; c++) {
            const activation_block *column = (const void *)((const char *)job->columns + (size_t)c * job->column_bytes);
            float sum = 0;
            for (int64_t b = 0; b < job->row_length / BLOCK_LENGTH; b++)
                sum += dot_of(row + (size_t)b * block_bytes, column + b);
            job->out[(size_t)c * job->out_stride + (size_t)r] = sum;
        }
    }
}

static inline float dot_q8_0(const uint8_t *weights, const activation_block *column) {
    const int8_t *values = (const int8_t *)weights + 2;
    int32_t sum = 0;
    for (int i = 0; i < BLOCK_LENGTH; i++) sum += values[i] * column->values[i];
    return (float)sum * (float_from_half(weights) * column->scale);
}

static inline int32_t dot_nibbles(const uint8_t *nibbles, const int8_t *values, int zero) {
    int32_t sum = 0;
    for (int i = 0; i < BLOCK_LENGTH / 2; i++)
        sum += ((nibbles[i] & 15) - zero) * values[i] + ((nibbles[i] >> 4) - zero) * values[i + BLOCK_LENGTH / 2];
    return sum;
}

static inline float dot_q4_0(const uint8_t *weights, const activation_block *column) {
    return (float)dot_nibbles(weights + 2, column->values, 8) * (float_from_half(weights) * column->scale);
}

static inline float dot_q4_1(const uint8_t *weights, const activation_block *column) {
    int32_t sum_of_values = 0;
    for (int i = 0; i < BLOCK_LENGTH; i++) sum_of_values += column->values[i];
    return (float)dot_nibbles(weights + 4, column->values, 0) * (float_from_half(weights) * column->scale) +
           (float)sum_of_values * (float_from_half(weights + 2) * column->scale);
}

static void matmul_q8_0(const matmul_job *job) { multiply_blocks(job, 34, dot_q8_0); }
static void matmul_q4_0(const matmul_job *job) { multiply_blocks(job, 18, dot_q4_0); }
static void matmul_q4_1(const matmul_job *job) { multiply_blocks(job, 20, dot_q4_1); }

/* ------------------------------------------------------------------ vectors */

static void quantise(const float *values, int64_t length, activation_block *blocks) {
    for (int64_t b = 0; b < length / BLOCK_LENGTH; b++, values += BLOCK_LENGTH) {
        uint32_t largest = 0; /* magnitudes compare as integers, NaN above infinity above the rest */
        for (int i = 0; i < BLOCK_LENGTH; i++) {
            const uint32_t magnitude = bits_from_float(values[i]) & 0x7fffffffu;
            largest = magnitude > largest ? magnitude : largest;
        }
        const float magnitude = float_from_bits(largest);
        /* Below 1e-30 the block counts as zero: 127 / magnitude must not overflow. */
        const float inverse = magnitude >= 1e-30f && largest < 0x7f800000u ? 127.0f / magnitude : 0.0f;
        blocks[b].scale = largest >= 0x7f800000u ? NAN : inverse > 0.0f ? magnitude / 127.0f : 0.0f;
        for (int i = 0; i < BLOCK_LENGTH; i++)
            blocks[b].values[i] = inverse > 0.0f ? (int8_t)lrintf(values[i] * inverse) : 0;
    }
}

static float sum_of_squares(const float *values, int64_t length) { return dot(values, values, length); }

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

static void add_weighted_rows(const float *rows, const float *weights, int64_t num_rows, int64_t length, float *out) {
    for (int64_t n = 0; n < num_rows; n++)
        for (int64_t i = 0; i < length; i++) out[i] += weights[n] * rows[n * length + i];
}

static void swiglu(float *gate, const float *up, int64_t length) {
    for (int64_t i = 0; i < length; i++) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

const kernels kernels_scalar = {
    .name = "scalar",
    .matmul_f32 = matmul_f32,
    .matmul_f16 = matmul_f16,
    .matmul_bf16 = matmul_bf16,
    .matmul_q8_0 = matmul_q8_0,
    .matmul_q4_0 = matmul_q4_0,
    .matmul_q4_1 = matmul_q4_1,
    .quantise = quantise,
    .sum_of_squares = sum_of_squares,
    .maximum = maximum,
    .exp_and_sum = exp_and_sum,
    .add_weighted_rows = add_weighted_rows,
    .swiglu = swiglu,
};
