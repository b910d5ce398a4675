/* attention.h: attention of queries over cached keys and values.
 *
 * The positions of a sequence are split into pages. For one query, a page gives the largest score,
 * the sum of the weights exp(score - largest) and the weighted sum of the values. The pages are
 * then merged in order (online softmax, Milakov and Gimelshein, 1805.02867), so the result does not
 * depend on which worker computes which page, or when. */
#ifndef LLAMITA_ATTENTION_H
#define LLAMITA_ATTENTION_H

#include "model/kv_cache.h"

#define TILE_TOKENS 16 /* tokens that share each read of a page */

/* Consecutive tokens of one sequence within a pass, at most TILE_TOKENS. */
typedef struct {
    const kv_cache *cache; /* already holds the keys and values of these tokens */
    int32_t first_token;   /* within the pass */
    int32_t num_tokens;
    int32_t first_position;
} attention_tile;

typedef struct {
    const kernels *kernels;
    int32_t layer, num_heads;
    const float *query; /* [T, H, S] */
    float *out;         /* [T, H, S] */
} attention_job;

/* The partial result of one page for one query: the sum of values [S], the largest score, the sum
 * of weights. */
#define PARTIAL_FLOATS(head_dim) ((size_t)(head_dim) + 2)

static inline int32_t attention_num_pages(const attention_tile *tile) {
    return (tile->first_position + tile->num_tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
}

/* Floats of scratch memory that a worker needs; the caller allocates it. */
size_t attention_scratch_floats(int32_t num_heads, int32_t num_kv_heads, int32_t head_dim);

/* Attends to all pages for the query heads of one kv head; writes their part of job->out. */
void attention(const attention_job *job, const attention_tile *tile, int32_t kv_head, float *scratch);

/* Attends to one page. The partial of token t (of the tile) and query head h (of this kv head) goes
 * to partials[((t * num_heads + h) * stride + page) * PARTIAL_FLOATS]. */
void attention_page(const attention_job *job, const attention_tile *tile, int32_t kv_head, int32_t page, float *scratch,
                    float *partials, int32_t stride);

/* Merges the partials [num_pages] of one token and head into out [S]. */
void attention_merge(const float *partials, int32_t num_pages, int32_t head_dim, float *out);

#endif
