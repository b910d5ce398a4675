/* model_files.h: builds small model and tokenizer files in memory, valid or wrong on purpose, for
 * tests and fuzzers. */
#ifndef LLAMITA_MODEL_FILES_H
#define LLAMITA_MODEL_FILES_H

#include <stdlib.h>
#include <string.h>

#include "api/model_load.h"
#include "formats/gguf.h"
#include "model/model_pack.h"

/* ---------------------------------------------------------------- bytes */

typedef struct {
    unsigned char *bytes;
    size_t num_bytes, capacity;
} buffer;

static inline void put_bytes(buffer *to, const void *bytes, size_t num_bytes) {
    if (to->num_bytes + num_bytes > to->capacity) {
        to->capacity = 2 * (to->num_bytes + num_bytes);
        to->bytes = realloc(to->bytes, to->capacity);
        if (!to->bytes) abort();
    }
    if (num_bytes) memcpy(to->bytes + to->num_bytes, bytes, num_bytes);
    to->num_bytes += num_bytes;
}

static inline void put_u8(buffer *to, uint8_t value) { put_bytes(to, &value, 1); }
static inline void put_u32(buffer *to, uint32_t value) { put_bytes(to, &value, 4); }
static inline void put_u64(buffer *to, uint64_t value) { put_bytes(to, &value, 8); }
static inline void put_f32(buffer *to, float value) { put_bytes(to, &value, 4); }

static inline void put_string(buffer *to, const char *text) {
    put_u64(to, strlen(text));
    put_bytes(to, text, strlen(text));
}

static inline void put_zeros(buffer *to, size_t count) {
    for (size_t i = 0; i < count; i++) put_u8(to, 0);
}

static inline void free_buffer(buffer *b) {
    free(b->bytes);
    *b = (buffer){0};
}

/* Appends count different floats between -0.5 and 0.5. */
static inline void put_weights(buffer *to, size_t count, uint32_t seed) {
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        put_f32(to, (float)(seed >> 8) / 16777216.0F - 0.5F);
    }
}

/* ---------------------------------------------------------------- GGUF */

enum { MAX_DRAFT_KEYS = 64, MAX_DRAFT_TENSORS = 64, DRAFT_NAME_BYTES = 96 };

typedef struct {
    char name[DRAFT_NAME_BYTES];
    size_t name_length;
    uint32_t type;
    buffer value;
} draft_key;

typedef struct {
    char name[DRAFT_NAME_BYTES];
    uint64_t name_length; /* as written to the file */
    uint32_t num_dimensions;
    uint64_t shape[8];
    uint32_t type;
    int64_t offset_error; /* added to the correct offset */
    buffer data;
} draft_tensor;

/* A GGUF file in parts, which tests change before it is written. */
typedef struct {
    char magic[5];
    uint32_t version;
    uint64_t alignment;
    int64_t key_count_error, tensor_count_error; /* added to the correct counts */
    draft_key keys[MAX_DRAFT_KEYS];
    size_t num_keys;
    draft_tensor tensors[MAX_DRAFT_TENSORS];
    size_t num_tensors;
} gguf_draft;

static inline draft_key *draft_find(gguf_draft *d, const char *name) {
    for (size_t i = 0; i < d->num_keys; i++)
        if (strcmp(d->keys[i].name, name) == 0) return &d->keys[i];
    return NULL;
}

/* Adds the key or empties it; the caller appends its value to the result. */
static inline buffer *draft_set(gguf_draft *d, const char *name, uint32_t type) {
    draft_key *key = draft_find(d, name);
    if (!key) {
        if (d->num_keys == MAX_DRAFT_KEYS) abort();
        key = &d->keys[d->num_keys++];
        *key = (draft_key){0};
        strcpy(key->name, name);
        key->name_length = strlen(name);
    }
    key->type = type;
    key->value.num_bytes = 0;
    return &key->value;
}

static inline void draft_u32(gguf_draft *d, const char *name, uint32_t value) {
    put_u32(draft_set(d, name, GGUF_U32), value);
}

static inline void draft_f32(gguf_draft *d, const char *name, float value) {
    put_f32(draft_set(d, name, GGUF_F32), value);
}

static inline void draft_bool(gguf_draft *d, const char *name, uint8_t value) {
    put_u8(draft_set(d, name, GGUF_BOOL), value);
}

static inline void draft_text(gguf_draft *d, const char *name, const char *text) {
    put_string(draft_set(d, name, GGUF_STRING), text);
}

static inline buffer *draft_array(gguf_draft *d, const char *name, uint32_t element_type, uint64_t count) {
    buffer *value = draft_set(d, name, GGUF_ARRAY);
    put_u32(value, element_type);
    put_u64(value, count);
    return value;
}

static inline void draft_strings(gguf_draft *d, const char *name, const char *const *strings, size_t count) {
    buffer *value = draft_array(d, name, GGUF_STRING, count);
    for (size_t i = 0; i < count; i++) put_string(value, strings[i]);
}

static inline void draft_remove(gguf_draft *d, const char *name) {
    draft_key *key = draft_find(d, name);
    free_buffer(&key->value);
    memmove(key, key + 1, (size_t)(d->keys + d->num_keys - (key + 1)) * sizeof *key);
    d->num_keys--;
}

static inline draft_tensor *draft_find_tensor(gguf_draft *d, const char *name) {
    for (size_t i = 0; i < d->num_tensors; i++)
        if (strcmp(d->tensors[i].name, name) == 0) return &d->tensors[i];
    return NULL;
}

static inline void draft_remove_tensor(gguf_draft *d, const char *name) {
    draft_tensor *t = draft_find_tensor(d, name);
    free_buffer(&t->data);
    memmove(t, t + 1, (size_t)(d->tensors + d->num_tensors - (t + 1)) * sizeof *t);
    d->num_tensors--;
}

/* Fills the tensor's data for its type and shape: different floats, or blocks of scale 1. */
static inline void draft_fill_tensor(draft_tensor *t) {
    int64_t block_elements = 1;
    size_t block_bytes = 4, count = 1;
    const char *name;
    tensor_type_blocks((tensor_type)t->type, &block_elements, &block_bytes, &name);
    for (uint32_t i = 0; i < t->num_dimensions && i < 8; i++) count *= (size_t)t->shape[i];
    t->data.num_bytes = 0;
    if (t->type == TENSOR_F32) {
        put_weights(&t->data, count, (uint32_t)count);
        return;
    }
    for (size_t i = 0; i < count / (size_t)block_elements; i++) {
        put_u8(&t->data, 0x00); /* 1.0 as F16 is 0x3C00; as BF16 it is 0.0078125 */
        put_u8(&t->data, 0x3C);
        for (size_t j = 2; j < block_bytes; j++) put_u8(&t->data, (uint8_t)(i + j));
    }
}

/* num_rows is 0 for a vector. */
static inline draft_tensor *draft_add_tensor(gguf_draft *d, const char *name, uint32_t type, uint64_t row_length,
                                             uint64_t num_rows) {
    if (d->num_tensors == MAX_DRAFT_TENSORS) abort();
    draft_tensor *t = &d->tensors[d->num_tensors++];
    *t = (draft_tensor){.name_length = strlen(name), .num_dimensions = num_rows ? 2 : 1, .type = type};
    strcpy(t->name, name);
    t->shape[0] = row_length;
    t->shape[1] = num_rows;
    draft_fill_tensor(t);
    return t;
}

static inline void draft_retype_tensor(gguf_draft *d, const char *name, uint32_t type) {
    draft_tensor *t = draft_find_tensor(d, name);
    t->type = type;
    draft_fill_tensor(t);
}

enum {
    DRAFT_HIDDEN = 32,
    DRAFT_HEADS = 4,
    DRAFT_KV_HEADS = 2,
    DRAFT_HEAD_DIM = 8,
    DRAFT_FFN = 64,
    DRAFT_LAYERS = 2,
    DRAFT_CONTEXT = 16
};

static const char *const DRAFT_TOKENS[] = {
    "<unk>", "<s>", "</s>", "\xE2\x96\x81", "a", "b", "\342\226\201a" /* octal: \x81a would be one escape */, "ab"};
enum { DRAFT_VOCAB = sizeof DRAFT_TOKENS / sizeof DRAFT_TOKENS[0] };

/* SentencePiece without byte fallback. */
static inline void draft_sentencepiece(gguf_draft *d) {
    draft_text(d, "tokenizer.ggml.model", "llama");
    draft_strings(d, "tokenizer.ggml.tokens", DRAFT_TOKENS, DRAFT_VOCAB);
    buffer *scores = draft_array(d, "tokenizer.ggml.scores", GGUF_F32, DRAFT_VOCAB);
    for (int i = 0; i < DRAFT_VOCAB; i++) put_f32(scores, (float)-i);
    const uint32_t types[DRAFT_VOCAB] = {TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_CONTROL, TOKEN_NORMAL,
                                         TOKEN_NORMAL,  TOKEN_NORMAL,  TOKEN_NORMAL,  TOKEN_NORMAL};
    buffer *value = draft_array(d, "tokenizer.ggml.token_type", GGUF_I32, DRAFT_VOCAB);
    for (int i = 0; i < DRAFT_VOCAB; i++) put_u32(value, types[i]);
    draft_u32(d, "tokenizer.ggml.bos_token_id", 1);
    draft_u32(d, "tokenizer.ggml.eos_token_id", 2);
    draft_text(d, "tokenizer.chat_template", "{{ messages }}");
}

static const char *const all_architectures[] = {"llama", "qwen2", "qwen3", "smollm3"};
#define NUM_ARCHITECTURES 4

/* A key of the file's architecture, "context_length" for one. The result is valid until the next
 * call. */
static inline const char *draft_key_of(const char *architecture, const char *key) {
    static char name[DRAFT_NAME_BYTES];
    snprintf(name, sizeof name, "%s.%s", architecture, key);
    return name;
}

/* A complete model of an architecture: every matrix of this type, norms and biases F32, tied
 * embeddings or not. */
static inline void draft_model(gguf_draft *d, const char *architecture, uint32_t type, bool tied) {
    *d = (gguf_draft){.magic = "GGUF", .version = 3, .alignment = 32};
    draft_text(d, "general.architecture", architecture);
    draft_text(d, "general.name", "a draft");
    draft_u32(d, "general.quantization_version", 2);
    draft_u32(d, draft_key_of(architecture, "context_length"), DRAFT_CONTEXT);
    draft_u32(d, draft_key_of(architecture, "embedding_length"), DRAFT_HIDDEN);
    draft_u32(d, draft_key_of(architecture, "block_count"), DRAFT_LAYERS);
    draft_u32(d, draft_key_of(architecture, "feed_forward_length"), DRAFT_FFN);
    draft_u32(d, draft_key_of(architecture, "attention.head_count"), DRAFT_HEADS);
    draft_u32(d, draft_key_of(architecture, "attention.head_count_kv"), DRAFT_KV_HEADS);
    draft_f32(d, draft_key_of(architecture, "attention.layer_norm_rms_epsilon"), 1e-5F);
    draft_f32(d, draft_key_of(architecture, "rope.freq_base"), 10000.0F);
    draft_sentencepiece(d);
    const uint64_t key_rows = DRAFT_KV_HEADS * DRAFT_HEAD_DIM;
    const struct {
        const char *name;
        uint64_t row_length, num_rows;
        const char *only_in; /* NULL: all architectures */
    } parts[] = {
        {"attn_norm.weight", DRAFT_HIDDEN, 0, NULL},
        {"attn_q.weight", DRAFT_HIDDEN, DRAFT_HIDDEN, NULL},
        {"attn_k.weight", DRAFT_HIDDEN, key_rows, NULL},
        {"attn_v.weight", DRAFT_HIDDEN, key_rows, NULL},
        {"attn_q.bias", DRAFT_HIDDEN, 0, "qwen2"},
        {"attn_k.bias", key_rows, 0, "qwen2"},
        {"attn_v.bias", key_rows, 0, "qwen2"},
        {"attn_q_norm.weight", DRAFT_HEAD_DIM, 0, "qwen3"},
        {"attn_k_norm.weight", DRAFT_HEAD_DIM, 0, "qwen3"},
        {"attn_output.weight", DRAFT_HIDDEN, DRAFT_HIDDEN, NULL},
        {"ffn_norm.weight", DRAFT_HIDDEN, 0, NULL},
        {"ffn_gate.weight", DRAFT_HIDDEN, DRAFT_FFN, NULL},
        {"ffn_up.weight", DRAFT_HIDDEN, DRAFT_FFN, NULL},
        {"ffn_down.weight", DRAFT_FFN, DRAFT_HIDDEN, NULL},
    };
    draft_add_tensor(d, "token_embd.weight", type, DRAFT_HIDDEN, DRAFT_VOCAB);
    for (int l = 0; l < DRAFT_LAYERS; l++) {
        for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
            char name[DRAFT_NAME_BYTES];
            if (parts[i].only_in && strcmp(parts[i].only_in, architecture) != 0) continue;
            snprintf(name, sizeof name, "blk.%d.%s", l, parts[i].name);
            draft_add_tensor(d, name, parts[i].num_rows ? type : TENSOR_F32, parts[i].row_length, parts[i].num_rows);
        }
    }
    draft_add_tensor(d, "output_norm.weight", TENSOR_F32, DRAFT_HIDDEN, 0);
    if (!tied) draft_add_tensor(d, "output.weight", type, DRAFT_HIDDEN, DRAFT_VOCAB);
}

static inline void draft_llama(gguf_draft *d, uint32_t type, bool tied) { draft_model(d, "llama", type, tied); }

/* A byte-level tokenizer: the 256 symbols of GPT-2's alphabet in byte order, then a merge and an
 * end token. */
static inline void draft_byte_level(gguf_draft *d, const char *pre) {
    enum { VOCAB = 259 };
    static char symbols[256][3];
    const char *tokens[VOCAB];
    const char *const merges[] = {"a b"};
    int next = 256;
    for (int byte = 0; byte < 256; byte++) {
        bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
        int code = printable ? byte : next++;
        char *s = symbols[byte];
        if (code < 0x80) {
            s[0] = (char)code;
            s[1] = '\0';
        } else {
            s[0] = (char)(0xC0 | code >> 6);
            s[1] = (char)(0x80 | (code & 0x3F));
            s[2] = '\0';
        }
        tokens[byte] = s;
    }
    tokens[256] = "ab";
    tokens[257] = "<|im_end|>";
    tokens[258] = "<|endoftext|>";
    draft_remove(d, "tokenizer.ggml.scores");
    draft_text(d, "tokenizer.ggml.model", "gpt2");
    draft_text(d, "tokenizer.ggml.pre", pre);
    draft_strings(d, "tokenizer.ggml.tokens", tokens, VOCAB);
    draft_strings(d, "tokenizer.ggml.merges", merges, 1);
    buffer *types = draft_array(d, "tokenizer.ggml.token_type", GGUF_I32, VOCAB);
    for (int i = 0; i < VOCAB; i++) put_u32(types, i < 257 ? TOKEN_NORMAL : TOKEN_CONTROL);
    draft_remove(d, "tokenizer.ggml.bos_token_id");
    draft_u32(d, "tokenizer.ggml.eos_token_id", 258);
    const char *const grown[] = {"token_embd.weight", "output.weight"};
    for (int i = 0; i < 2; i++) {
        draft_tensor *t = draft_find_tensor(d, grown[i]);
        if (t) { /* no output.weight when tied */
            t->shape[1] = VOCAB;
            draft_fill_tensor(t);
        }
    }
}

static inline uint64_t padded(uint64_t num_bytes, uint64_t alignment) {
    return (num_bytes + alignment - 1) / alignment * alignment;
}

static inline buffer draft_write(const gguf_draft *d) {
    buffer file = {0};
    put_bytes(&file, d->magic, 4);
    put_u32(&file, d->version);
    put_u64(&file, d->num_tensors + (uint64_t)d->tensor_count_error);
    put_u64(&file, d->num_keys + (uint64_t)d->key_count_error);
    for (size_t i = 0; i < d->num_keys; i++) {
        put_u64(&file, d->keys[i].name_length);
        put_bytes(&file, d->keys[i].name, d->keys[i].name_length);
        put_u32(&file, d->keys[i].type);
        put_bytes(&file, d->keys[i].value.bytes, d->keys[i].value.num_bytes);
    }
    uint64_t offset = 0;
    for (size_t i = 0; i < d->num_tensors; i++) {
        const draft_tensor *t = &d->tensors[i];
        put_u64(&file, t->name_length);
        put_bytes(&file, t->name, strlen(t->name));
        put_u32(&file, t->num_dimensions);
        for (uint32_t n = 0; n < t->num_dimensions && n < 8; n++) put_u64(&file, t->shape[n]);
        put_u32(&file, t->type);
        put_u64(&file, offset + (uint64_t)t->offset_error);
        offset += padded(t->data.num_bytes, d->alignment);
    }
    if (d->num_tensors) put_zeros(&file, (size_t)(padded(file.num_bytes, d->alignment) - file.num_bytes));
    for (size_t i = 0; i < d->num_tensors; i++) {
        const buffer *data = &d->tensors[i].data;
        put_bytes(&file, data->bytes, data->num_bytes);
        put_zeros(&file, (size_t)(padded(data->num_bytes, d->alignment) - data->num_bytes));
    }
    return file;
}

static inline void draft_free(gguf_draft *d) {
    for (size_t i = 0; i < d->num_keys; i++) free_buffer(&d->keys[i].value);
    for (size_t i = 0; i < d->num_tensors; i++) free_buffer(&d->tensors[i].data);
}

/* ---------------------------------------------------------------- llama2.c */

typedef struct {
    int32_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len;
} llama2c_sizes;

static const llama2c_sizes LLAMA2C_SIZES = {DRAFT_HIDDEN,   DRAFT_FFN,   DRAFT_LAYERS, DRAFT_HEADS,
                                            DRAFT_KV_HEADS, DRAFT_VOCAB, DRAFT_CONTEXT};

/* Quantized like llama2.c's version 2: int8 values, then one scale per group. */
static inline void put_groups(buffer *to, size_t count, size_t group_size, uint32_t seed) {
    for (size_t i = 0; i < count; i++) put_u8(to, (uint8_t)(i * 37 + seed));
    for (size_t i = 0; i < count / group_size; i++) put_f32(to, 0.001F * (float)(i + 1));
}

static inline void put_part(buffer *to, size_t count, size_t group_size, uint32_t seed) {
    if (group_size) put_groups(to, count, group_size, seed);
    else put_weights(to, count, seed);
}

/* A model file of version 0, 1 or 2. group_size is for version 2 only. */
static inline buffer llama2c_write(int version, llama2c_sizes s, bool shared, uint32_t group_size) {
    buffer file = {0};
    const size_t D = (size_t)s.dim, F = (size_t)s.hidden_dim, V = (size_t)s.vocab_size, L = (size_t)s.n_layers;
    const size_t KV = D / (size_t)s.n_heads * (size_t)s.n_kv_heads, T = (size_t)s.max_seq_len;
    const size_t group = version == 2 ? group_size : 0;
    /* wq wk wv wo w1 w2 w3 */
    const size_t matrices[] = {D * D, KV * D, KV * D, D * D, F * D, F * D, F * D};
    if (version == 0 && !shared) s.vocab_size = -s.vocab_size;
    if (version != 0) {
        put_u32(&file, 0x616b3432);
        put_u32(&file, (uint32_t)version);
    }
    put_bytes(&file, &s, sizeof s);
    if (version != 0) {
        put_u8(&file, shared);
        if (version == 2) put_u32(&file, group_size);
        put_zeros(&file, 256 - file.num_bytes);
        put_weights(&file, L * D + L * D + D, 1);
    }
    put_part(&file, V * D, group, 2);
    if (version == 0) put_weights(&file, L * D, 3);
    for (size_t i = 0; i < 7; i++) {
        if (version == 0 && i == 4) put_weights(&file, L * D, 4);
        for (size_t l = 0; l < L; l++) put_part(&file, matrices[i], group, (uint32_t)(10 * i + l));
    }
    if (version == 0) {
        put_weights(&file, D, 5);
        put_weights(&file, T * (D / (size_t)s.n_heads), 6);
    }
    if (!shared) put_part(&file, V * D, group, 7);
    return file;
}

/* A tokenizer.bin with DRAFT_TOKENS. */
static inline buffer llama2c_write_tokenizer(void) {
    static const char *const pieces[DRAFT_VOCAB] = {"<unk>", "\n<s>\n", "\n</s>\n", " ", "a", "b", " a", "ab"};
    buffer file = {0};
    put_u32(&file, 6);
    for (int i = 0; i < DRAFT_VOCAB; i++) {
        put_f32(&file, (float)-i);
        put_u32(&file, (uint32_t)strlen(pieces[i]));
        put_bytes(&file, pieces[i], strlen(pieces[i]));
    }
    return file;
}

/* ---------------------------------------------------------------- opening from memory */

/* Opens a model from bytes, copied to an allocation of exactly their size so that AddressSanitizer
 * catches every access past the end. Returns NULL and fills the error if the file is rejected.
 * close_bytes frees the model. */
static inline llamita_model *open_bytes(const void *bytes, size_t num_bytes, const char *tokenizer_path,
                                        llamita_error *error) {
    llamita_model *model = calloc(1, sizeof *model);
    void *copy = malloc(num_bytes ? num_bytes : 1);
    if (!model || !copy) abort();
    if (num_bytes) memcpy(copy, bytes, num_bytes);
    model->mapping = copy;
    model->mapping_bytes = num_bytes;
    *error = (llamita_error){0};
    if (model_fill(model, "draft.bin", "scalar", error) ||
        model_fill_tokenizer(model, "draft.bin", tokenizer_path, NULL, error)) {
        model_clear(model);
        free(copy);
        free(model);
        return NULL;
    }
    return model;
}

/* Packs the weights. model_pack would let the system drop the pages of a mapped file, which here
 * belong to malloc. */
static inline llamita_status pack_bytes(llamita_model *model, llamita_error *error) {
    const size_t mapping_bytes = model->mapping_bytes;
    model->mapping_bytes = 0;
    const llamita_status status = model_pack(model, "draft.bin", NULL, NULL, error);
    model->mapping_bytes = mapping_bytes;
    return status;
}

static inline void close_bytes(llamita_model *model) {
    if (model) {
        void *copy = model->mapping;
        model_clear(model);
        free(copy);
        free(model);
    }
}

/* Reads every weight, so that AddressSanitizer catches tensors that extend past the file. */
static inline unsigned sum_tensor(const tensor *t) {
    unsigned sum = 0;
    const unsigned char *bytes = t->data;
    for (size_t i = 0; i < (size_t)t->num_rows * t->row_bytes; i++) sum += bytes[i];
    return sum;
}

static inline unsigned sum_model(const llamita_model *model) {
    unsigned sum = sum_tensor(&model->token_embedding) + sum_tensor(&model->output);
    const llamita_model_info *info = &model->info;
    for (int32_t i = 0; i < info->num_hidden_layers; i++) {
        const layer *l = &model->layers[i];
        sum += sum_tensor(&l->query) + sum_tensor(&l->key) + sum_tensor(&l->value) + sum_tensor(&l->attention_output) +
               sum_tensor(&l->ffn_gate) + sum_tensor(&l->ffn_up) + sum_tensor(&l->ffn_down);
        for (int32_t k = 0; k < info->hidden_size; k++) sum += l->attention_norm[k] > l->ffn_norm[k];
        for (int64_t k = 0; l->query_bias && k < l->query.num_rows; k++) sum += l->query_bias[k] > 0.0F;
        for (int64_t k = 0; l->key_bias && k < l->key.num_rows; k++) sum += l->key_bias[k] > l->value_bias[k];
        for (int32_t k = 0; l->query_norm && k < info->head_dim; k++) sum += l->query_norm[k] > l->key_norm[k];
    }
    for (int32_t k = 0; k < info->hidden_size; k++) sum += model->output_norm[k] > 0.0F;
    for (int32_t k = 0; k < info->head_dim / 2; k++) sum += model->rope_frequency[k] > 0.0F;
    return sum;
}

#endif
