/* tiles.h: products of panels and columns, for the vectors of any instruction set. No include
 * guard: part of kernels_avx2.c and files like it, which first define
 *
 *   floats, integers   a number for each of the rows of VECTOR_PANELS panels side by side
 *   codes              four bytes for each of these rows, as loaded; quad: as multiplied
 *   values             VALUES floats of a column; quads: sixteen bytes of an activation_block
 *   products           sums of products of bytes, until they are an integer for each row
 *
 * and their operations. A tile is a few vectors of rows by a few columns of outputs, whose sums
 * stay in registers. Tile sizes are literals so that the compiler unrolls the loops over them. With
 * one column (decoding), a tile reads panels as fast as memory delivers them; several columns share
 * what was loaded and unpacked for one. */

/* The panels of a vector. Past the end of the matrix the last one is repeated. */
INLINE panels panels_at(const matmul_job *job, int64_t vector) {
    const int64_t last = panel_count(job->num_rows) - 1;
    panels p;
    UNROLL for (int i = 0; i < VECTOR_PANELS; i++) {
        const int64_t panel = VECTOR_PANELS * vector + i;
        p.at[i] = (const uint8_t *)job->panels + (size_t)(panel < last ? panel : last) * job->panel_bytes;
    }
    return p;
}

INLINE const void *column_at(const matmul_job *job, int64_t column) {
    return (const char *)job->columns + (size_t)column * job->column_bytes;
}

/* Stores the outputs of a few columns, without padding rows beyond the end of the matrix. One test of
 * the end for all columns: with one for each, the program had 41 KB more. */
INLINE void store_columns(const matmul_job *job, int64_t vector, int64_t column, const int columns,
                          const floats *sums) {
    const int64_t row = vector * VECTOR_ROWS, left = job->num_rows - row;
    const size_t stride = job->out_stride;
    float *out = job->out + (size_t)column * stride + (size_t)row;
    if (left >= VECTOR_ROWS) UNROLL for (int c = 0; c < columns; c++) store_floats(out + (size_t)c * stride, sums[c]);
    else if (left > 0) UNROLL for (int c = 0; c < columns; c++) store_first(out + (size_t)c * stride, left, sums[c]);
}

INLINE void store_rows(const matmul_job *job, int64_t vector, int64_t column, floats sums) {
    store_columns(job, vector, column, 1, &sums);
}

/* Which weights a tile prefetches, because hardware prefetching stops at page boundaries. A single
 * tile of columns: those BYTES_AHEAD. From memory, one thread: Q8_0 from 14 to 19 GB/s, Q4_0 from 12
 * to 19 (plain reads reach 19 to 25). Several tiles: those of the next vectors. Each tile prefetches
 * every num_tiles-th step of them, so that memory works while all of them compute. */
typedef struct {
    size_t ahead;
    int64_t num_tiles, steps_left; /* until the next prefetch */
} prefetcher;

INLINE prefetcher start_prefetcher(const matmul_job *job, int64_t column, const int vectors, const int max_columns) {
    const int64_t tiles = (job->num_columns + max_columns - 1) / max_columns;
    const size_t next = (size_t)(vectors * VECTOR_PANELS) * job->panel_bytes;
    return (prefetcher){tiles == 1 ? BYTES_AHEAD : next, tiles, column * tiles / job->num_columns};
}

INLINE bool prefetches_now(prefetcher *f) {
    if (BYTES_AHEAD == 0 || f->steps_left-- > 0) return false;
    f->steps_left = f->num_tiles - 1;
    return true;
}

/* Addresses may be past the end: a prefetch does not fault. */
INLINE void prefetch(panels p, size_t offset, size_t num_bytes) {
    UNROLL for (int i = 0; i < VECTOR_PANELS; i++) for (size_t byte = 0; byte < num_bytes; byte += 64)
        __builtin_prefetch((const void *)((uintptr_t)p.at[i] + offset + byte), 0, 2);
}

/* The width of the next tile of `left` columns. Tiles are nearly equal: 8 columns are 4 and 4, not
 * 6 and 2. There is none of 5. */
INLINE int64_t tile_width(int64_t left, const int max_columns) {
    const int64_t tiles = (left + max_columns - 1) / max_columns, width = (left + tiles - 1) / tiles;
    return width != 5 ? width : left == 5 ? 3 : max_columns;
}

/* Calls tile(job, vector, column, vectors, columns, ...) for all columns, at least two. */
#define EACH_TILE(tile, job, vector, vectors, max_columns, ...)                                  \
    for (int64_t column = 0, width; column < (job)->num_columns; column += width) {              \
        width = tile_width((job)->num_columns - column, max_columns);                            \
        switch (width) {                                                                         \
        case 1:                                                                                  \
            if ((max_columns) == 2) tile(job, vector, column, vectors, 1, __VA_ARGS__);          \
            break;                                                                               \
        case 2: tile(job, vector, column, vectors, 2, __VA_ARGS__); break;                       \
        case 3:                                                                                  \
            if ((max_columns) >= 3) tile(job, vector, column, vectors, 3, __VA_ARGS__);          \
            break;                                                                               \
        case 4:                                                                                  \
            if ((max_columns) >= 4) tile(job, vector, column, vectors, 4, __VA_ARGS__);          \
            break;                                                                               \
        default:                                                                                 \
            if ((max_columns) > 4) tile(job, vector, column, vectors, max_columns, __VA_ARGS__); \
        }                                                                                        \
    }

/* ------------------------------------------------------------------ float matrices */

/* Adds the products of element k of every row with this lane of the columns' values. */
INLINE void multiply_element(const panels *weights, int64_t k, const values *value, const int lane, const int vectors,
                             const int columns, const panel_format format, floats (*sums)[FLOAT_COLUMNS]) {
    floats weight[MAX_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) weight[v] = load_weights(weights[v], k, format);
    UNROLL for (int c = 0; c < columns; c++) UNROLL for (int v = 0; v < vectors; v++) sums[v][c] =
        add_product(sums[v][c], weight[v], value[c], lane);
}

INLINE void float_tile(const matmul_job *job, int64_t vector, int64_t column, const int vectors, const int columns,
                       const panel_format format) {
    /* KV caches come in pieces that end before hardware prefetching starts: for 12 kv heads of 64
     * at 4,096 positions, F16 goes from 1.40 to 1.00 ms, Q8 from 1.23 to 0.42. F32 weights that are
     * already in the cache get slower by a seventh. */
    const bool prefetches = format == PANEL_F16 || format == PANEL_I8 || job->num_columns > FLOAT_COLUMNS;
    prefetcher fetch = start_prefetcher(job, column, vectors, FLOAT_COLUMNS);
    if (!prefetches) fetch.steps_left = INT64_MAX; /* a test in the loop would take a register */
    const int64_t k_bytes = (int64_t)panel_layout_of(format).element_bytes;
    panels weights[MAX_VECTORS];
    const float *columns_at[FLOAT_COLUMNS];
    values value[FLOAT_COLUMNS];
    floats sums[MAX_VECTORS][FLOAT_COLUMNS];
    UNROLL for (int v = 0; v < vectors; v++) weights[v] = panels_at(job, vector + v);
    UNROLL for (int c = 0; c < columns; c++) columns_at[c] = column_at(job, column + c);
    UNROLL for (int v = 0; v < vectors; v++) UNROLL for (int c = 0; c < columns; c++) sums[v][c] = all_floats(0.0f);
    int64_t k = 0;
    for (; k + VALUES <= job->row_length; k += VALUES) {
        if (k % (64 / k_bytes) == 0 && prefetches_now(&fetch))
            UNROLL for (int v = 0; v < vectors; v++) prefetch(weights[v], (size_t)(k * k_bytes) + fetch.ahead, 64);
        UNROLL for (int c = 0; c < columns; c++) value[c] = load_values(columns_at[c] + k);
        UNROLL for (int lane = 0; lane < VALUES; lane++)
            multiply_element(weights, k + lane, value, lane, vectors, columns, format, sums);
    }
    for (; VALUES > 1 && k < job->row_length; k++) {
        UNROLL for (int c = 0; c < columns; c++) value[c] = load_last_value(columns_at[c] + k);
        multiply_element(weights, k, value, 0, vectors, columns, format, sums);
    }
    UNROLL for (int v = 0; v < vectors; v++) store_columns(job, vector + v, column, columns, sums[v]);
}

INLINE void float_matmul(const matmul_job *job, const panel_format format) {
    const int64_t num_vectors = (job->num_rows + VECTOR_ROWS - 1) / VECTOR_ROWS;
    int64_t vector = 0;
    if (FLOAT_STREAMS > 0 && job->num_columns == 1) {
        for (; vector + FLOAT_STREAMS <= num_vectors; vector += FLOAT_STREAMS)
            float_tile(job, vector, 0, FLOAT_STREAMS, 1, format);
        for (; vector < num_vectors; vector++) float_tile(job, vector, 0, 1, 1, format);
    } else {
        for (; vector + FLOAT_VECTORS <= num_vectors; vector += FLOAT_VECTORS)
            EACH_TILE(float_tile, job, vector, FLOAT_VECTORS, FLOAT_COLUMNS, format)
        for (; vector < num_vectors; vector++) EACH_TILE(float_tile, job, vector, 1, FLOAT_COLUMNS, format)
    }
}

#if !defined(OWN_FLOAT_MATMUL)
static void matmul_f32(const matmul_job *job) { float_matmul(job, PANEL_F32); }
static void matmul_f16(const matmul_job *job) { float_matmul(job, PANEL_F16); }
static void matmul_bf16(const matmul_job *job) { float_matmul(job, PANEL_BF16); }
static void matmul_i8(const matmul_job *job) { float_matmul(job, PANEL_I8); }
#endif

/* ------------------------------------------------------------------ quantized matrices */

/* Loads quad q of a block's codes. Q8_0 codes are signed, the others start at 0. */
INLINE codes load_codes_of_quad(panels p, size_t offset, const int q, const panel_format format) {
    if (format == PANEL_Q8_0) return load_codes(p, offset + 32 * (size_t)q);
    const codes nibbles = load_codes(p, offset + 32 * (size_t)(q % 4));
    const codes low = q < 4 ? mask_codes(nibbles, 15) : mask_codes(shift_codes(nibbles, -4), 15);
    if (format == PANEL_Q5_1) /* bit q goes to bit 4 */
        return or_codes(low, mask_codes(shift_codes(load_codes(p, offset + 128), 4 - q), 16));
    if (format == PANEL_Q6_K) /* bits 2 (q % 4) and above go to bits 4 and 5 */
        return or_codes(
            low, mask_codes(shift_codes(load_codes(p, offset + 128 + 32 * (size_t)(q / 4)), 4 - 2 * (q % 4)), 48));
    return low;
}

/* Hides where a value comes from: compilers would copy the loop for each kind of headers. */
#define HIDDEN(value) __asm__("" : "+r"(value))

/* What the integer sum of codes and values starts with, so that codes count from their zero point.
 * Q6_K has a sum for each half. */
INLINE int32_t start_of_sum(const activation_block *block, const int half, const panel_format format) {
    if (format == PANEL_Q4_0) return -block->eight_sums;
    if (format != PANEL_Q6_K) return 0;
    return half == 0 ? -block->sums_of_half : block->sums_of_half - 4 * block->eight_sums;
}

/* Q4_K and Q5_K have the codes of Q4_1 and Q5_1, and share their tiles: `format` is a literal, and
 * `layout` says which headers there are. */
INLINE bool has_minimum(const panel_format format) { return format == PANEL_Q4_1 || format == PANEL_Q5_1; }

/* whole[v][c] = the sum of codes and values over a half or all of a block, exact. */
INLINE void sum_block(const panels *p, size_t offset, const activation_block *const *blocks, const int first,
                      const int last, const int vectors, const int columns, const panel_format format,
                      integers (*whole)[BLOCK_COLUMNS]) {
    products sums[MAX_VECTORS][BLOCK_COLUMNS];
    quads value[BLOCK_COLUMNS];
    UNROLL for (int v = 0; v < vectors; v++) UNROLL for (int c = 0; c < columns; c++)
        start_products(&sums[v][c], start_of_sum(blocks[c], first / 4, format), blocks[c], format);
    UNROLL for (int q = first; q < last; q++) {
        quad code[MAX_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++) code[v] = to_quad(load_codes_of_quad(p[v], offset, q, format), format);
        UNROLL for (int c = 0; c < columns; c++) {
            if (q % 4 == 0) value[c] = load_quads(blocks[c], q / 4);
            UNROLL for (int v = 0; v < vectors; v++) multiply_quad(&sums[v][c], code[v], value[c], q, format);
        }
    }
    UNROLL for (int v = 0; v < vectors; v++) UNROLL for (int c = 0; c < columns; c++) whole[v][c] = sums[v][c].whole;
}

/* Returns the scales of a block, and its minimums if it has any. super is 0 where panels have no
 * super-headers. */
INLINE floats block_scales(panels p, size_t header, size_t super, const panel_format format, floats *minimum) {
    if (format == PANEL_Q6_K) return load_scales(p, super);
    if (has_minimum(format) && super > 0) {
        *minimum = multiply(load_scales(p, super + PANEL_SCALES), to_floats(widen(p, header + PANEL_ROWS, false)));
        *minimum = subtract(all_floats(0.0f), *minimum);
        return multiply(load_scales(p, super), to_floats(widen(p, header, false)));
    }
    if (has_minimum(format)) *minimum = load_scales(p, header + PANEL_SCALES);
    return load_scales(p, header);
}

/* Adds a block to the sums of a vector, in the order of kernels.h. */
INLINE void add_block(panels p, size_t header, size_t super, const integers *whole,
                      const activation_block *const *blocks, const int columns, const panel_format format,
                      floats *sums) {
    floats minimum = all_floats(0.0f);
    const floats scale = block_scales(p, header, super, format, &minimum);
    UNROLL for (int c = 0; c < columns; c++) {
        const floats scales = multiply(scale, all_floats(blocks[c]->scale));
        sums[c] = multiply_add(to_floats(whole[c]), scales, sums[c]);
        if (has_minimum(format)) sums[c] = multiply_add(minimum, all_floats(blocks[c]->scaled_sum), sums[c]);
    }
}

INLINE void block_tile(const matmul_job *job, int64_t vector, int64_t column, const int vectors, const int columns,
                       const panel_format format, const panel_layout layout) {
    const int64_t num_blocks = job->row_length / BLOCK_LENGTH;
    size_t code = 0, header = (size_t)num_blocks * layout.code_bytes,
           super = layout.super_bytes > 0 ? header + (size_t)num_blocks * layout.header_bytes : 0;
    prefetcher fetch = start_prefetcher(job, column, vectors, BLOCK_COLUMNS);
    panels p[MAX_VECTORS];
    const activation_block *blocks[BLOCK_COLUMNS];
    floats sums[MAX_VECTORS][BLOCK_COLUMNS];
    UNROLL for (int v = 0; v < vectors; v++) p[v] = panels_at(job, vector + v);
    UNROLL for (int c = 0; c < columns; c++) blocks[c] = column_at(job, column + c);
    UNROLL for (int v = 0; v < vectors; v++) UNROLL for (int c = 0; c < columns; c++) sums[v][c] = all_floats(0.0f);
    for (int64_t b = 0; b < num_blocks; b++) {
        HIDDEN(super);
        integers whole[MAX_VECTORS][BLOCK_COLUMNS], second[MAX_VECTORS][BLOCK_COLUMNS];
        if (prefetches_now(&fetch)) {
            UNROLL for (int v = 0; v < vectors; v++) prefetch(p[v], code + fetch.ahead, layout.code_bytes);
            UNROLL for (int v = 0; v < vectors; v++) prefetch(p[v], header + fetch.ahead, layout.header_bytes);
        }
        if (format == PANEL_Q6_K) {
            sum_block(p, code, blocks, 0, 4, vectors, columns, format, whole);
            sum_block(p, code, blocks, 4, 8, vectors, columns, format, second);
            UNROLL for (int v = 0; v < vectors; v++) {
                const integers scales = widen(p[v], header, true), others = widen(p[v], header + PANEL_ROWS, true);
                UNROLL for (int c = 0; c < columns; c++) whole[v][c] =
                    add_integers(multiply_integers(whole[v][c], scales), multiply_integers(second[v][c], others));
            }
        } else {
            sum_block(p, code, blocks, 0, 8, vectors, columns, format, whole);
        }
        UNROLL for (int v = 0; v < vectors; v++)
            add_block(p[v], header, super, whole[v], blocks, columns, format, sums[v]);
        code += layout.code_bytes;
        header += layout.header_bytes;
        if (b % (SUPER_LENGTH / BLOCK_LENGTH) == SUPER_LENGTH / BLOCK_LENGTH - 1) super += layout.super_bytes;
        UNROLL for (int c = 0; c < columns; c++) blocks[c]++;
    }
    UNROLL for (int v = 0; v < vectors; v++) store_columns(job, vector + v, column, columns, sums[v]);
}

/* Vectors past the end are repetitions that are not stored. */
INLINE void block_matmul(const matmul_job *job, const panel_format format, const panel_layout layout) {
    const int64_t num_vectors = (job->num_rows + VECTOR_ROWS - 1) / VECTOR_ROWS;
    if (job->num_columns == 1)
        for (int64_t vector = 0; vector < num_vectors; vector += BLOCK_STREAMS)
            block_tile(job, vector, 0, BLOCK_STREAMS, 1, format, layout);
    else
        for (int64_t vector = 0; vector < num_vectors; vector += BLOCK_VECTORS)
            EACH_TILE(block_tile, job, vector, BLOCK_VECTORS, BLOCK_COLUMNS, format, layout)
}

#if !defined(OWN_BLOCK_MATMUL)
INLINE void plain_matmul(const matmul_job *job, const panel_format format) {
    block_matmul(job, format, panel_layout_of(format));
}

static void matmul_q8_0(const matmul_job *job) { plain_matmul(job, PANEL_Q8_0); }
static void matmul_q4_0(const matmul_job *job) { plain_matmul(job, PANEL_Q4_0); }
static void matmul_q6_k(const matmul_job *job) { plain_matmul(job, PANEL_Q6_K); }
static void matmul_q4(const matmul_job *job, panel_layout layout) { block_matmul(job, PANEL_Q4_1, layout); }
static void matmul_q5(const matmul_job *job, panel_layout layout) { block_matmul(job, PANEL_Q5_1, layout); }
static void matmul_q4_1(const matmul_job *job) { matmul_q4(job, panel_layout_of(PANEL_Q4_1)); }
static void matmul_q4_k(const matmul_job *job) { matmul_q4(job, panel_layout_of(PANEL_Q4_K)); }
static void matmul_q5_1(const matmul_job *job) { matmul_q5(job, panel_layout_of(PANEL_Q5_1)); }
static void matmul_q5_k(const matmul_job *job) { matmul_q5(job, panel_layout_of(PANEL_Q5_K)); }
#endif
