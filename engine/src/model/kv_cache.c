/* kv_cache.c: the keys and values of a sequence, in pages that are allocated as it grows. */
#include "model/kv_cache.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "platform/platform.h"

static size_t rounded_up(size_t bytes) { return (bytes + PANEL_ALIGNMENT - 1) / PANEL_ALIGNMENT * PANEL_ALIGNMENT; }

bool kv_shape_init(kv_shape *shape, int32_t num_layers, int32_t num_heads, int32_t head_dim, kv_type type) {
    const size_t tokens = KV_PAGE_TOKENS;
    *shape = (kv_shape){.num_layers = num_layers, .num_heads = num_heads, .head_dim = head_dim, .type = type};
    shape->format = type == KV_F16 ? PANEL_F16 : type == KV_F32 ? PANEL_F32 : PANEL_I8;
    const size_t panel_row_bytes = panel_layout_of(shape->format).element_bytes;
    shape->key_panel_bytes = (size_t)head_dim * panel_row_bytes;
    shape->value_panel_bytes = tokens * panel_row_bytes;
    shape->values_offset = rounded_up((size_t)panel_count(KV_PAGE_TOKENS) * shape->key_panel_bytes);
    shape->key_scales_offset =
        shape->values_offset + rounded_up((size_t)panel_count(head_dim) * shape->value_panel_bytes);
    shape->value_scales_offset = shape->key_scales_offset + (type == KV_Q8 ? tokens * sizeof(float) : 0);
    shape->head_bytes = shape->value_scales_offset + (type == KV_Q8 ? tokens * sizeof(float) : 0);
    const size_t heads = (size_t)num_layers * (size_t)num_heads;
    if (shape->head_bytes > SIZE_MAX / 2 / heads) return false;
    shape->page_bytes = heads * shape->head_bytes;
    return true;
}

bool kv_cache_init(kv_cache *cache, const kv_shape *shape, int32_t max_tokens) {
    *cache = (kv_cache){.shape = shape};
    cache->max_pages = max_tokens / KV_PAGE_TOKENS + (max_tokens % KV_PAGE_TOKENS != 0);
    cache->pages = calloc((size_t)cache->max_pages, sizeof *cache->pages);
    return cache->pages;
}

static void release(kv_page *page) {
    if (--page->ref_count > 0) return;
    platform_aligned_free(page->memory);
    free(page);
}

static void release_from(kv_cache *cache, int32_t num_kept) {
    while (cache->num_pages > num_kept) release(cache->pages[--cache->num_pages]);
}

void kv_cache_clear(kv_cache *cache) {
    release_from(cache, 0);
    free(cache->pages);
    *cache = (kv_cache){0};
}

static kv_page *new_page(const kv_shape *shape) {
    kv_page *page = calloc(1, sizeof *page);
    if (!page) return NULL;
    page->ref_count = 1;
    page->memory = platform_aligned_alloc(PANEL_ALIGNMENT, shape->page_bytes);
    if (page->memory) return page;
    free(page);
    return NULL;
}

bool kv_cache_reserve(kv_cache *cache, int32_t first, int32_t last) {
    const int32_t end = last / KV_PAGE_TOKENS + (last % KV_PAGE_TOKENS != 0);
    for (int32_t i = first / KV_PAGE_TOKENS; i < end; i++) {
        if (i < cache->num_pages && cache->pages[i]->ref_count == 1) continue;
        kv_page *page = new_page(cache->shape);
        if (!page) return false;
        if (i < cache->num_pages) { /* shared: keep the positions before `first` */
            if (first > i * KV_PAGE_TOKENS) memcpy(page->memory, cache->pages[i]->memory, cache->shape->page_bytes);
            release(cache->pages[i]);
        } else {
            cache->num_pages = i + 1;
        }
        cache->pages[i] = page;
    }
    return true;
}

void kv_cache_share(kv_cache *to, const kv_cache *from, int32_t num_tokens) {
    if (to == from) return;
    release_from(to, 0);
    to->num_pages = num_tokens / KV_PAGE_TOKENS + (num_tokens % KV_PAGE_TOKENS != 0);
    for (int32_t i = 0; i < to->num_pages; i++) {
        to->pages[i] = from->pages[i];
        to->pages[i]->ref_count++;
    }
}

/* ------------------------------------------------------------------ reading and writing */

static char *head_memory(const kv_cache *cache, int32_t page, int32_t layer, int32_t head) {
    const kv_shape *shape = cache->shape;
    const size_t index = (size_t)layer * (size_t)shape->num_heads + (size_t)head;
    return cache->pages[page]->memory + index * shape->head_bytes;
}

kv_head_page kv_cache_head(const kv_cache *cache, int32_t page, int32_t layer, int32_t head) {
    const kv_shape *shape = cache->shape;
    const char *keys = head_memory(cache, page, layer, head);
    const bool scaled = shape->type == KV_Q8;
    return (kv_head_page){.keys = keys,
                          .values = keys + shape->values_offset,
                          .key_scales = scaled ? (const float *)(const void *)(keys + shape->key_scales_offset) : NULL,
                          .value_scales =
                              scaled ? (const float *)(const void *)(keys + shape->value_scales_offset) : NULL};
}

/* Locates the elements of one position: keys have a row per position, values a row per element. */
typedef struct {
    char *memory;
    size_t row_length;
    int32_t slot;
    bool is_key;
} slot_place;

static inline size_t element_index(const slot_place *place, int32_t e) {
    const size_t row = (size_t)(place->is_key ? place->slot : e), k = (size_t)(place->is_key ? e : place->slot);
    return panel_index(row, k, place->row_length);
}

static void put_floats(const slot_place *place, const float *elements, int32_t begin, int32_t end) {
    float *out = (float *)(void *)place->memory;
    for (int32_t e = begin; e < end; e++) out[element_index(place, e)] = elements[e - begin];
}

static void put_halves(const slot_place *place, const kernels *k, const float *elements, int32_t begin, int32_t end) {
    uint16_t *out = (uint16_t *)(void *)place->memory, halves[64];
    for (int32_t first = begin; first < end; first += 64) {
        const int32_t count = end - first < 64 ? end - first : 64;
        k->to_halves(elements + (first - begin), count, halves);
        for (int32_t i = 0; i < count; i++) out[element_index(place, first + i)] = halves[i];
    }
}

/* Returns the scale: x is about scale * code, |code| <= 127; NaN if an x is not finite. */
static float put_bytes(const slot_place *place, const float *elements, int32_t num_elements) {
    int8_t *out = (int8_t *)place->memory;
    uint32_t largest = 0; /* magnitudes compare as integers: NaN > infinity > finite values */
    for (int32_t e = 0; e < num_elements; e++) {
        const uint32_t magnitude = bits_from_float(elements[e]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    const float magnitude = float_from_bits(largest);
    const float inverse = magnitude >= 1e-30f && largest < 0x7f800000u ? 127.0f / magnitude : 0.0f;
    for (int32_t e = 0; e < num_elements; e++)
        out[element_index(place, e)] = inverse > 0.0f ? (int8_t)lrintf(elements[e] * inverse) : 0;
    return largest >= 0x7f800000u ? NAN : inverse > 0.0f ? magnitude / 127.0f : 0.0f;
}

static void put(const kv_cache *cache, const kernels *k, const slot_place *place, float *scales, const float *elements,
                int32_t begin, int32_t end) {
    if (cache->shape->type == KV_F32) put_floats(place, elements, begin, end);
    else if (cache->shape->type == KV_F16) put_halves(place, k, elements, begin, end);
    else scales[place->slot] = put_bytes(place, elements, end);
}

void kv_cache_put_key(const kv_cache *cache, const kernels *k, int32_t position, int32_t layer, int32_t head,
                      const float *elements, int32_t begin, int32_t end) {
    char *memory = head_memory(cache, position / KV_PAGE_TOKENS, layer, head);
    const slot_place place = {memory, (size_t)cache->shape->head_dim, position % KV_PAGE_TOKENS, true};
    put(cache, k, &place, (float *)(void *)(memory + cache->shape->key_scales_offset), elements, begin, end);
}

void kv_cache_put_value(const kv_cache *cache, const kernels *k, int32_t position, int32_t layer, int32_t head,
                        const float *elements, int32_t begin, int32_t end) {
    char *memory = head_memory(cache, position / KV_PAGE_TOKENS, layer, head);
    const slot_place place = {memory + cache->shape->values_offset, KV_PAGE_TOKENS, position % KV_PAGE_TOKENS, false};
    put(cache, k, &place, (float *)(void *)(memory + cache->shape->value_scales_offset), elements, begin, end);
}

/* ------------------------------------------------------------------ files */

/* A piece of a head that is contiguous in memory and in a file. */
typedef struct {
    size_t offset, num_bytes; /* offset: from the start of the head in memory */
} kv_piece;

/* The pieces of a head, in order: whole panels of keys, the beginning of each panel of values, the
 * scales. False past the last one. */
static bool head_piece(const kv_shape *shape, int32_t num_tokens, int64_t index, kv_piece *piece) {
    const int64_t num_value_panels = panel_count(shape->head_dim);
    const size_t tokens = (size_t)num_tokens, element_bytes = panel_layout_of(shape->format).element_bytes;
    const size_t scale_bytes = shape->type == KV_Q8 ? tokens * sizeof(float) : 0;
    if (index == 0) *piece = (kv_piece){0, (size_t)panel_count(num_tokens) * shape->key_panel_bytes};
    else if (index <= num_value_panels)
        *piece =
            (kv_piece){shape->values_offset + (size_t)(index - 1) * shape->value_panel_bytes, tokens * element_bytes};
    else if (index == num_value_panels + 1) *piece = (kv_piece){shape->key_scales_offset, scale_bytes};
    else if (index == num_value_panels + 2) *piece = (kv_piece){shape->value_scales_offset, scale_bytes};
    else return false;
    return true;
}

size_t kv_head_bytes(const kv_shape *shape, int32_t num_tokens) {
    size_t total = 0;
    kv_piece piece;
    for (int64_t i = 0; head_piece(shape, num_tokens, i, &piece); i++) total += piece.num_bytes;
    return total;
}

/* Zeros the lanes of rows from `row` on in panels of num_elements elements. */
static void zero_lanes(char *panel, size_t num_elements, int32_t row, size_t element_bytes) {
    const size_t lane_bytes = element_bytes / PANEL_ROWS, first = (size_t)(row % PANEL_ROWS) * lane_bytes;
    if (first == 0) return;
    for (size_t i = 0; i < num_elements; i++) memset(panel + i * element_bytes + first, 0, element_bytes - first);
}

void kv_cache_copy_out(const kv_cache *cache, int32_t page, int32_t layer, int32_t head, int32_t num_tokens,
                       char *bytes) {
    const kv_shape *shape = cache->shape;
    const char *memory = head_memory(cache, page, layer, head);
    const size_t element_bytes = panel_layout_of(shape->format).element_bytes;
    const int64_t num_value_panels = panel_count(shape->head_dim);
    kv_piece piece;
    for (int64_t i = 0; head_piece(shape, num_tokens, i, &piece); i++, bytes += piece.num_bytes) {
        memcpy(bytes, memory + piece.offset, piece.num_bytes);
        /* The last panel of keys may hold later positions; that of values, rows that do not exist. */
        if (i == 0)
            zero_lanes(bytes + piece.num_bytes - shape->key_panel_bytes, (size_t)shape->head_dim, num_tokens,
                       element_bytes);
        if (i == num_value_panels) zero_lanes(bytes, (size_t)num_tokens, shape->head_dim, element_bytes);
    }
}

void kv_cache_copy_in(const kv_cache *cache, int32_t page, int32_t layer, int32_t head, int32_t num_tokens,
                      const char *bytes) {
    char *memory = head_memory(cache, page, layer, head);
    kv_piece piece;
    for (int64_t i = 0; head_piece(cache->shape, num_tokens, i, &piece); i++, bytes += piece.num_bytes)
        memcpy(memory + piece.offset, bytes, piece.num_bytes);
}
