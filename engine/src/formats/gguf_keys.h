/* gguf_keys.h: the keys of a GGUF that describe a model and its tokenizer: which the engine and the
 * importer read, with their ranges and defaults, and which they refuse. */
#ifndef LLAMITA_GGUF_KEYS_H
#define LLAMITA_GGUF_KEYS_H

#include "formats/gguf.h"

/* clang-format off */
/* Every key, described once for the engine and, through llamita_gguf_key, for the importer
 * (src/llamita/formats/gguf_keys.py). docs/formats.md repeats the table, and a test compares them.
 *
 * X(identifier, key, kind, use, low, high, default, feature)
 *
 * key: "llama." stands for the file's architecture. In a file of qwen2 the keys begin with "qwen2.",
 * and those of "llama." are not read.
 *
 * kind: TEXT; WHOLE: any integer type; LAYERS: the same, or an array with the same number for every
 * layer; REAL: f32 or f64; NUMBER: any number, or a boolean as 0 or 1; FLAG: boolean; TOKEN: an id,
 * -1 and 2^32 - 1 for none; TEXTS, WHOLES, REALS: arrays.
 *
 * use: REQUIRED and OPTIONAL keys are read; low and high bound their numbers, and the default is
 * that of a missing one (0 where the reader computes it). FIXED keys change the meaning in a way
 * that neither program implements: any value but the default is refused, and named by the feature.
 * IGNORED keys change nothing. Other keys of "llama." are ignored too, with a note. */
#define GGUF_KEYS(X)                                                                               \
    X(ARCHITECTURE, "general.architecture", TEXT, REQUIRED, 0, 0, 0, "")                           \
    X(TYPE, "general.type", TEXT, OPTIONAL, 0, 0, 0, "")                                           \
    X(NAME, "general.name", TEXT, OPTIONAL, 0, 0, 0, "")                                           \
    X(ALIGNMENT, "general.alignment", WHOLE, OPTIONAL, 8, 1LL << 31, 32, "")                       \
    X(QUANTIZATION_VERSION, "general.quantization_version", WHOLE, OPTIONAL, 0, INT32_MAX, 2, "")  \
    X(FILE_TYPE, "general.file_type", WHOLE, IGNORED, 0, 0, 0, "")                                 \
    X(SPLIT_COUNT, "split.count", WHOLE, OPTIONAL, 0, GGUF_MAX_PIECES, 0, "")                      \
    X(SPLIT_NO, "split.no", WHOLE, OPTIONAL, 0, GGUF_MAX_PIECES - 1, 0, "")                        \
    X(SPLIT_TENSORS, "split.tensors.count", WHOLE, OPTIONAL, 0, INT32_MAX, 0, "")                  \
    X(CONTEXT_LENGTH, "llama.context_length", WHOLE, REQUIRED, 1, INT32_MAX, 0, "")                \
    X(EMBEDDING_LENGTH, "llama.embedding_length", WHOLE, REQUIRED, 1, INT32_MAX, 0, "")            \
    X(BLOCK_COUNT, "llama.block_count", WHOLE, REQUIRED, 1, INT32_MAX, 0, "")                      \
    X(FEED_FORWARD_LENGTH, "llama.feed_forward_length", LAYERS, REQUIRED, 1, INT32_MAX, 0, "")     \
    X(HEAD_COUNT, "llama.attention.head_count", LAYERS, REQUIRED, 1, INT32_MAX, 0, "")             \
    X(HEAD_COUNT_KV, "llama.attention.head_count_kv", LAYERS, OPTIONAL, 1, INT32_MAX, 0, "")       \
    X(KEY_LENGTH, "llama.attention.key_length", WHOLE, OPTIONAL, 1, INT32_MAX, 0, "")              \
    X(VALUE_LENGTH, "llama.attention.value_length", WHOLE, OPTIONAL, 1, INT32_MAX, 0,              \
      "values of another size")                                                                    \
    X(DIMENSION_COUNT, "llama.rope.dimension_count", WHOLE, OPTIONAL, 1, INT32_MAX, 0,             \
      "partial rotation")                                                                          \
    X(SLIDING_WINDOW, "llama.attention.sliding_window", WHOLE, OPTIONAL, 0, INT32_MAX, 0,          \
      "sliding windows shorter than the context")                                                  \
    X(EPSILON, "llama.attention.layer_norm_rms_epsilon", REAL, REQUIRED, 1e-30, 0.5, 0, "")        \
    X(FREQ_BASE, "llama.rope.freq_base", REAL, OPTIONAL, 1, 1e30, 10000, "")                       \
    X(SCALING_TYPE, "llama.rope.scaling.type", TEXT, OPTIONAL, 0, 0, 0, "")                        \
    X(SCALING_FACTOR, "llama.rope.scaling.factor", REAL, OPTIONAL, 0, 1e30, 0, "")                 \
    X(SCALE_LINEAR, "llama.rope.scale_linear", REAL, OPTIONAL, 0, 1e30, 0, "")                     \
    X(ORIGINAL_CONTEXT, "llama.rope.scaling.original_context_length", WHOLE, OPTIONAL, 1,          \
      INT32_MAX, 0, "")                                                                            \
    X(ATTN_FACTOR, "llama.rope.scaling.attn_factor", REAL, OPTIONAL, 1e-6, 1e6, 1, "")             \
    X(YARN_BETA_FAST, "llama.rope.scaling.yarn_beta_fast", REAL, OPTIONAL, 1e-6, 1e6, 32, "")      \
    X(YARN_BETA_SLOW, "llama.rope.scaling.yarn_beta_slow", REAL, OPTIONAL, 1e-6, 1e6, 1, "")       \
    X(YARN_EXT_FACTOR, "llama.rope.scaling.yarn_ext_factor", REAL, FIXED, 0, 0, 1,                 \
      "other mixtures of interpolation and extrapolation")                                         \
    X(YARN_ATTN_FACTOR, "llama.rope.scaling.yarn_attn_factor", REAL, FIXED, 0, 0, 1,               \
      "attention factors under this key")                                                          \
    X(YARN_LOG_MULTIPLIER, "llama.rope.scaling.yarn_log_multiplier", REAL, FIXED, 0, 0, 0,         \
      "logarithmic attention factors")                                                             \
    X(SCALING_ALPHA, "llama.rope.scaling.alpha", REAL, FIXED, 0, 0, 0, "scaled RoPE bases")        \
    X(SCALING_FINETUNED, "llama.rope.scaling.finetuned", FLAG, IGNORED, 0, 0, 0, "")               \
    X(EXPERT_COUNT, "llama.expert_count", NUMBER, FIXED, 0, 0, 0, "mixtures of experts")           \
    X(EXPERT_USED, "llama.expert_used_count", NUMBER, FIXED, 0, 0, 0, "mixtures of experts")       \
    X(EXPERT_SHARED, "llama.expert_shared_count", NUMBER, FIXED, 0, 0, 0, "mixtures of experts")   \
    X(CLAMP_KQV, "llama.attention.clamp_kqv", NUMBER, FIXED, 0, 0, 0,                              \
      "clamped queries, keys and values")                                                          \
    X(MAX_ALIBI_BIAS, "llama.attention.max_alibi_bias", NUMBER, FIXED, 0, 0, 0, "ALiBi biases")    \
    X(CAUSAL, "llama.attention.causal", NUMBER, FIXED, 0, 0, 1, "models without a causal mask")    \
    X(ATTENTION_SCALE, "llama.attention.scale", NUMBER, FIXED, 0, 0, 0, "attention scales")        \
    X(OUTPUT_SCALE, "llama.attention.output_scale", NUMBER, FIXED, 0, 0, 0, "attention scales")    \
    X(VALUE_SCALE, "llama.attention.value_scale", NUMBER, FIXED, 0, 0, 0, "attention scales")      \
    X(TEMPERATURE_SCALE, "llama.attention.temperature_scale", NUMBER, FIXED, 0, 0, 0,              \
      "attention temperatures")                                                                    \
    X(TEMPERATURE_LENGTH, "llama.attention.temperature_length", NUMBER, FIXED, 0, 0, 0,            \
      "attention temperatures")                                                                    \
    X(ATTENTION_SOFTCAP, "llama.attn_logit_softcapping", NUMBER, FIXED, 0, 0, 0, "capped scores")  \
    X(LOGIT_SOFTCAP, "llama.final_logit_softcapping", NUMBER, FIXED, 0, 0, 0, "capped logits")     \
    X(PARALLEL_RESIDUAL, "llama.use_parallel_residual", NUMBER, FIXED, 0, 0, 0,                    \
      "parallel residuals")                                                                        \
    X(LOGIT_SCALE, "llama.logit_scale", NUMBER, FIXED, 0, 0, 1, "scaled logits")                   \
    X(RESIDUAL_SCALE, "llama.residual_scale", NUMBER, FIXED, 0, 0, 1, "scaled residuals")          \
    X(EMBEDDING_SCALE, "llama.embedding_scale", NUMBER, FIXED, 0, 0, 1, "scaled embeddings")       \
    X(VOCAB_SIZE, "llama.vocab_size", WHOLE, IGNORED, 0, 0, 0, "")                                 \
    X(DATA_LAYOUT, "llama.tensor_data_layout", TEXT, IGNORED, 0, 0, 0, "")                         \
    X(TOKENIZER_MODEL, "tokenizer.ggml.model", TEXT, OPTIONAL, 0, 0, 0, "")                        \
    X(TOKENIZER_PRE, "tokenizer.ggml.pre", TEXT, OPTIONAL, 0, 0, 0, "")                            \
    X(TOKENS, "tokenizer.ggml.tokens", TEXTS, REQUIRED, 0, 0, 0, "")                               \
    X(TOKEN_TYPE, "tokenizer.ggml.token_type", WHOLES, OPTIONAL, 1, 6, 1, "")                      \
    X(SCORES, "tokenizer.ggml.scores", REALS, OPTIONAL, 0, 0, 0, "")                               \
    X(MERGES, "tokenizer.ggml.merges", TEXTS, OPTIONAL, 0, 0, 0, "")                               \
    X(BOS, "tokenizer.ggml.bos_token_id", TOKEN, OPTIONAL, 0, 0, 0, "")                            \
    X(EOS, "tokenizer.ggml.eos_token_id", TOKEN, OPTIONAL, 0, 0, 0, "")                            \
    X(EOT, "tokenizer.ggml.eot_token_id", TOKEN, OPTIONAL, 0, 0, 0, "")                            \
    X(EOM, "tokenizer.ggml.eom_token_id", TOKEN, OPTIONAL, 0, 0, 0, "")                            \
    X(UNKNOWN, "tokenizer.ggml.unknown_token_id", TOKEN, OPTIONAL, 0, 0, 0, "")                    \
    X(ADD_BOS, "tokenizer.ggml.add_bos_token", FLAG, OPTIONAL, 0, 0, 0, "")                        \
    X(ADD_SPACE_PREFIX, "tokenizer.ggml.add_space_prefix", FLAG, OPTIONAL, 0, 0, 0, "")            \
    X(REMOVE_SPACES, "tokenizer.ggml.remove_extra_whitespaces", FLAG, OPTIONAL, 0, 0, 0, "")       \
    X(CHAT_TEMPLATE, "tokenizer.chat_template", TEXT, OPTIONAL, 0, 0, 0, "")                       \
    X(PADDING, "tokenizer.ggml.padding_token_id", TOKEN, IGNORED, 0, 0, 0, "")                     \
    X(ADD_EOS, "tokenizer.ggml.add_eos_token", FLAG, IGNORED, 0, 0, 0, "")
/* clang-format on */

#define GGUF_KEY_ENUM(identifier, key, kind, use, low, high, fallback, feature) KEY_##identifier,
typedef enum { GGUF_KEYS(GGUF_KEY_ENUM) NUM_GGUF_KEYS } gguf_key;
#undef GGUF_KEY_ENUM

/* The key as this file spells it. */
typedef struct {
    char text[64];
} key_name;
key_name gguf_key_name(const gguf_file *file, gguf_key key);

/* Typed values, within the key's range. A missing key is an error if it is REQUIRED, else *value
 * becomes its default; *found, unless NULL, says which. */
llamita_status gguf_key_integer(const gguf_file *file, gguf_key key, int64_t *value, bool *found);
llamita_status gguf_key_real(const gguf_file *file, gguf_key key, double *value, bool *found);

/* The bytes of a TEXT key. If it is missing, *value is left unchanged. */
llamita_status gguf_key_text(const gguf_file *file, gguf_key key, byte_slice *value, bool *found);

/* Refuses every FIXED key with another value than its default. */
llamita_status gguf_check_fixed_keys(const gguf_file *file);

#endif
