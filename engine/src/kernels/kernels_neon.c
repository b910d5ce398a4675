/* kernels_neon.c: the kernels for 64-bit ARM processors (NEON). kernels_dotprod.c compiles this
 * file again for those with the dot product extension (SDOT: ARMv8.2 and later, Apple silicon, most
 * cores since 2018); only the products of quads differ. kernels_i8mm.c builds on the latter.
 *
 * The eight rows of a panel are two vectors of four, its halves. */
#include "kernels/kernels_neon.h"

#include "kernels/float_math.h"
#include "kernels/inline.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>

#define HALVES 2
#define VECTOR_PANELS 1
#define VECTOR_ROWS 8
#define VALUES 4 /* of which an instruction takes one */
#define FLOAT_STREAMS 4
#define FLOAT_VECTORS 2
#define FLOAT_COLUMNS 4
#define BLOCK_STREAMS 1
#define BLOCK_VECTORS 1
#define MAX_VECTORS 4
#define BYTES_AHEAD 0
#define EACH_HALF(h) UNROLL for (int h = 0; h < HALVES; h++)

typedef struct {
    float32x4_t half[HALVES];
} floats;
typedef struct {
    int32x4_t half[HALVES];
} integers;
typedef struct {
    uint8x16_t half[HALVES];
} codes;
typedef codes quad;
typedef float32x4_t values;
typedef int8x16_t quads;
typedef struct {
    const uint8_t *at[VECTOR_PANELS];
} panels;

/* ------------------------------------------------------------------ floats */

INLINE floats load_floats(const float *at) { return (floats){{vld1q_f32(at), vld1q_f32(at + 4)}}; }

INLINE void store_floats(float *out, floats a) {
    vst1q_f32(out, a.half[0]);
    vst1q_f32(out + 4, a.half[1]);
}

/* Loads n < 8 values, then zeros. */
INLINE floats load_first(const float *at, int64_t n) {
    float padded[LANES] = {0};
    memcpy(padded, at, (size_t)n * sizeof *at);
    return load_floats(padded);
}

INLINE void store_first(float *out, int64_t n, floats a) {
    float padded[LANES];
    store_floats(padded, a);
    memcpy(out, padded, (size_t)n * sizeof *out);
}

INLINE floats all_floats(float value) { return (floats){{vdupq_n_f32(value), vdupq_n_f32(value)}}; }

INLINE floats multiply(floats a, floats b) {
    return (floats){{vmulq_f32(a.half[0], b.half[0]), vmulq_f32(a.half[1], b.half[1])}};
}

INLINE floats subtract(floats a, floats b) {
    return (floats){{vsubq_f32(a.half[0], b.half[0]), vsubq_f32(a.half[1], b.half[1])}};
}

INLINE floats multiply_add(floats a, floats b, floats c) {
    return (floats){{vfmaq_f32(c.half[0], a.half[0], b.half[0]), vfmaq_f32(c.half[1], a.half[1], b.half[1])}};
}

INLINE floats to_floats(integers a) { return (floats){{vcvtq_f32_s32(a.half[0]), vcvtq_f32_s32(a.half[1])}}; }

INLINE integers add_integers(integers a, integers b) {
    return (integers){{vaddq_s32(a.half[0], b.half[0]), vaddq_s32(a.half[1], b.half[1])}};
}

INLINE integers multiply_integers(integers a, integers b) {
    return (integers){{vmulq_s32(a.half[0], b.half[0]), vmulq_s32(a.half[1], b.half[1])}};
}

INLINE floats load_scales(panels p, size_t offset) {
    const uint16x8_t halves = vld1q_u16((const void *)(p.at[0] + offset));
    return (floats){{vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(halves))),
                     vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(halves)))}};
}

INLINE integers widen(panels p, size_t offset, const bool is_signed) {
    const uint8x8_t bytes = vld1_u8(p.at[0] + offset);
    const int16x8_t wide = is_signed ? vmovl_s8(vreinterpret_s8_u8(bytes)) : vreinterpretq_s16_u16(vmovl_u8(bytes));
    return (integers){{vmovl_s16(vget_low_s16(wide)), vmovl_s16(vget_high_s16(wide))}};
}

INLINE floats load_weights(panels p, int64_t k, const panel_format format) {
    const uint8_t *at = p.at[0] + panel_layout_of(format).element_bytes * (size_t)k;
    if (format == PANEL_F32) return load_floats((const void *)at);
    if (format == PANEL_F16) return load_scales(p, 16 * (size_t)k);
    if (format == PANEL_I8) return to_floats(widen(p, 8 * (size_t)k, true));
    const uint16x8_t high = vld1q_u16((const void *)at);
    return (floats){{vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(high), 16)),
                     vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(high), 16))}};
}

INLINE values load_values(const float *at) { return vld1q_f32(at); }
INLINE values load_last_value(const float *at) { return vld1q_dup_f32(at); }

/* sum + weights * value[lane], rounded once. The instruction needs a literal lane. */
INLINE floats add_product(floats sum, floats weights, values value, const int lane) {
    EACH_HALF(h) switch (lane) {
    case 0: sum.half[h] = vfmaq_laneq_f32(sum.half[h], weights.half[h], value, 0); break;
    case 1: sum.half[h] = vfmaq_laneq_f32(sum.half[h], weights.half[h], value, 1); break;
    case 2: sum.half[h] = vfmaq_laneq_f32(sum.half[h], weights.half[h], value, 2); break;
    default: sum.half[h] = vfmaq_laneq_f32(sum.half[h], weights.half[h], value, 3);
    }
    return sum;
}

/* ------------------------------------------------------------------ codes */

INLINE codes load_codes(panels p, size_t offset) {
    return (codes){{vld1q_u8(p.at[0] + offset), vld1q_u8(p.at[0] + offset + 16)}};
}

INLINE codes mask_codes(codes a, const int mask) {
    EACH_HALF(h) a.half[h] = vandq_u8(a.half[h], vdupq_n_u8((uint8_t)mask));
    return a;
}

INLINE codes or_codes(codes a, codes b) {
    EACH_HALF(h) a.half[h] = vorrq_u8(a.half[h], b.half[h]);
    return a;
}

/* To the left, or to the right if bits < 0. */
INLINE codes shift_codes(codes a, const int bits) {
    EACH_HALF(h)
    a.half[h] = bits >= 0 ? a.half[h] << vdupq_n_u8((uint8_t)bits) : a.half[h] >> vdupq_n_u8((uint8_t)-bits);
    return a;
}

/* All codes are valid as signed bytes. */
INLINE quad to_quad(codes code, const panel_format format) {
    (void)format;
    return code;
}

INLINE quads load_quads(const activation_block *block, const int half) { return vld1q_s8(block->values + 16 * half); }

#if defined(KERNELS_DOTPROD)
#define BLOCK_COLUMNS 4

typedef struct {
    integers whole;
} products;

INLINE void multiply_quad(products *sum, quad code, quads value, const int q, const panel_format format) {
    (void)format;
    EACH_HALF(h) {
        const int8x16_t bytes = vreinterpretq_s8_u8(code.half[h]);
        int32x4_t *whole = &sum->whole.half[h];
        switch (q % 4) {
        case 0: *whole = vdotq_laneq_s32(*whole, bytes, value, 0); break;
        case 1: *whole = vdotq_laneq_s32(*whole, bytes, value, 1); break;
        case 2: *whole = vdotq_laneq_s32(*whole, bytes, value, 2); break;
        default: *whole = vdotq_laneq_s32(*whole, bytes, value, 3);
        }
    }
}
#else
#define BLOCK_COLUMNS 2

typedef struct {
    int16x8_t pairs[HALVES][2]; /* of two rows each */
    integers whole;
} products;

/* The products of four quads can be added in 16 bits: 4 * 63 * 127 = 32,004. Q8_0: of two,
 * 2 * 128 * 127 = 32,512. */
INLINE void multiply_quad(products *sum, quad code, quads value, const int q, const panel_format format) {
    const int quads_per_sum = format == PANEL_Q8_0 ? 2 : 4;
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(vreinterpretq_s32_s8(value)[q % 4]));
    EACH_HALF(h) {
        const int8x16_t bytes = vreinterpretq_s8_u8(code.half[h]);
        int16x8_t *pairs = sum->pairs[h];
        if (q % quads_per_sum == 0) {
            pairs[0] = vmull_s8(vget_low_s8(bytes), vget_low_s8(four));
            pairs[1] = vmull_high_s8(bytes, four);
        } else {
            pairs[0] = vmlal_s8(pairs[0], vget_low_s8(bytes), vget_low_s8(four));
            pairs[1] = vmlal_high_s8(pairs[1], bytes, four);
        }
        if ((q + 1) % quads_per_sum == 0)
            sum->whole.half[h] =
                vaddq_s32(sum->whole.half[h], vpaddq_s32(vpaddlq_s16(pairs[0]), vpaddlq_s16(pairs[1])));
    }
}
#endif

INLINE void start_products(products *sum, int32_t start, const activation_block *block, const panel_format format) {
    (void)block, (void)format;
    EACH_HALF(h) sum->whole.half[h] = vdupq_n_s32(start);
}

#define OWN_FLOAT_MATMUL
#include "kernels/tiles.h"

#if !defined(KERNELS_DOTPROD) /* what the tables share */

void neon_matmul_f32(const matmul_job *job) { float_matmul(job, PANEL_F32); }
void neon_matmul_f16(const matmul_job *job) { float_matmul(job, PANEL_F16); }
void neon_matmul_bf16(const matmul_job *job) { float_matmul(job, PANEL_BF16); }
void neon_matmul_i8(const matmul_job *job) { float_matmul(job, PANEL_I8); }

/* ------------------------------------------------------------------ vectors */

INLINE float sum_lanes(floats lanes) {
    const float32x4_t four = vaddq_f32(lanes.half[0], lanes.half[1]);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

void neon_quantize(const float *values, int64_t length, activation_block *blocks) {
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

void neon_to_halves(const float *values, int64_t length, uint16_t *halves) {
    int64_t i = 0;
    for (; i + 4 <= length; i += 4) vst1_u16(halves + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(values + i))));
    for (; i < length; i++) halves[i] = half_from_float(values[i]);
}

float neon_sum_of_squares(const float *values, int64_t length) {
    floats sums = all_floats(0.0f);
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        const floats value = load_floats(values + i);
        sums = multiply_add(value, value, sums);
    }
    const floats value = load_first(values + i, length - i);
    return sum_lanes(multiply_add(value, value, sums));
}

float neon_maximum(const float *values, int64_t length) {
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

INLINE floats exponential_of_difference(floats value, float shift) {
    EACH_HALF(h) value.half[h] = exponential_lanes(vsubq_f32(value.half[h], vdupq_n_f32(shift)));
    return value;
}

INLINE floats add_floats(floats a, floats b) {
    return (floats){{vaddq_f32(a.half[0], b.half[0]), vaddq_f32(a.half[1], b.half[1])}};
}

float neon_exp_and_sum(float *values, int64_t length, float shift) {
    floats sums = all_floats(0.0f);
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        const floats value = exponential_of_difference(load_floats(values + i), shift);
        store_floats(values + i, value);
        sums = add_floats(sums, value);
    }
    if (i < length) {
        store_first(values + i, length - i, exponential_of_difference(load_first(values + i, length - i), shift));
        sums = add_floats(sums, load_first(values + i, length - i));
    }
    return sum_lanes(sums);
}

INLINE floats swiglu_lanes(floats gate, floats up) {
    EACH_HALF(h) {
        const float32x4_t power = exponential_lanes(vnegq_f32(gate.half[h]));
        gate.half[h] = vmulq_f32(vdivq_f32(gate.half[h], vaddq_f32(vdupq_n_f32(1.0f), power)), up.half[h]);
    }
    return gate;
}

void neon_swiglu(float *gate, const float *up, int64_t length) {
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES)
        store_floats(gate + i, swiglu_lanes(load_floats(gate + i), load_floats(up + i)));
    if (i == length) return;
    store_first(gate + i, length - i, swiglu_lanes(load_first(gate + i, length - i), load_first(up + i, length - i)));
}
#endif

/* The table of the file that is compiled, with its own functions for quantized matrices. */
#define NEON_KERNELS(its_name)                                                                                   \
    {                                                                                                            \
        .name = its_name,                                                                                        \
        .matmul = {neon_matmul_f32, neon_matmul_f16, neon_matmul_bf16, neon_matmul_i8, matmul_q8_0, matmul_q4_0, \
                   matmul_q4_1, matmul_q5_1, matmul_q4_k, matmul_q5_k, matmul_q6_k},                             \
        .quantize = neon_quantize,                                                                               \
        .to_halves = neon_to_halves,                                                                             \
        .sum_of_squares = neon_sum_of_squares,                                                                   \
        .maximum = neon_maximum,                                                                                 \
        .exp_and_sum = neon_exp_and_sum,                                                                         \
        .swiglu = neon_swiglu,                                                                                   \
    }

#if !defined(OWN_BLOCK_MATMUL)
#if defined(KERNELS_DOTPROD)
const kernels kernels_dotprod = NEON_KERNELS("dotprod");
#else
const kernels kernels_neon = NEON_KERNELS("neon");
#endif
#endif
#endif
