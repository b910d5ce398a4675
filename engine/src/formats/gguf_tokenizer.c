/* gguf_tokenizer.c: reads the tokenizer and the chat template from the keys of a GGUF file.
 *
 * Files rely on llama.cpp's defaults (src/llama-vocab.cpp): add_bos is on for SentencePiece and for
 * the pre-tokenizers llama-bpe and tekken, and the control tokens listed below end a text. Where llama.cpp
 * guesses, this reader refuses the file.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "formats/gguf_keys.h"
#include "tokenizer/pre_tokenizer.h"

enum { MAX_TOKENS = 1 << 20, MAX_MERGES = 1 << 20, MAX_TOKEN_BYTES = 65535, MAX_TEMPLATE_BYTES = 1 << 20 };
enum { MAX_END_IDS = 2 + 8 }; /* two keys, and ENDING_TEXTS */

/* Control tokens that end a text even if no key names them. */
static const char *const ENDING_TEXTS[] = {"<|eot_id|>",    "<|eom_id|>",      "<|im_end|>",    "<|end|>",
                                           "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "</s>"};

/* A tokenizer_source and the memory it points to. */
typedef struct {
    tokenizer_source source;
    byte_slice *pieces, *merges;
    float *scores;
    int32_t *types;
    int32_t end_ids[MAX_END_IDS];
} vocabulary;

/* pre: the name to use instead of the file's; NULL: the file's. */
static llamita_status read_kind(const gguf_file *file, byte_slice model, const char *pre, tokenizer_source *source) {
    if (slice_is(model, "llama")) {
        source->kind = TOKENIZER_SENTENCEPIECE;
        return LLAMITA_OK;
    }
    if (!slice_is(model, "gpt2")) {
        return reader_error(&file->from,
                            "key tokenizer.ggml.model: expected llama or gpt2, found %.*s, which is not supported",
                            SHOWN(model));
    }
    byte_slice name = {pre, pre ? strlen(pre) : 0};
    source->kind = TOKENIZER_BYTE_LEVEL;
    bool found = true;
    llamita_status status = pre ? LLAMITA_OK : gguf_key_text(file, KEY_TOKENIZER_PRE, &name, &found);
    if (status || (found && pre_tokenizer_find(name, &source->pre_tokenizer))) return status;
    return reader_error(&file->from,
                        "%s: expected llama-bpe, qwen2, gpt-2, smollm, gpt-4o, tekken, dbrx, default or a name that "
                        "llama.cpp has for one of these, found %.*s; if you know how the tokenizer splits text, say it "
                        "with --pre NAME (Llama 3: llama-bpe)",
                        pre ? "pre-tokenizer" : "key tokenizer.ggml.pre", found ? SHOWN_LENGTH(name) : 4,
                        found ? name.bytes : "none");
}

static llamita_status read_pieces(const gguf_file *file, vocabulary *v) {
    const gguf_entry *tokens;
    llamita_status status = gguf_array(file, "tokenizer.ggml.tokens", GGUF_STRING, &tokens);
    if (status) return status;
    if (tokens->count < 1 || tokens->count > MAX_TOKENS) {
        return reader_error(
            &file->from, "key tokenizer.ggml.tokens: expected 1 to %d tokens, found %" PRIu64 "; the file is damaged",
            MAX_TOKENS, tokens->count);
    }
    status = gguf_strings(file, tokens, &v->pieces);
    v->source.pieces = v->pieces;
    v->source.vocab_size = (int32_t)tokens->count;
    for (int32_t i = 0; !status && i < v->source.vocab_size; i++) {
        if (v->pieces[i].num_bytes > MAX_TOKEN_BYTES) {
            return reader_error(&file->from,
                                "key tokenizer.ggml.tokens: token %d: expected at most %d bytes, found %zu; the "
                                "file is damaged",
                                i, MAX_TOKEN_BYTES, v->pieces[i].num_bytes);
        }
    }
    return status;
}

static llamita_status check_count(const gguf_file *file, const char *key, const gguf_entry *array, int32_t vocab_size) {
    if (array->count != (uint64_t)vocab_size) {
        return reader_error(&file->from,
                            "key %s: expected %d elements, one per token, found %" PRIu64 "; the file is damaged", key,
                            vocab_size, array->count);
    }
    return LLAMITA_OK;
}

static llamita_status read_scores(const gguf_file *file, vocabulary *v) {
    const char *key = "tokenizer.ggml.scores";
    const gguf_entry *array;
    llamita_status status = gguf_array(file, key, GGUF_F32, &array);
    status = status ? status : check_count(file, key, array, v->source.vocab_size);
    if (status) return status;
    v->scores = malloc((size_t)array->count * sizeof *v->scores);
    if (!v->scores) return reader_memory_error(&file->from, array->count * sizeof *v->scores);
    for (uint64_t i = 0; i < array->count; i++) {
        v->scores[i] = read_f32(array->data + 4 * i);
        if (!isfinite(v->scores[i])) {
            return reader_error(&file->from,
                                "key %s: token %" PRIu64 ": expected a finite number, found %f; the file is "
                                "damaged",
                                key, i, (double)v->scores[i]);
        }
    }
    v->source.scores = v->scores;
    return LLAMITA_OK;
}

static llamita_status read_types(const gguf_file *file, vocabulary *v) {
    const char *key = "tokenizer.ggml.token_type";
    const gguf_entry *array;
    if (!gguf_find(file, key)) return LLAMITA_OK;
    llamita_status status = gguf_array(file, key, GGUF_I32, &array);
    status = status ? status : check_count(file, key, array, v->source.vocab_size);
    if (status) return status;
    v->types = malloc((size_t)array->count * sizeof *v->types);
    if (!v->types) return reader_memory_error(&file->from, array->count * sizeof *v->types);
    for (uint64_t i = 0; i < array->count; i++) {
        v->types[i] = (int32_t)read_u32(array->data + 4 * i);
        if (v->types[i] < TOKEN_NORMAL || v->types[i] > TOKEN_BYTE) {
            return reader_error(&file->from,
                                "key %s: token %" PRIu64 ": expected a type of %d to %d, found %" PRId32
                                "; the file is damaged",
                                key, i, TOKEN_NORMAL, TOKEN_BYTE, v->types[i]);
        }
    }
    v->source.types = v->types;
    return LLAMITA_OK;
}

static llamita_status read_merges(const gguf_file *file, vocabulary *v) {
    const gguf_entry *array;
    llamita_status status = gguf_array(file, "tokenizer.ggml.merges", GGUF_STRING, &array);
    if (status) return status;
    if (array->count > MAX_MERGES) {
        return reader_error(&file->from,
                            "key tokenizer.ggml.merges: expected at most %d, found %" PRIu64 "; the file is "
                            "damaged",
                            MAX_MERGES, array->count);
    }
    status = gguf_strings(file, array, &v->merges);
    v->source.merges = v->merges;
    v->source.num_merges = (size_t)array->count;
    return status;
}

/* The id of the key, -1 if it says none. Without the key: fallback, or -1 if that is not in the
 * vocabulary. */
static llamita_status read_id(const gguf_file *file, const char *key, int32_t vocab_size, int32_t fallback,
                              int32_t *id) {
    int64_t value = fallback < vocab_size ? fallback : -1, stated = 0;
    bool found;
    llamita_status status = gguf_integer(file, key, INT64_MIN, INT64_MAX, &stated, &found);
    if (!status && (stated == -1 || stated == UINT32_MAX)) value = -1; /* how older converters write "none" */
    else if (!status) status = gguf_integer(file, key, 0, vocab_size - 1, &value, &found);
    *id = (int32_t)value;
    return status;
}

static llamita_status read_end_ids(const gguf_file *file, vocabulary *v) {
    const char *const keys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    size_t count = 0;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        int32_t id;
        llamita_status status = read_id(file, keys[i], v->source.vocab_size, -1, &id);
        if (status) return status;
        if (id >= 0) v->end_ids[count++] = id;
    }
    for (int32_t id = 0; v->types && id < v->source.vocab_size; id++) {
        for (size_t i = 0; v->types[id] == TOKEN_CONTROL && i < sizeof ENDING_TEXTS / sizeof ENDING_TEXTS[0]; i++)
            if (count < MAX_END_IDS && slice_is(v->pieces[id], ENDING_TEXTS[i])) v->end_ids[count++] = id;
    }
    v->source.end_ids = v->end_ids;
    v->source.num_end_ids = count;
    return LLAMITA_OK;
}

static llamita_status read_specials(const gguf_file *file, vocabulary *v) {
    tokenizer_source *source = &v->source;
    const bool sentencepiece = source->kind == TOKENIZER_SENTENCEPIECE;
    const int32_t size = source->vocab_size;
    llamita_status status = read_id(file, "tokenizer.ggml.bos_token_id", size, sentencepiece ? 1 : -1, &source->bos_id);
    status =
        status ? status : read_id(file, "tokenizer.ggml.eos_token_id", size, sentencepiece ? 2 : -1, &source->eos_id);
    status = status
                 ? status
                 : read_id(file, "tokenizer.ggml.unknown_token_id", size, sentencepiece ? 0 : -1, &source->unknown_id);
    status = status ? status : read_end_ids(file, v);
    bool found;
    source->add_bos = sentencepiece || pre_tokenizer_adds_bos(source->pre_tokenizer);
    source->add_space_prefix = sentencepiece;
    status = status ? status : gguf_bool(file, "tokenizer.ggml.add_bos_token", &source->add_bos, &found);
    if (!status && source->add_bos && source->bos_id < 0) {
        if (found) {
            return reader_error(&file->from,
                                "key tokenizer.ggml.bos_token_id: expected an id, because add_bos_token is true, "
                                "found none; the file is damaged");
        }
        source->add_bos = false;
    }
    return status ? status : gguf_bool(file, "tokenizer.ggml.add_space_prefix", &source->add_space_prefix, &found);
}

static llamita_status read_vocabulary(const gguf_file *file, byte_slice model, const char *pre, vocabulary *v) {
    llamita_status status = read_kind(file, model, pre, &v->source);
    status = status ? status : read_pieces(file, v);
    status = status ? status : read_types(file, v);
    if (!status) status = v->source.kind == TOKENIZER_SENTENCEPIECE ? read_scores(file, v) : read_merges(file, v);
    return status ? status : read_specials(file, v);
}

static llamita_status read_tokenizer(const gguf_file *file, const char *pre, tokenizer **out) {
    byte_slice model = {0};
    bool found;
    llamita_status status = gguf_string(file, "tokenizer.ggml.model", &model, &found);
    if (status || !found || slice_is(model, "none") || slice_is(model, "no_vocab")) {
        *out = NULL;
        return status;
    }
    vocabulary v = {0};
    status = read_vocabulary(file, model, pre, &v);
    status = status ? status : tokenizer_create(&v.source, file->from.path, out, file->from.error);
    free(v.pieces);
    free(v.merges);
    free(v.scores);
    free(v.types);
    return status;
}

llamita_status gguf_read_tokenizer(const void *mapping, size_t num_bytes, const char *path, const char *pre,
                                   tokenizer **out, char **chat_template, llamita_error *error) {
    const reader from = {mapping, num_bytes, 0, "tokenizer", path, error, NULL};
    gguf_file file;
    char *template_text = NULL;
    llamita_status status = gguf_parse(&file, &from);
    status = status ? status : gguf_copy_text(&file, "tokenizer.chat_template", MAX_TEMPLATE_BYTES, &template_text);
    status = status || !out ? status : read_tokenizer(&file, pre, out);
    gguf_free(&file);
    if (status) {
        free(template_text);
        return status;
    }
    *chat_template = template_text;
    return LLAMITA_OK;
}
