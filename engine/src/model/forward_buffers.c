/* forward_buffers.c: allocates and frees the buffers of a pass. */
#include <stdlib.h>

#include "model/forward_pass.h"
#include "platform/platform.h"

/* SIZE_MAX if the product is larger: it has 32 bits in WebAssembly. */
static size_t product(size_t a, size_t b) { return b > 0 && a > SIZE_MAX / b ? SIZE_MAX : a * b; }

/* Whole cache lines; NULL if there is no such amount of memory. */
static void *aligned_array(size_t count, size_t element_bytes) {
    const size_t num_bytes = product(count, element_bytes);
    return num_bytes > SIZE_MAX - 63 ? NULL : platform_aligned_alloc(64, (num_bytes + 63) / 64 * 64);
}

static float *floats(size_t rows, size_t length) { return aligned_array(product(rows, length), sizeof(float)); }

static bool allocate_activations(activations *a, size_t num_tokens, int64_t length) {
    a->length = length;
    a->values = floats(num_tokens, (size_t)length);
    a->blocks = aligned_array(product(num_tokens, (size_t)(length / BLOCK_LENGTH) + 1), sizeof *a->blocks);
    return a->values && a->blocks;
}

static void free_activations(activations *a) {
    platform_aligned_free(a->values);
    platform_aligned_free(a->blocks);
}

static bool allocate_thread_buffers(forward *f, size_t scratch_floats) {
    const int count = thread_pool_size(f->pool);
    f->thread_buffers = calloc((size_t)count, sizeof *f->thread_buffers);
    for (int i = 0; f->thread_buffers && i < count; i++) {
        f->thread_buffers[i].attention_scratch = floats(1, scratch_floats);
        if (!f->thread_buffers[i].attention_scratch ||
            !allocate_activations(&f->thread_buffers[i].normed, SMALL_PASS_TOKENS, f->normed.length) ||
            !allocate_activations(&f->thread_buffers[i].attention_out, SMALL_PASS_TOKENS, f->attention_out.length))
            return false;
    }
    return f->thread_buffers;
}

forward *forward_create(const llamita_model *model, const kv_shape *shape, int32_t context_tokens, rope_angles rope,
                        thread_pool *pool) {
    const llamita_model_info *info = &model->info;
    const size_t hidden = (size_t)info->hidden_size, ffn = (size_t)info->intermediate_size,
                 query_length = product((size_t)info->num_attention_heads, (size_t)info->head_dim),
                 key_length = product((size_t)info->num_key_value_heads, (size_t)info->head_dim);
    forward *f = calloc(1, sizeof *f);
    if (!f) return NULL;
    f->model = model;
    f->pool = pool;
    f->heads_in_parts = shape->type != KV_Q8 && !model->layers[0].query_norm;
    f->rope = rope;
    f->max_pages = (context_tokens - 1) / KV_PAGE_TOKENS + 1;
    f->residual = floats(PASS_TOKENS, hidden);
    f->rope_table = floats(PASS_TOKENS, (size_t)info->head_dim);
    f->query = floats(PASS_TOKENS, query_length);
    f->key = floats(PASS_TOKENS, key_length);
    f->value = floats(PASS_TOKENS, key_length);
    f->ffn_up = floats(PASS_TOKENS, ffn);
    f->update = floats(PASS_TOKENS, hidden);
    f->last = floats(PASS_TOKENS, hidden);
    const bool never_by_page = thread_pool_size(pool) == 1 && panel_aligned(info->head_dim);
    /* Generous where it may be needed: untouched memory costs nothing, but on Windows. */
    const size_t heads = never_by_page ? 0 : SMALL_PASS_TOKENS * (size_t)info->num_attention_heads;
    f->partials = floats(product(heads, (size_t)f->max_pages) + !heads, PARTIAL_FLOATS(info->head_dim));
    const bool all = allocate_activations(&f->normed, PASS_TOKENS, (int64_t)hidden) &&
                     allocate_activations(&f->attention_out, PASS_TOKENS, (int64_t)query_length) &&
                     allocate_activations(&f->ffn_gate, PASS_TOKENS, (int64_t)ffn) &&
                     allocate_thread_buffers(f, attention_scratch_floats(info->num_attention_heads,
                                                                         info->num_key_value_heads, info->head_dim));
    if (all && f->residual && f->rope_table && f->query && f->key && f->value && f->ffn_up && f->update && f->last &&
        f->partials)
        return f;
    forward_free(f);
    return NULL;
}

bool forward_reserve_lora(forward *f, int64_t num_floats) {
    if (num_floats <= f->lora_floats) return true;
    const size_t num_tokens = PASS_TOKENS + SMALL_PASS_TOKENS * (size_t)thread_pool_size(f->pool);
    float *hidden = floats(num_tokens, (size_t)num_floats);
    if (!hidden) return false;
    platform_aligned_free(f->lora_hidden);
    f->lora_hidden = hidden;
    f->lora_floats = num_floats;
    return true;
}

void forward_free(forward *f) {
    if (!f) return;
    for (int i = 0; f->thread_buffers && i < thread_pool_size(f->pool); i++) {
        platform_aligned_free(f->thread_buffers[i].attention_scratch);
        free_activations(&f->thread_buffers[i].normed);
        free_activations(&f->thread_buffers[i].attention_out);
        model_free_scratch(&f->thread_buffers[i].rows);
    }
    free(f->thread_buffers);
    free_activations(&f->normed);
    free_activations(&f->attention_out);
    free_activations(&f->ffn_gate);
    float *buffers[] = {f->residual, f->rope_table, f->query, f->key,      f->value,
                        f->ffn_up,   f->update,     f->last,  f->partials, f->lora_hidden};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) platform_aligned_free(buffers[i]);
    free(f);
}
