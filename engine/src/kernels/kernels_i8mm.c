/* kernels_i8mm.c: the kernels for ARM processors with the i8mm extension (ARMv8.6, servers and
 * phones since 2021, Apple since the M2). SMMLA multiplies two rows of eight bytes by two columns of
 * eight: twice the products of SDOT. Only quantized matrices by several columns are here; the other
 * kernels are those of kernels_dotprod.c. CMakeLists.txt sets the compiler flags.
 *
 * Numbers for two rows and two columns are a square: row 0 of both columns, then row 1 of both. Sums
 * stay squares until they are stored: that saves sorting the products of every block. */
#if defined(LLAMITA_HAS_I8MM)
#define KERNELS_DOTPROD
#define OWN_BLOCK_MATMUL
#include "kernels/kernels_neon.c"

#define SQUARES (PANEL_ROWS / 2)
#define EACH_SQUARE(s) UNROLL for (int s = 0; s < SQUARES; s++)
#define MAX_PAIRS 8   /* of columns in a tile; they share the work of unpacking codes */
#define MIN_COLUMNS 6 /* fewer take as many instructions as SDOT */

typedef struct {
    float32x4_t square[SQUARES];
} float_squares;
typedef struct {
    int32x4_t square[SQUARES];
} integer_squares;
typedef struct {
    int8x16_t square[SQUARES]; /* eight bytes of a row, eight of the next */
} eights;

/* The same numbers for both columns. */
INLINE float_squares floats_of_rows(floats a) {
    float_squares out;
    EACH_HALF(h) {
        out.square[2 * h] = vzip1q_f32(a.half[h], a.half[h]);
        out.square[2 * h + 1] = vzip2q_f32(a.half[h], a.half[h]);
    }
    return out;
}

INLINE integer_squares integers_of_rows(integers a) {
    integer_squares out;
    EACH_HALF(h) {
        out.square[2 * h] = vzip1q_s32(a.half[h], a.half[h]);
        out.square[2 * h + 1] = vzip2q_s32(a.half[h], a.half[h]);
    }
    return out;
}

/* The same numbers for all rows. */
INLINE float32x4_t floats_of_columns(const float *first, const float *second) {
    return vzip1q_f32(vld1q_dup_f32(first), vld1q_dup_f32(second));
}

INLINE eights load_eights(panels p, size_t offset, const int i, const panel_format format) {
    const codes low = load_codes_of_quad(p, offset, 2 * i, format),
                high = load_codes_of_quad(p, offset, 2 * i + 1, format);
    eights out;
    EACH_HALF(h) {
        const uint32x4_t a = vreinterpretq_u32_u8(low.half[h]), b = vreinterpretq_u32_u8(high.half[h]);
        out.square[2 * h] = vreinterpretq_s8_u32(vzip1q_u32(a, b));
        out.square[2 * h + 1] = vreinterpretq_s8_u32(vzip2q_u32(a, b));
    }
    return out;
}

/* The sum of codes and values over halves first .. last - 1 of a block, exact. */
INLINE integer_squares sum_pair(const eights *code, const activation_block *x, const activation_block *y,
                                const int first, const int last, const panel_format format) {
    integer_squares sums;
    const int32x4_t start =
        vzip1q_s32(vdupq_n_s32(start_of_sum(x, first, format)), vdupq_n_s32(start_of_sum(y, first, format)));
    EACH_SQUARE(s) sums.square[s] = start;
    UNROLL for (int half = first; half < last; half++) {
        const int64x2_t a = vreinterpretq_s64_s8(load_quads(x, half)), b = vreinterpretq_s64_s8(load_quads(y, half));
        const int8x16_t low = vreinterpretq_s8_s64(vzip1q_s64(a, b)), high = vreinterpretq_s8_s64(vzip2q_s64(a, b));
        EACH_SQUARE(s) sums.square[s] = vmmlaq_s32(sums.square[s], code[2 * half].square[s], low);
        EACH_SQUARE(s) sums.square[s] = vmmlaq_s32(sums.square[s], code[2 * half + 1].square[s], high);
    }
    return sums;
}

/* A panel by 2 * num_pairs columns; past the end of the matrix the last one is repeated. */
INLINE void pair_tile(const matmul_job *job, int64_t panel, int64_t column, int64_t num_pairs,
                      const panel_format format, const panel_layout layout) {
    const int64_t num_blocks = job->row_length / BLOCK_LENGTH, last = job->num_columns - 1;
    size_t code_at = 0, header = (size_t)num_blocks * layout.code_bytes,
           super = layout.super_bytes > 0 ? header + (size_t)num_blocks * layout.header_bytes : 0;
    const panels p = panels_at(job, panel);
    const activation_block *columns[2 * MAX_PAIRS];
    float_squares sums[MAX_PAIRS];
    for (int64_t c = 0; c < 2 * num_pairs; c++) columns[c] = column_at(job, column + c < last ? column + c : last);
    for (int64_t i = 0; i < num_pairs; i++) sums[i] = floats_of_rows(all_floats(0.0f));
    for (int64_t b = 0; b < num_blocks; b++) {
        HIDDEN(super);
        eights code[4];
        UNROLL for (int i = 0; i < 4; i++) code[i] = load_eights(p, code_at, i, format);
        floats minimum_of_rows = all_floats(0.0f);
        const float_squares scale = floats_of_rows(block_scales(p, header, super, format, &minimum_of_rows)),
                            minimum = floats_of_rows(minimum_of_rows);
        for (int64_t i = 0; i < num_pairs; i++) {
            const activation_block *x = columns[2 * i] + b, *y = columns[2 * i + 1] + b;
            integer_squares whole = sum_pair(code, x, y, 0, format == PANEL_Q6_K ? 1 : 2, format);
            if (format == PANEL_Q6_K) {
                const integer_squares second = sum_pair(code, x, y, 1, 2, format),
                                      scales = integers_of_rows(widen(p, header, true)),
                                      others = integers_of_rows(widen(p, header + PANEL_ROWS, true));
                EACH_SQUARE(s)
                whole.square[s] =
                    vmlaq_s32(vmulq_s32(whole.square[s], scales.square[s]), second.square[s], others.square[s]);
            }
            const float32x4_t of_columns = floats_of_columns(&x->scale, &y->scale);
            EACH_SQUARE(s) {
                float32x4_t *sum = &sums[i].square[s];
                *sum = vfmaq_f32(*sum, vcvtq_f32_s32(whole.square[s]), vmulq_f32(scale.square[s], of_columns));
                if (has_minimum(format))
                    *sum = vfmaq_f32(*sum, minimum.square[s], floats_of_columns(&x->scaled_sum, &y->scaled_sum));
            }
        }
        code_at += layout.code_bytes;
        header += layout.header_bytes;
        if (b % (SUPER_LENGTH / BLOCK_LENGTH) == SUPER_LENGTH / BLOCK_LENGTH - 1) super += layout.super_bytes;
    }
    for (int64_t i = 0; i < num_pairs; i++, column += 2) {
        floats first, second;
        EACH_HALF(h) {
            const float32x4_t a = sums[i].square[2 * h], b = sums[i].square[2 * h + 1];
            first.half[h] = vuzp1q_f32(a, b);
            second.half[h] = vuzp2q_f32(a, b);
        }
        store_rows(job, panel, column, first);
        if (column < last) store_rows(job, panel, column + 1, second);
    }
}

/* Tiles are nearly equal: 18 columns are five pairs and four, not eight and one. */
INLINE void pair_matmul(const matmul_job *job, const panel_format format, const panel_format headers) {
    if (job->num_columns < MIN_COLUMNS) {
        kernels_dotprod.matmul[headers](job);
        return;
    }
    const int64_t pairs = (job->num_columns + 1) / 2, tiles = (pairs + MAX_PAIRS - 1) / MAX_PAIRS;
    for (int64_t panel = 0; panel < panel_count(job->num_rows); panel++)
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t first = t * pairs / tiles, end = (t + 1) * pairs / tiles;
            pair_tile(job, panel, 2 * first, end - first, format, panel_layout_of(headers));
        }
}

static void matmul_q8_0(const matmul_job *job) { pair_matmul(job, PANEL_Q8_0, PANEL_Q8_0); }
static void matmul_q4_0(const matmul_job *job) { pair_matmul(job, PANEL_Q4_0, PANEL_Q4_0); }
static void matmul_q4_1(const matmul_job *job) { pair_matmul(job, PANEL_Q4_1, PANEL_Q4_1); }
static void matmul_q5_1(const matmul_job *job) { pair_matmul(job, PANEL_Q5_1, PANEL_Q5_1); }
static void matmul_q4_k(const matmul_job *job) { pair_matmul(job, PANEL_Q4_1, PANEL_Q4_K); }
static void matmul_q5_k(const matmul_job *job) { pair_matmul(job, PANEL_Q5_1, PANEL_Q5_K); }
static void matmul_q6_k(const matmul_job *job) { pair_matmul(job, PANEL_Q6_K, PANEL_Q6_K); }

const kernels kernels_i8mm = NEON_KERNELS("i8mm");
#endif
