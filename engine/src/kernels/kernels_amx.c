/* kernels_amx.c: the kernels for x86-64 processors with AMX and its int8 (Intel servers since 2023).
 * A tile instruction multiplies sixteen columns of activations by sixteen rows of codes. Only
 * quantized matrices by several columns are here; the other kernels are those of kernels_avx512.c.
 *
 * Codes are unpacked once for all columns. Then, for sixteen columns at a time, the integer sums of
 * a block come from the tile unit through memory, and are scaled and added as everywhere. */
#if defined(LLAMITA_HAS_AMX)
#define KERNELS_AMX
#define OWN_BLOCK_MATMUL
#include "kernels/kernels_avx512.c"

#define TILE_COLUMNS 16
#define SUPER_BLOCKS (SUPER_LENGTH / BLOCK_LENGTH)
#define CHUNK 8       /* blocks that are unpacked at once: 20 KB for two vectors, and 6 KB of columns */
#define VECTORS 2     /* that share the columns in the first-level cache */
#define MIN_COLUMNS 8 /* fewer take as many instructions with AVX-512 */

/* A block of the rows of a vector. Codes lie as tiles want them, less their zero point. Those of Q6_K
 * are two tiles, each with zeros in the place of the other half. */
typedef struct {
    int8_t code[2][BLOCK_LENGTH / 4][VECTOR_ROWS][4];
    float scale[VECTOR_ROWS], minimum[VECTOR_ROWS];
    int32_t scale_of_half[2][VECTOR_ROWS]; /* Q6_K */
} unpacked_block;

/* Unpacks blocks first .. first + num - 1 of the rows of a vector. */
INLINE void unpack(const matmul_job *job, panels p, int64_t first, int64_t num, const panel_format format,
                   const panel_layout layout, unpacked_block *out) {
    const size_t num_blocks = (size_t)(job->row_length / BLOCK_LENGTH), headers = num_blocks * layout.code_bytes,
                 supers = headers + num_blocks * layout.header_bytes;
    const char zero_point = format == PANEL_Q4_0 ? 8 : format == PANEL_Q6_K ? 32 : 0;
    for (size_t b = (size_t)first; b < (size_t)(first + num); b++, out++) {
        UNROLL for (int q = 0; q < BLOCK_LENGTH / 4; q++) {
            const codes code = load_codes_of_quad(p, b * layout.code_bytes, q, format);
            _mm512_storeu_si512(out->code[format == PANEL_Q6_K ? q / 4 : 0][q],
                                _mm512_sub_epi8(code, _mm512_set1_epi8(zero_point)));
        }
        const size_t header = headers + b * layout.header_bytes,
                     super = layout.super_bytes > 0 ? supers + b / SUPER_BLOCKS * layout.super_bytes : 0;
        floats minimum = all_floats(0.0f);
        store_floats(out->scale, block_scales(p, header, super, format, &minimum));
        store_floats(out->minimum, minimum);
        if (format == PANEL_Q6_K)
            UNROLL for (int half = 0; half < 2; half++)
                _mm512_storeu_si512(out->scale_of_half[half], widen(p, header + (size_t)half * PANEL_ROWS, true));
    }
}

static void unpack_chunk(const matmul_job *job, int64_t vector, int64_t first, int64_t num, panel_format format,
                         unpacked_block *out) {
    const panels p = panels_at(job, vector);
    const panel_layout layout = panel_layout_of(format);
    switch (format) {
    case PANEL_Q8_0: unpack(job, p, first, num, PANEL_Q8_0, layout, out); break;
    case PANEL_Q4_0: unpack(job, p, first, num, PANEL_Q4_0, layout, out); break;
    case PANEL_Q6_K: unpack(job, p, first, num, PANEL_Q6_K, layout, out); break;
    case PANEL_Q4_1:
    case PANEL_Q4_K: unpack(job, p, first, num, PANEL_Q4_1, layout, out); break;
    default: unpack(job, p, first, num, PANEL_Q5_1, layout, out);
    }
    __asm__ volatile("" ::: "memory"); /* gcc does not know that tiles read what was stored */
}

/* ------------------------------------------------------------------ tiles */

/* Columns, and a chunk of a vector's blocks to multiply them by. */
typedef struct {
    const unpacked_block *blocks;
    int64_t first, num_blocks, vector, column, num_columns;
    const activation_block *columns[TILE_COLUMNS]; /* of this chunk; past the last column, that again */
} tile;

/* Tile 0 is the sums [columns][VECTOR_ROWS], tile 1 the activations [columns][BLOCK_LENGTH], tile 2
 * the codes. */
static void begin_tiles(int64_t columns) {
    const uint8_t rows = (uint8_t)columns;
    const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes_per_row[16];
        uint8_t rows[16];
    } shapes = {1, 0, {0}, {4 * VECTOR_ROWS, BLOCK_LENGTH, 4 * VECTOR_ROWS}, {rows, rows, BLOCK_LENGTH / 4}};
    _tile_loadconfig(&shapes);
}

/* sums[c][row] = the sum of codes and values of a block, exact. */
INLINE void sum_tile(const activation_block *columns, size_t column_bytes, const void *codes,
                     int32_t (*sums)[VECTOR_ROWS]) {
    _tile_zero(0);
    _tile_loadd(1, columns->values, column_bytes);
    _tile_loadd(2, codes, 4 * VECTOR_ROWS);
    _tile_dpbssd(0, 1, 2);
    _tile_stored(0, sums, 4 * VECTOR_ROWS);
}

INLINE integers integers_at(const int32_t *at) { return _mm512_loadu_si512(at); }

/* Adds a chunk to the outputs of its columns, at most max_columns. Of the formats, PANEL_Q8_0 stands
 * for all that have only scales. */
INLINE void add_chunk(const matmul_job *job, const tile *t, const int max_columns, const panel_format format) {
    const int64_t row = t->vector * VECTOR_ROWS, left = job->num_rows - row;
    const __mmask16 rows = (__mmask16)(left >= VECTOR_ROWS ? 0xffff : (1u << left) - 1);
    float *out = job->out + (size_t)t->column * job->out_stride + (size_t)row;
    _Alignas(64) int32_t whole[TILE_COLUMNS][VECTOR_ROWS], second[TILE_COLUMNS][VECTOR_ROWS];
    floats sums[TILE_COLUMNS];
    UNROLL for (int c = 0; c < max_columns; c++) /* those of the chunk before; first, zeros */
        sums[c] =
            _mm512_maskz_loadu_ps(t->first > 0 && c < t->num_columns ? rows : 0, out + (size_t)c * job->out_stride);
    for (int64_t b = 0; b < t->num_blocks; b++) {
        const unpacked_block *block = t->blocks + b;
        const floats scale = _mm512_loadu_ps(block->scale), minimum = _mm512_loadu_ps(block->minimum);
        sum_tile(t->columns[0] + b, job->column_bytes, block->code[0], whole);
        if (format == PANEL_Q6_K) sum_tile(t->columns[0] + b, job->column_bytes, block->code[1], second);
        UNROLL for (int c = 0; c < max_columns; c++) {
            const activation_block *values = t->columns[c] + b;
            integers sum = integers_at(whole[c]);
            if (format == PANEL_Q6_K)
                sum = add_integers(multiply_integers(sum, integers_at(block->scale_of_half[0])),
                                   multiply_integers(integers_at(second[c]), integers_at(block->scale_of_half[1])));
            sums[c] = multiply_add(to_floats(sum), multiply(scale, all_floats(values->scale)), sums[c]);
            if (has_minimum(format)) sums[c] = multiply_add(minimum, all_floats(values->scaled_sum), sums[c]);
        }
    }
    UNROLL for (int c = 0; c < max_columns; c++)
        _mm512_mask_storeu_ps(out + (size_t)c * job->out_stride, c < t->num_columns ? rows : 0, sums[c]);
}

static void add_scaled(const matmul_job *job, const tile *t, bool half) {
    if (half) add_chunk(job, t, TILE_COLUMNS / 2, PANEL_Q8_0);
    else add_chunk(job, t, TILE_COLUMNS, PANEL_Q8_0);
}

static void add_scaled_with_minimum(const matmul_job *job, const tile *t, bool half) {
    if (half) add_chunk(job, t, TILE_COLUMNS / 2, PANEL_Q4_1);
    else add_chunk(job, t, TILE_COLUMNS, PANEL_Q4_1);
}

static void add_scaled_halves(const matmul_job *job, const tile *t, bool half) {
    (void)half;
    add_chunk(job, t, TILE_COLUMNS, PANEL_Q6_K);
}

/* Vectors past the end are repetitions that are not stored. Tiles of columns are nearly equal, and
 * the widest is last: all are loaded as wide as that, so a narrower one loads the next one's first
 * column, and none loads past the end. */
static void tile_matmul(const matmul_job *job, panel_format format,
                        void (*add)(const matmul_job *job, const tile *t, bool half)) {
    const int64_t num_columns = job->num_columns, num_blocks = job->row_length / BLOCK_LENGTH,
                  num_vectors = (job->num_rows + VECTOR_ROWS - 1) / VECTOR_ROWS;
    if (num_columns < MIN_COLUMNS) {
        kernels_avx512.matmul[format](job);
        return;
    }
    const int64_t num_tiles = (num_columns + TILE_COLUMNS - 1) / TILE_COLUMNS,
                  widest = (num_columns + num_tiles - 1) / num_tiles;
    _Alignas(64) unpacked_block blocks[VECTORS][CHUNK];
    memset(blocks, 0, sizeof blocks);
    tile t = {.blocks = NULL};
    begin_tiles(widest);
    for (int64_t vector = 0; vector < num_vectors; vector += VECTORS)
        for (t.first = 0; t.first < num_blocks; t.first += CHUNK) {
            t.num_blocks = num_blocks - t.first < CHUNK ? num_blocks - t.first : CHUNK;
            for (int v = 0; v < VECTORS; v++) unpack_chunk(job, vector + v, t.first, t.num_blocks, format, blocks[v]);
            for (int64_t i = 0; i < num_tiles; i++) {
                t.column = i * num_columns / num_tiles;
                t.num_columns = (i + 1) * num_columns / num_tiles - t.column;
                for (int64_t c = 0; c < TILE_COLUMNS; c++) {
                    const int64_t column = t.column + (c < t.num_columns ? c : t.num_columns - 1);
                    t.columns[c] = (const activation_block *)column_at(job, column) + t.first;
                }
                for (int v = 0; v < VECTORS && vector + v < num_vectors; v++) {
                    t.vector = vector + v;
                    t.blocks = blocks[v];
                    add(job, &t, widest <= TILE_COLUMNS / 2);
                }
            }
        }
    _tile_release();
}

static void matmul_q8_0(const matmul_job *job) { tile_matmul(job, PANEL_Q8_0, add_scaled); }
static void matmul_q4_0(const matmul_job *job) { tile_matmul(job, PANEL_Q4_0, add_scaled); }
static void matmul_q4_1(const matmul_job *job) { tile_matmul(job, PANEL_Q4_1, add_scaled_with_minimum); }
static void matmul_q5_1(const matmul_job *job) { tile_matmul(job, PANEL_Q5_1, add_scaled_with_minimum); }
static void matmul_q4_k(const matmul_job *job) { tile_matmul(job, PANEL_Q4_K, add_scaled_with_minimum); }
static void matmul_q5_k(const matmul_job *job) { tile_matmul(job, PANEL_Q5_K, add_scaled_with_minimum); }
static void matmul_q6_k(const matmul_job *job) { tile_matmul(job, PANEL_Q6_K, add_scaled_halves); }

const kernels kernels_amx = AVX512_KERNELS("amx");
#endif
