/* matmul_f32.c: how large a tile of outputs should stay in registers, to multiply an F32 matrix with 64 columns?
 *
 *     make -C benchmarks/kernels matmul_f32
 *
 * Answer (GMAC/s, one thread, medians of three runs; Xeon (Sapphire Rapids), AVX2 kernels, 2 shared cores):
 *   float dots 2.1; column by column 12; tiles of 1 panel x 1 column 7.7, 1 x 4 29, 1 x 8 47, 2 x 2 30, 2 x 4 50,
 *   2 x 6 55, 3 x 4 58, 4 x 3 47 (one column left over); the engine (2 x 6) 53
 * At least eight sums must be under way, for an addition takes 4 cycles and two begin in each; a tile needs
 * panels + columns loads for panels x columns multiplications, and 16 registers in all. 2 x 6 and 3 x 4 fill them;
 * 64 columns divide by four but not by six.
 */
#include "ladder_matrix.h"

/* A tile of `panels` panels x `columns` columns: that many sums stay in registers, each weight that is loaded meets all
 * columns and each value all panels. */
INLINE void tile(matrix_problem *p, int64_t panel, int64_t column, const int panels, const int columns) {
    const float *weights[4], *values[8];
    __m256 sums[4][8];
    UNROLL for (int i = 0; i < panels; i++)
        weights[i] = (const float *)(const void *)(p->panels + (size_t)(panel + i) * p->panel_bytes);
    UNROLL for (int c = 0; c < columns; c++) values[c] = p->values + (column + c) * p->row_length;
    UNROLL for (int i = 0; i < panels; i++) UNROLL for (int c = 0; c < columns; c++) sums[i][c] = _mm256_setzero_ps();
    for (int64_t k = 0; k < p->row_length; k++) {
        __m256 weight[4];
        UNROLL for (int i = 0; i < panels; i++) weight[i] = _mm256_loadu_ps(weights[i] + PANEL_ROWS * k);
        UNROLL for (int c = 0; c < columns; c++) {
            const __m256 value = _mm256_broadcast_ss(values[c] + k);
            UNROLL for (int i = 0; i < panels; i++) sums[i][c] = _mm256_fmadd_ps(weight[i], value, sums[i][c]);
        }
    }
    UNROLL for (int i = 0; i < panels; i++) UNROLL for (int c = 0; c < columns; c++)
        _mm256_storeu_ps(p->out + (column + c) * p->num_rows + (panel + i) * PANEL_ROWS, sums[i][c]);
}

/* What is left over of the columns is taken two at a time, then one. */
INLINE void tiles(matrix_problem *p, const int panels, const int columns) {
    for (int64_t panel = 0; panel < p->num_rows / PANEL_ROWS; panel += panels) {
        int64_t column = 0;
        for (; column + columns <= p->num_columns; column += columns) tile(p, panel, column, panels, columns);
        for (; column + 2 <= p->num_columns; column += 2) tile(p, panel, column, panels, 2);
        for (; column < p->num_columns; column++) tile(p, panel, column, panels, 1);
    }
}

static void tiles_1_1(void *argument) { tiles(argument, 1, 1); }
static void tiles_1_4(void *argument) { tiles(argument, 1, 4); }
static void tiles_1_8(void *argument) { tiles(argument, 1, 8); }
static void tiles_2_2(void *argument) { tiles(argument, 2, 2); }
static void tiles_2_4(void *argument) { tiles(argument, 2, 4); }
static void tiles_2_6(void *argument) { tiles(argument, 2, 6); }
static void tiles_3_4(void *argument) { tiles(argument, 3, 4); }
static void tiles_4_3(void *argument) { tiles(argument, 4, 3); }

int main(void) {
    static const version versions[] = {
        {"1 float dots", rows_to_floats},        {"2 the engine, column by column", engine_column_by_column},
        {"3 tiles of 1 panel x 1 column", tiles_1_1},     {"4 1 x 4", tiles_1_4},
        {"5 1 x 8", tiles_1_8},                           {"6 2 x 2", tiles_2_2},
        {"7 2 x 4", tiles_2_4},                           {"8 2 x 6, the rest by two", tiles_2_6},
        {"9 3 x 4", tiles_3_4},                           {"10 4 x 3, the rest by one", tiles_4_3},
        {"11 the engine: 2 x 6, the rest at once", engine}};
    climb_matmul(TENSOR_F32, versions, 11, 1);
    return 0;
}
