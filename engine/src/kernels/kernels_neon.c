/* kernels_neon.c: the kernels for 64-bit ARM processors (NEON). kernels_dotprod.c compiles this
 * file again for those with the dot product extension (SDOT: ARMv8.2 and later, Apple silicon, most
 * cores since 2018); only multiply_quads differs.
 *
 * The eight rows of a panel are two vectors of four, its halves. A tile is a few panels by a few
 * columns of outputs, whose sums stay in registers. Tile sizes are literals so that the compiler
 * unrolls the loops over them. With one column (decoding), a tile reads panels as fast as memory
 * delivers them; several columns share what was loaded and unpacked for one. */
#include "kernels/float_math.h"
#include "kernels/kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif
#define HALVES 2

INLINE float sum_lanes(const float32x4_t *lanes) {
    const float32x4_t four = vaddq_f32(lanes[0], lanes[1]);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

INLINE void load_floats(const float *values, float32x4_t *lanes) {
    lanes[0] = vld1q_f32(values);
    lanes[1] = vld1q_f32(values + 4);
}

INLINE void store_floats(float *values, const float32x4_t *lanes) {
    vst1q_f32(values, lanes[0]);
    vst1q_f32(values + 4, lanes[1]);
}

/* Loads n < 8 values, then zeros. */
INLINE void load_first(const float *values, int64_t n, float32x4_t *lanes) {
    float padded[LANES] = {0};
    memcpy(padded, values, (size_t)n * sizeof *values);
    load_floats(padded, lanes);
}

INLINE void store_first(float *values, int64_t n, const float32x4_t *lanes) {
    float padded[LANES];
    store_floats(padded, lanes);
    memcpy(values, padded, (size_t)n * sizeof *values);
}

INLINE void load_halves(const void *eight, float32x4_t *lanes) {
    const uint16x8_t halves = vld1q_u16(eight);
    lanes[0] = vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(halves)));
    lanes[1] = vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(halves)));
}

INLINE void widen_signed(const void *eight, int32x4_t *lanes) {
    const int16x8_t wide = vmovl_s8(vld1_s8(eight));
    lanes[0] = vmovl_s16(vget_low_s16(wide));
    lanes[1] = vmovl_s16(vget_high_s16(wide));
}

INLINE void widen_unsigned(const void *eight, uint32x4_t *lanes) {
    const uint16x8_t wide = vmovl_u8(vld1_u8(eight));
    lanes[0] = vmovl_u16(vget_low_u16(wide));
    lanes[1] = vmovl_u16(vget_high_u16(wide));
}

/* Stores eight outputs of a column, without padding rows beyond the end of the matrix. */
INLINE void store_rows(const matmul_job *job, int64_t panel, int64_t column, const float32x4_t *sums) {
    const int64_t row = panel * PANEL_ROWS, left = job->num_rows - row;
    float *out = job->out + (size_t)column * job->out_stride + (size_t)row;
    if (left >= PANEL_ROWS) store_floats(out, sums);
    else store_first(out, left, sums);
}

/* ------------------------------------------------------------------ float matrices */

INLINE void load_weights(const char *panel, int64_t k, const panel_format format, float32x4_t *weights) {
    if (format == PANEL_F32) load_floats((const float *)(const void *)panel + PANEL_ROWS * k, weights);
    if (format == PANEL_F16) load_halves(panel + 2 * PANEL_ROWS * k, weights);
    if (format == PANEL_BF16) {
        const uint16x8_t high = vld1q_u16((const void *)(panel + 2 * PANEL_ROWS * k));
        weights[0] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(high), 16));
        weights[1] = vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(high), 16));
    }
    if (format == PANEL_I8) {
        int32x4_t whole[HALVES];
        widen_signed(panel + PANEL_ROWS * k, whole);
        UNROLL for (int h = 0; h < HALVES; h++) weights[h] = vcvtq_f32_s32(whole[h]);
    }
}

/* sum + weights * values[lane], rounded once. The instruction needs a literal lane. */
INLINE float32x4_t add_product(float32x4_t sum, float32x4_t weights, float32x4_t values, const int lane) {
    switch (lane) {
    case 0: return vfmaq_laneq_f32(sum, weights, values, 0);
    case 1: return vfmaq_laneq_f32(sum, weights, values, 1);
    case 2: return vfmaq_laneq_f32(sum, weights, values, 2);
    default: return vfmaq_laneq_f32(sum, weights, values, 3);
    }
}

/* Adds the products of element k of every row with this lane of the columns' values. */
INLINE void multiply_element(const char *const *panels_at, int64_t k, const float32x4_t *values, const int lane,
                             const int panels, const int columns, const panel_format format,
                             float32x4_t (*sums)[4][HALVES]) {
    UNROLL for (int p = 0; p < panels; p++) {
        float32x4_t weights[HALVES];
        load_weights(panels_at[p], k, format, weights);
        UNROLL for (int c = 0; c < columns; c++) UNROLL for (int h = 0; h < HALVES; h++) sums[p][c][h] =
            add_product(sums[p][c][h], weights[h], values[c], lane);
    }
}

INLINE void float_tile(const matmul_job *job, int64_t panel, int64_t column, const int panels, const int columns,
                       const panel_format format) {
    const char *panels_at[4];
    const float *columns_at[4];
    float32x4_t sums[4][4][HALVES], values[4];
    UNROLL for (int p = 0; p < panels; p++) panels_at[p] =
        (const char *)job->panels + (size_t)(panel + p) * job->panel_bytes;
    UNROLL for (int c = 0; c < columns; c++) columns_at[c] =
        (const void *)((const char *)job->columns + (size_t)(column + c) * job->column_bytes);
    UNROLL for (int p = 0; p < panels; p++) UNROLL for (int c = 0; c < columns; c++)
        UNROLL for (int h = 0; h < HALVES; h++) sums[p][c][h] = vdupq_n_f32(0.0f);
    int64_t k = 0;
    for (; k + 4 <= job->row_length; k += 4) {
        UNROLL for (int c = 0; c < columns; c++) values[c] = vld1q_f32(columns_at[c] + k);
        UNROLL for (int lane = 0; lane < 4; lane++)
            multiply_element(panels_at, k + lane, values, lane, panels, columns, format, sums);
    }
    for (; k < job->row_length; k++) {
        UNROLL for (int c = 0; c < columns; c++) values[c] = vld1q_dup_f32(columns_at[c] + k);
        multiply_element(panels_at, k, values, 0, panels, columns, format, sums);
    }
    UNROLL for (int p = 0; p < panels; p++) UNROLL for (int c = 0; c < columns; c++)
        store_rows(job, panel + p, column + c, sums[p][c]);
}

/* Tiles of four columns, then one of the rest. */
INLINE void float_tiles(const matmul_job *job, int64_t panel, const int panels, const panel_format format) {
    int64_t column = 0;
    for (; column + 4 <= job->num_columns; column += 4) float_tile(job, panel, column, panels, 4, format);
    switch (job->num_columns - column) {
    case 3: float_tile(job, panel, column, panels, 3, format); break;
    case 2: float_tile(job, panel, column, panels, 2, format); break;
    case 1: float_tile(job, panel, column, panels, 1, format); break;
    default: break;
    }
}

INLINE void float_matmul(const matmul_job *job, const panel_format format) {
    const int64_t num_panels = (job->num_rows + PANEL_ROWS - 1) / PANEL_ROWS;
    int64_t panel = 0;
    if (job->num_columns == 1)
        for (; panel + 4 <= num_panels; panel += 4) float_tile(job, panel, 0, 4, 1, format);
    for (; panel + 2 <= num_panels; panel += 2) float_tiles(job, panel, 2, format);
    if (panel < num_panels) float_tiles(job, panel, 1, format);
}

static void matmul_f32(const matmul_job *job) { float_matmul(job, PANEL_F32); }
static void matmul_f16(const matmul_job *job) { float_matmul(job, PANEL_F16); }
static void matmul_bf16(const matmul_job *job) { float_matmul(job, PANEL_BF16); }
static void matmul_i8(const matmul_job *job) { float_matmul(job, PANEL_I8); }

/* ------------------------------------------------------------------ quantized matrices */

INLINE uint8x16_t shift_left(uint8x16_t bytes, const int bits) { return bytes << vdupq_n_u8((uint8_t)bits); }
INLINE uint8x16_t shift_right(uint8x16_t bytes, const int bits) { return bytes >> vdupq_n_u8((uint8_t)bits); }

/* Loads quad q of a block's codes for the four rows of half h. Q8_0 codes are signed; the others
 * start at 0 and are valid as signed bytes too. */
INLINE int8x16_t load_quad(const uint8_t *codes, const int q, const int h, const panel_format format) {
    if (format == PANEL_Q8_0) return vreinterpretq_s8_u8(vld1q_u8(codes + 32 * q + 16 * h));
    uint8x16_t code = vld1q_u8(codes + 32 * (q % 4) + 16 * h);
    code = q < 4 ? vandq_u8(code, vdupq_n_u8(15)) : shift_right(code, 4);
    if (format == PANEL_Q5_1 || format == PANEL_Q5_K) {
        const uint8x16_t fifth = vld1q_u8(codes + 128 + 16 * h); /* bit q goes to bit 4 */
        const uint8x16_t moved = q <= 4 ? shift_left(fifth, 4 - q) : shift_right(fifth, q - 4);
        code = vorrq_u8(code, vandq_u8(moved, vdupq_n_u8(16)));
    }
    if (format == PANEL_Q6_K) {
        /* Bits 2 (q % 4) and above go to bits 4 and 5. */
        const uint8x16_t high = vld1q_u8(codes + 128 + 32 * (q / 4) + 16 * h);
        const uint8x16_t moved = q % 4 <= 2 ? shift_left(high, 4 - 2 * (q % 4)) : shift_right(high, 2);
        code = vorrq_u8(code, vandq_u8(moved, vdupq_n_u8(48)));
    }
    return vreinterpretq_s8_u8(code);
}

#if defined(KERNELS_DOTPROD)
#define BLOCK_COLUMNS 4

INLINE int32x4_t add_dot(int32x4_t sum, int8x16_t code, int8x16_t values, const int lane) {
    switch (lane) {
    case 0: return vdotq_laneq_s32(sum, code, values, 0);
    case 1: return vdotq_laneq_s32(sum, code, values, 1);
    case 2: return vdotq_laneq_s32(sum, code, values, 2);
    default: return vdotq_laneq_s32(sum, code, values, 3);
    }
}

/* whole[c] += sum of code * value over the four quads of part 0 or 1 of a block, for each column,
 * exact. */
INLINE void multiply_quads(const uint8_t *codes, const int part, const int8x16_t *values, const int columns,
                           const panel_format format, int32x4_t (*whole)[HALVES]) {
    UNROLL for (int lane = 0; lane < 4; lane++) UNROLL for (int h = 0; h < HALVES; h++) {
        const int8x16_t code = load_quad(codes, 4 * part + lane, h, format);
        UNROLL for (int c = 0; c < columns; c++) whole[c][h] = add_dot(whole[c][h], code, values[c], lane);
    }
}
#else
#define BLOCK_COLUMNS 2

INLINE int8x16_t broadcast_quad(int8x16_t values, const int lane) {
    const int32x4_t quads = vreinterpretq_s32_s8(values);
    return vreinterpretq_s8_s32(vdupq_n_s32(quads[lane]));
}

/* whole[c] += sum of code * value over the four quads of part 0 or 1 of a block, for each column,
 * exact. The products of four quads can be added in 16 bits: 4 * 63 * 127 = 32,004. Q8_0: of two,
 * 2 * 128 * 127 = 32,512. */
INLINE void multiply_quads(const uint8_t *codes, const int part, const int8x16_t *values, const int columns,
                           const panel_format format, int32x4_t (*whole)[HALVES]) {
    const int quads_per_sum = format == PANEL_Q8_0 ? 2 : 4;
    int16x8_t products[BLOCK_COLUMNS][HALVES][2]; /* for two rows each */
    UNROLL for (int lane = 0; lane < 4; lane++) UNROLL for (int h = 0; h < HALVES; h++) {
        const int8x16_t code = load_quad(codes, 4 * part + lane, h, format);
        UNROLL for (int c = 0; c < columns; c++) {
            const int8x16_t value = broadcast_quad(values[c], lane);
            int16x8_t *two = products[c][h];
            if (lane % quads_per_sum == 0) {
                two[0] = vmull_s8(vget_low_s8(code), vget_low_s8(value));
                two[1] = vmull_high_s8(code, value);
            } else {
                two[0] = vmlal_s8(two[0], vget_low_s8(code), vget_low_s8(value));
                two[1] = vmlal_high_s8(two[1], code, value);
            }
            if ((lane + 1) % quads_per_sum == 0)
                whole[c][h] = vaddq_s32(whole[c][h], vpaddq_s32(vpaddlq_s16(two[0]), vpaddlq_s16(two[1])));
        }
    }
}
#endif

/* Adds part 0 or 1 of a block to whole[c]. */
INLINE void sum_part(const uint8_t *codes, const activation_block *const *blocks, const int part, const int columns,
                     const panel_format format, int32x4_t (*whole)[HALVES]) {
    int8x16_t values[4];
    UNROLL for (int c = 0; c < columns; c++) values[c] = vld1q_s8(blocks[c]->values + 16 * part);
    multiply_quads(codes, part, values, columns, format, whole);
}

/* The integer sum of each column, minus the contribution of the zero point. */
INLINE void sum_block(const uint8_t *codes, const uint8_t *header, const activation_block *const *blocks,
                      const int columns, const panel_format format, int32x4_t (*whole)[HALVES]) {
    UNROLL for (int c = 0; c < columns; c++) UNROLL for (int h = 0; h < HALVES; h++) {
        const int32_t zero = format == PANEL_Q6_K   ? blocks[c]->sums_of_half
                             : format == PANEL_Q4_0 ? blocks[c]->eight_sums
                                                    : 0;
        whole[c][h] = vdupq_n_s32(-zero);
    }
    sum_part(codes, blocks, 0, columns, format, whole);
    if (format != PANEL_Q6_K) {
        sum_part(codes, blocks, 1, columns, format, whole);
        return;
    }
    int32x4_t second[4][HALVES], scales[2][HALVES];
    UNROLL for (int c = 0; c < columns; c++) UNROLL for (int h = 0; h < HALVES; h++) second[c][h] =
        vdupq_n_s32(blocks[c]->sums_of_half - 4 * blocks[c]->eight_sums);
    sum_part(codes, blocks, 1, columns, format, second);
    UNROLL for (int part = 0; part < 2; part++) widen_signed(header + PANEL_ROWS * part, scales[part]);
    UNROLL for (int c = 0; c < columns; c++) UNROLL for (int h = 0; h < HALVES; h++) whole[c][h] =
        vmlaq_s32(vmulq_s32(whole[c][h], scales[0][h]), second[c][h], scales[1][h]);
}

/* Loads a block's scale, and its minimum, which is added (K formats: subtracted). */
INLINE void load_scales(const uint8_t *header, const uint8_t *super, const panel_format format, float32x4_t *scale,
                        float32x4_t *minimum) {
    if (format == PANEL_Q6_K) {
        load_halves(super, scale);
    } else if (format == PANEL_Q4_K || format == PANEL_Q5_K) {
        uint32x4_t scales[HALVES], minima[HALVES];
        load_halves(super, scale);
        load_halves(super + 16, minimum);
        widen_unsigned(header, scales);
        widen_unsigned(header + PANEL_ROWS, minima);
        UNROLL for (int h = 0; h < HALVES; h++) {
            scale[h] = vmulq_f32(scale[h], vcvtq_f32_u32(scales[h]));
            minimum[h] = vmulq_f32(minimum[h], vcvtq_f32_u32(minima[h]));
        }
    } else {
        load_halves(header, scale);
        if (format == PANEL_Q4_1 || format == PANEL_Q5_1) load_halves(header + 16, minimum);
    }
}

/* Adds a block to sums[c], in the order of kernels.h. */
INLINE void add_block(const uint8_t *codes, const uint8_t *header, const uint8_t *super,
                      const activation_block *const *blocks, const int columns, const panel_format format,
                      float32x4_t (*sums)[HALVES]) {
    int32x4_t whole[4][HALVES];
    float32x4_t scale[HALVES], minimum[HALVES];
    sum_block(codes, header, blocks, columns, format, whole);
    load_scales(header, super, format, scale, minimum);
    UNROLL for (int c = 0; c < columns; c++) UNROLL for (int h = 0; h < HALVES; h++) {
        const float32x4_t scales = vmulq_n_f32(scale[h], blocks[c]->scale);
        sums[c][h] = vfmaq_f32(sums[c][h], vcvtq_f32_s32(whole[c][h]), scales);
        if (format == PANEL_Q4_1 || format == PANEL_Q5_1)
            sums[c][h] = vfmaq_n_f32(sums[c][h], minimum[h], blocks[c]->scaled_sum);
        if (format == PANEL_Q4_K || format == PANEL_Q5_K)
            sums[c][h] = vfmsq_n_f32(sums[c][h], minimum[h], blocks[c]->scaled_sum);
    }
}

INLINE void block_tile(const matmul_job *job, int64_t panel, int64_t column, const int columns,
                       const panel_format format) {
    const panel_layout layout = panel_layout_of(format);
    const int64_t num_blocks = job->row_length / BLOCK_LENGTH;
    const uint8_t *codes = (const uint8_t *)job->panels + (size_t)panel * job->panel_bytes;
    const uint8_t *headers = codes + (size_t)num_blocks * layout.code_bytes;
    const uint8_t *supers = headers + (size_t)num_blocks * layout.header_bytes;
    const activation_block *blocks[4];
    float32x4_t sums[4][HALVES];
    UNROLL for (int c = 0; c < columns; c++) {
        blocks[c] = (const void *)((const char *)job->columns + (size_t)(column + c) * job->column_bytes);
        UNROLL for (int h = 0; h < HALVES; h++) sums[c][h] = vdupq_n_f32(0.0f);
    }
    for (int64_t b = 0; b < num_blocks; b++) {
        add_block(codes, headers, supers, blocks, columns, format, sums);
        codes += layout.code_bytes;
        headers += layout.header_bytes;
        if (layout.super_bytes > 0 && b % (SUPER_LENGTH / BLOCK_LENGTH) == SUPER_LENGTH / BLOCK_LENGTH - 1)
            supers += layout.super_bytes;
        UNROLL for (int c = 0; c < columns; c++) blocks[c]++;
    }
    UNROLL for (int c = 0; c < columns; c++) store_rows(job, panel, column + c, sums[c]);
}

INLINE void block_matmul(const matmul_job *job, const panel_format format) {
    const int64_t num_panels = (job->num_rows + PANEL_ROWS - 1) / PANEL_ROWS;
    for (int64_t panel = 0; panel < num_panels; panel++) {
        int64_t column = 0;
        for (; column + BLOCK_COLUMNS <= job->num_columns; column += BLOCK_COLUMNS)
            block_tile(job, panel, column, BLOCK_COLUMNS, format);
        const int64_t left = job->num_columns - column;
        if (BLOCK_COLUMNS > 2 && left == 3) block_tile(job, panel, column, 3, format);
        else if (BLOCK_COLUMNS > 2 && left == 2) block_tile(job, panel, column, 2, format);
        else if (left == 1) block_tile(job, panel, column, 1, format);
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

static void quantize(const float *values, int64_t length, activation_block *blocks) {
    const uint32x4_t no_sign = vdupq_n_u32(0x7fffffffu);
    for (int64_t b = 0; b < length / BLOCK_LENGTH; b++, values += BLOCK_LENGTH, blocks++) {
        float32x4_t part[8];
        /* Magnitudes compare as integers: NaN > infinity > finite values. */
        uint32x4_t largest = vdupq_n_u32(0);
        UNROLL for (int i = 0; i < 8; i++) {
            part[i] = vld1q_f32(values + 4 * i);
            largest = vmaxq_u32(largest, vandq_u32(vreinterpretq_u32_f32(part[i]), no_sign));
        }
        const uint32_t bits = vmaxvq_u32(largest);
        const float magnitude = float_from_bits(bits);
        if (!(magnitude >= 1e-30f && bits < 0x7f800000u)) {
            memset(blocks, 0, sizeof *blocks);
            if (bits >= 0x7f800000u) blocks->scale = blocks->scaled_sum = NAN;
            continue;
        }
        const float inverse = 127.0f / magnitude;
        int32_t sums[2];
        UNROLL for (int i = 0; i < 2; i++) {
            int16x4_t four[4];
            UNROLL for (int j = 0; j < 4; j++) four[j] =
                vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(part[4 * i + j], inverse)));
            const int8x16_t bytes =
                vcombine_s8(vmovn_s16(vcombine_s16(four[0], four[1])), vmovn_s16(vcombine_s16(four[2], four[3])));
            vst1q_s8(blocks->values + 16 * i, bytes);
            sums[i] = vaddlvq_s8(bytes);
        }
        blocks->scale = magnitude / 127.0f;
        blocks->scaled_sum = blocks->scale * (float)(sums[0] + sums[1]);
        blocks->eight_sums = 8 * (sums[0] + sums[1]);
        blocks->sums_of_half = 32 * sums[0];
    }
}

static void to_halves(const float *values, int64_t length, uint16_t *halves) {
    int64_t i = 0;
    for (; i + 4 <= length; i += 4) vst1_u16(halves + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(values + i))));
    for (; i < length; i++) halves[i] = half_from_float(values[i]);
}

static float sum_of_squares(const float *values, int64_t length) {
    float32x4_t sums[HALVES] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)}, value[HALVES];
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        load_floats(values + i, value);
        UNROLL for (int h = 0; h < HALVES; h++) sums[h] = vfmaq_f32(sums[h], value[h], value[h]);
    }
    load_first(values + i, length - i, value);
    UNROLL for (int h = 0; h < HALVES; h++) sums[h] = vfmaq_f32(sums[h], value[h], value[h]);
    return sum_lanes(sums);
}

static float maximum(const float *values, int64_t length) {
    float32x4_t largest = vdupq_n_f32(-INFINITY);
    int64_t i = 0;
    for (; i + 4 <= length; i += 4) {
        const float32x4_t value = vld1q_f32(values + i);
        largest = vbslq_f32(vcgtq_f32(value, largest), value, largest); /* false for NaN */
    }
    float result = vmaxvq_f32(largest);
    for (; i < length; i++) result = values[i] > result ? values[i] : result;
    return result;
}

/* exponential() of float_math.h in four lanes, with the same roundings. */
INLINE float32x4_t exponential_lanes(float32x4_t x) {
    const float32x4_t clamped = vminq_f32(vdupq_n_f32(EXP_MAX), vmaxq_f32(vdupq_n_f32(EXP_MIN), x));
    const float32x4_t round = vdupq_n_f32(EXP_ROUND);
    const float32x4_t shifted = vaddq_f32(vmulq_n_f32(clamped, EXP_LOG2_E), round);
    const float32x4_t n = vsubq_f32(shifted, round);
    float32x4_t r = vsubq_f32(clamped, vmulq_n_f32(n, EXP_LN2_HIGH));
    r = vsubq_f32(r, vmulq_n_f32(n, EXP_LN2_LOW));
    float32x4_t q = vaddq_f32(vdupq_n_f32(EXP_Q3), vmulq_n_f32(r, EXP_Q4));
    q = vaddq_f32(vdupq_n_f32(EXP_Q2), vmulq_f32(r, q));
    q = vaddq_f32(vdupq_n_f32(EXP_Q1), vmulq_f32(r, q));
    q = vaddq_f32(vdupq_n_f32(EXP_Q0), vmulq_f32(r, q));
    const float32x4_t one_and_r = vaddq_f32(vdupq_n_f32(1.0f), r);
    const float32x4_t value = vaddq_f32(one_and_r, vmulq_f32(vmulq_f32(r, r), q));
    const uint32x4_t power = vshlq_n_u32(vaddq_u32(vreinterpretq_u32_f32(shifted), vdupq_n_u32(127)), 23);
    const uint32x4_t result = vreinterpretq_u32_f32(vmulq_f32(value, vreinterpretq_f32_u32(power)));
    return vreinterpretq_f32_u32(vbicq_u32(result, vcltq_f32(x, vdupq_n_f32(EXP_MIN))));
}

INLINE void exponential_of_difference(const float32x4_t *value, float shift, float32x4_t *out) {
    UNROLL for (int h = 0; h < HALVES; h++) out[h] = exponential_lanes(vsubq_f32(value[h], vdupq_n_f32(shift)));
}

static float exp_and_sum(float *values, int64_t length, float shift) {
    float32x4_t sums[HALVES] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)}, value[HALVES];
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        load_floats(values + i, value);
        exponential_of_difference(value, shift, value);
        store_floats(values + i, value);
        UNROLL for (int h = 0; h < HALVES; h++) sums[h] = vaddq_f32(sums[h], value[h]);
    }
    if (i < length) {
        load_first(values + i, length - i, value);
        exponential_of_difference(value, shift, value);
        store_first(values + i, length - i, value);
        load_first(values + i, length - i, value);
        UNROLL for (int h = 0; h < HALVES; h++) sums[h] = vaddq_f32(sums[h], value[h]);
    }
    return sum_lanes(sums);
}

INLINE void swiglu_lanes(float32x4_t *gate, const float32x4_t *up) {
    UNROLL for (int h = 0; h < HALVES; h++) {
        const float32x4_t power = exponential_lanes(vnegq_f32(gate[h]));
        gate[h] = vmulq_f32(vdivq_f32(gate[h], vaddq_f32(vdupq_n_f32(1.0f), power)), up[h]);
    }
}

static void swiglu(float *gate, const float *up, int64_t length) {
    float32x4_t gates[HALVES], ups[HALVES];
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

#if defined(KERNELS_DOTPROD)
const kernels kernels_dotprod = {
    .name = "dotprod",
#else
const kernels kernels_neon = {
    .name = "neon",
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
