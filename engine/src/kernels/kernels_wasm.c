/* kernels_wasm.c: the kernels for WebAssembly's 128-bit SIMD, plain and relaxed (-mrelaxed-simd).
 *
 * Plain SIMD has no fma. There a sum is kept as a double that holds a float: the product of two
 * floats is exact in double, and so is that of an integer below 2^24 and a float. Adding it and
 * rounding to float rounds twice, which gives another float than one rounding only if the double is
 * halfway between two floats though the exact sum is not. Such doubles are rare and known by their
 * bits: a step that meets one is computed again with an addition that rounds to odd, after which
 * rounding to float is right for all numbers.
 *
 * Relaxed SIMD has a multiplication with addition that rounds once or twice. Its standard says that
 * an implementation does always the same, so one look says whether it is fma; processors without fma
 * take the plain module.
 *
 * Integer sums are exact, whatever the instructions. The relaxed dot product is the same on every
 * processor where its second operand is 0 .. 127 and no sum of two products leaves 16 bits. */
#include "kernels/float_math.h"
#include "kernels/inline.h"
#include "kernels/kernels.h"

#if defined(__wasm_simd128__)
#include <math.h>
#include <wasm_simd128.h>

/* Hides where a value comes from. Of an address: constant offsets stay parts of loads. Of a sum: what
 * was written first is computed first, so that fewer vectors are alive than V8 has registers for. */
#if defined(__wasm_relaxed_simd__)
#define OPAQUE(value) __asm__ volatile("" : "+r"(value))
#else
#define OPAQUE(value) (void)(value)
#endif
#define HALVES 2 /* of a panel, as vectors of four rows */
#define PAIRS 4  /* of a panel, as vectors of two doubles */

INLINE v128_t high_pair(v128_t four) { return wasm_i64x2_shuffle(four, four, 1, 1); }

/* ------------------------------------------------------------------ fma */

#if defined(__wasm_relaxed_simd__)
#define SUMS HALVES /* vectors with the sums of a panel: of four floats */

INLINE v128_t zero_sum(void) { return wasm_f32x4_splat(0.0f); }
INLINE v128_t splat(float value) { return wasm_f32x4_splat(value); }

INLINE v128_t add_product(v128_t a, v128_t b, v128_t sum, const bool exactly, const panel_format format,
                          v128_t *suspects) {
    (void)exactly, (void)format, (void)suspects;
    return wasm_f32x4_relaxed_madd(a, b, sum);
}

INLINE bool any_suspect(v128_t suspects) {
    (void)suspects;
    return false;
}

/* Four floats or integers of each half as sums need their factors. */
INLINE void factors_of_floats(const v128_t *lanes, v128_t *factors) {
    UNROLL for (int h = 0; h < HALVES; h++) factors[h] = lanes[h];
}

INLINE void factors_of_integers(const v128_t *lanes, v128_t *factors) {
    UNROLL for (int h = 0; h < HALVES; h++) factors[h] = wasm_f32x4_convert_i32x4(lanes[h]);
}

INLINE void floats_of_sums(const v128_t *sums, v128_t *lanes) { factors_of_floats(sums, lanes); }
#else
#define SUMS PAIRS /* of two doubles */

INLINE v128_t to_doubles(v128_t two_floats) { return wasm_f64x2_promote_low_f32x4(two_floats); }
INLINE v128_t to_floats(v128_t doubles) { return wasm_f32x4_demote_f64x2_zero(doubles); }

/* The float nearest to product + sum. */
INLINE v128_t add_exactly(v128_t product, v128_t sum) {
    const v128_t total = wasm_f64x2_add(product, sum), from_sum = wasm_f64x2_sub(total, product);
    const v128_t error =
        wasm_f64x2_add(wasm_f64x2_sub(product, wasm_f64x2_sub(total, from_sum)), wasm_f64x2_sub(sum, from_sum));
    /* Rounds to odd: an even total that is not exact moves to its neighbor on the other side of the
     * exact sum. NaN, of infinities, is neither above nor below zero. */
    const v128_t zero = wasm_f64x2_splat(0.0), one = wasm_i64x2_splat(1);
    const v128_t inexact = wasm_v128_or(wasm_f64x2_lt(error, zero), wasm_f64x2_gt(error, zero));
    const v128_t even = wasm_i64x2_eq(wasm_v128_and(total, one), wasm_i64x2_splat(0));
    const v128_t outward = wasm_v128_or(wasm_i64x2_shr(wasm_v128_xor(error, total), 63), one); /* 1 or -1 */
    const v128_t odd = wasm_i64x2_add(total, wasm_v128_and(outward, wasm_v128_and(inexact, even)));
    return to_doubles(to_floats(odd));
}

/* Whether sums of this format of weights can be below 2^-126, where floats have fewer bits, and not
 * exact in double: there the bits of halfway doubles are others. The product of a 16-bit float or an
 * integer with a float is a multiple of 2^-173, so its sum with a float is exact there. */
#define CAN_BE_TINY(format) ((format) == PANEL_F32 || (format) == PANEL_BF16)

/* The same, unless *suspects gets the lowest integer in a lane. */
INLINE v128_t add_rounding_twice(v128_t product, v128_t sum, const panel_format format, v128_t *suspects) {
    const v128_t total = wasm_f64x2_add(product, sum);
    /* Halfway: the 29 bits that a float lacks are 1 and zeros. High words look like that only below
     * 2^-254. */
    *suspects = wasm_i32x4_min(*suspects, wasm_i32x4_shl(total, 3));
    if (CAN_BE_TINY(format)) {
        const v128_t tiny = wasm_f64x2_lt(wasm_f64x2_abs(total), wasm_f64x2_splat(0x1p-126));
        *suspects = wasm_i32x4_min(*suspects, wasm_v128_and(tiny, wasm_i32x4_splat(INT32_MIN)));
    }
    return to_doubles(to_floats(total));
}

INLINE v128_t zero_sum(void) { return wasm_f64x2_splat(0.0); }
INLINE v128_t splat(float value) { return wasm_f64x2_splat((double)value); }

INLINE v128_t add_product(v128_t a, v128_t b, v128_t sum, const bool exactly, const panel_format format,
                          v128_t *suspects) {
    const v128_t product = wasm_f64x2_mul(a, b);
    return exactly ? add_exactly(product, sum) : add_rounding_twice(product, sum, format, suspects);
}

INLINE bool any_suspect(v128_t suspects) {
    return wasm_v128_any_true(wasm_i32x4_eq(suspects, wasm_i32x4_splat(INT32_MIN)));
}

/* Four floats or integers of each half as sums need their factors. */
INLINE void factors_of_floats(const v128_t *lanes, v128_t *factors) {
    UNROLL for (int h = 0; h < HALVES; h++) {
        factors[2 * h] = to_doubles(lanes[h]);
        factors[2 * h + 1] = to_doubles(high_pair(lanes[h]));
    }
}

INLINE void factors_of_integers(const v128_t *lanes, v128_t *factors) {
    UNROLL for (int h = 0; h < HALVES; h++) {
        factors[2 * h] = wasm_f64x2_convert_low_i32x4(lanes[h]);
        factors[2 * h + 1] = wasm_f64x2_convert_low_i32x4(high_pair(lanes[h]));
    }
}

INLINE void floats_of_sums(const v128_t *sums, v128_t *lanes) {
    UNROLL for (int h = 0; h < HALVES; h++) lanes[h] =
        wasm_i64x2_shuffle(to_floats(sums[2 * h]), to_floats(sums[2 * h + 1]), 0, 2);
}
#endif

/* ------------------------------------------------------------------ loading and storing */

INLINE void load_floats(const void *values, v128_t *lanes) {
    lanes[0] = wasm_v128_load(values);
    lanes[1] = wasm_v128_load((const char *)values + 16);
}

INLINE void store_floats(float *values, const v128_t *lanes) {
    wasm_v128_store(values, lanes[0]);
    wasm_v128_store(values + 4, lanes[1]);
}

/* Loads n < 8 values, then zeros. */
INLINE void load_first(const float *values, int64_t n, v128_t *lanes) {
    float padded[LANES] = {0};
    memcpy(padded, values, (size_t)n * sizeof *values);
    load_floats(padded, lanes);
}

INLINE void store_first(float *values, int64_t n, const v128_t *lanes) {
    float padded[LANES];
    store_floats(padded, lanes);
    memcpy(values, padded, (size_t)n * sizeof *values);
}

/* float_from_half() in four lanes. halves: in the low 16 bits of each. */
INLINE v128_t floats_from_halves(v128_t halves) {
    const v128_t high = wasm_i32x4_shl(halves, 16), sign = wasm_v128_and(high, wasm_i32x4_splat(INT32_MIN));
    const v128_t magnitude = wasm_u32x4_shr(wasm_v128_xor(high, sign), 3);
    const v128_t special = wasm_i32x4_gt(magnitude, wasm_i32x4_splat(0x0f7fffff)); /* infinity, NaN */
    const v128_t value = wasm_f32x4_mul(magnitude, wasm_f32x4_splat(0x1p112f));
    return wasm_v128_or(wasm_v128_or(value, sign), wasm_v128_and(special, wasm_i32x4_splat(0x7f800000)));
}

INLINE void load_halves(const void *eight, v128_t *lanes) {
    const v128_t halves = wasm_v128_load(eight);
    lanes[0] = floats_from_halves(wasm_u32x4_extend_low_u16x8(halves));
    lanes[1] = floats_from_halves(wasm_u32x4_extend_high_u16x8(halves));
}

INLINE void widen_signed(const void *eight, v128_t *lanes) {
    const v128_t wide = wasm_i16x8_load8x8(eight);
    lanes[0] = wasm_i32x4_extend_low_i16x8(wide);
    lanes[1] = wasm_i32x4_extend_high_i16x8(wide);
}

INLINE void widen_unsigned(const void *eight, v128_t *lanes) {
    const v128_t wide = wasm_u16x8_load8x8(eight);
    lanes[0] = wasm_u32x4_extend_low_u16x8(wide);
    lanes[1] = wasm_u32x4_extend_high_u16x8(wide);
}

INLINE float sum_lanes(const v128_t *lanes) {
    const v128_t four = wasm_f32x4_add(lanes[0], lanes[1]), two = wasm_f32x4_add(four, high_pair(four));
    return wasm_f32x4_extract_lane(two, 0) + wasm_f32x4_extract_lane(two, 1);
}

INLINE int32_t sum_of_bytes(v128_t bytes) {
    v128_t sums = wasm_i32x4_extadd_pairwise_i16x8(wasm_i16x8_extadd_pairwise_i8x16(bytes));
    sums = wasm_i32x4_add(sums, high_pair(sums));
    return wasm_i32x4_extract_lane(sums, 0) + wasm_i32x4_extract_lane(sums, 1);
}

/* Stores eight outputs of a column, without padding rows beyond the end of the matrix. */
INLINE void store_rows(const matmul_job *job, int64_t panel, int64_t column, const v128_t *pairs) {
    const int64_t row = panel * PANEL_ROWS, left = job->num_rows - row;
    float *out = job->out + (size_t)column * job->out_stride + (size_t)row;
    v128_t sums[HALVES];
    floats_of_sums(pairs, sums);
    if (left >= PANEL_ROWS) store_floats(out, sums);
    else store_first(out, left, sums);
}

/* Loads what store_rows stored. */
INLINE void load_rows(const matmul_job *job, int64_t panel, int64_t column, v128_t *pairs) {
    const int64_t row = panel * PANEL_ROWS, left = job->num_rows - row;
    const float *out = job->out + (size_t)column * job->out_stride + (size_t)row;
    v128_t sums[HALVES];
    if (left >= PANEL_ROWS) load_floats(out, sums);
    else load_first(out, left, sums);
    factors_of_floats(sums, pairs);
}

/* ------------------------------------------------------------------ float matrices */

#define FLOAT_COLUMNS 2
#if defined(__wasm_relaxed_simd__)
#define FLOAT_PANELS 4
#define HALF_SCALE 0x1p112f /* the values are multiplied by it, in place of the weights */

/* Eight finite 16-bit floats, divided by HALF_SCALE. *largest: their magnitudes. */
INLINE void load_finite_halves(const char *eight, v128_t *lanes, v128_t *largest) {
    const v128_t halves = wasm_v128_load(eight), bits = wasm_i32x4_splat((int32_t)0x8fffe000);
    *largest = wasm_u16x8_max(*largest, wasm_v128_and(halves, wasm_i16x8_splat(0x7fff)));
    lanes[0] = wasm_v128_and(wasm_i32x4_shl(wasm_i32x4_extend_low_i16x8(halves), 13), bits);
    lanes[1] = wasm_v128_and(wasm_i32x4_shl(wasm_i32x4_extend_high_i16x8(halves), 13), bits);
}

/* Whether a magnitude is that of an infinity or NaN. */
INLINE bool any_infinite(v128_t largest) {
    return wasm_v128_any_true(wasm_i16x8_gt(largest, wasm_i16x8_splat(0x7bff)));
}

/* Whether values times HALF_SCALE may be infinite. */
INLINE bool has_large_values(const matmul_job *job) {
    v128_t largest = wasm_i32x4_splat(0);
    for (int64_t c = 0; c < job->num_columns; c++) {
        const float *column = (const void *)((const char *)job->columns + (size_t)c * job->column_bytes);
        for (int64_t k = 0; k < job->row_length; k++)
            largest = wasm_u32x4_max(largest, wasm_f32x4_abs(wasm_v128_load32_splat(column + k)));
    }
    return wasm_v128_any_true(wasm_i32x4_gt(largest, wasm_f32x4_splat(0x1p14f)));
}
#else
#define FLOAT_PANELS 1
#define HALF_SCALE 1.0f

INLINE void load_finite_halves(const char *eight, v128_t *lanes, v128_t *largest) {
    (void)largest;
    load_halves(eight, lanes);
}

INLINE bool any_infinite(v128_t largest) {
    (void)largest;
    return false;
}

INLINE bool has_large_values(const matmul_job *job) {
    (void)job;
    return false;
}
#endif

/* finite: expects no infinity or NaN among 16-bit floats, and divides them by HALF_SCALE. */
INLINE void load_weights(const char *panel, int64_t k, const panel_format format, const bool finite, v128_t *factors,
                         v128_t *largest) {
    v128_t lanes[HALVES];
    if (format == PANEL_I8) {
        widen_signed(panel + PANEL_ROWS * k, lanes);
        factors_of_integers(lanes, factors);
        return;
    }
    if (format == PANEL_F32) load_floats(panel + 4 * PANEL_ROWS * k, lanes);
    if (format == PANEL_F16 && finite) load_finite_halves(panel + 2 * PANEL_ROWS * k, lanes, largest);
    if (format == PANEL_F16 && !finite) load_halves(panel + 2 * PANEL_ROWS * k, lanes);
    if (format == PANEL_BF16) {
        const v128_t zero = wasm_i16x8_splat(0), high = wasm_v128_load(panel + 2 * PANEL_ROWS * k);
        lanes[0] = wasm_i16x8_shuffle(zero, high, 0, 8, 1, 9, 2, 10, 3, 11);
        lanes[1] = wasm_i16x8_shuffle(zero, high, 4, 12, 5, 13, 6, 14, 7, 15);
    }
    factors_of_floats(lanes, factors);
}

typedef struct {
    const char *panels[FLOAT_PANELS];
    const float *columns[FLOAT_COLUMNS];
    v128_t sums[FLOAT_PANELS][FLOAT_COLUMNS][SUMS];
} float_sums;

/* Adds elements first .. last - 1 of the panels' rows. */
INLINE void add_elements(float_sums *tile, int64_t first, int64_t last, const int panels, const int columns,
                         const panel_format format, const bool finite, const bool exactly, v128_t *suspects,
                         v128_t *largest) {
    const float scale = format == PANEL_F16 && finite ? HALF_SCALE : 1.0f;
    for (int64_t k = first; k < last; k++) {
        v128_t values[FLOAT_COLUMNS];
        UNROLL for (int c = 0; c < columns; c++) values[c] = splat(tile->columns[c][k] * scale);
        UNROLL for (int n = 0; n < panels; n++) {
            v128_t weights[SUMS];
            load_weights(tile->panels[n], k, format, finite, weights, largest);
            UNROLL for (int c = 0; c < columns; c++) UNROLL for (int p = 0; p < SUMS; p++) tile->sums[n][c][p] =
                add_product(weights[p], values[c], tile->sums[n][c][p], exactly, format, suspects);
        }
    }
}

/* Stores nothing and returns false if a weight that should be finite is not. */
INLINE bool float_tile(const matmul_job *job, int64_t panel, int64_t column, const int panels, const int columns,
                       const panel_format format, const bool finite) {
    enum { STEP = 4 }; /* elements between two looks for suspects */
    float_sums tile;
    v128_t largest = wasm_i32x4_splat(0);
    UNROLL for (int n = 0; n < panels; n++) tile.panels[n] =
        (const char *)job->panels + (size_t)(panel + n) * job->panel_bytes;
    UNROLL for (int c = 0; c < columns; c++) tile.columns[c] =
        (const void *)((const char *)job->columns + (size_t)(column + c) * job->column_bytes);
    UNROLL for (int n = 0; n < panels; n++) UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int p = 0; p < SUMS; p++) tile.sums[n][c][p] = zero_sum();
    int64_t k = 0;
    for (; k + STEP <= job->row_length; k += STEP) {
        float_sums next = tile;
        v128_t suspects = wasm_i32x4_splat(0);
        UNROLL for (int i = 0; i < STEP; i++)
            add_elements(&next, k + i, k + i + 1, panels, columns, format, finite, false, &suspects, &largest);
        if (any_suspect(suspects))
            add_elements(&tile, k, k + STEP, panels, columns, format, finite, true, &suspects, &largest);
        else tile = next;
    }
    v128_t suspects;
    add_elements(&tile, k, job->row_length, panels, columns, format, finite, true, &suspects, &largest);
    if (finite && any_infinite(largest)) return false;
    UNROLL for (int n = 0; n < panels; n++) UNROLL for (int c = 0; c < columns; c++)
        store_rows(job, panel + n, column + c, tile.sums[n][c]);
    return true;
}

INLINE void any_float_tile(const matmul_job *job, int64_t panel, int64_t column, const int panels, const int columns,
                           const panel_format format) {
    if (float_tile(job, panel, column, panels, columns, format, true)) return;
    for (int n = 0; n < panels; n++)
        for (int c = 0; c < columns; c++) float_tile(job, panel + n, column + c, 1, 1, format, false);
}

INLINE void float_matmul(const matmul_job *job, const panel_format format) {
    const int64_t num_panels = panel_count(job->num_rows);
    const bool large = format == PANEL_F16 && has_large_values(job);
    int64_t panel = 0;
    if (large) {
        for (; panel < num_panels; panel++)
            for (int64_t c = 0; c < job->num_columns; c++) float_tile(job, panel, c, 1, 1, format, false);
    } else if (job->num_columns == 1) {
        for (; panel + FLOAT_PANELS <= num_panels; panel += FLOAT_PANELS)
            any_float_tile(job, panel, 0, FLOAT_PANELS, 1, format);
    } else {
        enum { HALF = (FLOAT_PANELS + 1) / 2 };
        for (; panel + HALF <= num_panels; panel += HALF) {
            int64_t c = 0;
            for (; c + FLOAT_COLUMNS <= job->num_columns; c += FLOAT_COLUMNS)
                any_float_tile(job, panel, c, HALF, FLOAT_COLUMNS, format);
            if (c < job->num_columns) any_float_tile(job, panel, c, HALF, 1, format);
        }
    }
    for (; panel < num_panels; panel++)
        for (int64_t c = 0; c < job->num_columns; c++) any_float_tile(job, panel, c, 1, 1, format);
}

static void matmul_f32(const matmul_job *job) { float_matmul(job, PANEL_F32); }
static void matmul_f16(const matmul_job *job) { float_matmul(job, PANEL_F16); }
static void matmul_bf16(const matmul_job *job) { float_matmul(job, PANEL_BF16); }
static void matmul_i8(const matmul_job *job) { float_matmul(job, PANEL_I8); }

/* ------------------------------------------------------------------ quantized matrices */

#define NUM_QUADS 8
#define MAX_PANELS 2 /* of a tile */
#define MAX_TILE 2   /* columns */
#define MAX_CHUNK 32 /* blocks of a column that are prepared at once */

/* The values of a block as the products need them: a vector repeats a quad. */
typedef struct {
    v128_t first[NUM_QUADS], second[NUM_QUADS];
    int32_t offset; /* where the sum of the block starts */
} block_values;

INLINE void repeat_quads(v128_t quads, v128_t *repeated) {
    repeated[0] = wasm_i32x4_shuffle(quads, quads, 0, 0, 0, 0);
    repeated[1] = wasm_i32x4_shuffle(quads, quads, 1, 1, 1, 1);
    repeated[2] = wasm_i32x4_shuffle(quads, quads, 2, 2, 2, 2);
    repeated[3] = wasm_i32x4_shuffle(quads, quads, 3, 3, 3, 3);
}

/* Those of quads q and q + 4, in registers. */
typedef struct {
    v128_t first[2], second[2];
} quad_values;

INLINE quad_values load_values(const block_values *v, const int q, const bool has_second) {
    quad_values loaded = {0};
    UNROLL for (int part = 0; part < 2; part++) {
        loaded.first[part] = v->first[q + 4 * part];
        OPAQUE(loaded.first[part]);
        if (!has_second) continue;
        loaded.second[part] = v->second[q + 4 * part];
        OPAQUE(loaded.second[part]);
    }
    return loaded;
}

/* Loads the nibbles of quads q and q + 4 for the four rows of half h. */
INLINE v128_t load_nibbles(const uint8_t *codes, const int q, const int h) {
    v128_t nibbles = wasm_v128_load(codes + 32 * q + 16 * h);
    OPAQUE(nibbles);
    return nibbles;
}

/* Quad q of a block's codes for the four rows of half h. All but those of Q8_0 are 0 .. 63. */
INLINE v128_t load_quad(const uint8_t *codes, v128_t nibbles, const int q, const int h, const panel_format format) {
    if (format == PANEL_Q8_0) return wasm_v128_load(codes + 32 * q + 16 * h);
    v128_t code = q >= 4 ? wasm_u16x8_shr(nibbles, 4) : nibbles;
    code = wasm_v128_and(code, wasm_i8x16_splat(15));
    if (format == PANEL_Q5_1 || format == PANEL_Q5_K) {
        const v128_t fifth = wasm_v128_load(codes + 128 + 16 * h); /* bit q goes to bit 4 */
        const v128_t moved = q <= 4 ? wasm_i16x8_shl(fifth, 4 - q) : wasm_u16x8_shr(fifth, q - 4);
        code = wasm_v128_or(code, wasm_v128_and(moved, wasm_i8x16_splat(16)));
    }
    if (format == PANEL_Q6_K) {
        /* Bits 2 (q % 4) and above go to bits 4 and 5. */
        const v128_t high = wasm_v128_load(codes + 128 + 32 * (q / 4) + 16 * h);
        const v128_t moved = q % 4 <= 2 ? wasm_i16x8_shl(high, 4 - 2 * (q % 4)) : wasm_u16x8_shr(high, 2);
        code = wasm_v128_or(code, wasm_v128_and(moved, wasm_i8x16_splat(48)));
    }
    return code;
}

#if defined(__wasm_relaxed_simd__)
#define HAS_SECOND(format) ((format) == PANEL_Q8_0)
#define NUM_SUMS 2 /* Q6_K: of quads 0 .. 3, and 4 .. 7; other formats: one of all */

/* first: the values. Codes that are signed are multiplied by magnitudes instead, and second is -1
 * for negative values: code ^ -1 is -code - 1, so the sum lacks the magnitudes of negative values. */
INLINE void prepare_values(const activation_block *block, const panel_format format, block_values *v) {
    v->offset = format == PANEL_Q4_0 ? -block->eight_sums : 0;
    UNROLL for (int part = 0; part < 2; part++) {
        const v128_t values = wasm_v128_load(block->values + 16 * part);
        if (format != PANEL_Q8_0) {
            repeat_quads(values, v->first + 4 * part);
            continue;
        }
        const v128_t magnitudes = wasm_i8x16_abs(values), negative = wasm_i8x16_lt(values, wasm_i8x16_splat(0));
        repeat_quads(magnitudes, v->first + 4 * part);
        repeat_quads(negative, v->second + 4 * part);
        v->offset += sum_of_bytes(wasm_v128_and(magnitudes, negative));
    }
}

INLINE void start_sums(const block_values *v, v128_t *sums) {
    sums[0] = wasm_v128_load32_splat(&v->offset);
    sums[1] = wasm_i32x4_splat(0);
}

/* Adds the products of quads q and q + 4 of four rows to their sums; q < 4. */
INLINE void multiply_quads(const uint8_t *codes, const int q, const int h, const quad_values *v,
                           const panel_format format, v128_t *sums) {
    const v128_t nibbles = format == PANEL_Q8_0 ? wasm_i32x4_splat(0) : load_nibbles(codes, q, h);
    UNROLL for (int part = 0; part < 2; part++) {
        const v128_t code = load_quad(codes, nibbles, q + 4 * part, h, format), first = v->first[part];
        v128_t *sum = &sums[format == PANEL_Q6_K ? part : 0];
        if (format == PANEL_Q8_0) {
            const v128_t second = v->second[part];
            *sum = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(wasm_v128_xor(code, second), first, *sum);
        } else {
            *sum = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(first, code, *sum);
        }
        OPAQUE(*sum);
    }
}

INLINE void gather_sums(v128_t *sums, const panel_format format) { (void)sums, (void)format; }
#else
#define HAS_SECOND(format) true
#define NUM_SUMS 3 /* Q6_K: as above; other formats: times 1, 16 and 256 */

/* first: the elements 0 and 2 of each quad in 16 bits; second: 1 and 3. */
INLINE void prepare_values(const activation_block *block, const panel_format format, block_values *v) {
    v->offset = format == PANEL_Q4_0 ? -block->eight_sums : 0;
    UNROLL for (int part = 0; part < 2; part++) {
        const v128_t values = wasm_v128_load(block->values + 16 * part);
        repeat_quads(wasm_i16x8_shr(wasm_i16x8_shl(values, 8), 8), v->first + 4 * part);
        repeat_quads(wasm_i16x8_shr(values, 8), v->second + 4 * part);
    }
}

INLINE void start_sums(const block_values *v, v128_t *sums) {
    sums[0] = wasm_v128_load32_splat(&v->offset);
    sums[1] = sums[2] = wasm_i32x4_splat(0);
}

/* The products are sums of two in 32 bits. Bits that are not at the end of their 16 are left where
 * they are: the products are 16 or 256 times as large, and at most 2^27 in all. */
INLINE void add_dots(v128_t code, v128_t values, v128_t *sum) {
    *sum = wasm_i32x4_add(*sum, wasm_i32x4_dot_i16x8(code, values));
}

/* Adds the products of quads q and q + 4 of four rows to their sums; q < 4. */
INLINE void multiply_quads(const uint8_t *codes, const int q, const int h, const quad_values *v,
                           const panel_format format, v128_t *sums) {
    if (format == PANEL_Q4_0 || format == PANEL_Q4_1 || format == PANEL_Q4_K) {
        const v128_t code = load_nibbles(codes, q, h);
        add_dots(wasm_v128_and(code, wasm_i16x8_splat(0x000f)), v->first[0], &sums[0]);
        add_dots(wasm_v128_and(code, wasm_i16x8_splat(0x00f0)), v->first[1], &sums[1]);
        add_dots(wasm_v128_and(code, wasm_i16x8_splat(0x0f00)), v->second[0], &sums[2]);
        add_dots(wasm_u16x8_shr(code, 12), v->second[1], &sums[0]);
        return;
    }
    const v128_t nibbles = format == PANEL_Q8_0 ? wasm_i32x4_splat(0) : load_nibbles(codes, q, h);
    UNROLL for (int part = 0; part < 2; part++) {
        const v128_t code = load_quad(codes, nibbles, q + 4 * part, h, format);
        const v128_t first = v->first[part], second = v->second[part];
        if (format == PANEL_Q8_0) {
            add_dots(wasm_i16x8_shl(code, 8), first, &sums[2]);
            add_dots(wasm_v128_and(code, wasm_i16x8_splat((int16_t)0xff00)), second, &sums[2]);
        } else {
            v128_t *sum = &sums[format == PANEL_Q6_K ? part : 0];
            add_dots(wasm_v128_and(code, wasm_i16x8_splat(0x00ff)), first, sum);
            add_dots(wasm_u16x8_shr(code, 8), second, sum);
        }
    }
}

INLINE void gather_sums(v128_t *sums, const panel_format format) {
    if (format == PANEL_Q6_K) return;
    sums[0] = wasm_i32x4_add(sums[0], wasm_i32x4_shr(sums[2], 8));
    sums[0] = wasm_i32x4_add(sums[0], wasm_i32x4_shr(sums[1], 4));
}
#endif

/* The integer sum of half h of a panel, minus the contribution of the zero point. */
INLINE v128_t finish_sum(v128_t *sums, const uint8_t *header, const int h, const activation_block *block,
                         const panel_format format) {
    gather_sums(sums, format);
    if (format != PANEL_Q6_K) return sums[0];
    const int32_t first = block->sums_of_half, second = 4 * block->eight_sums - first;
    v128_t scales[2][HALVES];
    UNROLL for (int part = 0; part < 2; part++) widen_signed(header + PANEL_ROWS * part, scales[part]);
    return wasm_i32x4_add(wasm_i32x4_mul(wasm_i32x4_sub(sums[0], wasm_i32x4_splat(first)), scales[0][h]),
                          wasm_i32x4_mul(wasm_i32x4_sub(sums[1], wasm_i32x4_splat(second)), scales[1][h]));
}

/* Loads a block's scale, and what its scaled_sum is multiplied with. */
INLINE void load_scales(const uint8_t *header, const uint8_t *super, const panel_format format, v128_t *scale,
                        v128_t *minimum) {
    if (format == PANEL_Q6_K) {
        load_floats(super, scale);
    } else if (format == PANEL_Q4_K || format == PANEL_Q5_K) {
        v128_t scales[HALVES], minima[HALVES];
        load_floats(super, scale);
        load_floats(super + PANEL_SCALES, minimum);
        widen_unsigned(header, scales);
        widen_unsigned(header + PANEL_ROWS, minima);
        UNROLL for (int h = 0; h < HALVES; h++) {
            scale[h] = wasm_f32x4_mul(scale[h], wasm_f32x4_convert_i32x4(scales[h]));
            minimum[h] = wasm_f32x4_neg(wasm_f32x4_mul(minimum[h], wasm_f32x4_convert_i32x4(minima[h])));
        }
    } else {
        load_floats(header, scale);
        if (format == PANEL_Q4_1 || format == PANEL_Q5_1) load_floats(header + PANEL_SCALES, minimum);
    }
}

#define HAS_MINIMUM(format) \
    ((format) == PANEL_Q4_1 || (format) == PANEL_Q5_1 || (format) == PANEL_Q4_K || (format) == PANEL_Q5_K)

/* Adds a block to the sums of a column, in the order of kernels.h. */
INLINE void add_block(const v128_t *whole, const v128_t *scale, const v128_t *minimum, const activation_block *block,
                      const panel_format format, const bool exactly, v128_t *sums, v128_t *suspects) {
    v128_t scales[HALVES], factors[SUMS], integers[SUMS];
    UNROLL for (int h = 0; h < HALVES; h++) scales[h] = wasm_f32x4_mul(scale[h], wasm_f32x4_splat(block->scale));
    factors_of_floats(scales, factors);
    factors_of_integers(whole, integers);
    UNROLL for (int p = 0; p < SUMS; p++) sums[p] =
        add_product(integers[p], factors[p], sums[p], exactly, format, suspects);
    if (!HAS_MINIMUM(format)) return;
    const v128_t scaled_sum = splat(block->scaled_sum);
    factors_of_floats(minimum, factors);
    UNROLL for (int p = 0; p < SUMS; p++) sums[p] =
        add_product(factors[p], scaled_sum, sums[p], exactly, format, suspects);
}

/* The blocks first .. last - 1 of several panels by one column, or of one panel by several columns;
 * values[c][i] are those of block first + i of a column. What is in job->out counts if first > 0. */
INLINE void block_tile(const matmul_job *job, int64_t panel, int64_t column, int64_t first, int64_t last,
                       const block_values (*values)[MAX_CHUNK], const int panels, const int columns,
                       const panel_format format) {
    const panel_layout layout = panel_layout_of(format);
    const int64_t num_blocks = job->row_length / BLOCK_LENGTH;
    const uint8_t *panel_codes = (const uint8_t *)job->panels + (size_t)panel * job->panel_bytes;
    const uint8_t *panel_headers = panel_codes + (size_t)num_blocks * layout.code_bytes;
    const uint8_t *panel_supers = panel_headers + (size_t)num_blocks * layout.header_bytes;
    const activation_block *column_blocks[MAX_TILE];
    v128_t sums[MAX_PANELS][MAX_TILE][SUMS];
    UNROLL for (int c = 0; c < columns; c++) {
        column_blocks[c] = (const void *)((const char *)job->columns + (size_t)(column + c) * job->column_bytes);
        UNROLL for (int n = 0; n < panels; n++) {
            if (first == 0) UNROLL for (int p = 0; p < SUMS; p++) sums[n][c][p] = zero_sum();
            else load_rows(job, panel + n, column + c, sums[n][c]);
        }
    }
    for (int64_t b = first; b < last; b++) {
        const uint8_t *headers = panel_headers + (size_t)b * layout.header_bytes,
                      *supers = panel_supers + (size_t)(b / (SUPER_LENGTH / BLOCK_LENGTH)) * layout.super_bytes;
        const uint8_t *codes[MAX_PANELS];
        const block_values *prepared[MAX_TILE];
        v128_t parts[MAX_PANELS][MAX_TILE][HALVES][NUM_SUMS];
        UNROLL for (int n = 0; n < panels; n++) {
            codes[n] = panel_codes + (size_t)n * job->panel_bytes + (size_t)b * layout.code_bytes;
            OPAQUE(codes[n]);
        }
        UNROLL for (int c = 0; c < columns; c++) {
            prepared[c] = &values[c][b - first];
            OPAQUE(prepared[c]);
        }
        UNROLL for (int n = 0; n < panels; n++) UNROLL for (int c = 0; c < columns; c++)
            UNROLL for (int h = 0; h < HALVES; h++) start_sums(prepared[c], parts[n][c][h]);
        UNROLL for (int q = 0; q < NUM_QUADS / 2; q++) {
            quad_values loaded[MAX_TILE];
            UNROLL for (int c = 0; c < columns; c++) loaded[c] = load_values(prepared[c], q, HAS_SECOND(format));
            UNROLL for (int n = 0; n < panels; n++) UNROLL for (int h = 0; h < HALVES; h++)
                UNROLL for (int c = 0; c < columns; c++)
                    multiply_quads(codes[n], q, h, &loaded[c], format, parts[n][c][h]);
        }
        UNROLL for (int n = 0; n < panels; n++) {
            const uint8_t *header = headers + (size_t)n * job->panel_bytes;
            v128_t scale[HALVES], minimum[HALVES];
            load_scales(header, supers + (size_t)n * job->panel_bytes, format, scale, minimum);
            UNROLL for (int c = 0; c < columns; c++) {
                const activation_block *block = column_blocks[c] + b;
                v128_t whole[HALVES], next[SUMS], suspects = wasm_i32x4_splat(0);
                UNROLL for (int h = 0; h < HALVES; h++) whole[h] = finish_sum(parts[n][c][h], header, h, block, format);
                UNROLL for (int p = 0; p < SUMS; p++) next[p] = sums[n][c][p];
                add_block(whole, scale, minimum, block, format, false, next, &suspects);
                if (__builtin_expect(any_suspect(suspects), 0))
                    add_block(whole, scale, minimum, block, format, true, sums[n][c], &suspects);
                else UNROLL for (int p = 0; p < SUMS; p++) sums[n][c][p] = next[p];
            }
        }
    }
    UNROLL for (int n = 0; n < panels; n++) UNROLL for (int c = 0; c < columns; c++)
        store_rows(job, panel + n, column + c, sums[n][c]);
}

INLINE void block_matmul(const matmul_job *job, const panel_format format) {
    const int64_t num_panels = panel_count(job->num_rows), num_blocks = job->row_length / BLOCK_LENGTH;
    block_values values[MAX_TILE][MAX_CHUNK];
    for (int64_t column = 0; column < job->num_columns; column += MAX_TILE)
        for (int64_t first = 0; first < num_blocks; first += MAX_CHUNK) {
            const int64_t last = first + MAX_CHUNK < num_blocks ? first + MAX_CHUNK : num_blocks;
            const bool alone = column + 1 == job->num_columns;
            for (int c = 0; c < (alone ? 1 : MAX_TILE); c++) {
                const activation_block *blocks =
                    (const void *)((const char *)job->columns + (size_t)(column + c) * job->column_bytes);
                for (int64_t b = first; b < last; b++) prepare_values(blocks + b, format, &values[c][b - first]);
            }
            int64_t panel = 0;
            if (alone)
                for (; panel + MAX_PANELS <= num_panels; panel += MAX_PANELS)
                    block_tile(job, panel, column, first, last, values, MAX_PANELS, 1, format);
            for (; panel < num_panels; panel++)
                if (alone) block_tile(job, panel, column, first, last, values, 1, 1, format);
                else block_tile(job, panel, column, first, last, values, 1, 2, format);
        }
}

static void matmul_q8_0(const matmul_job *job) { block_matmul(job, PANEL_Q8_0); }
static void matmul_q4_0(const matmul_job *job) { block_matmul(job, PANEL_Q4_0); }
static void matmul_q4_1(const matmul_job *job) { block_matmul(job, PANEL_Q4_1); }
static void matmul_q5_1(const matmul_job *job) { block_matmul(job, PANEL_Q5_1); }
static void matmul_q4_k(const matmul_job *job) { block_matmul(job, PANEL_Q4_K); }
static void matmul_q5_k(const matmul_job *job) { block_matmul(job, PANEL_Q5_K); }
static void matmul_q6_k(const matmul_job *job) { block_matmul(job, PANEL_Q6_K); }

/* ------------------------------------------------------------------ vectors */

INLINE uint32_t largest_lane(v128_t lanes) {
    lanes = wasm_u32x4_max(lanes, high_pair(lanes));
    const uint32_t a = wasm_u32x4_extract_lane(lanes, 0), b = wasm_u32x4_extract_lane(lanes, 1);
    return a > b ? a : b;
}

static void quantize(const float *values, int64_t length, activation_block *blocks) {
    for (int64_t b = 0; b < length / BLOCK_LENGTH; b++, values += BLOCK_LENGTH, blocks++) {
        v128_t part[8];
        /* Magnitudes compare as integers: NaN > infinity > finite values. */
        v128_t largest = wasm_i32x4_splat(0);
        UNROLL for (int i = 0; i < 8; i++) {
            part[i] = wasm_v128_load(values + 4 * i);
            largest = wasm_u32x4_max(largest, wasm_v128_and(part[i], wasm_i32x4_splat(0x7fffffff)));
        }
        const uint32_t bits = largest_lane(largest);
        const float magnitude = float_from_bits(bits);
        if (!(magnitude >= 1e-30f && bits < 0x7f800000u)) {
            memset(blocks, 0, sizeof *blocks);
            if (bits >= 0x7f800000u) blocks->scale = blocks->scaled_sum = NAN;
            continue;
        }
        const v128_t inverse = wasm_f32x4_splat(127.0f / magnitude);
        int32_t sums[2];
        UNROLL for (int i = 0; i < 2; i++) {
            v128_t four[4];
            UNROLL for (int j = 0; j < 4; j++) four[j] =
                wasm_i32x4_trunc_sat_f32x4(wasm_f32x4_nearest(wasm_f32x4_mul(part[4 * i + j], inverse)));
            const v128_t bytes = wasm_i8x16_narrow_i16x8(wasm_i16x8_narrow_i32x4(four[0], four[1]),
                                                         wasm_i16x8_narrow_i32x4(four[2], four[3]));
            wasm_v128_store(blocks->values + 16 * i, bytes);
            sums[i] = sum_of_bytes(bytes);
        }
        blocks->scale = magnitude / 127.0f;
        blocks->scaled_sum = blocks->scale * (float)(sums[0] + sums[1]);
        blocks->eight_sums = 8 * (sums[0] + sums[1]);
        blocks->sums_of_half = 32 * sums[0];
    }
}

static void to_halves(const float *values, int64_t length, uint16_t *halves) {
    for (int64_t i = 0; i < length; i++) halves[i] = half_from_float(values[i]);
}

static float sum_of_squares(const float *values, int64_t length) {
    v128_t sums[SUMS], value[HALVES], factors[SUMS], suspects = wasm_i32x4_splat(0);
    UNROLL for (int p = 0; p < SUMS; p++) sums[p] = zero_sum();
    int64_t i = 0;
    for (bool last = false; !last; i += LANES) {
        last = i + LANES > length;
        if (last) load_first(values + i, length - i, value);
        else load_floats(values + i, value);
        factors_of_floats(value, factors);
        UNROLL for (int p = 0; p < SUMS; p++) sums[p] =
            add_product(factors[p], factors[p], sums[p], true, PANEL_F32, &suspects);
    }
    floats_of_sums(sums, value);
    return sum_lanes(value);
}

static float maximum(const float *values, int64_t length) {
    v128_t largest = wasm_f32x4_splat(-INFINITY);
    int64_t i = 0;
    for (; i + 4 <= length; i += 4) largest = wasm_f32x4_pmax(largest, wasm_v128_load(values + i)); /* skips NaN */
    float lanes[4], result = -INFINITY;
    wasm_v128_store(lanes, largest);
    for (int j = 0; j < 4; j++) result = lanes[j] > result ? lanes[j] : result;
    for (; i < length; i++) result = values[i] > result ? values[i] : result;
    return result;
}

INLINE v128_t scaled(v128_t lanes, float factor) { return wasm_f32x4_mul(lanes, wasm_f32x4_splat(factor)); }

/* exponential() of float_math.h in four lanes, with the same roundings. */
INLINE v128_t exponential_lanes(v128_t x) {
    const v128_t lowest = wasm_f32x4_splat(EXP_MIN), round = wasm_f32x4_splat(EXP_ROUND);
    const v128_t clamped = wasm_f32x4_pmin(wasm_f32x4_pmax(x, lowest), wasm_f32x4_splat(EXP_MAX));
    const v128_t shifted = wasm_f32x4_add(scaled(clamped, EXP_LOG2_E), round);
    const v128_t n = wasm_f32x4_sub(shifted, round);
    v128_t r = wasm_f32x4_sub(clamped, scaled(n, EXP_LN2_HIGH));
    r = wasm_f32x4_sub(r, scaled(n, EXP_LN2_LOW));
    v128_t q = wasm_f32x4_add(wasm_f32x4_splat(EXP_Q3), scaled(r, EXP_Q4));
    q = wasm_f32x4_add(wasm_f32x4_splat(EXP_Q2), wasm_f32x4_mul(r, q));
    q = wasm_f32x4_add(wasm_f32x4_splat(EXP_Q1), wasm_f32x4_mul(r, q));
    q = wasm_f32x4_add(wasm_f32x4_splat(EXP_Q0), wasm_f32x4_mul(r, q));
    const v128_t one_and_r = wasm_f32x4_add(wasm_f32x4_splat(1.0f), r);
    const v128_t value = wasm_f32x4_add(one_and_r, wasm_f32x4_mul(wasm_f32x4_mul(r, r), q));
    const v128_t power = wasm_i32x4_shl(wasm_i32x4_add(shifted, wasm_i32x4_splat(127)), 23);
    return wasm_v128_andnot(wasm_f32x4_mul(value, power), wasm_f32x4_lt(x, lowest));
}

INLINE void exponential_of_difference(const v128_t *value, float shift, v128_t *out) {
    UNROLL for (int h = 0; h < HALVES; h++) out[h] =
        exponential_lanes(wasm_f32x4_sub(value[h], wasm_f32x4_splat(shift)));
}

static float exp_and_sum(float *values, int64_t length, float shift) {
    v128_t sums[HALVES] = {wasm_f32x4_splat(0.0f), wasm_f32x4_splat(0.0f)}, value[HALVES];
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        load_floats(values + i, value);
        exponential_of_difference(value, shift, value);
        store_floats(values + i, value);
        UNROLL for (int h = 0; h < HALVES; h++) sums[h] = wasm_f32x4_add(sums[h], value[h]);
    }
    if (i < length) {
        load_first(values + i, length - i, value);
        exponential_of_difference(value, shift, value);
        store_first(values + i, length - i, value);
        load_first(values + i, length - i, value);
        UNROLL for (int h = 0; h < HALVES; h++) sums[h] = wasm_f32x4_add(sums[h], value[h]);
    }
    return sum_lanes(sums);
}

INLINE void swiglu_lanes(v128_t *gate, const v128_t *up) {
    UNROLL for (int h = 0; h < HALVES; h++) {
        const v128_t power = exponential_lanes(wasm_f32x4_neg(gate[h]));
        gate[h] = wasm_f32x4_mul(wasm_f32x4_div(gate[h], wasm_f32x4_add(wasm_f32x4_splat(1.0f), power)), up[h]);
    }
}

static void swiglu(float *gate, const float *up, int64_t length) {
    v128_t gates[HALVES], ups[HALVES];
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        load_floats(gate + i, gates);
        load_floats(up + i, ups);
        swiglu_lanes(gates, ups);
        store_floats(gate + i, gates);
    }
    if (i == length) return;
    load_first(gate + i, length - i, gates);
    load_first(up + i, length - i, ups);
    swiglu_lanes(gates, ups);
    store_first(gate + i, length - i, gates);
}

bool kernels_wasm_are_exact(void) {
    /* Rounded twice, 1 + 2^-11 + 2^-24 loses its last bit. */
    volatile float factor = 1 + 0x1p-12f, sum = -(1 + 0x1p-11f);
    v128_t suspects = wasm_i32x4_splat(0), lanes[HALVES], sums[SUMS];
    UNROLL for (int p = 0; p < SUMS; p++) sums[p] =
        add_product(splat(factor), splat(factor), splat(sum), true, PANEL_F32, &suspects);
    floats_of_sums(sums, lanes);
    return wasm_f32x4_extract_lane(lanes[0], 0) == 0x1p-24f;
}

const kernels kernels_wasm = {
#if defined(__wasm_relaxed_simd__)
    .name = "relaxed",
#else
    .name = "simd128",
#endif
    .matmul = {matmul_f32, matmul_f16, matmul_bf16, matmul_i8, matmul_q8_0, matmul_q4_0, matmul_q4_1, matmul_q5_1,
               matmul_q4_k, matmul_q5_k, matmul_q6_k},
    .quantize = quantize,
    .to_halves = to_halves,
    .sum_of_squares = sum_of_squares,
    .maximum = maximum,
    .exp_and_sum = exp_and_sum,
    .swiglu = swiglu,
};
#endif
