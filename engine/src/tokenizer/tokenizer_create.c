/* tokenizer_create.c: validates the contents of a tokenizer file and builds the tokenizer. */
#include "tokenizer/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_TOKENS (1 << 24)
#define MAX_BYTES ((size_t)1 << 23) /* of all pieces together; real vocabularies have 1 to 3 MB */

static llamita_status id_error(llamita_error *error, const char *path, const char *what, int32_t id,
                               int32_t vocab_size) {
    return error_set(error, LLAMITA_ERROR_FORMAT,
                     "cannot read the tokenizer: %s: %s: expected an id below %d, found %d; export the model again",
                     path, what, (int)vocab_size, (int)id);
}

/* ------------------------------------------------------------------ checking the source */

static llamita_status check_pieces(const tokenizer_source *source, const char *path, llamita_error *error) {
    if (source->vocab_size < 1 || source->vocab_size > MAX_TOKENS || !source->pieces) {
        return error_set(error, LLAMITA_ERROR_FORMAT,
                         "cannot read the tokenizer: %s: expected 1 to %d tokens, found %d; export the model again",
                         path, MAX_TOKENS, (int)source->vocab_size);
    }
    size_t total = 0;
    for (int32_t id = 0; id < source->vocab_size; id++) {
        size_t num_bytes = source->pieces[id].num_bytes;
        if (num_bytes > MAX_PIECE_BYTES) {
            return token_error(error, source, path, id,
                               "expected at most 1,024 bytes, found more; export the model again");
        }
        total += num_bytes;
        if (total > MAX_BYTES) {
            return error_set(error, LLAMITA_ERROR_FORMAT,
                             "cannot read the tokenizer: %s: expected at most %zu bytes of pieces, found more; do not "
                             "trust this file",
                             path, MAX_BYTES);
        }
    }
    if (source->num_merges <= INT32_MAX / 4) return LLAMITA_OK;
    return error_set(error, LLAMITA_ERROR_FORMAT,
                     "cannot read the tokenizer: %s: expected at most %d merges, found %zu", path, INT32_MAX / 4,
                     source->num_merges);
}

static llamita_status check_ids(const tokenizer_source *source, const char *path, llamita_error *error) {
    const struct {
        const char *what;
        int32_t id;
    } ids[] = {
        {"bos_token_id", source->bos_id}, {"eos_token_id", source->eos_id}, {"unknown_token_id", source->unknown_id}};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        if (ids[i].id < -1 || ids[i].id >= source->vocab_size)
            return id_error(error, path, ids[i].what, ids[i].id, source->vocab_size);
    for (size_t i = 0; i < source->num_end_ids; i++) {
        int32_t id = source->end_ids[i];
        if (id < 0 || id >= source->vocab_size) return id_error(error, path, "end token", id, source->vocab_size);
    }
    return LLAMITA_OK;
}

/* ------------------------------------------------------------------ building */

/* For files without types: byte tokens are recognized by their spelling, control tokens by their
 * ids. */
static void infer_types(tokenizer *t, const tokenizer_source *source) {
    for (int32_t id = 0; id < t->vocab_size; id++) {
        unsigned char byte;
        bool is_byte = t->kind == TOKENIZER_SENTENCEPIECE && byte_piece_value(source->pieces[id], &byte);
        t->types[id] = is_byte ? TOKEN_BYTE : TOKEN_NORMAL;
    }
    for (size_t i = 0; i < source->num_end_ids; i++) t->types[source->end_ids[i]] = TOKEN_CONTROL;
    if (source->unknown_id >= 0) t->types[source->unknown_id] = TOKEN_UNKNOWN;
    if (source->bos_id >= 0) t->types[source->bos_id] = TOKEN_CONTROL;
    if (source->eos_id >= 0) t->types[source->eos_id] = TOKEN_CONTROL;
}

static llamita_status fill_types(tokenizer *t, const tokenizer_source *source, const char *path, llamita_error *error) {
    if (!source->types) {
        infer_types(t, source);
        return LLAMITA_OK;
    }
    for (int32_t id = 0; id < t->vocab_size; id++) {
        int32_t type = source->types[id];
        if (type < TOKEN_NORMAL || type > TOKEN_BYTE) {
            return token_error(error, source, path, id,
                               "expected a token_type from 1 to 6, found another; export the model again");
        }
        t->types[id] = (uint8_t)type;
    }
    return LLAMITA_OK;
}

/* The unknown token: the one the file names, else the first of type unknown. Byte-level files often
 * name another control token, such as <|endoftext|>; it is used only if it has type unknown. */
static int32_t choose_unknown(const tokenizer *t, const tokenizer_source *source) {
    int32_t named = source->unknown_id;
    if (named >= 0 && (t->kind == TOKENIZER_SENTENCEPIECE || t->types[named] == TOKEN_UNKNOWN)) return named;
    for (int32_t id = 0; id < t->vocab_size; id++)
        if (t->types[id] == TOKEN_UNKNOWN) return id;
    return -1;
}

static bool copy_texts(tokenizer *t, const tokenizer_source *source) {
    size_t total = 0, at = 0;
    for (int32_t id = 0; id < t->vocab_size; id++) total += source->pieces[id].num_bytes + 1;
    t->texts = malloc(total);
    t->text_starts = malloc((size_t)t->vocab_size * sizeof *t->text_starts);
    if (!t->texts || !t->text_starts) return false;
    for (int32_t id = 0; id < t->vocab_size; id++) {
        byte_slice piece = source->pieces[id];
        t->text_starts[id] = (uint32_t)at;
        if (piece.num_bytes > 0) memcpy(t->texts + at, piece.bytes, piece.num_bytes);
        at += piece.num_bytes;
        t->texts[at++] = '\0';
    }
    return true;
}

static void fill_ends(tokenizer *t, const tokenizer_source *source) {
    if (t->eos_id >= 0) t->ends[t->eos_id] = true;
    for (size_t i = 0; i < source->num_end_ids; i++) t->ends[source->end_ids[i]] = true;
}

static llamita_status build(tokenizer *t, const tokenizer_source *source, const char *path, llamita_error *error) {
    t->types = malloc((size_t)t->vocab_size);
    t->ends = calloc((size_t)t->vocab_size, sizeof *t->ends);
    if (!t->types || !t->ends || !copy_texts(t, source)) return table_error(error, path, true);
    llamita_status status = fill_types(t, source, path, error);
    if (status != LLAMITA_OK) return status;
    fill_ends(t, source);
    t->unknown_id = choose_unknown(t, source);
    if (t->unknown_id >= 0 && t->types[t->unknown_id] == TOKEN_NORMAL) t->types[t->unknown_id] = TOKEN_UNKNOWN;

    status = t->kind == TOKENIZER_SENTENCEPIECE ? sentencepiece_build(t, source, path, error)
                                                : byte_level_build(t, source, path, error);
    unsigned user = 1u << TOKEN_USER, all = user | 1u << TOKEN_CONTROL | 1u << TOKEN_UNKNOWN;
    if (status == LLAMITA_OK) status = special_tokens_build(&t->user, t, user, source, path, error);
    if (status == LLAMITA_OK) status = special_tokens_build(&t->all, t, all, source, path, error);
    return status;
}

llamita_status tokenizer_create(const tokenizer_source *source, const char *path, tokenizer **out,
                                llamita_error *error) {
    llamita_status status = check_pieces(source, path, error);
    if (status == LLAMITA_OK) status = check_ids(source, path, error);
    if (status != LLAMITA_OK) return status;
    tokenizer *t = calloc(1, sizeof *t);
    if (!t) return table_error(error, path, true);
    t->kind = source->kind;
    t->pre_tokenizer = source->pre_tokenizer;
    t->vocab_size = source->vocab_size;
    t->bos_id = source->bos_id;
    t->eos_id = source->eos_id;
    t->add_bos = source->add_bos;
    t->add_space_prefix = source->add_space_prefix;
    for (int byte = 0; byte < 256; byte++) {
        t->byte_values[byte] = (char)byte;
        t->byte_ids[byte] = -1;
        t->byte_symbols[byte] = SYMBOL_NONE;
    }
    status = build(t, source, path, error);
    if (status != LLAMITA_OK) {
        tokenizer_free(t);
        return status;
    }
    *out = t;
    return LLAMITA_OK;
}
