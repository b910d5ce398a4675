/* forward_attention.c: the attention of a pass, shared among the workers according to
 * attention_split. */
#include "model/forward_pass.h"

void forward_store_kv(const forward *f, int32_t layer_index, rows keys, rows values) {
    const int32_t head_dim = f->model->info.head_dim, num_heads = f->model->info.num_key_value_heads;
    const int64_t length = (int64_t)num_heads * head_dim;
    const kernels *k = f->model->kernels;
    for (int32_t t = 0; t < f->num_tokens; t++) {
        for (int32_t h = 0; h < num_heads; h++) {
            const int64_t offset = (int64_t)h * head_dim;
            const rows key = rows_within(keys, offset, head_dim), value = rows_within(values, offset, head_dim);
            if (key.begin < key.end)
                kv_cache_put_key(f->caches[t], k, f->positions[t], layer_index, h,
                                 f->key + t * length + offset + key.begin, (int32_t)key.begin, (int32_t)key.end);
            if (value.begin < value.end)
                kv_cache_put_value(f->caches[t], k, f->positions[t], layer_index, h,
                                   f->value + t * length + offset + value.begin, (int32_t)value.begin,
                                   (int32_t)value.end);
        }
    }
}

/* BY_KV_HEAD and BY_TILE compute every tile with every kv head; BY_PAGE goes page by page and
 * writes partials. */
void forward_attend(forward *f, worker w, int32_t layer_index) {
    const llamita_model_info *info = &f->model->info;
    const attention_job job = {f->model->kernels, layer_index, info->num_attention_heads, f->query,
                               f->attention_out.values};
    const int64_t num_kv_heads = info->num_key_value_heads;
    float *scratch = f->thread_buffers[w.index].attention_scratch;
    int64_t begin, end, item = 0;
    if (f->attention_split == BY_KV_HEAD) {
        thread_pool_share(w, num_kv_heads, 1, &begin, &end);
        for (int32_t i = 0; i < f->num_tiles; i++)
            for (int64_t head = begin; head < end; head++) attention(&job, &f->tiles[i], (int32_t)head, scratch);
        return;
    }
    if (f->attention_split == BY_TILE) {
        thread_pool_share(w, f->num_tiles * num_kv_heads, 1, &begin, &end);
        for (item = begin; item < end; item++)
            attention(&job, &f->tiles[item / num_kv_heads], (int32_t)(item % num_kv_heads), scratch);
        return;
    }
    int64_t num_items = 0;
    for (int32_t i = 0; i < f->num_tiles; i++) num_items += num_kv_heads * attention_num_pages(&f->tiles[i]);
    thread_pool_share(w, num_items, 1, &begin, &end);
    for (int32_t i = 0; i < f->num_tiles; i++) {
        const attention_tile *tile = &f->tiles[i];
        const int32_t num_pages = attention_num_pages(tile);
        float *partials = f->partials + (size_t)tile->first_token * (size_t)info->num_attention_heads *
                                            (size_t)f->max_pages * PARTIAL_FLOATS(info->head_dim);
        for (int64_t tile_item = 0; tile_item < num_kv_heads * num_pages; tile_item++, item++)
            if (item >= begin && item < end)
                attention_page(&job, tile, (int32_t)(tile_item / num_pages), (int32_t)(tile_item % num_pages), scratch,
                               partials, f->max_pages);
    }
}

const activations *forward_gather_heads(forward *f, worker w, bool quantized) {
    const llamita_model_info *info = &f->model->info;
    const size_t partial_floats = PARTIAL_FLOATS(info->head_dim);
    activations *out = f->is_small && (quantized || f->attention_split == BY_PAGE)
                           ? &f->thread_buffers[w.index].attention_out
                           : &f->attention_out;
    const int64_t length = out->length;
    if (f->attention_split == BY_PAGE)
        for (int32_t i = 0; i < f->num_tiles; i++)
            for (int64_t t = f->tiles[i].first_token; t < f->tiles[i].first_token + f->tiles[i].num_tokens; t++)
                for (int32_t h = 0; h < info->num_attention_heads; h++)
                    attention_merge(f->partials +
                                        (size_t)((t * info->num_attention_heads + h) * f->max_pages) * partial_floats,
                                    attention_num_pages(&f->tiles[i]), info->head_dim,
                                    out->values + t * length + (int64_t)h * info->head_dim);
    if (!quantized) return out;
    const rows tokens = forward_share_tokens(f, w, f->num_tokens);
    const float *values = f->attention_split == BY_PAGE ? out->values : f->attention_out.values;
    quantize(f->model->kernels, values, tokens.begin, tokens.end, out);
    if (!f->is_small) thread_pool_barrier(w);
    return out;
}
