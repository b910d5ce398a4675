/* attention.c: how long does one token's attention take, and what do 16-bit floats and sharing a kv head's rows buy?
 *
 *     make -C benchmarks/kernels attention
 *
 * Answer (GMAC/s, one thread, one token of 12 query heads of 64, medians; Xeon (Sapphire Rapids), AVX2 kernels, 2
 * shared cores; 4,096 positions of 12 kv heads noisy, within a third):
 *                               12 kv heads: 128   1,024   4,096 positions;   3 kv heads: 128   1,024   4,096
 *   head by head, floats                     5.2     4.2     3                           5.9     5.9     5.0
 *   heads together, pages of halves         19      12.5     8.5                        24      25      22
 *   the engine, F32 cache                   20       6.9     3.2                        33      33      21
 *   the engine, Q8 cache                    19      19       5                          29      33      31
 *   the engine, F16 cache                   20      13       4.2                        35      36      28
 * Interleaved panels pay where several heads share what was read; halves pay as soon as all lies beyond the second
 * cache. Long texts of models without shared heads wait for memory: pages of the engine's cache lie 32 KiB a head here
 * and there, where one long row of halves is read ahead by the processor.
 */
#include <immintrin.h>

#include "attention.h"
#include "exponential.h"
#include "ladder.h"

enum { NUM_HEADS = 12, HEAD_DIM = 64, VECTORS = HEAD_DIM / 8, MAX_POSITIONS = 4096, NUM_CACHES = 3 };

/* One token, which sees num_positions; all its numbers are exact in 16 bits, so that every version but Q8 gets the
 * same. */
typedef struct {
    int num_kv_heads, num_positions;
    float *keys, *values;             /* [K][pos][S] */
    uint16_t *half_keys, *half_values; /* the same */
    float query[NUM_HEADS * HEAD_DIM];
    float out[NUM_HEADS * HEAD_DIM];
    kv_shape shapes[NUM_CACHES]; /* of kv_type */
    kv_cache caches[NUM_CACHES];
    float *scratch;
} problem;

/* ------------------------------------------------------------------ 1: a head at a time */

static void attend_head(const float *query, const float *keys, const float *values, int num_positions, float *out) {
    static float weights[MAX_POSITIONS];
    float largest = -INFINITY, total = 0, sums[HEAD_DIM] = {0};
    for (int t = 0; t < num_positions; t++) {
        float dot = 0;
        for (int i = 0; i < HEAD_DIM; i++) dot += query[i] * keys[t * HEAD_DIM + i];
        weights[t] = dot / sqrtf(HEAD_DIM);
        largest = weights[t] > largest ? weights[t] : largest;
    }
    for (int t = 0; t < num_positions; t++) total += weights[t] = expf(weights[t] - largest);
    for (int t = 0; t < num_positions; t++)
        for (int i = 0; i < HEAD_DIM; i++) sums[i] += weights[t] * values[t * HEAD_DIM + i];
    for (int i = 0; i < HEAD_DIM; i++) out[i] = sums[i] / total;
}

static void head_by_head(void *argument) {
    problem *p = argument;
    for (int h = 0; h < NUM_HEADS; h++) {
        const size_t kv_head = (size_t)(h / (NUM_HEADS / p->num_kv_heads));
        const size_t offset = kv_head * (size_t)p->num_positions * HEAD_DIM;
        attend_head(p->query + h * HEAD_DIM, p->keys + offset, p->values + offset, p->num_positions,
                    p->out + h * HEAD_DIM);
    }
}

/* ------------------------------------------------------------------ 2: pages, halves, heads together */

INLINE void load_row(const uint16_t *row, __m256 *out) {
    UNROLL for (int i = 0; i < VECTORS; i++) out[i] = _mm256_cvtph_ps(_mm_loadu_si128((const void *)(row + 8 * i)));
}

INLINE float sum_lanes(__m256 lanes) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* scores[h][t]: each key that is read and converted meets all heads that share it. */
static void score_page(const float *query, const uint16_t *keys, int group, int num, float (*scores)[KV_PAGE_TOKENS]) {
    for (int t = 0; t < num; t++) {
        __m256 row[VECTORS];
        load_row(keys + t * HEAD_DIM, row);
        for (int h = 0; h < group; h++) {
            __m256 sum = _mm256_setzero_ps();
            UNROLL for (int i = 0; i < VECTORS; i++)
                sum = _mm256_fmadd_ps(row[i], _mm256_loadu_ps(query + h * HEAD_DIM + 8 * i), sum);
            scores[h][t] = sum_lanes(sum);
        }
    }
}

/* sums[h] = sum of scores[h][t] * value t. */
static void add_page(const uint16_t *values, int num, const float *scores, float *out) {
    __m256 sums[VECTORS], row[VECTORS];
    UNROLL for (int i = 0; i < VECTORS; i++) sums[i] = _mm256_loadu_ps(out + 8 * i);
    for (int t = 0; t < num; t++) {
        const __m256 weight = _mm256_set1_ps(scores[t]);
        load_row(values + t * HEAD_DIM, row);
        UNROLL for (int i = 0; i < VECTORS; i++) sums[i] = _mm256_fmadd_ps(weight, row[i], sums[i]);
    }
    UNROLL for (int i = 0; i < VECTORS; i++) _mm256_storeu_ps(out + 8 * i, sums[i]);
}

/* Online softmax: what was summed before shrinks when a page has a larger score. */
static void attend_group(const float *query, const uint16_t *keys, const uint16_t *values, int group,
                         int num_positions, float *out) {
    const kernels *k = kernels_select(NULL);
    float scaled[NUM_HEADS * HEAD_DIM], scores[NUM_HEADS][KV_PAGE_TOKENS], largest[NUM_HEADS], total[NUM_HEADS];
    for (int i = 0; i < group * HEAD_DIM; i++) scaled[i] = query[i] / sqrtf(HEAD_DIM), out[i] = 0;
    for (int h = 0; h < group; h++) largest[h] = -INFINITY, total[h] = 0;
    for (int first = 0; first < num_positions; first += KV_PAGE_TOKENS) {
        const int left = num_positions - first, num = left < KV_PAGE_TOKENS ? left : KV_PAGE_TOKENS;
        score_page(scaled, keys + first * HEAD_DIM, group, num, scores);
        for (int h = 0; h < group; h++) {
            const float page_largest = k->maximum(scores[h], num);
            const float new_largest = page_largest > largest[h] ? page_largest : largest[h];
            const float shrink = exponential(largest[h] - new_largest);
            for (int i = 0; i < HEAD_DIM; i++) out[h * HEAD_DIM + i] *= shrink;
            total[h] = total[h] * shrink + k->exp_and_sum(scores[h], num, new_largest);
            largest[h] = new_largest;
            add_page(values + first * HEAD_DIM, num, scores[h], out + h * HEAD_DIM);
        }
    }
    for (int i = 0; i < group * HEAD_DIM; i++) out[i] /= total[i / HEAD_DIM];
}

static void heads_together(void *argument) {
    problem *p = argument;
    const int group = NUM_HEADS / p->num_kv_heads;
    for (int kv_head = 0; kv_head < p->num_kv_heads; kv_head++) {
        const size_t offset = (size_t)kv_head * (size_t)p->num_positions * HEAD_DIM;
        attend_group(p->query + kv_head * group * HEAD_DIM, p->half_keys + offset, p->half_values + offset, group,
                     p->num_positions, p->out + kv_head * group * HEAD_DIM);
    }
}

/* ------------------------------------------------------------------ 3: the engine */

static void engine(problem *p, kv_type type) {
    const attention_job job = {
        .kernels = kernels_select(NULL), .num_heads = NUM_HEADS, .query = p->query, .out = p->out};
    const attention_tile tile = {.cache = &p->caches[type], .num_tokens = 1, .first_position = p->num_positions - 1};
    for (int kv_head = 0; kv_head < p->num_kv_heads; kv_head++) attention(&job, &tile, kv_head, p->scratch);
}

static void engine_f32(void *argument) { engine(argument, KV_F32); }
static void engine_f16(void *argument) { engine(argument, KV_F16); }
static void engine_q8(void *argument) { engine(argument, KV_Q8); }

/* ------------------------------------------------------------------ the problem */

static void random_halves(uint64_t *state, size_t num, float *floats, uint16_t *halves) {
    for (size_t i = 0; i < num; i++) {
        halves[i] = half_from_float(2.0f * random_float(state));
        floats[i] = float_from_half(halves + i);
    }
}

static void fill_cache(problem *p, kv_type type) {
    const kernels *k = kernels_select(NULL);
    kv_cache *cache = &p->caches[type];
    if (!kv_shape_init(&p->shapes[type], 1, p->num_kv_heads, HEAD_DIM, type) ||
        !kv_cache_init(cache, &p->shapes[type], p->num_positions) || !kv_cache_reserve(cache, 0, p->num_positions))
        exit(1);
    for (int head = 0; head < p->num_kv_heads; head++)
        for (int t = 0; t < p->num_positions; t++) {
            const size_t offset = ((size_t)head * (size_t)p->num_positions + (size_t)t) * HEAD_DIM;
            kv_cache_put_key(cache, k, t, 0, head, p->keys + offset, 0, HEAD_DIM);
            kv_cache_put_value(cache, k, t, 0, head, p->values + offset, 0, HEAD_DIM);
        }
}

static problem make(int num_kv_heads, int num_positions) {
    uint64_t state = 1;
    const size_t num = (size_t)num_kv_heads * (size_t)num_positions * HEAD_DIM;
    problem p = {.num_kv_heads = num_kv_heads, .num_positions = num_positions};
    p.keys = allocate(num * sizeof *p.keys);
    p.values = allocate(num * sizeof *p.values);
    p.half_keys = allocate(num * sizeof *p.half_keys);
    p.half_values = allocate(num * sizeof *p.half_values);
    p.scratch = allocate(attention_scratch_floats(NUM_HEADS, num_kv_heads, HEAD_DIM) * sizeof *p.scratch);
    random_halves(&state, num, p.keys, p.half_keys);
    random_halves(&state, num, p.values, p.half_values);
    random_floats(&state, NUM_HEADS * HEAD_DIM, p.query);
    return p;
}

/* In double. magnitude: the largest value there is, 2. */
static void exact_attention(const problem *p, double *out) {
    static double weights[MAX_POSITIONS];
    for (int h = 0; h < NUM_HEADS; h++) {
        const size_t kv_head = (size_t)(h / (NUM_HEADS / p->num_kv_heads));
        const size_t offset = kv_head * (size_t)p->num_positions * HEAD_DIM;
        double total = 0; /* of small scores: no maximum needed */
        for (int t = 0; t < p->num_positions; t++) {
            double dot = 0;
            for (int i = 0; i < HEAD_DIM; i++)
                dot += (double)p->query[h * HEAD_DIM + i] * (double)p->keys[offset + (size_t)(t * HEAD_DIM + i)];
            total += weights[t] = exp(dot / sqrt(HEAD_DIM));
        }
        for (int i = 0; i < HEAD_DIM; i++) {
            double sum = 0;
            for (int t = 0; t < p->num_positions; t++)
                sum += weights[t] * (double)p->values[offset + (size_t)(t * HEAD_DIM + i)];
            out[h * HEAD_DIM + i] = sum / total;
        }
    }
}

static void check(problem *p, const version *versions, int num_versions) {
    enum { NUM = NUM_HEADS * HEAD_DIM };
    static double exact[NUM], magnitude[NUM];
    exact_attention(p, exact);
    for (int i = 0; i < NUM; i++) magnitude[i] = 2.0;
    for (int v = 0; v < num_versions; v++) {
        memset(p->out, 255, sizeof p->out); /* NaN */
        versions[v].run(p);
        expect_close(versions[v].name, p->out, exact, magnitude, NUM, versions[v].run == engine_q8 ? 3e-3 : 3e-6);
    }
}

static void clear(problem *p) {
    for (int type = 0; type < NUM_CACHES; type++) kv_cache_clear(&p->caches[type]);
    free(p->keys);
    free(p->values);
    free(p->half_keys);
    free(p->half_values);
    free(p->scratch);
}

int main(void) {
    static const version versions[] = {{"1 head by head, floats, two passes", head_by_head},
                                       {"2 heads of a kv head together, pages of halves", heads_together},
                                       {"3 the engine, F32 cache", engine_f32},
                                       {"4 the engine, Q8 cache", engine_q8},
                                       {"5 the engine, F16 cache", engine_f16}};
    static const int kv_heads[] = {12, 3}, positions[] = {128, 1024, MAX_POSITIONS};
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 3; j++) {
            problem p = make(kv_heads[i], positions[j]);
            for (int type = 0; type < NUM_CACHES; type++) fill_cache(&p, (kv_type)type);
            char title[64];
            double seconds[MAX_VERSIONS];
            snprintf(title, sizeof title, "12 heads of 64, %d kv heads, %d positions", kv_heads[i], positions[j]);
            check(&p, versions, 5);
            measure(versions, 5, &p, seconds);
            print_table(title, versions, 5, seconds, 2.0 * NUM_HEADS * HEAD_DIM * positions[j], "GMAC/s");
            clear(&p);
        }
    return 0;
}
