/* attention.c: attention of queries over cached keys and values. */
#include "model/attention.h"

#include <math.h>

#include "kernels/float_math.h"

/* A column is one query head of one token. All columns that share a kv head are multiplied with its
 * keys and values together. */
typedef struct {
    float *query;           /* [columns][S], times 1 / sqrt(S) */
    float *scores;          /* [columns][KV_PAGE_TOKENS] */
    float *sums;            /* [columns][S] of one page */
    float *all_sums;        /* [columns][S] over all pages so far */
    float *states;          /* [columns][2] over all pages so far: largest score, sum of weights */
    float *largest, *total; /* [columns] of one page */
} scratch_memory;

static int64_t max_columns(int32_t num_heads, int32_t num_kv_heads) {
    return (int64_t)TILE_TOKENS * (num_heads / num_kv_heads);
}

size_t attention_scratch_floats(int32_t num_heads, int32_t num_kv_heads, int32_t head_dim) {
    const size_t each = 3 * (size_t)head_dim + KV_PAGE_TOKENS + 4;
    return (size_t)max_columns(num_heads, num_kv_heads) * each;
}

static scratch_memory split_scratch(float *memory, int64_t columns, int32_t head_dim) {
    scratch_memory s = {.query = memory};
    s.scores = s.query + columns * head_dim;
    s.sums = s.scores + columns * KV_PAGE_TOKENS;
    s.all_sums = s.sums + columns * head_dim;
    s.states = s.all_sums + columns * head_dim;
    s.largest = s.states + 2 * columns;
    s.total = s.largest + columns;
    return s;
}

/* The offset of column c in a [T, H, S] array. */
static int64_t head_offset(const attention_job *job, const attention_tile *tile, int32_t kv_head, int64_t c) {
    const kv_shape *shape = tile->cache->shape;
    const int64_t group = job->num_heads / shape->num_heads;
    return ((tile->first_token + c / group) * job->num_heads + kv_head * group + c % group) * shape->head_dim;
}

static void scale_queries(const attention_job *job, const attention_tile *tile, int32_t kv_head, int64_t columns,
                          float *out) {
    const int32_t head_dim = tile->cache->shape->head_dim;
    const float scale = 1.0f / sqrtf((float)head_dim);
    for (int64_t c = 0; c < columns; c++) {
        const float *query = job->query + head_offset(job, tile, kv_head, c);
        for (int32_t i = 0; i < head_dim; i++) out[c * head_dim + i] = query[i] * scale;
    }
}

/* Turns scores into weights: column c sees the first `visible` positions of the page; its other
 * weights, up to num_positions, are 0. */
static void scores_to_weights(const kernels *k, const kv_head_page *head, scratch_memory *s, int64_t c, int32_t visible,
                              int32_t num_positions) {
    float *scores = s->scores + c * KV_PAGE_TOKENS;
    visible = visible < 0 ? 0 : visible < num_positions ? visible : num_positions;
    if (head->key_scales)
        for (int32_t i = 0; i < visible; i++) scores[i] *= head->key_scales[i];
    s->largest[c] = k->maximum(scores, visible);
    s->total[c] = visible > 0 ? k->exp_and_sum(scores, visible, s->largest[c]) : 0.0f;
    if (head->value_scales)
        for (int32_t i = 0; i < visible; i++) scores[i] *= head->value_scales[i];
    for (int32_t i = visible; i < num_positions; i++) scores[i] = 0.0f;
}

/* Fills largest, total and sums of every column for one page. */
static void attend_to_page(const attention_job *job, const attention_tile *tile, int32_t kv_head, int32_t page,
                           int64_t columns, scratch_memory *s) {
    const kv_shape *shape = tile->cache->shape;
    const kernels *k = job->kernels;
    const int64_t group = job->num_heads / shape->num_heads;
    const int32_t head_dim = shape->head_dim, first = page * KV_PAGE_TOKENS;
    const int32_t left = tile->first_position + tile->num_tokens - first;
    const int32_t num_positions = left < KV_PAGE_TOKENS ? left : KV_PAGE_TOKENS;
    const kv_head_page head = kv_cache_head(tile->cache, page, job->layer, kv_head);
    k->matmul[shape->format](&(matmul_job){.panels = head.keys,
                                           .panel_bytes = shape->key_panel_bytes,
                                           .num_rows = num_positions,
                                           .row_length = head_dim,
                                           .columns = s->query,
                                           .column_bytes = (size_t)head_dim * sizeof(float),
                                           .num_columns = columns,
                                           .out = s->scores,
                                           .out_stride = KV_PAGE_TOKENS});
    for (int64_t c = 0; c < columns; c++)
        scores_to_weights(k, &head, s, c, tile->first_position + (int32_t)(c / group) + 1 - first, num_positions);
    k->matmul[shape->format](&(matmul_job){.panels = head.values,
                                           .panel_bytes = shape->value_panel_bytes,
                                           .num_rows = head_dim,
                                           .row_length = num_positions,
                                           .columns = s->scores,
                                           .column_bytes = KV_PAGE_TOKENS * sizeof(float),
                                           .num_columns = columns,
                                           .out = s->sums,
                                           .out_stride = (size_t)head_dim});
}

/* ------------------------------------------------------------------ merging pages */

static void reset_sum(float *sum, float state[2], int32_t head_dim) {
    for (int32_t i = 0; i < head_dim; i++) sum[i] = 0.0f;
    state[0] = -INFINITY;
    state[1] = 0.0f;
}

/* Adds a page to the sum so far. The part with the smaller largest score is scaled down to the
 * other's. A page without visible positions changes nothing. */
static void merge(float *sum, float state[2], const float *page_sum, float largest, float total, int32_t head_dim) {
    if (total == 0.0f) return;
    if (largest > state[0]) {
        const float scale = exponential(state[0] - largest);
        for (int32_t i = 0; i < head_dim; i++) sum[i] = sum[i] * scale + page_sum[i];
        state[0] = largest;
        state[1] = state[1] * scale + total;
        return;
    }
    const float scale = exponential(largest - state[0]);
    for (int32_t i = 0; i < head_dim; i++) sum[i] = sum[i] + page_sum[i] * scale;
    state[1] = state[1] + total * scale;
}

void attention(const attention_job *job, const attention_tile *tile, int32_t kv_head, float *scratch) {
    const kv_shape *shape = tile->cache->shape;
    const int32_t head_dim = shape->head_dim, num_pages = attention_num_pages(tile);
    const int64_t columns = (int64_t)tile->num_tokens * (job->num_heads / shape->num_heads);
    scratch_memory s = split_scratch(scratch, max_columns(job->num_heads, shape->num_heads), head_dim);
    scale_queries(job, tile, kv_head, columns, s.query);
    for (int64_t c = 0; c < columns; c++) reset_sum(s.all_sums + c * head_dim, s.states + 2 * c, head_dim);
    for (int32_t page = 0; page < num_pages; page++) {
        attend_to_page(job, tile, kv_head, page, columns, &s);
        for (int64_t c = 0; c < columns; c++)
            merge(s.all_sums + c * head_dim, s.states + 2 * c, s.sums + c * head_dim, s.largest[c], s.total[c],
                  head_dim);
    }
    for (int64_t c = 0; c < columns; c++) {
        float *out = job->out + head_offset(job, tile, kv_head, c);
        for (int32_t i = 0; i < head_dim; i++) out[i] = s.all_sums[c * head_dim + i] / s.states[2 * c + 1];
    }
}

void attention_page(const attention_job *job, const attention_tile *tile, int32_t kv_head, int32_t page, float *scratch,
                    float *partials, int32_t stride) {
    const kv_shape *shape = tile->cache->shape;
    const int32_t head_dim = shape->head_dim;
    const int64_t group = job->num_heads / shape->num_heads, columns = tile->num_tokens * group;
    scratch_memory s = split_scratch(scratch, max_columns(job->num_heads, shape->num_heads), head_dim);
    scale_queries(job, tile, kv_head, columns, s.query);
    attend_to_page(job, tile, kv_head, page, columns, &s);
    for (int64_t c = 0; c < columns; c++) {
        const int64_t column = (c / group) * job->num_heads + kv_head * group + c % group;
        float *partial = partials + (size_t)(column * stride + page) * PARTIAL_FLOATS(head_dim);
        memcpy(partial, s.sums + c * head_dim, (size_t)head_dim * sizeof *partial);
        partial[head_dim] = s.largest[c];
        partial[head_dim + 1] = s.total[c];
    }
}

void attention_merge(const float *partials, int32_t num_pages, int32_t head_dim, float *out) {
    float state[2];
    reset_sum(out, state, head_dim);
    for (int32_t page = 0; page < num_pages; page++) {
        const float *partial = partials + (size_t)page * PARTIAL_FLOATS(head_dim);
        merge(out, state, partial, partial[head_dim], partial[head_dim + 1], head_dim);
    }
    for (int32_t i = 0; i < head_dim; i++) out[i] /= state[1];
}
