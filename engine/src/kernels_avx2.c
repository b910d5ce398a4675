/* kernels_avx2.c: the kernels for x86-64 processors with AVX2, FMA and F16C (Intel since 2013, AMD since 2015).
 *
 * A tile is `rows` x `columns` outputs whose sums are kept in registers, one vector of eight lanes each: eight rows of
 * one column (decoding, where memory is the limit), or four rows of several columns (prompts, where loads are). The
 * sizes are literals, so that the compiler unrolls the loops over them; the order within one sum is that of kernels.h
 * in every tile.
 *
 * When decoding, the rows of a tile are eight short streams, over before the processor has learnt to read ahead. So
 * each step asks for the same place in the next tile's rows: 1.5 times as fast for Q8_0 and Q4_0 from memory, 1.3 for
 * F16.
 */
#include "exponential.h"
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif
#define LANES 8

INLINE float sum_lanes(__m256 lanes) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* The first n lanes, 0 <= n <= 8. */
INLINE __m256i lane_mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* The address may lie beyond the tensor: asking is no access. */
INLINE void prefetch_next_tile(const void *place_in_row, size_t row_bytes) {
    _mm_prefetch((const char *)((uintptr_t)place_in_row + 8 * row_bytes), _MM_HINT_T1);
}

/* ------------------------------------------------------------------ float columns */

enum { F32, F16, BF16 };

INLINE __m256 load_weights(const char *row, int64_t k, int format) {
    if (format == F32) return _mm256_loadu_ps((const float *)(const void *)row + k);
    const __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)(row + 2 * k));
    if (format == F16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/* The last n < 8 weights of a row, then zeros; reads nothing beyond them. */
INLINE __m256 load_last_weights(const char *row, int64_t k, int64_t n, int format) {
    if (format == F32) return _mm256_maskload_ps((const float *)(const void *)row + k, lane_mask(n));
    char halves[16] = {0};
    memcpy(halves, row + 2 * k, 2 * (size_t)n);
    return load_weights(halves, 0, format);
}

INLINE const float *float_column(const matmul_job *job, int64_t column) {
    return (const float *)(const void *)((const char *)job->columns + (size_t)column * job->column_bytes);
}

INLINE void float_tile(const matmul_job *job, int64_t row, int64_t column, const int rows, const int columns,
                       const int format) {
    const char *weights[8];
    const float *values[4];
    __m256 sums[8][4];
    UNROLL for (int r = 0; r < rows; r++) weights[r] = (const char *)job->weights + (size_t)(row + r) * job->row_bytes;
    UNROLL for (int c = 0; c < columns; c++) values[c] = float_column(job, column + c);
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < columns; c++) sums[r][c] = _mm256_setzero_ps();

    int64_t k = 0;
    for (; k + LANES <= job->row_length; k += LANES) {
        __m256 activation[4];
        if (rows == 8 && k % 16 == 0)
            UNROLL for (int r = 0; r < rows; r++)
                prefetch_next_tile(weights[r] + k * (format == F32 ? 4 : 2), job->row_bytes);
        UNROLL for (int c = 0; c < columns; c++) activation[c] = _mm256_loadu_ps(values[c] + k);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m256 weight = load_weights(weights[r], k, format);
            UNROLL for (int c = 0; c < columns; c++) sums[r][c] = _mm256_fmadd_ps(weight, activation[c], sums[r][c]);
        }
    }
    const int64_t left = job->row_length - k;
    if (left > 0) {
        const __m256i mask = lane_mask(left);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m256 weight = load_last_weights(weights[r], k, left, format);
            UNROLL for (int c = 0; c < columns; c++)
                sums[r][c] = _mm256_fmadd_ps(weight, _mm256_maskload_ps(values[c] + k, mask), sums[r][c]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < columns; c++)
        job->out[(size_t)(column + c) * job->out_stride + (size_t)(row + r)] = sum_lanes(sums[r][c]);
}

INLINE void float_matmul(const matmul_job *job, const int format) {
    int64_t row = 0;
    if (job->num_columns == 1)
        for (; row + 8 <= job->num_rows; row += 8) float_tile(job, row, 0, 8, 1, format);
    for (; row + 4 <= job->num_rows; row += 4) {
        int64_t column = 0;
        for (; column + 3 <= job->num_columns; column += 3) float_tile(job, row, column, 4, 3, format);
        for (; column < job->num_columns; column++) float_tile(job, row, column, 4, 1, format);
    }
    for (; row < job->num_rows; row++)
        for (int64_t column = 0; column < job->num_columns; column++) float_tile(job, row, column, 1, 1, format);
}

static void matmul_f32(const matmul_job *job) { float_matmul(job, F32); }
static void matmul_f16(const matmul_job *job) { float_matmul(job, F16); }
static void matmul_bf16(const matmul_job *job) { float_matmul(job, BF16); }

/* ------------------------------------------------------------------ quantised columns */

enum { Q8_0, Q4_0, Q4_1 };

INLINE size_t weight_block_bytes(int format) { return format == Q8_0 ? 34 : format == Q4_0 ? 18 : 20; }

INLINE __m256 half_to_all_lanes(const uint8_t *address) {
    uint16_t half;
    memcpy(&half, address, sizeof half);
    return _mm256_cvtph_ps(_mm_set1_epi16((short)half));
}

/* The 32 weights of a block as bytes: signed for Q8_0, 0..15 for the others. */
INLINE __m256i load_block(const uint8_t *block, int format) {
    if (format == Q8_0) return _mm256_loadu_si256((const __m256i *)(const void *)(block + 2));
    const __m128i nibbles = _mm_loadu_si128((const __m128i *)(const void *)(block + (format == Q4_0 ? 2 : 4)));
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(nibbles), _mm_srli_epi16(nibbles, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

/* What a column's block gives to every row, worked out once. */
typedef struct {
    __m256i values;     /* 32 signed bytes */
    __m256i correction; /* Q4_0: 8 times the sum of each two values; Q4_1: unused */
    __m256 scale;       /* in all lanes */
    __m256 scaled_sum;  /* Q4_1: scale times the sum of each four values */
} column_block;

INLINE column_block load_column_block(const activation_block *block, int format) {
    column_block column = {.values = _mm256_loadu_si256((const __m256i *)(const void *)block->values),
                           .scale = _mm256_broadcast_ss(&block->scale)};
    if (format == Q4_0) column.correction = _mm256_maddubs_epi16(_mm256_set1_epi8(8), column.values);
    if (format == Q4_1) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), column.values);
        const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        column.scaled_sum = _mm256_mul_ps(_mm256_cvtepi32_ps(fours), column.scale);
    }
    return column;
}

/* Sums of four neighbouring products in each of eight lanes, exact: no pair of products leaves 16 bits, as
 * 128 * 127 * 2 = 32,512 (|w| as unsigned, so -128 is right too) and 15 * 127 * 2 + 8 * 127 * 2 = 5,842. */
INLINE __m256i block_sums(__m256i weights, __m256i magnitudes, const column_block *column, int format) {
    __m256i pairs;
    if (format == Q8_0) pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(column->values, weights));
    else pairs = _mm256_maddubs_epi16(weights, column->values);
    if (format == Q4_0) pairs = _mm256_sub_epi16(pairs, column->correction);
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

INLINE void block_tile(const matmul_job *job, int64_t row, int64_t column, const int rows, const int columns,
                       const int format) {
    const uint8_t *weights[8];
    const activation_block *blocks[4];
    __m256 sums[8][4];
    UNROLL for (int r = 0; r < rows; r++)
        weights[r] = (const uint8_t *)job->weights + (size_t)(row + r) * job->row_bytes;
    UNROLL for (int c = 0; c < columns; c++)
        blocks[c] = (const void *)((const char *)job->columns + (size_t)(column + c) * job->column_bytes);
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < columns; c++) sums[r][c] = _mm256_setzero_ps();

    const int64_t num_blocks = job->row_length / BLOCK_LENGTH;
    for (int64_t b = 0; b < num_blocks; b++) {
        column_block values[4];
        if (rows == 8)
            UNROLL for (int r = 0; r < rows; r++)
                prefetch_next_tile(weights[r] + (size_t)b * weight_block_bytes(format), job->row_bytes);
        UNROLL for (int c = 0; c < columns; c++) values[c] = load_column_block(blocks[c] + b, format);
        UNROLL for (int r = 0; r < rows; r++) {
            const uint8_t *block = weights[r] + (size_t)b * weight_block_bytes(format);
            const __m256i weight = load_block(block, format);
            const __m256i magnitude = format == Q8_0 ? _mm256_abs_epi8(weight) : weight;
            const __m256 scale = half_to_all_lanes(block);
            const __m256 minimum = format == Q4_1 ? half_to_all_lanes(block + 2) : scale;
            UNROLL for (int c = 0; c < columns; c++) {
                const __m256 sum = _mm256_cvtepi32_ps(block_sums(weight, magnitude, &values[c], format));
                sums[r][c] = _mm256_fmadd_ps(sum, _mm256_mul_ps(scale, values[c].scale), sums[r][c]);
                if (format == Q4_1) sums[r][c] = _mm256_fmadd_ps(minimum, values[c].scaled_sum, sums[r][c]);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < columns; c++)
        job->out[(size_t)(column + c) * job->out_stride + (size_t)(row + r)] = sum_lanes(sums[r][c]);
}

INLINE void block_matmul(const matmul_job *job, const int format) {
    int64_t row = 0;
    if (job->num_columns == 1)
        for (; row + 8 <= job->num_rows; row += 8) block_tile(job, row, 0, 8, 1, format);
    for (; row + 4 <= job->num_rows; row += 4) {
        int64_t column = 0;
        for (; column + 2 <= job->num_columns; column += 2) block_tile(job, row, column, 4, 2, format);
        for (; column < job->num_columns; column++) block_tile(job, row, column, 4, 1, format);
    }
    for (; row < job->num_rows; row++)
        for (int64_t column = 0; column < job->num_columns; column++) block_tile(job, row, column, 1, 1, format);
}

static void matmul_q8_0(const matmul_job *job) { block_matmul(job, Q8_0); }
static void matmul_q4_0(const matmul_job *job) { block_matmul(job, Q4_0); }
static void matmul_q4_1(const matmul_job *job) { block_matmul(job, Q4_1); }

/* The same numbers as the scalar kernel's, bit for bit. */
static void quantise(const float *values, int64_t length, activation_block *blocks) {
    const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
    for (int64_t b = 0; b < length / BLOCK_LENGTH; b++, values += BLOCK_LENGTH) {
        __m256 part[4];
        /* Magnitudes compare as integers, NaN above infinity above the rest. */
        __m256i largest = _mm256_setzero_si256();
        UNROLL for (int i = 0; i < 4; i++) {
            part[i] = _mm256_loadu_ps(values + 8 * i);
            largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(part[i]), no_sign));
        }
        __m128i four = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
        const uint32_t bits = (uint32_t)_mm_cvtsi128_si32(four);
        const float magnitude = float_from_bits(bits);
        if (!(magnitude >= 1e-30f && bits < 0x7f800000u)) {
            blocks[b].scale = bits >= 0x7f800000u ? NAN : 0.0f;
            memset(blocks[b].values, 0, sizeof blocks[b].values);
            continue;
        }
        blocks[b].scale = magnitude / 127.0f;
        const __m256 inverse = _mm256_set1_ps(127.0f / magnitude);
        __m256i rounded[4];
        UNROLL for (int i = 0; i < 4; i++) rounded[i] = _mm256_cvtps_epi32(_mm256_mul_ps(part[i], inverse));
        const __m256i low = _mm256_packs_epi32(rounded[0], rounded[1]);
        const __m256i high = _mm256_packs_epi32(rounded[2], rounded[3]);
        /* The packs work within halves; this puts the fours of bytes back in order. */
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
        _mm256_storeu_si256((__m256i *)(void *)blocks[b].values, bytes);
    }
}

/* ------------------------------------------------------------------ vectors */

INLINE __m256 load_last(const float *values, int64_t n) { return _mm256_maskload_ps(values, lane_mask(n)); }

static float sum_of_squares(const float *values, int64_t length) {
    __m256 sums = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        const __m256 value = _mm256_loadu_ps(values + i);
        sums = _mm256_fmadd_ps(value, value, sums);
    }
    const __m256 value = load_last(values + i, length - i);
    return sum_lanes(_mm256_fmadd_ps(value, value, sums));
}

static float maximum(const float *values, int64_t length) {
    __m256 largest = _mm256_set1_ps(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) largest = _mm256_max_ps(_mm256_loadu_ps(values + i), largest);
    float lanes[LANES], result = -INFINITY;
    _mm256_storeu_ps(lanes, largest);
    for (int j = 0; j < LANES; j++) result = lanes[j] > result ? lanes[j] : result;
    for (; i < length; i++) result = values[i] > result ? values[i] : result;
    return result;
}

/* exponential.h, eight at a time. The order of max and min lets NaN through. */
INLINE __m256 exponential_lanes(__m256 x) {
    const __m256 clamped = _mm256_min_ps(_mm256_set1_ps(EXP_HIGHEST), _mm256_max_ps(_mm256_set1_ps(EXP_LOWEST), x));
    const __m256 shifted = _mm256_fmadd_ps(clamped, _mm256_set1_ps(EXP_LOG2_E), _mm256_set1_ps(EXP_ROUND));
    const __m256 n = _mm256_sub_ps(shifted, _mm256_set1_ps(EXP_ROUND));
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(EXP_LN2_HIGH), clamped);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(EXP_LN2_LOW), r);
    __m256 q = _mm256_fmadd_ps(r, _mm256_set1_ps(EXP_Q4), _mm256_set1_ps(EXP_Q3));
    q = _mm256_fmadd_ps(r, q, _mm256_set1_ps(EXP_Q2));
    q = _mm256_fmadd_ps(r, q, _mm256_set1_ps(EXP_Q1));
    q = _mm256_fmadd_ps(r, q, _mm256_set1_ps(EXP_Q0));
    const __m256 one_and_r = _mm256_add_ps(_mm256_set1_ps(1.0f), r);
    const __m256 value = _mm256_fmadd_ps(_mm256_mul_ps(r, r), q, one_and_r);
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127)), 23);
    const __m256 too_low = _mm256_cmp_ps(x, _mm256_set1_ps(EXP_LOWEST), _CMP_LT_OQ);
    return _mm256_andnot_ps(too_low, _mm256_mul_ps(value, _mm256_castsi256_ps(power)));
}

static float exp_and_sum(float *values, int64_t length, float shift) {
    const __m256 shifts = _mm256_set1_ps(shift);
    __m256 sums = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        const __m256 value = exponential_lanes(_mm256_sub_ps(_mm256_loadu_ps(values + i), shifts));
        _mm256_storeu_ps(values + i, value);
        sums = _mm256_add_ps(sums, value);
    }
    if (i < length) {
        const __m256i mask = lane_mask(length - i);
        __m256 value = exponential_lanes(_mm256_sub_ps(_mm256_maskload_ps(values + i, mask), shifts));
        value = _mm256_and_ps(value, _mm256_castsi256_ps(mask));
        _mm256_maskstore_ps(values + i, mask, value);
        sums = _mm256_add_ps(sums, value);
    }
    return sum_lanes(sums);
}

/* vectors * 8 outputs at once, kept in registers over all rows. */
INLINE void add_weighted_columns(const float *rows, const float *weights, int64_t num_rows, int64_t length,
                                 float *out, const int vectors) {
    __m256 sums[8];
    UNROLL for (int i = 0; i < vectors; i++) sums[i] = _mm256_loadu_ps(out + 8 * i);
    for (int64_t n = 0; n < num_rows; n++) {
        const __m256 weight = _mm256_broadcast_ss(weights + n);
        UNROLL for (int i = 0; i < vectors; i++)
            sums[i] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(rows + n * length + 8 * i), sums[i]);
    }
    UNROLL for (int i = 0; i < vectors; i++) _mm256_storeu_ps(out + 8 * i, sums[i]);
}

static void add_weighted_rows(const float *rows, const float *weights, int64_t num_rows, int64_t length, float *out) {
    int64_t i = 0;
    for (; i + 64 <= length; i += 64) add_weighted_columns(rows + i, weights, num_rows, length, out + i, 8);
    for (; i + 16 <= length; i += 16) add_weighted_columns(rows + i, weights, num_rows, length, out + i, 2);
    for (; i + 8 <= length; i += 8) add_weighted_columns(rows + i, weights, num_rows, length, out + i, 1);
    if (i == length) return;
    const __m256i mask = lane_mask(length - i);
    __m256 sums = _mm256_maskload_ps(out + i, mask);
    for (int64_t n = 0; n < num_rows; n++)
        sums = _mm256_fmadd_ps(_mm256_broadcast_ss(weights + n), _mm256_maskload_ps(rows + n * length + i, mask), sums);
    _mm256_maskstore_ps(out + i, mask, sums);
}

INLINE __m256 swiglu_lanes(__m256 gate, __m256 up) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 power = exponential_lanes(_mm256_sub_ps(_mm256_setzero_ps(), gate));
    return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(one, power)), up);
}

static void swiglu(float *gate, const float *up, int64_t length) {
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES)
        _mm256_storeu_ps(gate + i, swiglu_lanes(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i == length) return;
    const __m256i mask = lane_mask(length - i);
    const __m256 last = swiglu_lanes(_mm256_maskload_ps(gate + i, mask), _mm256_maskload_ps(up + i, mask));
    _mm256_maskstore_ps(gate + i, mask, last);
}

const kernels kernels_avx2 = {
    .name = "avx2",
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
#endif
