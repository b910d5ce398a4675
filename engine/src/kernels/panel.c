/* panel.c: packs matrix rows into panels of eight interleaved rows. */
#include "kernels/panel.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/inline.h"

#if defined(__SSE2__) /* on every x86-64, so no runtime dispatch */
#include <emmintrin.h>
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#endif

size_t panel_bytes(panel_format format, int64_t row_length) {
    const panel_layout layout = panel_layout_of(format);
    const size_t length = (size_t)row_length;
    const size_t bytes = length * layout.element_bytes +
                         length / BLOCK_LENGTH * (layout.code_bytes + layout.header_bytes) +
                         length / SUPER_LENGTH * layout.super_bytes;
    return (bytes + 31) / 32 * 32;
}

panel_format panel_format_of(tensor_type type) {
#define FORMAT(name, suffix, id, elements, bytes, panel) [TENSOR_##name] = PANEL_##panel,
    static const uint8_t formats[TENSOR_TYPES_END] = {TENSOR_TYPES(FORMAT)};
#undef FORMAT
    return (unsigned)type < TENSOR_TYPES_END ? (panel_format)formats[type] : PANEL_F32;
}

/* ------------------------------------------------------------------ eight rows interleaved */

#if defined(__SSE2__)
/* Interleaves four 4-byte values of four rows. Regular stores, not streaming ones: memory that the
 * system has just zeroed is still in the cache. */
static inline void put_four_quads(const uint8_t *const rows[4], size_t offset, uint8_t *out) {
    const __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(rows[0] + offset));
    const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(rows[1] + offset));
    const __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(rows[2] + offset));
    const __m128i d = _mm_loadu_si128((const __m128i *)(const void *)(rows[3] + offset));
    const __m128i ab0 = _mm_unpacklo_epi32(a, b), cd0 = _mm_unpacklo_epi32(c, d);
    const __m128i ab2 = _mm_unpackhi_epi32(a, b), cd2 = _mm_unpackhi_epi32(c, d);
    _mm_storeu_si128((__m128i *)(void *)out, _mm_unpacklo_epi64(ab0, cd0));
    _mm_storeu_si128((__m128i *)(void *)(out + 32), _mm_unpackhi_epi64(ab0, cd0));
    _mm_storeu_si128((__m128i *)(void *)(out + 64), _mm_unpacklo_epi64(ab2, cd2));
    _mm_storeu_si128((__m128i *)(void *)(out + 96), _mm_unpackhi_epi64(ab2, cd2));
}
#elif defined(__wasm_simd128__)
static inline void put_four_quads(const uint8_t *const rows[4], size_t offset, uint8_t *out) {
    const v128_t a = wasm_v128_load(rows[0] + offset), b = wasm_v128_load(rows[1] + offset);
    const v128_t c = wasm_v128_load(rows[2] + offset), d = wasm_v128_load(rows[3] + offset);
    const v128_t ab0 = wasm_i32x4_shuffle(a, b, 0, 4, 1, 5), cd0 = wasm_i32x4_shuffle(c, d, 0, 4, 1, 5);
    const v128_t ab2 = wasm_i32x4_shuffle(a, b, 2, 6, 3, 7), cd2 = wasm_i32x4_shuffle(c, d, 2, 6, 3, 7);
    wasm_v128_store(out, wasm_i64x2_shuffle(ab0, cd0, 0, 2));
    wasm_v128_store(out + 32, wasm_i64x2_shuffle(ab0, cd0, 1, 3));
    wasm_v128_store(out + 64, wasm_i64x2_shuffle(ab2, cd2, 0, 2));
    wasm_v128_store(out + 96, wasm_i64x2_shuffle(ab2, cd2, 1, 3));
}
#endif

/* Interleaves 4-byte values: value q of row r, counted from `offset`, goes to out[q][r]. */
static inline void put_quads(const uint8_t *const rows[PANEL_ROWS], size_t offset, size_t num_quads, uint8_t *out) {
    size_t q = 0;
#if defined(__SSE2__) || defined(__wasm_simd128__)
    for (; q + 4 <= num_quads; q += 4) {
        put_four_quads(rows, offset + 4 * q, out + 32 * q);
        put_four_quads(rows + 4, offset + 4 * q, out + 32 * q + 16);
    }
#endif
    for (size_t left = num_quads - q; left > 0; left--, q++)
        for (int r = 0; r < PANEL_ROWS; r++) memcpy(out + 32 * q + 4 * r, rows[r] + offset + 4 * q, 4);
}

/* ------------------------------------------------------------------ blocks of a row */

/* A block of 32 elements of one row and its part of the headers, as the panel stores them. */
typedef struct {
    uint8_t codes[BLOCK_LENGTH]; /* Q8_0: signed */
    uint8_t header[4];           /* one or two halves, or two bytes */
    uint8_t super[4];            /* one or two halves */
} row_block;

INLINE void split_nibbles(const uint8_t *nibbles, uint8_t *codes) {
    for (int j = 0; j < 16; j++) {
        codes[j] = nibbles[j] & 15;
        codes[j + 16] = nibbles[j] >> 4;
    }
}

/* The 6-bit scale and minimum of sub-block j of Q4_K and Q5_K, from their 12 bytes. */
INLINE void k_scales(const uint8_t *b, int j, uint8_t *scale, uint8_t *minimum) {
    *scale = j < 4 ? b[j] & 63 : (uint8_t)((b[j + 4] & 15) | b[j - 4] >> 6 << 4);
    *minimum = j < 4 ? b[j + 4] & 63 : (uint8_t)(b[j + 4] >> 4 | b[j] >> 6 << 4);
}

INLINE void read_q5_0(const uint8_t *row, int64_t block, row_block *out) {
    row += 22 * block;
    uint32_t fifth;
    memcpy(out->header, row, 2);
    memcpy(&fifth, row + 2, 4);
    split_nibbles(row + 6, out->codes);
    for (int j = 0; j < 32; j++) out->codes[j] = (uint8_t)((out->codes[j] | (fifth >> j & 1) << 4) - 16);
}

INLINE void read_iq4_nl(const uint8_t *row, int64_t block, row_block *out) {
    static const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    row += 18 * block;
    memcpy(out->header, row, 2);
    split_nibbles(row + 2, out->codes);
    for (int j = 0; j < 32; j++) out->codes[j] = (uint8_t)values[out->codes[j]];
}

/* Ternary values -1, 0, 1: five per byte in base 3 (TQ1_0), or four per byte (TQ2_0). */
INLINE void read_tq1_0(const uint8_t *row, int64_t block, row_block *out) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    row += 54 * (block / 8);
    memcpy(out->header, row + 52, 2);
    for (int j = 0; j < 32; j++) {
        const int e = (int)(block % 8) * 32 + j;
        const uint8_t byte = e < 160 ? row[e % 32] : e < 240 ? row[32 + (e - 160) % 16] : row[48 + (e - 240) % 4];
        const int digit = e < 160 ? e / 32 : e < 240 ? (e - 160) / 16 : (e - 240) / 4;
        const uint8_t shifted = (uint8_t)(byte * powers[digit]);
        out->codes[j] = (uint8_t)((shifted * 3 >> 8) - 1);
    }
}

INLINE void read_tq2_0(const uint8_t *row, int64_t block, row_block *out) {
    row += 66 * (block / 8);
    memcpy(out->header, row + 64, 2);
    const int part = (int)(block % 8); /* 128 elements share 32 bytes, two bits each */
    for (int j = 0; j < 32; j++) out->codes[j] = (uint8_t)((row[32 * (part / 4) + j] >> 2 * (part % 4) & 3) - 1);
}

INLINE void read_q5_1(const uint8_t *row, int64_t block, row_block *out) {
    row += 24 * block;
    uint32_t fifth;
    memcpy(out->header, row, 4);
    memcpy(&fifth, row + 4, 4);
    split_nibbles(row + 8, out->codes);
    for (int j = 0; j < 32; j++) out->codes[j] |= (uint8_t)((fifth >> j & 1) << 4);
}

INLINE void read_q4_k(const uint8_t *row, int64_t block, row_block *out) {
    const int part = (int)(block % 8);
    row += 144 * (block / 8);
    memcpy(out->super, row, 4);
    k_scales(row + 4, part, &out->header[0], &out->header[1]);
    const uint8_t *nibbles = row + 16 + 32 * (part / 2);
    for (int j = 0; j < 32; j++) out->codes[j] = nibbles[j] >> 4 * (part % 2) & 15;
}

INLINE void read_q5_k(const uint8_t *row, int64_t block, row_block *out) {
    const int part = (int)(block % 8);
    row += 176 * (block / 8);
    memcpy(out->super, row, 4);
    k_scales(row + 4, part, &out->header[0], &out->header[1]);
    const uint8_t *fifth = row + 16, *nibbles = row + 48 + 32 * (part / 2);
    for (int j = 0; j < 32; j++)
        out->codes[j] = (uint8_t)((nibbles[j] >> 4 * (part % 2) & 15) | (fifth[j] >> part & 1) << 4);
}

INLINE void read_q6_k(const uint8_t *row, int64_t block, row_block *out) {
    const int half = (int)(block % 8) / 4, part = (int)(block % 4);
    row += 210 * (block / 8);
    const uint8_t *low = row + 64 * half + 32 * (part % 2), *high = row + 128 + 32 * half;
    for (int j = 0; j < 32; j++)
        out->codes[j] = (uint8_t)((low[j] >> 4 * (part / 2) & 15) | (high[j] >> 2 * part & 3) << 4);
    memcpy(out->header, row + 192 + 8 * half + 2 * part, 2);
    memcpy(out->super, row + 208, 2);
}

/* 3-bit codes: two bits in groups of 32 bytes; the third, inverted, in the mask. Scales are 6 bits,
 * minus 32. */
INLINE void read_q3_k(const uint8_t *row, int64_t block, row_block *out) {
    const int half = (int)(block % 8) / 4, part = (int)(block % 4), bit = (int)(block % 8);
    row += 110 * (block / 8);
    const uint8_t *mask = row, *low = row + 32 + 32 * half, *scales = row + 96;
    for (int j = 0; j < 32; j++) {
        const int code = (low[j] >> 2 * part & 3) - (mask[j] >> bit & 1 ? 0 : 4);
        out->codes[j] = (uint8_t)(code + 32);
    }
    for (int i = 0; i < 2; i++) {
        const int s = 2 * bit + i;
        const int low4 = scales[s % 8] >> (s < 8 ? 0 : 4) & 15, high2 = scales[8 + s % 4] >> 2 * (s / 4) & 3;
        out->header[i] = (uint8_t)((low4 | high2 << 4) - 32);
    }
    memcpy(out->super, row + 108, 2);
}

INLINE void read_block(tensor_type type, const uint8_t *row, int64_t block, row_block *out) {
    switch (type) {
    case TENSOR_Q5_0: read_q5_0(row, block, out); break;
    case TENSOR_IQ4_NL: read_iq4_nl(row, block, out); break;
    case TENSOR_TQ1_0: read_tq1_0(row, block, out); break;
    case TENSOR_TQ2_0: read_tq2_0(row, block, out); break;
    case TENSOR_Q5_1: read_q5_1(row, block, out); break;
    case TENSOR_Q4_K: read_q4_k(row, block, out); break;
    case TENSOR_Q5_K: read_q5_k(row, block, out); break;
    case TENSOR_Q6_K: read_q6_k(row, block, out); break;
    case TENSOR_Q3_K: read_q3_k(row, block, out); break;
    default: break;
    }
}

/* ------------------------------------------------------------------ panels */

/* Writes the block's codes to lane `row` of the panel. */
INLINE void put_codes(panel_format format, const uint8_t *codes, int row, uint8_t *out) {
    if (format == PANEL_Q8_0) {
        for (int q = 0; q < 8; q++) memcpy(out + 32 * q + 4 * row, codes + 4 * q, 4);
        return;
    }
    uint8_t nibbles[16];
    for (int j = 0; j < 16; j++) nibbles[j] = (uint8_t)((codes[j] & 15) | codes[j + 16] << 4);
    for (int q = 0; q < 4; q++) memcpy(out + 32 * q + 4 * row, nibbles + 4 * q, 4);
    for (int i = 0; i < 4; i++) {
        uint8_t fifth = 0, high[2] = {0, 0};
        for (int q = 0; q < 8; q++) {
            fifth |= (uint8_t)((codes[4 * q + i] >> 4 & 1) << q);
            high[q / 4] |= (uint8_t)((codes[4 * q + i] >> 4) << 2 * (q % 4));
        }
        if (format == PANEL_Q5_1 || format == PANEL_Q5_K) out[128 + 4 * row + i] = fifth;
        if (format == PANEL_Q6_K) out[128 + 4 * row + i] = high[0], out[160 + 4 * row + i] = high[1];
    }
}

/* Writes one row's header to the panel's: one or two halves, or two bytes. */
INLINE void put_header(size_t num_bytes, bool bytes, const uint8_t *header, int row, uint8_t *out) {
    if (bytes) {
        out[row] = header[0];
        out[PANEL_ROWS + row] = header[1];
        return;
    }
    panel_put_scale(out, row, header);
    if (num_bytes == 2 * PANEL_SCALES) panel_put_scale(out + PANEL_SCALES, row, header + 2);
}

/* Packs one panel of a type whose blocks are a header of one or two halves, then the codes in the
 * panel's order. */
INLINE void pack_quads(size_t block_header_bytes, size_t num_quads, const uint8_t *const rows[PANEL_ROWS],
                       int64_t row_length, uint8_t *panel) {
    const size_t block_bytes = block_header_bytes + 4 * num_quads, num_blocks = (size_t)row_length / BLOCK_LENGTH;
    const size_t header_bytes = block_header_bytes / 2 * PANEL_SCALES;
    uint8_t *headers = panel + num_blocks * num_quads * 32;
    for (size_t b = 0; b < num_blocks; b++) {
        put_quads(rows, b * block_bytes + block_header_bytes, num_quads, panel + b * num_quads * 32);
        for (int r = 0; r < PANEL_ROWS; r++)
            put_header(header_bytes, false, rows[r] + b * block_bytes, r, headers + b * header_bytes);
    }
}

/* Packs one panel from eight rows. Callers pass literals for type and format. */
INLINE void pack_blocks(tensor_type type, panel_format format, const uint8_t *const rows[PANEL_ROWS],
                        int64_t row_length, uint8_t *panel) {
    const panel_layout layout = panel_layout_of(format);
    const int64_t num_blocks = row_length / BLOCK_LENGTH;
    uint8_t *headers = panel + (size_t)num_blocks * layout.code_bytes;
    uint8_t *supers = headers + (size_t)num_blocks * layout.header_bytes;
    for (int64_t b = 0; b < num_blocks; b++)
        for (int r = 0; r < PANEL_ROWS; r++) {
            row_block block = {{0}, {0}, {0}};
            read_block(type, rows[r], b, &block);
            put_codes(format, block.codes, r, panel + (size_t)b * layout.code_bytes);
            put_header(layout.header_bytes, layout.super_bytes > 0, block.header, r,
                       headers + (size_t)b * layout.header_bytes);
            if (layout.super_bytes > 0 && b % (SUPER_LENGTH / BLOCK_LENGTH) == 0)
                put_header(layout.super_bytes, false, block.super, r,
                           supers + (size_t)(b / (SUPER_LENGTH / BLOCK_LENGTH)) * layout.super_bytes);
        }
}

INLINE void interleave(const uint8_t *const rows[PANEL_ROWS], int64_t row_length, size_t element_bytes,
                       uint8_t *panel) {
    for (int64_t k = 0; k < row_length; k++)
        for (int r = 0; r < PANEL_ROWS; r++)
            memcpy(panel + ((size_t)k * PANEL_ROWS + (size_t)r) * element_bytes, rows[r] + (size_t)k * element_bytes,
                   element_bytes);
}

static void pack_panel(tensor_type type, const uint8_t *const rows[PANEL_ROWS], int64_t row_length, uint8_t *panel) {
    switch (type) {
    case TENSOR_F32: put_quads(rows, 0, (size_t)row_length, panel); break;
    case TENSOR_F16:
    case TENSOR_BF16: interleave(rows, row_length, 2, panel); break;
    case TENSOR_Q8_0: pack_quads(2, 8, rows, row_length, panel); break;
    case TENSOR_Q5_0: pack_blocks(TENSOR_Q5_0, PANEL_Q8_0, rows, row_length, panel); break;
    case TENSOR_IQ4_NL: pack_blocks(TENSOR_IQ4_NL, PANEL_Q8_0, rows, row_length, panel); break;
    case TENSOR_TQ1_0: pack_blocks(TENSOR_TQ1_0, PANEL_Q8_0, rows, row_length, panel); break;
    case TENSOR_TQ2_0: pack_blocks(TENSOR_TQ2_0, PANEL_Q8_0, rows, row_length, panel); break;
    case TENSOR_Q4_0: pack_quads(2, 4, rows, row_length, panel); break;
    case TENSOR_Q4_1: pack_quads(4, 4, rows, row_length, panel); break;
    case TENSOR_Q5_1: pack_blocks(TENSOR_Q5_1, PANEL_Q5_1, rows, row_length, panel); break;
    case TENSOR_Q4_K: pack_blocks(TENSOR_Q4_K, PANEL_Q4_K, rows, row_length, panel); break;
    case TENSOR_Q5_K: pack_blocks(TENSOR_Q5_K, PANEL_Q5_K, rows, row_length, panel); break;
    case TENSOR_Q6_K: pack_blocks(TENSOR_Q6_K, PANEL_Q6_K, rows, row_length, panel); break;
    case TENSOR_Q3_K: pack_blocks(TENSOR_Q3_K, PANEL_Q6_K, rows, row_length, panel); break;
    default: break;
    }
}

/* Types whose codes no kernel reads: their rows are converted to floats first. F32 or BF16 panels
 * hold the values exactly. */
static bool packs_floats(tensor_type type) {
    return type != TENSOR_F32 && (panel_format_of(type) == PANEL_F32 || type == TENSOR_MXFP4);
}

static void convert_row(tensor_type type, const void *row, int64_t row_length, float *out) {
    tensor_type_dequantize(type)(row, row_length, out);
    if (panel_format_of(type) != PANEL_BF16) return;
    for (int64_t k = 0; k < row_length; k++) {
        const uint16_t high = (uint16_t)(bits_from_float(out[k]) >> 16);
        memcpy((char *)out + 2 * k, &high, sizeof high);
    }
}

/* A copy from memory to memory stalls on both sides unless both are prefetched. The addresses may
 * be past the end: a prefetch does not fault. */
static void prefetch(const uint8_t *address, size_t num_bytes, bool to_write) {
    for (size_t i = 0; i < num_bytes; i += 64) {
        const void *line = (const void *)((uintptr_t)address + i);
        if (to_write) __builtin_prefetch(line, 1, 2);
        else __builtin_prefetch(line, 0, 2);
    }
}

bool panel_pack(tensor_type type, const void *rows, size_t row_bytes, int64_t num_rows, int64_t row_length,
                int64_t first, int64_t last, void *panels) {
    const size_t bytes = panel_bytes(panel_format_of(type), row_length);
    const bool converted = packs_floats(type);
    const tensor_type packed = !converted ? type : type == TENSOR_MXFP4 ? TENSOR_BF16 : TENSOR_F32;
    uint8_t *zeros = last * PANEL_ROWS > num_rows ? calloc(1, row_bytes) : NULL;
    float *floats = converted ? calloc((size_t)row_length * PANEL_ROWS, sizeof *floats) : NULL;
    const bool allocated = (zeros || last * PANEL_ROWS <= num_rows) && (floats || !converted);
    for (int64_t p = first; allocated && p < last; p++) {
        prefetch((const uint8_t *)rows + (size_t)(p + 1) * PANEL_ROWS * row_bytes, PANEL_ROWS * row_bytes, false);
        prefetch((const uint8_t *)panels + (size_t)(p + 1) * bytes, bytes, true);
        const uint8_t *panel_rows[PANEL_ROWS];
        for (int r = 0; r < PANEL_ROWS; r++) {
            const int64_t row = p * PANEL_ROWS + r;
            panel_rows[r] = row < num_rows ? (const uint8_t *)rows + (size_t)row * row_bytes : zeros;
            if (!converted) continue;
            float *out = floats + (size_t)r * (size_t)row_length;
            convert_row(type, panel_rows[r], row_length, out);
            panel_rows[r] = (const uint8_t *)out;
        }
        pack_panel(packed, panel_rows, row_length, (uint8_t *)panels + (size_t)p * bytes);
    }
    free(zeros);
    free(floats);
    return allocated;
}
