/* encode.c: encodes text: finds special tokens and passes the text between them to the encoder of
 * its kind. */
#include "tokenizer/tokenizer_internal.h"

#include <string.h>

#define MAX_TEXT_BYTES ((size_t)1 << 30)

/* Encodes text[start .. end) between special tokens. As in llama.cpp, SentencePiece's space prefix
 * is added to each such fragment, not only to the first. */
static llamita_status encode_plain(encoder *e, size_t start, size_t end) {
    if (start == end) return LLAMITA_OK;
    e->fragment_end = end;
    return e->t->kind == TOKENIZER_BYTE_LEVEL ? byte_level_encode(e, start, end) : sentencepiece_encode(e, start, end);
}

/* Encodes text[start .. end) with its special tokens. */
static llamita_status encode_text(encoder *e, size_t start, size_t end, bool with_control) {
    const tokenizer *t = e->t;
    const special_tokens *special = with_control ? &t->all : &t->user;
    if (special->num_ids == 0) return encode_plain(e, start, end);
    llamita_status status = LLAMITA_OK;
    size_t matched = 0;
    for (size_t at = start; at < end && status == LLAMITA_OK;) {
        int32_t id = special_tokens_match(special, t, e->text + at, end - at, &matched);
        if (id < 0) {
            at++;
            continue;
        }
        status = encode_plain(e, start, at);
        if (status == LLAMITA_OK) status = encoder_push(e, id);
        start = at += matched;
    }
    return status == LLAMITA_OK ? encode_plain(e, start, end) : status;
}

static llamita_status start_encoding(encoder *e, const tokenizer *t, const char *text, size_t num_bytes,
                                     llamita_error *error) {
    if (num_bytes > MAX_TEXT_BYTES) {
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot encode the text: expected at most %zu bytes, found %zu; split the text",
                         MAX_TEXT_BYTES, num_bytes);
    }
    encoder_init(e, t, text, num_bytes, error);
    return LLAMITA_OK;
}

/* Copies the ids to the caller on success; frees the encoder in any case. */
static llamita_status finish(encoder *e, llamita_status status, int32_t *ids, size_t capacity, size_t *num_tokens) {
    if (status == LLAMITA_OK) {
        *num_tokens = e->num_ids;
        if (e->num_ids <= capacity) {
            if (e->num_ids > 0) memcpy(ids, e->ids, e->num_ids * sizeof *ids);
        } else {
            status = error_set(e->error, LLAMITA_ERROR_ARGUMENT,
                               "cannot encode the text: expected room for %zu tokens, found %zu; use a larger buffer",
                               e->num_ids, capacity);
        }
    }
    encoder_free(e);
    return status;
}

llamita_status tokenizer_encode(const tokenizer *t, const char *text, size_t num_bytes, int flags, int32_t *ids,
                                size_t capacity, size_t *num_tokens, llamita_error *error) {
    if ((flags & LLAMITA_ENCODE_BOS) && t->bos_id < 0) {
        return error_set(
            error, LLAMITA_ERROR_ARGUMENT,
            "cannot encode the text: expected a BOS token in the vocabulary, found none; encode without BOS");
    }
    encoder e;
    llamita_status status = start_encoding(&e, t, text, num_bytes, error);
    if (status != LLAMITA_OK) return status;
    if (flags & LLAMITA_ENCODE_BOS) status = encoder_push(&e, t->bos_id);
    if (status == LLAMITA_OK) status = encode_text(&e, 0, num_bytes, (flags & LLAMITA_ENCODE_SPECIAL) != 0);
    return finish(&e, status, ids, capacity, num_tokens);
}

llamita_status tokenizer_encode_documents(const tokenizer *t, const char *text, const uint64_t *ends,
                                          size_t num_documents, int32_t last_id, int32_t *ids, size_t capacity,
                                          uint64_t *token_ends, llamita_error *error) {
    uint64_t before = 0;
    for (size_t i = 0; i < num_documents; i++) {
        if (ends[i] < before) {
            return error_set(error, LLAMITA_ERROR_ARGUMENT,
                             "cannot encode documents: expected ends in ascending order, found %llu after %llu",
                             (unsigned long long)ends[i], (unsigned long long)before);
        }
        before = ends[i];
    }
    encoder e; /* shared, so that words are cached across documents */
    llamita_status status = start_encoding(&e, t, text, before > SIZE_MAX ? SIZE_MAX : (size_t)before, error);
    if (status != LLAMITA_OK) return status;
    size_t at = 0, num_tokens;
    for (size_t i = 0; i < num_documents && status == LLAMITA_OK; i++) {
        status = encode_text(&e, at, (size_t)ends[i], false);
        if (status == LLAMITA_OK && last_id >= 0) status = encoder_push(&e, last_id);
        token_ends[i] = e.num_ids;
        at = (size_t)ends[i];
    }
    return finish(&e, status, ids, capacity, &num_tokens);
}
