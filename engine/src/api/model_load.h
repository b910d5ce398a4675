/* model_load.h: the steps of llamita_model_open, for the fuzzers. */
#ifndef LLAMITA_MODEL_LOAD_H
#define LLAMITA_MODEL_LOAD_H

#include "llamita.h"

/* Detects the format of the mapped file by its content and fills the model except for its tokenizer. On failure the
 * caller clears the half-filled model. kernels: their name, or NULL. */
llamita_status model_fill(llamita_model *model, const char *path, const char *kernels, llamita_error *error);

/* Then fills its tokenizer, chat template and what info says of them. tokenizer_path: NULL, or the file to take the
 * tokenizer from. Does not touch the weights, which may be packed meanwhile. On failure the caller clears the model. */
llamita_status model_fill_tokenizer(llamita_model *model, const char *path, const char *tokenizer_path,
                                    llamita_error *error);

#endif
