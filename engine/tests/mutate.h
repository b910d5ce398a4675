/* mutate.h: changes files at random: the bytes of any file, the keys and tensors of a GGUF. */
#ifndef LLAMITA_MUTATE_H
#define LLAMITA_MUTATE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model_files.h"

/* SplitMix64 (Steele, Lea and Flood 2014). */
static inline uint64_t random_u64(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static inline size_t random_up_to(uint64_t *state, size_t limit) { return (size_t)(random_u64(state) % limit); }

/* A number at which readers are likely to fail. */
static inline uint64_t random_edge(uint64_t *state) {
    const uint64_t bits = random_u64(state) % 64, near = (1ULL << bits) + random_u64(state) % 3 - 1;
    static const uint64_t others[] = {0, 5, 31, 33, 0x7FC00000, 0x7F800000, 0xFF800000, 1, 0x3F800000, UINT64_MAX - 31};
    const uint64_t kind = random_u64(state) % 4;
    return kind == 0 ? others[random_up_to(state, 10)] : kind == 1 ? 0 - near : near;
}

/* Makes room for num_bytes at this place, or removes that many. */
static inline void insert_bytes(buffer *file, size_t at, const void *bytes, size_t num_bytes) {
    put_bytes(file, bytes, num_bytes); /* for the capacity */
    memmove(file->bytes + at + num_bytes, file->bytes + at, file->num_bytes - num_bytes - at);
    memcpy(file->bytes + at, bytes, num_bytes);
}

static inline void remove_bytes(buffer *file, size_t at, size_t num_bytes) {
    memmove(file->bytes + at, file->bytes + at + num_bytes, file->num_bytes - at - num_bytes);
    file->num_bytes -= num_bytes;
}

/* Makes one change: to a number, a byte, or bits, or cuts the file, or removes, duplicates or copies
 * a piece. */
static inline void mutate_bytes(buffer *file, uint64_t *state) {
    if (file->num_bytes == 0) {
        put_u8(file, (uint8_t)random_u64(state));
        return;
    }
    const bool near_start = random_u64(state) % 2 && file->num_bytes > 512;
    const size_t at = random_up_to(state, near_start ? 512 : file->num_bytes), rest = file->num_bytes - at;
    const uint64_t kind = random_u64(state) % 16;
    size_t width = (size_t)1 << random_u64(state) % 4;
    width = width < rest ? width : rest;
    unsigned char piece[64];
    if (kind < 5) {
        const uint64_t number = random_edge(state);
        memcpy(file->bytes + at, &number, width);
    } else if (kind < 8) { /* slightly more or less */
        file->bytes[at] = (uint8_t)(file->bytes[at] + random_u64(state) % 5 - 2);
    } else if (kind < 11) {
        file->bytes[at] ^= (uint8_t)(1u << random_u64(state) % 8);
    } else if (kind == 11) {
        if (random_u64(state) % 8 == 0) file->num_bytes = at;
    } else if (kind == 12) {
        remove_bytes(file, at, width);
    } else if (kind == 13) {
        memcpy(piece, file->bytes + at, width);
        insert_bytes(file, at, piece, width);
    } else { /* copy from another place */
        const size_t from = random_up_to(state, file->num_bytes), last = from > at ? from : at;
        const size_t length = random_up_to(state, sizeof piece), room = file->num_bytes - last;
        memmove(file->bytes + at, file->bytes + from, length < room ? length : room);
    }
}

/* ---------------------------------------------------------------- GGUF */

static inline uint64_t gguf_type_bytes(uint32_t type) {
    static const uint8_t num_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof num_bytes ? num_bytes[type] : 0;
}

/* Moves *at past a string of the file; false if it does not fit. */
static inline bool skip_string(const buffer *file, size_t *at) {
    if (file->num_bytes - *at < 8) return false;
    const uint64_t length = read_u64(file->bytes + *at);
    if (length > file->num_bytes - *at - 8) return false;
    *at += 8 + (size_t)length;
    return true;
}

static inline bool skip_value(const buffer *file, uint32_t type, size_t *at) {
    if (type == GGUF_STRING) return skip_string(file, at);
    uint64_t count = 1;
    if (type == GGUF_ARRAY) {
        if (file->num_bytes - *at < 12) return false;
        type = read_u32(file->bytes + *at);
        count = read_u64(file->bytes + *at + 4);
        *at += 12;
        if (type == GGUF_STRING) {
            for (uint64_t i = 0; i < count; i++)
                if (!skip_string(file, at)) return false;
            return true;
        }
    }
    const uint64_t each = gguf_type_bytes(type);
    if (each == 0 || count > (file->num_bytes - *at) / each) return false;
    *at += (size_t)(count * each);
    return true;
}

/* Reads a name of the file, for a key or a tensor. */
static inline bool parse_name(const buffer *file, size_t *at, char name[DRAFT_NAME_BYTES]) {
    const size_t start = *at + 8;
    if (!skip_string(file, at) || *at - start >= DRAFT_NAME_BYTES) return false;
    memcpy(name, file->bytes + start, *at - start);
    name[*at - start] = '\0';
    return true;
}

static inline bool parse_keys(const buffer *file, gguf_draft *d, size_t *at, uint64_t num_keys) {
    for (uint64_t i = 0; i < num_keys; i++) {
        draft_key *key = &d->keys[d->num_keys];
        if (!parse_name(file, at, key->name) || file->num_bytes - *at < 4) return false;
        key->name_length = strlen(key->name);
        key->type = read_u32(file->bytes + *at);
        const size_t start = *at += 4;
        if (!skip_value(file, key->type, at)) return false;
        d->num_keys++;
        put_bytes(&key->value, file->bytes + start, *at - start);
        if (strcmp(key->name, "general.alignment") == 0 && key->type == GGUF_U32)
            d->alignment = read_u32(key->value.bytes);
    }
    return d->alignment >= 8 && d->alignment <= 4096 && (d->alignment & (d->alignment - 1)) == 0;
}

/* Parses a file that is well-formed enough to be changed in parts. The caller frees the draft, also
 * on failure. */
static inline bool draft_parse(const buffer *file, gguf_draft *d) {
    uint64_t offsets[MAX_DRAFT_TENSORS + 1];
    size_t at = 24;
    *d = (gguf_draft){.magic = "GGUF", .alignment = 32};
    if (file->num_bytes < at || memcmp(file->bytes, "GGUF", 4) != 0) return false;
    const uint64_t num_tensors = read_u64(file->bytes + 8), num_keys = read_u64(file->bytes + 16);
    d->version = read_u32(file->bytes + 4);
    if (num_tensors > MAX_DRAFT_TENSORS || num_keys > MAX_DRAFT_KEYS) return false;
    if (!parse_keys(file, d, &at, num_keys)) return false;
    for (uint64_t i = 0; i < num_tensors; i++) {
        draft_tensor *t = &d->tensors[i];
        if (!parse_name(file, &at, t->name) || file->num_bytes - at < 4) return false;
        t->name_length = strlen(t->name);
        t->num_dimensions = read_u32(file->bytes + at);
        at += 4;
        if (t->num_dimensions > 8 || file->num_bytes - at < 8 * (size_t)t->num_dimensions + 12) return false;
        for (uint32_t n = 0; n < t->num_dimensions; n++, at += 8) t->shape[n] = read_u64(file->bytes + at);
        t->type = read_u32(file->bytes + at);
        offsets[i] = read_u64(file->bytes + at + 4);
        at += 12;
    }
    const uint64_t start = padded(at, d->alignment);
    offsets[num_tensors] = file->num_bytes - start;
    for (uint64_t i = 0; i < num_tensors && start <= file->num_bytes; i++) {
        if (offsets[i] > offsets[i + 1] || offsets[i + 1] > file->num_bytes - start) return false;
        put_bytes(&d->tensors[i].data, file->bytes + start + offsets[i], (size_t)(offsets[i + 1] - offsets[i]));
        d->num_tensors++;
    }
    return d->num_tensors == num_tensors;
}

/* What other programs write, and the texts that readers look for. */
static const char *const GGUF_KEYS[] = {"general.architecture",
                                        "general.type",
                                        "general.name",
                                        "general.alignment",
                                        "general.quantization_version",
                                        "general.file_type",
                                        "split.count",
                                        "split.no",
                                        "llama.context_length",
                                        "llama.embedding_length",
                                        "llama.block_count",
                                        "llama.feed_forward_length",
                                        "llama.vocab_size",
                                        "llama.attention.head_count",
                                        "llama.attention.head_count_kv",
                                        "llama.attention.key_length",
                                        "llama.attention.value_length",
                                        "llama.attention.layer_norm_rms_epsilon",
                                        "llama.attention.sliding_window",
                                        "llama.attention.scale",
                                        "llama.expert_count",
                                        "llama.logit_scale",
                                        "llama.rope.dimension_count",
                                        "llama.rope.freq_base",
                                        "llama.rope.scale_linear",
                                        "llama.rope.scaling.type",
                                        "llama.rope.scaling.factor",
                                        "llama.rope.scaling.attn_factor",
                                        "llama.rope.scaling.original_context_length",
                                        "tokenizer.ggml.model",
                                        "tokenizer.ggml.pre",
                                        "tokenizer.ggml.tokens",
                                        "tokenizer.ggml.scores",
                                        "tokenizer.ggml.token_type",
                                        "tokenizer.ggml.merges",
                                        "tokenizer.ggml.bos_token_id",
                                        "tokenizer.ggml.eos_token_id",
                                        "tokenizer.ggml.eot_token_id",
                                        "tokenizer.ggml.unknown_token_id",
                                        "tokenizer.ggml.add_bos_token",
                                        "tokenizer.ggml.add_space_prefix",
                                        "tokenizer.chat_template",
                                        "adapter.type",
                                        "adapter.lora.alpha",
                                        "adapter.alora.invocation_tokens"};
static const char *const GGUF_TEXTS[] = {"llama",   "gpt2",         "qwen2",    "llama-bpe", "gpt-2",  "smollm",
                                         "qwen3",   "smollm3",      "linear",   "yarn",      "none",   "lora",
                                         "adapter", "model",        "",         "a",         "<0x41>", "<|im_end|>",
                                         "a b",     "\xE2\x96\x81", "\xC4\xA0", "\xFF",      "\n"};
#define CHOOSE(list, state) (list)[random_up_to((state), sizeof(list) / sizeof *(list))]

static inline uint32_t random_float_bits(uint64_t *state) {
    static const float values[] = {0.0F,   -0.0F,     1.0F,     -1.0F,    NAN,  INFINITY, -INFINITY, 1e-45F,
                                   1e-38F, 3.402e38F, -3.4e38F, 10000.0F, 0.5F, 1e9F,     65505.0F,  1e-6F};
    const float value = CHOOSE(values, state);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return random_u64(state) % 2 ? bits : (uint32_t)random_edge(state);
}

/* Sets a known key to a value of a type that some program might write. */
static inline void set_random_key(gguf_draft *d, uint64_t *state) {
    static const char llama[] = "llama.";
    const char *name = CHOOSE(GGUF_KEYS, state);
    if (strncmp(name, llama, strlen(llama)) == 0)
        name = draft_key_of(CHOOSE(all_architectures, state), name + strlen(llama));
    if (!draft_find(d, name) && d->num_keys == MAX_DRAFT_KEYS) return;
    const uint64_t small = random_u64(state) % 70;
    switch (random_u64(state) % 7) {
    case 0: draft_u32(d, name, (uint32_t)small); break;
    case 1: draft_u32(d, name, (uint32_t)random_edge(state)); break;
    case 2: put_u32(draft_set(d, name, GGUF_F32), random_float_bits(state)); break;
    case 3: draft_bool(d, name, (uint8_t)(small % 3)); break;
    case 4: draft_text(d, name, CHOOSE(GGUF_TEXTS, state)); break;
    case 5: put_u64(draft_set(d, name, small % 2 ? GGUF_U64 : GGUF_I64), random_edge(state)); break;
    default: {
        buffer *value = draft_array(d, name, small % 2 ? GGUF_I32 : GGUF_F32, small % 8);
        for (uint64_t i = 0; i < small % 8; i++) put_u32(value, (uint32_t)random_edge(state));
    }
    }
}

/* Changes, removes, adds or repeats an element of an array; *count keeps its value or follows. */
static inline void mutate_array(buffer *value, uint64_t *state) {
    const uint32_t type = read_u32(value->bytes);
    uint64_t count = read_u64(value->bytes + 4);
    const uint64_t chosen = count ? random_u64(state) % count : 0, kind = random_u64(state) % 4;
    const bool counted = random_u64(state) % 8 != 0;
    size_t at = 12;
    for (uint64_t i = 0; type == GGUF_STRING && i < chosen; i++) (void)skip_string(value, &at);
    if (type != GGUF_STRING) at += (size_t)(chosen * gguf_type_bytes(type));
    size_t end = at;
    if (count > 0 && kind != 0) {
        if (type == GGUF_STRING) (void)skip_string(value, &end);
        else end += (size_t)gguf_type_bytes(type);
        if (kind < 3) remove_bytes(value, at, end - at);
        if (kind < 3) count--;
    }
    if (kind != 1) {
        buffer added = {0};
        if (type == GGUF_STRING) put_string(&added, CHOOSE(GGUF_TEXTS, state));
        else if (kind == 3 && end > at) put_bytes(&added, value->bytes + at, end - at);
        else if (type == GGUF_F32) put_u32(&added, random_float_bits(state));
        else put_u64(&added, random_u64(state) % 2 ? random_u64(state) % 8 : random_edge(state));
        if (type != GGUF_STRING) added.num_bytes = (size_t)gguf_type_bytes(type);
        if (added.num_bytes) insert_bytes(value, at, added.bytes, added.num_bytes);
        count++;
        free_buffer(&added);
    }
    if (counted) memcpy(value->bytes + 4, &count, sizeof count);
}

static inline void mutate_key(gguf_draft *d, uint64_t *state) {
    if (d->num_keys == 0 || random_u64(state) % 4 == 0) {
        set_random_key(d, state);
        return;
    }
    draft_key *key = &d->keys[random_up_to(state, d->num_keys)];
    size_t end = 0;
    switch (random_u64(state) % 8) {
    case 0: draft_remove(d, key->name); break;
    case 1:
        strcpy(key->name, CHOOSE(GGUF_KEYS, state));
        key->name_length = strlen(key->name);
        break;
    case 2: key->type = (uint32_t)(random_u64(state) % 14); break;
    case 3: { /* the value of another key */
        const draft_key *other = &d->keys[random_up_to(state, d->num_keys)];
        if (other == key) break;
        key->type = other->type;
        key->value.num_bytes = 0;
        put_bytes(&key->value, other->value.bytes, other->value.num_bytes);
        break;
    }
    default:
        if (key->type == GGUF_ARRAY && random_u64(state) % 4 && skip_value(&key->value, GGUF_ARRAY, &end))
            mutate_array(&key->value, state);
        else mutate_bytes(&key->value, state);
    }
}

/* Fills the tensor anew if its shape is small and whole. */
static inline void refill_tensor(draft_tensor *t) {
    int64_t elements;
    size_t bytes;
    const char *name;
    uint64_t count = 1;
    for (uint32_t i = 0; i < t->num_dimensions && i < 8; i++) count = saturating_multiply(count, t->shape[i]);
    const bool known = t->type <= 64 && tensor_type_blocks((tensor_type)t->type, &elements, &bytes, &name);
    if (known && count < 1 << 16 && count % (uint64_t)elements == 0) draft_fill_tensor(t);
}

static inline void mutate_tensor(gguf_draft *d, uint64_t *state) {
    if (d->num_tensors == 0) return;
    draft_tensor *t = &d->tensors[random_up_to(state, d->num_tensors)];
    draft_tensor *other = &d->tensors[random_up_to(state, d->num_tensors)];
    switch (random_u64(state) % 10) {
    case 0: draft_remove_tensor(d, t->name); break;
    case 1: {
        const draft_tensor kept = *t;
        *t = *other;
        *other = kept;
        break;
    }
    case 2:
        memmove(t->name, other->name, sizeof t->name);
        t->name_length = other->name_length;
        break;
    case 3: t->type = (uint32_t)(random_u64(state) % 42); break;
    case 4:
        t->type = (uint32_t)(random_u64(state) % 42);
        refill_tensor(t);
        break;
    case 5:
        t->shape[random_up_to(state, 2)] = random_u64(state) % 2 ? random_u64(state) % 300 : random_edge(state);
        if (random_u64(state) % 2) refill_tensor(t);
        break;
    case 6: t->num_dimensions = (uint32_t)(random_u64(state) % 6); break;
    case 7: t->offset_error = (int64_t)random_edge(state); break;
    default: /* weights that overflow, or are no numbers */
        for (int n = 0; n < 4 && t->data.num_bytes >= 4; n++) {
            const uint32_t bits = random_float_bits(state);
            memcpy(t->data.bytes + random_up_to(state, t->data.num_bytes / 4) * 4, &bits, sizeof bits);
        }
    }
}

/* Changes keys and tensors; or bytes, if the file is too damaged for that and in every fourth
 * case. */
static inline void mutate_gguf(buffer *file, uint64_t *state) {
    gguf_draft *d = calloc(1, sizeof *d);
    if (!d) abort();
    if (random_u64(state) % 4 != 0 && draft_parse(file, d)) {
        for (uint64_t n = 1 + random_u64(state) % 3; n > 0; n--)
            if (random_u64(state) % 3) mutate_key(d, state);
            else mutate_tensor(d, state);
        free_buffer(file);
        *file = draft_write(d);
    } else {
        mutate_bytes(file, state);
    }
    draft_free(d);
    free(d);
}

#endif
