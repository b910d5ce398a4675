/* tokenizer.c: the tables and properties of a tokenizer, and decoding ids to bytes. */
#include "tokenizer/tokenizer_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNKNOWN_TEXT " \xE2\x81\x87 " /* SentencePiece's text for the unknown token */

/* ------------------------------------------------------------------ errors */

llamita_status token_error(llamita_error *error, const tokenizer_source *source, const char *path, int32_t id,
                           const char *rest) {
    byte_slice piece = source->pieces[id];
    int shown = (int)(piece.num_bytes < PIECE_BYTES_SHOWN ? piece.num_bytes : PIECE_BYTES_SHOWN);
    return error_set(error, LLAMITA_ERROR_FORMAT, "cannot read the tokenizer: %s: token %d '%.*s': %s", path, (int)id,
                     shown, shown > 0 ? piece.bytes : "", rest);
}

llamita_status table_error(llamita_error *error, const char *path, bool no_memory) {
    if (no_memory) return error_set(error, LLAMITA_ERROR_MEMORY, "cannot read the tokenizer: %s: out of memory", path);
    return error_set(
        error, LLAMITA_ERROR_FORMAT,
        "cannot read the tokenizer: %s: expected a trained vocabulary, found thousands of pieces crafted to collide in "
        "a hash table; do not trust this file",
        path);
}

llamita_status tables_create(tokenizer *t, bool any_halves, const char *path, llamita_error *error) {
    const size_t num_bytes = t->text_starts[t->vocab_size - 1] + MAX_PIECE_BYTES;
    const size_t num_symbols = (size_t)t->vocab_size + 256; /* pieces and single bytes */
    const symbol_result added = symbol_table_create(&t->symbols, num_symbols, num_bytes);
    if (added != SYMBOL_ADDED) return table_error(error, path, added == SYMBOL_NO_MEMORY);
    const bpe_result rules = bpe_rules_create(&t->merges, &t->symbols, t->vocab_size, any_halves);
    return rules == BPE_ADDED ? LLAMITA_OK : table_error(error, path, true);
}

bool byte_piece_value(byte_slice piece, unsigned char *byte) {
    if (piece.num_bytes != 6 || memcmp(piece.bytes, "<0x", 3) != 0 || piece.bytes[5] != '>') return false;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        char c = piece.bytes[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                           : -1;
        if (digit < 0) return false;
        value = value * 16 + digit;
    }
    *byte = (unsigned char)value;
    return true;
}

void tokenizer_free(tokenizer *t) {
    if (!t) return;
    symbol_table_free(&t->symbols);
    bpe_rules_free(&t->merges);
    free(t->user.ids);
    free(t->all.ids);
    free(t->resegment);
    free(t->text_starts);
    free(t->texts);
    free(t->types);
    free(t->ends);
    free(t);
}

/* ------------------------------------------------------------------ properties */

int32_t tokenizer_vocab_size(const tokenizer *t) { return t->vocab_size; }
int32_t tokenizer_bos(const tokenizer *t) { return t->bos_id; }
int32_t tokenizer_eos(const tokenizer *t) { return t->eos_id; }
bool tokenizer_add_bos(const tokenizer *t) { return t->add_bos; }

bool tokenizer_ends(const tokenizer *t, int32_t id) { return id >= 0 && id < t->vocab_size && t->ends[id]; }

const char *tokenizer_text(const tokenizer *t, int32_t id) {
    return id >= 0 && id < t->vocab_size ? t->texts + t->text_starts[id] : NULL;
}

/* ------------------------------------------------------------------ decoding */

/* True at the start of the text, where add_space_prefix added a space. A BOS that is not a control
 * token (no valid file has one) may occur anywhere and does not count. */
static bool follows_space_prefix(const tokenizer *t, int32_t previous_id) {
    if (t->kind != TOKENIZER_SENTENCEPIECE || !t->add_space_prefix) return false;
    return previous_id < 0 || (previous_id == t->bos_id && t->types[t->bos_id] == TOKEN_CONTROL);
}

llamita_status tokenizer_decode(const tokenizer *t, int32_t previous_id, int32_t id, const char **bytes,
                                size_t *num_bytes, llamita_error *error) {
    if (id < 0 || id >= t->vocab_size) {
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot decode a token: expected an id from 0 to %d, found %d",
                         (int)t->vocab_size - 1, (int)id);
    }
    size_t length;
    const char *start = symbol_bytes(&t->symbols, id, &length);
    unsigned char byte = 0;
    switch (t->types[id]) {
    case TOKEN_CONTROL: length = 0; break;
    case TOKEN_UNKNOWN:
        start = UNKNOWN_TEXT;
        length = sizeof UNKNOWN_TEXT - 1;
        break;
    case TOKEN_BYTE:
        byte_piece_value((byte_slice){start, length}, &byte);
        start = &t->byte_values[byte];
        length = 1;
        break;
    case TOKEN_USER: break;
    default:
        if (length > 0 && start[0] == ' ' && follows_space_prefix(t, previous_id)) {
            start++;
            length--;
        }
        break;
    }
    *bytes = start;
    *num_bytes = length;
    return LLAMITA_OK;
}
