/* prompt_cache.c: the file that holds token ids with their keys and values.
 *
 * All numbers are little-endian: the header, ids [num_tokens] of 32 bits, the heads of the first
 * page (kv_cache_copy_out) layer by layer, those of the next page, and a hash of all after the
 * header. Keys and values are in the order of their panels, which is the same for all kernels; a
 * change of that order, or of what is hashed, needs a new VERSION. */
#include "model/prompt_cache.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/error.h"
#include "runtime/hash.h"

#define MAGIC "llamitaK"
enum { VERSION = 1 };

typedef struct {
    char magic[8];
    uint64_t version, kv_type, num_tokens;
    prompt_cache_key key;
    uint64_t hash; /* of the fields before it */
} header;

/* ------------------------------------------------------------------ what a file was written for */

typedef struct {
    const llamita_model *model;
    uint64_t *hashes; /* [L + 1] of the layers, then of the output and the embedding */
} hash_job;

static uint64_t hash_matrix(uint64_t hash, const tensor *t) {
    const int64_t shape[] = {(int64_t)t->type, t->num_rows, t->row_length, t->two_halves};
    hash = hash_content(hash, shape, sizeof shape);
    return hash_content(hash, t->panels, (size_t)panel_count(t->num_rows) * t->panel_bytes);
}

static uint64_t hash_floats(uint64_t hash, const float *values, int64_t num) {
    return hash_content(hash, values, values ? (size_t)num * sizeof *values : 0);
}

static uint64_t hash_layer(const llamita_model *model, layer *l) {
    const llamita_model_info *info = &model->info;
    tensor *matrices[MATRICES_PER_LAYER];
    uint64_t hash = l->no_rope;
    model_layer_matrices(l, matrices);
    for (int i = 0; i < MATRICES_PER_LAYER; i++) hash = hash_matrix(hash, matrices[i]);
    hash = hash_floats(hash, l->attention_norm, info->hidden_size);
    hash = hash_floats(hash, l->ffn_norm, info->hidden_size);
    hash = hash_floats(hash, l->query_bias, l->query.num_rows);
    hash = hash_floats(hash, l->key_bias, l->key.num_rows);
    hash = hash_floats(hash, l->value_bias, l->value.num_rows);
    hash = hash_floats(hash, l->query_norm, info->head_dim);
    return hash_floats(hash, l->key_norm, info->head_dim);
}

static void hash_worker(void *argument, worker w) {
    const hash_job *job = argument;
    const llamita_model *model = job->model;
    const int32_t num_layers = model->info.num_hidden_layers;
    for (int32_t i = w.index; i < num_layers; i += w.count) job->hashes[i] = hash_layer(model, &model->layers[i]);
    if (num_layers % w.count != w.index) return;
    const tensor *embedding = &model->token_embedding;
    const uint64_t hash = hash_matrix(0, &model->output);
    job->hashes[num_layers] = hash_content(hash, embedding->data, (size_t)embedding->num_rows * embedding->row_bytes);
}

bool prompt_cache_hash_model(const llamita_model *model, rope_angles rope, thread_pool *pool, uint64_t *hash) {
    const llamita_model_info *info = &model->info;
    const size_t num_hashes = (size_t)info->num_hidden_layers + 1;
    const int32_t shape[] = {info->hidden_size,         info->intermediate_size,
                             info->num_hidden_layers,   info->num_attention_heads,
                             info->num_key_value_heads, info->head_dim,
                             info->vocab_size,          (int32_t)model->token_embedding.type};
    const float numbers[] = {info->rms_norm_eps, rope.attention_factor};
    hash_job job = {model, malloc(num_hashes * sizeof *job.hashes)};
    if (!job.hashes) return false;
    thread_pool_run(pool, thread_pool_size(pool), hash_worker, &job);
    *hash = hash_content(hash_content(0, shape, sizeof shape), numbers, sizeof numbers);
    *hash = hash_floats(*hash, rope.frequency, info->head_dim / 2);
    *hash = hash_floats(*hash, model->output_norm, info->hidden_size);
    *hash = hash_content(*hash, job.hashes, num_hashes * sizeof *job.hashes);
    free(job.hashes);
    return true;
}

uint64_t prompt_cache_hash_adapters(const llamita_model *model, const lora_set *set) {
    uint64_t hash = 0;
    for (int32_t i = 0; i < set->count; i++) {
        const llamita_adapter *adapter = set->adapters[i];
        const float numbers[] = {set->scales[i], adapter->info.alpha};
        hash = hash_content(hash, numbers, sizeof numbers);
        for (int32_t l = 0; l < model->info.num_hidden_layers; l++)
            for (int m = 0; m < MATRICES_PER_LAYER; m++) {
                const lora_pair *pair = &adapter->layers[l][m];
                if (pair->a.num_rows > 0) hash = hash_matrix(hash_matrix(hash, &pair->a), &pair->b);
                else hash = hash_mix(hash + 1);
            }
    }
    return hash;
}

/* ------------------------------------------------------------------ writing */

/* The number of tokens in a page of num_tokens tokens. */
static int32_t page_tokens(int32_t num_tokens, int32_t page) {
    const int32_t left = num_tokens - page * KV_PAGE_TOKENS;
    return left < KV_PAGE_TOKENS ? left : KV_PAGE_TOKENS;
}

static header make_header(prompt_cache_key key, kv_type type, int32_t num_tokens) {
    header h = {.version = VERSION, .kv_type = type, .num_tokens = (uint64_t)num_tokens, .key = key};
    memcpy(h.magic, MAGIC, sizeof h.magic);
    h.hash = hash_content(0, &h, offsetof(header, hash));
    return h;
}

static bool write_pages(platform_new_file *file, const kv_cache *cache, int32_t num_tokens, char *bytes, uint64_t *hash,
                        char *reason) {
    const kv_shape *shape = cache->shape;
    for (int32_t page = 0; page * KV_PAGE_TOKENS < num_tokens; page++) {
        const int32_t count = page_tokens(num_tokens, page);
        const size_t num_bytes = kv_head_bytes(shape, count);
        for (int32_t i = 0; i < shape->num_layers * shape->num_heads; i++) {
            kv_cache_copy_out(cache, page, i / shape->num_heads, i % shape->num_heads, count, bytes);
            *hash = hash_content(*hash, bytes, num_bytes);
            if (!platform_new_file_write(file, bytes, num_bytes, reason)) return false;
        }
    }
    return true;
}

llamita_status prompt_cache_write(const char *path, prompt_cache_key key, const kv_cache *cache, const int32_t *ids,
                                  int32_t num_tokens, llamita_error *error) {
    const header h = make_header(key, cache->shape->type, num_tokens);
    const size_t id_bytes = (size_t)num_tokens * sizeof *ids;
    uint64_t hash = hash_content(h.hash, ids, id_bytes);
    char reason[PLATFORM_REASON_BYTES];
    platform_new_file file;
    char *bytes = malloc(cache->shape->head_bytes);
    if (!bytes) return error_set(error, LLAMITA_ERROR_MEMORY, "cannot save %s: out of memory", error_path(path));
    bool written = platform_new_file_open(path, &file, reason);
    if (written) {
        written = platform_new_file_write(&file, &h, sizeof h, reason) &&
                  platform_new_file_write(&file, ids, id_bytes, reason) &&
                  write_pages(&file, cache, num_tokens, bytes, &hash, reason) &&
                  platform_new_file_write(&file, &hash, sizeof hash, reason);
        char why[PLATFORM_REASON_BYTES];
        if (!platform_new_file_close(&file, written, written ? reason : why)) written = false;
    }
    free(bytes);
    if (written) return LLAMITA_OK;
    return error_set(error, LLAMITA_ERROR_IO, "cannot save %s: %s", error_path(path), reason);
}

/* ------------------------------------------------------------------ reading */

#define REFUSE(...) error_set(error, LLAMITA_ERROR_FORMAT, __VA_ARGS__)

/* The bytes of a whole file. */
static uint64_t file_bytes(const kv_shape *shape, uint64_t num_tokens) {
    const uint64_t heads = (uint64_t)shape->num_layers * (uint64_t)shape->num_heads;
    const uint64_t rest = num_tokens % KV_PAGE_TOKENS;
    return sizeof(header) + num_tokens * sizeof(int32_t) + sizeof(uint64_t) +
           heads * (num_tokens / KV_PAGE_TOKENS * kv_head_bytes(shape, KV_PAGE_TOKENS) +
                    (rest > 0 ? kv_head_bytes(shape, (int32_t)rest) : 0));
}

static llamita_status check_header(const platform_file *file, const char *path, const header *h, prompt_cache_key key,
                                   const kv_shape *shape, int32_t max_tokens, llamita_error *error) {
    static const char *const types[] = {[KV_F16] = "f16", [KV_F32] = "f32", [KV_Q8] = "q8"};
    if (memcmp(h->magic, MAGIC, sizeof h->magic) != 0)
        return REFUSE("cannot load %s: expected a prompt cache of llamita, found another kind of file", path);
    if (file->num_bytes < sizeof *h)
        return REFUSE("cannot load %s: expected at least %zu bytes, found %zu; the file was cut short: remove it", path,
                      sizeof *h, file->num_bytes);
    if (h->version != VERSION)
        return REFUSE("cannot load %s: expected version %d of the prompt cache, found %llu; remove the file, or use "
                      "the llamita that wrote it",
                      path, VERSION, (unsigned long long)h->version);
    if (h->hash != hash_content(0, h, offsetof(header, hash)) || h->kv_type > KV_Q8 || h->num_tokens == 0)
        return REFUSE("cannot load %s: header: expected what was written, found other bytes; the file is damaged: "
                      "remove it",
                      path);
    if (h->key.model != key.model)
        return REFUSE("cannot load %s: expected a prompt cache of this model, found one of other weights or RoPE "
                      "settings; use another file for each model",
                      path);
    if (h->key.adapters != key.adapters)
        return REFUSE("cannot load %s: expected a prompt cache of the same adapters and scales, found one of others; "
                      "use another file for each choice of adapters",
                      path);
    if (h->kv_type != shape->type)
        return REFUSE(
            "cannot load %s: expected keys and values in %s, found %s; use the type of KV cache that the file "
            "was written with, or another file",
            path, types[shape->type], types[h->kv_type]);
    if (h->num_tokens > (uint64_t)max_tokens)
        return error_set(error, LLAMITA_ERROR_CONTEXT,
                         "cannot load %s: expected at most %d tokens (the context), found %llu; use a larger context, "
                         "or another file",
                         path, (int)max_tokens, (unsigned long long)h->num_tokens);
    if (file->num_bytes != file_bytes(shape, h->num_tokens))
        return REFUSE("cannot load %s: expected %llu bytes, found %zu; the file was cut short or is damaged: remove it",
                      path, (unsigned long long)file_bytes(shape, h->num_tokens), file->num_bytes);
    return LLAMITA_OK;
}

/* Reads what follows the header. Nothing of it is used before its hash is found to be right. */
static llamita_status read_content(const platform_file *file, const char *path, const header *h, int32_t vocab_size,
                                   kv_cache *cache, int32_t *ids, char *bytes, llamita_error *error) {
    const kv_shape *shape = cache->shape;
    const int32_t num_tokens = (int32_t)h->num_tokens;
    const size_t id_bytes = (size_t)num_tokens * sizeof *ids;
    size_t at = sizeof *h + id_bytes;
    bool readable = platform_file_read(file, sizeof *h, ids, id_bytes);
    uint64_t stored, hash = readable ? hash_content(h->hash, ids, id_bytes) : 0;
    for (int32_t page = 0; readable && page * KV_PAGE_TOKENS < num_tokens; page++) {
        const int32_t count = page_tokens(num_tokens, page);
        const size_t num_bytes = kv_head_bytes(shape, count);
        for (int32_t i = 0; readable && i < shape->num_layers * shape->num_heads; i++, at += num_bytes) {
            readable = platform_file_read(file, at, bytes, num_bytes);
            if (!readable) break;
            hash = hash_content(hash, bytes, num_bytes);
            kv_cache_copy_in(cache, page, i / shape->num_heads, i % shape->num_heads, count, bytes);
        }
    }
    if (!readable || !platform_file_read(file, at, &stored, sizeof stored))
        return error_set(error, LLAMITA_ERROR_IO, "cannot load %s: the file was cut while it was read", path);
    bool valid = hash == stored;
    for (int32_t i = 0; i < num_tokens && valid; i++) valid = ids[i] >= 0 && ids[i] < vocab_size;
    if (!valid)
        return REFUSE("cannot load %s: ids, keys and values: expected what was written, found other bytes; the file is "
                      "damaged: remove it",
                      path);
    return LLAMITA_OK;
}

llamita_status prompt_cache_read(const char *path, prompt_cache_key key, int32_t vocab_size, int32_t max_tokens,
                                 kv_cache *cache, int32_t *ids, int32_t *num_tokens, llamita_error *error) {
    char reason[PLATFORM_REASON_BYTES];
    const char *name = error_path(path);
    platform_file file;
    header h = {.version = 0};
    if (!platform_file_open(path, false, &file, reason))
        return error_set(error, LLAMITA_ERROR_IO, "cannot load %s: %s", name, reason);
    llamita_status status = LLAMITA_OK;
    const size_t header_bytes = file.num_bytes < sizeof h ? file.num_bytes : sizeof h;
    if (file.num_bytes == 0) status = REFUSE("cannot load %s: the file is empty; remove it", name);
    else if (!platform_file_read(&file, 0, &h, header_bytes))
        status = error_set(error, LLAMITA_ERROR_IO, "cannot load %s: the file was cut while it was read", name);
    else status = check_header(&file, name, &h, key, cache->shape, max_tokens, error);
    char *bytes = status ? NULL : malloc(cache->shape->head_bytes);
    if (!status && (!bytes || !kv_cache_reserve(cache, 0, (int32_t)h.num_tokens)))
        status = error_set(error, LLAMITA_ERROR_MEMORY, "cannot load %s: out of memory for the KV cache of %d tokens",
                           name, (int)h.num_tokens);
    if (!status) status = read_content(&file, name, &h, vocab_size, cache, ids, bytes, error);
    free(bytes);
    platform_file_close(&file);
    if (!status) *num_tokens = (int32_t)h.num_tokens;
    return status;
}
