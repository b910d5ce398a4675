/* tokenizer_internal.h: shared by the files of the tokenizer: its tables, and the state of an
 * encode call. */
#ifndef LLAMITA_TOKENIZER_INTERNAL_H
#define LLAMITA_TOKENIZER_INTERNAL_H

#include "runtime/error.h"
#include "tokenizer/bpe_merge.h"
#include "tokenizer/symbol_table.h"
#include "tokenizer/tokenizer.h"

#define WORD_SEPARATOR "\xE2\x96\x81" /* U+2581, SentencePiece's space */
#define WORD_SEPARATOR_BYTES 3
#define MAX_PIECE_BYTES 1024 /* the longest in use have a few hundred */

/* Tokens to search for in a text, sorted by their bytes. Owns ids. */
typedef struct {
    int32_t *ids; /* [num_ids] */
    int32_t num_ids;
    int32_t first_byte[257]; /* ids[first_byte[b]] up to ids[first_byte[b + 1]] start with byte b */
} special_tokens;

/* Owns everything it points to. */
struct tokenizer {
    tokenizer_kind kind;
    pre_tokenizer pre_tokenizer;
    int32_t vocab_size;
    int32_t bos_id, eos_id, unknown_id; /* -1: none */
    bool add_bos, add_space_prefix;
    bool words_end_at_spaces; /* SentencePiece: no piece has a space after another character */
    bool ideographs_apart;    /* byte level: no merge joins U+4000 to U+9FFF to another character */
    uint8_t *types;           /* [vocab_size] token_type */
    bool *ends;               /* [vocab_size] generation stops at this id */
    char *texts;              /* the pieces as the file spells them, NUL-terminated */
    uint32_t *text_starts;    /* [vocab_size] offsets in texts */

    /* The first vocab_size symbols are the ids, as the bytes they decode to; findable if plain text
     * can become them. Further symbols are strings that merges start from or go through. */
    symbol_table symbols;
    bpe_rules merges;
    uint8_t *resegment;        /* [symbols.num_symbols] SentencePiece's unused pieces; NULL: none */
    int32_t byte_symbols[256]; /* the symbol of each one-byte string; SYMBOL_NONE: in no merge */
    int32_t byte_ids[256];     /* the id for a byte that no other token covers; -1: none */
    char byte_values[256];     /* byte_values[b] == b: the text of byte tokens */

    special_tokens user; /* user-defined tokens: always matched */
    special_tokens all;  /* also control and unknown tokens: for LLAMITA_ENCODE_SPECIAL */
};

/* ------------------------------------------------------------------ building */

#define PIECE_BYTES_SHOWN 48

/* "cannot read the tokenizer: PATH: token ID 'piece': REST"; returns LLAMITA_ERROR_FORMAT. */
llamita_status token_error(llamita_error *error, const tokenizer_source *source, const char *path, int32_t id,
                           const char *rest);
/* Creates symbols and merges with room for the pieces. any_halves: see bpe_rules_create. */
llamita_status tables_create(tokenizer *t, bool any_halves, const char *path, llamita_error *error);
/* The error for a symbol_result or bpe_result that is neither ADDED nor EXISTS. no_memory false:
 * CROWDED. */
llamita_status table_error(llamita_error *error, const char *path, bool no_memory);

/* Fill symbols[0 .. vocab_size), byte_symbols, byte_ids, merges and resegment from the source and
 * t->types. */
llamita_status sentencepiece_build(tokenizer *t, const tokenizer_source *source, const char *path,
                                   llamita_error *error);
llamita_status byte_level_build(tokenizer *t, const tokenizer_source *source, const char *path, llamita_error *error);

/* Collects the tokens of these types (a mask of 1 << token_type). Call after the symbols are
 * built. */
llamita_status special_tokens_build(special_tokens *special, const tokenizer *t, unsigned type_mask,
                                    const tokenizer_source *source, const char *path, llamita_error *error);
/* The longest special token at the start of text[num_bytes], or -1. */
int32_t special_tokens_match(const special_tokens *special, const tokenizer *t, const char *text, size_t num_bytes,
                             size_t *matched_bytes);

/* ------------------------------------------------------------------ encoding */

/* An earlier word of the text and its ids. */
typedef struct {
    uint32_t text_start, num_bytes; /* num_bytes 0: free */
    uint32_t ids_start, num_ids;
    uint32_t generation;
} cached_word;

/* The state of one encode call. Borrows the tokenizer and the text, owns the rest. */
typedef struct {
    const tokenizer *t;
    const char *text; /* the whole text */
    size_t text_bytes;
    size_t fragment_end; /* end of the current fragment between special tokens */
    int32_t *ids;        /* the output so far */
    size_t num_ids, ids_capacity;
    int32_t *word; /* symbols of the current word */
    size_t word_capacity;
    bpe_scratch scratch;
    cached_word *cache; /* [cache_mask + 1] hash table without probing; NULL: no cache */
    size_t cache_mask;
    uint32_t generation; /* words of earlier ones are forgotten */
    llamita_error *error;
} encoder;

void encoder_init(encoder *e, const tokenizer *t, const char *text, size_t num_bytes, llamita_error *error);
void encoder_free(encoder *e);
llamita_status encoder_push(encoder *e, int32_t id);
/* Room for num_symbols in e->word. */
llamita_status encoder_reserve_word(encoder *e, size_t num_symbols);
/* Merges e->word and pushes the resulting ids. A negative symbol ~i is the character at text[i],
 * which is in no piece. */
llamita_status encoder_merge_word(encoder *e, size_t num_symbols);
/* Pushes the cached ids of text[start .. start + num_bytes). False: not in the cache. */
bool encoder_push_cached(encoder *e, size_t start, size_t num_bytes, llamita_status *status);
/* Caches ids[ids_start .. num_ids) as the ids of text[start .. start + num_bytes). */
void encoder_cache_word(encoder *e, size_t start, size_t num_bytes, size_t ids_start);

/* Encode text[start .. end), which has no special tokens. */
llamita_status sentencepiece_encode(encoder *e, size_t start, size_t end);
llamita_status byte_level_encode(encoder *e, size_t start, size_t end);

#endif
