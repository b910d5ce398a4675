/* llamita.h: the public API of the engine: open a model file, tokenize text, run the network,
 * sample tokens.
 *
 * Conventions
 *   - Every function that can fail returns a llamita_status and takes a llamita_error last (may be
 *     NULL). On failure it writes no output parameter, but for arrays, which may be written in part,
 *     and sets the error to one line:
 *         what failed: where (file, tensor): expected X, found Y; what to do
 *   - Ownership: an object returned by an *_open function belongs to the caller, who releases it
 *     with the matching *_close. Pointers returned by other functions belong to the object they
 *     came from and live as long as it does. Closing NULL is allowed.
 *   - Threads: a llamita_model, a llamita_tokenizer and a llamita_adapter are immutable once open
 *     and may be shared by any number of threads. A session, a sampler, a scheduler or a BPE trainer
 *     may be used by one thread at a time.
 *   - Processes: in the child of fork(), models, tokenizers, adapters and samplers work as before. A
 *     session with several threads can only be closed there: its threads stayed in the parent, and
 *     feeding it tokens is LLAMITA_ERROR_ARGUMENT. A new session works.
 *   - Determinism: logits and hidden states depend only on the model file, the adapters and their
 *     scales, the type of the KV cache, the RoPE parameters and the token ids. They are bit-identical
 *     for any kernels and number of threads, for any split of the ids into calls, after any rewind,
 *     whatever other sequences run in the same session, and with or without speculation.
 *   - The library never prints, never exits, never reads the environment, and treats every file as
 *     hostile.
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

typedef struct llamita_model llamita_model;             /* weights, configuration and tokenizer */
typedef struct llamita_adapter llamita_adapter;         /* a LoRA adapter of one model */
typedef struct llamita_session llamita_session;         /* KV caches, buffers and thread pool */
typedef struct llamita_sampler llamita_sampler;         /* sampling parameters and random state */
typedef struct llamita_scheduler llamita_scheduler;     /* requests that run side by side */
typedef struct llamita_tokenizer llamita_tokenizer;     /* a tokenizer without a model */
typedef struct llamita_bpe_trainer llamita_bpe_trainer; /* word counts to train a BPE vocabulary */
typedef struct llamita_text_index llamita_text_index;   /* finds strings in the text of tokens */

typedef enum {
    LLAMITA_OK = 0,
    LLAMITA_ERROR_IO = 1,       /* the file is missing, cannot be read, or was cut while it was read */
    LLAMITA_ERROR_FORMAT = 2,   /* the file is damaged, or its format is not supported */
    LLAMITA_ERROR_MEMORY = 3,   /* out of memory */
    LLAMITA_ERROR_ARGUMENT = 4, /* a parameter is out of range */
    LLAMITA_ERROR_CONTEXT = 5,  /* more tokens than the context holds */
    LLAMITA_ERROR_NUMERIC = 6,  /* non-finite logits: the weights are damaged */
} llamita_status;

#define LLAMITA_MESSAGE_BYTES 512
typedef struct {
    llamita_status status;
    char message[LLAMITA_MESSAGE_BYTES]; /* NUL-terminated UTF-8, one line, no final newline */
} llamita_error;

/* ------------------------------------------------------------------ library */

/* "0.1.0". Static. */
LLAMITA_API const char *llamita_version(void);

/* The kernels that "auto" selects on this processor: "amx", "avx512", "avxvnni", "avx2", "i8mm"
 * (ARM), "dotprod", "neon", "relaxed" (WebAssembly), "simd128" or "scalar". Static. */
LLAMITA_API const char *llamita_kernels(void);

/* ------------------------------------------------------------------ model */

typedef struct {
    const char *tokenizer_path; /* a llama2.c tokenizer.bin, or a GGUF file to take the tokenizer
                                   from. NULL: the one in the model file. llama2.c files have
                                   none: without a path, only ids work. */
    const char *kernels;        /* "auto", "scalar", "avx2", "avxvnni", "avx512", "amx", "neon",
                                   "dotprod" (NEON with dot products) or "i8mm" (and with products
                                   of 8-bit matrices); in WebAssembly "simd128" or "relaxed",
                                   whichever was compiled. NULL: auto. It is an error to ask for
                                   kernels that this processor cannot run. */
    const char *pre_tokenizer;  /* How a byte-level tokenizer splits text: a value for the key
                                   tokenizer.ggml.pre of a GGUF that lacks it or has a wrong one,
                                   such as "llama-bpe" for Llama 3. NULL: the file's. */
    bool pack_later;            /* For the fastest first token: the first pass reads the weights from
                                   the file, if it is short, and the second packs them. Until then the
                                   file stays open and must not be changed (if it is cut, passes fail
                                   with LLAMITA_ERROR_IO), and no other thread may fork. */
} llamita_model_params;

typedef struct {
    char architecture[32];  /* "llama", "qwen2", "qwen3" or "smollm3" */
    char format[32];        /* "GGUF v3", "llama2.c v0", ... */
    char name[128];         /* general.name, or "" */
    char weight_type[16];   /* the type of most weights: "F32", "Q8_0", ... */
    char kernels[16];       /* the kernels in use */
    int64_t num_parameters; /* tied embeddings are counted once */
    int64_t weight_bytes;   /* of all tensors as stored in the file */
    int64_t decode_bytes;   /* weight bytes read per token (one row of the embedding) */
    int64_t kv_bytes_per_token;
    int32_t hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim;
    int32_t vocab_size, context_tokens;
    float rope_theta, rms_norm_eps;
    bool tied_embeddings, has_tokenizer, add_bos;
    int32_t bos_id, eos_id; /* -1: none */
} llamita_model_info;

/* Reads and validates a model file. The format (GGUF v2/v3, llama2.c v0/v1/v2) is detected by its
 * content. params may be NULL. Once the function has returned, the file may be changed, cut or
 * removed. If it is cut meanwhile, that is LLAMITA_ERROR_IO, or LLAMITA_ERROR_FORMAT where the
 * metadata of a GGUF is cut; only the metadata of another GGUF that the tokenizer comes from, beyond
 * its first 16 MB, is read in place, so cutting that kills a POSIX process. */
LLAMITA_API llamita_status llamita_model_open(const char *path, const llamita_model_params *params,
                                              llamita_model **model, llamita_error *error);
LLAMITA_API void llamita_model_close(llamita_model *model);
LLAMITA_API void llamita_model_get_info(const llamita_model *model, llamita_model_info *info);

/* The Jinja chat template stored in the file, or NULL. Owned by the model. */
LLAMITA_API const char *llamita_model_chat_template(const llamita_model *model);
/* The system prompt that the model was trained with (llamita.system_prompt), or NULL. Owned by the
 * model. llamita_chat_encode does not add it: pass it as the first message. */
LLAMITA_API const char *llamita_model_system_prompt(const llamita_model *model);

/* ------------------------------------------------------------------ adapters */

/* The maximum number of adapters applied to a sequence at once. */
#define LLAMITA_MAX_ADAPTERS 16

typedef struct {
    char name[128]; /* general.name, or "" */
    int64_t num_parameters;
    int32_t num_matrices; /* matrices of the model that it updates */
    int32_t rank;         /* the largest rank */
    float alpha;
} llamita_adapter_info;

/* Reads and validates a GGUF LoRA adapter for this model, as written by llamita export --adapter
 * and read by llama.cpp. Where it is applied (llamita_session_set_adapters), a matrix W acts as W +
 * scale * alpha / rank * B A. The model does not change; it must outlive the adapter. */
LLAMITA_API llamita_status llamita_adapter_open(const llamita_model *model, const char *path, llamita_adapter **adapter,
                                                llamita_error *error);
/* Sequences that use the adapter keep it in memory until they use others or their session
 * closes. */
LLAMITA_API void llamita_adapter_close(llamita_adapter *adapter);
LLAMITA_API void llamita_adapter_get_info(const llamita_adapter *adapter, llamita_adapter_info *info);

/* ------------------------------------------------------------------ text */

typedef enum {
    LLAMITA_ENCODE_PLAIN = 0,
    LLAMITA_ENCODE_BOS = 1,     /* start with the BOS id, regardless of the file's add_bos */
    LLAMITA_ENCODE_SPECIAL = 2, /* recognize control tokens in the text, such as <|im_start|> */
} llamita_encode_flags;

/* Encodes text: any num_bytes bytes, including invalid UTF-8. Writes up to capacity ids and always
 * sets *num_tokens to the number needed; a capacity below that is LLAMITA_ERROR_ARGUMENT.
 * 2 * num_bytes + 2 ids are always enough: they allow for the BOS and for SentencePiece's leading
 * space, which is added again after each special token. O(n log n). */
LLAMITA_API llamita_status llamita_encode(const llamita_model *model, const char *text, size_t num_bytes, int flags,
                                          int32_t *ids, size_t capacity, size_t *num_tokens, llamita_error *error);

/* The bytes that a token adds to the text after previous_id (-1: at the start). Control tokens add
 * none; a SentencePiece piece loses its leading space at the start and right after BOS. The bytes
 * belong to the model and are not NUL-terminated. */
LLAMITA_API llamita_status llamita_token_bytes(const llamita_model *model, int32_t previous_id, int32_t id,
                                               const char **bytes, size_t *num_bytes, llamita_error *error);

/* The token as the vocabulary spells it ("<s>", "Ġthe", "▁the"), for display. Owned by the model.
 * NULL: the id is out of range, or the model has no tokenizer. */
LLAMITA_API const char *llamita_token_text(const llamita_model *model, int32_t id);

/* True if generation stops at this id: EOS, and the file's end-of-turn and end-of-message tokens.
 * In llama2.c files also BOS, which separates the texts of their training data. */
LLAMITA_API bool llamita_token_ends(const llamita_model *model, int32_t id);

/* The number of leading bytes that form complete UTF-8 characters. The rest (at most 3 bytes) is
 * the start of a character that later bytes may complete. Invalid bytes count as complete. */
LLAMITA_API size_t llamita_utf8_complete(const char *bytes, size_t num_bytes);

/* ------------------------------------------------------------------ documents */

/* Reads the tokenizer from the bytes of a GGUF file. The tensors are ignored and may be missing;
 * the bytes are not needed afterwards. name identifies the file in error messages. */
LLAMITA_API llamita_status llamita_tokenizer_open(const void *gguf, size_t num_bytes, const char *name,
                                                  llamita_tokenizer **tokenizer, llamita_error *error);
LLAMITA_API void llamita_tokenizer_close(llamita_tokenizer *tokenizer);

/* Encodes several documents that are concatenated in text; document i ends before byte ends[i].
 * Each gives the ids of llamita_encode without flags, followed by last_id (-1: nothing). Writes up
 * to capacity ids, and to token_ends[num_documents] the number of ids up to each document's end.
 * The limit is 2^30 bytes per call; 2 * bytes + 2 * num_documents ids are always enough. Several
 * times faster than one call per document, because words seen earlier are cached. */
LLAMITA_API llamita_status llamita_tokenizer_encode(const llamita_tokenizer *tokenizer, const char *text,
                                                    const uint64_t *ends, size_t num_documents, int32_t last_id,
                                                    int32_t *ids, size_t capacity, uint64_t *token_ends,
                                                    llamita_error *error);

/* What the tokens of a vocabulary are: words, or words and single Han characters. */
typedef enum { LLAMITA_BPE_WORDS = 0, LLAMITA_BPE_CHARACTERS = 1 } llamita_bpe_unit;

/* Trains a byte-level BPE vocabulary: open, add documents, train, close. */
LLAMITA_API llamita_status llamita_bpe_trainer_open(llamita_bpe_trainer **trainer, llamita_bpe_unit unit,
                                                    llamita_error *error);
LLAMITA_API void llamita_bpe_trainer_close(llamita_bpe_trainer *trainer);

/* Counts the words of documents (passed as to llamita_tokenizer_encode). They are split by the qwen2
 * regular expression, between Han and other characters, and with LLAMITA_BPE_CHARACTERS between all
 * Han characters. Memory: the bytes of the distinct words, plus 40 bytes per distinct word. On
 * failure part of the documents may be counted: close the trainer. */
LLAMITA_API llamita_status llamita_bpe_trainer_add(llamita_bpe_trainer *trainer, const char *text, const uint64_t *ends,
                                                   size_t num_documents, llamita_error *error);

/* Merges pairs until there are num_tokens tokens (including the 256 bytes), no pair occurs
 * min_count times, or capacity merges are written. Tokens are whole characters, or the first bytes
 * of one. Tokens 0 to 255 are the bytes in the order of GPT-2's alphabet; the others follow in the
 * order of their merges. Writes merges[num_merges][4]: the left token, the right token, the token
 * they become (which may be an earlier one), and how often the pair occurred, which never
 * increases (at most INT32_MAX). Memory: about 4 bytes per byte of the distinct words, 12 per word,
 * and 4 for each pair in each of them. */
LLAMITA_API llamita_status llamita_bpe_trainer_train(const llamita_bpe_trainer *trainer, int32_t num_tokens,
                                                     int64_t min_count, int32_t *merges, size_t capacity,
                                                     size_t *num_merges, llamita_error *error);

/* ------------------------------------------------------------------ chats */

/* Part of a text, and how far it can be trusted. The caller owns text and ids. */
typedef struct {
    const char *text;
    size_t num_bytes;
    bool trusted;       /* recognize control tokens in it; else they stay plain text */
    const int32_t *ids; /* [num_ids] the ids it was generated as; NULL: it was not generated */
    size_t num_ids;
} llamita_text_segment;

/* Encodes the concatenation of the segments as llamita_encode does, except that control tokens are
 * recognized in trusted segments only, and that generated ids are kept as long as they match the
 * text (white space at their start may be at the end of the segment before). Writes up to capacity
 * ids and always sets *num_tokens to the number needed; a capacity below that is
 * LLAMITA_ERROR_ARGUMENT. */
LLAMITA_API llamita_status llamita_encode_segments(const llamita_model *model, const llamita_text_segment *segments,
                                                   size_t num_segments, int32_t *ids, size_t capacity,
                                                   size_t *num_tokens, llamita_error *error);

/* One turn of a chat. The caller owns all strings and ids. */
typedef struct {
    const char *role;    /* "system", "user", "assistant" */
    const char *content; /* num_bytes of UTF-8 */
    size_t num_bytes;
    const int32_t *ids; /* [num_ids] the ids it was generated as; NULL: it was not generated */
    size_t num_ids;
} llamita_message;

/* The family of the file's chat template: "chatml", "llama2", "llama3" or "zephyr". NULL: there is
 * no template, or it is none of these and needs a Jinja renderer, or memory ran out. Static. */
LLAMITA_API const char *llamita_chat_family(const llamita_model *model);

/* Renders messages, [system] user (assistant user)*, with the file's chat template, ending with the
 * start of the assistant's answer, and encodes the result. Message contents never become control
 * tokens. ids, capacity and num_tokens: as in llamita_encode_segments. A template that is missing
 * or unknown is LLAMITA_ERROR_ARGUMENT. */
LLAMITA_API llamita_status llamita_chat_encode(const llamita_model *model, const llamita_message *messages,
                                               size_t num_messages, int32_t *ids, size_t capacity, size_t *num_tokens,
                                               llamita_error *error);

/* ------------------------------------------------------------------ session */

/* KV-cache type. */
typedef enum {
    LLAMITA_KV_F16 = 0,
    LLAMITA_KV_F32 = 1,
    LLAMITA_KV_Q8 = 2, /* int8, with one scale per head and position */
} llamita_kv_type;

/* Speculative decoding by prompt lookup: drafts the next tokens from repetitions in the text. It
 * never changes the results. */
typedef enum {
    LLAMITA_SPECULATION_AUTO = 0, /* while it saves time */
    LLAMITA_SPECULATION_OFF = 1,
    LLAMITA_SPECULATION_ALWAYS = 2,
} llamita_speculation;

typedef enum {
    LLAMITA_ROPE_MODEL = 0, /* as the model file says */
    LLAMITA_ROPE_NONE = 1,
    LLAMITA_ROPE_LINEAR = 2,
    LLAMITA_ROPE_NTK = 3, /* freq_base * scale^(S / (S - 2)), for a head size of S */
    LLAMITA_ROPE_YARN = 4,
} llamita_rope_scaling;

/* RoPE beyond the context that the model was trained with, in place of what its file says. Names and
 * meaning are llama.cpp's. Divisors of the angles in the file (Llama 3.1) stay; a model with longrope
 * takes none of these. */
typedef struct {
    llamita_rope_scaling scaling; /* MODEL with a scale: the model's type, or linear if it has none */
    float scale;                  /* 1 to 10000: how many times the context; 0: the model's */
    float freq_base;              /* 1 to 1e30; 0: the model's */
    int32_t yarn_orig_ctx;        /* yarn: the context before scaling; 0: the model's */
} llamita_rope_params;

/* What llamita_generate does when the context is full. */
typedef enum {
    LLAMITA_CONTEXT_STOP = 0,
    LLAMITA_CONTEXT_SHIFT = 1, /* drop the older half of the tokens after those that are kept */
} llamita_context_full;

typedef struct {
    int32_t num_threads;    /* 0: by model size and the processors available to the process */
    int32_t context_tokens; /* per sequence, 0: the model's context. At most that; with rope, at most its
                               scale times the original context, or 2^24 where it names no scale */
    int32_t num_sequences;  /* independent texts, each with its own KV cache; 0: one */
    llamita_kv_type kv_type;
    llamita_speculation speculation;
    llamita_rope_params rope;
    llamita_context_full context_full;
    int32_t num_keep; /* SHIFT: how many tokens of the prompt are kept besides BOS; -1: all */
} llamita_session_params;

/* params may be NULL. The model must outlive the session. */
LLAMITA_API llamita_status llamita_session_open(const llamita_model *model, const llamita_session_params *params,
                                                llamita_session **session, llamita_error *error);
LLAMITA_API void llamita_session_close(llamita_session *session);
LLAMITA_API int32_t llamita_session_num_threads(const llamita_session *session);
LLAMITA_API int32_t llamita_session_context_tokens(const llamita_session *session);

/* The functions named llamita_session_* work on sequence 0. */

/* The number of tokens in the context: the position of the next token. */
LLAMITA_API int32_t llamita_session_position(const llamita_session *session);

/* Forward passes since the session was opened. Decoding more tokens than passes is the gain of
 * speculation. */
LLAMITA_API int64_t llamita_session_num_passes(const llamita_session *session);

/* Removes all tokens from this position on, 0 <= position <= llamita_session_position, and the
 * logits. */
LLAMITA_API llamita_status llamita_session_rewind(llamita_session *session, int32_t position, llamita_error *error);

/* An adapter and its scale: 1 applies it as trained, 0 not at all; any finite number is allowed. */
typedef struct {
    llamita_adapter *adapter;
    float scale;
} llamita_adapter_use;

/* Replaces the adapters: from now on these act together, in this order. num_uses: 0 (the plain
 * model) to LLAMITA_MAX_ADAPTERS. If they differ from those before, the tokens in the context were
 * computed without them and are removed: the position becomes 0. The session holds references: the
 * adapters may be closed while in use. On failure nothing changes. */
LLAMITA_API llamita_status llamita_session_set_adapters(llamita_session *session, const llamita_adapter_use *uses,
                                                        size_t num_uses, llamita_error *error);

/* Appends num_tokens >= 1 ids in as few passes as possible; computes only the logits after the last
 * one. */
LLAMITA_API llamita_status llamita_session_feed(llamita_session *session, const int32_t *ids, size_t num_tokens,
                                                llamita_error *error);

/* As feed, but writes the logits after every id to the caller's logits[num_tokens][vocab_size].
 * After LLAMITA_ERROR_NUMERIC the output is unspecified, here and in score; the session is as it
 * was before the call. */
LLAMITA_API llamita_status llamita_session_feed_logits(llamita_session *session, const int32_t *ids, size_t num_tokens,
                                                       float *logits, llamita_error *error);

/* As feed, but writes nats[i] = -ln p(ids[i + 1] | ids[0..i]) for i < num_tokens - 1, to measure
 * bits per byte. The last id is not appended, so that rows can follow one another. num_tokens >=
 * 2. */
LLAMITA_API llamita_status llamita_session_score(llamita_session *session, const int32_t *ids, size_t num_tokens,
                                                 double *nats, llamita_error *error);

/* The logits [vocab_size] after the last id; NULL before the first feed, after a rewind, after a feed
 * that failed in its computation, and after a decode of sequence 0. Owned by the session and valid
 * until its next call. */
LLAMITA_API const float *llamita_session_logits(const llamita_session *session);

/* The ids [llamita_session_position] that sequence 0 holds. Owned by the session and valid until its
 * next call. */
LLAMITA_API const int32_t *llamita_session_ids(const llamita_session *session);

/* Writes the tokens of sequence 0, with their keys and values, to a file that only its owner may read
 * (on Windows: who may read its folder) and that appears complete or not at all. load replaces the
 * tokens of sequence 0 by those of such a file; feeding goes on with the same results as if they had
 * been fed, and there are no logits before the next feed. A file of other weights, adapters, scales,
 * RoPE angles or another type of KV cache is LLAMITA_ERROR_FORMAT, and so is one with any other bytes
 * than save wrote. On failure nothing changes. The first call reads all weights once, to compute
 * their hash. */
LLAMITA_API llamita_status llamita_session_save(llamita_session *session, const char *path, llamita_error *error);
LLAMITA_API llamita_status llamita_session_load(llamita_session *session, const char *path, llamita_error *error);

/* ------------------------------------------------------------------ several sequences */

/* Tokens to append to one sequence. The caller owns ids. */
typedef struct {
    int32_t sequence;   /* 0 to num_sequences - 1; at most one chunk per sequence in a call */
    const int32_t *ids; /* [num_tokens], num_tokens >= 1 */
    size_t num_tokens;
    size_t num_logits; /* compute logits, or hidden states, for the last num_logits tokens; 0 to num_tokens */
} llamita_chunk;

/* Appends all chunks together, in as few passes as possible, and writes the requested logits in the
 * order of the chunks to the caller's logits[sum of num_logits][vocab_size]. The results of a
 * sequence do not depend on the others. On failure every sequence is as it was before the call. */
LLAMITA_API llamita_status llamita_decode(llamita_session *session, const llamita_chunk *chunks, size_t num_chunks,
                                          float *logits, llamita_error *error);

/* As llamita_decode, but instead of logits it writes hidden states, after the last norm, to the
 * caller's hidden_states[sum of num_logits][hidden_size]. Their mean over a text is its embedding. */
LLAMITA_API llamita_status llamita_decode_hidden_states(llamita_session *session, const llamita_chunk *chunks,
                                                        size_t num_chunks, float *hidden_states, llamita_error *error);

/* The number of tokens in a sequence; -1 if there is no such sequence. */
LLAMITA_API int32_t llamita_sequence_position(const llamita_session *session, int32_t sequence);

/* Removes all tokens of a sequence from this position on. */
LLAMITA_API llamita_status llamita_sequence_rewind(llamita_session *session, int32_t sequence, int32_t position,
                                                   llamita_error *error);

/* Replaces the adapters of one sequence; sequences may use different ones. */
LLAMITA_API llamita_status llamita_sequence_set_adapters(llamita_session *session, int32_t sequence,
                                                         const llamita_adapter_use *uses, size_t num_uses,
                                                         llamita_error *error);

/* Replaces the contents of sequence `to` by the first num_tokens tokens of sequence `from`, without
 * computing them: their keys and values are shared in memory until either sequence overwrites them.
 * Both must use the same adapters. */
LLAMITA_API llamita_status llamita_sequence_share(llamita_session *session, int32_t from, int32_t to,
                                                  int32_t num_tokens, llamita_error *error);

/* ------------------------------------------------------------------ sampler */

/* 0 turns a step off; for top_p and repetition_penalty, 1 does. */
typedef struct {
    float temperature;          /* >= 0; 0: greedy (the first maximum) */
    int32_t top_k;              /* keep the k most probable tokens */
    float top_p;                /* (0, 1]; keep the smallest set with at least this mass; 1: off */
    float min_p;                /* [0, 1]; drop tokens below min_p * the top probability */
    float repetition_penalty;   /* recent logits: divided if > 0, multiplied if < 0; 1: off */
    int32_t repetition_window;  /* how many recent tokens are penalized */
    uint64_t seed;              /* the same seed and logits give the same tokens on every machine */
    float presence_penalty;     /* subtracted from the logits of recent tokens */
    float frequency_penalty;    /* also subtracted, once for each time that they occur in the window */
    float typical_p;            /* [0, 1]; keep this mass: the tokens whose surprise is nearest to the
                                   entropy, equally probable ones together; 1: off */
    float xtc_probability;      /* [0, 1]; how often XTC drops tokens */
    float xtc_threshold;        /* [0, 1]; XTC drops the tokens with at least this probability, except
                                   the least probable of them */
    float mirostat_tau;         /* Mirostat 2.0: the surprise in bits to aim for, instead of top-k,
                                   typical-p, top-p, min-p and XTC */
    float mirostat_eta;         /* [0, 1]; how fast Mirostat adapts */
    float dry_multiplier;       /* DRY: a token that would continue a repetition of n tokens loses
                                   dry_multiplier * dry_base^(n - dry_allowed_length) */
    float dry_base;             /* >= 1 */
    int32_t dry_allowed_length; /* >= 1; the shortest repetition that counts */
    int32_t dry_window;         /* >= 1; how many recent tokens are searched */
    const llamita_model *model; /* DRY: no repetition goes beyond one of its tokens with a line end, ':',
                                   '"' or '*'; NULL: all tokens are alike */
} llamita_sampler_params;

/* Samples in this order: penalties (repetition as in CTRL, arXiv 1909.05858; frequency, presence; DRY),
 * temperature, softmax, top-k, typical-p, top-p, min-p, XTC, draw. Each step is llama.cpp's. */
LLAMITA_API llamita_status llamita_sampler_open(const llamita_sampler_params *params, int32_t vocab_size,
                                                llamita_sampler **sampler, llamita_error *error);
LLAMITA_API void llamita_sampler_close(llamita_sampler *sampler);

/* Begins another text: the penalties forget the tokens before. The random numbers go on. */
LLAMITA_API void llamita_sampler_begin_text(llamita_sampler *sampler);

/* Records a token of the text (of the prompt, and each one picked) for the penalties. */
LLAMITA_API void llamita_sampler_accept(llamita_sampler *sampler, int32_t id);

/* Picks a token from logits[vocab_size], which it does not modify. A logit of -1e30
 * forbids its token: no penalty makes the other tokens less probable. Non-finite logits:
 * LLAMITA_ERROR_NUMERIC. */
LLAMITA_API llamita_status llamita_sampler_pick(llamita_sampler *sampler, const float *logits, int32_t *id,
                                                llamita_error *error);

/* ------------------------------------------------------------------ generating one text */

typedef enum {
    LLAMITA_FINISH_NONE = 0,
    LLAMITA_FINISH_STOP = 1,   /* at an end token */
    LLAMITA_FINISH_LENGTH = 2, /* after max_new_tokens, or the context is full */
    LLAMITA_FINISH_ERROR = 3,  /* only of a scheduler */
} llamita_finish;

/* What a new token adds to a text: whole characters only, so it may be nothing. text belongs to the
 * call and is not NUL-terminated; after its num_bytes come the num_held_bytes of a character that
 * later tokens may complete. If the text ends there, they are dropped. */
typedef struct {
    int32_t id;            /* -1: no token; see below */
    llamita_finish finish; /* of the last piece; an end token adds no text */
    const char *text;
    size_t num_bytes, num_held_bytes;
} llamita_piece;

/* Gets the pieces of a text as they are generated. Returns whether to go on. It must not feed,
 * load, rewind or close the session, share with its sequence 0 or change its adapters, nor use the
 * sampler. state: the pointer passed with the callback.
 * Before each part of a prompt (at most 128 tokens), and of what is computed again when the context is
 * full, it gets a piece without a token. */
typedef bool (*llamita_piece_callback)(void *state, const llamita_piece *piece);

/* Generates a text that begins with ids[num_ids], on sequence 0. The tokens that it already holds
 * of this text are not computed again, those of another are removed; the text does not depend on
 * them. llamita_sampler_begin_text is called, then llamita_sampler_accept with the ids and each new
 * token. Ends at an end token, after max_new_tokens (-1: no limit), when the context is full, or when
 * the callback returns false; all of these are LLAMITA_OK. Afterwards the session holds what was
 * computed: all but the last piece. On failure the pieces so far are valid, and session and sampler
 * can be used again. A model without a tokenizer gives pieces without text.
 *
 * With LLAMITA_CONTEXT_SHIFT a full context does not end the text. Of the tokens after those that are
 * kept, the older half is dropped, as in llama.cpp; the others are computed again at their new
 * positions, so that logits still depend on nothing but the ids that the session holds. The text ends
 * only if there is nothing to drop. */
LLAMITA_API llamita_status llamita_generate(llamita_session *session, llamita_sampler *sampler, const int32_t *ids,
                                            size_t num_ids, int32_t max_new_tokens, llamita_piece_callback callback,
                                            void *state, llamita_error *error);

/* As llamita_generate, after the num_bytes of a prompt (begun with BOS if the model wants it or the
 * prompt is empty) and with a sampler of its own: the same params give the same text again. */
LLAMITA_API llamita_status llamita_generate_text(llamita_session *session, const char *prompt, size_t num_bytes,
                                                 const llamita_sampler_params *params, int32_t max_new_tokens,
                                                 llamita_piece_callback callback, void *state, llamita_error *error);

/* ------------------------------------------------------------------ scheduler */

/* Runs many requests on one session: up to num_parallel at once, the others wait in the order of
 * their arrival. Each step computes one token of every running text, and a piece of the prompts
 * (at most 64 tokens of all together), so a long prompt delays the others little. Prompts that
 * start alike share their tokens in memory. A request gives the same tokens as alone. */

#define LLAMITA_MAX_TOP_LOGPROBS 20

typedef struct {
    int32_t num_threads, context_tokens; /* as in llamita_session_params */
    llamita_kv_type kv_type;
    int32_t num_parallel;     /* requests that run at once, 1 to 512 */
    int32_t num_cached;       /* ended texts that are kept for prompts that start alike, 0 to 512; the one
                                 that was used least recently goes first */
    llamita_rope_params rope; /* as in llamita_session_params */
} llamita_scheduler_params;

/* A number to add to the logit of a token. */
typedef struct {
    int32_t id;
    float bias;
} llamita_logit_bias;

typedef enum {
    LLAMITA_CONSTRAINT_FAILED = 0,   /* the request ends with LLAMITA_FINISH_ERROR */
    LLAMITA_CONSTRAINT_ALLOWS = 1,   /* one of the allowed tokens comes next */
    LLAMITA_CONSTRAINT_COMPLETE = 2, /* the text ends here */
} llamita_constraint_result;

/* Decides which tokens may come next in a text. It is called before each new token is picked, by
 * the thread that steps, and must not call the scheduler. last_id: the token picked before, -1 for the
 * first one. allowed: a bit for each id of the vocabulary, id i in bit i % 32 of allowed[i / 32], all
 * 0 before the call. If it sets none, the request ends with LLAMITA_FINISH_ERROR. */
typedef llamita_constraint_result (*llamita_constraint)(void *state, int32_t last_id, uint32_t *allowed);

/* A text to generate. The caller owns all arrays; submit copies them. */
typedef struct {
    const int32_t *ids; /* [num_tokens] the prompt */
    size_t num_tokens;
    int32_t max_new_tokens; /* 0: only read the prompt */
    llamita_sampler_params sampling;
    float presence_penalty;  /* subtracted from the logit of each token generated so far */
    float frequency_penalty; /* the same, for each time */
    const llamita_logit_bias *biases;
    size_t num_biases;
    int32_t num_top_logprobs;            /* -1: no log-probabilities; else those of each token, and of this many
                                            of the most probable ones, up to LLAMITA_MAX_TOP_LOGPROBS */
    bool score_prompt;                   /* an event for each token of the prompt but the first */
    const llamita_adapter_use *adapters; /* they must stay open until the request ends */
    size_t num_adapters;
    llamita_constraint constraint; /* NULL: every token may come */
    void *constraint_state;        /* for the constraint; must stay valid until the request ends */
} llamita_request;

typedef enum {
    LLAMITA_EVENT_PROMPT = 0, /* a token of the prompt */
    LLAMITA_EVENT_TOKEN = 1,  /* a new token, unless it is an end token */
    LLAMITA_EVENT_END = 2,    /* the last event of a request */
} llamita_event_kind;

typedef struct {
    uint64_t request;
    llamita_event_kind kind;
    llamita_finish finish;     /* of LLAMITA_EVENT_END */
    llamita_status status;     /* of LLAMITA_FINISH_ERROR */
    int32_t id;                /* -1: of LLAMITA_EVENT_END */
    int32_t num_shared_tokens; /* of the prompt: they were in the cache and were not computed again */
    int32_t num_top;
    int32_t top_ids[LLAMITA_MAX_TOP_LOGPROBS];
    /* ln p by the logits alone, before temperature, biases and penalties */
    double logprob, top_logprobs[LLAMITA_MAX_TOP_LOGPROBS];
} llamita_event;

typedef struct {
    int32_t num_running, num_waiting;
    int64_t num_steps, num_prompt_tokens, num_shared_tokens, num_new_tokens; /* since it was opened */
} llamita_scheduler_stats;

/* The model must outlive the scheduler. */
LLAMITA_API llamita_status llamita_scheduler_open(const llamita_model *model, const llamita_scheduler_params *params,
                                                  llamita_scheduler **scheduler, llamita_error *error);
LLAMITA_API void llamita_scheduler_close(llamita_scheduler *scheduler);
LLAMITA_API int32_t llamita_scheduler_context_tokens(const llamita_scheduler *scheduler);
LLAMITA_API void llamita_scheduler_get_stats(const llamita_scheduler *scheduler, llamita_scheduler_stats *stats);

/* Adds a request to the queue and sets its number. A prompt longer than the context is
 * LLAMITA_ERROR_CONTEXT. */
LLAMITA_API llamita_status llamita_scheduler_submit(llamita_scheduler *scheduler, const llamita_request *request,
                                                    uint64_t *number, llamita_error *error);

/* Ends a request: no step computes anything for it any more. False: it has ended before. */
LLAMITA_API bool llamita_scheduler_cancel(llamita_scheduler *scheduler, uint64_t number);

/* Starts waiting requests, and computes one step. A request that fails ends with
 * LLAMITA_FINISH_ERROR; the others go on. An error of the step itself is LLAMITA_ERROR_MEMORY:
 * nothing was computed. */
LLAMITA_API llamita_status llamita_scheduler_step(llamita_scheduler *scheduler, llamita_error *error);

/* Steps until the seconds have passed, at least once, and no further than a step in which a text
 * gets its first token or ends. For models so small that reading the events of each step would cost
 * more than the step. */
LLAMITA_API llamita_status llamita_scheduler_run(llamita_scheduler *scheduler, double seconds, llamita_error *error);

/* Makes llamita_scheduler_run return after its current step, or the next call after its first one.
 * The only function of a scheduler that any thread may call at any time. */
LLAMITA_API void llamita_scheduler_interrupt(llamita_scheduler *scheduler);

/* The events of the last step or run, in order for each request. Owned by the scheduler and valid
 * until the next step or run. */
LLAMITA_API const llamita_event *llamita_scheduler_events(const llamita_scheduler *scheduler, size_t *num_events);

/* ------------------------------------------------------------------ tensor types */

typedef struct {
    const char *name;                    /* "Q4_K" */
    int32_t id;                          /* GGUF's number */
    int32_t block_elements, block_bytes; /* block_elements 1: not quantized */
} llamita_tensor_type_info;

/* Lists the tensor types that the engine reads, by ascending id; false past the last index. */
LLAMITA_API bool llamita_tensor_type(size_t index, llamita_tensor_type_info *info);

/* Dequantizes num_elements elements (whole blocks) of this type to floats. */
LLAMITA_API llamita_status llamita_dequantize(int32_t id, const void *blocks, int64_t num_elements, float *values,
                                              llamita_error *error);

/* Quantizes values[num_rows][row_length] to the blocks of a GGUF tensor type, row after row:
 * "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1" (row_length a multiple of 32), "Q4_K", "Q5_K", "Q6_K" (of
 * 256). All but Q8_0 search for the scales with the least squared error. out_bytes: the size of
 * out. squared_error: the sum of (stored - value)^2; may be NULL. Each row is quantized
 * independently, so several threads may share a matrix by rows. NaN, infinities and values beyond
 * the range of 16-bit scales: LLAMITA_ERROR_NUMERIC. */
LLAMITA_API llamita_status llamita_quantize(const char *type, const float *values, int64_t row_length, int64_t num_rows,
                                            void *out, size_t out_bytes, double *squared_error, llamita_error *error);

/* ------------------------------------------------------------------ text index */

/* Finds any string of bytes in the text of many tokens, wherever it starts and ends in them. The text
 * is that of the tokens one after another. An EOS is bytes 0xFF instead, which are in no UTF-8, up to
 * the next multiple of LLAMITA_INDEX_BLOCK_BYTES: so nothing is found across two documents. The index
 * is an array of the text's blocks of this many bytes, sorted by the text from there on. */
#define LLAMITA_INDEX_BLOCK_BYTES 4
/* For every 32nd block, the token that it starts in. */
#define LLAMITA_INDEX_ENTRY_BLOCKS 32
#define LLAMITA_INDEX_MAX_BLOCKS (UINT32_C(1) << 31)
#define LLAMITA_INDEX_MAX_TOKEN_BYTES 65535
#define LLAMITA_INDEX_MAX_QUERY_BYTES (1 << 24)

/* The caller owns all arrays. */
typedef struct {
    const void *const *ids;     /* [num_parts] the tokens, in one array or several; the last one is EOS */
    const uint64_t *num_tokens; /* [num_parts] */
    size_t num_parts;
    int32_t id_bytes; /* of an id: 2 or 4, unsigned */
    int32_t vocab_size, eos_id;
    const char *token_bytes;    /* the bytes of all ids of the vocabulary, one after another */
    const uint32_t *token_ends; /* [vocab_size] where those of each id end */
} llamita_indexed_text;

/* The number of blocks of the text. LLAMITA_ERROR_FORMAT: an id that is not in the vocabulary, a token
 * of more than LLAMITA_INDEX_MAX_TOKEN_BYTES, no EOS at the end, or more than 2^32 tokens or
 * LLAMITA_INDEX_MAX_BLOCKS. */
LLAMITA_API llamita_status llamita_text_index_measure(const llamita_indexed_text *text, uint64_t *num_blocks,
                                                      llamita_error *error);

/* Writes the index of a text of num_blocks blocks, as llamita_text_index_measure found them: the blocks
 * in order, suffixes[num_blocks + 1] (the last is not part of it); for each of
 * (num_blocks + LLAMITA_INDEX_ENTRY_BLOCKS - 1) / LLAMITA_INDEX_ENTRY_BLOCKS entries the number of a
 * token, and which of its bytes the block starts with. Linear in num_blocks whatever repeats. Memory
 * besides these arrays: 8 bytes a block, or 13 if no two blocks are alike. */
LLAMITA_API llamita_status llamita_text_index_build(const llamita_indexed_text *text, uint64_t num_blocks,
                                                    uint32_t *suffixes, uint32_t *entry_tokens, uint16_t *entry_offsets,
                                                    llamita_error *error);

/* Opens an index. Its arrays and those of the text must stay as they are until it is closed. Whatever
 * they hold, no function reads beyond them; if they do not belong together, it finds other places. */
LLAMITA_API llamita_status llamita_text_index_open(const llamita_indexed_text *text, uint64_t num_blocks,
                                                   const uint32_t *suffixes, const uint32_t *entry_tokens,
                                                   const uint16_t *entry_offsets, llamita_text_index **index,
                                                   llamita_error *error);
LLAMITA_API void llamita_text_index_close(llamita_text_index *index);

/* For every step-th byte of the query, from the first on: the most bytes from there on that the text
 * has at the start of a block. With step 1, a string of the query that is in the text starts at most
 * three bytes before one that these lengths show. Writes lengths[(num_bytes + step - 1) / step].
 * O(num_bytes / step * log blocks), plus what is compared. */
LLAMITA_API llamita_status llamita_text_index_match(const llamita_text_index *index, const char *query,
                                                    size_t num_bytes, size_t step, uint32_t *lengths,
                                                    llamita_error *error);

/* Where a string starts: the number of a token, and which byte of it. */
typedef struct {
    uint64_t token;
    uint32_t offset;
} llamita_text_place;

/* Finds a string of at least LLAMITA_INDEX_BLOCK_BYTES bytes. Writes up to capacity of its places, in
 * no particular order, and counts all. is_complete is false if there may be more: those that do not
 * start a block are looked for until the places are full, or 2^12 do not match. */
LLAMITA_API llamita_status llamita_text_index_find(const llamita_text_index *index, const char *query, size_t num_bytes,
                                                   llamita_text_place *places, size_t capacity, uint64_t *num_found,
                                                   bool *is_complete, llamita_error *error);

/* ------------------------------------------------------------------ keys of GGUF files */

/* A value of tokenizer.ggml.pre that the engine knows. written: the name under which the same
 * tokenizer is written. */
typedef struct {
    const char *name, *written;
    bool ignore_merges; /* a pre-token that is a token is not merged from its bytes */
    bool add_bos;       /* texts begin with BOS where the file does not say */
} llamita_pre_tokenizer_info;

/* Lists the values of tokenizer.ggml.pre that the engine knows; false past the last index. */
LLAMITA_API bool llamita_pre_tokenizer(size_t index, llamita_pre_tokenizer_info *info);

/* A key that the engine knows. kind: "text", "whole", "layers", "real", "number", "flag", "token",
 * "texts", "wholes" or "reals". use: "required", "optional", "fixed" (any value but the default is
 * refused, and named by the feature) or "ignored". low, high: the range of numbers that are read.
 * engine/src/formats/gguf_keys.h explains the columns. */
typedef struct {
    const char *name, *kind, *use;
    double low, high, fallback;
    const char *feature;
} llamita_gguf_key_info;

/* Lists the keys of GGUF files that the engine knows; false past the last index. */
LLAMITA_API bool llamita_gguf_key(size_t index, llamita_gguf_key_info *info);

#ifdef __cplusplus
}
#endif
#endif
