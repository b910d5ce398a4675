/* kernels_avx2.c: the kernels for x86-64 processors with AVX2, FMA and F16C (Intel since 2013, AMD
 * since 2015).
 *
 * A tile is a few panels by a few columns of outputs. Its sums stay in registers, one vector of
 * eight rows each. Tile sizes are literals so that the compiler unrolls the loops over them. With
 * one column (decoding), a tile reads panels as fast as memory delivers them; several columns share
 * what was loaded and unpacked for one. */
#include "kernels/kernels_avx2.h"

#include "kernels/float_math.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif
#define LANES 8
#define MAX_COLUMNS 8 /* of a tile of quantized weights */

INLINE float sum_lanes(__m256 lanes) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* Sets the first n lanes, 0 <= n; all of them from n = 8 on. */
INLINE __m256i lane_mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE __m256i load_bytes(const uint8_t *address) { return _mm256_loadu_si256((const __m256i *)(const void *)address); }

INLINE __m256 load_halves(const uint8_t *address) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)address));
}

INLINE __m256i widen(const uint8_t *eight, const bool is_signed) {
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)eight);
    return is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
}

/* Stores eight outputs of a column, without padding rows beyond the end of the matrix. */
INLINE void store_rows(const matmul_job *job, int64_t panel, int64_t column, __m256 sums) {
    const int64_t row = panel * PANEL_ROWS, left = job->num_rows - row;
    float *out = job->out + (size_t)column * job->out_stride + (size_t)row;
    if (left >= PANEL_ROWS) _mm256_storeu_ps(out, sums);
    else _mm256_maskstore_ps(out, lane_mask(left), sums);
}

/* ------------------------------------------------------------------ float matrices */

/* Prefetches BYTES_AHEAD, because hardware prefetching stops at page boundaries. From memory, one
 * thread: Q8_0 from 14 to 19 GB/s, Q4_0 from 12 to 19 (plain reads reach 19 to 25). Only the first
 * tile of a panel prefetches; the others find it in the cache. Addresses may be past the end: a
 * prefetch does not fault. */
#define BYTES_AHEAD 8192

INLINE void prefetch_ahead(const void *address, size_t num_bytes) {
    for (size_t i = 0; i < num_bytes; i += 64)
        _mm_prefetch((const char *)((uintptr_t)address + BYTES_AHEAD + i), _MM_HINT_T1);
}

#if !defined(KERNELS_AVXVNNI)
INLINE __m256 load_weights(const char *panel, int64_t k, const panel_format format) {
    if (format == PANEL_F32) return _mm256_loadu_ps((const float *)(const void *)panel + PANEL_ROWS * k);
    if (format == PANEL_I8) return _mm256_cvtepi32_ps(widen((const uint8_t *)panel + PANEL_ROWS * k, true));
    const __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)(panel + 2 * PANEL_ROWS * k));
    if (format == PANEL_F16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

INLINE void float_tile(const matmul_job *job, int64_t panel, int64_t column, const int panels, const int columns,
                       const panel_format format) {
    /* KV caches come in pieces that end before hardware prefetching starts: for 12 kv heads of 64
     * at 4,096 positions, F16 goes from 1.40 to 1.00 ms, Q8 from 1.23 to 0.42. F32 weights that are
     * already in the cache get slower by a seventh. */
    const bool prefetches = format == PANEL_F16 || format == PANEL_I8;
    const char *weights[4];
    const float *values[6];
    __m256 sums[4][6];
    UNROLL for (int p = 0; p < panels; p++) weights[p] =
        (const char *)job->panels + (size_t)(panel + p) * job->panel_bytes;
    UNROLL for (int c = 0; c < columns; c++) values[c] =
        (const float *)(const void *)((const char *)job->columns + (size_t)(column + c) * job->column_bytes);
    UNROLL for (int p = 0; p < panels; p++) UNROLL for (int c = 0; c < columns; c++) sums[p][c] = _mm256_setzero_ps();
    const size_t k_bytes = panel_layout_of(format).element_bytes;
    for (int64_t k = 0; k < job->row_length; k++) {
        __m256 weight[4];
        if (prefetches && column == 0 && (size_t)k % (64 / k_bytes) == 0)
            UNROLL for (int p = 0; p < panels; p++) prefetch_ahead(weights[p] + (size_t)k * k_bytes, 64);
        UNROLL for (int p = 0; p < panels; p++) weight[p] = load_weights(weights[p], k, format);
        UNROLL for (int c = 0; c < columns; c++) {
            const __m256 value = _mm256_broadcast_ss(values[c] + k);
            UNROLL for (int p = 0; p < panels; p++) sums[p][c] = _mm256_fmadd_ps(weight[p], value, sums[p][c]);
        }
    }
    UNROLL for (int p = 0; p < panels; p++) UNROLL for (int c = 0; c < columns; c++)
        store_rows(job, panel + p, column + c, sums[p][c]);
}

/* Tiles of six columns, then one of the rest. */
INLINE void float_tiles(const matmul_job *job, int64_t panel, const int panels, const panel_format format) {
    int64_t column = 0;
    for (; column + 6 <= job->num_columns; column += 6) float_tile(job, panel, column, panels, 6, format);
    switch (job->num_columns - column) {
    case 5: float_tile(job, panel, column, panels, 5, format); break;
    case 4: float_tile(job, panel, column, panels, 4, format); break;
    case 3: float_tile(job, panel, column, panels, 3, format); break;
    case 2: float_tile(job, panel, column, panels, 2, format); break;
    case 1: float_tile(job, panel, column, panels, 1, format); break;
    default: break;
    }
}

INLINE void float_matmul(const matmul_job *job, const panel_format format) {
    const int64_t num_panels = (job->num_rows + PANEL_ROWS - 1) / PANEL_ROWS;
    int64_t panel = 0;
    if (job->num_columns == 1)
        for (; panel + 4 <= num_panels; panel += 4) float_tile(job, panel, 0, 4, 1, format);
    for (; panel + 2 <= num_panels; panel += 2) float_tiles(job, panel, 2, format);
    if (panel < num_panels) float_tiles(job, panel, 1, format);
}

void avx2_matmul_f32(const matmul_job *job) { float_matmul(job, PANEL_F32); }
void avx2_matmul_f16(const matmul_job *job) { float_matmul(job, PANEL_F16); }
void avx2_matmul_bf16(const matmul_job *job) { float_matmul(job, PANEL_BF16); }
void avx2_matmul_i8(const matmul_job *job) { float_matmul(job, PANEL_I8); }
#endif

/* ------------------------------------------------------------------ quantized matrices */

/* Loads quad q of a block's codes for all eight rows. Q8_0 codes are signed, the others start at
 * 0. */
INLINE __m256i load_quad(const uint8_t *codes, const int q, const panel_format format) {
    if (format == PANEL_Q8_0) return load_bytes(codes + 32 * q);
    __m256i nibbles = load_bytes(codes + 32 * (q % 4));
    if (q >= 4) nibbles = _mm256_srli_epi16(nibbles, 4);
    nibbles = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
    if (format == PANEL_Q5_1 || format == PANEL_Q5_K) {
        const __m256i fifth = load_bytes(codes + 128); /* bit q goes to bit 4 */
        const __m256i moved = q <= 4 ? _mm256_slli_epi16(fifth, 4 - q) : _mm256_srli_epi16(fifth, q - 4);
        return _mm256_or_si256(nibbles, _mm256_and_si256(moved, _mm256_set1_epi8(16)));
    }
    if (format == PANEL_Q6_K) {
        /* Bits 2 (q % 4) and above go to bits 4 and 5. */
        const __m256i high = load_bytes(codes + 128 + 32 * (q / 4));
        const __m256i moved = q % 4 <= 2 ? _mm256_slli_epi16(high, 4 - 2 * (q % 4)) : _mm256_srli_epi16(high, 2);
        return _mm256_or_si256(nibbles, _mm256_and_si256(moved, _mm256_set1_epi8(48)));
    }
    return nibbles;
}

/* The number of quads whose products can be added in 16 bits: 8 * 15 * 127 * 2 = 30,480;
 * 4 * 31 * 127 * 2 = 31,496; 2 * 63 * 127 * 2 = 32,004; 128 * 127 * 2 = 32,512 (|code| is unsigned,
 * so -128 is fine). */
INLINE int quads_per_sum(const panel_format format) {
    return format == PANEL_Q8_0 ? 1 : format == PANEL_Q6_K ? 2 : format == PANEL_Q5_1 || format == PANEL_Q5_K ? 4 : 8;
}

INLINE __m256i broadcast_quad(const activation_block *block, int q) {
    int32_t four;
    memcpy(&four, block->values + 4 * q, sizeof four);
    return _mm256_set1_epi32(four);
}

#if defined(KERNELS_AVXVNNI)
/* The same as below in one instruction. It needs unsigned codes, so those of Q8_0 get 128 added,
 * and their sums start 128 times the values' sum lower. */
INLINE void sum_quads(const uint8_t *codes, const activation_block *const *blocks, const int first, const int last,
                      const int columns, const panel_format format, __m256i *whole) {
    UNROLL for (int c = 0; c < columns; c++) whole[c] =
        format == PANEL_Q8_0 ? _mm256_set1_epi32(-16 * blocks[c]->eight_sums) : _mm256_setzero_si256();
    UNROLL for (int q = first; q < last; q++) {
        __m256i code = load_quad(codes, q, format);
        if (format == PANEL_Q8_0) code = _mm256_xor_si256(code, _mm256_set1_epi8(-128));
        UNROLL for (int c = 0; c < columns; c++) whole[c] =
            _mm256_dpbusd_avx_epi32(whole[c], code, broadcast_quad(blocks[c], q));
    }
}
#else
/* whole[c] = sum of code * value over quads [first, last) of a block, for each column, exact. */
INLINE void sum_quads(const uint8_t *codes, const activation_block *const *blocks, const int first, const int last,
                      const int columns, const panel_format format, __m256i *whole) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i pairs[MAX_COLUMNS];
    UNROLL for (int q = first; q < last; q++) {
        const __m256i code = load_quad(codes, q, format);
        const __m256i magnitude = format == PANEL_Q8_0 ? _mm256_abs_epi8(code) : code;
        UNROLL for (int c = 0; c < columns; c++) {
            __m256i value = broadcast_quad(blocks[c], q);
            if (format == PANEL_Q8_0) value = _mm256_sign_epi8(value, code);
            const __m256i products = _mm256_maddubs_epi16(magnitude, value);
            pairs[c] = q % quads_per_sum(format) == 0 ? products : _mm256_add_epi16(pairs[c], products);
            if ((q + 1) % quads_per_sum(format) == 0) {
                const __m256i sums = _mm256_madd_epi16(pairs[c], ones);
                whole[c] = q + 1 == first + quads_per_sum(format) ? sums : _mm256_add_epi32(whole[c], sums);
            }
        }
    }
}

#endif

/* Adds a block to sums[c], in the order of kernels.h. */
INLINE void add_block(const uint8_t *codes, const uint8_t *header, const uint8_t *super,
                      const activation_block *const *blocks, const int columns, const panel_format format,
                      __m256 *sums) {
    const bool has_minimum =
        format == PANEL_Q4_1 || format == PANEL_Q5_1 || format == PANEL_Q4_K || format == PANEL_Q5_K;
    __m256i whole[MAX_COLUMNS], second[MAX_COLUMNS];
    __m256 scale, minimum = _mm256_setzero_ps();
    if (format == PANEL_Q6_K) {
        sum_quads(codes, blocks, 0, 4, columns, format, whole);
        sum_quads(codes, blocks, 4, 8, columns, format, second);
        const __m256i first_scales = widen(header, true), second_scales = widen(header + PANEL_ROWS, true);
        UNROLL for (int c = 0; c < columns; c++) {
            const __m256i sums_of_half = _mm256_set1_epi32(blocks[c]->sums_of_half);
            const __m256i all = _mm256_slli_epi32(_mm256_set1_epi32(blocks[c]->eight_sums), 2);
            whole[c] = _mm256_mullo_epi32(_mm256_sub_epi32(whole[c], sums_of_half), first_scales);
            second[c] = _mm256_sub_epi32(second[c], _mm256_sub_epi32(all, sums_of_half));
            whole[c] = _mm256_add_epi32(whole[c], _mm256_mullo_epi32(second[c], second_scales));
        }
    } else {
        sum_quads(codes, blocks, 0, 8, columns, format, whole);
    }
    if (format == PANEL_Q6_K) {
        scale = load_halves(super);
    } else if (format == PANEL_Q4_K || format == PANEL_Q5_K) {
        scale = _mm256_mul_ps(load_halves(super), _mm256_cvtepi32_ps(widen(header, false)));
        minimum = _mm256_mul_ps(load_halves(super + 16), _mm256_cvtepi32_ps(widen(header + PANEL_ROWS, false)));
        minimum = _mm256_sub_ps(_mm256_setzero_ps(), minimum);
    } else {
        scale = load_halves(header);
        if (has_minimum) minimum = load_halves(header + 16);
    }
    UNROLL for (int c = 0; c < columns; c++) {
        if (format == PANEL_Q4_0) whole[c] = _mm256_sub_epi32(whole[c], _mm256_set1_epi32(blocks[c]->eight_sums));
        const __m256 scales = _mm256_mul_ps(scale, _mm256_broadcast_ss(&blocks[c]->scale));
        sums[c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[c]), scales, sums[c]);
        if (has_minimum) sums[c] = _mm256_fmadd_ps(minimum, _mm256_broadcast_ss(&blocks[c]->scaled_sum), sums[c]);
    }
}

INLINE void block_tile(const matmul_job *job, int64_t panel, int64_t column, const int panels, const int columns,
                       const panel_format format) {
    const panel_layout layout = panel_layout_of(format);
    const int64_t num_blocks = job->row_length / BLOCK_LENGTH;
    const uint8_t *codes[2], *headers[2], *supers[2];
    const activation_block *blocks[MAX_COLUMNS];
    __m256 sums[2][MAX_COLUMNS];
    UNROLL for (int p = 0; p < panels; p++) {
        codes[p] = (const uint8_t *)job->panels + (size_t)(panel + p) * job->panel_bytes;
        headers[p] = codes[p] + (size_t)num_blocks * layout.code_bytes;
        supers[p] = headers[p] + (size_t)num_blocks * layout.header_bytes;
        UNROLL for (int c = 0; c < columns; c++) sums[p][c] = _mm256_setzero_ps();
    }
    UNROLL for (int c = 0; c < columns; c++) blocks[c] =
        (const void *)((const char *)job->columns + (size_t)(column + c) * job->column_bytes);
    for (int64_t b = 0; b < num_blocks; b++) {
        UNROLL for (int p = 0; p < panels; p++) {
            if (column == 0) prefetch_ahead(codes[p], layout.code_bytes);
            add_block(codes[p], headers[p], supers[p], blocks, columns, format, sums[p]);
            codes[p] += layout.code_bytes;
            headers[p] += layout.header_bytes;
            if (layout.super_bytes > 0 && b % (SUPER_LENGTH / BLOCK_LENGTH) == SUPER_LENGTH / BLOCK_LENGTH - 1)
                supers[p] += layout.super_bytes;
        }
        UNROLL for (int c = 0; c < columns; c++) blocks[c]++;
    }
    UNROLL for (int p = 0; p < panels; p++) UNROLL for (int c = 0; c < columns; c++)
        store_rows(job, panel + p, column + c, sums[p][c]);
}

INLINE void block_matmul(const matmul_job *job, const panel_format format) {
    const int64_t num_panels = (job->num_rows + PANEL_ROWS - 1) / PANEL_ROWS;
    int64_t panel = 0;
    /* Two streams of memory: 26.2 GB/s on a 1.1B Q8_0 model, where one gives 24.3. */
    if (job->num_columns == 1)
        for (; panel + 2 <= num_panels; panel += 2) block_tile(job, panel, 0, 2, 1, format);
    for (; panel < num_panels; panel++) {
        int64_t column = 0;
        /* Eight columns share the absolute values of Q8_0 codes: a tenth faster. Others gain
         * nothing. */
        if (format == PANEL_Q8_0)
            for (; column + 8 <= job->num_columns; column += 8) block_tile(job, panel, column, 1, 8, format);
        for (; column + 4 <= job->num_columns; column += 4) block_tile(job, panel, column, 1, 4, format);
        switch (job->num_columns - column) {
        case 3: block_tile(job, panel, column, 1, 3, format); break;
        case 2: block_tile(job, panel, column, 1, 2, format); break;
        case 1: block_tile(job, panel, column, 1, 1, format); break;
        default: break;
        }
    }
}

static void matmul_q8_0(const matmul_job *job) { block_matmul(job, PANEL_Q8_0); }
static void matmul_q4_0(const matmul_job *job) { block_matmul(job, PANEL_Q4_0); }
static void matmul_q4_1(const matmul_job *job) { block_matmul(job, PANEL_Q4_1); }
static void matmul_q5_1(const matmul_job *job) { block_matmul(job, PANEL_Q5_1); }
static void matmul_q4_k(const matmul_job *job) { block_matmul(job, PANEL_Q4_K); }
static void matmul_q5_k(const matmul_job *job) { block_matmul(job, PANEL_Q5_K); }
static void matmul_q6_k(const matmul_job *job) { block_matmul(job, PANEL_Q6_K); }

/* ------------------------------------------------------------------ vectors */

#if !defined(KERNELS_AVXVNNI)
void avx2_quantize(const float *values, int64_t length, activation_block *blocks) {
    const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
    for (int64_t b = 0; b < length / BLOCK_LENGTH; b++, values += BLOCK_LENGTH, blocks++) {
        __m256 part[4];
        /* Magnitudes compare as integers: NaN > infinity > finite values. */
        __m256i largest = _mm256_setzero_si256();
        UNROLL for (int i = 0; i < 4; i++) {
            part[i] = _mm256_loadu_ps(values + 8 * i);
            largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(part[i]), no_sign));
        }
        __m128i four = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
        const uint32_t bits = (uint32_t)_mm_cvtsi128_si32(four);
        const float magnitude = float_from_bits(bits);
        if (!(magnitude >= 1e-30f && bits < 0x7f800000u)) {
            memset(blocks, 0, sizeof *blocks);
            if (bits >= 0x7f800000u) blocks->scale = blocks->scaled_sum = NAN;
            continue;
        }
        const __m256 inverse = _mm256_set1_ps(127.0f / magnitude);
        __m256i rounded[4];
        UNROLL for (int i = 0; i < 4; i++) rounded[i] = _mm256_cvtps_epi32(_mm256_mul_ps(part[i], inverse));
        const __m256i low = _mm256_packs_epi32(rounded[0], rounded[1]);
        const __m256i high = _mm256_packs_epi32(rounded[2], rounded[3]);
        /* The packs work within 128-bit halves; this restores the order. */
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
        _mm256_storeu_si256((__m256i *)(void *)blocks->values, bytes);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        /* First per quad, then per half. */
        __m256i sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
        sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
        const int32_t first = _mm256_extract_epi32(sums, 0), all = first + _mm256_extract_epi32(sums, 4);
        blocks->scale = magnitude / 127.0f;
        blocks->scaled_sum = blocks->scale * (float)all;
        blocks->eight_sums = 8 * all;
        blocks->sums_of_half = 32 * first;
    }
}

void avx2_to_halves(const float *values, int64_t length, uint16_t *halves) {
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES)
        _mm_storeu_si128((__m128i *)(void *)(halves + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < length; i++) halves[i] = half_from_float(values[i]);
}

float avx2_sum_of_squares(const float *values, int64_t length) {
    __m256 sums = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        const __m256 value = _mm256_loadu_ps(values + i);
        sums = _mm256_fmadd_ps(value, value, sums);
    }
    const __m256 value = _mm256_maskload_ps(values + i, lane_mask(length - i));
    return sum_lanes(_mm256_fmadd_ps(value, value, sums));
}

float avx2_maximum(const float *values, int64_t length) {
    __m256 largest = _mm256_set1_ps(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) largest = _mm256_max_ps(_mm256_loadu_ps(values + i), largest);
    float lanes[LANES], result = -INFINITY;
    _mm256_storeu_ps(lanes, largest);
    for (int j = 0; j < LANES; j++) result = lanes[j] > result ? lanes[j] : result;
    for (; i < length; i++) result = values[i] > result ? values[i] : result;
    return result;
}

/* exponential() of float_math.h in eight lanes, with the same roundings. */
INLINE __m256 exponential_lanes(__m256 x) {
    const __m256 clamped = _mm256_min_ps(_mm256_set1_ps(EXP_MAX), _mm256_max_ps(_mm256_set1_ps(EXP_MIN), x));
    const __m256 round = _mm256_set1_ps(EXP_ROUND);
    const __m256 shifted = _mm256_add_ps(_mm256_mul_ps(clamped, _mm256_set1_ps(EXP_LOG2_E)), round);
    const __m256 n = _mm256_sub_ps(shifted, round);
    __m256 r = _mm256_sub_ps(clamped, _mm256_mul_ps(n, _mm256_set1_ps(EXP_LN2_HIGH)));
    r = _mm256_sub_ps(r, _mm256_mul_ps(n, _mm256_set1_ps(EXP_LN2_LOW)));
    __m256 q = _mm256_add_ps(_mm256_set1_ps(EXP_Q3), _mm256_mul_ps(r, _mm256_set1_ps(EXP_Q4)));
    q = _mm256_add_ps(_mm256_set1_ps(EXP_Q2), _mm256_mul_ps(r, q));
    q = _mm256_add_ps(_mm256_set1_ps(EXP_Q1), _mm256_mul_ps(r, q));
    q = _mm256_add_ps(_mm256_set1_ps(EXP_Q0), _mm256_mul_ps(r, q));
    const __m256 one_and_r = _mm256_add_ps(_mm256_set1_ps(1.0f), r);
    const __m256 value = _mm256_add_ps(one_and_r, _mm256_mul_ps(_mm256_mul_ps(r, r), q));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127)), 23);
    const __m256 too_low = _mm256_cmp_ps(x, _mm256_set1_ps(EXP_MIN), _CMP_LT_OQ);
    return _mm256_andnot_ps(too_low, _mm256_mul_ps(value, _mm256_castsi256_ps(power)));
}

float avx2_exp_and_sum(float *values, int64_t length, float shift) {
    const __m256 shifts = _mm256_set1_ps(shift);
    __m256 sums = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        const __m256 value = exponential_lanes(_mm256_sub_ps(_mm256_loadu_ps(values + i), shifts));
        _mm256_storeu_ps(values + i, value);
        sums = _mm256_add_ps(sums, value);
    }
    if (i < length) {
        const __m256i mask = lane_mask(length - i);
        __m256 value = exponential_lanes(_mm256_sub_ps(_mm256_maskload_ps(values + i, mask), shifts));
        value = _mm256_and_ps(value, _mm256_castsi256_ps(mask));
        _mm256_maskstore_ps(values + i, mask, value);
        sums = _mm256_add_ps(sums, value);
    }
    return sum_lanes(sums);
}

INLINE __m256 swiglu_lanes(__m256 gate, __m256 up) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 power = exponential_lanes(_mm256_sub_ps(_mm256_setzero_ps(), gate));
    return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(one, power)), up);
}

void avx2_swiglu(float *gate, const float *up, int64_t length) {
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES)
        _mm256_storeu_ps(gate + i, swiglu_lanes(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i == length) return;
    const __m256i mask = lane_mask(length - i);
    const __m256 last = swiglu_lanes(_mm256_maskload_ps(gate + i, mask), _mm256_maskload_ps(up + i, mask));
    _mm256_maskstore_ps(gate + i, mask, last);
}
#endif

#if defined(KERNELS_AVXVNNI)
const kernels kernels_avxvnni = {
    .name = "avxvnni",
#else
const kernels kernels_avx2 = {
    .name = "avx2",
#endif
    .matmul = {avx2_matmul_f32, avx2_matmul_f16, avx2_matmul_bf16, avx2_matmul_i8, matmul_q8_0, matmul_q4_0,
               matmul_q4_1, matmul_q5_1, matmul_q4_k, matmul_q5_k, matmul_q6_k},
    .quantize = avx2_quantize,
    .to_halves = avx2_to_halves,
    .sum_of_squares = avx2_sum_of_squares,
    .maximum = avx2_maximum,
    .exp_and_sum = avx2_exp_and_sum,
    .swiglu = avx2_swiglu,
};
#endif
