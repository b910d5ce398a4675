/* model.c: turns a path into an open model: maps the file, lets its format's reader fill it, loads its tokenizer. */
#include "model/model.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime/error.h"
#include "kernels/kernels.h"
#include "formats/mmap_file.h"
#include "formats/reader.h"
#include "tokenizer/tokenizer.h"

/* Above any Llama (405B: hidden 16384, ffn 53248, 128 heads, 126 layers), and low enough that products of two fit. */
enum { MAX_HIDDEN = 1 << 20, MAX_FFN = 1 << 22, MAX_HEADS = 1 << 14, MAX_HEAD_DIM = 1 << 14, MAX_LAYERS = 1 << 12 };
enum { MAX_VOCAB = 1 << 20, MEMORY_ALIGNMENT = 64 };

/* ---------------------------------------------------------------- memory */

void *model_allocate(llamita_model *model, size_t num_bytes) {
    if (num_bytes > SIZE_MAX - MEMORY_ALIGNMENT) {
        return NULL;
    }
    void **owned = realloc(model->owned, (model->num_owned + 1) * sizeof *owned);
    if (!owned) {
        return NULL;
    }
    model->owned = owned;
    size_t rounded = (num_bytes / MEMORY_ALIGNMENT + 1) * MEMORY_ALIGNMENT;
    void *memory = aligned_alloc(MEMORY_ALIGNMENT, rounded);
    if (memory) {
        memset(memory, 0, rounded);
        owned[model->num_owned++] = memory;
    }
    return memory;
}

/* ---------------------------------------------------------------- what both formats need */

static llamita_status check_size(const reader *from, const char *name, int64_t value, int64_t highest) {
    if (value < 1 || value > highest) {
        return reader_refuse(from, "%s: expected 1 to %" PRId64 ", found %" PRId64 "; the file is damaged", name,
                             highest, value);
    }
    return LLAMITA_OK;
}

llamita_status model_check_shape(const llamita_model *model, const struct reader *from) {
    const llamita_model_info *info = &model->info;
    const struct {
        const char *name;
        int64_t value, highest;
    } sizes[] = {
        {"hidden size", info->hidden_size, MAX_HIDDEN},
        {"feed-forward size", info->intermediate_size, MAX_FFN},
        {"number of layers", info->num_hidden_layers, MAX_LAYERS},
        {"number of attention heads", info->num_attention_heads, MAX_HEADS},
        {"number of key-value heads", info->num_key_value_heads, MAX_HEADS},
        {"head size", info->head_dim, MAX_HEAD_DIM},
        {"vocabulary", info->vocab_size, MAX_VOCAB},
        {"context length", info->context_tokens, INT32_MAX},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        llamita_status status = check_size(from, sizes[i].name, sizes[i].value, sizes[i].highest);
        if (status) {
            return status;
        }
    }
    if (info->num_attention_heads % info->num_key_value_heads != 0) {
        return reader_refuse(from,
                             "number of key-value heads: expected a divisor of %d attention heads, found %d; the file "
                             "is damaged",
                             info->num_attention_heads, info->num_key_value_heads);
    }
    if (info->head_dim % 2 != 0) {
        return reader_refuse(from, "head size: expected an even number, found %d; the file is damaged", info->head_dim);
    }
    return LLAMITA_OK;
}

llamita_status model_check_finite(const struct reader *from, const char *name, const float *values, int64_t length) {
    for (int64_t i = 0; i < length; i++) {
        if (!isfinite(values[i])) {
            return reader_refuse(
                from, "tensor %s: expected finite numbers, found %f at position %" PRId64 "; the weights are damaged",
                name, (double)values[i], i);
        }
    }
    return LLAMITA_OK;
}

/* RoFormer, 2104.09864, section 3.2.2: angle per position of pair i = theta^(-2i/S). In double, rounded once. */
llamita_status model_fill_rope(llamita_model *model, const struct reader *from, double scale, const float *divisors) {
    const int32_t num_pairs = model->info.head_dim / 2;
    float *frequency = model_allocate(model, (size_t)num_pairs * sizeof *frequency);
    if (!frequency) {
        return reader_refuse_memory(from, (uint64_t)num_pairs * sizeof *frequency);
    }
    for (int32_t i = 0; i < num_pairs; i++) {
        double angle = pow((double)model->info.rope_theta, -2.0 * i / model->info.head_dim) / scale;
        frequency[i] = (float)(divisors ? angle / (double)divisors[i] : angle);
        if (!isfinite(frequency[i])) {
            return reader_refuse(from, "RoPE angle of pair %d: expected a finite number, found %f; the file is damaged",
                                 i, (double)frequency[i]);
        }
    }
    model->rope_frequency = frequency;
    return LLAMITA_OK;
}

void model_layer_matrices(layer *l, tensor *matrices[MATRICES_PER_LAYER]) {
    tensor *all[MATRICES_PER_LAYER] = {&l->query,    &l->key,    &l->value,   &l->attention_output,
                                       &l->ffn_gate, &l->ffn_up, &l->ffn_down};
    memcpy(matrices, all, sizeof all);
}

static int64_t tensor_elements(const tensor *t) {
    return t->num_rows * t->row_length;
}
static int64_t tensor_bytes(const tensor *t) {
    return t->num_rows * (int64_t)t->row_bytes;
}

/* Sums over the weights, for llamita_model_info. */
static void describe(llamita_model *model) {
    llamita_model_info *info = &model->info;
    int64_t norm_elements = (2 * (int64_t)info->num_hidden_layers + 1) * info->hidden_size;
    int64_t elements_of[TENSOR_TYPES_END] = {0};
    info->num_parameters = norm_elements + tensor_elements(&model->token_embedding);
    info->decode_bytes = norm_elements * (int64_t)sizeof(float) + tensor_bytes(&model->output) +
                         (int64_t)model->token_embedding.row_bytes;
    elements_of[model->token_embedding.type] += tensor_elements(&model->token_embedding);
    if (!info->tied_embeddings) {
        info->num_parameters += tensor_elements(&model->output);
        elements_of[model->output.type] += tensor_elements(&model->output);
    }
    for (int32_t i = 0; i < info->num_hidden_layers; i++) {
        tensor *matrices[MATRICES_PER_LAYER];
        model_layer_matrices(&model->layers[i], matrices);
        for (int m = 0; m < MATRICES_PER_LAYER; m++) {
            info->num_parameters += tensor_elements(matrices[m]);
            info->decode_bytes += tensor_bytes(matrices[m]);
            elements_of[matrices[m]->type] += tensor_elements(matrices[m]);
        }
    }
    info->kv_bytes_per_token =
        2 * (int64_t)info->num_hidden_layers * info->num_key_value_heads * info->head_dim * (int64_t)sizeof(uint16_t);
    int most = 0;
    for (int type = 0; type < TENSOR_TYPES_END; type++) {
        most = elements_of[type] > elements_of[most] ? type : most;
    }
    int64_t block_elements;
    size_t block_bytes;
    const char *name = "";
    if (info->weight_type[0] == '\0' && tensor_type_blocks((tensor_type)most, &block_elements, &block_bytes, &name)) {
        error_clean_line(info->weight_type, sizeof info->weight_type, name, strlen(name));
    }
}

static bool is_gguf(const void *bytes, size_t num_bytes) {
    return num_bytes >= 4 && memcmp(bytes, "GGUF", 4) == 0;
}

/* ---------------------------------------------------------------- tokenizer */

/* The tokenizer of another file than the model's. */
static llamita_status load_tokenizer(llamita_model *model, const char *path, llamita_error *error) {
    mmap_file file;
    llamita_status status = mmap_file_open("tokenizer", path, &file, error);
    if (status) {
        return status;
    }
    if (is_gguf(file.bytes, file.num_bytes)) {
        char *chat_template = NULL;
        status = gguf_read_tokenizer(file.bytes, file.num_bytes, path, &model->tokenizer, &chat_template, error);
        if (!status && chat_template) {
            free(model->chat_template);
            model->chat_template = chat_template;
        }
        if (!status && !model->tokenizer) {
            status = error_set(error, LLAMITA_ERROR_FORMAT,
                               "cannot open tokenizer %s: the file holds no tokenizer (key "
                               "tokenizer.ggml.model); give one that does",
                               error_path(path));
        }
    } else {
        status =
            llama2c_read_tokenizer(file.bytes, file.num_bytes, path, model->info.vocab_size, &model->tokenizer, error);
    }
    munmap(file.bytes, file.num_bytes);
    return status;
}

llamita_status model_fill_tokenizer(llamita_model *model, const char *path, const char *tokenizer_path,
                                    llamita_error *error) {
    llamita_status status = LLAMITA_OK;
    if (is_gguf(model->mapping, model->mapping_bytes)) {
        tokenizer *own = NULL;
        status = gguf_read_tokenizer(model->mapping, model->mapping_bytes, path, tokenizer_path ? NULL : &own,
                                     &model->chat_template, error);
        model->tokenizer = own;
    }
    if (!status && tokenizer_path) {
        status = load_tokenizer(model, tokenizer_path, error);
    }
    if (status || !model->tokenizer) {
        return status;
    }
    llamita_model_info *info = &model->info;
    int32_t num_tokens = tokenizer_vocab_size(model->tokenizer);
    if (num_tokens != info->vocab_size) {
        return error_set(error, LLAMITA_ERROR_FORMAT,
                         "cannot open model %s: the tokenizer %s has %d tokens, the model's "
                         "vocabulary has %d; give the tokenizer that the model was trained with",
                         error_path(path), tokenizer_path ? error_path(tokenizer_path) : "in it", num_tokens,
                         info->vocab_size);
    }
    info->has_tokenizer = true;
    info->add_bos = tokenizer_add_bos(model->tokenizer);
    info->bos_id = tokenizer_bos(model->tokenizer);
    info->eos_id = tokenizer_eos(model->tokenizer);
    return LLAMITA_OK;
}

/* ---------------------------------------------------------------- opening and closing */

static llamita_status select_kernels(llamita_model *model, const char *path, const char *name, llamita_error *error) {
    model->kernels = kernels_select(name);
    if (!model->kernels) {
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot open model %s: kernels: expected auto, scalar or, on a processor that has it, avx2, "
                         "avxvnni, neon or dotprod; found %s",
                         error_path(path), name ? name : "none");
    }
    const char *selected = kernels_name(model->kernels);
    error_clean_line(model->info.kernels, sizeof model->info.kernels, selected, strlen(selected));
    return LLAMITA_OK;
}

llamita_status model_fill(llamita_model *model, const char *path, const char *kernels, llamita_error *error) {
    model->info.bos_id = model->info.eos_id = -1;
    llamita_status status = select_kernels(model, path, kernels, error);
    if (!status) {
        status = is_gguf(model->mapping, model->mapping_bytes) ? gguf_fill_model(model, path, error)
                                                               : llama2c_fill_model(model, path, error);
    }
    if (!status) {
        describe(model);
    }
    return status;
}

typedef struct {
    llamita_model *model;
    const char *path, *tokenizer_path;
    llamita_status status;
    llamita_error error;
} tokenizer_task;

static void run_tokenizer_task(void *argument) {
    tokenizer_task *task = argument;
    task->status = model_fill_tokenizer(task->model, task->path, task->tokenizer_path, &task->error);
}

/* Packs the weights while one of the threads reads the tokenizer. */
static llamita_status pack_beside_tokenizer(llamita_model *model, const char *path, const char *tokenizer_path,
                                            llamita_error *error) {
    tokenizer_task task = {.model = model, .path = path, .tokenizer_path = tokenizer_path};
    const llamita_status packed = model_pack(model, path, run_tokenizer_task, &task, error);
    if (task.status && error) {
        *error = task.error;
    }
    return task.status ? task.status : packed;
}

void model_clear(llamita_model *model) {
    tokenizer_free(model->tokenizer);
    free(model->chat_template);
    for (size_t i = 0; i < model->num_owned; i++) {
        free(model->owned[i]);
    }
    free(model->owned);
    if (model->packed) {
        munmap(model->packed, model->packed_bytes);
    }
}

llamita_status llamita_model_open(const char *path, const llamita_model_params *params, llamita_model **model,
                                  llamita_error *error) {
    if (!path || !model) {
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot open a model: expected a path and a place for the model, "
                         "found NULL");
    }
    mmap_file file;
    llamita_status status = mmap_file_open("model", path, &file, error);
    if (status) {
        return status;
    }
    llamita_model *opened = calloc(1, sizeof *opened);
    if (!opened) {
        munmap(file.bytes, file.num_bytes);
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot open model %s: out of memory", error_path(path));
    }
    opened->mapping = file.bytes;
    opened->mapping_bytes = file.num_bytes;
    status = model_fill(opened, path, params ? params->kernels : NULL, error);
    status = status ? status : pack_beside_tokenizer(opened, path, params ? params->tokenizer_path : NULL, error);
    if (status) {
        llamita_model_close(opened);
        return status;
    }
    *model = opened;
    return LLAMITA_OK;
}

void llamita_model_close(llamita_model *model) {
    if (!model) {
        return;
    }
    model_clear(model);
    munmap(model->mapping, model->mapping_bytes);
    free(model);
}

void llamita_model_get_info(const llamita_model *model, llamita_model_info *info) {
    *info = model->info;
}

const char *llamita_model_chat_template(const llamita_model *model) {
    return model->chat_template;
}
