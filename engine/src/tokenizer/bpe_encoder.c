/* bpe_encoder.c: merges words into ids and caches them; shared by both kinds of BPE. */
#include "tokenizer/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/array.h"
#include "runtime/hash.h"
#include "tokenizer/unicode.h"

enum {
    MIN_CACHED_TEXT_BYTES = 1024, /* shorter texts repeat too few words for a cache */
    MAX_CACHED_WORDS = 1 << 15,
    MAX_CACHED_WORD_BYTES = 64,
};

/* ------------------------------------------------------------------ output */

static llamita_status no_memory(const encoder *e) {
    return error_set(e->error, LLAMITA_ERROR_MEMORY, "cannot encode the text: out of memory; split the text");
}

llamita_status encoder_push(encoder *e, int32_t id) {
    if (!ARRAY_RESERVE(&e->ids, &e->ids_capacity, e->num_ids + 1)) return no_memory(e);
    e->ids[e->num_ids++] = id;
    return LLAMITA_OK;
}

llamita_status encoder_reserve_word(encoder *e, size_t num_symbols) {
    return ARRAY_RESERVE(&e->word, &e->word_capacity, num_symbols) ? LLAMITA_OK : no_memory(e);
}

/* Pushes the byte tokens of bytes that no token covers, or one unknown token. */
static llamita_status push_bytes(encoder *e, const char *bytes, size_t num_bytes) {
    const tokenizer *t = e->t;
    for (size_t i = 0; i < num_bytes; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        if (t->byte_ids[byte] >= 0) continue;
        if (t->unknown_id >= 0) return encoder_push(e, t->unknown_id);
        return error_set(
            e->error, LLAMITA_ERROR_ARGUMENT,
            "cannot encode the text: expected bytes in the vocabulary, found 0x%02X in '%.*s', and there is no "
            "unknown token; remove it",
            byte, (int)num_bytes, bytes);
    }
    llamita_status status = LLAMITA_OK;
    for (size_t i = 0; i < num_bytes && status == LLAMITA_OK; i++)
        status = encoder_push(e, t->byte_ids[(unsigned char)bytes[i]]);
    return status;
}

/* Pushes the character at this byte of the text: a UTF-8 character for SentencePiece, a byte for
 * byte-level BPE. */
static llamita_status push_character(encoder *e, size_t at) {
    size_t num_bytes = e->t->kind == TOKENIZER_BYTE_LEVEL ? 1 : utf8_length(e->text + at, e->fragment_end - at);
    return push_bytes(e, e->text + at, num_bytes);
}

llamita_status encoder_merge_word(encoder *e, size_t num_symbols) {
    const tokenizer *t = e->t;
    if (!bpe_merge(&t->merges, t->resegment, &e->scratch, e->word, &num_symbols)) return no_memory(e);
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

/* ------------------------------------------------------------------ word cache */

static cached_word *cache_slot(encoder *e, size_t start, size_t num_bytes) {
    if (!e->cache || num_bytes > MAX_CACHED_WORD_BYTES) return NULL;
    return &e->cache[hash_bytes(e->text + start, num_bytes) & e->cache_mask];
}

bool encoder_push_cached(encoder *e, size_t start, size_t num_bytes, llamita_status *status) {
    const cached_word *cached = cache_slot(e, start, num_bytes);
    if (!cached || cached->num_bytes != num_bytes || cached->generation != e->generation) return false;
    if (memcmp(e->text + cached->text_start, e->text + start, num_bytes) != 0) return false;
    for (uint32_t i = 0; i < cached->num_ids && *status == LLAMITA_OK; i++)
        *status = encoder_push(e, e->ids[cached->ids_start + i]);
    return true;
}

void encoder_cache_word(encoder *e, size_t start, size_t num_bytes, size_t ids_start) {
    cached_word *cached = cache_slot(e, start, num_bytes);
    if (!cached) return;
    *cached = (cached_word){(uint32_t)start, (uint32_t)num_bytes, (uint32_t)ids_start,
                            (uint32_t)(e->num_ids - ids_start), e->generation};
}

/* ------------------------------------------------------------------ creating and freeing */

static void allocate_cache(encoder *e) {
    if (e->text_bytes < MIN_CACHED_TEXT_BYTES) return;
    size_t num = 256;
    while (num < MAX_CACHED_WORDS && num * 16 < e->text_bytes) num *= 2;
    e->cache = calloc(num, sizeof *e->cache); /* optional: NULL disables the cache */
    e->cache_mask = num - 1;
}

void encoder_init(encoder *e, const tokenizer *t, const char *text, size_t num_bytes, llamita_error *error) {
    *e = (encoder){.t = t, .text = text, .text_bytes = num_bytes, .error = error};
    allocate_cache(e);
    bpe_scratch_cache_pairs(&e->scratch, num_bytes / 4);
}

void encoder_free(encoder *e) {
    free(e->ids);
    free(e->word);
    free(e->cache);
    bpe_scratch_free(&e->scratch);
}
