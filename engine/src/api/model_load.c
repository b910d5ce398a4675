/* model_load.c: opens a model file: detects its format, reads its tokenizer and packs its weights. */
#include "api/model_load.h"

#include <stdlib.h>
#include <string.h>

#include "formats/file.h"
#include "formats/formats.h"
#include "kernels/kernels.h"
#include "model/model_pack.h"
#include "runtime/error.h"
#include "tokenizer/tokenizer.h"

/* Of a tokenizer's file, so much is copied: the metadata of every model we know of (Llama 3: 8 MB). */
#define MAX_TOKENIZER_BYTES ((size_t)16 << 20)

static bool is_gguf(const void *bytes, size_t num_bytes) { return num_bytes >= 4 && memcmp(bytes, "GGUF", 4) == 0; }

/* ---------------------------------------------------------------- tokenizer */

/* Reads the tokenizer from a file other than the model's. */
static llamita_status load_tokenizer(llamita_model *model, const char *path, const char *pre, llamita_error *error) {
    platform_file file;
    llamita_status status = file_open("tokenizer", path, false, &file, error);
    if (status) return status;
    if (!platform_file_keep(&file, file.num_bytes < MAX_TOKENIZER_BYTES ? file.num_bytes : MAX_TOKENIZER_BYTES)) {
        status = error_set(error, LLAMITA_ERROR_IO, "cannot open tokenizer %s: the file was cut while it was read",
                           error_path(path));
    } else if (is_gguf(file.bytes, file.num_bytes)) {
        char *chat_template = NULL;
        status = gguf_read_tokenizer(file.bytes, file.num_bytes, path, pre, &model->tokenizer, &chat_template, error);
        if (!status && chat_template) {
            free(model->chat_template);
            model->chat_template = chat_template;
        }
        if (!status && !model->tokenizer) {
            status = error_set(error, LLAMITA_ERROR_FORMAT,
                               "cannot open tokenizer %s: the file has no tokenizer (key tokenizer.ggml.model); "
                               "use a file that has one",
                               error_path(path));
        }
    } else {
        status =
            llama2c_read_tokenizer(file.bytes, file.num_bytes, path, model->info.vocab_size, &model->tokenizer, error);
    }
    platform_file_close(&file);
    return status;
}

llamita_status model_fill_tokenizer(llamita_model *model, const char *path, const char *tokenizer_path,
                                    const char *pre_tokenizer, llamita_error *error) {
    llamita_status status = LLAMITA_OK;
    if (is_gguf(model->mapping, model->mapping_bytes)) {
        tokenizer *own = NULL;
        status = gguf_read_tokenizer(model->mapping, model->mapping_bytes, path, pre_tokenizer,
                                     tokenizer_path ? NULL : &own, &model->chat_template, error);
        model->tokenizer = own;
    }
    if (!status && tokenizer_path) status = load_tokenizer(model, tokenizer_path, pre_tokenizer, error);
    if (status || !model->tokenizer) return status;
    llamita_model_info *info = &model->info;
    int32_t num_tokens = tokenizer_vocab_size(model->tokenizer);
    if (num_tokens != info->vocab_size) {
        return error_set(error, LLAMITA_ERROR_FORMAT,
                         "cannot open model %s: tokenizer %s: expected the %d tokens of the model's vocabulary, "
                         "found %d; use the tokenizer that the model was trained with",
                         error_path(path), tokenizer_path ? error_path(tokenizer_path) : "in the file",
                         info->vocab_size, num_tokens);
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
                         "cannot open model %s: kernels: expected auto, scalar or, where the processor supports "
                         "them, avx2, avxvnni, avx512, amx, neon, dotprod, i8mm, simd128 or relaxed; found %s",
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
    if (!status) model_describe(model);
    return status;
}

typedef struct {
    llamita_model *model;
    const char *path, *tokenizer_path, *pre_tokenizer;
    llamita_status status;
    llamita_error error;
} tokenizer_task;

static void run_tokenizer_task(void *argument) {
    tokenizer_task *task = argument;
    task->status =
        model_fill_tokenizer(task->model, task->path, task->tokenizer_path, task->pre_tokenizer, &task->error);
}

/* Packs the weights while one thread reads the tokenizer, or leaves them to the passes. */
static llamita_status pack_and_read_tokenizer(llamita_model *model, const char *path,
                                              const llamita_model_params *params, const platform_file *file,
                                              llamita_error *error) {
    tokenizer_task task = {.model = model, .path = path};
    if (params) {
        task.tokenizer_path = params->tokenizer_path;
        task.pre_tokenizer = params->pre_tokenizer;
    }
    llamita_status packed = LLAMITA_OK;
    if (!params || !params->pack_later) {
        packed = model_pack(model, path, run_tokenizer_task, &task, error);
    } else {
        run_tokenizer_task(&task);
        if (!task.status) packed = model_pack_later(model, path, file, error);
    }
    if (task.status && error) *error = task.error;
    return task.status ? task.status : packed;
}

llamita_status llamita_model_open(const char *path, const llamita_model_params *params, llamita_model **model,
                                  llamita_error *error) {
    if (!path || !model) {
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot open a model: expected a path and a pointer for the model, found NULL");
    }
    platform_file file;
    llamita_status status = file_open("model", path, false, &file, error);
    if (status) return status;
    llamita_model *opened = calloc(1, sizeof *opened);
    if (!opened) {
        platform_file_close(&file);
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot open model %s: out of memory", error_path(path));
    }
    opened->mapping = file.bytes;
    opened->mapping_bytes = file.num_bytes;
    opened->file = &file;
    status = model_fill(opened, path, params ? params->kernels : NULL, error);
    status = status ? status : pack_and_read_tokenizer(opened, path, params, &file, error);
    opened->mapping = NULL;
    if (!opened->late) {
        model_close_pieces(opened);
        platform_file_close(&file);
        opened->file = NULL;
    }
    if (status) {
        llamita_model_close(opened);
        return status;
    }
    *model = opened;
    return LLAMITA_OK;
}

void llamita_model_close(llamita_model *model) {
    if (!model) return;
    model_free_late(model);
    model_clear(model);
    free(model);
}

void llamita_model_get_info(const llamita_model *model, llamita_model_info *info) { *info = model->info; }

const char *llamita_model_chat_template(const llamita_model *model) { return model->chat_template; }

const char *llamita_model_system_prompt(const llamita_model *model) { return model->system_prompt; }
