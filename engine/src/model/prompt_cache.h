/* prompt_cache.h: token ids with their keys and values in a file, so that a prompt need not be computed
 * again. A file is never trusted: it is read only if it was written for the same weights, adapters
 * and type of KV cache, and if all its bytes are as they were written. */
#ifndef LLAMITA_PROMPT_CACHE_H
#define LLAMITA_PROMPT_CACHE_H

#include "model/kv_cache.h"
#include "model/lora.h"
#include "model/model.h"
#include "runtime/thread_pool.h"

/* What keys and values depend on, besides the token ids and the type of the KV cache. */
typedef struct {
    uint64_t model, adapters; /* hashes */
} prompt_cache_key;

/* Hashes all that logits depend on: weights, shapes, and the RoPE angles of the session. Fails if out
 * of memory. */
bool prompt_cache_hash_model(const llamita_model *model, rope_angles rope, thread_pool *pool, uint64_t *hash);
uint64_t prompt_cache_hash_adapters(const llamita_model *model, const lora_set *set);

/* Writes the first num_tokens >= 1 tokens of a cache. The file appears complete or not at all. */
llamita_status prompt_cache_write(const char *path, prompt_cache_key key, const kv_cache *cache, const int32_t *ids,
                                  int32_t num_tokens, llamita_error *error);

/* Reads a file into an empty cache, and its ids into ids[max_tokens]. On failure the cache may hold
 * part of it. */
llamita_status prompt_cache_read(const char *path, prompt_cache_key key, int32_t vocab_size, int32_t max_tokens,
                                 kv_cache *cache, int32_t *ids, int32_t *num_tokens, llamita_error *error);

#endif
