/* attention.h: queries and the cached keys and values in, weighted sums of values out.
 *
 * The positions of a sequence are cut into pages. Each page alone gives a query its largest score, the sum of the weights
 * exp(score - largest) and the sum of the values so weighted; the pages are then merged in order (online softmax,
 * Milakov and Gimelshein, 1805.02867). So the result does not depend on who does which page, and when.
 */
#ifndef LLAMITA_ATTENTION_H
#define LLAMITA_ATTENTION_H

#include "model/kv_cache.h"

#define TILE_TOKENS 16 /* tokens that meet a page of keys at once */

/* Some consecutive tokens of one sequence, at most TILE_TOKENS, within a pass. */
typedef struct {
    const kv_cache *cache; /* holds their own positions, too */
    int32_t first_token;   /* of the pass */
    int32_t num_tokens;
    int32_t first_position;
} attention_tile;

typedef struct {
    const kernels *kernels;
    int32_t layer, num_heads;
    const float *query; /* [T, H, S] */
    float *out;         /* [T, H, S] */
} attention_job;

/* What one page gives one query: the sum of values [S], the largest score, the sum of weights. */
#define PARTIAL_FLOATS(head_dim) ((size_t)(head_dim) + 2)

static inline int32_t attention_num_pages(const attention_tile *tile) {
    return (tile->first_position + tile->num_tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
}

/* A worker's own memory, in floats. */
size_t attention_scratch_floats(int32_t num_heads, int32_t num_kv_heads, int32_t head_dim);

/* All pages for the query heads of one kv head; writes their part of job->out. */
void attention(const attention_job *job, const attention_tile *tile, int32_t kv_head, float *scratch);

/* One page: partial p of token t (of the tile) and query head h (of this kv head) goes to
 * partials[((t * num_heads + h) * stride + page) * PARTIAL_FLOATS]. */
void attention_page(const attention_job *job, const attention_tile *tile, int32_t kv_head, int32_t page, float *scratch,
                    float *partials, int32_t stride);

/* out [S] of one token and head from its partials [num_pages]. */
void attention_merge(const float *partials, int32_t num_pages, int32_t head_dim, float *out);

#endif
