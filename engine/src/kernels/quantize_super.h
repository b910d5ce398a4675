/* quantize_super.h: the part of quantize_rows.h for blocks of 256, whose groups have scales that
 * are integer multiples of the block's own.
 *
 * First each group is searched alone. Then the block's scale d (and that of the minima) is
 * chosen, and every group takes the multiples with the least squared error near its own
 * solution. Then d is solved for, given all multiples and codes, and the groups choose again;
 * the better round is kept. */

static const float q4_k_factors[] = {0.86F, 0.9F, 0.94F, 0.97F, 1.0F, 1.03F, 1.06F, 1.1F, 1.14F, 1.18F, 1.23F, 1.28F};
static const float q5_k_factors[] = {0.93F, 0.95F, 0.97F, 0.985F, 1.0F, 1.015F, 1.03F, 1.05F, 1.07F, 1.09F, 1.12F};
static const float q6_k_factors[] = {0.95F, 0.955F, 0.96F, 0.965F, 0.97F, 0.975F, 0.98F, 0.985F,
                                     0.99F, 0.995F, 1.0F,  1.005F, 1.01F, 1.015F, 1.02F, 1.025F,
                                     1.03F, 1.035F, 1.04F, 1.045F, 1.05F, 1.055F, 1.06F};
enum { SUPER_ROUNDS = 4 };

/* The 16-bit float nearest to value / max_multiple, or the next one if max_multiple + 0.4 times the
 * nearest does not reach the value. */
static inline float super_scale(float value, float max_multiple) {
    const float exact = value / max_multiple;
    const uint16_t half = half_from_float(exact);
    const float nearest = float_from_half(&half);
    if (nearest * (max_multiple + 0.4F) >= value) return nearest;
    const uint16_t above = (uint16_t)(half + 1);
    return float_from_half(&above);
}

static inline float nearest_half(double value) {
    const uint16_t half = half_from_float((float)value);
    return float_from_half(&half);
}

/* ------------------------------------------------ x = d * multiple * code - d_minimum * minimum */

typedef struct {
    float d, d_minimum;
    simd8 multiples, minima; /* 0 to 63 */
    double error;
} affine_fit;

/* The nearest multiple of d, plus delta, clamped to 0 .. 63. */
static inline simd8 multiple_of(simd8 value, float d, float delta) {
    const simd8 inverse = inverse_of(simd8_all(d));
    const simd8 nearest = code_of(value, inverse, simd8_all(0.5F), simd8_all(63.5F));
    return simd8_min(simd8_max(simd8_add(nearest, simd8_all(delta)), simd8_all(0.0F)), simd8_all(63.0F));
}

/* The best minimum for the codes of (scale, offset): their mean overshoot. */
static inline simd8 better_minimum(const simd8 *x, affine a, float max_code) {
    const simd8 inverse = inverse_of(a.scale), top = simd8_all(max_code + 0.5F);
    const simd8 shift = simd8_sub(simd8_all(0.5F), simd8_mul(a.offset, inverse));
    simd8 over = simd8_all(0.0F);
    for (int i = 0; i < BLOCK_LENGTH; i++)
        over = simd8_add(over, simd8_sub(simd8_mul(a.scale, code_of(x[i], inverse, shift, top)), x[i]));
    return simd8_mul(over, simd8_all(1.0F / BLOCK_LENGTH));
}

/* Finds each group's multiples near its own solution, for given d and d_minimum. */
static inline affine_fit fit_affine(const simd8 *x, affine own, float max_code, float d, float d_minimum) {
    affine_fit fit = {d, d_minimum, simd8_all(0.0F), simd8_all(0.0F), 0.0};
    simd8 codes[BLOCK_LENGTH], best_error = simd8_all(3e38F);
    const simd8 own_minima = multiple_of(simd8_negate(own.offset), d_minimum, 0.0F);
    for (int delta = -1; delta <= 1; delta++) {
        const simd8 multiples = multiple_of(own.scale, d, (float)delta);
        affine a = {simd8_mul(simd8_all(d), multiples), simd8_negate(simd8_mul(simd8_all(d_minimum), own_minima))};
        const simd8 minimum = better_minimum(x, a, max_code);
        for (int minimum_delta = -1; minimum_delta <= 1; minimum_delta++) {
            const simd8 minima = multiple_of(minimum, d_minimum, (float)minimum_delta);
            a.offset = simd8_negate(simd8_mul(simd8_all(d_minimum), minima));
            const simd8 error = code_affine(x, a, max_code, codes);
            fit.multiples = simd8_pick(error, best_error, multiples, fit.multiples);
            fit.minima = simd8_pick(error, best_error, minima, fit.minima);
            best_error = simd8_min(error, best_error);
        }
    }
    fit.error = sum_of_lanes(best_error);
    return fit;
}

static inline affine affine_of_fit(const affine_fit *fit) {
    return (affine){simd8_mul(simd8_all(fit->d), fit->multiples),
                    simd8_negate(simd8_mul(simd8_all(fit->d_minimum), fit->minima))};
}

/* The d and d_minimum with the least squared error, given the fit's multiples and codes: two normal
 * equations. */
static inline void solve_affine(const simd8 *x, const affine_fit *fit, float max_code, float *d, float *d_minimum) {
    simd8 codes[BLOCK_LENGTH], products = simd8_all(0.0F), squares = simd8_all(0.0F);
    code_affine(x, affine_of_fit(fit), max_code, codes);
    for (int i = 0; i < BLOCK_LENGTH; i++) {
        products = simd8_add(products, simd8_mul(codes[i], x[i]));
        squares = simd8_add(squares, simd8_square(codes[i]));
    }
    const simd8 sum = sum_of(x, BLOCK_LENGTH), code_sum = sum_of(codes, BLOCK_LENGTH);
    const double aa = sum_of_lanes(simd8_mul(simd8_square(fit->multiples), squares));
    const double ab = sum_of_lanes(simd8_mul(simd8_mul(fit->multiples, fit->minima), code_sum));
    const double bb = BLOCK_LENGTH * sum_of_lanes(simd8_square(fit->minima));
    const double ax = sum_of_lanes(simd8_mul(fit->multiples, products)), bx = sum_of_lanes(simd8_mul(fit->minima, sum));
    const double determinant = aa * bb - ab * ab;
    if (determinant > 1e-9 * aa * bb) {
        *d = nearest_half((ax * bb - ab * bx) / determinant);
        *d_minimum = nearest_half((ab * ax - aa * bx) / determinant);
    } else if (aa > 0.0) {
        *d = nearest_half((ax + ab * (double)fit->d_minimum) / aa);
    }
}

/* Encodes one block; fills its codes, group after group. */
static inline affine_fit encode_super_affine(const float *values, float max_code, const float *factors, int num_factors,
                                             uint8_t *bytes) {
    simd8 x[BLOCK_LENGTH], codes[BLOCK_LENGTH];
    columns_of(values, BLOCK_LENGTH, x);
    const affine own = search_affine(x, true, true, max_code, factors, num_factors);
    const float d = super_scale(largest_lane(own.scale), 63.0F);
    const float d_minimum = super_scale(largest_lane(simd8_negate(own.offset)), 63.0F);
    affine_fit best = fit_affine(x, own, max_code, d, d_minimum);
    for (int r = 0; r < SUPER_ROUNDS; r++) {
        float next_d = best.d, next_minimum = best.d_minimum;
        solve_affine(x, &best, max_code, &next_d, &next_minimum);
        if (!(next_d > 0.0F) || !(next_minimum >= 0.0F) || (next_d == best.d && next_minimum == best.d_minimum)) break;
        const affine_fit next = fit_affine(x, own, max_code, next_d, next_minimum);
        if (!(next.error < best.error)) break;
        best = next;
    }
    code_affine(x, affine_of_fit(&best), max_code, codes);
    codes_to_bytes(codes, BLOCK_LENGTH, bytes);
    return best;
}

/* Writes d, d_minimum and the eight 6-bit multiples and minima: the first 16 bytes of Q4_K and
 * Q5_K. */
static inline void pack_affine_scales(const affine_fit *fit, uint8_t *out) {
    float multiples[LANES], minima[LANES];
    simd8_store(multiples, fit->multiples);
    simd8_store(minima, fit->minima);
    put_half(out, fit->d);
    put_half(out + 2, fit->d_minimum);
    for (int j = 0; j < 4; j++) {
        const unsigned scale = (unsigned)multiples[j], minimum = (unsigned)minima[j];
        const unsigned late_scale = (unsigned)multiples[j + 4], late_minimum = (unsigned)minima[j + 4];
        out[4 + j] = (uint8_t)(scale | late_scale >> 4 << 6);
        out[8 + j] = (uint8_t)(minimum | late_minimum >> 4 << 6);
        out[12 + j] = (uint8_t)((late_scale & 15) | (late_minimum & 15) << 4);
    }
}

static double quantize_q4_k(const float *values, int64_t num_blocks, uint8_t *out) {
    uint8_t codes[SUPER_LENGTH];
    double error = 0.0;
    for (int64_t b = 0; b < num_blocks; b++, out += 144) {
        const affine_fit fit =
            encode_super_affine(values + b * SUPER_LENGTH, 15.0F, q4_k_factors, COUNT(q4_k_factors), codes);
        error += fit.error;
        pack_affine_scales(&fit, out);
        for (int p = 0; p < 4; p++)
            for (int i = 0; i < 32; i++)
                out[16 + p * 32 + i] = codes[p * 64 + i] | (uint8_t)(codes[p * 64 + 32 + i] << 4);
    }
    return error;
}

static double quantize_q5_k(const float *values, int64_t num_blocks, uint8_t *out) {
    uint8_t codes[SUPER_LENGTH];
    double error = 0.0;
    for (int64_t b = 0; b < num_blocks; b++, out += 176) {
        const affine_fit fit =
            encode_super_affine(values + b * SUPER_LENGTH, 31.0F, q5_k_factors, COUNT(q5_k_factors), codes);
        error += fit.error;
        pack_affine_scales(&fit, out);
        for (int i = 0; i < 32; i++) {
            unsigned high = 0;
            for (int g = 0; g < 8; g++) high |= (unsigned)(codes[g * 32 + i] >> 4) << g;
            out[16 + i] = (uint8_t)high;
        }
        for (int p = 0; p < 4; p++)
            for (int i = 0; i < 32; i++)
                out[48 + p * 32 + i] = (codes[p * 64 + i] & 15) | (uint8_t)(codes[p * 64 + 32 + i] << 4);
    }
    return error;
}

/* --------------------------------------------------------- Q6_K: x = d * multiple * (code - 32) */

enum { HALVES = 2, GROUP = 16 };

typedef struct {
    float d;
    simd8 multiples[HALVES]; /* -128 to 127 */
    double error;
} symmetric_fit;

static inline symmetric_fit fit_symmetric(simd8 x[HALVES][GROUP], const simd8 *own, float d) {
    symmetric_fit fit = {.d = d};
    simd8 codes[GROUP];
    const simd8 inverse = inverse_of(simd8_all(d));
    for (int h = 0; h < HALVES; h++) {
        simd8 best_error = simd8_all(3e38F), best = simd8_all(0.0F);
        for (int delta = -1; delta <= 1; delta++) {
            simd8 multiples = simd8_add(simd8_mul(own[h], inverse), simd8_all(128.5F + (float)delta));
            multiples = simd8_truncate(simd8_min(simd8_max(multiples, simd8_all(0.0F)), simd8_all(255.0F)));
            multiples = simd8_sub(multiples, simd8_all(128.0F));
            const simd8 error = code_symmetric(x[h], NULL, GROUP, simd8_mul(simd8_all(d), multiples), 32.0F, codes);
            best = simd8_pick(error, best_error, multiples, best);
            best_error = simd8_min(error, best_error);
        }
        fit.multiples[h] = best;
        fit.error += sum_of_lanes(best_error);
    }
    return fit;
}

/* The d with the least squared error, given the fit's multiples and codes. */
static inline float solve_symmetric(simd8 x[HALVES][GROUP], const symmetric_fit *fit) {
    double products = 0.0, squares = 0.0;
    for (int h = 0; h < HALVES; h++) {
        simd8 codes[GROUP], code_products = simd8_all(0.0F), code_squares = simd8_all(0.0F);
        code_symmetric(x[h], NULL, GROUP, simd8_mul(simd8_all(fit->d), fit->multiples[h]), 32.0F, codes);
        for (int i = 0; i < GROUP; i++) {
            const simd8 code = simd8_sub(codes[i], simd8_all(32.0F));
            code_products = simd8_add(code_products, simd8_mul(code, x[h][i]));
            code_squares = simd8_add(code_squares, simd8_square(code));
        }
        products += sum_of_lanes(simd8_mul(fit->multiples[h], code_products));
        squares += sum_of_lanes(simd8_mul(simd8_square(fit->multiples[h]), code_squares));
    }
    return squares > 0.0 ? nearest_half(products / squares) : 0.0F;
}

static inline symmetric_fit encode_super_symmetric(const float *values, uint8_t *bytes) {
    simd8 x[HALVES][GROUP], own[HALVES], codes[GROUP];
    float largest = 0.0F;
    for (int h = 0; h < HALVES; h++) {
        columns_of(values + h * SUPER_LENGTH / HALVES, GROUP, x[h]);
        own[h] = search_scale(x[h], NULL, GROUP, extreme_of(x[h], GROUP), 32.0F, q6_k_factors, COUNT(q6_k_factors));
        const float here = largest_lane(simd8_abs(own[h]));
        largest = here > largest ? here : largest;
    }
    symmetric_fit best = fit_symmetric(x, own, super_scale(largest, 127.0F));
    for (int r = 0; r < SUPER_ROUNDS; r++) {
        const float d = solve_symmetric(x, &best);
        if (!(d > 0.0F) || d == best.d) break;
        const symmetric_fit next = fit_symmetric(x, own, d);
        if (!(next.error < best.error)) break;
        best = next;
    }
    for (int h = 0; h < HALVES; h++) {
        code_symmetric(x[h], NULL, GROUP, simd8_mul(simd8_all(best.d), best.multiples[h]), 32.0F, codes);
        codes_to_bytes(codes, GROUP, bytes + h * SUPER_LENGTH / HALVES);
    }
    return best;
}

static double quantize_q6_k(const float *values, int64_t num_blocks, uint8_t *out) {
    uint8_t codes[SUPER_LENGTH];
    double error = 0.0;
    for (int64_t b = 0; b < num_blocks; b++, out += 210) {
        const symmetric_fit fit = encode_super_symmetric(values + b * SUPER_LENGTH, codes);
        for (int h = 0; h < HALVES; h++) {
            const uint8_t *c = codes + h * 128;
            for (int i = 0; i < 64; i++) out[h * 64 + i] = (c[i] & 15) | (uint8_t)(c[i + 64] << 4);
            for (int i = 0; i < 32; i++)
                out[128 + h * 32 + i] =
                    (uint8_t)(c[i] >> 4 | c[i + 32] >> 4 << 2 | c[i + 64] >> 4 << 4 | c[i + 96] >> 4 << 6);
            float multiples[LANES];
            simd8_store(multiples, fit.multiples[h]);
            for (int j = 0; j < LANES; j++) out[192 + h * 8 + j] = (uint8_t)(int8_t)multiples[j];
        }
        put_half(out + 208, fit.d);
        error += fit.error;
    }
    return error;
}
