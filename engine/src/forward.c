/* forward.c: token ids in, logits out: the network, with the names and in the order of src/llamita/model/llama.py.
 *
 * All members of the team run forward_worker together. An operation that reads what other members wrote comes after a
 * threads_barrier; one that reads only what its own member wrote (matmul, add, swiglu share rows in one way) does not.
 */
#include "forward.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "ops.h"

struct forward {
    const llamita_model *model;
    threads *team;

    /* This pass. */
    kv_cache *cache;
    const int32_t *ids; /* [T] */
    int32_t num_tokens, first_position, num_logits;
    float *logits; /* [num_logits, V] */
    atomic_bool damaged;

    /* Memory for PASS_TOKENS tokens. */
    float *residual;            /* [T, D] */
    activations normed;         /* [T, D] */
    float *angles;              /* [T, S] cos and sin of each pair */
    float *query, *key, *value; /* [T, H*S], [T, K*S], [T, K*S] */
    activations attention_out;  /* [T, H*S] */
    activations ffn_gate;       /* [T, F] */
    float *ffn_up;              /* [T, F] */
    float *update;              /* [T, D] what a block adds to the residual */
    float *attention_scratch;   /* [threads] of attention_scratch_floats */
    size_t scratch_floats;
};

/* Heads [begin, end) of a projection: [T, heads, S]. */
static void project_heads(const forward *f, const tensor *weights, int64_t begin, int64_t end, float *out) {
    const int64_t head_dim = f->model->info.head_dim, num_heads = weights->num_rows / head_dim;
    begin = begin < 0 ? 0 : begin;
    end = end > num_heads ? num_heads : end;
    if (begin < end)
        matmul_rows(f->model->kernels, weights, &f->normed, f->num_tokens, begin * head_dim, end * head_dim, out);
}

/* Query heads [begin, end) take their positions in place. */
static void rotate_queries(const forward *f, int64_t begin, int64_t end) {
    const int32_t head_dim = f->model->info.head_dim, num_heads = f->model->info.num_attention_heads;
    for (int32_t t = 0; t < f->num_tokens; t++)
        for (int64_t h = begin; h < end && h < num_heads; h++) {
            float *query = f->query + (t * num_heads + h) * head_dim;
            rope(f->angles + (int64_t)t * head_dim, head_dim, query, query);
        }
}

/* Key heads [begin, end) take their positions on the way into the cache; value heads [.. - K] go as they are. */
static void remember(const forward *f, int32_t layer_index, int64_t begin, int64_t end) {
    const int32_t head_dim = f->model->info.head_dim, num_heads = f->model->info.num_key_value_heads;
    for (int32_t t = 0; t < f->num_tokens; t++) {
        const int32_t page = (f->first_position + t) / KV_PAGE_TOKENS, slot = (f->first_position + t) % KV_PAGE_TOKENS;
        for (int64_t h = begin < 0 ? 0 : begin; h < end && h < 2 * num_heads; h++) {
            const int32_t head = (int32_t)(h % num_heads);
            const int64_t from = ((int64_t)t * num_heads + head) * head_dim, to = (int64_t)slot * head_dim;
            if (h < num_heads)
                rope(f->angles + (int64_t)t * head_dim, head_dim, f->key + from,
                     kv_cache_keys(f->cache, page, layer_index, head) + to);
            else
                memcpy(kv_cache_values(f->cache, page, layer_index, head) + to, f->value + from,
                       (size_t)head_dim * sizeof(float));
        }
    }
}

/* residual += attention(attention_norm(residual)) */
static void attention_block(forward *f, worker w, int32_t layer_index) {
    const llamita_model_info *info = &f->model->info;
    const kernels *k = f->model->kernels;
    const layer *layer = &f->model->layers[layer_index];
    const int32_t num_tokens = f->num_tokens, num_heads = info->num_attention_heads,
                  num_kv_heads = info->num_key_value_heads;

    rms_norm(w, k, f->residual, layer->attention_norm, info->rms_norm_eps, num_tokens, &f->normed);
    threads_barrier(w);
    if (tensor_is_quantised(&layer->query) || tensor_is_quantised(&layer->key) || tensor_is_quantised(&layer->value)) {
        quantise(w, k, num_tokens, &f->normed);
        threads_barrier(w);
    }

    /* The heads of query, key and value are shared as one list, and each stays with its member. */
    int64_t begin, end;
    threads_share(w, num_heads + 2 * num_kv_heads, 1, &begin, &end);
    project_heads(f, &layer->query, begin, end, f->query);
    project_heads(f, &layer->key, begin - num_heads, end - num_heads, f->key);
    project_heads(f, &layer->value, begin - num_heads - num_kv_heads, end - num_heads - num_kv_heads, f->value);
    rotate_queries(f, begin, end);
    remember(f, layer_index, begin - num_heads, end - num_heads);
    threads_barrier(w);

    const attention_job job = {
        f->query, f->cache, layer_index, num_heads, f->first_position, num_tokens, f->attention_out.values};
    attention(w, k, &job, f->attention_scratch + (size_t)w.index * f->scratch_floats);
    threads_barrier(w);
    if (tensor_is_quantised(&layer->attention_output)) {
        quantise(w, k, num_tokens, &f->attention_out);
        threads_barrier(w);
    }

    matmul(w, k, &layer->attention_output, &f->attention_out, num_tokens, f->update);
    add(w, f->update, info->hidden_size, num_tokens, f->residual);
    threads_barrier(w);
}

/* residual += ffn_down(silu(ffn_gate(ffn_norm(residual))) * ffn_up(ffn_norm(residual))) */
static void ffn_block(forward *f, worker w, int32_t layer_index) {
    const llamita_model_info *info = &f->model->info;
    const kernels *k = f->model->kernels;
    const layer *layer = &f->model->layers[layer_index];
    const int32_t num_tokens = f->num_tokens;

    rms_norm(w, k, f->residual, layer->ffn_norm, info->rms_norm_eps, num_tokens, &f->normed);
    threads_barrier(w);
    if (tensor_is_quantised(&layer->ffn_gate) || tensor_is_quantised(&layer->ffn_up)) {
        quantise(w, k, num_tokens, &f->normed);
        threads_barrier(w);
    }

    matmul(w, k, &layer->ffn_gate, &f->normed, num_tokens, f->ffn_gate.values);
    matmul(w, k, &layer->ffn_up, &f->normed, num_tokens, f->ffn_up);
    swiglu(w, k, f->ffn_up, info->intermediate_size, num_tokens, f->ffn_gate.values);
    if (tensor_is_quantised(&layer->ffn_down)) quantise(w, k, num_tokens, &f->ffn_gate);
    threads_barrier(w);

    matmul(w, k, &layer->ffn_down, &f->ffn_gate, num_tokens, f->update);
    add(w, f->update, info->hidden_size, num_tokens, f->residual);
    threads_barrier(w);
}

/* logits = output(output_norm(residual)), of the last num_logits tokens. */
static void output_block(forward *f, worker w) {
    const llamita_model_info *info = &f->model->info;
    const kernels *k = f->model->kernels;
    const float *last = f->residual + (int64_t)(f->num_tokens - f->num_logits) * info->hidden_size;

    rms_norm(w, k, last, f->model->output_norm, info->rms_norm_eps, f->num_logits, &f->normed);
    threads_barrier(w);
    if (tensor_is_quantised(&f->model->output)) {
        quantise(w, k, f->num_logits, &f->normed);
        threads_barrier(w);
    }
    matmul(w, k, &f->model->output, &f->normed, f->num_logits, f->logits);
    if (!are_finite(w, f->logits, info->vocab_size, f->num_logits)) atomic_store(&f->damaged, true);
}

static void forward_worker(void *argument, worker w) {
    forward *f = argument;
    const llamita_model *model = f->model;

    embed(w, &model->token_embedding, f->ids, f->num_tokens, f->residual);
    rope_table(w, model->rope_frequency, model->info.head_dim, f->first_position, f->num_tokens, f->angles);
    threads_barrier(w);
    for (int32_t i = 0; i < model->info.num_hidden_layers; i++) {
        attention_block(f, w, i);
        ffn_block(f, w, i);
    }
    if (f->num_logits > 0) output_block(f, w);
}

bool forward_run(forward *f, kv_cache *cache, const int32_t *ids, int32_t num_tokens, int32_t first_position,
                 int32_t num_logits, float *logits) {
    f->cache = cache;
    f->ids = ids;
    f->num_tokens = num_tokens;
    f->first_position = first_position;
    f->num_logits = num_logits;
    f->logits = logits;
    atomic_store(&f->damaged, false);
    threads_run(f->team, forward_worker, f);
    return !atomic_load(&f->damaged);
}

/* ------------------------------------------------------------------ memory */

static float *floats(int64_t count) {
    const size_t bytes = ((size_t)count * sizeof(float) + 63) / 64 * 64;
    return aligned_alloc(64, bytes);
}

static bool allocate_activations(activations *a, int64_t length) {
    a->length = length;
    a->values = floats(PASS_TOKENS * length);
    a->blocks = calloc((size_t)(PASS_TOKENS * (length / BLOCK_LENGTH) + 1), sizeof *a->blocks);
    return a->values != NULL && a->blocks != NULL;
}

forward *forward_create(const llamita_model *model, threads *team) {
    const llamita_model_info *info = &model->info;
    const int64_t query_length = (int64_t)info->num_attention_heads * info->head_dim;
    const int64_t key_length = (int64_t)info->num_key_value_heads * info->head_dim;
    forward *f = calloc(1, sizeof *f);
    if (f == NULL) return NULL;
    f->model = model;
    f->team = team;
    f->scratch_floats =
        (attention_scratch_floats(info->num_attention_heads, info->num_key_value_heads, info->head_dim) + 15) / 16 * 16;
    f->residual = floats(PASS_TOKENS * (int64_t)info->hidden_size);
    f->angles = floats(PASS_TOKENS * (int64_t)info->head_dim);
    f->query = floats(PASS_TOKENS * query_length);
    f->key = floats(PASS_TOKENS * key_length);
    f->value = floats(PASS_TOKENS * key_length);
    f->ffn_up = floats(PASS_TOKENS * (int64_t)info->intermediate_size);
    f->update = floats(PASS_TOKENS * (int64_t)info->hidden_size);
    f->attention_scratch = floats(threads_count(team) * (int64_t)f->scratch_floats);
    const bool all = allocate_activations(&f->normed, info->hidden_size) &&
                     allocate_activations(&f->attention_out, query_length) &&
                     allocate_activations(&f->ffn_gate, info->intermediate_size);
    if (all && f->residual && f->angles && f->query && f->key && f->value && f->ffn_up && f->update &&
        f->attention_scratch)
        return f;
    forward_free(f);
    return NULL;
}

void forward_free(forward *f) {
    if (f == NULL) return;
    activations *columns[] = {&f->normed, &f->attention_out, &f->ffn_gate};
    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
        free(columns[i]->values);
        free(columns[i]->blocks);
    }
    float *buffers[] = {f->residual, f->angles, f->query, f->key, f->value, f->ffn_up, f->update, f->attention_scratch};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) free(buffers[i]);
    free(f);
}
