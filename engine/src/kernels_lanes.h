/* kernels_lanes.h: eight floats at once: an AVX2 register where the including file is compiled for it, else plain C.
 * Both give the same bits: every operation is rounded by itself, and nobody hands over a NaN.
 */
#ifndef LLAMITA_KERNELS_LANES_H
#define LLAMITA_KERNELS_LANES_H

#include <stdint.h>

#define LANES 8

#if defined(__AVX2__) && defined(__F16C__)

#include <immintrin.h>

typedef __m256 lanes;

static inline lanes lanes_all(float value) { return _mm256_set1_ps(value); }
static inline lanes lanes_load(const float *from) { return _mm256_loadu_ps(from); }
static inline void lanes_store(float *to, lanes a) { _mm256_storeu_ps(to, a); }
static inline lanes lanes_add(lanes a, lanes b) { return _mm256_add_ps(a, b); }
static inline lanes lanes_sub(lanes a, lanes b) { return _mm256_sub_ps(a, b); }
static inline lanes lanes_mul(lanes a, lanes b) { return _mm256_mul_ps(a, b); }
static inline lanes lanes_div(lanes a, lanes b) { return _mm256_div_ps(a, b); }
static inline lanes lanes_min(lanes a, lanes b) { return _mm256_min_ps(a, b); }
static inline lanes lanes_max(lanes a, lanes b) { return _mm256_max_ps(a, b); }
static inline lanes lanes_abs(lanes a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a); }
/* Towards zero; |a| < 2^31. */
static inline lanes lanes_truncate(lanes a) { return _mm256_cvtepi32_ps(_mm256_cvttps_epi32(a)); }
/* x where a < b, else y. */
static inline lanes lanes_pick(lanes a, lanes b, lanes x, lanes y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
/* Rounded to 16-bit floats: to nearest, ties to even. */
static inline lanes lanes_round_half(lanes a) {
    return _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* Whole numbers of 0 to 255. */
static inline void lanes_store_bytes(uint8_t *to, lanes a) {
    const __m256i whole = _mm256_cvttps_epi32(a);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64((__m128i *)(void *)to, _mm_packus_epi16(words, words));
}

/* columns[i] lane j = rows[j * stride + i], i < 8. */
static inline void lanes_transpose(const float *rows, int stride, lanes *columns) {
    lanes r[LANES], pairs[LANES], fours[LANES];
    for (int j = 0; j < LANES; j++) r[j] = lanes_load(rows + j * stride);
    for (int j = 0; j < LANES; j += 2) {
        pairs[j] = _mm256_unpacklo_ps(r[j], r[j + 1]);
        pairs[j + 1] = _mm256_unpackhi_ps(r[j], r[j + 1]);
    }
    for (int j = 0; j < LANES; j += 4) {
        fours[j] = _mm256_shuffle_ps(pairs[j], pairs[j + 2], 0x44);
        fours[j + 1] = _mm256_shuffle_ps(pairs[j], pairs[j + 2], 0xee);
        fours[j + 2] = _mm256_shuffle_ps(pairs[j + 1], pairs[j + 3], 0x44);
        fours[j + 3] = _mm256_shuffle_ps(pairs[j + 1], pairs[j + 3], 0xee);
    }
    for (int j = 0; j < LANES / 2; j++) {
        columns[j] = _mm256_permute2f128_ps(fours[j], fours[j + 4], 0x20);
        columns[j + 4] = _mm256_permute2f128_ps(fours[j], fours[j + 4], 0x31);
    }
}

#else

#include "tensor_type.h"

typedef struct {
    float at[LANES];
} lanes;

/* The operations lane by lane; compilers turn each into a few vector instructions. */
#define LANES_EACH(expression)                                                                                         \
    lanes result;                                                                                                      \
    for (int j = 0; j < LANES; j++) result.at[j] = (expression);                                                       \
    return result

static inline lanes lanes_all(float value) { LANES_EACH(value); }
static inline lanes lanes_load(const float *from) { LANES_EACH(from[j]); }
static inline void lanes_store(float *to, lanes a) {
    for (int j = 0; j < LANES; j++) to[j] = a.at[j];
}
static inline lanes lanes_add(lanes a, lanes b) { LANES_EACH(a.at[j] + b.at[j]); }
static inline lanes lanes_sub(lanes a, lanes b) { LANES_EACH(a.at[j] - b.at[j]); }
static inline lanes lanes_mul(lanes a, lanes b) { LANES_EACH(a.at[j] * b.at[j]); }
static inline lanes lanes_div(lanes a, lanes b) { LANES_EACH(a.at[j] / b.at[j]); }
static inline lanes lanes_min(lanes a, lanes b) { LANES_EACH(a.at[j] < b.at[j] ? a.at[j] : b.at[j]); }
static inline lanes lanes_max(lanes a, lanes b) { LANES_EACH(a.at[j] > b.at[j] ? a.at[j] : b.at[j]); }
static inline lanes lanes_abs(lanes a) { LANES_EACH(float_from_bits(bits_from_float(a.at[j]) & 0x7fffffffu)); }
static inline lanes lanes_truncate(lanes a) { LANES_EACH((float)(int32_t)a.at[j]); }
static inline lanes lanes_pick(lanes a, lanes b, lanes x, lanes y) {
    LANES_EACH(a.at[j] < b.at[j] ? x.at[j] : y.at[j]);
}
static inline lanes lanes_round_half(lanes a) {
    for (int j = 0; j < LANES; j++) {
        const uint16_t half = half_from_float(a.at[j]);
        a.at[j] = float_from_half(&half);
    }
    return a;
}
static inline void lanes_store_bytes(uint8_t *to, lanes a) {
    for (int j = 0; j < LANES; j++) to[j] = (uint8_t)(int32_t)a.at[j];
}
static inline void lanes_transpose(const float *rows, int stride, lanes *columns) {
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) columns[i].at[j] = rows[j * stride + i];
}

#undef LANES_EACH

#endif

#endif
