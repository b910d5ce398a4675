/* encode.c: text to ids: cuts out the special tokens and hands the rest to the kind's own encoder. */
#include "tokenizer/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#include "tokenizer/unicode.h"

enum {
    MIN_KNOWN_TEXT_BYTES = 1024, /* shorter texts repeat too little for the table of known words */
    MAX_KNOWN_WORDS = 1 << 15,
    MAX_KNOWN_WORD_BYTES = 64, /* bytes */
};
#define MAX_TEXT_BYTES ((size_t)1 << 30)

/* ------------------------------------------------------------------ what the kinds' encoders push */

static llamita_status no_memory(const encoder *e) {
    return error_set(e->error, LLAMITA_ERROR_MEMORY, "cannot encode the text: out of memory; split the text");
}

llamita_status encoder_push(encoder *e, int32_t id) {
    if (e->num_ids == e->ids_capacity) {
        size_t capacity = e->ids_capacity * 2 + 256;
        int32_t *grown = realloc(e->ids, capacity * sizeof *grown);
        if (grown == NULL) return no_memory(e);
        e->ids = grown;
        e->ids_capacity = capacity;
    }
    e->ids[e->num_ids++] = id;
    return LLAMITA_OK;
}

llamita_status encoder_reserve_word(encoder *e, size_t num_symbols) {
    if (num_symbols <= e->word_capacity) return LLAMITA_OK;
    size_t capacity = num_symbols + num_symbols / 2 + 64;
    int32_t *grown = realloc(e->word, capacity * sizeof *grown);
    if (grown == NULL) return no_memory(e);
    e->word = grown;
    e->word_capacity = capacity;
    return LLAMITA_OK;
}

/* Bytes that no token covers: their byte tokens, or the unknown token in their place. */
static llamita_status push_bytes(encoder *e, const char *bytes, size_t num_bytes) {
    const tokenizer *t = e->t;
    for (size_t i = 0; i < num_bytes; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        if (t->byte_ids[byte] >= 0) continue;
        if (t->unknown_id >= 0) return encoder_push(e, t->unknown_id);
        return error_set(
            e->error, LLAMITA_ERROR_ARGUMENT,
            "cannot encode the text: expected bytes that the vocabulary has, found 0x%02X in '%.*s', for which "
            "there is neither a token nor an unknown token; leave it out",
            byte, (int)num_bytes, bytes);
    }
    llamita_status status = LLAMITA_OK;
    for (size_t i = 0; i < num_bytes && status == LLAMITA_OK; i++) {
        status = encoder_push(e, t->byte_ids[(unsigned char)bytes[i]]);
    }
    return status;
}

/* The character of the text that begins at this byte: a whole one for SentencePiece, a byte for byte level. */
static llamita_status push_character(encoder *e, size_t at) {
    size_t num_bytes = e->t->kind == TOKENIZER_BYTE_LEVEL ? 1 : utf8_length(e->text + at, e->fragment_end - at);
    return push_bytes(e, e->text + at, num_bytes);
}

llamita_status encoder_merge_word(encoder *e, size_t num_symbols) {
    const tokenizer *t = e->t;
    if (!bpe_merge(&t->merges, t->take_apart, &e->scratch, e->word, &num_symbols)) return no_memory(e);
    llamita_status status = LLAMITA_OK;
    for (size_t i = 0; i < num_symbols && status == LLAMITA_OK; i++) {
        int32_t symbol = e->word[i];
        if (symbol < 0) {
            status = push_character(e, (size_t)~symbol);
        } else if (symbol < t->vocab_size) {
            status = encoder_push(e, symbol);
        } else {
            size_t num_bytes;
            const char *bytes = symbol_bytes(&t->symbols, symbol, &num_bytes);
            status = push_bytes(e, bytes, num_bytes);
        }
    }
    return status;
}

/* ------------------------------------------------------------------ words that came before */

static uint64_t word_hash(const char *bytes, size_t num_bytes) {
    const uint64_t odd = 0x9E3779B97F4A7C15u;
    uint64_t hash = odd ^ num_bytes, word;
    while (num_bytes >= 8) {
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * odd;
        hash ^= hash >> 32;
        bytes += 8;
        num_bytes -= 8;
    }
    word = 0;
    memcpy(&word, bytes, num_bytes);
    hash = (hash ^ word) * odd;
    hash ^= hash >> 29;
    hash *= 0xBF58476D1CE4E5B9u;
    return hash ^ hash >> 32;
}

static known_word *known_slot(encoder *e, size_t start, size_t num_bytes) {
    if (e->known == NULL || num_bytes > MAX_KNOWN_WORD_BYTES) return NULL;
    return &e->known[word_hash(e->text + start, num_bytes) & e->known_mask];
}

bool encoder_push_known(encoder *e, size_t start, size_t num_bytes, llamita_status *status) {
    const known_word *known = known_slot(e, start, num_bytes);
    if (known == NULL || known->num_bytes != num_bytes) return false;
    if (memcmp(e->text + known->text_start, e->text + start, num_bytes) != 0) return false;
    for (uint32_t i = 0; i < known->num_ids && *status == LLAMITA_OK; i++) {
        *status = encoder_push(e, e->ids[known->ids_start + i]);
    }
    return true;
}

void encoder_know(encoder *e, size_t start, size_t num_bytes, size_t ids_start) {
    known_word *known = known_slot(e, start, num_bytes);
    if (known == NULL) return;
    *known =
        (known_word){(uint32_t)start, (uint32_t)num_bytes, (uint32_t)ids_start, (uint32_t)(e->num_ids - ids_start)};
}

/* ------------------------------------------------------------------ the whole text */

/* A stretch between special tokens. As in llama.cpp, each of them gets SentencePiece's space prefix, not only the
 * first. */
static llamita_status encode_plain(encoder *e, size_t start, size_t end) {
    if (start == end) return LLAMITA_OK;
    e->fragment_end = end;
    return e->t->kind == TOKENIZER_BYTE_LEVEL ? byte_level_encode(e, start, end) : sentencepiece_encode(e, start, end);
}

/* text[start .. end) */
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

static void allocate_known(encoder *e) {
    if (e->text_bytes < MIN_KNOWN_TEXT_BYTES) return;
    size_t num = 256;
    while (num < MAX_KNOWN_WORDS && num * 16 < e->text_bytes) num *= 2;
    e->known = calloc(num, sizeof *e->known); /* without it encoding is slower, and right */
    e->known_mask = num - 1;
}

static llamita_status begin(encoder *e, const tokenizer *t, const char *text, size_t num_bytes, llamita_error *error) {
    if (num_bytes > MAX_TEXT_BYTES) {
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot encode the text: expected at most %zu bytes, found %zu; split the text", MAX_TEXT_BYTES,
                         num_bytes);
    }
    *e = (encoder){.t = t, .text = text, .text_bytes = num_bytes, .error = error};
    allocate_known(e);
    bpe_scratch_keep_pairs(&e->scratch, num_bytes / 4);
    return LLAMITA_OK;
}

/* Hands out the ids if all went well, and releases what the encoder has. */
static llamita_status finish(encoder *e, llamita_status status, int32_t *ids, size_t capacity, size_t *num_tokens) {
    if (status == LLAMITA_OK) {
        *num_tokens = e->num_ids;
        if (e->num_ids <= capacity) {
            if (e->num_ids > 0) memcpy(ids, e->ids, e->num_ids * sizeof *ids);
        } else {
            status = error_set(e->error, LLAMITA_ERROR_ARGUMENT,
                               "cannot encode the text: expected room for %zu tokens, found %zu; give as many",
                               e->num_ids, capacity);
        }
    }
    free(e->ids);
    free(e->word);
    free(e->known);
    bpe_scratch_free(&e->scratch);
    return status;
}

llamita_status tokenizer_encode(const tokenizer *t, const char *text, size_t num_bytes, int flags, int32_t *ids,
                                size_t capacity, size_t *num_tokens, llamita_error *error) {
    if ((flags & LLAMITA_ENCODE_BOS) && t->bos_id < 0) {
        return error_set(
            error, LLAMITA_ERROR_ARGUMENT,
            "cannot encode the text: expected a vocabulary with a BOS token, found none; encode without BOS");
    }
    encoder e;
    llamita_status status = begin(&e, t, text, num_bytes, error);
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
                             "cannot encode documents: expected ends that rise, found %llu after %llu",
                             (unsigned long long)ends[i], (unsigned long long)before);
        }
        before = ends[i];
    }
    encoder e; /* one for all: a word that an earlier document had is known */
    llamita_status status = begin(&e, t, text, before > SIZE_MAX ? SIZE_MAX : (size_t)before, error);
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
