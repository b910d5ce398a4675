/* llamita.h: the engine's public door: open a model file, turn text into token ids, run the network, pick tokens.
 *
 * Conventions
 *   - Every function that can fail returns a llamita_status and takes a llamita_error last (may be NULL).
 *     On failure no output parameter is written and the error holds one line:
 *         what failed: where (file, tensor): expected X, found Y; what to do
 *   - Ownership: what an *_open function returns belongs to the caller and is given back with the matching *_close.
 *     Pointers returned by other functions belong to the object they came from and live as long as it does.
 *     NULL may be closed.
 *   - A llamita_model is immutable after opening and may be shared by sessions in any number of threads; so are a
 *     llamita_tokenizer and a llamita_adapter.
 *     A session, a sampler: one thread at a time.
 *   - Determinism: logits are a function of (model file, adapters and their scales, type of the KV cache, token ids)
 *     alone: bit-identical for any kernels and number of threads, any way of splitting the ids over calls, after any
 *     rewind, with any sequences beside, with speculation or without.
 *   - The library never prints, never exits, never reads the environment, and treats every file as hostile.
 */
#ifndef LLAMITA_H
#define LLAMITA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define LLAMITA_API __declspec(dllexport)
#else
#define LLAMITA_API __attribute__((visibility("default")))
#endif

typedef struct llamita_model llamita_model;             /* weights, configuration and tokenizer of one file */
typedef struct llamita_adapter llamita_adapter;         /* a low-rank change of one model's matrices */
typedef struct llamita_session llamita_session;         /* one running text: KV cache, scratch memory, thread pool */
typedef struct llamita_sampler llamita_sampler;         /* how the next token is picked, with its random state */
typedef struct llamita_tokenizer llamita_tokenizer;     /* a tokenizer without a model, for many documents */
typedef struct llamita_bpe_trainer llamita_bpe_trainer; /* counts words, and learns a vocabulary from them */

typedef enum {
    LLAMITA_OK = 0,
    LLAMITA_ERROR_IO = 1,       /* the file is missing or cannot be read */
    LLAMITA_ERROR_FORMAT = 2,   /* the file is not what it claims to be, or is of a kind this engine does not read */
    LLAMITA_ERROR_MEMORY = 3,   /* an allocation failed */
    LLAMITA_ERROR_ARGUMENT = 4, /* a parameter is out of its range */
    LLAMITA_ERROR_CONTEXT = 5,  /* more tokens than the context holds */
    LLAMITA_ERROR_NUMERIC = 6,  /* logits are not finite: the weights are damaged */
} llamita_status;

#define LLAMITA_MESSAGE_BYTES 512
typedef struct {
    llamita_status status;
    char message[LLAMITA_MESSAGE_BYTES]; /* NUL-terminated UTF-8, one line, no final newline */
} llamita_error;

/* ------------------------------------------------------------------ library */

/* "0.1.0". Static. */
LLAMITA_API const char *llamita_version(void);

/* The kernels that kernels="auto" selects on this processor: "avxvnni", "avx2", "dotprod" (ARM), "neon" or "scalar". Static. */
LLAMITA_API const char *llamita_kernels(void);

/* ------------------------------------------------------------------ model */

typedef struct {
    const char *tokenizer_path; /* NULL: the tokenizer inside the GGUF. A llama2.c tokenizer.bin, or a GGUF whose
                                   tokenizer is used; required for llama2.c model files (else only ids work). */
    const char *kernels;        /* NULL or "auto", "scalar", "avx2", "avxvnni", "neon", "dotprod" (NEON with dot
                                   product); an unavailable one is an error. */
} llamita_model_params;

typedef struct {
    char architecture[32];  /* "llama" */
    char format[32];        /* "GGUF v3", "llama2.c v0", ... */
    char name[128];         /* general.name, or "" */
    char weight_type[16];   /* the type of most weights: "F32", "Q8_0", ... */
    char kernels[16];       /* the kernels in use */
    int64_t num_parameters; /* tied embeddings counted once */
    int64_t weight_bytes;   /* of all tensors as stored in the file */
    int64_t decode_bytes;   /* weight bytes read to produce one token (embedding lookup: one row) */
    int64_t kv_bytes_per_token;
    int32_t hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim;
    int32_t vocab_size, context_tokens;
    float rope_theta, rms_norm_eps;
    bool tied_embeddings, has_tokenizer, add_bos;
    int32_t bos_id, eos_id; /* -1: none */
} llamita_model_info;

/* Maps and validates the file (GGUF v2/v3, llama2.c v0/v1/v2, found by content). params may be NULL. */
LLAMITA_API llamita_status llamita_model_open(const char *path, const llamita_model_params *params,
                                              llamita_model **model, llamita_error *error);
LLAMITA_API void llamita_model_close(llamita_model *model);
LLAMITA_API void llamita_model_get_info(const llamita_model *model, llamita_model_info *info);

/* The Jinja chat template stored in the file, or NULL. Owned by the model. */
LLAMITA_API const char *llamita_model_chat_template(const llamita_model *model);

/* ------------------------------------------------------------------ adapters */

/* At most so many act on a sequence together. */
#define LLAMITA_MAX_ADAPTERS 16

typedef struct {
    char name[128]; /* general.name, or "" */
    int64_t num_parameters;
    int32_t num_matrices; /* of the model's, that it changes */
    int32_t rank;         /* the largest */
    float alpha;
} llamita_adapter_info;

/* Reads and validates a GGUF adapter (LoRA) made for this model: as llamita export --adapter writes it, and llama.cpp
 * loads it. A matrix W becomes W + scale * alpha / rank * B A where the adapter is used (llamita_session_set_adapters);
 * the model stays as it is, and must outlive the adapter. */
LLAMITA_API llamita_status llamita_adapter_open(const llamita_model *model, const char *path, llamita_adapter **adapter,
                                                llamita_error *error);
/* Sequences that use the adapter keep it in memory until they use others or their session is closed. */
LLAMITA_API void llamita_adapter_close(llamita_adapter *adapter);
LLAMITA_API void llamita_adapter_get_info(const llamita_adapter *adapter, llamita_adapter_info *info);

/* ------------------------------------------------------------------ text */

typedef enum {
    LLAMITA_ENCODE_PLAIN = 0,
    LLAMITA_ENCODE_BOS = 1,     /* put the BOS id first (whatever the file's add_bos says) */
    LLAMITA_ENCODE_SPECIAL = 2, /* recognize control tokens written out in the text, such as <|im_start|> */
} llamita_encode_flags;

/* Text (num_bytes of any bytes, invalid UTF-8 included) to ids. Writes at most capacity ids and always sets
 * *num_tokens to the number needed; fewer than that in capacity is LLAMITA_ERROR_ARGUMENT. 2 * num_bytes + 2 is
 * always enough: the BOS, and SentencePiece's leading space, which comes again after each special token. O(n log n). */
LLAMITA_API llamita_status llamita_encode(const llamita_model *model, const char *text, size_t num_bytes, int flags,
                                          int32_t *ids, size_t capacity, size_t *num_tokens, llamita_error *error);

/* The bytes that the id adds to a text in which previous_id came before it (-1: nothing did): control tokens add
 * none; a SentencePiece piece right after BOS (or at the start) loses its leading space. The pointer is the model's. */
LLAMITA_API llamita_status llamita_token_bytes(const llamita_model *model, int32_t previous_id, int32_t id,
                                               const char **bytes, size_t *num_bytes, llamita_error *error);

/* The token as it is written in the vocabulary ("<s>", "Ġthe", "▁the"), for people. Owned by the model; NULL if out
 * of range or without a tokenizer. */
LLAMITA_API const char *llamita_token_text(const llamita_model *model, int32_t id);

/* True if generation ends at this id (EOS, and the file's end-of-turn and end-of-message tokens). For llama2.c files
 * also BOS, which is how its training data separates texts. */
LLAMITA_API bool llamita_token_ends(const llamita_model *model, int32_t id);

/* How many of the leading bytes are whole UTF-8 characters; the rest (at most 3 bytes) may be completed by what
 * follows. Bytes that can never become valid count as whole. */
LLAMITA_API size_t llamita_utf8_complete(const char *bytes, size_t num_bytes);

/* ------------------------------------------------------------------ documents */

/* The tokenizer of a GGUF file's bytes; nothing else in them is looked at, tensors may be missing, and they need not
 * stay. name: what errors call it. */
LLAMITA_API llamita_status llamita_tokenizer_open(const void *gguf, size_t num_bytes, const char *name,
                                                  llamita_tokenizer **tokenizer, llamita_error *error);
LLAMITA_API void llamita_tokenizer_close(llamita_tokenizer *tokenizer);

/* Documents that stand one after another in text, document i up to byte ends[i], to ids: of each those of llamita_encode
 * without flags, and then last_id (-1: none). Writes at most capacity ids, and to token_ends[num_documents] where each
 * document's end. At most 2^30 bytes a call; 2 * bytes + 2 * num_documents ids are always enough. Several times faster
 * than a call a document: a word of an earlier one is known. */
LLAMITA_API llamita_status llamita_tokenizer_encode(const llamita_tokenizer *tokenizer, const char *text,
                                                    const uint64_t *ends, size_t num_documents, int32_t last_id,
                                                    int32_t *ids, size_t capacity, uint64_t *token_ends,
                                                    llamita_error *error);

/* Learns a vocabulary: add documents, then merge. One thread at a time. */
LLAMITA_API llamita_status llamita_bpe_trainer_open(llamita_bpe_trainer **trainer, llamita_error *error);
LLAMITA_API void llamita_bpe_trainer_close(llamita_bpe_trainer *trainer);

/* Counts the words of documents (given as to llamita_tokenizer_encode), cut as the qwen2 expression cuts them. Memory:
 * the bytes of the different words and 40 more for each. */
LLAMITA_API llamita_status llamita_bpe_trainer_add(llamita_bpe_trainer *trainer, const char *text, const uint64_t *ends,
                                                   size_t num_documents, llamita_error *error);

/* Merges pairs until there are num_tokens tokens, the 256 bytes included, or no pair stands min_count times in the
 * text. Tokens 0 to 255 are the bytes in the order of GPT-2's alphabet, then those that merges make, in their order.
 * Writes merges[num_merges][3]: left, right, what they become (which may be an earlier token). capacity: how many there
 * is room for; at most so many are made. Memory: about 4 bytes for each byte of the different words, and 4 for each pair
 * in each of them. */
LLAMITA_API llamita_status llamita_bpe_trainer_train(const llamita_bpe_trainer *trainer, int32_t num_tokens,
                                                     int64_t min_count, int32_t *merges, size_t capacity,
                                                     size_t *num_merges, llamita_error *error);

/* ------------------------------------------------------------------ chats */

/* A stretch of a text that not all of one hand wrote. */
typedef struct {
    const char *text;
    size_t num_bytes;
    bool trusted;       /* control tokens written out in it are meant; else they stay text */
    const int32_t *ids; /* [num_ids] the text was generated as these ids; NULL: it was not generated */
    size_t num_ids;
} llamita_text_segment;

/* The text that the segments make together, to ids: those of llamita_encode, but that control tokens are recognized in
 * trusted segments only, and that generated ids stay what they were for as long as they say what the text says (white
 * space that they begin with may stand in the segment before). Writes at most capacity ids and always sets *num_tokens to
 * the number needed; fewer than that in capacity is LLAMITA_ERROR_ARGUMENT. */
LLAMITA_API llamita_status llamita_encode_segments(const llamita_model *model, const llamita_text_segment *segments,
                                                   size_t num_segments, int32_t *ids, size_t capacity,
                                                   size_t *num_tokens, llamita_error *error);

typedef struct {
    const char *role;    /* "system", "user", "assistant" */
    const char *content; /* num_bytes of UTF-8 */
    size_t num_bytes;
    const int32_t *ids; /* [num_ids] what the content was generated as; NULL: it was not generated */
    size_t num_ids;
} llamita_message;

/* "chatml", "llama2", "llama3" or "zephyr" if the file's chat template is one of these in a spelling that the engine
 * knows; else NULL: only Jinja can render it, or there is none. Static. */
LLAMITA_API const char *llamita_chat_family(const llamita_model *model);

/* Messages, [system] user (assistant user)*, to the ids of what the file's own chat template makes of them, with the
 * beginning of the assistant's answer at the end. Contents never become control tokens. ids, capacity and num_tokens as
 * in llamita_encode_segments. A template that is missing or not known is LLAMITA_ERROR_ARGUMENT. */
LLAMITA_API llamita_status llamita_chat_encode(const llamita_model *model, const llamita_message *messages,
                                               size_t num_messages, int32_t *ids, size_t capacity, size_t *num_tokens,
                                               llamita_error *error);

/* ------------------------------------------------------------------ session */

/* How keys and values are stored. */
typedef enum {
    LLAMITA_KV_F16 = 0,
    LLAMITA_KV_F32 = 1,
    LLAMITA_KV_Q8 = 2, /* a byte each, with a scale for each position of a head */
} llamita_kv_type;

/* Guessing from repetitions in the text what will be fed next, and computing it along; the results never change. */
typedef enum {
    LLAMITA_SPECULATION_AUTO = 0, /* while it saves time */
    LLAMITA_SPECULATION_OFF = 1,
    LLAMITA_SPECULATION_ALWAYS = 2,
} llamita_speculation;

typedef struct {
    int32_t num_threads;    /* 0: chosen by the size of the model and the machine (cgroup limits respected) */
    int32_t context_tokens; /* of each sequence. 0: the model's; larger than the model's is an error */
    int32_t num_sequences;  /* texts that run side by side, each with its own keys and values. 0: one */
    llamita_kv_type kv_type;
    llamita_speculation speculation;
} llamita_session_params;

LLAMITA_API llamita_status llamita_session_open(const llamita_model *model, const llamita_session_params *params,
                                                llamita_session **session, llamita_error *error);
LLAMITA_API void llamita_session_close(llamita_session *session);
LLAMITA_API int32_t llamita_session_num_threads(const llamita_session *session);
LLAMITA_API int32_t llamita_session_context_tokens(const llamita_session *session);

/* The functions named llamita_session_* work on sequence 0. */

/* Number of tokens held: the position that the next one takes. */
LLAMITA_API int32_t llamita_session_position(const llamita_session *session);

/* How often the weights were read since the session was opened: more tokens than that in their time is speculation's
 * gain. */
LLAMITA_API int64_t llamita_session_num_passes(const llamita_session *session);

/* Forgets all tokens from this position on; 0 <= position <= llamita_session_position. The logits are forgotten too. */
LLAMITA_API llamita_status llamita_session_rewind(llamita_session *session, int32_t position, llamita_error *error);

/* An adapter, and how much of it: 1 as it was trained, 0 not at all; any finite number. */
typedef struct {
    llamita_adapter *adapter;
    float scale;
} llamita_adapter_use;

/* From here on these adapters act together, in this order, instead of those before; num_uses 0 to LLAMITA_MAX_ADAPTERS,
 * 0: the model alone. Unless they are the same as before, what the sequence holds was computed without them and is
 * forgotten: its position becomes 0. The session holds the adapters by itself: they may be closed while in use. On
 * failure nothing changes. */
LLAMITA_API llamita_status llamita_session_set_adapters(llamita_session *session, const llamita_adapter_use *uses,
                                                        size_t num_uses, llamita_error *error);

/* Appends num_tokens >= 1 ids in as few passes as possible and computes the logits after the last one only. */
LLAMITA_API llamita_status llamita_session_feed(llamita_session *session, const int32_t *ids, size_t num_tokens,
                                                llamita_error *error);

/* As feed, but writes the logits after every id: logits[num_tokens][vocab_size], the caller's. After
 * LLAMITA_ERROR_NUMERIC its contents are unspecified, here and in score; the session is as it was before the call. */
LLAMITA_API llamita_status llamita_session_feed_logits(llamita_session *session, const int32_t *ids, size_t num_tokens,
                                                       float *logits, llamita_error *error);

/* As feed, but writes nats[i] = -ln p(ids[i + 1] | ids[0..i]) for i < num_tokens - 1; for bits per byte. The last id is
 * not appended, so that rows can follow one another. num_tokens >= 2. */
LLAMITA_API llamita_status llamita_session_score(llamita_session *session, const int32_t *ids, size_t num_tokens,
                                                 double *nats, llamita_error *error);

/* The logits after the last fed id, [vocab_size]; NULL before the first feed and after a rewind. The session's, and valid
 * until its next call. */
LLAMITA_API const float *llamita_session_logits(const llamita_session *session);

/* ------------------------------------------------------------------ several sequences */

/* Tokens to append to one sequence. */
typedef struct {
    int32_t sequence;   /* 0 to num_sequences - 1; each once at most in a call */
    const int32_t *ids; /* num_tokens >= 1 of them */
    size_t num_tokens;
    size_t num_logits; /* logits are wanted after the last num_logits of them; 0 to num_tokens */
} llamita_chunk;

/* Appends all chunks, together in as few passes as possible, and writes the logits asked for in the order of the chunks:
 * logits [sum of num_logits][vocab_size], the caller's. What a sequence gives does not depend on what runs beside it. On
 * failure every sequence is as it was before the call. */
LLAMITA_API llamita_status llamita_decode(llamita_session *session, const llamita_chunk *chunks, size_t num_chunks,
                                          float *logits, llamita_error *error);

/* Tokens held by a sequence; -1 if there is none of that number. */
LLAMITA_API int32_t llamita_sequence_position(const llamita_session *session, int32_t sequence);

/* Forgets all tokens of a sequence from this position on. */
LLAMITA_API llamita_status llamita_sequence_rewind(llamita_session *session, int32_t sequence, int32_t position,
                                                   llamita_error *error);

/* The adapters of one sequence; sequences with different ones run side by side. */
LLAMITA_API llamita_status llamita_sequence_set_adapters(llamita_session *session, int32_t sequence,
                                                         const llamita_adapter_use *uses, size_t num_uses,
                                                         llamita_error *error);

/* Sequence `to` becomes the first num_tokens of sequence `from` without computing them, and shares their keys and values
 * in memory for as long as neither writes there. What `to` held is forgotten. Both must have the same adapters. */
LLAMITA_API llamita_status llamita_sequence_share(llamita_session *session, int32_t from, int32_t to,
                                                  int32_t num_tokens, llamita_error *error);

/* ------------------------------------------------------------------ sampler */

typedef struct {
    float temperature;         /* 0: greedy (first maximum). > 0 */
    int32_t top_k;             /* keep the k most probable; 0: off */
    float top_p;               /* keep the smallest set with at least this mass; 1: off. (0, 1] */
    float min_p;               /* keep those with at least this share of the best one's probability; 0: off. [0, 1] */
    float repetition_penalty;  /* recent tokens' logits: divided if > 0, multiplied if < 0 (CTRL, 1909.05858); 1: off */
    int32_t repetition_window; /* how many recent tokens count, 0: off */
    uint64_t seed;             /* the same seed and the same logits give the same tokens on every machine */
} llamita_sampler_params;

/* Order: penalty, temperature, softmax, top-k, top-p, min-p, draw. */
LLAMITA_API llamita_status llamita_sampler_open(const llamita_sampler_params *params, int32_t vocab_size,
                                                llamita_sampler **sampler, llamita_error *error);
LLAMITA_API void llamita_sampler_close(llamita_sampler *sampler);

/* Tells the sampler that this token is part of the text (prompt tokens, and each one picked), for the penalty. */
LLAMITA_API void llamita_sampler_accept(llamita_sampler *sampler, int32_t id);

/* Picks from logits[vocab_size], which it leaves alone. Non-finite logits: LLAMITA_ERROR_NUMERIC. */
LLAMITA_API llamita_status llamita_sampler_pick(llamita_sampler *sampler, const float *logits, int32_t *id,
                                                llamita_error *error);

/* ------------------------------------------------------------------ tensor types */

typedef struct {
    const char *name;                    /* "Q4_K" */
    int32_t id;                          /* GGUF's */
    int32_t block_elements, block_bytes; /* 1 element: not quantized */
} llamita_tensor_type_info;

/* The tensor types that the engine reads, by ascending id: false if index is past the last. */
LLAMITA_API bool llamita_tensor_type(size_t index, llamita_tensor_type_info *info);

/* Converts num_elements (whole blocks) of this type to floats. */
LLAMITA_API llamita_status llamita_dequantize(int32_t id, const void *blocks, int64_t num_elements, float *values,
                                              llamita_error *error);

/* Rows of floats [num_rows][row_length] to the blocks of a GGUF tensor type, row after row: "Q8_0", "Q4_0", "Q4_1",
 * "Q5_0", "Q5_1" (row_length a multiple of 32), "Q4_K", "Q5_K", "Q6_K" (of 256). All but Q8_0 search for the scales
 * with the least squared error. out_bytes: the room at out. squared_error: the sum of (stored - value)^2; may be NULL.
 * The bytes depend on each row alone: a matrix may be cut into parts for several threads. NaN, infinities and what
 * 16-bit scales cannot reach: LLAMITA_ERROR_NUMERIC. */
LLAMITA_API llamita_status llamita_quantize(const char *type, const float *values, int64_t row_length, int64_t num_rows,
                                            void *out, size_t out_bytes, double *squared_error, llamita_error *error);

#ifdef __cplusplus
}
#endif
#endif
