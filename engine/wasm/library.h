/* library.h: what the library in WebAssembly exports besides functions of llamita.h: those whose
 * structs JavaScript would have to lay out. js/llamita.js is the only caller. */
#ifndef LLAMITA_WASM_LIBRARY_H
#define LLAMITA_WASM_LIBRARY_H

#include "llamita.h"

/* Both take ownership of memory from malloc. False: too many files. */
bool host_add_file(char *name, void *bytes, size_t num_bytes);
void host_remove_files(void);

/* NULL: *error says why. tokenizer_path and kernels may be NULL. */
llamita_model *host_open_model(const char *path, const char *tokenizer_path, const char *kernels, llamita_error *error);
llamita_session *host_open_session(const llamita_model *model, int32_t context_tokens, int32_t kv_type,
                                   llamita_error *error);
llamita_sampler *host_open_sampler(const llamita_model *model, float temperature, int32_t top_k, float top_p,
                                   float min_p, float repetition_penalty, int32_t repetition_window, uint64_t seed,
                                   llamita_error *error);

/* Writes llamita_model_info as JSON, and what else describes the model. The caller frees it. NULL:
 * out of memory. */
char *host_describe_model(const llamita_model *model);

#endif
