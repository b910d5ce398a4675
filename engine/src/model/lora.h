/* lora.h: low-rank updates of a model's matrices (LoRA, 2106.09685) and their products in a pass.
 *
 * A matrix W with adapters gives W x + s1 * B1 (A1 x) + s2 * B2 (A2 x) + ..., where s is the
 * caller's scale * alpha / rank. A bias of W is added last. Each product is a float kernel's; A x is multiplied by s, and its
 * product with B is added to the sum so far, in the order of the set: the bits depend on nothing
 * else. */
#ifndef LLAMITA_LORA_H
#define LLAMITA_LORA_H

#include <stdatomic.h>

#include "model/model.h"
#include "model/ops.h"

/* a: [R, row_length of W], b: [num_rows of W, R], in float panels. R is a.num_rows; 0 leaves W
 * unchanged. */
typedef struct {
    tensor a, b;
} lora_pair;

struct llamita_adapter {
    const llamita_model *model;
    llamita_adapter_info info;
    lora_pair (*layers)[MATRICES_PER_LAYER]; /* [L] */
    char *panels;                            /* owns the panels of all pairs */
    atomic_int ref_count;                    /* the caller that opened it, and sequences */
};

/* The adapters of a sequence, in order. */
typedef struct {
    int32_t count;
    llamita_adapter *adapters[LLAMITA_MAX_ADAPTERS];
    float scales[LLAMITA_MAX_ADAPTERS];
} lora_set;

bool lora_sets_equal(const lora_set *a, const lora_set *b);

/* Drops a reference; the last one frees the adapter. NULL is allowed. */
void lora_release(llamita_adapter *adapter);

/* Add and drop a reference to each adapter of a set. Whoever stores a set retains it. */
void lora_set_retain(const lora_set *set);
void lora_set_release(const lora_set *set);

/* Floats of hidden values per token, for up to three matrices that read the same columns. */
int64_t lora_set_floats(const lora_set *set);

/* Consecutive tokens of a pass with the same adapters. */
typedef struct {
    const lora_set *set;
    int32_t first_token, num_tokens;
} lora_tokens;

/* hidden [num_tokens, lora_set_floats] = s * A x for matrices first .. last of a layer, which read
 * the same columns [T, length] of floats, for the tokens of this run in [begin, end). */
void lora_down(const kernels *k, const lora_tokens *tokens, int32_t layer, layer_matrix first, layer_matrix last,
               const activations *columns, int64_t begin, int64_t end, float *hidden);

/* out [T, num_rows] += B hidden for rows [begin, end) of a matrix and all tokens of this run; begin
 * is a multiple of 8. */
void lora_up(const kernels *k, const lora_tokens *tokens, int32_t layer, layer_matrix which, const float *hidden,
             int64_t begin, int64_t end, float *out);

#endif
