/* adapter.h: low-rank updates of a model's matrices (LoRA, 2106.09685), and what they add to the products of a pass.
 *
 * A matrix W with adapters gives W x + s1 * B1 (A1 x) + s2 * B2 (A2 x) + ..., s = the caller's scale * alpha / rank. Each
 * product is a kernel's, with floats; A x is multiplied by s, and what B makes of that is added to the sum so far, in the
 * order of the set: the bits depend on nothing else.
 */
#ifndef LLAMITA_ADAPTER_H
#define LLAMITA_ADAPTER_H

#include <stdatomic.h>

#include "model.h"
#include "ops.h"

/* a: [R, row_length of W], b: [num_rows of W, R], in float panels. R, which is a.num_rows, is 0: W is as it was. */
typedef struct {
    tensor a, b;
} low_rank;

struct llamita_adapter {
    const llamita_model *model;
    llamita_adapter_info info;
    low_rank (*layers)[MATRICES_PER_LAYER]; /* [L] */
    char *panels;
    atomic_int num_holders; /* the one who opened it, and sequences */
};

/* llamita_adapter_open once the file is mapped. Nothing of the file is needed afterwards. */
llamita_status adapter_read(const llamita_model *model, const void *bytes, size_t num_bytes, const char *path,
                            llamita_adapter **adapter, llamita_error *error);

/* What the adapters of a sequence are. */
typedef struct {
    int32_t count;
    llamita_adapter *adapters[LLAMITA_MAX_ADAPTERS];
    float scales[LLAMITA_MAX_ADAPTERS];
} adapter_set;

bool adapter_sets_equal(const adapter_set *a, const adapter_set *b);

/* Whoever keeps a set holds its adapters; those that nobody holds any more are freed. */
void adapter_set_hold(const adapter_set *set);
void adapter_set_release(const adapter_set *set);

/* Floats that a token needs for what its adapters make of the columns that up to three matrices read. */
int64_t adapter_set_floats(const adapter_set *set);

/* Consecutive tokens of a pass with the same adapters. */
typedef struct {
    const adapter_set *set;
    int32_t first_token, num_tokens;
} adapted_tokens;

/* low [num_tokens, adapter_set_floats] = s * A x for matrices first .. last of a layer, which read the same columns
 * [T, length] of floats, for those of these tokens that lie in [begin, end). */
void adapter_reduce(const kernels *k, const adapted_tokens *tokens, int32_t layer, layer_matrix first,
                    layer_matrix last, const activations *columns, int64_t begin, int64_t end, float *low);

/* out [T, num_rows] += B low for rows [begin, end) of a matrix and all of these tokens; begin is a multiple of 8. */
void adapter_expand(const kernels *k, const adapted_tokens *tokens, int32_t layer, layer_matrix which,
                    const float *low, int64_t begin, int64_t end, float *out);

#endif
