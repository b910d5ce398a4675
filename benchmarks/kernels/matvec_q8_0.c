/* matvec_q8_0.c: how fast does one core multiply a Q8_0 matrix with a vector of bytes, and what does each step buy?
 *
 *     make -C benchmarks/kernels matvec_q8_0
 *
 * Answer (GB/s of weights, one thread, medians; Xeon (Sapphire Rapids), AVX2 kernels, 2 shared cores; three runs within
 * a tenth):                                       0.6 MB   16 MB   120 MB
 *   rows to floats                                   1.5     1.2      1.2
 *   bytes, row by row                               27       7.5      8.4
 *   eight rows interleaved                          49      13       12
 *   asking 8 KiB ahead                              49      27       14
 * Interleaving wins everywhere: no sums across lanes, scales eight at a time. Asking ahead doubles what comes from
 * the third cache, costs nothing in the second, and gives a tenth from memory.
 */
#include "ladder_matrix.h"

/* Bytes meet bytes, row by row (the shape of ggml's vec_dot): one accumulator, whose lanes are summed for every row, and
 * one scale at a time. */
static void byte_rows(void *argument) {
    matrix_problem *p = argument;
    for (int64_t r = 0; r < p->num_rows; r++) {
        const uint8_t *block = p->rows + (size_t)r * p->row_bytes;
        __m256 sum = _mm256_setzero_ps();
        for (int64_t b = 0; b < p->num_blocks; b++, block += p->block_bytes) {
            const __m256i whole = multiply_signed(load(block + 2), load(p->blocks[b].values));
            const __m256 scale = _mm256_set1_ps(load_half(block) * p->blocks[b].scale);
            sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, sum);
        }
        p->out[r] = sum_lanes(sum);
    }
}

/* Eight rows interleaved: a lane is a row, so nothing is summed across lanes, and eight scales are one load. */
static void interleaved_rows(void *argument) {
    matrix_problem *p = argument;
    for (int64_t panel = 0; panel < p->num_rows / PANEL_ROWS; panel++) {
        const uint8_t *codes = p->panels + (size_t)panel * p->panel_bytes, *halves = codes + p->num_blocks * 256;
        __m256 sums = _mm256_setzero_ps();
        for (int64_t b = 0; b < p->num_blocks; b++, codes += 256, halves += 16) {
            __m256i whole = _mm256_setzero_si256();
            UNROLL for (int q = 0; q < 8; q++)
                whole = _mm256_add_epi32(whole,
                                         multiply_signed(load(codes + 32 * q), broadcast_quad(&p->blocks[b], q)));
            const __m256 scales = _mm256_mul_ps(load_halves(halves), _mm256_set1_ps(p->blocks[b].scale));
            sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scales, sums);
        }
        _mm256_storeu_ps(p->out + panel * PANEL_ROWS, sums);
    }
}

int main(void) {
    static const version versions[] = {{"1 rows to floats, float dot", rows_to_floats},
                                       {"2 bytes, row by row, lanes summed", byte_rows},
                                       {"3 eight rows interleaved", interleaved_rows},
                                       {"4 the engine: asks 8 KiB ahead", engine}};
    static const int64_t rows[] = {768, 19712, 147456}; /* second cache, third, memory */
    climb_matvec(TENSOR_Q8_0, rows, 3, versions, 4, 2);
    return 0;
}
