/* tokenizer.h: encodes and decodes text with SentencePiece BPE (with byte fallback) or byte-level
 * BPE. */
#ifndef LLAMITA_TOKENIZER_H
#define LLAMITA_TOKENIZER_H

#include "llamita.h"

typedef struct tokenizer tokenizer;

typedef enum { TOKENIZER_SENTENCEPIECE, TOKENIZER_BYTE_LEVEL } tokenizer_kind;
typedef enum {
    PRE_TOKENIZER_GPT2,
    PRE_TOKENIZER_LLAMA_BPE,
    PRE_TOKENIZER_DBRX,
    PRE_TOKENIZER_QWEN2,
    PRE_TOKENIZER_SMOLLM,
    PRE_TOKENIZER_GPT4O,
    PRE_TOKENIZER_TEKKEN,
    PRE_TOKENIZER_DEFAULT
} pre_tokenizer;

/* GGUF's numbers. */
typedef enum {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6
} token_type;

/* A borrowed string, not NUL-terminated. */
typedef struct {
    const char *bytes;
    size_t num_bytes;
} byte_slice;

/* The contents of a tokenizer file, not validated. tokenizer_create copies everything. */
typedef struct {
    tokenizer_kind kind;
    pre_tokenizer pre_tokenizer; /* byte level only */
    int32_t vocab_size;
    const byte_slice *pieces; /* [vocab_size], as in GGUF: with U+2581, or in GPT-2's alphabet */
    const float *scores;      /* [vocab_size], SentencePiece only; else NULL */
    const int32_t *types;     /* [vocab_size] token_type; NULL: all normal */
    const byte_slice *merges; /* [num_merges] "left right", byte level only */
    size_t num_merges;
    int32_t bos_id, eos_id, unknown_id; /* -1: none */
    const int32_t *end_ids;             /* further ids that end a text (eot, eom) */
    size_t num_end_ids;
    bool add_bos;          /* recommended by the file */
    bool add_space_prefix; /* SentencePiece: text gets a leading space */
} tokenizer_source;

/* Validates the source and builds the tokenizer; path is for messages. The caller frees *out. A
 * tokenizer is immutable and may be shared by threads. */
llamita_status tokenizer_create(const tokenizer_source *source, const char *path, tokenizer **out,
                                llamita_error *error);
void tokenizer_free(tokenizer *t);

/* True if the piece is <0xNN> with two hexadecimal digits; *byte is NN. */
bool byte_piece_value(byte_slice piece, unsigned char *byte);

int32_t tokenizer_vocab_size(const tokenizer *t);
int32_t tokenizer_bos(const tokenizer *t);
int32_t tokenizer_eos(const tokenizer *t);
bool tokenizer_add_bos(const tokenizer *t);
bool tokenizer_ends(const tokenizer *t, int32_t id);
const char *tokenizer_text(const tokenizer *t, int32_t id);

/* See llamita_encode. */
llamita_status tokenizer_encode(const tokenizer *t, const char *text, size_t num_bytes, int flags, int32_t *ids,
                                size_t capacity, size_t *num_tokens, llamita_error *error);
/* See llamita_tokenizer_encode. */
llamita_status tokenizer_encode_documents(const tokenizer *t, const char *text, const uint64_t *ends,
                                          size_t num_documents, int32_t last_id, int32_t *ids, size_t capacity,
                                          uint64_t *token_ends, llamita_error *error);
/* See llamita_token_bytes. */
llamita_status tokenizer_decode(const tokenizer *t, int32_t previous_id, int32_t id, const char **bytes,
                                size_t *num_bytes, llamita_error *error);

#endif
