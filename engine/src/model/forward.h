/* forward.h: runs the network on a pool of threads: from token ids to logits, storing keys and values. */
#ifndef LLAMITA_FORWARD_H
#define LLAMITA_FORWARD_H

#include "model/kv_cache.h"
#include "model/lora.h"
#include "model/model.h"
#include "runtime/thread_pool.h"

#define PASS_TOKENS 64 /* most tokens of one pass: enough to be limited by arithmetic, few enough to stay in cache */

typedef struct forward forward; /* the memory of a pass */

/* Consecutive tokens of one sequence. */
typedef struct {
    kv_cache *cache;          /* reserved for them */
    const lora_set *adapters; /* NULL: none */
    const int32_t *ids;
    int32_t num_tokens, first_position;
    int32_t num_logits; /* of the last tokens; 0 .. num_tokens */
} forward_span;

/* NULL: no memory. The model and the pool must outlive it. */
forward *forward_create(const llamita_model *model, const kv_shape *shape, int32_t context_tokens, thread_pool *pool);
void forward_free(forward *f);

/* Sets that need at most so many floats a token (lora_set_floats) may run from here on. False: no memory. */
bool forward_reserve_lora(forward *f, int64_t num_floats);

/* Runs, on num_threads of the pool, the spans' tokens (1 to PASS_TOKENS in all, ids below V; no cache twice), puts their keys and values into the
 * caches, and writes the logits asked for, in the order of the spans: logits [sum of num_logits, V]. False: some logits
 * are not finite. */
bool forward_run(forward *f, int num_threads, const forward_span *spans, int32_t num_spans, float *logits);

#endif
