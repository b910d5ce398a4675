/* kernels_avx2.c: the kernels for x86-64 processors with AVX2, FMA and F16C (Intel since 2013, AMD
 * since 2015). kernels_avxvnni.c compiles this file again. A vector is a panel. */
#include "kernels/kernels_avx2.h"

#include "kernels/float_math.h"
#include "kernels/inline.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#define VECTOR_PANELS 1
#define VECTOR_ROWS 8
#define VALUES 1 /* broadcast as they are loaded */
#define MAX_VECTORS 4
#define FLOAT_VECTORS 2 /* by six columns: twelve sums of the sixteen registers */
#define FLOAT_COLUMNS 6
#define FLOAT_STREAMS 4
#define BLOCK_STREAMS 2 /* read 26.2 GB/s of a 1.1B Q8_0 model, where one reads 24.3 */
#define BLOCK_VECTORS 1
#define BLOCK_COLUMNS 4
#define BYTES_AHEAD 8192

typedef __m256 floats;
typedef __m256i integers;
typedef __m256i codes;
typedef const float *values;
typedef const activation_block *quads;
typedef struct {
    const uint8_t *at[VECTOR_PANELS];
} panels;

/* Sets the first n lanes, 0 <= n; all of them from n = 8 on. */
INLINE __m256i lane_mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE floats all_floats(float value) { return _mm256_set1_ps(value); }
INLINE floats multiply(floats a, floats b) { return _mm256_mul_ps(a, b); }
INLINE floats subtract(floats a, floats b) { return _mm256_sub_ps(a, b); }
INLINE floats multiply_add(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE floats to_floats(integers a) { return _mm256_cvtepi32_ps(a); }
INLINE integers add_integers(integers a, integers b) { return _mm256_add_epi32(a, b); }
INLINE integers multiply_integers(integers a, integers b) { return _mm256_mullo_epi32(a, b); }
INLINE void store_floats(float *out, floats a) { _mm256_storeu_ps(out, a); }
INLINE void store_first(float *out, int64_t n, floats a) { _mm256_maskstore_ps(out, lane_mask(n), a); }

INLINE codes load_codes(panels p, size_t offset) { return _mm256_loadu_si256((const void *)(p.at[0] + offset)); }
INLINE __m128i load_halves(panels p, size_t offset) { return _mm_loadu_si128((const void *)(p.at[0] + offset)); }
INLINE floats load_scales(panels p, size_t offset) { return _mm256_cvtph_ps(load_halves(p, offset)); }

INLINE integers widen(panels p, size_t offset, const bool is_signed) {
    const __m128i bytes = _mm_loadl_epi64((const void *)(p.at[0] + offset));
    return is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
}

INLINE floats load_weights(panels p, int64_t k, const panel_format format) {
    if (format == PANEL_F32) return _mm256_castsi256_ps(load_codes(p, 32 * (size_t)k));
    if (format == PANEL_I8) return to_floats(widen(p, 8 * (size_t)k, true));
    const __m128i halves = load_halves(p, 16 * (size_t)k);
    if (format == PANEL_F16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

INLINE values load_values(const float *at) { return at; }
INLINE values load_last_value(const float *at) { return at; }
INLINE floats add_product(floats sum, floats weights, values value, const int lane) {
    return _mm256_fmadd_ps(weights, _mm256_broadcast_ss(value + lane), sum);
}

INLINE codes mask_codes(codes a, const int mask) { return _mm256_and_si256(a, _mm256_set1_epi8((char)mask)); }
INLINE codes or_codes(codes a, codes b) { return _mm256_or_si256(a, b); }
/* To the left, or to the right if bits < 0. Bits of neighbors move in. */
INLINE codes shift_codes(codes a, const int bits) {
    return bits >= 0 ? _mm256_slli_epi16(a, bits) : _mm256_srli_epi16(a, -bits);
}

INLINE quads load_quads(const activation_block *block, const int half) {
    (void)half;
    return block;
}

INLINE __m256i broadcast_quad(quads block, const int q) {
    int32_t four;
    memcpy(&four, block->values + 4 * q, sizeof four);
    return _mm256_set1_epi32(four);
}

#if defined(KERNELS_AVXVNNI)
typedef codes quad;
typedef struct {
    integers whole;
} products;

/* The product needs unsigned codes, so those of Q8_0 get 128 added, and their sums start 128 times
 * the values' sum lower. */
INLINE quad to_quad(codes code, const panel_format format) {
    return format == PANEL_Q8_0 ? _mm256_xor_si256(code, _mm256_set1_epi8(-128)) : code;
}

INLINE void start_products(products *sum, int32_t start, const activation_block *block, const panel_format format) {
    sum->whole = _mm256_set1_epi32(format == PANEL_Q8_0 ? -16 * block->eight_sums : start);
}

INLINE void multiply_quad(products *sum, quad code, quads block, const int q, const panel_format format) {
    (void)format;
    sum->whole = _mm256_dpbusd_avx_epi32(sum->whole, code, broadcast_quad(block, q));
}
#else
typedef struct {
    codes magnitude, code;
} quad;
typedef struct {
    __m256i pairs; /* in 16 bits */
    integers whole;
} products;

INLINE quad to_quad(codes code, const panel_format format) {
    return (quad){format == PANEL_Q8_0 ? _mm256_abs_epi8(code) : code, code};
}

INLINE void start_products(products *sum, int32_t start, const activation_block *block, const panel_format format) {
    (void)block, (void)format;
    sum->whole = _mm256_set1_epi32(start);
}

/* The number of quads whose products can be added in 16 bits: 8 * 15 * 127 * 2 = 30,480;
 * 4 * 31 * 127 * 2 = 31,496; 2 * 63 * 127 * 2 = 32,004; 128 * 127 * 2 = 32,512 (|code| is unsigned,
 * so -128 is fine). */
INLINE int quads_per_sum(const panel_format format) {
    return format == PANEL_Q8_0 ? 1 : format == PANEL_Q6_K ? 2 : format == PANEL_Q5_1 || format == PANEL_Q5_K ? 4 : 8;
}

INLINE void multiply_quad(products *sum, quad code, quads block, const int q, const panel_format format) {
    __m256i value = broadcast_quad(block, q);
    if (format == PANEL_Q8_0) value = _mm256_sign_epi8(value, code.code);
    const __m256i pairs = _mm256_maddubs_epi16(code.magnitude, value);
    sum->pairs = q % quads_per_sum(format) == 0 ? pairs : _mm256_add_epi16(sum->pairs, pairs);
    if ((q + 1) % quads_per_sum(format) == 0)
        sum->whole = _mm256_add_epi32(sum->whole, _mm256_madd_epi16(sum->pairs, _mm256_set1_epi16(1)));
}
#endif

#define OWN_FLOAT_MATMUL
#include "kernels/tiles.h"

/* ------------------------------------------------------------------ vectors */

#if !defined(KERNELS_AVXVNNI)
void avx2_matmul_f32(const matmul_job *job) { float_matmul(job, PANEL_F32); }
void avx2_matmul_f16(const matmul_job *job) { float_matmul(job, PANEL_F16); }
void avx2_matmul_bf16(const matmul_job *job) { float_matmul(job, PANEL_BF16); }
void avx2_matmul_i8(const matmul_job *job) { float_matmul(job, PANEL_I8); }

INLINE float sum_lanes(__m256 lanes) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

void avx2_quantize(const float *values, int64_t length, activation_block *blocks) {
    const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
    for (int64_t b = 0; b < length / BLOCK_LENGTH; b++, values += BLOCK_LENGTH, blocks++) {
        __m256 part[4];
        /* Magnitudes compare as integers: NaN > infinity > finite values. */
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
            memset(blocks, 0, sizeof *blocks);
            if (bits >= 0x7f800000u) blocks->scale = blocks->scaled_sum = NAN;
            continue;
        }
        const __m256 inverse = _mm256_set1_ps(127.0f / magnitude);
        __m256i rounded[4];
        UNROLL for (int i = 0; i < 4; i++) rounded[i] = _mm256_cvtps_epi32(_mm256_mul_ps(part[i], inverse));
        const __m256i low = _mm256_packs_epi32(rounded[0], rounded[1]);
        const __m256i high = _mm256_packs_epi32(rounded[2], rounded[3]);
        /* The packs work within 128-bit halves; this restores the order. */
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
        _mm256_storeu_si256((__m256i *)(void *)blocks->values, bytes);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        /* First per quad, then per half. */
        __m256i sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
        sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
        const int32_t first = _mm256_extract_epi32(sums, 0), all = first + _mm256_extract_epi32(sums, 4);
        blocks->scale = magnitude / 127.0f;
        blocks->scaled_sum = blocks->scale * (float)all;
        blocks->eight_sums = 8 * all;
        blocks->sums_of_half = 32 * first;
    }
}

void avx2_to_halves(const float *values, int64_t length, uint16_t *halves) {
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES)
        _mm_storeu_si128((__m128i *)(void *)(halves + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < length; i++) halves[i] = half_from_float(values[i]);
}

float avx2_sum_of_squares(const float *values, int64_t length) {
    __m256 sums = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        const __m256 value = _mm256_loadu_ps(values + i);
        sums = _mm256_fmadd_ps(value, value, sums);
    }
    const __m256 value = _mm256_maskload_ps(values + i, lane_mask(length - i));
    return sum_lanes(_mm256_fmadd_ps(value, value, sums));
}

float avx2_maximum(const float *values, int64_t length) {
    __m256 largest = _mm256_set1_ps(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) largest = _mm256_max_ps(_mm256_loadu_ps(values + i), largest);
    float lanes[LANES], result = -INFINITY;
    _mm256_storeu_ps(lanes, largest);
    for (int j = 0; j < LANES; j++) result = lanes[j] > result ? lanes[j] : result;
    for (; i < length; i++) result = values[i] > result ? values[i] : result;
    return result;
}

/* exponential() of float_math.h in eight lanes, with the same roundings. */
INLINE __m256 exponential_lanes(__m256 x) {
    const __m256 clamped = _mm256_min_ps(_mm256_set1_ps(EXP_MAX), _mm256_max_ps(_mm256_set1_ps(EXP_MIN), x));
    const __m256 round = _mm256_set1_ps(EXP_ROUND);
    const __m256 shifted = _mm256_add_ps(_mm256_mul_ps(clamped, _mm256_set1_ps(EXP_LOG2_E)), round);
    const __m256 n = _mm256_sub_ps(shifted, round);
    __m256 r = _mm256_sub_ps(clamped, _mm256_mul_ps(n, _mm256_set1_ps(EXP_LN2_HIGH)));
    r = _mm256_sub_ps(r, _mm256_mul_ps(n, _mm256_set1_ps(EXP_LN2_LOW)));
    __m256 q = _mm256_add_ps(_mm256_set1_ps(EXP_Q3), _mm256_mul_ps(r, _mm256_set1_ps(EXP_Q4)));
    q = _mm256_add_ps(_mm256_set1_ps(EXP_Q2), _mm256_mul_ps(r, q));
    q = _mm256_add_ps(_mm256_set1_ps(EXP_Q1), _mm256_mul_ps(r, q));
    q = _mm256_add_ps(_mm256_set1_ps(EXP_Q0), _mm256_mul_ps(r, q));
    const __m256 one_and_r = _mm256_add_ps(_mm256_set1_ps(1.0f), r);
    const __m256 value = _mm256_add_ps(one_and_r, _mm256_mul_ps(_mm256_mul_ps(r, r), q));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127)), 23);
    const __m256 too_low = _mm256_cmp_ps(x, _mm256_set1_ps(EXP_MIN), _CMP_LT_OQ);
    return _mm256_andnot_ps(too_low, _mm256_mul_ps(value, _mm256_castsi256_ps(power)));
}

float avx2_exp_and_sum(float *values, int64_t length, float shift) {
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

INLINE __m256 swiglu_lanes(__m256 gate, __m256 up) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 power = exponential_lanes(_mm256_sub_ps(_mm256_setzero_ps(), gate));
    return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(one, power)), up);
}

void avx2_swiglu(float *gate, const float *up, int64_t length) {
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES)
        _mm256_storeu_ps(gate + i, swiglu_lanes(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i == length) return;
    const __m256i mask = lane_mask(length - i);
    const __m256 last = swiglu_lanes(_mm256_maskload_ps(gate + i, mask), _mm256_maskload_ps(up + i, mask));
    _mm256_maskstore_ps(gate + i, mask, last);
}
#endif

#if defined(KERNELS_AVXVNNI)
const kernels kernels_avxvnni = {
    .name = "avxvnni",
#else
const kernels kernels_avx2 = {
    .name = "avx2",
#endif
    .matmul = {avx2_matmul_f32, avx2_matmul_f16, avx2_matmul_bf16, avx2_matmul_i8, matmul_q8_0, matmul_q4_0,
               matmul_q4_1, matmul_q5_1, matmul_q4_k, matmul_q5_k, matmul_q6_k},
    .quantize = avx2_quantize,
    .to_halves = avx2_to_halves,
    .sum_of_squares = avx2_sum_of_squares,
    .maximum = avx2_maximum,
    .exp_and_sum = avx2_exp_and_sum,
    .swiglu = avx2_swiglu,
};
#endif
