/* matvec_q4_0.c: how fast does one core multiply a Q4_0 matrix with a vector of bytes: where does the -8 go?
 *
 *     make -C benchmarks/kernels matvec_q4_0
 *
 * Answer (GB/s of weights, one thread, medians; Xeon (Sapphire Rapids), AVX2 kernels, 2 shared cores; three runs within
 * a tenth):                                       0.3 MB   16 MB   120 MB
 *   rows to floats                                   0.7     0.8      0.8
 *   bytes, row by row                               11       3.3      3.3
 *   eight rows interleaved, codes made signed       22       9.7      9.4
 *   unsigned codes, one correction                  37      10.5     10
 *   asking 8 KiB ahead                              34      28       12
 * Codes from 0 to 15 need no signs, and one madd for eight products: two thirds more in the cache. Beyond it waiting
 * for memory hides that, until one asks ahead. (4 KiB ahead: 13 from memory, the same elsewhere.)
 */
#include "ladder_matrix.h"

/* Row by row (the shape of ggml's vec_dot): 16 bytes become 32 codes from -8 to 7, lanes summed for every row. */
static void nibble_rows(void *argument) {
    matrix_problem *p = argument;
    const __m256i low = _mm256_set1_epi8(15), eight = _mm256_set1_epi8(8);
    for (int64_t r = 0; r < p->num_rows; r++) {
        const uint8_t *block = p->rows + (size_t)r * p->row_bytes;
        __m256 sum = _mm256_setzero_ps();
        for (int64_t b = 0; b < p->num_blocks; b++, block += p->block_bytes) {
            const __m128i bytes = _mm_loadu_si128((const void *)(block + 2));
            const __m256i both = _mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes);
            const __m256i codes = _mm256_sub_epi8(_mm256_and_si256(both, low), eight);
            const __m256i whole = multiply_signed(codes, load(p->blocks[b].values));
            const __m256 scale = _mm256_set1_ps(load_half(block) * p->blocks[b].scale);
            sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, sum);
        }
        p->out[r] = sum_lanes(sum);
    }
}

/* sum of (q - 8) v of a block in eight rows: every code becomes signed, every four products 32 bits. */
INLINE __m256i sum_signed(const uint8_t *codes, const activation_block *block) {
    __m256i whole = _mm256_setzero_si256();
    UNROLL for (int q = 0; q < 8; q++) {
        __m256i nibbles = load(codes + 32 * (q % 4));
        if (q >= 4) nibbles = _mm256_srli_epi16(nibbles, 4);
        nibbles = _mm256_sub_epi8(_mm256_and_si256(nibbles, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
        whole = _mm256_add_epi32(whole, multiply_signed(nibbles, broadcast_quad(block, q)));
    }
    return whole;
}

/* The same: codes stay from 0 to 15, eight products of two pairs fit 16 bits (8 * 15 * 127 * 2 = 30,480), and
 * 8 * (sum of v), which was computed with the vector, goes off once. */
INLINE __m256i sum_unsigned(const uint8_t *codes, const activation_block *block) {
    __m256i pairs = _mm256_setzero_si256();
    UNROLL for (int q = 0; q < 8; q++) {
        __m256i nibbles = load(codes + 32 * (q % 4));
        if (q >= 4) nibbles = _mm256_srli_epi16(nibbles, 4);
        nibbles = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(nibbles, broadcast_quad(block, q)));
    }
    return _mm256_sub_epi32(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)), _mm256_set1_epi32(block->eight_sums));
}

INLINE void interleaved_rows(matrix_problem *p, const bool is_signed) {
    for (int64_t panel = 0; panel < p->num_rows / PANEL_ROWS; panel++) {
        const uint8_t *codes = p->panels + (size_t)panel * p->panel_bytes, *halves = codes + p->num_blocks * 128;
        __m256 sums = _mm256_setzero_ps();
        for (int64_t b = 0; b < p->num_blocks; b++, codes += 128, halves += 16) {
            const activation_block *block = &p->blocks[b];
            const __m256i whole = is_signed ? sum_signed(codes, block) : sum_unsigned(codes, block);
            const __m256 scales = _mm256_mul_ps(load_halves(halves), _mm256_set1_ps(block->scale));
            sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scales, sums);
        }
        _mm256_storeu_ps(p->out + panel * PANEL_ROWS, sums);
    }
}

static void interleaved_signed(void *argument) { interleaved_rows(argument, true); }
static void interleaved_unsigned(void *argument) { interleaved_rows(argument, false); }

int main(void) {
    static const version versions[] = {{"1 rows to floats, float dot", rows_to_floats},
                                       {"2 bytes, row by row, lanes summed", nibble_rows},
                                       {"3 eight rows interleaved, codes made signed", interleaved_signed},
                                       {"4 unsigned codes, 16-bit sums, one correction", interleaved_unsigned},
                                       {"5 the engine: asks 8 KiB ahead", engine}};
    static const int64_t rows[] = {768, 37120, 277504}; /* second cache, third, memory */
    climb_matvec(TENSOR_Q4_0, rows, 3, versions, 5, 2);
    return 0;
}
