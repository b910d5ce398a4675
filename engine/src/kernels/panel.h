/* panel.h: the layout of matrices for the kernels: panels of eight interleaved rows.
 *
 * A vector lane is an output row, so nothing is ever summed across lanes, and a panel is read from
 * its first byte to its last. Rows past the end of the matrix in the last panel are zeros. K is the
 * row length, a block is 32 elements of it and a super-block 256.
 *
 *   F32, F16, BF16   [K][8] floats; I8 (KV caches only): [K][8] integers
 *   the others       codes [K/32][bytes of a block's codes]; each 32-bit lane is a row:
 *                     8 bits: [8 quads][8 rows][4]: quad q holds k = 4q .. 4q + 3 of the block
 *                     4 bits: [4][8 rows][4]: low nibbles are quads 0 .. 3, high ones quads 4 .. 7
 *                     5 bits: as 4, then [8 rows][4]: bit q of a byte is the fifth bit of quad q
 *                     6 bits: as 4, then [2][8 rows][4]: bits 2(q % 4), 2(q % 4) + 1 of part q / 4
 *                    headers [K/32], then super-headers [K/256], as below; x is the value of code q
 *
 *            codes        header of a block              super-header   x
 *   Q8_0     8, signed    d[8]                                          d q
 *   Q4_0     4            d[8]                                          d (q - 8)
 *   Q4_1     4            d[8], m[8]                                    d q + m
 *   Q5_1     5            d[8], m[8]                                    d q + m
 *   Q4_K     4            u8 s[8], u8 n[8]               d[8], e[8]     (d s) q - (e n)
 *   Q5_K     5            u8 s[8], u8 n[8]               d[8], e[8]     (d s) q - (e n)
 *   Q6_K     6            i8 s[2][8]: k < 16, k >= 16    d[8]           d s (q - 32)
 *
 * d, e and m are 16-bit floats, as in files. WebAssembly has no instruction that converts those; there
 * they are floats.
 */
#ifndef LLAMITA_PANEL_H
#define LLAMITA_PANEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/float_math.h"
#include "kernels/tensor_type.h"

#define LANES 8 /* floats per vector: one AVX2 register, two of NEON */
#define PANEL_ROWS LANES
#define PANEL_ALIGNMENT 64

typedef enum {
    PANEL_F32,
    PANEL_F16,
    PANEL_BF16,
    PANEL_I8,
    PANEL_Q8_0,
    PANEL_Q4_0,
    PANEL_Q4_1,
    PANEL_Q5_1,
    PANEL_Q4_K,
    PANEL_Q5_K,
    PANEL_Q6_K,
} panel_format;
#define NUM_PANEL_FORMATS 11

#if defined(__wasm__)
#define PANEL_SCALE_BYTES 4
#else
#define PANEL_SCALE_BYTES 2
#endif
#define PANEL_SCALES (PANEL_ROWS * PANEL_SCALE_BYTES) /* bytes of d[8] */

/* Scales of eight rows: writes one from a 16-bit float, reads one. */
static inline void panel_put_scale(uint8_t *scales, int row, const void *half) {
    const float scale = float_from_half(half);
    memcpy(scales + PANEL_SCALE_BYTES * row, PANEL_SCALE_BYTES == 4 ? &scale : half, PANEL_SCALE_BYTES);
}

static inline float panel_scale(const uint8_t *scales, int row) {
    float scale;
    if (PANEL_SCALE_BYTES == 2) return float_from_half(scales + 2 * row);
    memcpy(&scale, scales + 4 * row, sizeof scale);
    return scale;
}

/* Bytes in one panel: of an element (float formats), or of a block's codes, its header and a
 * super-block's header (quantized formats). 0 where it does not apply. */
typedef struct {
    size_t element_bytes, code_bytes, header_bytes, super_bytes;
} panel_layout;

static inline panel_layout panel_layout_of(panel_format format) {
    switch (format) {
    case PANEL_F32: return (panel_layout){32, 0, 0, 0};
    case PANEL_F16: return (panel_layout){16, 0, 0, 0};
    case PANEL_BF16: return (panel_layout){16, 0, 0, 0};
    case PANEL_I8: return (panel_layout){8, 0, 0, 0};
    case PANEL_Q8_0: return (panel_layout){0, 256, PANEL_SCALES, 0};
    case PANEL_Q4_0: return (panel_layout){0, 128, PANEL_SCALES, 0};
    case PANEL_Q4_1: return (panel_layout){0, 128, 2 * PANEL_SCALES, 0};
    case PANEL_Q5_1: return (panel_layout){0, 160, 2 * PANEL_SCALES, 0};
    case PANEL_Q4_K: return (panel_layout){0, 128, 16, 2 * PANEL_SCALES};
    case PANEL_Q5_K: return (panel_layout){0, 160, 16, 2 * PANEL_SCALES};
    case PANEL_Q6_K: return (panel_layout){0, 192, 16, PANEL_SCALES};
    }
    return (panel_layout){0, 0, 0, 0};
}

/* The number of panels of a matrix. */
static inline int64_t panel_count(int64_t num_rows) { return (num_rows + PANEL_ROWS - 1) / PANEL_ROWS; }

/* True if a panel starts at this row, so that rows may be split here. */
static inline bool panel_aligned(int64_t row) { return row % PANEL_ROWS == 0; }

/* The panel that starts at this row. */
static inline const void *panel_at(const void *panels, size_t panel_bytes, int64_t row) {
    return (const char *)panels + (size_t)(row / PANEL_ROWS) * panel_bytes;
}

/* The index of element k of a row in panels of a float format. */
static inline size_t panel_index(size_t row, size_t k, size_t row_length) {
    return (row / PANEL_ROWS * row_length + k) * PANEL_ROWS + row % PANEL_ROWS;
}

static inline bool panel_is_quantized(panel_format format) { return format >= PANEL_Q8_0; }

/* The stride between panels in bytes, a multiple of 32. */
size_t panel_bytes(panel_format format, int64_t row_length);

/* The format that rows of this type are packed into, without loss. */
panel_format panel_format_of(tensor_type type);

/* Packs rows 8 * first .. 8 * last - 1 of a matrix [num_rows][row_length] as panels
 * first .. last - 1. The rows are row_bytes apart at any alignment. `panels` is the caller's memory
 * for the whole matrix, aligned to 32 bytes. Returns false if out of memory. */
bool panel_pack(tensor_type type, const void *rows, size_t row_bytes, int64_t num_rows, int64_t row_length,
                int64_t first, int64_t last, void *panels);

#endif
