/* gguf_lora.c: reads and validates a LoRA adapter from a GGUF file. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "formats/gguf.h"
#include "formats/model_check.h"
#include "platform/platform.h"
#include "runtime/error.h"

enum { NAME_BYTES = 96, MAX_RANK = 1 << 14 };

/* ---------------------------------------------------------------- metadata */

static llamita_status check_string(const gguf_file *file, const char *key, const char *expected, const char *remedy) {
    byte_slice value = {"none", 4};
    bool found;
    llamita_status status = gguf_string(file, key, &value, &found);
    if (!status && !slice_is(value, expected))
        return reader_error(&file->from, "key %s: expected %s, found %.*s; %s", key, expected, SHOWN(value), remedy);
    return status;
}

static llamita_status read_metadata(const gguf_file *file, const char *architecture, llamita_adapter_info *info) {
    double alpha = 0;
    byte_slice name = {"", 0};
    bool found;
    llamita_status status =
        check_string(file, "general.type", "adapter", "use an adapter, as written by llamita export --adapter");
    status = status ? status : check_string(file, "adapter.type", "lora", "this engine supports LoRA adapters only");
    status = status
                 ? status
                 : check_string(file, "general.architecture", architecture, "the adapter was made for another model");
    if (!status && gguf_find(file, "adapter.alora.invocation_tokens")) {
        return reader_error(&file->from, "key adapter.alora.invocation_tokens: expected none; activated LoRA "
                                         "adapters are not supported");
    }
    status = status ? status : gguf_real(file, "adapter.lora.alpha", &alpha, NULL);
    if (!status && !(alpha > 0 && isfinite((float)alpha))) {
        return reader_error(&file->from,
                            "key adapter.lora.alpha: expected a positive number, found %g; the file is damaged", alpha);
    }
    status = status ? status : gguf_string(file, "general.name", &name, &found);
    error_clean_line(info->name, sizeof info->name, name.bytes, name.num_bytes);
    info->alpha = (float)alpha;
    return status;
}

/* ---------------------------------------------------------------- tensors */

static llamita_status shape_error(const gguf_file *file, const gguf_tensor *t, const char *expected) {
    char found[GGUF_SHAPE_BYTES];
    gguf_print_shape(found, t->shape, t->num_dimensions);
    return reader_error(&file->from, "tensor %.*s: expected shape %s, found %s; the adapter was made for another model",
                        SHOWN(t->name), expected, found);
}

/* The tensor as it will be packed: F32 if it is quantized, else in its own type. */
static tensor describe(const gguf_tensor *t) {
    const tensor_type type = (tensor_type)t->type;
    tensor described = {
        .type = tensor_type_is_quantized(type) ? TENSOR_F32 : type, .num_rows = t->shape[1], .row_length = t->shape[0]};
    described.format = panel_format_of(described.type);
    described.panel_bytes = panel_bytes(described.format, described.row_length);
    return described;
}

/* Takes lora_a [rank, row_length] and lora_b [num_rows, rank] of one matrix, if the file has them.
 * They are packed later. */
static llamita_status take_update(const gguf_file *file, const tensor *matrix, const char *name, lora_pair *update) {
    gguf_tensor *halves[2];
    for (int i = 0; i < 2; i++) {
        char half[NAME_BYTES + 8];
        snprintf(half, sizeof half, "%s.lora_%c", name, "ab"[i]);
        halves[i] = gguf_find_tensor(file, half);
        if (halves[i]) halves[i]->used = true;
    }
    if (!halves[0] && !halves[1]) return LLAMITA_OK;
    if (!halves[0] || !halves[1]) {
        return reader_error(&file->from, "tensor %s.lora_%c is missing; the file is incomplete", name,
                            halves[0] ? 'b' : 'a');
    }
    const gguf_tensor *a = halves[0], *b = halves[1];
    const int64_t rank = a->shape[1];
    char expected[NAME_BYTES];
    if (a->shape[0] != matrix->row_length || a->shape[2] != 1 || a->shape[3] != 1) {
        snprintf(expected, sizeof expected, "[%" PRId64 ", rank]", matrix->row_length);
        return shape_error(file, a, expected);
    }
    if (rank > MAX_RANK) {
        return reader_error(&file->from,
                            "tensor %s.lora_a: expected a rank of 1 to %d, found %" PRId64 "; the file is damaged",
                            name, MAX_RANK, rank);
    }
    if (b->shape[0] != rank || b->shape[1] != matrix->num_rows || b->shape[2] != 1 || b->shape[3] != 1) {
        snprintf(expected, sizeof expected, "[%" PRId64 ", %" PRId64 "]", rank, matrix->num_rows);
        return shape_error(file, b, expected);
    }
    *update = (lora_pair){describe(a), describe(b)};
    update->b.two_halves = matrix->two_halves; /* its rows are those of the matrix */
    return LLAMITA_OK;
}

static void matrix_name(char name[NAME_BYTES], int32_t layer, int which) {
    snprintf(name, NAME_BYTES, "blk.%d.%s.weight", (int)layer, gguf_matrix_names[which]);
}

static llamita_status take_updates(llamita_adapter *adapter, const gguf_file *file) {
    const int32_t num_layers = adapter->model->info.num_hidden_layers;
    llamita_status status = LLAMITA_OK;
    for (int32_t i = 0; !status && i < num_layers; i++) {
        tensor *matrices[MATRICES_PER_LAYER];
        model_layer_matrices(&adapter->model->layers[i], matrices);
        for (int which = 0; !status && which < MATRICES_PER_LAYER; which++) {
            char name[NAME_BYTES];
            matrix_name(name, i, which);
            status = take_update(file, matrices[which], name, &adapter->layers[i][which]);
        }
    }
    for (size_t i = 0; !status && i < file->num_tensors; i++) {
        if (!file->tensors[i].used) {
            return reader_error(&file->from,
                                "tensor %.*s: expected lora_a and lora_b of attention and feed-forward matrices in "
                                "layers 0 to %d; the adapter was made for another model, or it trains other tensors: "
                                "merge it (llamita merge) and export the result",
                                SHOWN(file->tensors[i].name), (int)num_layers - 1);
        }
    }
    if (!status && file->num_tensors == 0)
        return reader_error(&file->from, "the file has no tensors; it is incomplete");
    return status;
}

/* ---------------------------------------------------------------- panels */

/* Packs the tensor of this name, after checking that it is finite, into the panels of t. */
static llamita_status pack_tensor(const gguf_file *file, const char *name, tensor *t, char *panels) {
    const gguf_tensor *source = gguf_find_tensor(file, name);
    const size_t num_rows = (size_t)t->num_rows, row = (size_t)t->row_length;
    const size_t stored_bytes = (size_t)source->num_bytes / num_rows;
    const bool converted = (tensor_type)source->type != t->type;
    const size_t row_bytes = converted ? row * sizeof(float) : stored_bytes;
    const uint64_t num_bytes = saturating_multiply(saturating_multiply(num_rows, row), sizeof(float));
    float *floats = num_bytes > SIZE_MAX ? NULL : malloc((size_t)num_bytes);
    char *ordered = floats ? malloc(num_rows * row_bytes) : NULL; /* row_bytes: at most those of floats */
    if (!ordered) {
        free(floats);
        return reader_memory_error(&file->from, num_bytes);
    }
    for (size_t r = 0; r < num_rows; r++) {
        tensor_type_dequantize((tensor_type)source->type)(source->data + r * stored_bytes, t->row_length,
                                                          floats + r * row);
    }
    llamita_status status = model_check_finite(&file->from, name, floats, t->num_rows * t->row_length);
    const char *rows = converted ? (const char *)floats : (const char *)source->data;
    for (size_t r = 0; r < num_rows; r++) {
        const size_t stored = (size_t)model_stored_row(t->two_halves, (int64_t)r);
        memcpy(ordered + r * row_bytes, rows + stored * row_bytes, row_bytes);
    }
    if (!status &&
        !panel_pack(t->type, ordered, row_bytes, t->num_rows, t->row_length, 0, panel_count(t->num_rows), panels)) {
        status = reader_memory_error(&file->from, row_bytes);
    }
    free(floats);
    free(ordered);
    t->panels = panels;
    return status;
}

static llamita_status pack_updates(llamita_adapter *adapter, const gguf_file *file) {
    const int32_t num_layers = adapter->model->info.num_hidden_layers;
    llamita_adapter_info *info = &adapter->info;
    uint64_t num_bytes = 0;
    for (int32_t i = 0; i < num_layers; i++) {
        for (int which = 0; which < MATRICES_PER_LAYER; which++) {
            const lora_pair *update = &adapter->layers[i][which];
            if (update->a.num_rows == 0) continue;
            num_bytes += tensor_packed_bytes(&update->a) + tensor_packed_bytes(&update->b);
            info->num_matrices++;
            info->num_parameters += update->a.num_rows * (update->a.row_length + update->b.num_rows);
            info->rank = update->a.num_rows > info->rank ? (int32_t)update->a.num_rows : info->rank;
        }
    }
    if (num_bytes <= SIZE_MAX) adapter->panels = platform_aligned_alloc(PANEL_ALIGNMENT, (size_t)num_bytes);
    if (!adapter->panels) return reader_memory_error(&file->from, num_bytes);
    char *panels = adapter->panels;
    llamita_status status = LLAMITA_OK;
    for (int32_t i = 0; i < num_layers; i++) {
        for (int which = 0; which < MATRICES_PER_LAYER; which++) {
            tensor *halves[2] = {&adapter->layers[i][which].a, &adapter->layers[i][which].b};
            for (int half = 0; !status && half < 2 && halves[0]->num_rows > 0; half++) {
                char matrix[NAME_BYTES], name[NAME_BYTES + 8];
                matrix_name(matrix, i, which);
                snprintf(name, sizeof name, "%s.lora_%c", matrix, "ab"[half]);
                status = pack_tensor(file, name, halves[half], panels);
                panels += tensor_packed_bytes(halves[half]);
            }
        }
    }
    return status;
}

/* ---------------------------------------------------------------- opening */

llamita_status gguf_read_lora(const llamita_model *model, const void *bytes, size_t num_bytes, const char *path,
                              llamita_adapter **adapter, llamita_error *error) {
    const reader from = {bytes, num_bytes, 0, "adapter", path, error, NULL};
    llamita_adapter *opened = calloc(1, sizeof *opened);
    if (opened) {
        opened->model = model;
        atomic_init(&opened->ref_count, 1);
        opened->layers = calloc((size_t)model->info.num_hidden_layers, sizeof *opened->layers);
    }
    if (!opened || !opened->layers) {
        lora_release(opened);
        return reader_memory_error(&from, sizeof *opened);
    }
    gguf_file file;
    llamita_status status = gguf_parse(&file, &from);
    status = status ? status : read_metadata(&file, model->info.architecture, &opened->info);
    status = status ? status : take_updates(opened, &file);
    status = status ? status : pack_updates(opened, &file);
    gguf_free(&file);
    if (status) {
        lora_release(opened);
        return status;
    }
    *adapter = opened;
    return LLAMITA_OK;
}
