/* forward.c: token ids in, logits out: the network, with the names and in the order of src/llamita/model/llama.py.
 *
 * All members of the pool run forward_worker together, each on its part of every operation; thread_pool_barrier stands where
 * one reads what others wrote. A pass of few tokens (decoding) has four barriers a layer: each member norms the residual
 * for itself, and attends with the heads that it has projected itself where those divide evenly (five if not).
 */
#include "model/forward.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "model/attention.h"
#include "model/ops.h"

#define FEW_TOKENS 8 /* up to here doing small things twice is faster than a barrier */

struct forward {
    const llamita_model *model;
    thread_pool *pool;
    int32_t max_pages; /* of a sequence */
    bool keys_in_parts; /* members may share the rows of one kv head */

    /* This pass. */
    const forward_span *spans;
    int32_t num_spans, num_tokens, num_logits, num_tiles;
    bool few, whole_heads, split_pages;
    float *logits; /* [num_logits, V] */
    atomic_bool damaged;
    int32_t ids[PASS_TOKENS], positions[PASS_TOKENS];
    int32_t logit_tokens[PASS_TOKENS]; /* [num_logits] */
    kv_cache *caches[PASS_TOKENS];     /* of each token */
    attention_tile tiles[PASS_TOKENS];
    lora_tokens lora_runs[PASS_TOKENS];
    int32_t num_lora_runs;

    /* Memory for PASS_TOKENS tokens. */
    float *residual;            /* [T, D] */
    activations normed;         /* [T, D] */
    float *rope_table;              /* [T, S] cos and sin of each pair */
    float *query, *key, *value; /* [T, H*S], [T, K*S], [T, K*S] */
    activations attention_out;  /* [T, H*S] */
    activations ffn_gate;       /* [T, F] */
    float *ffn_up;              /* [T, F] */
    float *update;              /* [T, D] what a block adds to the residual */
    float *last;                /* [T, D] the rows of the residual that logits are wanted of */
    float *partials;            /* [FEW_TOKENS, H, max_pages] of what attention_page writes */
    float *lora_hidden;                 /* [T, lora_floats] of what lora_down writes, then [FEW_TOKENS, lora_floats] of each
                                   member; NULL: no adapters so far */
    int64_t lora_floats;

    struct thread_buffers { /* of one worker */
        activations normed;        /* [FEW_TOKENS, D] */
        activations attention_out; /* [FEW_TOKENS, H*S] */
        float *attention_scratch;
    } *thread_buffers; /* [threads] */
};

/* ------------------------------------------------------------------ who does what */

/* Rows [begin, end) of the projections. */
typedef struct {
    int64_t begin, end;
} rows;

static rows share_rows(worker w, int64_t num_rows) {
    rows mine;
    thread_pool_share(w, num_rows, ROW_UNIT, &mine.begin, &mine.end);
    return mine;
}

/* What [begin, end) of a list has of the part of it that starts at offset and is this long. */
static rows part_of(rows list, int64_t offset, int64_t length) {
    const int64_t begin = list.begin - offset, end = list.end - offset;
    return (rows){begin < 0 ? 0 : begin > length ? length : begin, end < 0 ? 0 : end > length ? length : end};
}

/* This member's rows of query, key and value: those of whole kv heads, or else an even part of the list of all. */
static void share_projections(const forward *f, worker w, rows *query, rows *key, rows *value) {
    const llamita_model_info *info = &f->model->info;
    const int64_t head_dim = info->head_dim, num_queries = info->num_attention_heads * head_dim,
                  num_keys = info->num_key_value_heads * head_dim;
    if (f->whole_heads) {
        int64_t begin, end;
        thread_pool_share(w, info->num_key_value_heads, 1, &begin, &end);
        *key = *value = (rows){begin * head_dim, end * head_dim};
        const int64_t group = num_queries / num_keys;
        *query = (rows){key->begin * group, key->end * group};
        return;
    }
    const int64_t total = num_queries + 2 * num_keys, unit = f->keys_in_parts ? PANEL_ROWS : head_dim;
    rows mine = {0, w.index == 0 ? total : 0}; /* heads that cut panels in two: all by one member */
    if (num_queries % PANEL_ROWS == 0 && num_keys % PANEL_ROWS == 0 && unit % PANEL_ROWS == 0)
        thread_pool_share(w, total, unit, &mine.begin, &mine.end);
    *query = part_of(mine, 0, num_queries);
    *key = part_of(mine, num_queries, num_keys);
    *value = part_of(mine, num_queries + num_keys, num_keys);
}

/* ------------------------------------------------------------------ adapters */

static float *lora_hidden_of(const forward *f, worker w, const lora_tokens *tokens) {
    const int64_t first = f->few ? PASS_TOKENS + (int64_t)w.index * FEW_TOKENS : 0;
    return f->lora_hidden + (first + tokens->first_token) * f->lora_floats;
}

/* What adapters make of the columns that matrices first .. last read: each member's own if there are few. */
static void reduce(const forward *f, worker w, int32_t layer_index, layer_matrix first, layer_matrix last,
                   const activations *columns) {
    if (f->num_lora_runs == 0) return;
    int64_t begin = 0, end = f->num_tokens;
    if (!f->few) thread_pool_share(w, f->num_tokens, 1, &begin, &end);
    for (int32_t i = 0; i < f->num_lora_runs; i++)
        lora_down(f->model->kernels, &f->lora_runs[i], layer_index, first, last, columns, begin, end,
                       lora_hidden_of(f, w, &f->lora_runs[i]));
    if (!f->few) thread_pool_barrier(w);
}

/* out = matrix(columns), with what adapters add to it, these rows. */
static void apply(const forward *f, worker w, int32_t layer_index, layer_matrix which, const tensor *matrix,
                  const activations *columns, rows mine, float *out) {
    matmul(f->model->kernels, matrix, columns, f->num_tokens, mine.begin, mine.end, out);
    for (int32_t i = 0; i < f->num_lora_runs; i++)
        lora_up(f->model->kernels, &f->lora_runs[i], layer_index, which, lora_hidden_of(f, w, &f->lora_runs[i]), mine.begin,
                       mine.end, out);
}

/* ------------------------------------------------------------------ the network */

/* The normed rows of `in`, as the matrices that follow read them: each member's own if there are few. */
static const activations *normalize(forward *f, worker w, const float *in, int32_t num_tokens, const float *weight,
                                    bool quantized) {
    activations *out = f->few ? &f->thread_buffers[w.index].normed : &f->normed;
    int64_t begin = 0, end = num_tokens;
    if (!f->few) thread_pool_share(w, num_tokens, 1, &begin, &end);
    rms_norm(f->model->kernels, in, weight, f->model->info.rms_norm_eps, begin, end, out);
    if (quantized) quantize(f->model->kernels, out->values, begin, end, out);
    if (!f->few) thread_pool_barrier(w);
    return out;
}

/* Keys take their positions on the way into the cache; values go as they are. */
static void store_kv(const forward *f, int32_t layer_index, rows keys, rows values) {
    const int32_t head_dim = f->model->info.head_dim, num_heads = f->model->info.num_key_value_heads;
    const int64_t length = (int64_t)num_heads * head_dim;
    const kernels *k = f->model->kernels;
    for (int32_t t = 0; t < f->num_tokens; t++) {
        rope(f->rope_table + (int64_t)t * head_dim, head_dim, keys.begin, keys.end, f->key + t * length);
        for (int32_t h = 0; h < num_heads; h++) {
            const int64_t offset = (int64_t)h * head_dim;
            const rows key = part_of(keys, offset, head_dim), value = part_of(values, offset, head_dim);
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

/* query, key and value of this member's rows, rotated and remembered. */
static void project(forward *f, worker w, int32_t layer_index, const activations *normed) {
    const layer *layer = &f->model->layers[layer_index];
    const int32_t head_dim = f->model->info.head_dim, num_tokens = f->num_tokens;
    rows query, key, value;
    share_projections(f, w, &query, &key, &value);
    reduce(f, w, layer_index, MATRIX_QUERY, MATRIX_VALUE, normed);
    apply(f, w, layer_index, MATRIX_QUERY, &layer->query, normed, query, f->query);
    apply(f, w, layer_index, MATRIX_KEY, &layer->key, normed, key, f->key);
    apply(f, w, layer_index, MATRIX_VALUE, &layer->value, normed, value, f->value);
    for (int32_t t = 0; t < num_tokens; t++)
        rope(f->rope_table + (int64_t)t * head_dim, head_dim, query.begin, query.end,
             f->query + t * layer->query.num_rows);
    store_kv(f, layer_index, key, value);
}

/* Every tile with every kv head; for a few tokens on several threads page by page, into partials. */
static void attend(forward *f, worker w, int32_t layer_index) {
    const llamita_model_info *info = &f->model->info;
    const attention_job job = {f->model->kernels, layer_index, info->num_attention_heads, f->query,
                               f->attention_out.values};
    const int64_t num_kv_heads = info->num_key_value_heads;
    float *scratch = f->thread_buffers[w.index].attention_scratch;
    int64_t begin, end, item = 0;
    if (f->whole_heads) {
        thread_pool_share(w, num_kv_heads, 1, &begin, &end);
        for (int32_t i = 0; i < f->num_tiles; i++)
            for (int64_t head = begin; head < end; head++) attention(&job, &f->tiles[i], (int32_t)head, scratch);
        return;
    }
    if (!f->split_pages) {
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
        for (int64_t of_tile = 0; of_tile < num_kv_heads * num_pages; of_tile++, item++)
            if (item >= begin && item < end)
                attention_page(&job, tile, (int32_t)(of_tile / num_pages), (int32_t)(of_tile % num_pages), scratch,
                               partials, f->max_pages);
    }
}

/* What was attended to, as attention_output reads it: each member's own if there are few. */
static const activations *gather_heads(forward *f, worker w, bool quantized) {
    const llamita_model_info *info = &f->model->info;
    const size_t partial_floats = PARTIAL_FLOATS(info->head_dim);
    activations *out = f->few && (quantized || f->split_pages) ? &f->thread_buffers[w.index].attention_out : &f->attention_out;
    const int64_t length = out->length;
    if (f->split_pages)
        for (int32_t i = 0; i < f->num_tiles; i++)
            for (int64_t t = f->tiles[i].first_token; t < f->tiles[i].first_token + f->tiles[i].num_tokens; t++)
                for (int32_t h = 0; h < info->num_attention_heads; h++)
                    attention_merge(f->partials + (size_t)((t * info->num_attention_heads + h) * f->max_pages) *
                                                      partial_floats,
                                    attention_num_pages(&f->tiles[i]), info->head_dim,
                                    out->values + t * length + (int64_t)h * info->head_dim);
    if (!quantized) return out;
    int64_t begin = 0, end = f->num_tokens;
    if (!f->few) thread_pool_share(w, f->num_tokens, 1, &begin, &end);
    const float *values = f->split_pages ? out->values : f->attention_out.values;
    quantize(f->model->kernels, values, begin, end, out);
    if (!f->few) thread_pool_barrier(w);
    return out;
}

/* residual += matrix(columns), this member's rows. */
static void add_product(forward *f, worker w, int32_t layer_index, layer_matrix which, const tensor *matrix,
                        const activations *columns) {
    const rows mine = share_rows(w, matrix->num_rows);
    apply(f, w, layer_index, which, matrix, columns, mine, f->update);
    add(f->update, matrix->num_rows, f->num_tokens, mine.begin, mine.end, f->residual);
}

static bool quantized(const tensor *t) { return panel_is_quantized(t->format); }

/* residual += attention(attention_norm(residual)) */
static void attention_block(forward *f, worker w, int32_t layer_index) {
    const layer *layer = &f->model->layers[layer_index];
    const activations *normed = normalize(f, w, f->residual, f->num_tokens, layer->attention_norm,
                                          quantized(&layer->query) || quantized(&layer->key) || quantized(&layer->value));
    project(f, w, layer_index, normed);
    if (!f->whole_heads) thread_pool_barrier(w);
    attend(f, w, layer_index);
    thread_pool_barrier(w);
    const activations *heads = gather_heads(f, w, quantized(&layer->attention_output));
    reduce(f, w, layer_index, MATRIX_ATTENTION_OUTPUT, MATRIX_ATTENTION_OUTPUT,
           f->split_pages ? heads : &f->attention_out); /* where the floats are */
    add_product(f, w, layer_index, MATRIX_ATTENTION_OUTPUT, &layer->attention_output, heads);
    thread_pool_barrier(w);
}

/* residual += ffn_down(silu(ffn_gate(ffn_norm(residual))) * ffn_up(ffn_norm(residual))) */
static void ffn_block(forward *f, worker w, int32_t layer_index) {
    const layer *layer = &f->model->layers[layer_index];
    const kernels *k = f->model->kernels;
    const int64_t length = f->model->info.intermediate_size;
    const activations *normed = normalize(f, w, f->residual, f->num_tokens, layer->ffn_norm,
                                          quantized(&layer->ffn_gate) || quantized(&layer->ffn_up));
    const rows mine = share_rows(w, length);
    reduce(f, w, layer_index, MATRIX_FFN_GATE, MATRIX_FFN_UP, normed);
    apply(f, w, layer_index, MATRIX_FFN_GATE, &layer->ffn_gate, normed, mine, f->ffn_gate.values);
    apply(f, w, layer_index, MATRIX_FFN_UP, &layer->ffn_up, normed, mine, f->ffn_up);
    swiglu(k, f->ffn_up, length, f->num_tokens, mine.begin, mine.end, f->ffn_gate.values);
    if (quantized(&layer->ffn_down)) quantize_part(k, f->num_tokens, mine.begin, mine.end, &f->ffn_gate);
    thread_pool_barrier(w);
    reduce(f, w, layer_index, MATRIX_FFN_DOWN, MATRIX_FFN_DOWN, &f->ffn_gate);
    add_product(f, w, layer_index, MATRIX_FFN_DOWN, &layer->ffn_down, &f->ffn_gate);
    thread_pool_barrier(w);
}

/* logits = output(output_norm(residual)), of the tokens that they are wanted of. */
static void output_block(forward *f, worker w) {
    const llamita_model *model = f->model;
    const int64_t hidden = model->info.hidden_size, vocab_size = model->info.vocab_size;
    const float *in = f->last;
    if (f->num_logits == f->num_tokens) {
        in = f->residual;
    } else {
        int64_t begin, end;
        thread_pool_share(w, f->num_logits, 1, &begin, &end);
        for (int64_t i = begin; i < end; i++)
            memcpy(f->last + i * hidden, f->residual + f->logit_tokens[i] * hidden, (size_t)hidden * sizeof(float));
        thread_pool_barrier(w);
    }
    const activations *normed = normalize(f, w, in, f->num_logits, model->output_norm, quantized(&model->output));
    const rows mine = share_rows(w, vocab_size);
    matmul(model->kernels, &model->output, normed, f->num_logits, mine.begin, mine.end, f->logits);
    for (int32_t i = 0; i < f->num_logits; i++)
        if (!are_finite(f->logits + i * vocab_size + mine.begin, mine.end - mine.begin))
            atomic_store(&f->damaged, true);
}

static void forward_worker(void *argument, worker w) {
    forward *f = argument;
    const llamita_model *model = f->model;
    int64_t begin, end;
    thread_pool_share(w, f->num_tokens, 1, &begin, &end);
    embed(&model->token_embedding, f->ids, begin, end, f->residual);
    rope_fill_table(model->rope_frequency, model->info.head_dim, f->positions, begin, end, f->rope_table);
    thread_pool_barrier(w);
    for (int32_t i = 0; i < model->info.num_hidden_layers; i++) {
        attention_block(f, w, i);
        ffn_block(f, w, i);
    }
    if (f->num_logits > 0) output_block(f, w);
}

/* ------------------------------------------------------------------ a pass */

/* Neighbors with equal sets are computed together. */
static void add_lora_run(forward *f, const forward_span *span) {
    if (span->adapters == NULL || span->adapters->count == 0) return;
    lora_tokens *last = f->num_lora_runs > 0 ? &f->lora_runs[f->num_lora_runs - 1] : NULL;
    if (last != NULL && last->first_token + last->num_tokens == f->num_tokens &&
        lora_sets_equal(last->set, span->adapters))
        last->num_tokens += span->num_tokens;
    else
        f->lora_runs[f->num_lora_runs++] = (lora_tokens){span->adapters, f->num_tokens, span->num_tokens};
}

static void add_span(forward *f, const forward_span *span) {
    add_lora_run(f, span);
    for (int32_t i = 0; i < span->num_tokens; i++) {
        const int32_t t = f->num_tokens + i;
        f->ids[t] = span->ids[i];
        f->positions[t] = span->first_position + i;
        f->caches[t] = span->cache;
        if (i >= span->num_tokens - span->num_logits) f->logit_tokens[f->num_logits++] = t;
        if (i % TILE_TOKENS == 0)
            f->tiles[f->num_tiles++] = (attention_tile){span->cache, t, 0, span->first_position + i};
        f->tiles[f->num_tiles - 1].num_tokens++;
    }
    f->num_tokens += span->num_tokens;
}

bool forward_run(forward *f, int num_threads, const forward_span *spans, int32_t num_spans, float *logits) {
    f->num_tokens = f->num_logits = f->num_tiles = f->num_lora_runs = 0;
    for (int32_t i = 0; i < num_spans; i++) add_span(f, &spans[i]);
    const int32_t num_kv_heads = f->model->info.num_key_value_heads;
    bool several_pages = false;
    for (int32_t i = 0; i < f->num_tiles; i++) several_pages |= attention_num_pages(&f->tiles[i]) > 1;
    f->few = f->num_tokens <= FEW_TOKENS;
    f->whole_heads = f->few && num_kv_heads % num_threads == 0 && f->model->info.head_dim % PANEL_ROWS == 0;
    f->split_pages = f->few && !f->whole_heads && several_pages;
    f->logits = logits;
    atomic_store(&f->damaged, false);
    thread_pool_run(f->pool, num_threads, forward_worker, f);
    return !atomic_load(&f->damaged);
}

/* ------------------------------------------------------------------ memory */

static float *floats(size_t count) { return aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64); }

static bool allocate_activations(activations *a, size_t num_tokens, int64_t length) {
    const size_t num_blocks = num_tokens * (size_t)(length / BLOCK_LENGTH) + 1;
    a->length = length;
    a->values = floats(num_tokens * (size_t)length);
    a->blocks = aligned_alloc(64, (num_blocks * sizeof *a->blocks + 63) / 64 * 64);
    return a->values != NULL && a->blocks != NULL;
}

static void free_activations(activations *a) {
    free(a->values);
    free(a->blocks);
}

static bool allocate_thread_buffers(forward *f, size_t scratch_floats) {
    const int count = thread_pool_size(f->pool);
    f->thread_buffers = calloc((size_t)count, sizeof *f->thread_buffers);
    for (int i = 0; f->thread_buffers != NULL && i < count; i++) {
        f->thread_buffers[i].attention_scratch = floats(scratch_floats);
        if (f->thread_buffers[i].attention_scratch == NULL ||
            !allocate_activations(&f->thread_buffers[i].normed, FEW_TOKENS, f->normed.length) ||
            !allocate_activations(&f->thread_buffers[i].attention_out, FEW_TOKENS, f->attention_out.length))
            return false;
    }
    return f->thread_buffers != NULL;
}

forward *forward_create(const llamita_model *model, const kv_shape *shape, int32_t context_tokens, thread_pool *pool) {
    const llamita_model_info *info = &model->info;
    const size_t hidden = (size_t)info->hidden_size, ffn = (size_t)info->intermediate_size,
                 query_length = (size_t)info->num_attention_heads * (size_t)info->head_dim,
                 key_length = (size_t)info->num_key_value_heads * (size_t)info->head_dim;
    forward *f = calloc(1, sizeof *f);
    if (f == NULL) return NULL;
    f->model = model;
    f->pool = pool;
    f->keys_in_parts = shape->type != KV_Q8;
    f->max_pages = (context_tokens - 1) / KV_PAGE_TOKENS + 1;
    f->residual = floats(PASS_TOKENS * hidden);
    f->rope_table = floats(PASS_TOKENS * (size_t)info->head_dim);
    f->query = floats(PASS_TOKENS * query_length);
    f->key = floats(PASS_TOKENS * key_length);
    f->value = floats(PASS_TOKENS * key_length);
    f->ffn_up = floats(PASS_TOKENS * ffn);
    f->update = floats(PASS_TOKENS * hidden);
    f->last = floats(PASS_TOKENS * hidden);
    const bool whole_heads = thread_pool_size(pool) == 1 && info->head_dim % PANEL_ROWS == 0;
    const size_t heads = whole_heads ? 0 : FEW_TOKENS * (size_t)info->num_attention_heads; /* memory not used costs none */
    f->partials = floats(heads * (size_t)f->max_pages * PARTIAL_FLOATS(info->head_dim) + 1);
    const bool all = allocate_activations(&f->normed, PASS_TOKENS, (int64_t)hidden) &&
                     allocate_activations(&f->attention_out, PASS_TOKENS, (int64_t)query_length) &&
                     allocate_activations(&f->ffn_gate, PASS_TOKENS, (int64_t)ffn) &&
                     allocate_thread_buffers(f, attention_scratch_floats(info->num_attention_heads, info->num_key_value_heads,
                                                              info->head_dim));
    if (all && f->residual && f->rope_table && f->query && f->key && f->value && f->ffn_up && f->update && f->last &&
        f->partials)
        return f;
    forward_free(f);
    return NULL;
}

bool forward_reserve_lora(forward *f, int64_t num_floats) {
    if (num_floats <= f->lora_floats) return true;
    const size_t num_tokens = PASS_TOKENS + FEW_TOKENS * (size_t)thread_pool_size(f->pool);
    float *hidden = floats(num_tokens * (size_t)num_floats);
    if (hidden == NULL) return false;
    free(f->lora_hidden);
    f->lora_hidden = hidden;
    f->lora_floats = num_floats;
    return true;
}

void forward_free(forward *f) {
    if (f == NULL) return;
    for (int i = 0; f->thread_buffers != NULL && i < thread_pool_size(f->pool); i++) {
        free(f->thread_buffers[i].attention_scratch);
        free_activations(&f->thread_buffers[i].normed);
        free_activations(&f->thread_buffers[i].attention_out);
    }
    free(f->thread_buffers);
    free_activations(&f->normed);
    free_activations(&f->attention_out);
    free_activations(&f->ffn_gate);
    float *buffers[] = {f->residual, f->rope_table, f->query, f->key, f->value, f->ffn_up, f->update, f->last, f->partials,
                        f->lora_hidden};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) free(buffers[i]);
    free(f);
}
