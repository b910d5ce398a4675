/* tensor_type.h: GGUF's tensor types: sizes of their blocks, and any row of them to floats.
 *
 * The types whose codes index tables of vectors (IQ1_*, IQ2_*, IQ3_*) are not here: their grids are kilobytes of data
 * that nothing else needs. gguf.c refuses them by name.
 */
#ifndef LLAMITA_TENSOR_TYPE_H
#define LLAMITA_TENSOR_TYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* GGUF's numbers. */
typedef enum {
    TENSOR_F32 = 0,
    TENSOR_F16 = 1,
    TENSOR_Q4_0 = 2,
    TENSOR_Q4_1 = 3,
    TENSOR_Q5_0 = 6,
    TENSOR_Q5_1 = 7,
    TENSOR_Q8_0 = 8,
    TENSOR_Q2_K = 10,
    TENSOR_Q3_K = 11,
    TENSOR_Q4_K = 12,
    TENSOR_Q5_K = 13,
    TENSOR_Q6_K = 14,
    TENSOR_IQ4_NL = 20,
    TENSOR_IQ4_XS = 23,
    TENSOR_BF16 = 30,
    TENSOR_TQ1_0 = 34,
    TENSOR_TQ2_0 = 35,
    TENSOR_MXFP4 = 39,
    TENSOR_TYPES_END /* every number is below */
} tensor_type;

/* Sizes of a type: elements and bytes of one block; false if the engine does not read it. */
bool tensor_type_blocks(tensor_type type, int64_t *block_elements, size_t *block_bytes, const char **name);

/* Are its elements codes with a shared scale, rather than floats of their own? False for what is not read. */
bool tensor_type_is_quantised(tensor_type type);

/* A row of length elements, a multiple of the type's block, to floats. The row may lie at any address. The values are
 * those of ggml's reference, bit for bit: one product d * scale first where a block has both, then times the code, then
 * minus the product of the minimum's scale and code. Nothing is fused. */
typedef void dequantise_function(const void *row, int64_t length, float *out);

/* Never NULL for a type that tensor_type_blocks accepts. */
dequantise_function *tensor_type_dequantise(tensor_type type);

dequantise_function dequantise_f16, dequantise_bf16;

static inline float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The 16-bit float at any address, exact, subnormals, infinities and NaN included. */
static inline float float_from_half(const void *address) {
    uint16_t half;
    memcpy(&half, address, sizeof half);
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    /* Read as a float the exponent is 112 too small; the product is exact, for subnormal halves too. */
    return float_from_bits(sign | bits_from_float(float_from_bits(magnitude << 13) * 0x1p112f));
}

/* Rounded to the nearest 16-bit float, ties to even; too large ones become infinite, NaN stays NaN. */
static inline uint16_t half_from_float(float value) {
    const uint32_t bits = bits_from_float(value), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x1ffu));
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u; /* 65520 and above */
    /* Subnormal: adding 0.5 puts the last bit of 2^-24 at the last bit of the float, rounded by the addition. */
    if (magnitude < 0x38800000u) return sign | (uint16_t)(bits_from_float(float_from_bits(magnitude) + 0.5f) & 0xffffu);
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return sign | (uint16_t)((rounded - 0x38000000u) >> 13);
}

static inline float float_from_bfloat(const void *address) {
    uint16_t high;
    memcpy(&high, address, sizeof high);
    return float_from_bits((uint32_t)high << 16);
}

#endif
