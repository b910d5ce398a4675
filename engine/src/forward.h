/* forward.h: token ids in, logits out, keys and values remembered: the network, run by a team of threads. */
#ifndef LLAMITA_FORWARD_H
#define LLAMITA_FORWARD_H

#include "kv_cache.h"
#include "model.h"
#include "threads.h"

#define PASS_TOKENS 64 /* most tokens of one pass: enough to be limited by arithmetic, few enough to stay in cache */

typedef struct forward forward; /* the memory of a pass */

/* NULL: no memory. The model and the team must outlive it. */
forward *forward_create(const llamita_model *model, threads *team);
void forward_free(forward *f);

/* Runs num_tokens ids (1 <= num_tokens <= PASS_TOKENS, each < V) at the positions from first_position on, puts their
 * keys and values into the cache, which must have room, and writes the logits after the last num_logits of them:
 * logits [num_logits, V]. False: some logits are not finite. */
bool forward_run(forward *f, kv_cache *cache, const int32_t *ids, int32_t num_tokens, int32_t first_position,
                 int32_t num_logits, float *logits);

#endif
