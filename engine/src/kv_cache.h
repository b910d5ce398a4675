/* kv_cache.h: the keys and values of the tokens so far, in pages of a fixed number of positions. */
#ifndef LLAMITA_KV_CACHE_H
#define LLAMITA_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

/* Attention sums page by page, so this number is part of the order of its sums. */
#define KV_PAGE_TOKENS 128

typedef struct {
    int32_t num_layers, num_heads, head_dim; /* L, K, S */
    int32_t num_pages, max_pages;
    float **pages; /* [num_pages] of [L][K][keys, values][KV_PAGE_TOKENS][S]: one head of a page streams contiguously */
} kv_cache;

/* Room for at most max_tokens; the memory comes with kv_cache_reserve. False: no memory. */
bool kv_cache_init(kv_cache *cache, int32_t num_layers, int32_t num_heads, int32_t head_dim, int32_t max_tokens);
void kv_cache_clear(kv_cache *cache);

/* Room for this many tokens at least, what is held stays; false: no memory (and nothing changed that matters). */
bool kv_cache_reserve(kv_cache *cache, int32_t num_tokens);

/* [KV_PAGE_TOKENS][S] of a page. */
float *kv_cache_keys(const kv_cache *cache, int32_t page, int32_t layer, int32_t head);
float *kv_cache_values(const kv_cache *cache, int32_t page, int32_t layer, int32_t head);

#endif
