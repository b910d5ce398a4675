/* model.c: a model's memory, the list of its matrices, and totals over them. */
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/error.h"
#include "tokenizer/tokenizer.h"

enum { MEMORY_ALIGNMENT = 64 };

/* ---------------------------------------------------------------- memory */

void *model_allocate(llamita_model *model, size_t num_bytes) {
    if (num_bytes > SIZE_MAX - MEMORY_ALIGNMENT) return NULL;
    void **owned = realloc(model->owned, (model->num_owned + 1) * sizeof *owned);
    if (!owned) return NULL;
    model->owned = owned;
    size_t rounded = (num_bytes / MEMORY_ALIGNMENT + 1) * MEMORY_ALIGNMENT;
    void *memory = platform_aligned_alloc(MEMORY_ALIGNMENT, rounded);
    if (memory) {
        memset(memory, 0, rounded);
        owned[model->num_owned++] = memory;
    }
    return memory;
}

/* ---------------------------------------------------------------- the file */

void model_close_pieces(llamita_model *model) {
    for (int32_t i = 0; i < model->num_pieces; i++) platform_file_close(&model->pieces[i]);
    model->num_pieces = 0;
}

/* The file that holds these bytes, or NULL; *offset: where in it they begin. */
static const platform_file *file_of(const llamita_model *model, const void *data, size_t *offset) {
    for (int32_t i = -1; i < model->num_pieces; i++) {
        const platform_file *file = i < 0 ? model->file : &model->pieces[i];
        if (!file) continue;
        *offset = (size_t)((uintptr_t)data - (uintptr_t)file->bytes);
        if (*offset < file->num_bytes) return file;
    }
    return NULL;
}

bool model_is_in_file(const llamita_model *model, const void *data) {
    size_t offset;
    return file_of(model, data, &offset) != NULL;
}

bool model_is_in_memory(const llamita_model *model, const void *data, size_t num_bytes) {
    size_t offset;
    const platform_file *file = file_of(model, data, &offset);
    return !file || offset + num_bytes <= file->num_private_bytes;
}

bool model_read(const llamita_model *model, const void *data, size_t num_bytes, void *to) {
    size_t offset;
    const platform_file *file = file_of(model, data, &offset);
    if (file && offset + num_bytes > file->num_private_bytes) return platform_file_read(file, offset, to, num_bytes);
    memcpy(to, data, num_bytes);
    return true;
}

/* ---------------------------------------------------------------- matrices */

void model_layer_matrices(layer *l, tensor *matrices[MATRICES_PER_LAYER]) {
    tensor *all[MATRICES_PER_LAYER] = {&l->query,    &l->key,    &l->value,   &l->attention_output,
                                       &l->ffn_gate, &l->ffn_up, &l->ffn_down};
    memcpy(matrices, all, sizeof all);
}

static int64_t tensor_elements(const tensor *t) { return t->num_rows * t->row_length; }
static int64_t tensor_bytes(const tensor *t) { return t->num_rows * (int64_t)t->row_bytes; }

/* The numbers in the norms and biases of a layer. */
static int64_t vector_elements(const layer *l, const llamita_model_info *info) {
    int64_t elements = 2 * (int64_t)info->hidden_size;
    if (l->query_bias) elements += l->query.num_rows + l->key.num_rows + l->value.num_rows;
    if (l->query_norm) elements += 2 * (int64_t)info->head_dim;
    return elements;
}

void model_describe(llamita_model *model) {
    llamita_model_info *info = &model->info;
    int64_t elements = info->hidden_size;
    int64_t elements_of[TENSOR_TYPES_END] = {0};
    for (int32_t i = 0; i < info->num_hidden_layers; i++) elements += vector_elements(&model->layers[i], info);
    info->num_parameters = elements + tensor_elements(&model->token_embedding);
    info->decode_bytes =
        elements * (int64_t)sizeof(float) + tensor_bytes(&model->output) + (int64_t)model->token_embedding.row_bytes;
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
    int most_common = 0;
    for (int type = 0; type < TENSOR_TYPES_END; type++)
        most_common = elements_of[type] > elements_of[most_common] ? type : most_common;
    int64_t block_elements;
    size_t block_bytes;
    const char *name = "";
    if (info->weight_type[0] == '\0' &&
        tensor_type_blocks((tensor_type)most_common, &block_elements, &block_bytes, &name))
        error_clean_line(info->weight_type, sizeof info->weight_type, name, strlen(name));
}

void model_clear(llamita_model *model) {
    model_close_pieces(model);
    tokenizer_free(model->tokenizer);
    free(model->chat_template);
    free(model->system_prompt);
    for (size_t i = 0; i < model->num_owned; i++) platform_aligned_free(model->owned[i]);
    free(model->owned);
    if (model->packed) platform_pages_free(model->packed, model->packed_bytes);
}
