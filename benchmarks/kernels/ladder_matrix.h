/* ladder_matrix.h: a random matrix, as rows of a file and as panels, and columns to multiply it with. */
#ifndef LADDER_MATRIX_H
#define LADDER_MATRIX_H

#include <immintrin.h>

#include "kernels.h"
#include "ladder.h"

/* out[c][r] = sum over k of rows[r][k] * columns[c][k]. */
typedef struct {
    tensor_type type; /* F32, or quantised: the columns are bytes then */
    int64_t num_rows, row_length, num_blocks, num_columns;
    size_t block_bytes, row_bytes, panel_bytes;
    uint8_t *rows;            /* as in a file */
    uint8_t *panels;          /* as panel.h says */
    activation_block *blocks; /* [num_columns][num_blocks] */
    float *values;            /* [num_columns][row_length]: what the blocks stand for */
    float *out;               /* [num_columns][num_rows] */
} matrix_problem;

static inline void random_row(uint64_t *state, matrix_problem *p, uint8_t *row) {
    for (int64_t b = 0; b < p->num_blocks && p->type != TENSOR_F32; b++, row += p->block_bytes) {
        const uint16_t half = half_from_float(0.01f * random_float(state));
        for (size_t i = 0; i < p->block_bytes; i++) row[i] = (uint8_t)(random_bits(state) >> 56);
        memcpy(row, &half, sizeof half);
    }
    if (p->type == TENSOR_F32) random_floats(state, (size_t)p->row_length, (float *)(void *)row);
}

static inline void random_columns(uint64_t *state, matrix_problem *p) {
    random_floats(state, (size_t)(p->num_columns * p->row_length), p->values);
    if (p->type == TENSOR_F32) return;
    kernels_select(NULL)->quantise(p->values, p->num_columns * p->row_length, p->blocks);
    for (int64_t i = 0; i < p->num_columns * p->row_length; i++)
        p->values[i] = p->blocks[i / BLOCK_LENGTH].scale * p->blocks[i / BLOCK_LENGTH].values[i % BLOCK_LENGTH];
}

static inline matrix_problem make_matrix(tensor_type type, int64_t num_rows, int64_t row_length, int64_t num_columns) {
    uint64_t state = 1;
    int64_t block_elements;
    const char *name;
    matrix_problem p = {.type = type, .num_rows = num_rows, .row_length = row_length, .num_columns = num_columns};
    if (!tensor_type_blocks(type, &block_elements, &p.block_bytes, &name)) exit(1);
    p.num_blocks = row_length / BLOCK_LENGTH;
    p.row_bytes = (size_t)(row_length / block_elements) * p.block_bytes;
    p.panel_bytes = panel_bytes(panel_format_of(type), row_length);
    p.rows = allocate((size_t)num_rows * p.row_bytes);
    for (int64_t r = 0; r < num_rows; r++) random_row(&state, &p, p.rows + (size_t)r * p.row_bytes);
    const int64_t num_panels = num_rows / PANEL_ROWS;
    p.panels = allocate((size_t)num_panels * p.panel_bytes);
    if (!panel_pack(type, p.rows, p.row_bytes, num_rows, row_length, 0, num_panels, p.panels)) exit(1);
    p.blocks = allocate((size_t)(num_columns * p.num_blocks) * sizeof *p.blocks);
    p.values = allocate((size_t)(num_columns * row_length) * sizeof *p.values);
    p.out = allocate((size_t)(num_columns * num_rows) * sizeof *p.out);
    random_columns(&state, &p);
    return p;
}

static inline void free_matrix(matrix_problem *p) {
    free(p->rows);
    free(p->panels);
    free(p->blocks);
    free(p->values);
    free(p->out);
}

/* A row of a file as floats. */
static inline void row_of_floats(const matrix_problem *p, int64_t r, float *row) {
    const uint8_t *stored = p->rows + (size_t)r * p->row_bytes;
    if (p->type == TENSOR_F32) memcpy(row, stored, p->row_bytes);
    else tensor_type_dequantise(p->type)(stored, p->row_length, row);
}

/* All versions against sums in double (relative to the sum of the terms' sizes: 1e-5); those from first_exact on, which
 * have the engine's order of sums, also bit for bit against each other. */
static inline void check_matrix(matrix_problem *p, const version *versions, int num_versions, int first_exact) {
    const size_t num = (size_t)(p->num_rows * p->num_columns);
    double *exact = allocate(num * sizeof *exact), *magnitude = allocate(num * sizeof *magnitude);
    float *first = allocate(num * sizeof *first), *row = allocate((size_t)p->row_length * sizeof *row);
    for (int64_t r = 0; r < p->num_rows; r++) {
        row_of_floats(p, r, row);
        for (int64_t c = 0; c < p->num_columns; c++)
            for (int64_t k = 0; k < p->row_length; k++) {
                const double term = (double)row[k] * (double)p->values[c * p->row_length + k];
                exact[c * p->num_rows + r] += term;
                magnitude[c * p->num_rows + r] += fabs(term);
            }
    }
    for (int v = 0; v < num_versions; v++) {
        memset(p->out, 255, num * sizeof *p->out); /* NaN */
        versions[v].run(p);
        expect_close(versions[v].name, p->out, exact, magnitude, num, 1e-5);
        if (v == first_exact) memcpy(first, p->out, num * sizeof *first);
        if (v > first_exact) expect_same_bits(versions[v].name, p->out, first, num);
    }
    free(exact);
    free(magnitude);
    free(first);
    free(row);
}

/* ------------------------------------------------------------------ the first version and the last */

/* Each row becomes floats, which meet the columns' floats. */
static inline void rows_to_floats(void *argument) {
    matrix_problem *p = argument;
    float row[4096];
    for (int64_t r = 0; r < p->num_rows; r++) {
        row_of_floats(p, r, row);
        for (int64_t c = 0; c < p->num_columns; c++) {
            float sum = 0;
            for (int64_t k = 0; k < p->row_length; k++) sum += row[k] * p->values[c * p->row_length + k];
            p->out[c * p->num_rows + r] = sum;
        }
    }
}

/* Columns [first, first + num) through the engine's kernel. */
static inline void engine_columns(matrix_problem *p, int64_t first, int64_t num) {
    const bool floats = p->type == TENSOR_F32;
    const size_t column_bytes = floats ? (size_t)p->row_length * sizeof *p->values
                                       : (size_t)p->num_blocks * sizeof *p->blocks;
    const char *columns = floats ? (const char *)p->values : (const char *)p->blocks;
    kernels_select(NULL)->matmul[panel_format_of(p->type)](
        &(matmul_job){.panels = p->panels,
                      .panel_bytes = p->panel_bytes,
                      .num_rows = p->num_rows,
                      .row_length = p->row_length,
                      .columns = columns + (size_t)first * column_bytes,
                      .column_bytes = column_bytes,
                      .num_columns = num,
                      .out = p->out + first * p->num_rows,
                      .out_stride = (size_t)p->num_rows});
}

static inline void engine(void *argument) {
    matrix_problem *p = argument;
    engine_columns(p, 0, p->num_columns);
}

static inline void engine_column_by_column(void *argument) {
    matrix_problem *p = argument;
    for (int64_t c = 0; c < p->num_columns; c++) engine_columns(p, c, 1);
}

/* ------------------------------------------------------------------ what versions are made of */

INLINE __m256i load(const void *address) { return _mm256_loadu_si256(address); }

INLINE float sum_lanes(__m256 lanes) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* The sums of four products of signed bytes, in eight lanes: |code| * (value with the code's sign), exact. */
INLINE __m256i multiply_signed(__m256i codes, __m256i values) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(values, codes));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* Four bytes of a column, in every lane. */
INLINE __m256i broadcast_quad(const activation_block *block, int q) {
    int32_t four;
    memcpy(&four, block->values + 4 * q, sizeof four);
    return _mm256_set1_epi32(four);
}

INLINE __m256 load_halves(const uint8_t *address) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)address)); }

INLINE float load_half(const uint8_t *address) {
    uint16_t half;
    memcpy(&half, address, sizeof half);
    return _cvtsh_ss(half);
}

/* One problem after another: checked, timed, printed with the matrix's bytes a second. */
static inline void climb_matvec(tensor_type type, const int64_t *rows, int num_sizes, const version *versions,
                                int num_versions, int first_exact) {
    const int64_t row_length = 768;
    for (int i = 0; i < num_sizes; i++) {
        matrix_problem p = make_matrix(type, rows[i], row_length, 1);
        const double bytes = (double)p.num_rows * (double)p.row_bytes;
        char title[64];
        snprintf(title, sizeof title, "%lld x %lld, %.1f MB", (long long)p.num_rows, (long long)row_length,
                 bytes * 1e-6);
        double seconds[MAX_VERSIONS];
        check_matrix(&p, versions, num_versions, first_exact);
        measure(versions, num_versions, &p, seconds);
        print_table(title, versions, num_versions, seconds, bytes, "GB/s");
        free_matrix(&p);
    }
}

/* 64 columns and a matrix that fits the second cache: multiplications a second. */
static inline void climb_matmul(tensor_type type, const version *versions, int num_versions, int first_exact) {
    matrix_problem p = make_matrix(type, 768, 768, 64);
    double seconds[MAX_VERSIONS];
    check_matrix(&p, versions, num_versions, first_exact);
    measure(versions, num_versions, &p, seconds);
    print_table("768 x 768, 64 columns", versions, num_versions, seconds, 768.0 * 768 * 64, "GMAC/s");
    free_matrix(&p);
}

#endif
