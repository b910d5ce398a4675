/* gguf_model.c: reads a GGUF file into a model whose weights point into the file. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "formats/gguf.h"
#include "formats/gguf_keys.h"
#include "formats/model_check.h"
#include "runtime/error.h"

enum { NAME_BYTES = 64, MAX_SYSTEM_PROMPT_BYTES = 1 << 18 };

/* ---------------------------------------------------------------- configuration */

/* Refuses files whose results would be wrong, by the name of the unsupported feature. */
static llamita_status check_supported(const gguf_file *file) {
    byte_slice architecture = {0};
    int64_t number = 0;
    byte_slice kind = {0};
    llamita_status status = gguf_key_text(file, KEY_TYPE, &kind, NULL);
    if (!status && slice_is(kind, "adapter")) {
        return reader_error(&file->from, "expected a model, found an adapter; open the model it was made for and "
                                         "apply it with --adapter");
    }
    status = status ? status : gguf_key_text(file, KEY_ARCHITECTURE, &architecture, NULL);
    if (!status && !slice_is(architecture, file->architecture->name)) {
        return reader_error(&file->from,
                            "architecture: expected llama, qwen2, qwen3 or smollm3, found %.*s; it would need "
                            "another network",
                            SHOWN(architecture));
    }
    status = status ? status : gguf_check_fixed_keys(file);
    if (!status && file->num_tensors == 0) {
        return reader_error(&file->from,
                            "expected a model, found a tokenizer without tensors; pass it as the tokenizer (-z) of "
                            "a model");
    }
    status = status ? status : gguf_key_integer(file, KEY_QUANTIZATION_VERSION, &number, NULL);
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
    const gguf_key others[] = {KEY_VALUE_LENGTH, KEY_DIMENSION_COUNT};
    bool found;
    int64_t head_dim = 0;
    llamita_status status = gguf_key_integer(file, KEY_KEY_LENGTH, &head_dim, &found);
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
        int64_t other;
        status = gguf_key_integer(file, others[i], &other, &found);
        if (!status && found && other != head_dim) {
            return reader_error(&file->from,
                                "%s: expected the head size %" PRId64 ", found %" PRId64 "; partial rotation and "
                                "values of another size are not supported",
                                gguf_key_name(file, others[i]).text, head_dim, other);
        }
    }
    info->head_dim = (int32_t)head_dim;
    return status;
}

static llamita_status read_sizes(const gguf_file *file, llamita_model_info *info) {
    const struct {
        gguf_key key;
        int32_t *value;
    } sizes[] = {
        {KEY_CONTEXT_LENGTH, &info->context_tokens},  {KEY_EMBEDDING_LENGTH, &info->hidden_size},
        {KEY_BLOCK_COUNT, &info->num_hidden_layers},  {KEY_FEED_FORWARD_LENGTH, &info->intermediate_size},
        {KEY_HEAD_COUNT, &info->num_attention_heads}, {KEY_HEAD_COUNT_KV, &info->num_key_value_heads},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        int64_t value;
        bool found;
        llamita_status status = gguf_key_integer(file, sizes[i].key, &value, &found);
        if (status) return status;
        *sizes[i].value = found ? (int32_t)value : info->num_attention_heads;
    }
    int64_t window;
    llamita_status status = gguf_key_integer(file, KEY_SLIDING_WINDOW, &window, NULL);
    if (!status && window > 0 && window < info->context_tokens) {
        return reader_error(&file->from,
                            "key %s: expected 0 or at least the context of %d tokens, found %" PRId64 "; sliding "
                            "windows are not supported",
                            gguf_key_name(file, KEY_SLIDING_WINDOW).text, info->context_tokens, window);
    }
    return status ? status : read_head_dim(file, info);
}

static llamita_status read_numbers(const gguf_file *file, llamita_model_info *info) {
    double epsilon, theta;
    llamita_status status = gguf_key_real(file, KEY_EPSILON, &epsilon, NULL);
    status = status ? status : gguf_key_real(file, KEY_FREQ_BASE, &theta, NULL);
    if (status) return status;
    info->rms_norm_eps = (float)epsilon;
    info->rope_theta = (float)theta;
    return LLAMITA_OK;
}

static llamita_status missing_error(const gguf_file *file, const char *name) {
    return reader_error(&file->from, "tensor %s is missing; the file is damaged or not a %s", name,
                        file->architecture->model);
}

/* The vocabulary size is the number of rows of the embedding. As in llama.cpp, the key
 * vocab_size is not used. */
static llamita_status read_vocab_size(const gguf_file *file, llamita_model_info *info) {
    const gguf_tensor *embedding = gguf_find_tensor(file, "token_embd.weight");
    if (!embedding) return missing_error(file, "token_embd.weight");
    info->vocab_size = embedding->shape[1] > INT32_MAX ? INT32_MAX : (int32_t)embedding->shape[1];
    return LLAMITA_OK;
}

/* ---------------------------------------------------------------- tensors */

/* The named tensor, which must have this shape (num_rows 0: a vector). */
static llamita_status take_tensor(const gguf_file *file, const char *name, int64_t row_length, int64_t num_rows,
                                  gguf_tensor **out) {
    gguf_tensor *t = gguf_find_tensor(file, name);
    if (!t) return missing_error(file, name);
    const int64_t shape[GGUF_MAX_DIMENSIONS] = {row_length, num_rows ? num_rows : 1, 1, 1};
    if (memcmp(t->shape, shape, sizeof shape) != 0) {
        char expected[GGUF_SHAPE_BYTES], found[GGUF_SHAPE_BYTES];
        gguf_print_shape(expected, shape, num_rows ? 2 : 1);
        gguf_print_shape(found, t->shape, t->num_dimensions);
        return reader_error(&file->from, "tensor %s: expected shape %s, found %s; the file is damaged or not a %s",
                            name, expected, found, file->architecture->model);
    }
    t->used = true;
    *out = t;
    return LLAMITA_OK;
}

/* two_halves: as in tensor. */
static llamita_status take_matrix(const gguf_file *file, const char *name, int64_t num_rows, int64_t row_length,
                                  int32_t two_halves, tensor *matrix) {
    gguf_tensor *t;
    llamita_status status = take_tensor(file, name, row_length, num_rows, &t);
    if (!status) {
        *matrix = (tensor){.type = (tensor_type)t->type,
                           .num_rows = num_rows,
                           .row_length = row_length,
                           .row_bytes = (size_t)(t->num_bytes / (uint64_t)num_rows),
                           .data = t->data,
                           .two_halves = two_halves};
    }
    return status;
}

/* A vector of floats, in memory of the model. two_halves: as in tensor. */
static llamita_status take_vector(llamita_model *model, const gguf_file *file, const char *name, int64_t length,
                                  int32_t two_halves, const float **vector) {
    gguf_tensor *t;
    llamita_status status = take_tensor(file, name, length, 0, &t);
    if (status) return status;
    const tensor_type type = (tensor_type)t->type;
    if (tensor_type_is_quantized(type)) {
        return reader_error(&file->from,
                            "tensor %s: expected type F32, F16 or BF16, found a quantized one; the file is "
                            "damaged",
                            name);
    }
    float *values = model_allocate(model, (size_t)length * sizeof *values);
    float *floats = malloc((size_t)length * sizeof *floats);
    void *stored = malloc((size_t)t->num_bytes);
    if (!values || !floats || !stored) {
        status = reader_memory_error(&file->from, (uint64_t)length * sizeof *values);
    } else if (!model_read(model, t->data, (size_t)t->num_bytes, stored)) {
        status = model_cut_error(&file->from);
    } else {
        tensor_type_dequantize(type)(stored, length, floats);
        status = model_check_finite(&file->from, name, floats, length);
        for (int64_t i = 0; i < length; i++) values[i] = floats[model_stored_row(two_halves, i)];
        *vector = values;
    }
    free(floats);
    free(stored);
    return status;
}

const char *const gguf_matrix_names[MATRICES_PER_LAYER] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                           "ffn_gate", "ffn_up", "ffn_down"};

static llamita_status take_layer(llamita_model *model, const gguf_file *file, int32_t index) {
    const llamita_model_info *info = &model->info;
    const int64_t hidden = info->hidden_size, ffn = info->intermediate_size;
    const int64_t query = (int64_t)info->num_attention_heads * info->head_dim;
    const int64_t key_value = (int64_t)info->num_key_value_heads * info->head_dim;
    const gguf_architecture *kind = file->architecture;
    const int32_t halves = kind->two_halves ? info->head_dim : 0;
    layer *l = &model->layers[index];
    const struct {
        const char *name;
        const float **vector;
        int64_t length;
        int32_t two_halves;
        bool exists;
    } vectors[] = {
        {"attn_norm.weight", &l->attention_norm, hidden, 0, true},
        {"attn_q.bias", &l->query_bias, query, halves, kind->attention_bias},
        {"attn_k.bias", &l->key_bias, key_value, halves, kind->attention_bias},
        {"attn_v.bias", &l->value_bias, key_value, 0, kind->attention_bias},
        {"attn_q_norm.weight", &l->query_norm, info->head_dim, halves, kind->use_qk_norm},
        {"attn_k_norm.weight", &l->key_norm, info->head_dim, halves, kind->use_qk_norm},
        {"ffn_norm.weight", &l->ffn_norm, hidden, 0, true},
    };
    const struct {
        tensor *matrix;
        int64_t num_rows, row_length;
        int32_t two_halves;
    } matrices[MATRICES_PER_LAYER] = {
        [MATRIX_QUERY] = {&l->query, query, hidden, halves},
        [MATRIX_KEY] = {&l->key, key_value, hidden, halves},
        [MATRIX_VALUE] = {&l->value, key_value, hidden, 0},
        [MATRIX_ATTENTION_OUTPUT] = {&l->attention_output, hidden, query, 0},
        [MATRIX_FFN_GATE] = {&l->ffn_gate, ffn, hidden, 0},
        [MATRIX_FFN_UP] = {&l->ffn_up, ffn, hidden, 0},
        [MATRIX_FFN_DOWN] = {&l->ffn_down, hidden, ffn, 0},
    };
    char name[NAME_BYTES];
    llamita_status status = LLAMITA_OK;
    for (size_t i = 0; !status && i < sizeof vectors / sizeof vectors[0]; i++) {
        if (!vectors[i].exists) continue;
        snprintf(name, sizeof name, "blk.%d.%s", index, vectors[i].name);
        status = take_vector(model, file, name, vectors[i].length, vectors[i].two_halves, vectors[i].vector);
    }
    for (int i = 0; !status && i < MATRICES_PER_LAYER; i++) {
        snprintf(name, sizeof name, "blk.%d.%s.weight", index, gguf_matrix_names[i]);
        status = take_matrix(file, name, matrices[i].num_rows, matrices[i].row_length, matrices[i].two_halves,
                             matrices[i].matrix);
    }
    l->no_rope = kind->no_rope_interval > 0 && (index + 1) % kind->no_rope_interval == 0;
    return status;
}

static llamita_status take_layers(llamita_model *model, const gguf_file *file) {
    const int32_t num_layers = model->info.num_hidden_layers;
    if ((size_t)num_layers > file->num_tensors) {
        return reader_error(&file->from,
                            "key %s: expected at most the file's %zu tensors, found %d; the file is damaged",
                            gguf_key_name(file, KEY_BLOCK_COUNT).text, file->num_tensors, num_layers);
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
        take_matrix(file, "token_embd.weight", info->vocab_size, info->hidden_size, 0, &model->token_embedding);
    status =
        status ? status : take_vector(model, file, "output_norm.weight", info->hidden_size, 0, &model->output_norm);
    info->tied_embeddings = !gguf_find_tensor(file, "output.weight");
    model->output = model->token_embedding;
    if (!status && !info->tied_embeddings)
        status = take_matrix(file, "output.weight", info->vocab_size, info->hidden_size, 0, &model->output);
    return status;
}

/* ---------------------------------------------------------------- RoPE scaling */

/* As in llama.cpp, a factor without a type means linear. */
static llamita_status read_scaling_type(const gguf_file *file, rope_type *type) {
    static const struct {
        const char *name;
        rope_type type;
    } types[] = {{"none", ROPE_NONE}, {"linear", ROPE_LINEAR}, {"yarn", ROPE_YARN}, {"longrope", ROPE_LONGROPE}};
    byte_slice name = {"linear", 6};
    llamita_status status = gguf_key_text(file, KEY_SCALING_TYPE, &name, NULL);
    for (size_t i = 0; !status && i < sizeof types / sizeof types[0]; i++) {
        if (slice_is(name, types[i].name)) {
            *type = types[i].type;
            return LLAMITA_OK;
        }
    }
    return status ? status
                  : reader_error(&file->from,
                                 "key %s: expected none, linear, yarn or longrope, found %.*s, which is not supported",
                                 gguf_key_name(file, KEY_SCALING_TYPE).text, SHOWN(name));
}

/* The factor that divides positions: of the newer key, else of the older; 0 and type none mean 1. */
static llamita_status read_scaling_factor(const gguf_file *file, rope_type type, double *factor) {
    bool found;
    llamita_status status = gguf_key_real(file, KEY_SCALING_FACTOR, factor, &found);
    if (!status && !found) status = gguf_key_real(file, KEY_SCALE_LINEAR, factor, NULL);
    if (type == ROPE_NONE || *factor == 0.0) *factor = 1.0;
    if (!status && type == ROPE_YARN && *factor < 1.0) {
        return reader_error(&file->from, "key %s: expected at least 1 for yarn, found %g; the file is damaged",
                            gguf_key_name(file, KEY_SCALING_FACTOR).text, *factor);
    }
    return status;
}

static llamita_status read_attention_factor(const gguf_file *file, rope_type type, double *factor) {
    llamita_status status = gguf_key_real(file, KEY_ATTN_FACTOR, factor, NULL);
    if (!status && *factor != 1.0 && type != ROPE_YARN && type != ROPE_LONGROPE) {
        return reader_error(&file->from,
                            "key %s: expected 1 without yarn or longrope, found %g; attention factors of other "
                            "scalings are not supported",
                            gguf_key_name(file, KEY_ATTN_FACTOR).text, *factor);
    }
    return status;
}

/* A tensor [S/2] of divisors of the angles. */
static llamita_status take_divisors(llamita_model *model, const gguf_file *file, const char *name,
                                    const float **divisors) {
    llamita_status status = take_vector(model, file, name, model->info.head_dim / 2, 0, divisors);
    for (int32_t i = 0; !status && i < model->info.head_dim / 2; i++) {
        if (!((*divisors)[i] > 0.0F)) {
            return reader_error(&file->from,
                                "tensor %s: expected positive numbers, found %g at position %d; the file is damaged",
                                name, (double)(*divisors)[i], i);
        }
    }
    return status;
}

/* longrope: one tensor of divisors for short contexts and one for long ones. */
static llamita_status take_longrope(llamita_model *model, const gguf_file *file, rope_scaling *scaling) {
    llamita_status status = take_divisors(model, file, "rope_factors_short.weight", &scaling->divisors);
    status = status ? status : model_fill_rope(model, &file->from, scaling, &model->rope_frequency);
    status = status ? status : take_divisors(model, file, "rope_factors_long.weight", &scaling->divisors);
    status = status ? status : model_fill_rope(model, &file->from, scaling, &model->rope_long_frequency);
    model->rope_short_context = (int32_t)scaling->original_context;
    return status;
}

/* Llama 3.1 stores its scaling as a tensor of divisors, rope_freqs.weight. */
static llamita_status take_rope(llamita_model *model, const gguf_file *file) {
    rope_scaling *scaling = &model->rope;
    *scaling = (rope_scaling){.type = ROPE_NONE, .base = (double)model->info.rope_theta, .factor = 1.0};
    int64_t original_context = 0;
    bool found;
    llamita_status status = read_scaling_type(file, &scaling->type);
    status = status ? status : read_scaling_factor(file, scaling->type, &scaling->factor);
    status = status ? status : read_attention_factor(file, scaling->type, &scaling->attention_factor);
    status = status ? status : gguf_key_integer(file, KEY_ORIGINAL_CONTEXT, &original_context, &found);
    status = status ? status : gguf_key_real(file, KEY_YARN_BETA_FAST, &scaling->beta_fast, NULL);
    status = status ? status : gguf_key_real(file, KEY_YARN_BETA_SLOW, &scaling->beta_slow, NULL);
    if (status) return status;
    model->rope_attention_factor = rope_attention_factor(scaling);
    scaling->original_context = (double)(found ? original_context : model->info.context_tokens);
    if (scaling->type == ROPE_LONGROPE) return take_longrope(model, file, scaling);
    if (gguf_find_tensor(file, "rope_freqs.weight"))
        status = take_divisors(model, file, "rope_freqs.weight", &scaling->divisors);
    return status ? status : model_fill_rope(model, &file->from, scaling, &model->rope_frequency);
}

/* ---------------------------------------------------------------- the whole file */

/* An unused tensor would change the results, or the file is of another architecture. */
static llamita_status check_all_used(llamita_model *model, const gguf_file *file) {
    for (size_t i = 0; i < file->num_tensors; i++) {
        const gguf_tensor *t = &file->tensors[i];
        if (!t->used) {
            return reader_error(&file->from,
                                "tensor %.*s: expected no such tensor in a %s of %d layers; ignoring it would give "
                                "wrong results",
                                SHOWN(t->name), file->architecture->model, model->info.num_hidden_layers);
        }
        model->info.weight_bytes += (int64_t)t->num_bytes;
    }
    return LLAMITA_OK;
}

static llamita_status fill(llamita_model *model, gguf_file *file) {
    llamita_model_info *info = &model->info;
    llamita_status status = gguf_take_pieces(model, file); /* only the first has keys */
    status = status ? status : check_supported(file);
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
    status = gguf_key_text(file, KEY_NAME, &name, NULL);
    error_clean_line(info->name, sizeof info->name, name.bytes, name.num_bytes);
    snprintf(info->architecture, sizeof info->architecture, "%s", file->architecture->name);
    snprintf(info->format, sizeof info->format, "GGUF v%" PRIu32, file->version);
    return status ? status
                  : gguf_copy_text(file, "llamita.system_prompt", MAX_SYSTEM_PROMPT_BYTES, &model->system_prompt);
}

llamita_status gguf_fill_model(llamita_model *model, const char *path, llamita_error *error) {
    const reader from = {model->mapping, model->mapping_bytes, 0, "model", path, error, model->file};
    gguf_file file;
    llamita_status status = gguf_parse(&file, &from);
    status = status ? status : fill(model, &file);
    gguf_free(&file);
    return status;
}
