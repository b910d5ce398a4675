/* lora.c: LoRA adapters: their sets and references, and their products in a pass. */
#include "model/lora.h"

#include <stdlib.h>

#include "platform/platform.h"

/* Matrices that read the same columns have separate slots for their hidden values. */
static const int slot_of[MATRICES_PER_LAYER] = {
    [MATRIX_QUERY] = 0,    [MATRIX_KEY] = 1,    [MATRIX_VALUE] = 2,   [MATRIX_ATTENTION_OUTPUT] = 0,
    [MATRIX_FFN_GATE] = 0, [MATRIX_FFN_UP] = 1, [MATRIX_FFN_DOWN] = 0};
enum { NUM_SLOTS = 3 };

/* ------------------------------------------------------------------ sets */

bool lora_sets_equal(const lora_set *a, const lora_set *b) {
    if (a->count != b->count) return false;
    for (int32_t i = 0; i < a->count; i++)
        if (a->adapters[i] != b->adapters[i] || a->scales[i] != b->scales[i]) return false;
    return true;
}

void lora_set_retain(const lora_set *set) {
    for (int32_t i = 0; i < set->count; i++) atomic_fetch_add(&set->adapters[i]->ref_count, 1);
}

void lora_release(llamita_adapter *adapter) {
    if (!adapter || atomic_fetch_sub(&adapter->ref_count, 1) > 1) return;
    free(adapter->layers);
    platform_aligned_free(adapter->panels);
    free(adapter);
}

void lora_set_release(const lora_set *set) {
    for (int32_t i = 0; i < set->count; i++) lora_release(set->adapters[i]);
}

static int64_t ranks_of(const lora_set *set) {
    int64_t ranks = 0;
    for (int32_t i = 0; i < set->count; i++) ranks += set->adapters[i]->info.rank;
    return ranks;
}

int64_t lora_set_floats(const lora_set *set) { return NUM_SLOTS * ranks_of(set); }

/* ------------------------------------------------------------------ products */

/* The offset of a matrix in the hidden values, which are [adapter][num_tokens, its R]. */
static size_t slot_offset(const lora_tokens *tokens, layer_matrix which) {
    return (size_t)tokens->num_tokens * (size_t)ranks_of(tokens->set) * (size_t)slot_of[which];
}

void lora_down(const kernels *k, const lora_tokens *tokens, int32_t layer, layer_matrix first, layer_matrix last,
               const activations *columns, int64_t begin, int64_t end, float *hidden) {
    const int64_t first_token = tokens->first_token, end_token = first_token + tokens->num_tokens;
    begin = begin > first_token ? begin : first_token;
    end = end < end_token ? end : end_token;
    if (begin >= end) return;
    const activations part = {columns->values + begin * columns->length, NULL, columns->length};
    for (int which = first; which <= (int)last; which++) {
        float *out = hidden + slot_offset(tokens, (layer_matrix)which);
        for (int32_t i = 0; i < tokens->set->count; i++) {
            const llamita_adapter *adapter = tokens->set->adapters[i];
            const tensor *a = &adapter->layers[layer][which].a;
            if (a->num_rows == 0) continue;
            const float scale =
                (float)((double)tokens->set->scales[i] * (double)adapter->info.alpha / (double)a->num_rows);
            float *mine = out + (begin - first_token) * a->num_rows;
            matmul(k, a, &part, (int32_t)(end - begin), 0, a->num_rows, mine);
            for (int64_t j = 0; j < (end - begin) * a->num_rows; j++) mine[j] *= scale;
            out += (int64_t)tokens->num_tokens * a->num_rows;
        }
    }
}

void lora_up(const kernels *k, const lora_tokens *tokens, int32_t layer, layer_matrix which, const float *hidden,
             int64_t begin, int64_t end, float *out) {
    hidden += slot_offset(tokens, which);
    for (int32_t i = 0; i < tokens->set->count; i++) {
        const lora_pair *update = &tokens->set->adapters[i]->layers[layer][which];
        const int64_t rank = update->a.num_rows;
        if (rank == 0) continue;
        const activations columns = {(float *)(uintptr_t)hidden, NULL, rank};
        matmul_add(k, &update->b, &columns, tokens->num_tokens, begin, end,
                   out + tokens->first_token * update->b.num_rows);
        hidden += tokens->num_tokens * rank;
    }
}
