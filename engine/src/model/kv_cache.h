/* kv_cache.h: the keys and values of a sequence so far, in pages that sequences with the same
 * beginning share.
 *
 * A page holds KV_PAGE_TOKENS positions of all layers and kv heads, each head as two matrices in
 * the kernels' layout (panel.h): keys with a row per position, multiplied with queries [S], and
 * values with a row per element (S rows), multiplied with weights [positions]. */
#ifndef LLAMITA_KV_CACHE_H
#define LLAMITA_KV_CACHE_H

#include "kernels/kernels.h"

/* Attention sums page by page, so this number is part of the order of its sums. A multiple of 8. */
#define KV_PAGE_TOKENS 128

typedef enum {
    KV_F16,
    KV_F32,
    KV_Q8, /* int8, with one scale per position of a head */
} kv_type;

typedef struct {
    int32_t num_layers, num_heads, head_dim; /* L, K, S */
    kv_type type;
    panel_format format;
    size_t key_panel_bytes, value_panel_bytes;                    /* stride between panels */
    size_t values_offset, key_scales_offset, value_scales_offset; /* from the start of a head */
    size_t head_bytes, page_bytes;
} kv_shape;

typedef struct {
    int32_t ref_count; /* number of caches that hold it */
    char *memory;
} kv_page;

/* The cache of one sequence. `shape` must outlive it. */
typedef struct {
    const kv_shape *shape;
    int32_t num_pages, max_pages;
    kv_page **pages; /* [max_pages]; a reference to each of the first num_pages */
} kv_cache;

/* Returns false if the sizes overflow size_t. */
bool kv_shape_init(kv_shape *shape, int32_t num_layers, int32_t num_heads, int32_t head_dim, kv_type type);

/* Makes an empty cache for up to max_tokens; kv_cache_reserve allocates the pages. kv_cache_clear
 * frees everything. kv_cache_init returns false if out of memory. */
bool kv_cache_init(kv_cache *cache, const kv_shape *shape, int32_t max_tokens);
void kv_cache_clear(kv_cache *cache);

/* Makes positions [first, last) writable: allocates missing pages and copies shared ones. Positions
 * before `first` keep their contents. Returns false if out of memory; positions before `first` are
 * still intact. */
bool kv_cache_reserve(kv_cache *cache, int32_t first, int32_t last);

/* Makes `to` the first num_tokens of `from`. They share pages until one of them writes there. */
void kv_cache_share(kv_cache *to, const kv_cache *from, int32_t num_tokens);

/* Stores key (value) elements [begin, end) of a head at a position, from elements [0, end - begin).
 * KV_Q8: whole heads only. */
void kv_cache_put_key(const kv_cache *cache, const kernels *k, int32_t position, int32_t layer, int32_t head,
                      const float *elements, int32_t begin, int32_t end);
void kv_cache_put_value(const kv_cache *cache, const kernels *k, int32_t position, int32_t layer, int32_t head,
                        const float *elements, int32_t begin, int32_t end);

/* One head of a page; the cache owns the memory. The scales [KV_PAGE_TOKENS] are NULL except for
 * KV_Q8. */
typedef struct {
    const void *keys, *values;
    const float *key_scales, *value_scales;
} kv_head_page;
kv_head_page kv_cache_head(const kv_cache *cache, int32_t page, int32_t layer, int32_t head);

/* A head of a page in a file: its first num_tokens positions, without what is beside them in memory.
 * kv_head_bytes: their number of bytes. copy_out writes them to `bytes`; copy_in stores them. */
size_t kv_head_bytes(const kv_shape *shape, int32_t num_tokens);
void kv_cache_copy_out(const kv_cache *cache, int32_t page, int32_t layer, int32_t head, int32_t num_tokens,
                       char *bytes);
void kv_cache_copy_in(const kv_cache *cache, int32_t page, int32_t layer, int32_t head, int32_t num_tokens,
                      const char *bytes);

#endif
