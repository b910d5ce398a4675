/* model_load.h: the steps of llamita_model_open, exposed to the fuzzers. */
#ifndef LLAMITA_MODEL_LOAD_H
#define LLAMITA_MODEL_LOAD_H

#include "llamita.h"

/* Detects the format of the mapped file and fills the model, except for its tokenizer. kernels: a
 * name or NULL. On failure the caller clears the partly filled model. */
llamita_status model_fill(llamita_model *model, const char *path, const char *kernels, llamita_error *error);

/* Fills the tokenizer, the chat template and their fields in info. tokenizer_path: the file to read
 * the tokenizer from; NULL: the model file. pre_tokenizer: as in llamita_model_params. Does not touch the weights, which may be packed at the
 * same time. On failure the caller clears the model. */
llamita_status model_fill_tokenizer(llamita_model *model, const char *path, const char *tokenizer_path,
                                    const char *pre_tokenizer, llamita_error *error);

#endif
