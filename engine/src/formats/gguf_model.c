/* gguf_model.c: reads a GGUF file of architecture "llama" into a model whose weights point into the
 * file. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "formats/gguf.h"
#include "formats/model_check.h"
#include "runtime/error.h"

enum { NAME_BYTES = 64, SHAPE_BYTES = 96, MAX_SYSTEM_PROMPT_BYTES = 1 << 18 };

/* ---------------------------------------------------------------- configuration */

/* Keys that must be missing or have the value that changes nothing. The importer has the same list
 * (src/llamita/formats/gguf_metadata.py). */
static llamita_status check_unsupported_keys(const gguf_file *file) {
    static const struct {
        const char *key;
        double neutral;
        const char *feature;
    } keys[] = {
        {"llama.expert_count", 0, "mixtures of experts"},
        {"llama.expert_used_count", 0, "mixtures of experts"},
        {"llama.attention.clamp_kqv", 0, "clamped queries, keys and values"},
        {"llama.attention.sliding_window", 0, "sliding windows"},
        {"llama.attention.causal", 1, "models without a causal mask"},
        {"llama.attention.scale", 0, "attention scales"},
        {"llama.rope.scaling.attn_factor", 1, "attention factors"},
        {"llama.use_parallel_residual", 0, "parallel residuals"},
        {"llama.logit_scale", 1, "scaled logits"},
        {"llama.residual_scale", 1, "scaled residuals"},
        {"llama.embedding_scale", 1, "scaled embeddings"},
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        bool found;
        double value = keys[i].neutral;
        llamita_status status = gguf_number(file, keys[i].key, &value, &found);
        if (status) return status;
        if (value != keys[i].neutral) {
            return reader_error(&file->from, "key %s: expected %g, found %g; %s are not supported", keys[i].key,
                                keys[i].neutral, value, keys[i].feature);
        }
    }
    return LLAMITA_OK;
}

/* Refuses files whose results would be wrong, by the name of the unsupported feature. */
static llamita_status check_supported(const gguf_file *file) {
    byte_slice architecture = {0};
    bool found;
    int64_t number = 0;
    byte_slice kind = {0};
    llamita_status status = gguf_string(file, "general.type", &kind, &found);
    if (!status && slice_is(kind, "adapter")) {
        return reader_error(&file->from, "expected a model, found an adapter; open the model it was made for and "
                                         "apply it with --adapter");
    }
    /* Before the architecture, which only the first split names. */
    status = status ? status : gguf_integer(file, "split.count", 0, INT32_MAX, &number, &found);
    if (!status && number > 1) {
        return reader_error(&file->from,
                            "expected a whole model, found one of %" PRId64 " splits (split.count); merge them with "
                            "llama-gguf-split --merge",
                            number);
    }
    status = status ? status : gguf_string(file, "general.architecture", &architecture, NULL);
    if (!status && !slice_is(architecture, "llama")) {
        return reader_error(&file->from, "architecture: expected llama, found %.*s; this engine runs only Llama models",
                            SHOWN(architecture));
    }
    status = status ? status : check_unsupported_keys(file);
    if (!status && file->num_tensors == 0) {
        return reader_error(&file->from,
                            "expected a model, found a tokenizer without tensors; pass it as the tokenizer (-z) of "
                            "a model");
    }
    number = 2;
    status = status ? status : gguf_integer(file, "general.quantization_version", 0, INT32_MAX, &number, &found);
    for (size_t i = 0; !status && number != 2 && i < file->num_tensors; i++) {
        if (tensor_type_is_quantized((tensor_type)file->tensors[i].type)) {
            return reader_error(&file->from,
                                "general.quantization_version: expected 2, found %" PRId64 "; convert the "
                                "model again",
                                number);
        }
    }
    return status;
}

/* The head size: key_length, else D / H. Values and the rotated part must have the same size. */
static llamita_status read_head_dim(const gguf_file *file, llamita_model_info *info) {
    const char *const others[] = {"llama.attention.value_length", "llama.rope.dimension_count"};
    bool found;
    int64_t head_dim = 0;
    llamita_status status = gguf_integer(file, "llama.attention.key_length", 1, INT32_MAX, &head_dim, &found);
    if (!status && !found) {
        if (info->hidden_size % info->num_attention_heads != 0) {
            return reader_error(&file->from,
                                "number of attention heads: expected a divisor of the hidden size %d, found %d; "
                                "the file is damaged",
                                info->hidden_size, info->num_attention_heads);
        }
        head_dim = info->hidden_size / info->num_attention_heads;
    }
    for (size_t i = 0; !status && i < sizeof others / sizeof others[0]; i++) {
        int64_t other = head_dim;
        status = gguf_integer(file, others[i], 1, INT32_MAX, &other, &found);
        if (!status && other != head_dim) {
            return reader_error(&file->from,
                                "%s: expected the head size %" PRId64 ", found %" PRId64 "; partial rotation and "
                                "values of another size are not supported",
                                others[i], head_dim, other);
        }
    }
    info->head_dim = (int32_t)head_dim;
    return status;
}

static llamita_status read_sizes(const gguf_file *file, llamita_model_info *info) {
    const struct {
        const char *key;
        int32_t *value;
        bool per_layer;
    } sizes[] = {
        {"llama.context_length", &info->context_tokens, false},
        {"llama.embedding_length", &info->hidden_size, false},
        {"llama.block_count", &info->num_hidden_layers, false},
        {"llama.feed_forward_length", &info->intermediate_size, true},
        {"llama.attention.head_count", &info->num_attention_heads, true},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        int64_t value = 0;
        llamita_status status = sizes[i].per_layer ? gguf_layer_integer(file, sizes[i].key, 1, INT32_MAX, &value, NULL)
                                                   : gguf_integer(file, sizes[i].key, 1, INT32_MAX, &value, NULL);
        if (status) return status;
        *sizes[i].value = (int32_t)value;
    }
    bool found;
    int64_t kv_heads = info->num_attention_heads;
    llamita_status status = gguf_layer_integer(file, "llama.attention.head_count_kv", 1, INT32_MAX, &kv_heads, &found);
    info->num_key_value_heads = (int32_t)kv_heads;
    return status ? status : read_head_dim(file, info);
}

static llamita_status read_numbers(const gguf_file *file, llamita_model_info *info) {
    bool found;
    double epsilon = 0, theta = 10000.0; /* llama.cpp's default */
    llamita_status status = gguf_real(file, "llama.attention.layer_norm_rms_epsilon", &epsilon, NULL);
    status = status ? status : gguf_real(file, "llama.rope.freq_base", &theta, &found);
    if (!status && !((float)epsilon > 0.0F && epsilon < 1.0)) {
        return reader_error(&file->from,
                            "key llama.attention.layer_norm_rms_epsilon: expected a number above 0 and below 1, "
                            "found %g; the file is damaged",
                            epsilon);
    }
    if (!status && !(theta >= 1.0 && isfinite((float)theta))) {
        return reader_error(&file->from, "key llama.rope.freq_base: expected at least 1, found %g; the file is damaged",
                            theta);
    }
    info->rms_norm_eps = (float)epsilon;
    info->rope_theta = (float)theta;
    return status;
}

/* The vocabulary size is the number of rows of the embedding. As in llama.cpp, llama.vocab_size is
 * not used. */
static llamita_status read_vocab_size(const gguf_file *file, llamita_model_info *info) {
    const gguf_tensor *embedding = gguf_find_tensor(file, "token_embd.weight");
    if (!embedding)
        return reader_error(&file->from, "tensor token_embd.weight is missing; the file is damaged or not a Llama");
    info->vocab_size = embedding->shape[1] > INT32_MAX ? INT32_MAX : (int32_t)embedding->shape[1];
    return LLAMITA_OK;
}

/* The factor that divides positions. As in llama.cpp, a factor without a type means linear. */
static llamita_status read_rope_scale(const gguf_file *file, double *scale) {
    byte_slice type = {"linear", 6};
    bool found;
    double factor = 0.0;
    llamita_status status = gguf_string(file, "llama.rope.scaling.type", &type, &found);
    if (!status && !slice_is(type, "none") && !slice_is(type, "linear")) {
        return reader_error(&file->from,
                            "key llama.rope.scaling.type: expected none or linear, found %.*s, which is not "
                            "supported",
                            SHOWN(type));
    }
    status = status ? status : gguf_real(file, "llama.rope.scaling.factor", &factor, &found);
    if (!status && !found) status = gguf_real(file, "llama.rope.scale_linear", &factor, &found);
    if (!status && factor < 0.0) {
        return reader_error(&file->from,
                            "key llama.rope.scaling.factor: expected a positive number, found %g; the file is "
                            "damaged",
                            factor);
    }
    /* As in llama.cpp, 0 means none. */
    *scale = slice_is(type, "none") || factor == 0.0 ? 1.0 : factor;
    return status;
}

/* ---------------------------------------------------------------- tensors */

static void print_shape(char text[SHAPE_BYTES], const int64_t *shape, int num_dimensions) {
    size_t length = 0;
    for (int i = 0; i < num_dimensions; i++)
        length += (size_t)snprintf(text + length, SHAPE_BYTES - length, "%s%" PRId64, i ? ", " : "[", shape[i]);
    snprintf(text + length, SHAPE_BYTES - length, "]");
}

/* The named tensor, which must have this shape (num_rows 0: a vector). */
static llamita_status take_tensor(const gguf_file *file, const char *name, int64_t row_length, int64_t num_rows,
                                  gguf_tensor **out) {
    gguf_tensor *t = gguf_find_tensor(file, name);
    if (!t) return reader_error(&file->from, "tensor %s is missing; the file is damaged or not a Llama", name);
    const int64_t shape[GGUF_MAX_DIMENSIONS] = {row_length, num_rows ? num_rows : 1, 1, 1};
    if (memcmp(t->shape, shape, sizeof shape) != 0) {
        char expected[SHAPE_BYTES], found[SHAPE_BYTES];
        print_shape(expected, shape, num_rows ? 2 : 1);
        print_shape(found, t->shape, t->num_dimensions);
        return reader_error(&file->from, "tensor %s: expected shape %s, found %s; the file is damaged or not a Llama",
                            name, expected, found);
    }
    t->used = true;
    *out = t;
    return LLAMITA_OK;
}

static llamita_status take_matrix(const gguf_file *file, const char *name, int64_t num_rows, int64_t row_length,
                                  tensor *matrix) {
    gguf_tensor *t;
    llamita_status status = take_tensor(file, name, row_length, num_rows, &t);
    if (!status) {
        *matrix = (tensor){.type = (tensor_type)t->type,
                           .num_rows = num_rows,
                           .row_length = row_length,
                           .row_bytes = (size_t)(t->num_bytes / (uint64_t)num_rows),
                           .data = t->data};
    }
    return status;
}

/* A vector of floats: in the file if it is F32, else converted into memory of the model. */
static llamita_status take_vector(llamita_model *model, const gguf_file *file, const char *name, int64_t length,
                                  const float **vector) {
    gguf_tensor *t;
    llamita_status status = take_tensor(file, name, length, 0, &t);
    if (status) return status;
    const tensor_type type = (tensor_type)t->type;
    const float *values = (const float *)(const void *)t->data;
    if (tensor_type_is_quantized(type)) {
        return reader_error(&file->from,
                            "tensor %s: expected type F32, F16 or BF16, found a quantized one; the file is "
                            "damaged",
                            name);
    }
    if (type != TENSOR_F32) {
        float *converted = model_allocate(model, (size_t)length * sizeof *converted);
        if (!converted) return reader_memory_error(&file->from, (uint64_t)length * sizeof *converted);
        tensor_type_dequantize(type)(t->data, length, converted);
        values = converted;
    }
    *vector = values;
    return model_check_finite(&file->from, name, values, length);
}

const char *const gguf_matrix_names[MATRICES_PER_LAYER] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                           "ffn_gate", "ffn_up", "ffn_down"};

static llamita_status take_layer(llamita_model *model, const gguf_file *file, int32_t index) {
    const llamita_model_info *info = &model->info;
    const int64_t hidden = info->hidden_size, ffn = info->intermediate_size;
    const int64_t query = (int64_t)info->num_attention_heads * info->head_dim;
    const int64_t key_value = (int64_t)info->num_key_value_heads * info->head_dim;
    layer *l = &model->layers[index];
    const struct {
        const char *name;
        const float **vector;
        tensor *matrix;
        int64_t num_rows, row_length;
    } parts[] = {
        {"attn_norm", &l->attention_norm, NULL, 0, hidden},
        {gguf_matrix_names[MATRIX_QUERY], NULL, &l->query, query, hidden},
        {gguf_matrix_names[MATRIX_KEY], NULL, &l->key, key_value, hidden},
        {gguf_matrix_names[MATRIX_VALUE], NULL, &l->value, key_value, hidden},
        {gguf_matrix_names[MATRIX_ATTENTION_OUTPUT], NULL, &l->attention_output, hidden, query},
        {"ffn_norm", &l->ffn_norm, NULL, 0, hidden},
        {gguf_matrix_names[MATRIX_FFN_GATE], NULL, &l->ffn_gate, ffn, hidden},
        {gguf_matrix_names[MATRIX_FFN_UP], NULL, &l->ffn_up, ffn, hidden},
        {gguf_matrix_names[MATRIX_FFN_DOWN], NULL, &l->ffn_down, hidden, ffn},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "blk.%d.%s.weight", index, parts[i].name);
        llamita_status status = parts[i].vector
                                    ? take_vector(model, file, name, parts[i].row_length, parts[i].vector)
                                    : take_matrix(file, name, parts[i].num_rows, parts[i].row_length, parts[i].matrix);
        if (status) return status;
    }
    return LLAMITA_OK;
}

static llamita_status take_layers(llamita_model *model, const gguf_file *file) {
    const int32_t num_layers = model->info.num_hidden_layers;
    if ((size_t)num_layers > file->num_tensors) {
        return reader_error(&file->from,
                            "key llama.block_count: expected at most the file's %zu tensors, found %d; the file is "
                            "damaged",
                            file->num_tensors, num_layers);
    }
    model->layers = model_allocate(model, (size_t)num_layers * sizeof *model->layers);
    if (!model->layers) return reader_memory_error(&file->from, (uint64_t)num_layers * sizeof *model->layers);
    llamita_status status = LLAMITA_OK;
    for (int32_t i = 0; !status && i < num_layers; i++) status = take_layer(model, file, i);
    return status;
}

static llamita_status take_embeddings(llamita_model *model, const gguf_file *file) {
    llamita_model_info *info = &model->info;
    llamita_status status =
        take_matrix(file, "token_embd.weight", info->vocab_size, info->hidden_size, &model->token_embedding);
    status = status ? status : take_vector(model, file, "output_norm.weight", info->hidden_size, &model->output_norm);
    info->tied_embeddings = !gguf_find_tensor(file, "output.weight");
    model->output = model->token_embedding;
    if (!status && !info->tied_embeddings)
        status = take_matrix(file, "output.weight", info->vocab_size, info->hidden_size, &model->output);
    return status;
}

/* Llama 3.1 stores its RoPE scaling as a tensor of divisors. */
static llamita_status take_rope(llamita_model *model, const gguf_file *file) {
    const float *divisors = NULL;
    double scale = 1.0;
    llamita_status status = read_rope_scale(file, &scale);
    if (!status && gguf_find_tensor(file, "rope_freqs.weight"))
        status = take_vector(model, file, "rope_freqs.weight", model->info.head_dim / 2, &divisors);
    for (int32_t i = 0; !status && divisors && i < model->info.head_dim / 2; i++) {
        if (!(divisors[i] > 0.0F)) {
            return reader_error(&file->from,
                                "tensor rope_freqs.weight: expected positive numbers, found %g at position %d; "
                                "the file is damaged",
                                (double)divisors[i], i);
        }
    }
    return status ? status : model_fill_rope(model, &file->from, scale, divisors);
}

/* An unused tensor would change the results, or the file is not a plain Llama. */
static llamita_status check_all_used(llamita_model *model, const gguf_file *file) {
    for (size_t i = 0; i < file->num_tensors; i++) {
        const gguf_tensor *t = &file->tensors[i];
        if (!t->used) {
            return reader_error(&file->from,
                                "tensor %.*s: expected no such tensor in a Llama of %d layers; ignoring it would "
                                "give wrong results",
                                SHOWN(t->name), model->info.num_hidden_layers);
        }
        model->info.weight_bytes += (int64_t)t->num_bytes;
    }
    return LLAMITA_OK;
}

static llamita_status fill(llamita_model *model, const gguf_file *file) {
    llamita_model_info *info = &model->info;
    llamita_status status = check_supported(file);
    status = status ? status : read_sizes(file, info);
    status = status ? status : read_numbers(file, info);
    status = status ? status : read_vocab_size(file, info);
    status = status ? status : model_check_shape(model, &file->from);
    status = status ? status : take_embeddings(model, file);
    status = status ? status : take_layers(model, file);
    status = status ? status : take_rope(model, file);
    status = status ? status : check_all_used(model, file);
    if (status) return status;
    byte_slice name = {"", 0};
    bool found;
    status = gguf_string(file, "general.name", &name, &found);
    error_clean_line(info->name, sizeof info->name, name.bytes, name.num_bytes);
    snprintf(info->architecture, sizeof info->architecture, "llama");
    snprintf(info->format, sizeof info->format, "GGUF v%" PRIu32, file->version);
    return status ? status
                  : gguf_copy_text(file, "llamita.system_prompt", MAX_SYSTEM_PROMPT_BYTES, &model->system_prompt);
}

llamita_status gguf_fill_model(llamita_model *model, const char *path, llamita_error *error) {
    const reader from = {model->mapping, model->mapping_bytes, 0, "model", path, error};
    gguf_file file;
    llamita_status status = gguf_parse(&file, &from);
    status = status ? status : fill(model, &file);
    gguf_free(&file);
    return status;
}
