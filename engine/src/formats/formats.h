/* formats.h: the readers of GGUF and llama2.c files. */
#ifndef LLAMITA_FORMATS_H
#define LLAMITA_FORMATS_H

#include "model/lora.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"

/* Fill an empty model from the mapped file (model->mapping), validating every number before use. On
 * failure the caller frees the partly filled model. path is for messages. */
llamita_status gguf_fill_model(llamita_model *model, const char *path, llamita_error *error);
llamita_status llama2c_fill_model(llamita_model *model, const char *path, llamita_error *error);

/* Reads only the tokenizer and the chat template of a mapped GGUF. pre: a value for
 * tokenizer.ggml.pre instead of the file's, or NULL. out may be NULL; *out becomes
 * NULL if the file has no tokenizer. *chat_template becomes NULL if it has no template. The caller
 * owns both. */
llamita_status gguf_read_tokenizer(const void *mapping, size_t num_bytes, const char *path, const char *pre,
                                   tokenizer **out, char **chat_template, llamita_error *error);

/* Reads a mapped tokenizer.bin of vocab_size entries. The caller owns *out. */
llamita_status llama2c_read_tokenizer(const void *mapping, size_t num_bytes, const char *path, int32_t vocab_size,
                                      tokenizer **out, llamita_error *error);

/* Reads a mapped GGUF adapter into memory of its own. The caller owns *adapter. */
llamita_status gguf_read_lora(const llamita_model *model, const void *bytes, size_t num_bytes, const char *path,
                              llamita_adapter **adapter, llamita_error *error);

#endif
