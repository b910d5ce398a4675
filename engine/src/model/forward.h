/* forward.h: runs the network on a pool of threads: token ids in, logits or hidden states out;
 * stores keys and values. */
#ifndef LLAMITA_FORWARD_H
#define LLAMITA_FORWARD_H

#include "model/kv_cache.h"
#include "model/lora.h"
#include "model/model_pack.h"

/* Maximum tokens per pass: enough to be limited by arithmetic, few enough to stay in the cache. */
#define PASS_TOKENS 64

typedef struct forward forward; /* the buffers of a pass */

/* Consecutive tokens of one sequence. */
typedef struct {
    kv_cache *cache;          /* these positions are reserved (kv_cache_reserve) */
    const lora_set *adapters; /* NULL: none */
    const int32_t *ids;
    int32_t num_tokens, first_position;
    int32_t num_logits; /* outputs, for the last ones; 0 .. num_tokens */
} forward_span;

/* What a pass writes for a token: [V] logits, or the [D] hidden state after the last norm. */
typedef enum { OUTPUT_LOGITS, OUTPUT_HIDDEN_STATES } forward_output;

/* Returns NULL if out of memory. The model, the angles and the pool must outlive the result. */
forward *forward_create(const llamita_model *model, const kv_shape *shape, int32_t context_tokens, rope_angles rope,
                        thread_pool *pool);
void forward_free(forward *f);

/* Allows adapter sets that need up to num_floats per token (lora_set_floats). Returns false if out
 * of memory. */
bool forward_reserve_lora(forward *f, int64_t num_floats);

/* Runs the tokens of the spans (1 to PASS_TOKENS in total, ids below V, no cache twice) on
 * num_threads threads of the pool. Stores their keys and values in the caches and writes the
 * requested outputs [sum of num_logits, V or D] in the order of the spans. weights: from
 * model_begin_use. Returns false if some outputs are not finite; or there are none, if
 * model_pack_failure says why. */
bool forward_run(forward *f, int num_threads, weights_state weights, const forward_span *spans, int32_t num_spans,
                 forward_output kind, float *out);

#endif
