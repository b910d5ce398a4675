/* simd8.h: a vector of eight floats: with SIMD8_AVX2 an AVX2 register, else plain C. Both give the
 * same bits: every operation rounds on its own, and no input is NaN. No include guard: part of
 * quantize_rows.h, which is compiled twice. */
#include <math.h>
#include <stdint.h>

#include "kernels/panel.h"

#if defined(SIMD8_AVX2)

#include <immintrin.h>

typedef __m256 simd8;

static inline simd8 simd8_all(float value) { return _mm256_set1_ps(value); }
static inline simd8 simd8_load(const float *from) { return _mm256_loadu_ps(from); }
static inline void simd8_store(float *to, simd8 a) { _mm256_storeu_ps(to, a); }
static inline simd8 simd8_add(simd8 a, simd8 b) { return _mm256_add_ps(a, b); }
static inline simd8 simd8_sub(simd8 a, simd8 b) { return _mm256_sub_ps(a, b); }
static inline simd8 simd8_mul(simd8 a, simd8 b) { return _mm256_mul_ps(a, b); }
static inline simd8 simd8_div(simd8 a, simd8 b) { return _mm256_div_ps(a, b); }
static inline simd8 simd8_min(simd8 a, simd8 b) { return _mm256_min_ps(a, b); }
static inline simd8 simd8_max(simd8 a, simd8 b) { return _mm256_max_ps(a, b); }
static inline simd8 simd8_sqrt(simd8 a) { return _mm256_sqrt_ps(a); }
static inline simd8 simd8_abs(simd8 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a); }
/* Toward zero; |a| < 2^31. */
static inline simd8 simd8_truncate(simd8 a) { return _mm256_cvtepi32_ps(_mm256_cvttps_epi32(a)); }
/* x where a < b, else y. */
static inline simd8 simd8_pick(simd8 a, simd8 b, simd8 x, simd8 y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
/* Rounded to 16-bit floats: to nearest, ties to even. */
static inline simd8 simd8_round_half(simd8 a) {
    return _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* Integers 0 to 255. */
static inline void simd8_store_bytes(uint8_t *to, simd8 a) {
    const __m256i whole = _mm256_cvttps_epi32(a);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64((__m128i *)(void *)to, _mm_packus_epi16(words, words));
}

/* columns[i] lane j = rows[j * stride + i], i < 8. */
static inline void simd8_transpose(const float *rows, int stride, simd8 *columns) {
    simd8 r[LANES], pairs[LANES], fours[LANES];
    for (int j = 0; j < LANES; j++) r[j] = simd8_load(rows + j * stride);
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

typedef struct {
    float at[LANES];
} simd8;

/* The operations lane by lane; compilers turn each into a few vector instructions. */
#define SIMD8_EACH(expression)                                   \
    simd8 result;                                                \
    for (int j = 0; j < LANES; j++) result.at[j] = (expression); \
    return result

static inline simd8 simd8_all(float value) { SIMD8_EACH(value); }
static inline simd8 simd8_load(const float *from) { SIMD8_EACH(from[j]); }
static inline void simd8_store(float *to, simd8 a) {
    for (int j = 0; j < LANES; j++) to[j] = a.at[j];
}
static inline simd8 simd8_add(simd8 a, simd8 b) { SIMD8_EACH(a.at[j] + b.at[j]); }
static inline simd8 simd8_sub(simd8 a, simd8 b) { SIMD8_EACH(a.at[j] - b.at[j]); }
static inline simd8 simd8_mul(simd8 a, simd8 b) { SIMD8_EACH(a.at[j] * b.at[j]); }
static inline simd8 simd8_div(simd8 a, simd8 b) { SIMD8_EACH(a.at[j] / b.at[j]); }
static inline simd8 simd8_min(simd8 a, simd8 b) { SIMD8_EACH(a.at[j] < b.at[j] ? a.at[j] : b.at[j]); }
static inline simd8 simd8_max(simd8 a, simd8 b) { SIMD8_EACH(a.at[j] > b.at[j] ? a.at[j] : b.at[j]); }
static inline simd8 simd8_sqrt(simd8 a) { SIMD8_EACH(sqrtf(a.at[j])); }
static inline simd8 simd8_abs(simd8 a) { SIMD8_EACH(float_from_bits(bits_from_float(a.at[j]) & 0x7fffffffu)); }
static inline simd8 simd8_truncate(simd8 a) { SIMD8_EACH((float)(int32_t)a.at[j]); }
static inline simd8 simd8_pick(simd8 a, simd8 b, simd8 x, simd8 y) {
    SIMD8_EACH(a.at[j] < b.at[j] ? x.at[j] : y.at[j]);
}
static inline simd8 simd8_round_half(simd8 a) {
    for (int j = 0; j < LANES; j++) {
        const uint16_t half = half_from_float(a.at[j]);
        a.at[j] = float_from_half(&half);
    }
    return a;
}
static inline void simd8_store_bytes(uint8_t *to, simd8 a) {
    for (int j = 0; j < LANES; j++) to[j] = (uint8_t)(int32_t)a.at[j];
}
static inline void simd8_transpose(const float *rows, int stride, simd8 *columns) {
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) columns[i].at[j] = rows[j * stride + i];
}

#undef SIMD8_EACH

#endif
