/* tokenizer_internal.h: what the tokenizer's own files share: the tokenizer in memory, and one call of encode. */
#ifndef LLAMITA_TOKENIZER_INTERNAL_H
#define LLAMITA_TOKENIZER_INTERNAL_H

#include "runtime/error.h"
#include "tokenizer/bpe_merge.h"
#include "tokenizer/symbol_table.h"
#include "tokenizer/tokenizer.h"

#define WORD_SEPARATOR "\xE2\x96\x81" /* U+2581, SentencePiece's space */
#define WORD_SEPARATOR_BYTES 3
#define MAX_PIECE_BYTES 1024 /* longer pieces are refused; the longest in use have a few hundred */

/* Strings to look for in a text, sorted by their bytes. */
typedef struct {
    int32_t *ids; /* [num_ids] */
    int32_t num_ids;
    int32_t first_byte[257]; /* ids[first_byte[b]] .. ids[first_byte[b + 1]] begin with byte b */
} special_tokens;

struct tokenizer {
    tokenizer_kind kind;
    pre_tokenizer pre_tokenizer;
    int32_t vocab_size;
    int32_t bos_id, eos_id, unknown_id; /* -1: none */
    bool add_bos, add_space_prefix;
    bool words_end_at_spaces; /* SentencePiece: no piece has a space after another character */
    uint8_t *types;           /* [vocab_size] token_type */
    bool *ends;               /* [vocab_size] */
    char *texts;              /* the pieces as the file writes them, each with a final NUL */
    uint32_t *text_starts;    /* [vocab_size] into texts */

    /* The first vocab_size symbols are the ids, as the bytes that they stand for in a text; findable are those that
     * plain text can become. Further symbols are strings that merges start from or pass through. */
    symbol_table symbols;
    bpe_rules merges;
    uint8_t *take_apart;       /* [symbols.num_symbols] SentencePiece's "unused" pieces; NULL if there are none */
    int32_t byte_symbols[256]; /* the symbol of each one-byte string, SYMBOL_NONE: no merge begins with it */
    int32_t byte_ids[256];     /* the id that stands for a byte which nothing else covers, -1: none */
    char byte_values[256];     /* byte_values[b] == b: what byte tokens decode to */

    special_tokens user; /* user-defined tokens: always matched */
    special_tokens all;  /* and the control and unknown tokens: with LLAMITA_ENCODE_SPECIAL */
};

/* ------------------------------------------------------------------ building */

#define PIECE_BYTES_SHOWN 48

/* "cannot read the tokenizer: PATH: token ID 'piece': " + the rest, always LLAMITA_ERROR_FORMAT. */
llamita_status token_error(llamita_error *error, const tokenizer_source *source, const char *path, int32_t id,
                           const char *rest);
/* Starts symbols and merges with room for the pieces. any_halves: as bpe_rules_create. */
llamita_status tables_create(tokenizer *t, bool any_halves, const char *path, llamita_error *error);
/* What a symbol_result or bpe_result says that is neither added nor exists: no memory, or crowded. */
llamita_status table_error(llamita_error *error, const char *path, bool no_memory);

/* Each fills symbols[0 .. vocab_size) and byte_symbols, byte_ids, merges, take_apart from the source and t->types. */
llamita_status sentencepiece_build(tokenizer *t, const tokenizer_source *source, const char *path,
                                   llamita_error *error);
llamita_status byte_level_build(tokenizer *t, const tokenizer_source *source, const char *path, llamita_error *error);

/* True if the piece is <0xNN> with two hexadecimal digits; *byte is NN. */
bool byte_piece_value(byte_slice piece, unsigned char *byte);

/* special_tokens.c: collects the tokens of these types (a mask of 1 << token_type); needs the symbols. */
llamita_status special_tokens_build(special_tokens *special, const tokenizer *t, unsigned type_mask,
                                    const tokenizer_source *source, const char *path, llamita_error *error);
/* The longest special token that text[num_bytes] begins with, or -1. */
int32_t special_tokens_match(const special_tokens *special, const tokenizer *t, const char *text, size_t num_bytes,
                             size_t *matched_bytes);

/* ------------------------------------------------------------------ encoding */

/* Where an earlier word of the text lies, and the ids that it became. */
typedef struct {
    uint32_t text_start, num_bytes; /* num_bytes 0: free */
    uint32_t ids_start, num_ids;
} known_word;

typedef struct {
    const tokenizer *t;
    const char *text; /* the whole text */
    size_t text_bytes;
    size_t fragment_end; /* of the stretch between special tokens at work */
    int32_t *ids;        /* what it became so far */
    size_t num_ids, ids_capacity;
    int32_t *word; /* symbols of the word at work */
    size_t word_capacity;
    bpe_scratch scratch;
    known_word *known; /* [known_mask + 1]; NULL: the text is too short to be worth it */
    size_t known_mask;
    llamita_error *error;
} encoder;

void encoder_init(encoder *e, const tokenizer *t, const char *text, size_t num_bytes, llamita_error *error);
void encoder_free(encoder *e);
llamita_status encoder_push(encoder *e, int32_t id);
/* Room for num_symbols in e->word. */
llamita_status encoder_reserve_word(encoder *e, size_t num_symbols);
/* Merges e->word and pushes what it becomes. A negative symbol ~i is the character text[i] that no piece contains. */
llamita_status encoder_merge_word(encoder *e, size_t num_symbols);
/* Pushes what text[start .. start + num_bytes) became before, if it is known. */
bool encoder_push_known(encoder *e, size_t start, size_t num_bytes, llamita_status *status);
/* Remembers that text[start ..] became ids[ids_start .. num_ids). */
void encoder_know(encoder *e, size_t start, size_t num_bytes, size_t ids_start);

/* Encodes text[start .. end), in which there are no special tokens. */
llamita_status sentencepiece_encode(encoder *e, size_t start, size_t end);
llamita_status byte_level_encode(encoder *e, size_t start, size_t end);

#endif
