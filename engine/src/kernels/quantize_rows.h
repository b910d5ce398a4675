/* quantize_rows.h: quantizes floats to blocks, searching for the scales with the least squared
 * error; in Q4_0 and Q5_0 errors of large elements count more. Compiled twice, by quantize_plain.c
 * for any processor and by quantize_avx2.c for AVX2, with the same bytes.
 *
 * Eight groups of elements are quantized at once: lane j of x[i] is element i of group j, so sums
 * over a group are sums of registers. A group shares a scale: a block of 32, or a part of a block
 * of 256. tensor_type.c documents the bytes of each block.
 *
 * The search: for fixed codes the best scale (and offset) is a least-squares solution. So codes are
 * made with several trial scales near the one that just reaches the largest element, the scale is
 * solved for, and the best one wins. */
#include "kernels/quantize.h"
#include "kernels/simd8.h"

enum { GROUPS = LANES };

/* A smaller scale's inverse might overflow: such a group becomes zeros (or its offset). */
#define TINY 1e-30F

static inline simd8 simd8_square(simd8 a) { return simd8_mul(a, a); }
static inline simd8 simd8_negate(simd8 a) { return simd8_sub(simd8_all(0.0F), a); }

/* 1 / a, or 0 for a tiny a. */
static inline simd8 inverse_of(simd8 a) {
    const simd8 tiny = simd8_all(TINY);
    const simd8 safe = simd8_pick(simd8_abs(a), tiny, simd8_all(1.0F), a);
    return simd8_pick(simd8_abs(a), tiny, simd8_all(0.0F), simd8_div(simd8_all(1.0F), safe));
}

/* The nearest 16-bit floats, none infinite. */
static inline simd8 half_scale(simd8 a) {
    const simd8 limit = simd8_all(65504.0F);
    return simd8_round_half(simd8_max(simd8_min(a, limit), simd8_negate(limit)));
}

/* The nearest codes, 0 to top - 0.5, for x * inverse + shift - 0.5. shift and top include the 0.5
 * that rounds. */
static inline simd8 code_of(simd8 x, simd8 inverse, simd8 shift, simd8 top) {
    const simd8 code = simd8_add(simd8_mul(x, inverse), shift);
    return simd8_truncate(simd8_min(simd8_max(code, simd8_all(0.0F)), top));
}

static inline simd8 sum_of(const simd8 *x, int length) {
    simd8 sum = x[0];
    for (int i = 1; i < length; i++) sum = simd8_add(sum, x[i]);
    return sum;
}

/* Adds lane after lane: one order everywhere. */
static inline double sum_of_lanes(simd8 a) {
    float lane[LANES];
    double sum = 0.0;
    simd8_store(lane, a);
    for (int j = 0; j < LANES; j++) sum += (double)lane[j];
    return sum;
}

static inline float largest_lane(simd8 a) {
    float lane[LANES];
    simd8_store(lane, a);
    float largest = lane[0];
    for (int j = 1; j < LANES; j++) largest = lane[j] > largest ? lane[j] : largest;
    return largest;
}

/* groups[j * length + i] = lane j of codes[i]. */
static inline void codes_to_bytes(const simd8 *codes, int length, uint8_t *groups) {
    for (int i = 0; i < length; i += LANES) {
        simd8 rows[LANES];
        simd8_transpose((const float *)(const void *)(codes + i), LANES, rows);
        for (int j = 0; j < LANES; j++) simd8_store_bytes(groups + j * length + i, rows[j]);
    }
}

static inline void columns_of(const float *values, int length, simd8 *x) {
    for (int i = 0; i < length; i += LANES) simd8_transpose(values + i, length, x + i);
}

static inline void put_half(uint8_t *out, float value) {
    const uint16_t half = half_from_float(value);
    memcpy(out, &half, sizeof half);
}

/* ------------------------------------------------------------------ x = scale * (code - zero) */

/* The element with the largest magnitude of each group. */
static inline simd8 extreme_of(const simd8 *x, int length) {
    simd8 extreme = x[0];
    for (int i = 1; i < length; i++) extreme = simd8_pick(simd8_abs(extreme), simd8_abs(x[i]), x[i], extreme);
    return extreme;
}

/* The weight of each element's squared error in Q4_0 and Q5_0: sqrt(mean of the group's squares +
 * square), as in llama.cpp with an importance matrix (there the mean is the row's). Without it, the
 * search clips the large elements, which matter most. */
static inline void error_weights(const simd8 *x, int length, simd8 *weights) {
    simd8 mean = simd8_all(0.0F);
    for (int i = 0; i < length; i++) {
        weights[i] = simd8_square(x[i]);
        mean = simd8_add(mean, weights[i]);
    }
    mean = simd8_mul(mean, simd8_all(1.0F / (float)length));
    for (int i = 0; i < length; i++) weights[i] = simd8_sqrt(simd8_add(mean, weights[i]));
}

/* The scale with the least squared error found, for codes 0 to 2 zero - 1. weights: of the errors;
 * NULL: all alike. The trial scales are the one that gives the extreme element the code 0, times
 * 1 / factors[i]. */
static inline simd8 search_scale(const simd8 *x, const simd8 *weights, int length, simd8 extreme, float zero,
                                 const float *factors, int num_factors) {
    const simd8 inverse = simd8_mul(inverse_of(extreme), simd8_all(-zero));
    const simd8 shift = simd8_all(zero + 0.5F), top = simd8_all(2.0F * zero - 0.5F);
    simd8 best_gain = simd8_all(0.0F), best = simd8_all(0.0F);
    for (int f = 0; f < num_factors; f++) {
        const simd8 trial = simd8_mul(inverse, simd8_all(factors[f]));
        simd8 products = simd8_all(0.0F), squares = simd8_all(0.0F);
        for (int i = 0; i < length; i++) {
            const simd8 code = simd8_sub(code_of(x[i], trial, shift, top), simd8_all(zero));
            const simd8 weighted = weights ? simd8_mul(code, weights[i]) : code;
            products = simd8_add(products, simd8_mul(weighted, x[i]));
            squares = simd8_add(squares, simd8_mul(weighted, code));
        }
        const simd8 scale = simd8_mul(products, inverse_of(squares));
        const simd8 gain = simd8_mul(products, scale); /* reduction of the squared error */
        best = simd8_pick(best_gain, gain, scale, best);
        best_gain = simd8_max(best_gain, gain);
    }
    return best;
}

/* Fills the nearest codes for a scale; returns the squared errors. weights: as in search_scale. */
static inline simd8 code_symmetric(const simd8 *x, const simd8 *weights, int length, simd8 scale, float zero,
                                   simd8 *codes) {
    const simd8 inverse = inverse_of(scale), shift = simd8_all(zero + 0.5F), top = simd8_all(2.0F * zero - 0.5F);
    simd8 error = simd8_all(0.0F);
    for (int i = 0; i < length; i++) {
        codes[i] = code_of(x[i], inverse, shift, top);
        const simd8 value = simd8_mul(scale, simd8_sub(codes[i], simd8_all(zero)));
        const simd8 square = simd8_square(simd8_sub(value, x[i]));
        error = simd8_add(error, weights ? simd8_mul(weights[i], square) : square);
    }
    return error;
}

/* Uses the searched scale if its weighted error is less than that of ggml's, which gives the extreme
 * element the code 0. Returns the squared errors. */
static inline simd8 encode_symmetric(const simd8 *x, float zero, const float *factors, int num_factors, simd8 *codes,
                                     simd8 *scale) {
    simd8 weights[BLOCK_LENGTH];
    const simd8 extreme = extreme_of(x, BLOCK_LENGTH);
    error_weights(x, BLOCK_LENGTH, weights);
    const simd8 plain = half_scale(simd8_mul(extreme, simd8_all(-1.0F / zero)));
    const simd8 searched = half_scale(search_scale(x, weights, BLOCK_LENGTH, extreme, zero, factors, num_factors));
    const simd8 plain_loss = code_symmetric(x, weights, BLOCK_LENGTH, plain, zero, codes);
    const simd8 loss = code_symmetric(x, weights, BLOCK_LENGTH, searched, zero, codes);
    *scale = simd8_pick(loss, plain_loss, searched, plain);
    return code_symmetric(x, NULL, BLOCK_LENGTH, *scale, zero, codes);
}

/* ------------------------------------------------------------------ x = scale * code + offset */

typedef struct {
    simd8 scale, offset;
} affine;

/* The state of a search: y = x - low >= 0, its sums, and the best solution so far. */
typedef struct {
    simd8 y[BLOCK_LENGTH], low, sum, squares;
    bool offset_negative; /* the type stores no positive offset */
    affine best;          /* of y */
    simd8 best_error;
} affine_search;

/* Makes codes for y * inverse + shift - 0.5 and solves for their least-squares scale and offset.
 * Keeps them if the error is smaller. */
static inline void try_affine(affine_search *s, simd8 inverse, simd8 shift, simd8 top) {
    simd8 codes = simd8_all(0.0F), squares = simd8_all(0.0F), products = simd8_all(0.0F);
    for (int i = 0; i < BLOCK_LENGTH; i++) {
        const simd8 code = code_of(s->y[i], inverse, shift, top);
        codes = simd8_add(codes, code);
        squares = simd8_add(squares, simd8_square(code));
        products = simd8_add(products, simd8_mul(code, s->y[i]));
    }
    const simd8 n = simd8_all(BLOCK_LENGTH);
    const simd8 determinant = simd8_sub(simd8_mul(n, squares), simd8_square(codes));
    simd8 scale = simd8_sub(simd8_mul(n, products), simd8_mul(codes, s->sum));
    scale = simd8_mul(scale, inverse_of(determinant));
    simd8 offset = simd8_mul(simd8_sub(s->sum, simd8_mul(scale, codes)), simd8_all(1.0F / BLOCK_LENGTH));
    if (s->offset_negative) offset = simd8_min(offset, simd8_negate(s->low));
    scale = simd8_mul(simd8_sub(products, simd8_mul(offset, codes)), inverse_of(squares));
    /* Sum of (scale * code + offset - y)^2, where the scale solves its normal equation. */
    simd8 error = simd8_sub(s->squares, simd8_mul(scale, simd8_sub(products, simd8_mul(offset, codes))));
    error = simd8_add(error, simd8_mul(offset, simd8_sub(simd8_mul(n, offset), simd8_add(s->sum, s->sum))));
    s->best.scale = simd8_pick(error, s->best_error, scale, s->best.scale);
    s->best.offset = simd8_pick(error, s->best_error, offset, s->best.offset);
    s->best_error = simd8_min(error, s->best_error);
}

/* The trial scales are the one that spans the smallest to the largest element, times
 * 1 / factors[i]. thorough: the smallest element is also tried half a step below code 0. Then the
 * codes are made again with the best solution, once (thorough: twice). */
static inline affine search_affine(const simd8 *x, bool thorough, bool offset_negative, float max_code,
                                   const float *factors, int num_factors) {
    affine_search s = {.low = x[0], .offset_negative = offset_negative};
    simd8 high = x[0];
    for (int i = 1; i < BLOCK_LENGTH; i++) {
        s.low = simd8_min(s.low, x[i]);
        high = simd8_max(high, x[i]);
    }
    if (offset_negative) s.low = simd8_min(s.low, simd8_all(0.0F));
    simd8 squares = simd8_all(0.0F);
    for (int i = 0; i < BLOCK_LENGTH; i++) {
        s.y[i] = simd8_sub(x[i], s.low);
        squares = simd8_add(squares, simd8_square(s.y[i]));
    }
    s.sum = sum_of(s.y, BLOCK_LENGTH);
    s.squares = squares;
    s.best = (affine){simd8_all(0.0F), simd8_all(0.0F)};
    s.best_error = squares; /* all codes 0, offset low */
    const simd8 top = simd8_all(max_code + 0.5F), half = simd8_all(0.5F);
    const simd8 inverse = simd8_mul(inverse_of(simd8_sub(high, s.low)), simd8_all(max_code));
    for (int f = 0; f < num_factors; f++) {
        const simd8 trial = simd8_mul(inverse, simd8_all(factors[f]));
        try_affine(&s, trial, half, top);
        if (thorough) try_affine(&s, trial, simd8_all(0.0F), top);
    }
    for (int r = 0; r < (thorough ? 2 : 1); r++) {
        const simd8 again = inverse_of(s.best.scale);
        try_affine(&s, again, simd8_sub(half, simd8_mul(s.best.offset, again)), top);
    }
    return (affine){s.best.scale, simd8_add(s.best.offset, s.low)};
}

/* Fills the nearest codes for a scale and an offset; returns the squared errors. */
static inline simd8 code_affine(const simd8 *x, affine a, float max_code, simd8 *codes) {
    const simd8 inverse = inverse_of(a.scale), top = simd8_all(max_code + 0.5F);
    const simd8 shift = simd8_sub(simd8_all(0.5F), simd8_mul(a.offset, inverse));
    simd8 error = simd8_all(0.0F);
    for (int i = 0; i < BLOCK_LENGTH; i++) {
        codes[i] = code_of(x[i], inverse, shift, top);
        const simd8 value = simd8_add(simd8_mul(a.scale, codes[i]), a.offset);
        error = simd8_add(error, simd8_square(simd8_sub(value, x[i])));
    }
    return error;
}

/* Uses the searched scale and offset if they beat ggml's, which just span the elements. Returns the
 * squared errors. */
static inline simd8 encode_affine(const simd8 *x, float max_code, const float *factors, int num_factors, simd8 *codes,
                                  affine *out) {
    simd8 plain_codes[BLOCK_LENGTH], low = x[0], high = x[0];
    for (int i = 1; i < BLOCK_LENGTH; i++) {
        low = simd8_min(low, x[i]);
        high = simd8_max(high, x[i]);
    }
    affine plain = {simd8_div(simd8_sub(high, low), simd8_all(max_code)), low};
    affine best = search_affine(x, false, false, max_code, factors, num_factors);
    plain = (affine){half_scale(plain.scale), half_scale(plain.offset)};
    best = (affine){half_scale(best.scale), half_scale(best.offset)};
    const simd8 plain_error = code_affine(x, plain, max_code, plain_codes),
                error = code_affine(x, best, max_code, codes);
    for (int i = 0; i < BLOCK_LENGTH; i++) codes[i] = simd8_pick(error, plain_error, codes[i], plain_codes[i]);
    out->scale = simd8_pick(error, plain_error, best.scale, plain.scale);
    out->offset = simd8_pick(error, plain_error, best.offset, plain.offset);
    return simd8_min(error, plain_error);
}

/* ------------------------------------------------------------------ blocks of 32, eight at once */

/* Relative to the inverse scale that just reaches the extreme element. Above 1, that element is
 * clipped and the others get finer steps; below 1, it gets a smaller code. */
static const float q4_0_factors[] = {0.85F, 0.9F, 0.95F, 1.0F, 1.05F, 1.1F, 1.15F, 1.2F, 1.25F};
static const float q5_0_factors[] = {0.92F, 0.95F, 0.98F, 1.0F, 1.02F, 1.05F, 1.08F, 1.11F, 1.14F};
static const float q4_1_factors[] = {0.92F, 0.98F, 1.04F, 1.1F, 1.16F, 1.23F};
static const float q5_1_factors[] = {0.95F, 0.98F, 1.0F, 1.03F, 1.06F, 1.1F, 1.14F};
#define COUNT(array) ((int)(sizeof(array) / sizeof(array)[0]))

typedef double eight_function(const simd8 *x, uint8_t *out);

static inline double each_eight(const float *values, int64_t num_blocks, uint8_t *out, size_t block_bytes,
                                eight_function *quantize_eight) {
    simd8 x[BLOCK_LENGTH];
    double error = 0.0;
    int64_t b = 0;
    for (; b + GROUPS <= num_blocks; b += GROUPS) {
        columns_of(values + b * BLOCK_LENGTH, BLOCK_LENGTH, x);
        error += quantize_eight(x, out + (size_t)b * block_bytes);
    }
    if (b < num_blocks) {
        const size_t left = (size_t)(num_blocks - b);
        float rest[GROUPS * BLOCK_LENGTH] = {0};
        uint8_t blocks[GROUPS * 34];
        memcpy(rest, values + b * BLOCK_LENGTH, left * BLOCK_LENGTH * sizeof *rest);
        columns_of(rest, BLOCK_LENGTH, x);
        error += quantize_eight(x, blocks);
        memcpy(out + (size_t)b * block_bytes, blocks, left * block_bytes);
    }
    return error;
}

static inline void pack_nibbles(const uint8_t *codes, uint8_t *out) {
    for (int i = 0; i < BLOCK_LENGTH / 2; i++) out[i] = (codes[i] & 15) | (uint8_t)(codes[i + BLOCK_LENGTH / 2] << 4);
}

static inline void pack_fifth_bits(const uint8_t *codes, uint8_t *out) {
    for (int i = 0; i < BLOCK_LENGTH / 8; i++) {
        unsigned bits = 0;
        for (int k = 0; k < 8; k++) bits |= (unsigned)(codes[8 * i + k] >> 4) << k;
        out[i] = (uint8_t)bits;
    }
}

/* ggml's rule: the scale reaches the extreme element, codes round half away from zero. */
static double eight_q8_0(const simd8 *x, uint8_t *out) {
    const simd8 scale = simd8_div(simd8_abs(extreme_of(x, BLOCK_LENGTH)), simd8_all(127.0F)),
                inverse = inverse_of(scale);
    const simd8 stored = half_scale(scale);
    simd8 codes[BLOCK_LENGTH], error = simd8_all(0.0F);
    for (int i = 0; i < BLOCK_LENGTH; i++) {
        const simd8 magnitude = simd8_abs(simd8_mul(x[i], inverse)), whole = simd8_truncate(magnitude);
        const simd8 above = simd8_truncate(simd8_mul(simd8_sub(magnitude, whole), simd8_all(2.0F)));
        const simd8 code = simd8_add(whole, above);
        error = simd8_add(error, simd8_square(simd8_sub(simd8_mul(stored, code), simd8_abs(x[i]))));
        /* As a byte: -1 is 255. */
        codes[i] = simd8_pick(x[i], simd8_all(0.0F), simd8_sub(simd8_all(256.0F), code), code);
        codes[i] = simd8_pick(code, simd8_all(0.5F), code, codes[i]);
    }
    uint8_t bytes[GROUPS * BLOCK_LENGTH];
    float scales[LANES];
    codes_to_bytes(codes, BLOCK_LENGTH, bytes);
    simd8_store(scales, scale);
    for (int j = 0; j < GROUPS; j++) {
        put_half(out + j * 34, scales[j]);
        memcpy(out + j * 34 + 2, bytes + j * BLOCK_LENGTH, BLOCK_LENGTH);
    }
    return sum_of_lanes(error);
}

static inline double eight_symmetric(const simd8 *x, bool five, const float *factors, int num_factors, uint8_t *out) {
    simd8 codes[BLOCK_LENGTH], scale;
    const simd8 error = encode_symmetric(x, five ? 16.0F : 8.0F, factors, num_factors, codes, &scale);
    uint8_t bytes[GROUPS * BLOCK_LENGTH];
    float scales[LANES];
    codes_to_bytes(codes, BLOCK_LENGTH, bytes);
    simd8_store(scales, scale);
    for (int j = 0; j < GROUPS; j++) {
        put_half(out, scales[j]);
        out += 2;
        if (five) {
            pack_fifth_bits(bytes + j * BLOCK_LENGTH, out);
            out += BLOCK_LENGTH / 8;
        }
        pack_nibbles(bytes + j * BLOCK_LENGTH, out);
        out += BLOCK_LENGTH / 2;
    }
    return sum_of_lanes(error);
}

static inline double eight_affine(const simd8 *x, bool five, const float *factors, int num_factors, uint8_t *out) {
    simd8 codes[BLOCK_LENGTH];
    affine a;
    const simd8 error = encode_affine(x, five ? 31.0F : 15.0F, factors, num_factors, codes, &a);
    uint8_t bytes[GROUPS * BLOCK_LENGTH];
    float scales[LANES], offsets[LANES];
    codes_to_bytes(codes, BLOCK_LENGTH, bytes);
    simd8_store(scales, a.scale);
    simd8_store(offsets, a.offset);
    for (int j = 0; j < GROUPS; j++) {
        put_half(out, scales[j]);
        put_half(out + 2, offsets[j]);
        out += 4;
        if (five) {
            pack_fifth_bits(bytes + j * BLOCK_LENGTH, out);
            out += BLOCK_LENGTH / 8;
        }
        pack_nibbles(bytes + j * BLOCK_LENGTH, out);
        out += BLOCK_LENGTH / 2;
    }
    return sum_of_lanes(error);
}

static double eight_q4_0(const simd8 *x, uint8_t *out) {
    return eight_symmetric(x, false, q4_0_factors, COUNT(q4_0_factors), out);
}
static double eight_q5_0(const simd8 *x, uint8_t *out) {
    return eight_symmetric(x, true, q5_0_factors, COUNT(q5_0_factors), out);
}
static double eight_q4_1(const simd8 *x, uint8_t *out) {
    return eight_affine(x, false, q4_1_factors, COUNT(q4_1_factors), out);
}
static double eight_q5_1(const simd8 *x, uint8_t *out) {
    return eight_affine(x, true, q5_1_factors, COUNT(q5_1_factors), out);
}

static double quantize_q8_0(const float *values, int64_t num_blocks, uint8_t *out) {
    return each_eight(values, num_blocks, out, 34, eight_q8_0);
}
static double quantize_q4_0(const float *values, int64_t num_blocks, uint8_t *out) {
    return each_eight(values, num_blocks, out, 18, eight_q4_0);
}
static double quantize_q5_0(const float *values, int64_t num_blocks, uint8_t *out) {
    return each_eight(values, num_blocks, out, 22, eight_q5_0);
}
static double quantize_q4_1(const float *values, int64_t num_blocks, uint8_t *out) {
    return each_eight(values, num_blocks, out, 20, eight_q4_1);
}
static double quantize_q5_1(const float *values, int64_t num_blocks, uint8_t *out) {
    return each_eight(values, num_blocks, out, 24, eight_q5_1);
}

#include "kernels/quantize_super.h"

#define ENTRY(name, suffix, largest) .suffix = quantize_##suffix,
const quantize_table QUANTIZE_TABLE = {QUANTIZED_TYPES(ENTRY)};
#undef ENTRY
