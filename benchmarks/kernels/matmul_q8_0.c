/* matmul_q8_0.c: how many columns should a panel of Q8_0 weights meet at once, to multiply a matrix with 64 columns?
 *
 *     make -C benchmarks/kernels matmul_q8_0
 *
 * Answer (GMAC/s, one thread, medians of three runs; Xeon (Sapphire Rapids), AVX2 kernels, 2 cores):
 *   rows to floats 2.2; column by column 51; tiles of 1 panel x 1 column 52, 1 x 2 64, 1 x 3 62, 1 x 4 61, 1 x 8 64,
 *   2 x 1 52, 2 x 2 60, 2 x 4 63; the engine (1 x 8) 63
 * The multiplications themselves (sign, maddubs, madd, add for 32 products) are the limit: a second column saves the
 * loads and sizes of codes, a fifth in all, and from there on the shape hardly matters, registers or not. The engine
 * takes eight columns, then four, and 1 to 3 of a prompt's tail: beside four alone, prompts of 512 (110M, two threads)
 * took 7 % less time, eight sequences 12 %, where codes come from memory.
 * Codes and values widened to 16 bits beforehand (madd, add for 16 products, nothing of signs): 54 to 67 where the
 * engine had 57 to 64. Not taken: a few per cent at best where sign, maddubs and madd share two ports, for a kernel
 * with memory of its own; where signs have ports of their own (Zen 3), both need a cycle for 32 products.
 */
#include "ladder_matrix.h"

/* Block b of `panels` panels meets `columns` columns. The codes' sizes are computed once for all columns; their signs
 * go to every value. */
INLINE void add_block(const uint8_t *const *codes, const uint8_t *const *halves, const activation_block *const *blocks,
                      const int panels, const int columns, __m256 sums[2][8]) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i whole[2][8];
    UNROLL for (int q = 0; q < 8; q++) UNROLL for (int i = 0; i < panels; i++) {
        const __m256i code = load(codes[i] + 32 * q), size = _mm256_abs_epi8(code);
        UNROLL for (int c = 0; c < columns; c++) {
            const __m256i value = _mm256_sign_epi8(broadcast_quad(blocks[c], q), code);
            const __m256i products = _mm256_madd_epi16(_mm256_maddubs_epi16(size, value), ones);
            whole[i][c] = q == 0 ? products : _mm256_add_epi32(whole[i][c], products);
        }
    }
    UNROLL for (int i = 0; i < panels; i++) {
        const __m256 scale = load_halves(halves[i]);
        UNROLL for (int c = 0; c < columns; c++) {
            const __m256 scales = _mm256_mul_ps(scale, _mm256_set1_ps(blocks[c]->scale));
            sums[i][c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[i][c]), scales, sums[i][c]);
        }
    }
}

/* A tile of `panels` panels x `columns` columns of outputs, whose sums stay in registers if there are enough. */
INLINE void tile(matrix_problem *p, int64_t panel, int64_t column, const int panels, const int columns) {
    const uint8_t *codes[2], *halves[2];
    const activation_block *blocks[8];
    __m256 sums[2][8];
    UNROLL for (int i = 0; i < panels; i++) {
        codes[i] = p->panels + (size_t)(panel + i) * p->panel_bytes;
        halves[i] = codes[i] + p->num_blocks * 256;
    }
    UNROLL for (int c = 0; c < columns; c++) blocks[c] = p->blocks + (column + c) * p->num_blocks;
    UNROLL for (int i = 0; i < panels; i++) UNROLL for (int c = 0; c < columns; c++) sums[i][c] = _mm256_setzero_ps();
    for (int64_t b = 0; b < p->num_blocks; b++) {
        add_block(codes, halves, blocks, panels, columns, sums);
        UNROLL for (int i = 0; i < panels; i++) codes[i] += 256, halves[i] += 16;
        UNROLL for (int c = 0; c < columns; c++) blocks[c]++;
    }
    UNROLL for (int i = 0; i < panels; i++) UNROLL for (int c = 0; c < columns; c++)
        _mm256_storeu_ps(p->out + (column + c) * p->num_rows + (panel + i) * PANEL_ROWS, sums[i][c]);
}

/* What is left over of the columns is taken one at a time. */
INLINE void tiles(matrix_problem *p, const int panels, const int columns) {
    for (int64_t panel = 0; panel < p->num_rows / PANEL_ROWS; panel += panels) {
        int64_t column = 0;
        for (; column + columns <= p->num_columns; column += columns) tile(p, panel, column, panels, columns);
        for (; column < p->num_columns; column++) tile(p, panel, column, panels, 1);
    }
}

/* ------------------------------------------------------------------ codes and values as 16 bits */

enum { WIDE_BLOCKS = 8, WIDE_COLUMNS = 64 };

typedef struct {
    _Alignas(64) int16_t codes[2][WIDE_BLOCKS][16][16]; /* of a panel, a block: pair of k, then rows */
    _Alignas(64) int16_t values[WIDE_COLUMNS][WIDE_BLOCKS][32];
} wide;

INLINE void widen_codes(const uint8_t *codes, int64_t num_blocks, int16_t out[][16][16]) {
    for (int64_t b = 0; b < num_blocks; b++)
        for (int q = 0; q < 8; q++, codes += 32) {
            /* A row's four: the pairs of all rows with k = 0, 1, then those with k = 2, 3. */
            const __m256i quad = load(codes);
            const __m256i first = _mm256_srai_epi16(_mm256_slli_epi16(quad, 8), 8), second = _mm256_srai_epi16(quad, 8);
            _mm256_store_si256((__m256i *)out[b][2 * q], first);      /* k = 0, 2 */
            _mm256_store_si256((__m256i *)out[b][2 * q + 1], second); /* k = 1, 3 */
        }
}

/* k = 0, 2, 1, 3 of each quad */
INLINE void widen_values(const activation_block *blocks, int64_t num_blocks, int16_t out[][32]) {
    const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    for (int64_t b = 0; b < num_blocks; b++)
        for (int i = 0; i < 2; i++) {
            const __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128((const void *)(blocks[b].values + 16 * i)), order);
            _mm256_store_si256((__m256i *)(out[b] + 16 * i), _mm256_cvtepi8_epi16(bytes));
        }
}

INLINE __m256i broadcast_pair(const int16_t *pair) {
    int32_t two;
    memcpy(&two, pair, sizeof two);
    return _mm256_set1_epi32(two);
}

INLINE void wide_tile(matrix_problem *p, const wide *w, int64_t panel, int64_t column, int64_t first,
                      int64_t num_blocks, const int panels, const int columns) {
    __m256 sums[2][4];
    UNROLL for (int i = 0; i < panels; i++) UNROLL for (int c = 0; c < columns; c++)
        sums[i][c] = first == 0 ? _mm256_setzero_ps()
                                : _mm256_loadu_ps(p->out + (column + c) * p->num_rows + (panel + i) * PANEL_ROWS);
    for (int64_t b = 0; b < num_blocks; b++) {
        __m256i whole[2][4];
        UNROLL for (int i = 0; i < panels; i++) UNROLL for (int c = 0; c < columns; c++)
            whole[i][c] = _mm256_setzero_si256();
        for (int j = 0; j < 16; j++) { /* unrolled, GCC adds in a tree, for which there are not enough registers */
            __m256i code[2];
            UNROLL for (int i = 0; i < panels; i++)
                code[i] = _mm256_load_si256((const __m256i *)w->codes[i][b][j]);
            UNROLL for (int c = 0; c < columns; c++) {
                const __m256i value = broadcast_pair(w->values[column + c][b] + 2 * j);
                UNROLL for (int i = 0; i < panels; i++)
                    whole[i][c] = _mm256_add_epi32(whole[i][c], _mm256_madd_epi16(code[i], value));
            }
        }
        UNROLL for (int i = 0; i < panels; i++) {
            const __m256 scale = load_halves(p->panels + (size_t)(panel + i) * p->panel_bytes + p->num_blocks * 256 +
                                             (first + b) * 16);
            UNROLL for (int c = 0; c < columns; c++) {
                const __m256 scales =
                    _mm256_mul_ps(scale, _mm256_set1_ps(p->blocks[(column + c) * p->num_blocks + first + b].scale));
                sums[i][c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[i][c]), scales, sums[i][c]);
            }
        }
    }
    UNROLL for (int i = 0; i < panels; i++) UNROLL for (int c = 0; c < columns; c++)
        _mm256_storeu_ps(p->out + (column + c) * p->num_rows + (panel + i) * PANEL_ROWS, sums[i][c]);
}

INLINE void wide_tiles(matrix_problem *p, const int panels, const int columns) {
    static wide w;
    for (int64_t first = 0; first < p->num_blocks; first += WIDE_BLOCKS) {
        const int64_t left = p->num_blocks - first, num_blocks = left < WIDE_BLOCKS ? left : WIDE_BLOCKS;
        for (int64_t c = 0; c < p->num_columns; c++)
            widen_values(p->blocks + c * p->num_blocks + first, num_blocks, w.values[c]);
        for (int64_t panel = 0; panel < p->num_rows / PANEL_ROWS; panel += panels) {
            for (int i = 0; i < panels; i++)
                widen_codes(p->panels + (size_t)(panel + i) * p->panel_bytes + first * 256, num_blocks, w.codes[i]);
            for (int64_t column = 0; column < p->num_columns; column += columns)
                wide_tile(p, &w, panel, column, first, num_blocks, panels, columns);
        }
    }
}

static void wide_2_4(void *argument) { wide_tiles(argument, 2, 4); }

static void tiles_1_1(void *argument) { tiles(argument, 1, 1); }
static void tiles_1_2(void *argument) { tiles(argument, 1, 2); }
static void tiles_1_3(void *argument) { tiles(argument, 1, 3); }
static void tiles_1_4(void *argument) { tiles(argument, 1, 4); }
static void tiles_1_8(void *argument) { tiles(argument, 1, 8); }
static void tiles_2_1(void *argument) { tiles(argument, 2, 1); }
static void tiles_2_2(void *argument) { tiles(argument, 2, 2); }
static void tiles_2_4(void *argument) { tiles(argument, 2, 4); }

int main(void) {
    static const version versions[] = {
        {"1 rows to floats, float dots", rows_to_floats}, {"2 the engine, column by column", engine_column_by_column},
        {"3 tiles of 1 panel x 1 column", tiles_1_1},     {"4 1 x 2", tiles_1_2},
        {"5 1 x 3, the rest by one", tiles_1_3},          {"6 1 x 4", tiles_1_4},
        {"7 1 x 8", tiles_1_8},                           {"8 2 x 1", tiles_2_1},
        {"9 2 x 2", tiles_2_2},                           {"10 2 x 4", tiles_2_4},
        {"11 2 x 4 of codes widened to 16 bits", wide_2_4}, {"12 the engine: 1 x 8", engine}};
    climb_matmul(TENSOR_Q8_0, versions, 12, 1);
    return 0;
}
