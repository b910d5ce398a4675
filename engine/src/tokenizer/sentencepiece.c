/* sentencepiece.c: SentencePiece BPE: merges the pair whose piece has the best score, until no pair
 * merges.
 *
 * Two neighbors merge if their concatenation is a piece, ranked by its score. All strings here have
 * spaces in place of U+2581. A character in no piece becomes byte tokens; without byte tokens, a
 * run of such characters becomes one unknown id.
 */
#include "tokenizer/tokenizer_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/unicode.h"

/* ------------------------------------------------------------------ building */

static bool begins_with_separator(const char *bytes, size_t num_bytes) {
    return num_bytes >= WORD_SEPARATOR_BYTES && memcmp(bytes, WORD_SEPARATOR, WORD_SEPARATOR_BYTES) == 0;
}

/* Copies the piece to plain, replacing U+2581 by a space; returns the length. *has_space: the piece
 * also has plain spaces. */
static size_t plain_text(byte_slice piece, char *plain, bool *has_space) {
    size_t length = 0;
    *has_space = false;
    for (size_t i = 0; i < piece.num_bytes;) {
        const char byte = piece.bytes[i];
        if (byte == WORD_SEPARATOR[0] && begins_with_separator(piece.bytes + i, piece.num_bytes - i)) {
            plain[length++] = ' ';
            i += WORD_SEPARATOR_BYTES;
        } else {
            *has_space |= byte == ' ';
            plain[length++] = byte;
            i++;
        }
    }
    return length;
}

static bool is_mergeable(uint8_t type) { return type == TOKEN_NORMAL || type == TOKEN_UNUSED; }

static llamita_status add_byte_token(tokenizer *t, const tokenizer_source *source, const char *path, int32_t id,
                                     llamita_error *error) {
    unsigned char byte;
    if (!byte_piece_value(source->pieces[id], &byte))
        return token_error(error, source, path, id, "expected a byte token of the form <0xNN>; export the model again");
    if (t->byte_ids[byte] >= 0) {
        return token_error(error, source, path, id,
                           "expected one token per byte, found a second; export the model again");
    }
    t->byte_ids[byte] = id;
    return LLAMITA_OK;
}

/* Adds symbols 0 .. vocab_size, findable if merges can produce them; fills byte_ids. */
static llamita_status add_pieces(tokenizer *t, const tokenizer_source *source, const char *path, char *plain,
                                 llamita_error *error) {
    for (int32_t id = 0; id < t->vocab_size; id++) {
        bool has_space;
        size_t length = plain_text(source->pieces[id], plain, &has_space);
        int32_t symbol;
        symbol_result result = symbol_append(&t->symbols, plain, length, &symbol);
        if (result == SYMBOL_ADDED && is_mergeable(t->types[id]) && length > 0 && !has_space)
            result = symbol_make_findable(&t->symbols, &symbol);
        if (result == SYMBOL_EXISTS) {
            return token_error(error, source, path, id,
                               "expected unique pieces, found the same text twice; export the model again");
        }
        if (result != SYMBOL_ADDED) return table_error(error, path, result == SYMBOL_NO_MEMORY);
        if (t->types[id] == TOKEN_BYTE) {
            llamita_status status = add_byte_token(t, source, path, id, error);
            if (status != LLAMITA_OK) return status;
        }
    }
    if (t->symbols.num_findable > 0) return LLAMITA_OK;
    return error_set(error, LLAMITA_ERROR_FORMAT,
                     "cannot read the tokenizer: %s: expected normal pieces, found none; export the model again", path);
}

/* Maps scores to ranks: a higher score gives a lower rank, equal scores equal ranks. The bits of a
 * float, read as an integer, grow with its magnitude. */
static uint32_t score_rank(float score) {
    uint32_t bits;
    if (score == 0) return 0x7FFFFFFF; /* either zero */
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? bits : 0x7FFFFFFF - bits;
}

/* Sets the rank of every piece that merges can produce. */
static llamita_status rank_scores(tokenizer *t, const tokenizer_source *source, const char *path,
                                  llamita_error *error) {
    for (int32_t id = 0; id < t->vocab_size; id++) {
        if (isnan(source->scores[id]))
            return token_error(error, source, path, id, "expected a score, found NaN; export the model again");
        if (t->symbols.entries[id].findable) t->merges.ranks[id] = score_rank(source->scores[id]);
    }
    return LLAMITA_OK;
}

enum { SEEN_CODE_POINTS = 0x800 }; /* code points of one or two bytes */

/* Adds every character of the piece as a symbol. Clears words_end_at_spaces if a space follows
 * another character. seen[code point]: already added. */
static symbol_result add_characters(tokenizer *t, int32_t id, bool *seen) {
    size_t num_bytes;
    const char *bytes = symbol_bytes(&t->symbols, id, &num_bytes);
    for (size_t i = 0, length; i < num_bytes; i += length) {
        if (i > 0 && bytes[i] == ' ' && bytes[i - 1] != ' ') t->words_end_at_spaces = false;
        uint32_t code_point = (unsigned char)bytes[i];
        length = 1;
        if (code_point < 0x80 && seen[code_point]) continue;
        length = utf8_decode(bytes + i, num_bytes - i, &code_point);
        if (length == num_bytes) break; /* the piece is the character */
        if (code_point < SEEN_CODE_POINTS && seen[code_point]) continue;
        if (code_point < SEEN_CODE_POINTS) seen[code_point] = true;
        char character[4]; /* a copy: bytes moves when the table grows */
        memcpy(character, bytes + i, length);
        int32_t symbol;
        symbol_result result = symbol_intern(&t->symbols, character, length, &symbol);
        if (result != SYMBOL_ADDED && result != SYMBOL_EXISTS) return result;
        bytes = symbol_bytes(&t->symbols, id, &num_bytes);
    }
    return SYMBOL_ADDED;
}

static llamita_status add_all_characters(tokenizer *t, const char *path, llamita_error *error) {
    bool seen[SEEN_CODE_POINTS] = {false};
    for (int32_t id = 0; id < t->vocab_size; id++) {
        if (!t->symbols.entries[id].findable) continue;
        const symbol_result result = add_characters(t, id, seen);
        if (result != SYMBOL_ADDED) return table_error(error, path, result == SYMBOL_NO_MEMORY);
    }
    return LLAMITA_OK;
}

/* Flags the "unused" pieces: merges may go through them, but they never appear in the result. */
static llamita_status flag_unused(tokenizer *t, const char *path, llamita_error *error) {
    bool any = false;
    for (int32_t id = 0; id < t->vocab_size && !any; id++) any = t->types[id] == TOKEN_UNUSED;
    if (!any) return LLAMITA_OK;
    t->resegment = calloc((size_t)t->symbols.num_symbols, 1);
    if (!t->resegment) return table_error(error, path, true);
    for (int32_t id = 0; id < t->vocab_size; id++) t->resegment[id] = t->types[id] == TOKEN_UNUSED;
    return LLAMITA_OK;
}

llamita_status sentencepiece_build(tokenizer *t, const tokenizer_source *source, const char *path,
                                   llamita_error *error) {
    if (!source->scores) {
        return error_set(
            error, LLAMITA_ERROR_FORMAT,
            "cannot read the tokenizer: %s: expected a score for every piece, found none; export the model again",
            path);
    }
    size_t longest = 1;
    for (int32_t id = 0; id < t->vocab_size; id++)
        if (source->pieces[id].num_bytes > longest) longest = source->pieces[id].num_bytes;
    char *plain = malloc(longest);
    t->words_end_at_spaces = true;
    llamita_status status = plain ? tables_create(t, true, path, error) : table_error(error, path, true);
    if (status == LLAMITA_OK) status = add_pieces(t, source, path, plain, error);
    if (status == LLAMITA_OK) status = rank_scores(t, source, path, error);
    if (status == LLAMITA_OK) status = add_all_characters(t, path, error);
    if (status == LLAMITA_OK) status = flag_unused(t, path, error);
    free(plain);
    for (int byte = 0; byte < 256; byte++)
        t->byte_symbols[byte] = status == LLAMITA_OK ? symbol_find(&t->symbols, &t->byte_values[byte], 1) : SYMBOL_NONE;
    return status;
}

/* ------------------------------------------------------------------ encoding */

/* The length of the space at text[at], or 0. U+2581 counts as a space, as in SentencePiece. */
static inline size_t space_length(const char *text, size_t at, size_t end) {
    if (text[at] == ' ') return 1;
    return text[at] == WORD_SEPARATOR[0] && begins_with_separator(text + at, end - at) ? WORD_SEPARATOR_BYTES : 0;
}

/* The end of the word at start; no merge crosses it. */
static size_t word_end(const tokenizer *t, const char *text, size_t start, size_t end) {
    if ((unsigned char)text[start] < 0x80 && text[start] != ' ' && t->byte_symbols[(unsigned char)text[start]] < 0)
        return start + 1; /* in no piece */
    bool seen_other = false;
    for (size_t at = start, space; at < end; at += space ? space : 1) {
        space = space_length(text, at, end);
        if (space > 0 && seen_other && t->words_end_at_spaces) return at;
        if (space == 0) {
            seen_other = true;
            if (at > start && (unsigned char)text[at] < 0x80 && t->byte_symbols[(unsigned char)text[at]] < 0) return at;
        }
    }
    return end;
}

/* Appends the symbols of the characters in text[start .. end), which is not empty, to e->word. */
static size_t word_symbols(const encoder *e, size_t start, size_t end, size_t num_symbols) {
    const tokenizer *t = e->t;
    for (size_t at = start, length; at < end; at += length) {
        unsigned char byte = (unsigned char)e->text[at];
        int32_t symbol;
        if (byte < 0x80) {
            length = 1;
            symbol = t->byte_symbols[byte];
        } else if ((length = space_length(e->text, at, end)) > 0) {
            symbol = t->byte_symbols[' '];
        } else {
            length = utf8_length(e->text + at, end - at);
            symbol = symbol_find(&t->symbols, e->text + at, length);
        }
        e->word[num_symbols++] = symbol >= 0 ? symbol : ~(int32_t)at;
    }
    return num_symbols;
}

/* Replaces each run of unknown ids from `first` on by one. */
static void join_unknown(encoder *e, size_t first) {
    size_t kept = first;
    for (size_t i = first; i < e->num_ids; i++) {
        bool repeated = i > first && e->ids[i] == e->t->unknown_id && e->ids[i - 1] == e->t->unknown_id;
        if (!repeated) e->ids[kept++] = e->ids[i];
    }
    if (kept < e->num_ids) e->generation++; /* ids have moved */
    e->num_ids = kept;
}

llamita_status sentencepiece_encode(encoder *e, size_t start, size_t end) {
    llamita_status status = LLAMITA_OK;
    size_t first_id = e->num_ids;
    for (size_t at = start, next; at < end && status == LLAMITA_OK; at = next) {
        next = word_end(e->t, e->text, at, end);
        bool prefixed = e->t->add_space_prefix && at == start && e->t->byte_symbols[' '] >= 0;
        size_t word_first_id = e->num_ids;
        if (!prefixed && encoder_push_cached(e, at, next - at, &status)) continue;
        status = encoder_reserve_word(e, next - at + 1);
        if (status != LLAMITA_OK) break;
        size_t num_symbols = 0;
        if (prefixed) e->word[num_symbols++] = e->t->byte_symbols[' '];
        num_symbols = word_symbols(e, at, next, num_symbols);
        status = encoder_merge_word(e, num_symbols);
        if (status == LLAMITA_OK && !prefixed) encoder_cache_word(e, at, next - at, word_first_id);
    }
    if (status == LLAMITA_OK && e->t->unknown_id >= 0) join_unknown(e, first_id);
    return status;
}
