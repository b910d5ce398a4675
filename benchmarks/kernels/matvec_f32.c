/* matvec_f32.c: how many rows must one core take at once, to multiply an F32 matrix with a vector at memory's speed?
 *
 *     make -C benchmarks/kernels matvec_f32
 *
 * Answer (GB/s of weights, one thread, medians; Xeon (Sapphire Rapids), AVX2 kernels, 2 shared cores; three runs within
 * a tenth, but 1.6 MB within a quarter):          1.6 MB   16 MB   121 MB
 *   float dot                                        6.5     5.3      4.9
 *   eight neighbours at a time                      47      28       16
 *   one panel                                       31      23       16
 *   two panels                                      60      29       18
 *   eight panels                                   110      29       17
 *   four panels                                     95      29       17
 * One panel waits for its own sums (4 cycles for 32 bytes); two reach the memory's speed, eight the cache's best. Four
 * suit both, and smaller matrices divide by them.
 */
#include "ladder_matrix.h"

/* Eight neighbours of a row at a time, lanes summed for every row. */
static void vector_rows(void *argument) {
    matrix_problem *p = argument;
    for (int64_t r = 0; r < p->num_rows; r++) {
        const float *row = (const float *)(const void *)(p->rows + (size_t)r * p->row_bytes);
        __m256 sum = _mm256_setzero_ps();
        for (int64_t k = 0; k < p->row_length; k += 8)
            sum = _mm256_fmadd_ps(_mm256_loadu_ps(row + k), _mm256_loadu_ps(p->values + k), sum);
        p->out[r] = sum_lanes(sum);
    }
}

/* `panels` panels of eight interleaved rows at once: each is a chain of additions, which overlap. */
INLINE void some_panels(matrix_problem *p, int64_t panel, const int panels) {
    const float *weights[8];
    __m256 sums[8];
    UNROLL for (int i = 0; i < panels; i++) {
        weights[i] = (const float *)(const void *)(p->panels + (size_t)(panel + i) * p->panel_bytes);
        sums[i] = _mm256_setzero_ps();
    }
    for (int64_t k = 0; k < p->row_length; k++) {
        const __m256 value = _mm256_broadcast_ss(p->values + k);
        UNROLL for (int i = 0; i < panels; i++)
            sums[i] = _mm256_fmadd_ps(_mm256_loadu_ps(weights[i] + PANEL_ROWS * k), value, sums[i]);
    }
    UNROLL for (int i = 0; i < panels; i++) _mm256_storeu_ps(p->out + (panel + i) * PANEL_ROWS, sums[i]);
}

INLINE void interleaved_rows(matrix_problem *p, const int panels) {
    for (int64_t panel = 0; panel < p->num_rows / PANEL_ROWS; panel += panels) some_panels(p, panel, panels);
}

static void one_panel(void *argument) { interleaved_rows(argument, 1); }
static void two_panels(void *argument) { interleaved_rows(argument, 2); }
static void eight_panels(void *argument) { interleaved_rows(argument, 8); }

int main(void) {
    static const version versions[] = {{"1 float dot", rows_to_floats},
                                       {"2 eight neighbours at a time, lanes summed", vector_rows},
                                       {"3 one panel of eight interleaved rows", one_panel},
                                       {"4 two panels", two_panels},
                                       {"5 eight panels", eight_panels},
                                       {"6 the engine: four panels", engine}};
    static const int64_t rows[] = {512, 5248, 39424}; /* second cache, third, memory */
    climb_matvec(TENSOR_F32, rows, 3, versions, 6, 2);
    return 0;
}
