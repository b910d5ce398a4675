/* lora.h: low-rank updates of a model's matrices (LoRA, 2106.09685), and what they add to the products of a pass.
 *
 * A matrix W with adapters gives W x + s1 * B1 (A1 x) + s2 * B2 (A2 x) + ..., s = the caller's scale * alpha / rank. Each
 * product is a kernel's, with floats; A x is multiplied by s, and what B makes of that is added to the sum so far, in the
 * order of the set: the bits depend on nothing else.
 */
#ifndef LLAMITA_LORA_H
#define LLAMITA_LORA_H

#include <stdatomic.h>

#include "model/model.h"
#include "model/ops.h"

/* a: [R, row_length of W], b: [num_rows of W, R], in float panels. R, which is a.num_rows, is 0: W is as it was. */
typedef struct {
    tensor a, b;
} lora_pair;

struct llamita_adapter {
    const llamita_model *model;
    llamita_adapter_info info;
    lora_pair (*layers)[MATRICES_PER_LAYER]; /* [L] */
    char *panels;
    atomic_int ref_count; /* the one who opened it, and sequences */
};

/* What the adapters of a sequence are. */
typedef struct {
    int32_t count;
    llamita_adapter *adapters[LLAMITA_MAX_ADAPTERS];
    float scales[LLAMITA_MAX_ADAPTERS];
} lora_set;

bool lora_sets_equal(const lora_set *a, const lora_set *b);

/* Drops a reference; the last one frees the adapter. NULL is fine. */
void lora_release(llamita_adapter *adapter);

/* Whoever keeps a set holds its adapters; those that nobody holds any more are freed. */
void lora_set_retain(const lora_set *set);
void lora_set_release(const lora_set *set);

/* Floats that a token needs for what its adapters make of the columns that up to three matrices read. */
int64_t lora_set_floats(const lora_set *set);

/* Consecutive tokens of a pass with the same adapters. */
typedef struct {
    const lora_set *set;
    int32_t first_token, num_tokens;
} lora_tokens;

/* low [num_tokens, lora_set_floats] = s * A x for matrices first .. last of a layer, which read the same columns
 * [T, length] of floats, for those of these tokens that lie in [begin, end). */
void lora_down(const kernels *k, const lora_tokens *tokens, int32_t layer, layer_matrix first, layer_matrix last,
               const activations *columns, int64_t begin, int64_t end, float *hidden);

/* out [T, num_rows] += B low for rows [begin, end) of a matrix and all of these tokens; begin is a multiple of 8. */
void lora_up(const kernels *k, const lora_tokens *tokens, int32_t layer, layer_matrix which, const float *hidden,
             int64_t begin, int64_t end, float *out);

#endif
