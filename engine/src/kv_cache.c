/* kv_cache.c: the keys and values of the tokens so far, in pages that are allocated when the text reaches them. */
#include "kv_cache.h"

#include <stdlib.h>

static size_t head_floats(const kv_cache *cache) { return (size_t)KV_PAGE_TOKENS * (size_t)cache->head_dim; }

bool kv_cache_init(kv_cache *cache, int32_t num_layers, int32_t num_heads, int32_t head_dim, int32_t max_tokens) {
    *cache = (kv_cache){.num_layers = num_layers, .num_heads = num_heads, .head_dim = head_dim};
    cache->max_pages = max_tokens / KV_PAGE_TOKENS + (max_tokens % KV_PAGE_TOKENS != 0);
    cache->pages = calloc((size_t)cache->max_pages, sizeof *cache->pages);
    return cache->pages != NULL;
}

void kv_cache_clear(kv_cache *cache) {
    for (int32_t i = 0; i < cache->num_pages; i++) free(cache->pages[i]);
    free(cache->pages);
    *cache = (kv_cache){0};
}

bool kv_cache_reserve(kv_cache *cache, int32_t num_tokens) {
    const size_t heads = (size_t)cache->num_layers * (size_t)cache->num_heads * 2;
    if (heads > SIZE_MAX / sizeof(float) / head_floats(cache)) return false;
    while ((int64_t)cache->num_pages * KV_PAGE_TOKENS < num_tokens) {
        float *page = aligned_alloc(64, heads * head_floats(cache) * sizeof(float));
        if (page == NULL) return false;
        cache->pages[cache->num_pages++] = page;
    }
    return true;
}

float *kv_cache_keys(const kv_cache *cache, int32_t page, int32_t layer, int32_t head) {
    return cache->pages[page] + ((size_t)layer * (size_t)cache->num_heads + (size_t)head) * 2 * head_floats(cache);
}

float *kv_cache_values(const kv_cache *cache, int32_t page, int32_t layer, int32_t head) {
    return kv_cache_keys(cache, page, layer, head) + head_floats(cache);
}
