/* generate.c: generates a text on a session and passes its pieces to a callback. */
#include <stdlib.h>
#include <string.h>

#include "api/session.h"
#include "model/model.h"
#include "model/sampler.h"
#include "runtime/error.h"

enum { FEED_TOKENS = 128 }; /* of a prompt, between two calls of the callback */

typedef struct {
    const llamita_model *model;
    llamita_session *session;
    llamita_sampler *sampler;
    llamita_piece_callback callback;
    void *state;
    llamita_piece piece;
    char *bytes; /* of the piece: its text, then the bytes held back */
    size_t capacity;
} generation;

/* Makes the next piece: what was held back, and the bytes of a token unless it ends the text. */
static llamita_status next_piece(generation *g, int32_t previous_id, int32_t id, llamita_finish finish,
                                 llamita_error *error) {
    const char *bytes = NULL;
    size_t num_bytes = 0;
    if (g->model->tokenizer && finish != LLAMITA_FINISH_STOP) {
        const llamita_status status = llamita_token_bytes(g->model, previous_id, id, &bytes, &num_bytes, error);
        if (status != LLAMITA_OK) return status;
    }
    const size_t num_held = g->piece.num_held_bytes, needed = num_held + num_bytes;
    if (needed >= g->capacity) {
        const size_t capacity = 2 * needed + 16;
        char *grown = realloc(g->bytes, capacity);
        if (!grown)
            return error_set(error, LLAMITA_ERROR_MEMORY, "cannot generate: out of memory: %zu bytes for a token",
                             capacity);
        g->bytes = grown;
        g->capacity = capacity;
    }
    if (num_held > 0) memmove(g->bytes, g->bytes + g->piece.num_bytes, num_held);
    if (num_bytes > 0) memcpy(g->bytes + num_held, bytes, num_bytes);
    const size_t whole = llamita_utf8_complete(g->bytes, needed);
    g->piece = (llamita_piece){id, finish, g->bytes, whole, needed - whole};
    return LLAMITA_OK;
}

/* Reads what the session does not hold of these ids. *stopped: by the callback. */
static llamita_status read_prompt(generation *g, const int32_t *ids, size_t num_ids, bool *stopped,
                                  llamita_error *error) {
    const llamita_piece nothing = {.id = -1, .text = ""};
    for (size_t done = (size_t)llamita_session_position(g->session); done < num_ids;) {
        const size_t left = num_ids - done, count = left < FEED_TOKENS ? left : FEED_TOKENS;
        const llamita_chunk chunk = {0, ids + done, count, 0};
        *stopped = !g->callback(g->state, &nothing);
        if (*stopped) return LLAMITA_OK;
        const llamita_status status = count == left ? llamita_session_feed(g->session, ids + done, count, error)
                                                    : llamita_decode(g->session, &chunk, 1, NULL, error);
        if (status != LLAMITA_OK) return status;
        done += count;
    }
    return LLAMITA_OK;
}

/* Drops num_dropped ids after the kept ones, and reads the others again, then the new one. */
static llamita_status shift(generation *g, int32_t num_kept, int32_t num_dropped, int32_t id, bool *stopped,
                            llamita_error *error) {
    const int32_t *held = llamita_session_ids(g->session), first = num_kept + num_dropped;
    const int32_t position = llamita_session_position(g->session);
    if (position < first)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot generate: expected a session that only this call uses, found that its callback "
                         "removed tokens");
    const size_t num_last = (size_t)(position - first), kept = (size_t)num_kept;
    int32_t *ids = malloc((kept + num_last + 1) * sizeof *ids);
    if (!ids)
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot generate: out of memory: %zu ids", kept + num_last + 1);
    memcpy(ids, held, kept * sizeof *ids);
    memcpy(ids + kept, held + first, num_last * sizeof *ids);
    ids[kept + num_last] = id;
    llamita_status status = session_begin_text(g->session, ids, kept + num_last + 1, error);
    if (status == LLAMITA_OK) status = read_prompt(g, ids, kept + num_last + 1, stopped, error);
    free(ids);
    return status;
}

static llamita_status generate(generation *g, const int32_t *ids, size_t num_ids, int32_t max_new_tokens,
                               llamita_error *error) {
    const int32_t context_tokens = llamita_session_context_tokens(g->session);
    const int32_t num_kept = session_kept_tokens(g->session, (int32_t)num_ids, ids[0] == g->model->info.bos_id);
    bool stopped = false;
    llamita_sampler_begin_text(g->sampler);
    for (size_t i = 0; i < num_ids; i++) llamita_sampler_accept(g->sampler, ids[i]);
    llamita_status status = read_prompt(g, ids, num_ids, &stopped, error);
    int32_t previous_id = ids[num_ids - 1];
    for (int64_t count = 1; status == LLAMITA_OK && !stopped && max_new_tokens != 0; count++) {
        int32_t id;
        status = llamita_sampler_pick(g->sampler, llamita_session_logits(g->session), &id, error);
        if (status != LLAMITA_OK) break;
        llamita_sampler_accept(g->sampler, id);
        const int32_t position = llamita_session_position(g->session);
        const bool is_full = position >= context_tokens;
        const int32_t num_dropped = is_full && num_kept >= 0 ? (position - num_kept) / 2 : 0;
        const bool is_last = count == max_new_tokens || (is_full && num_dropped == 0);
        const llamita_finish finish = llamita_token_ends(g->model, id) ? LLAMITA_FINISH_STOP
                                      : is_last                        ? LLAMITA_FINISH_LENGTH
                                                                       : LLAMITA_FINISH_NONE;
        status = next_piece(g, previous_id, id, finish, error);
        if (status != LLAMITA_OK || !g->callback(g->state, &g->piece) || finish != LLAMITA_FINISH_NONE) break;
        status = is_full ? shift(g, num_kept, num_dropped, id, &stopped, error)
                         : llamita_session_feed(g->session, &id, 1, error);
        previous_id = id;
    }
    return status;
}

llamita_status llamita_generate(llamita_session *session, llamita_sampler *sampler, const int32_t *ids, size_t num_ids,
                                int32_t max_new_tokens, llamita_piece_callback callback, void *state,
                                llamita_error *error) {
    const llamita_model *model = session_model(session);
    if (max_new_tokens < -1)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot generate: max_new_tokens: expected -1 (no limit) or more, found %d",
                         (int)max_new_tokens);
    if (sampler_vocab_size(sampler) != model->info.vocab_size)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot generate: the sampler: expected one of %d tokens (the model's), found one of %d",
                         (int)model->info.vocab_size, (int)sampler_vocab_size(sampler));
    llamita_status status = session_begin_text(session, ids, num_ids, error);
    if (status != LLAMITA_OK) return status;
    generation g = {model, session, sampler, callback, state, {.text = ""}, NULL, 0};
    status = generate(&g, ids, num_ids, max_new_tokens, error);
    free(g.bytes);
    return status;
}

llamita_status llamita_generate_text(llamita_session *session, const char *prompt, size_t num_bytes,
                                     const llamita_sampler_params *params, int32_t max_new_tokens,
                                     llamita_piece_callback callback, void *state, llamita_error *error) {
    const llamita_model_info *info = &session_model(session)->info;
    if (num_bytes == 0 && info->bos_id < 0)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot generate: the prompt: expected a text, found none; this model has no BOS token to "
                         "start from");
    const size_t capacity = num_bytes > SIZE_MAX / 16 ? SIZE_MAX / sizeof(int32_t) : 2 * num_bytes + 2;
    const int flags = info->add_bos || num_bytes == 0 ? LLAMITA_ENCODE_BOS : LLAMITA_ENCODE_PLAIN;
    llamita_sampler *sampler = NULL;
    size_t num_ids;
    int32_t *ids = malloc(capacity * sizeof *ids);
    llamita_status status =
        ids ? llamita_sampler_open(params, info->vocab_size, &sampler, error)
            : error_set(error, LLAMITA_ERROR_MEMORY, "cannot generate: out of memory: %zu bytes for the prompt",
                        capacity * sizeof *ids);
    if (status == LLAMITA_OK)
        status = llamita_encode(session_model(session), prompt, num_bytes, flags, ids, capacity, &num_ids, error);
    if (status == LLAMITA_OK)
        status = llamita_generate(session, sampler, ids, num_ids, max_new_tokens, callback, state, error);
    llamita_sampler_close(sampler);
    free(ids);
    return status;
}
