/* quantise_rows.h: turns floats into the blocks of quantised types, searching for the scales with the least squared
 * error. Compiled twice: by quantise_plain.c for any processor, by quantise_avx2.c for AVX2; the bytes are the same.
 *
 * Eight groups of numbers are worked on at once: lane j of x[i] is number i of group j, so that sums over a group are
 * sums of registers. A group is what shares a scale: a block of 32, or a part of a block of 256. What a block's bytes
 * are is said where they are read: tensor_type.c.
 *
 * The search: for fixed codes the best scale (and offset) is a least-squares solution; so codes are made with several
 * trial scales near the one that just reaches the largest number, each is solved for, and the best one wins.
 */
#include "kernels_lanes.h"
#include "quantise.h"

enum { BLOCK = 32, SUPER = 256, GROUPS = LANES };

/* Below, a scale's inverse might overflow: such a group becomes zeros (or its offset). */
#define TINY 1e-30F

static inline lanes lanes_square(lanes a) { return lanes_mul(a, a); }
static inline lanes lanes_negate(lanes a) { return lanes_sub(lanes_all(0.0F), a); }

/* 1 / a, and 0 for a tiny a. */
static inline lanes inverse_of(lanes a) {
    const lanes tiny = lanes_all(TINY);
    const lanes safe = lanes_pick(lanes_abs(a), tiny, lanes_all(1.0F), a);
    return lanes_pick(lanes_abs(a), tiny, lanes_all(0.0F), lanes_div(lanes_all(1.0F), safe));
}

/* The nearest 16-bit floats, none infinite. */
static inline lanes half_scale(lanes a) {
    const lanes most = lanes_all(65504.0F);
    return lanes_round_half(lanes_max(lanes_min(a, most), lanes_negate(most)));
}

/* The nearest codes 0 to top - 0.5 for x * inverse + shift - 0.5: shift and top have the half in them. */
static inline lanes code_of(lanes x, lanes inverse, lanes shift, lanes top) {
    const lanes code = lanes_add(lanes_mul(x, inverse), shift);
    return lanes_truncate(lanes_min(lanes_max(code, lanes_all(0.0F)), top));
}

static inline lanes sum_of(const lanes *x, int length) {
    lanes sum = x[0];
    for (int i = 1; i < length; i++) sum = lanes_add(sum, x[i]);
    return sum;
}

/* Lane after lane: one order everywhere. */
static inline double sum_of_lanes(lanes a) {
    float lane[LANES];
    double sum = 0.0;
    lanes_store(lane, a);
    for (int j = 0; j < LANES; j++) sum += (double)lane[j];
    return sum;
}

static inline float largest_lane(lanes a) {
    float lane[LANES];
    lanes_store(lane, a);
    float largest = lane[0];
    for (int j = 1; j < LANES; j++) largest = lane[j] > largest ? lane[j] : largest;
    return largest;
}

/* groups[j * length + i] = lane j of codes[i]. */
static inline void codes_to_bytes(const lanes *codes, int length, uint8_t *groups) {
    for (int i = 0; i < length; i += LANES) {
        lanes rows[LANES];
        lanes_transpose((const float *)(const void *)(codes + i), LANES, rows);
        for (int j = 0; j < LANES; j++) lanes_store_bytes(groups + j * length + i, rows[j]);
    }
}

static inline void columns_of(const float *values, int length, lanes *x) {
    for (int i = 0; i < length; i += LANES) lanes_transpose(values + i, length, x + i);
}

static inline void put_half(uint8_t *out, float value) {
    const uint16_t half = half_from_float(value);
    memcpy(out, &half, sizeof half);
}

/* ------------------------------------------------------------------ x = scale * (code - zero) */

/* The number with the largest magnitude of each group. */
static inline lanes extreme_of(const lanes *x, int length) {
    lanes extreme = x[0];
    for (int i = 1; i < length; i++) extreme = lanes_pick(lanes_abs(extreme), lanes_abs(x[i]), x[i], extreme);
    return extreme;
}

/* The scale with the least squared error found, of codes 0 to 2 zero - 1. The trial scales are the one that gives the
 * extreme number the code 0, times 1 / factors[i]. */
static inline lanes search_scale(const lanes *x, int length, lanes extreme, float zero, const float *factors,
                                 int num_factors) {
    const lanes inverse = lanes_mul(inverse_of(extreme), lanes_all(-zero));
    const lanes shift = lanes_all(zero + 0.5F), top = lanes_all(2.0F * zero - 0.5F);
    lanes best_gain = lanes_all(0.0F), best = lanes_all(0.0F);
    for (int f = 0; f < num_factors; f++) {
        const lanes trial = lanes_mul(inverse, lanes_all(factors[f]));
        lanes products = lanes_all(0.0F), squares = lanes_all(0.0F);
        for (int i = 0; i < length; i++) {
            const lanes code = lanes_sub(code_of(x[i], trial, shift, top), lanes_all(zero));
            products = lanes_add(products, lanes_mul(code, x[i]));
            squares = lanes_add(squares, lanes_square(code));
        }
        const lanes scale = lanes_mul(products, inverse_of(squares));
        const lanes gain = lanes_mul(products, scale); /* what the squared error falls by */
        best = lanes_pick(best_gain, gain, scale, best);
        best_gain = lanes_max(best_gain, gain);
    }
    return best;
}

/* The nearest codes for a scale, and the squared error. */
static inline lanes code_symmetric(const lanes *x, int length, lanes scale, float zero, lanes *codes) {
    const lanes inverse = inverse_of(scale), shift = lanes_all(zero + 0.5F), top = lanes_all(2.0F * zero - 0.5F);
    lanes error = lanes_all(0.0F);
    for (int i = 0; i < length; i++) {
        codes[i] = code_of(x[i], inverse, shift, top);
        error = lanes_add(error, lanes_square(lanes_sub(lanes_mul(scale, lanes_sub(codes[i], lanes_all(zero))), x[i])));
    }
    return error;
}

/* ggml's scale, which gives the extreme number the code 0, unless the searched one is better. Returns the errors. */
static inline lanes encode_symmetric(const lanes *x, float zero, const float *factors, int num_factors, lanes *codes,
                                    lanes *scale) {
    lanes plain_codes[BLOCK];
    const lanes extreme = extreme_of(x, BLOCK);
    const lanes plain = half_scale(lanes_mul(extreme, lanes_all(-1.0F / zero)));
    const lanes searched = half_scale(search_scale(x, BLOCK, extreme, zero, factors, num_factors));
    const lanes plain_error = code_symmetric(x, BLOCK, plain, zero, plain_codes);
    const lanes error = code_symmetric(x, BLOCK, searched, zero, codes);
    *scale = lanes_pick(error, plain_error, searched, plain);
    for (int i = 0; i < BLOCK; i++) codes[i] = lanes_pick(error, plain_error, codes[i], plain_codes[i]);
    return lanes_min(error, plain_error);
}

/* ------------------------------------------------------------------ x = scale * code + offset */

typedef struct {
    lanes scale, offset;
} affine;

/* What a group's search keeps: y = x - low >= 0 and its sums. */
typedef struct {
    lanes y[BLOCK], low, sum, squares;
    bool offset_negative; /* the type has no other */
    affine best;          /* of y */
    lanes best_error;
} affine_search;

/* Codes for y * inverse + shift - 0.5, the least-squares scale and offset for them, kept if the error is less. */
static inline void try_affine(affine_search *s, lanes inverse, lanes shift, lanes top) {
    lanes codes = lanes_all(0.0F), squares = lanes_all(0.0F), products = lanes_all(0.0F);
    for (int i = 0; i < BLOCK; i++) {
        const lanes code = code_of(s->y[i], inverse, shift, top);
        codes = lanes_add(codes, code);
        squares = lanes_add(squares, lanes_square(code));
        products = lanes_add(products, lanes_mul(code, s->y[i]));
    }
    const lanes n = lanes_all(BLOCK);
    const lanes determinant = lanes_sub(lanes_mul(n, squares), lanes_square(codes));
    lanes scale = lanes_sub(lanes_mul(n, products), lanes_mul(codes, s->sum));
    scale = lanes_mul(scale, inverse_of(determinant));
    lanes offset = lanes_mul(lanes_sub(s->sum, lanes_mul(scale, codes)), lanes_all(1.0F / BLOCK));
    if (s->offset_negative) offset = lanes_min(offset, lanes_negate(s->low));
    scale = lanes_mul(lanes_sub(products, lanes_mul(offset, codes)), inverse_of(squares));
    /* Sum of (scale * code + offset - y)^2, where the scale solves its normal equation. */
    lanes error = lanes_sub(s->squares, lanes_mul(scale, lanes_sub(products, lanes_mul(offset, codes))));
    error = lanes_add(error, lanes_mul(offset, lanes_sub(lanes_mul(n, offset), lanes_add(s->sum, s->sum))));
    s->best.scale = lanes_pick(error, s->best_error, scale, s->best.scale);
    s->best.offset = lanes_pick(error, s->best_error, offset, s->best.offset);
    s->best_error = lanes_min(error, s->best_error);
}

/* The trial scales are the one that reaches from the least number to the largest, times 1 / factors[i]; thorough: the
 * least number is also tried half a step below code 0. Then codes are made anew with the best solution, and again. */
static inline affine search_affine(const lanes *x, bool thorough, bool offset_negative, float most,
                                   const float *factors, int num_factors) {
    affine_search s = {.low = x[0], .offset_negative = offset_negative};
    lanes high = x[0];
    for (int i = 1; i < BLOCK; i++) {
        s.low = lanes_min(s.low, x[i]);
        high = lanes_max(high, x[i]);
    }
    if (offset_negative) s.low = lanes_min(s.low, lanes_all(0.0F));
    lanes squares = lanes_all(0.0F);
    for (int i = 0; i < BLOCK; i++) {
        s.y[i] = lanes_sub(x[i], s.low);
        squares = lanes_add(squares, lanes_square(s.y[i]));
    }
    s.sum = sum_of(s.y, BLOCK);
    s.squares = squares;
    s.best = (affine){lanes_all(0.0F), lanes_all(0.0F)};
    s.best_error = squares; /* all codes 0, offset low */
    const lanes top = lanes_all(most + 0.5F), half = lanes_all(0.5F);
    const lanes inverse = lanes_mul(inverse_of(lanes_sub(high, s.low)), lanes_all(most));
    for (int f = 0; f < num_factors; f++) {
        const lanes trial = lanes_mul(inverse, lanes_all(factors[f]));
        try_affine(&s, trial, half, top);
        if (thorough) try_affine(&s, trial, lanes_all(0.0F), top);
    }
    for (int r = 0; r < (thorough ? 2 : 1); r++) {
        const lanes again = inverse_of(s.best.scale);
        try_affine(&s, again, lanes_sub(half, lanes_mul(s.best.offset, again)), top);
    }
    return (affine){s.best.scale, lanes_add(s.best.offset, s.low)};
}

/* The nearest codes for a scale and an offset, and the squared error. */
static inline lanes code_affine(const lanes *x, affine a, float most, lanes *codes) {
    const lanes inverse = inverse_of(a.scale), top = lanes_all(most + 0.5F);
    const lanes shift = lanes_sub(lanes_all(0.5F), lanes_mul(a.offset, inverse));
    lanes error = lanes_all(0.0F);
    for (int i = 0; i < BLOCK; i++) {
        codes[i] = code_of(x[i], inverse, shift, top);
        const lanes value = lanes_add(lanes_mul(a.scale, codes[i]), a.offset);
        error = lanes_add(error, lanes_square(lanes_sub(value, x[i])));
    }
    return error;
}

/* ggml's scale and offset, which just span the numbers, unless the searched ones are better. Returns the errors. */
static inline lanes encode_affine(const lanes *x, float most, const float *factors, int num_factors, lanes *codes,
                                  affine *out) {
    lanes plain_codes[BLOCK], low = x[0], high = x[0];
    for (int i = 1; i < BLOCK; i++) {
        low = lanes_min(low, x[i]);
        high = lanes_max(high, x[i]);
    }
    affine plain = {lanes_div(lanes_sub(high, low), lanes_all(most)), low};
    affine best = search_affine(x, false, false, most, factors, num_factors);
    plain = (affine){half_scale(plain.scale), half_scale(plain.offset)};
    best = (affine){half_scale(best.scale), half_scale(best.offset)};
    const lanes plain_error = code_affine(x, plain, most, plain_codes), error = code_affine(x, best, most, codes);
    for (int i = 0; i < BLOCK; i++) codes[i] = lanes_pick(error, plain_error, codes[i], plain_codes[i]);
    out->scale = lanes_pick(error, plain_error, best.scale, plain.scale);
    out->offset = lanes_pick(error, plain_error, best.offset, plain.offset);
    return lanes_min(error, plain_error);
}

/* ------------------------------------------------------------------ blocks of 32, eight at once */

/* Relative to the inverse scale that just reaches the extreme number. Beyond 1, that number is clipped and the others
 * get finer steps; below 1, it gets a smaller code. */
static const float q4_0_factors[] = {0.85F, 0.9F, 0.95F, 1.0F, 1.05F, 1.1F, 1.15F, 1.2F, 1.25F};
static const float q5_0_factors[] = {0.92F, 0.95F, 0.98F, 1.0F, 1.02F, 1.05F, 1.08F, 1.11F, 1.14F};
static const float q4_1_factors[] = {0.92F, 0.98F, 1.04F, 1.1F, 1.16F, 1.23F};
static const float q5_1_factors[] = {0.95F, 0.98F, 1.0F, 1.03F, 1.06F, 1.1F, 1.14F};
#define COUNT(array) ((int)(sizeof(array) / sizeof(array)[0]))

typedef double eight_function(const lanes *x, uint8_t *out);

static inline double each_eight(const float *values, int64_t num_blocks, uint8_t *out, size_t block_bytes,
                              eight_function *quantise_eight) {
    lanes x[BLOCK];
    double error = 0.0;
    int64_t b = 0;
    for (; b + GROUPS <= num_blocks; b += GROUPS) {
        columns_of(values + b * BLOCK, BLOCK, x);
        error += quantise_eight(x, out + (size_t)b * block_bytes);
    }
    if (b < num_blocks) {
        const size_t left = (size_t)(num_blocks - b);
        float rest[GROUPS * BLOCK] = {0};
        uint8_t blocks[GROUPS * 34];
        memcpy(rest, values + b * BLOCK, left * BLOCK * sizeof *rest);
        columns_of(rest, BLOCK, x);
        error += quantise_eight(x, blocks);
        memcpy(out + (size_t)b * block_bytes, blocks, left * block_bytes);
    }
    return error;
}

static inline void pack_nibbles(const uint8_t *codes, uint8_t *out) {
    for (int i = 0; i < BLOCK / 2; i++) out[i] = (codes[i] & 15) | (uint8_t)(codes[i + BLOCK / 2] << 4);
}

static inline void pack_fifth_bits(const uint8_t *codes, uint8_t *out) {
    for (int i = 0; i < BLOCK / 8; i++) {
        unsigned bits = 0;
        for (int k = 0; k < 8; k++) bits |= (unsigned)(codes[8 * i + k] >> 4) << k;
        out[i] = (uint8_t)bits;
    }
}

/* ggml's rule: the scale reaches the extreme number, codes are rounded half away from zero. */
static double eight_q8_0(const lanes *x, uint8_t *out) {
    const lanes scale = lanes_div(lanes_abs(extreme_of(x, BLOCK)), lanes_all(127.0F)), inverse = inverse_of(scale);
    const lanes stored = half_scale(scale);
    lanes codes[BLOCK], error = lanes_all(0.0F);
    for (int i = 0; i < BLOCK; i++) {
        const lanes magnitude = lanes_abs(lanes_mul(x[i], inverse)), whole = lanes_truncate(magnitude);
        const lanes above = lanes_truncate(lanes_mul(lanes_sub(magnitude, whole), lanes_all(2.0F)));
        const lanes code = lanes_add(whole, above);
        error = lanes_add(error, lanes_square(lanes_sub(lanes_mul(stored, code), lanes_abs(x[i]))));
        /* As a byte: -1 is 255. */
        codes[i] = lanes_pick(x[i], lanes_all(0.0F), lanes_sub(lanes_all(256.0F), code), code);
        codes[i] = lanes_pick(code, lanes_all(0.5F), code, codes[i]);
    }
    uint8_t bytes[GROUPS * BLOCK];
    float scales[LANES];
    codes_to_bytes(codes, BLOCK, bytes);
    lanes_store(scales, scale);
    for (int j = 0; j < GROUPS; j++) {
        put_half(out + j * 34, scales[j]);
        memcpy(out + j * 34 + 2, bytes + j * BLOCK, BLOCK);
    }
    return sum_of_lanes(error);
}

static inline double eight_symmetric(const lanes *x, bool five, const float *factors, int num_factors, uint8_t *out) {
    lanes codes[BLOCK], scale;
    const lanes error = encode_symmetric(x, five ? 16.0F : 8.0F, factors, num_factors, codes, &scale);
    uint8_t bytes[GROUPS * BLOCK];
    float scales[LANES];
    codes_to_bytes(codes, BLOCK, bytes);
    lanes_store(scales, scale);
    for (int j = 0; j < GROUPS; j++) {
        put_half(out, scales[j]);
        out += 2;
        if (five) {
            pack_fifth_bits(bytes + j * BLOCK, out);
            out += BLOCK / 8;
        }
        pack_nibbles(bytes + j * BLOCK, out);
        out += BLOCK / 2;
    }
    return sum_of_lanes(error);
}

static inline double eight_affine(const lanes *x, bool five, const float *factors, int num_factors, uint8_t *out) {
    lanes codes[BLOCK];
    affine a;
    const lanes error = encode_affine(x, five ? 31.0F : 15.0F, factors, num_factors, codes, &a);
    uint8_t bytes[GROUPS * BLOCK];
    float scales[LANES], offsets[LANES];
    codes_to_bytes(codes, BLOCK, bytes);
    lanes_store(scales, a.scale);
    lanes_store(offsets, a.offset);
    for (int j = 0; j < GROUPS; j++) {
        put_half(out, scales[j]);
        put_half(out + 2, offsets[j]);
        out += 4;
        if (five) {
            pack_fifth_bits(bytes + j * BLOCK, out);
            out += BLOCK / 8;
        }
        pack_nibbles(bytes + j * BLOCK, out);
        out += BLOCK / 2;
    }
    return sum_of_lanes(error);
}

static double eight_q4_0(const lanes *x, uint8_t *out) {
    return eight_symmetric(x, false, q4_0_factors, COUNT(q4_0_factors), out);
}
static double eight_q5_0(const lanes *x, uint8_t *out) {
    return eight_symmetric(x, true, q5_0_factors, COUNT(q5_0_factors), out);
}
static double eight_q4_1(const lanes *x, uint8_t *out) {
    return eight_affine(x, false, q4_1_factors, COUNT(q4_1_factors), out);
}
static double eight_q5_1(const lanes *x, uint8_t *out) {
    return eight_affine(x, true, q5_1_factors, COUNT(q5_1_factors), out);
}

static double quantise_q8_0(const float *values, int64_t num_blocks, uint8_t *out) {
    return each_eight(values, num_blocks, out, 34, eight_q8_0);
}
static double quantise_q4_0(const float *values, int64_t num_blocks, uint8_t *out) {
    return each_eight(values, num_blocks, out, 18, eight_q4_0);
}
static double quantise_q5_0(const float *values, int64_t num_blocks, uint8_t *out) {
    return each_eight(values, num_blocks, out, 22, eight_q5_0);
}
static double quantise_q4_1(const float *values, int64_t num_blocks, uint8_t *out) {
    return each_eight(values, num_blocks, out, 20, eight_q4_1);
}
static double quantise_q5_1(const float *values, int64_t num_blocks, uint8_t *out) {
    return each_eight(values, num_blocks, out, 24, eight_q5_1);
}

#include "quantise_super.h"

const quantise_table QUANTISE_TABLE = {
    .q8_0 = quantise_q8_0,
    .q4_0 = quantise_q4_0,
    .q5_0 = quantise_q5_0,
    .q4_1 = quantise_q4_1,
    .q5_1 = quantise_q5_1,
    .q4_k = quantise_q4_k,
    .q5_k = quantise_q5_k,
    .q6_k = quantise_q6_k,
};
