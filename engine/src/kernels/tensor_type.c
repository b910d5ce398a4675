/* tensor_type.c: dequantizes rows of every tensor type. Each block layout is documented at its
 * decoder. The table of types is in tensor_type.h, the quantizers are in quantize_rows.h and
 * quantize_super.h, the packing is in panel.c.
 *
 * "half" is a 16-bit float. 4-bit codes are packed in groups of bytes: a group holds its low
 * nibbles first, then its high ones. 2-bit codes likewise: a group of 32 bytes holds bits 0-1 of
 * all, then bits 2-3, 4-5, 6-7. */
#include "kernels/tensor_type.h"

#include "llamita.h"
#include "runtime/error.h"

/* ------------------------------------------------------------------ floats */

static void dequantize_f32(const void *row, int64_t length, float *out) {
    memcpy(out, row, (size_t)length * sizeof *out);
}

void dequantize_f16(const void *row, int64_t length, float *out) {
    for (int64_t k = 0; k < length; k++) out[k] = float_from_half((const char *)row + 2 * k);
}

void dequantize_bf16(const void *row, int64_t length, float *out) {
    for (int64_t k = 0; k < length; k++) out[k] = float_from_bfloat((const char *)row + 2 * k);
}

/* ------------------------------------------------------------------ blocks of 32 */

/* Q8_0: half scale, int8 values[32]. */
static void dequantize_q8_0(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += BLOCK_LENGTH, block += 34) {
        const float scale = float_from_half(block);
        for (int i = 0; i < BLOCK_LENGTH; i++) out[k + i] = scale * (float)(int8_t)block[2 + i];
    }
}

/* Q4_0: half scale, 16 bytes of nibbles; code 8 is zero. */
static void dequantize_q4_0(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += BLOCK_LENGTH, block += 18) {
        const float scale = float_from_half(block);
        for (int i = 0; i < BLOCK_LENGTH / 2; i++) {
            out[k + i] = scale * (float)((block[2 + i] & 15) - 8);
            out[k + i + BLOCK_LENGTH / 2] = scale * (float)((block[2 + i] >> 4) - 8);
        }
    }
}

/* Q4_1: half scale, half minimum, nibbles as in Q4_0. */
static void dequantize_q4_1(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += BLOCK_LENGTH, block += 20) {
        const float scale = float_from_half(block), minimum = float_from_half(block + 2);
        for (int i = 0; i < BLOCK_LENGTH / 2; i++) {
            out[k + i] = scale * (float)(block[4 + i] & 15) + minimum;
            out[k + i + BLOCK_LENGTH / 2] = scale * (float)(block[4 + i] >> 4) + minimum;
        }
    }
}

/* The 32 5-bit codes of Q5_0 and Q5_1: bit i of 4 little-endian bytes is the high bit of code i;
 * then nibbles. */
static inline void codes_of_5_bits(const uint8_t *bytes, int codes[BLOCK_LENGTH]) {
    for (int i = 0; i < BLOCK_LENGTH / 2; i++) {
        codes[i] = (bytes[4 + i] & 15) | (bytes[i / 8] >> i % 8 & 1) << 4;
        codes[i + BLOCK_LENGTH / 2] = bytes[4 + i] >> 4 | (bytes[2 + i / 8] >> i % 8 & 1) << 4;
    }
}

/* Q5_0: half scale, codes; code 16 is zero. */
static void dequantize_q5_0(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    int codes[BLOCK_LENGTH];
    for (int64_t k = 0; k < length; k += BLOCK_LENGTH, block += 22) {
        const float scale = float_from_half(block);
        codes_of_5_bits(block + 2, codes);
        for (int i = 0; i < BLOCK_LENGTH; i++) out[k + i] = scale * (float)(codes[i] - 16);
    }
}

/* Q5_1: half scale, half minimum, codes. */
static void dequantize_q5_1(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    int codes[BLOCK_LENGTH];
    for (int64_t k = 0; k < length; k += BLOCK_LENGTH, block += 24) {
        const float scale = float_from_half(block), minimum = float_from_half(block + 2);
        codes_of_5_bits(block + 4, codes);
        for (int i = 0; i < BLOCK_LENGTH; i++) out[k + i] = scale * (float)codes[i] + minimum;
    }
}

/* Codes that index a table: 16 bytes of nibbles for 32 values. */
static inline void look_up_nibbles(const uint8_t *bytes, const int8_t table[16], float scale, float *out) {
    for (int i = 0; i < BLOCK_LENGTH / 2; i++) {
        out[i] = scale * (float)table[bytes[i] & 15];
        out[i + BLOCK_LENGTH / 2] = scale * (float)table[bytes[i] >> 4];
    }
}

/* Denser near zero, as weights are. */
static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* IQ4_NL: half scale, nibbles. */
static void dequantize_iq4_nl(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += BLOCK_LENGTH, block += 18)
        look_up_nibbles(block + 2, iq4_values, float_from_half(block), out + k);
}

/* MXFP4 (OCP microscaling formats, E2M1 with a shared E8M0): a byte e for the scale 2^(e - 127),
 * nibbles. The table holds doubled values, so the scale is halved; 2^-127 and 2^-128 are
 * subnormal. */
static void dequantize_mxfp4(const void *row, int64_t length, float *out) {
    static const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += BLOCK_LENGTH, block += 17) {
        const uint32_t exponent = block[0];
        const float half_scale = float_from_bits(exponent < 2 ? 0x200000u << exponent : (exponent - 1) << 23);
        look_up_nibbles(block + 1, doubled, half_scale, out + k);
    }
}

/* ------------------------------------------------------- blocks of 256 with scales of their own */

/* Q2_K: 16 bytes, one per group of 16: scale (low nibble) and minimum (high nibble); 64 bytes of
 * 2-bit codes; half scale of the scales, half scale of the minima. */
static void dequantize_q2_k(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += SUPER_LENGTH, block += 84) {
        const float d = float_from_half(block + 80), d_minimum = float_from_half(block + 82);
        for (int group = 0; group < 16; group++) {
            const float scale = d * (float)(block[group] & 15), minimum = d_minimum * (float)(block[group] >> 4);
            const uint8_t *codes = block + 16 + group / 8 * 32 + group % 2 * 16;
            const int shift = group % 8 / 2 * 2;
            float *values = out + k + group * 16;
            for (int i = 0; i < 16; i++) values[i] = scale * (float)(codes[i] >> shift & 3) - minimum;
        }
    }
}

/* The 16 6-bit scales of Q3_K, where 32 is zero. 8 bytes: their low nibbles are scales 0-7, their
 * high ones 8-15; then 4 bytes with the upper 2 bits: bits 0-1 of scales 0-3, bits 2-3 of scales
 * 4-7, and so on. */
static inline int q3_k_scale(const uint8_t *bytes, int group) {
    const int low = bytes[group % 8] >> (group / 8 * 4) & 15, high = bytes[8 + group % 4] >> (group / 4 * 2) & 3;
    return (low | high << 4) - 32;
}

/* Q3_K: 32 bytes: bit b of byte i is the high bit of code 32 b + i; 64 bytes of 2-bit codes; 12
 * bytes of scales for groups of 16; half scale. Code 4 is zero. */
static void dequantize_q3_k(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += SUPER_LENGTH, block += 110) {
        const float d = float_from_half(block + 108);
        for (int group = 0; group < 16; group++) {
            const float scale = d * (float)q3_k_scale(block + 96, group);
            const uint8_t *high = block + group % 2 * 16, *low = block + 32 + group / 8 * 32 + group % 2 * 16;
            const int shift = group % 8 / 2 * 2, bit = group / 2;
            float *values = out + k + group * 16;
            for (int i = 0; i < 16; i++)
                values[i] = scale * (float)((low[i] >> shift & 3) + (high[i] >> bit & 1) * 4 - 4);
        }
    }
}

/* The 8 6-bit scales and 8 minima of Q4_K and Q5_K in 12 bytes. Groups 0-3: the low 6 bits of bytes
 * 0-3 (scales) and 4-7 (minima). Groups 4-7: the low nibbles of bytes 8-11 (scales) and their high
 * ones (minima), below the upper 2 bits of bytes 0-3 and 4-7. */
static inline void q4_k_scale(const uint8_t *bytes, int group, float d, float d_minimum, float *scale, float *minimum) {
    int scale_code = bytes[group] & 63, minimum_code = bytes[group + 4] & 63;
    if (group >= 4) {
        scale_code = (bytes[group + 4] & 15) | bytes[group - 4] >> 6 << 4;
        minimum_code = bytes[group + 4] >> 4 | bytes[group] >> 6 << 4;
    }
    *scale = d * (float)scale_code;
    *minimum = d_minimum * (float)minimum_code;
}

/* Q4_K: half scale of the scales, half scale of the minima, 12 bytes of scales and minima for
 * groups of 32, 4 times 32 bytes of nibbles. */
static void dequantize_q4_k(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += SUPER_LENGTH, block += 144) {
        const float d = float_from_half(block), d_minimum = float_from_half(block + 2);
        for (int group = 0; group < 8; group++) {
            float scale, minimum;
            q4_k_scale(block + 4, group, d, d_minimum, &scale, &minimum);
            const uint8_t *codes = block + 16 + group / 2 * 32;
            const int shift = group % 2 * 4;
            float *values = out + k + group * 32;
            for (int i = 0; i < 32; i++) values[i] = scale * (float)(codes[i] >> shift & 15) - minimum;
        }
    }
}

/* Q5_K: as Q4_K, with 32 bytes before the nibbles: bit g of byte i is the high bit of code i of
 * group g. */
static void dequantize_q5_k(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += SUPER_LENGTH, block += 176) {
        const float d = float_from_half(block), d_minimum = float_from_half(block + 2);
        for (int group = 0; group < 8; group++) {
            float scale, minimum;
            q4_k_scale(block + 4, group, d, d_minimum, &scale, &minimum);
            const uint8_t *high = block + 16, *low = block + 48 + group / 2 * 32;
            const int shift = group % 2 * 4;
            float *values = out + k + group * 32;
            for (int i = 0; i < 32; i++)
                values[i] = scale * (float)((low[i] >> shift & 15) | (high[i] >> group & 1) << 4) - minimum;
        }
    }
}

/* Q6_K: 2 times 64 bytes of nibbles, 2 times 32 bytes with the upper 2 bits, int8 scales[16] for
 * groups of 16, half scale. Code 32 is zero. */
static void dequantize_q6_k(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += SUPER_LENGTH, block += 210) {
        const float d = float_from_half(block + 208);
        for (int group = 0; group < 16; group++) {
            const float scale = d * (float)(int8_t)block[192 + group];
            const uint8_t *low = block + group / 8 * 64 + group % 4 * 16;
            const uint8_t *high = block + 128 + group / 8 * 32 + group % 2 * 16;
            const int low_shift = group % 8 / 4 * 4, high_shift = group % 8 / 2 * 2;
            float *values = out + k + group * 16;
            for (int i = 0; i < 16; i++)
                values[i] = scale * (float)(((low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4) - 32);
        }
    }
}

/* IQ4_XS: half scale; 2 bytes: the upper 2 bits of 8 scales for groups of 32; 4 bytes: their low
 * nibbles (32 is zero); then 8 times the nibbles of IQ4_NL. */
static void dequantize_iq4_xs(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += SUPER_LENGTH, block += 136) {
        const float d = float_from_half(block);
        for (int group = 0; group < 8; group++) {
            const int low = block[4 + group / 2] >> group % 2 * 4 & 15;
            const int high = block[2 + group / 4] >> group % 4 * 2 & 3;
            const float scale = d * (float)((low | high << 4) - 32);
            look_up_nibbles(block + 8 + group * 16, iq4_values, scale, out + k + group * 32);
        }
    }
}

/* ----------------------------------------------------------------- blocks of 256 ternary values */

/* count bytes hold `digits` values each, as the leading ternary digits of byte / 256: digit n of
 * byte i is value count * n + i, 0 to 2, where 1 is zero. */
static inline float *ternary_digits(const uint8_t *bytes, int count, int digits, float scale, float *out) {
    static const int powers[5] = {1, 3, 9, 27, 81};
    for (int n = 0; n < digits; n++)
        for (int i = 0; i < count; i++) *out++ = scale * (float)(((bytes[i] * powers[n] & 255) * 3 >> 8) - 1);
    return out;
}

/* TQ1_0: 32 and 16 bytes of five digits, 4 bytes of four; half scale. */
static void dequantize_tq1_0(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += SUPER_LENGTH, block += 54) {
        const float scale = float_from_half(block + 52);
        float *values = ternary_digits(block, 32, 5, scale, out + k);
        values = ternary_digits(block + 32, 16, 5, scale, values);
        ternary_digits(block + 48, 4, 4, scale, values);
    }
}

/* TQ2_0: 2 times 32 bytes of 2-bit codes; half scale. Code 1 is zero. */
static void dequantize_tq2_0(const void *row, int64_t length, float *out) {
    const uint8_t *block = row;
    for (int64_t k = 0; k < length; k += SUPER_LENGTH, block += 66) {
        const float scale = float_from_half(block + 64);
        for (int group = 0; group < 8; group++) {
            const uint8_t *codes = block + group / 4 * 32;
            float *values = out + k + group * 32;
            for (int i = 0; i < 32; i++) values[i] = scale * (float)((codes[i] >> group % 4 * 2 & 3) - 1);
        }
    }
}

/* ------------------------------------------------------------------ the table */

typedef struct {
    const char *name;
    int64_t elements;
    size_t bytes;
    dequantize_function *dequantize;
} type_row;

#define ROW(name, suffix, id, elements, bytes, panel) [TENSOR_##name] = {#name, elements, bytes, dequantize_##suffix},
static const type_row types[TENSOR_TYPES_END] = {TENSOR_TYPES(ROW)};
#undef ROW

/* NULL if the type is not in the table. */
static const type_row *row_of(tensor_type type) {
    return (unsigned)type < TENSOR_TYPES_END && types[type].name ? &types[type] : NULL;
}

bool tensor_type_blocks(tensor_type type, int64_t *block_elements, size_t *block_bytes, const char **name) {
    const type_row *row = row_of(type);
    if (row) {
        *block_elements = row->elements;
        *block_bytes = row->bytes;
        *name = row->name;
    }
    return row;
}

bool tensor_type_is_quantized(tensor_type type) {
    const type_row *row = row_of(type);
    return row && row->elements > 1;
}

dequantize_function *tensor_type_dequantize(tensor_type type) {
    const type_row *row = row_of(type);
    return row ? row->dequantize : NULL;
}

/* ------------------------------------------------------------------ the public functions */

bool llamita_tensor_type(size_t index, llamita_tensor_type_info *info) {
#define INFO(name, suffix, id, elements, bytes, panel) {#name, id, elements, bytes},
    static const llamita_tensor_type_info infos[] = {TENSOR_TYPES(INFO)};
#undef INFO
    if (index >= sizeof infos / sizeof infos[0]) return false;
    *info = infos[index];
    return true;
}

llamita_status llamita_dequantize(int32_t id, const void *blocks, int64_t num_elements, float *values,
                                  llamita_error *error) {
    const type_row *row = row_of((tensor_type)id);
    if (!row || num_elements < 0 || num_elements % row->elements != 0)
        return error_set(
            error, LLAMITA_ERROR_ARGUMENT,
            "cannot dequantize: expected a type that llamita_tensor_type lists and whole blocks, found type "
            "%d and %lld elements",
            (int)id, (long long)num_elements);
    row->dequantize(blocks, num_elements, values);
    return LLAMITA_OK;
}
