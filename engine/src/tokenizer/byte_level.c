/* byte_level.c: byte-level BPE: splits text into pre-tokens and merges the bytes of each by the
 * list of merges.
 *
 * Files write every byte as a printable character (GPT-2's alphabet: the byte itself if it is
 * printable Latin-1, else U+0100 and up, in order). In memory all strings are plain bytes. As in
 * llama.cpp, a merge may produce a string that is not in the vocabulary; if it is left at the end,
 * it is encoded byte by byte.
 */
#include "tokenizer/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/unicode.h"

/* ------------------------------------------------------------------ building */

/* byte_of[code point]: the byte that the character stands for in GPT-2's alphabet, or -1. */
enum { ALPHABET_END = 0x100 + 68 };
static void fill_alphabet(int16_t byte_of[ALPHABET_END]) {
    int next = 0x100;
    for (int i = 0; i < ALPHABET_END; i++) byte_of[i] = -1;
    for (int byte = 0; byte < 256; byte++) byte_of[unicode_is_printable_latin1(byte) ? byte : next++] = (int16_t)byte;
}

static bool continues_character(char byte) { return ((unsigned char)byte & 0xC0) == 0x80; }

/* Decodes a string in GPT-2's alphabet to bytes. False: it has a character outside the alphabet. */
static bool alphabet_bytes(const int16_t *byte_of, const char *text, size_t num_bytes, char *bytes, size_t *length) {
    *length = 0;
    for (size_t at = 0; at < num_bytes;) {
        uint32_t code_point;
        at += utf8_decode(text + at, num_bytes - at, &code_point);
        if (code_point >= ALPHABET_END || byte_of[code_point] < 0) return false;
        bytes[(*length)++] = (char)byte_of[code_point];
    }
    return true;
}

/* Adds symbols 0 .. vocab_size: normal tokens as bytes, findable; the others as the file spells
 * them. */
static llamita_status add_pieces(tokenizer *t, const tokenizer_source *source, const char *path, const int16_t *byte_of,
                                 char *bytes, llamita_error *error) {
    for (int32_t id = 0; id < t->vocab_size; id++) {
        byte_slice piece = source->pieces[id];
        size_t length;
        bool normal =
            t->types[id] == TOKEN_NORMAL && alphabet_bytes(byte_of, piece.bytes, piece.num_bytes, bytes, &length);
        int32_t symbol;
        symbol_result result = normal ? symbol_append(&t->symbols, bytes, length, &symbol)
                                      : symbol_append(&t->symbols, piece.bytes, piece.num_bytes, &symbol);
        if (result == SYMBOL_ADDED && normal && length > 0) result = symbol_make_findable(&t->symbols, &symbol);
        if (result == SYMBOL_EXISTS) {
            return token_error(error, source, path, id,
                               "expected unique pieces, found the same text twice; export the model again");
        }
        if (result != SYMBOL_ADDED) return table_error(error, path, result == SYMBOL_NO_MEMORY);
        unsigned char byte;
        if (t->types[id] == TOKEN_BYTE && !byte_piece_value(piece, &byte)) {
            return token_error(error, source, path, id,
                               "expected a byte token of the form <0xNN>; export the model again");
        }
    }
    return LLAMITA_OK;
}

static llamita_status add_bytes(tokenizer *t, const char *path, llamita_error *error) {
    bool any = false;
    for (int byte = 0; byte < 256; byte++) {
        t->byte_ids[byte] = symbol_find(&t->symbols, &t->byte_values[byte], 1);
        any |= t->byte_ids[byte] >= 0;
        const symbol_result result = symbol_intern(&t->symbols, &t->byte_values[byte], 1, &t->byte_symbols[byte]);
        if (result != SYMBOL_ADDED && result != SYMBOL_EXISTS)
            return table_error(error, path, result == SYMBOL_NO_MEMORY);
    }
    if (any) return LLAMITA_OK;
    return error_set(
        error, LLAMITA_ERROR_FORMAT,
        "cannot read the tokenizer: %s: expected tokens for single bytes, found none; export the model again", path);
}

static llamita_status merge_error(llamita_error *error, const char *path, size_t index, byte_slice merge_text,
                                  const char *expected) {
    int shown = (int)(merge_text.num_bytes < PIECE_BYTES_SHOWN ? merge_text.num_bytes : PIECE_BYTES_SHOWN);
    return error_set(error, LLAMITA_ERROR_FORMAT,
                     "cannot read the tokenizer: %s: merge %zu '%.*s': expected %s; export the model again", path,
                     index, shown, merge_text.bytes, expected);
}

/* True if the piece of this id is the left and the right side of the line, joined. space: the space
 * between them. *left_length: the number of bytes that the left side stands for. */
static bool is_product(const tokenizer *t, const tokenizer_source *source, int32_t id, byte_slice line,
                       const char *space, size_t *left_length) {
    if (id >= t->vocab_size || !t->symbols.entries[id].findable) return false;
    const byte_slice piece = source->pieces[id];
    const size_t left_bytes = (size_t)(space - line.bytes);
    if (piece.num_bytes != line.num_bytes - 1 || memcmp(piece.bytes, line.bytes, left_bytes) != 0 ||
        memcmp(piece.bytes + left_bytes, space + 1, piece.num_bytes - left_bytes) != 0)
        return false;
    *left_length = 0;
    for (size_t i = 0; i < left_bytes; i++) *left_length += !continues_character(line.bytes[i]);
    return !continues_character(space[1]);
}

/* True for the first byte of the characters U+4000 to U+9FFF, nearly all of Chinese. */
static bool starts_ideograph(char byte) { return (unsigned char)byte >= 0xE4 && (unsigned char)byte <= 0xE9; }

/* The length of the first part of text: such a character, however damaged, or what is between
 * two. */
static size_t part_length(const char *text, size_t num_bytes) {
    size_t length = 1;
    if (starts_ideograph(text[0]))
        while (length < num_bytes && length < 3 && continues_character(text[length])) length++;
    else
        while (length < num_bytes && !starts_ideograph(text[length])) length++;
    return length;
}

/* Adds one line "left right". The halves and the product need not be in the vocabulary. A line with
 * characters outside the alphabet can never apply and is skipped. *product: in, the product of the
 * line before; out, of this one. */
static llamita_status add_merge(tokenizer *t, const tokenizer_source *source, const char *path, const int16_t *byte_of,
                                char *bytes, size_t index, int32_t *product, llamita_error *error) {
    const byte_slice line = source->merges[index];
    if (line.num_bytes > 2 * MAX_PIECE_BYTES + 1) return merge_error(error, path, index, line, "at most 2,049 bytes");
    const char *space = line.num_bytes > 2 ? memchr(line.bytes + 1, ' ', line.num_bytes - 2) : NULL;
    if (!space) return merge_error(error, path, index, line, "two strings with a space between them");
    size_t left_length, right_length;
    if (is_product(t, source, *product + 1, line, space, &left_length)) { /* fast path */
        ++*product;
    } else {
        const size_t left_bytes = (size_t)(space - line.bytes), right_bytes = line.num_bytes - left_bytes - 1;
        if (!alphabet_bytes(byte_of, line.bytes, left_bytes, bytes, &left_length)) return LLAMITA_OK;
        if (!alphabet_bytes(byte_of, space + 1, right_bytes, bytes + left_length, &right_length)) return LLAMITA_OK;
        const symbol_result added = symbol_intern(&t->symbols, bytes, left_length + right_length, product);
        if (added != SYMBOL_ADDED && added != SYMBOL_EXISTS) return table_error(error, path, added == SYMBOL_NO_MEMORY);
    }
    /* BPE_EXISTS: the merge keeps its first rank. */
    bpe_result result = bpe_rules_add(&t->merges, *product, left_length, (uint32_t)index);
    if (result == BPE_ADDED || result == BPE_EXISTS) return LLAMITA_OK;
    return table_error(error, path, result == BPE_NO_MEMORY);
}

llamita_status byte_level_build(tokenizer *t, const tokenizer_source *source, const char *path, llamita_error *error) {
    int16_t byte_of[ALPHABET_END];
    fill_alphabet(byte_of);
    char *bytes = malloc(2 * MAX_PIECE_BYTES + 2);
    if (!bytes) return table_error(error, path, true);
    llamita_status status = tables_create(t, false, path, error);
    if (status == LLAMITA_OK) status = add_pieces(t, source, path, byte_of, bytes, error);
    if (status == LLAMITA_OK) status = add_bytes(t, path, error);
    int32_t product = SYMBOL_NONE;
    for (size_t i = 0; i < source->num_merges && status == LLAMITA_OK; i++)
        status = add_merge(t, source, path, byte_of, bytes, i, &product, error);
    free(bytes);
    t->ideographs_apart = !pre_tokenizer_ignores_merges(t->pre_tokenizer);
    for (int32_t i = 0; i < t->merges.num_ranks && i < t->symbols.num_symbols && t->ideographs_apart; i++) {
        if (t->merges.ranks[i] == BPE_RANK_NONE) continue;
        size_t length;
        const char *product = symbol_bytes(&t->symbols, i, &length);
        t->ideographs_apart = !continues_character(product[0]) && part_length(product, length) == length;
    }
    return status;
}

/* ------------------------------------------------------------------ encoding */

/* Some tokenizers (ignore_merges) use a token that equals the pre-token even if merges would
 * not produce it. */
static int32_t whole_token(const tokenizer *t, const char *word, size_t num_bytes) {
    if (!pre_tokenizer_ignores_merges(t->pre_tokenizer)) return -1;
    int32_t symbol = symbol_find(&t->symbols, word, num_bytes);
    return symbol < t->vocab_size ? symbol : -1;
}

/* Encodes text[at .. at + length), which no merge joins to what is beside it. */
static llamita_status encode_word(encoder *e, size_t at, size_t length) {
    const tokenizer *t = e->t;
    llamita_status status = LLAMITA_OK;
    if (encoder_push_cached(e, at, length, &status)) return status;
    const size_t first_id = e->num_ids;
    const int32_t whole = whole_token(t, e->text + at, length);
    if (whole >= 0) {
        status = encoder_push(e, whole);
    } else {
        status = encoder_reserve_word(e, length);
        if (status != LLAMITA_OK) return status;
        for (size_t i = 0; i < length; i++) {
            int32_t symbol = t->byte_symbols[(unsigned char)e->text[at + i]];
            e->word[i] = symbol >= 0 ? symbol : ~(int32_t)(at + i);
        }
        status = encoder_merge_word(e, length);
    }
    if (status == LLAMITA_OK) encoder_cache_word(e, at, length, first_id);
    return status;
}

llamita_status byte_level_encode(encoder *e, size_t start, size_t end) {
    const tokenizer *t = e->t;
    llamita_status status = LLAMITA_OK;
    for (size_t at = start, word_end = start; at < end && status == LLAMITA_OK;) {
        if (at == word_end) word_end += pre_tokenizer_next(t->pre_tokenizer, e->text + at, end - at);
        const size_t length = t->ideographs_apart ? part_length(e->text + at, word_end - at) : word_end - at;
        status = encode_word(e, at, length);
        at += length;
    }
    return status;
}
