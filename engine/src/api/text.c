/* text.c: the library and text API of llamita.h. */
#include "kernels/kernels.h"
#include "model/model.h"
#include "runtime/error.h"
#include "tokenizer/tokenizer.h"

const char *llamita_version(void) { return "0.1.0"; }

const char *llamita_kernels(void) { return kernels_name(kernels_select(NULL)); }

static llamita_status no_tokenizer(llamita_error *error, const char *what) {
    return error_set(error, LLAMITA_ERROR_ARGUMENT,
                     "cannot %s: the model has no tokenizer; open it with a tokenizer_path", what);
}

llamita_status llamita_encode(const llamita_model *model, const char *text, size_t num_bytes, int flags, int32_t *ids,
                              size_t capacity, size_t *num_tokens, llamita_error *error) {
    if (!model->tokenizer) return no_tokenizer(error, "encode the text");
    return tokenizer_encode(model->tokenizer, text, num_bytes, flags, ids, capacity, num_tokens, error);
}

llamita_status llamita_token_bytes(const llamita_model *model, int32_t previous_id, int32_t id, const char **bytes,
                                   size_t *num_bytes, llamita_error *error) {
    if (!model->tokenizer) return no_tokenizer(error, "decode a token");
    return tokenizer_decode(model->tokenizer, previous_id, id, bytes, num_bytes, error);
}

const char *llamita_token_text(const llamita_model *model, int32_t id) {
    return model->tokenizer ? tokenizer_text(model->tokenizer, id) : NULL;
}

bool llamita_token_ends(const llamita_model *model, int32_t id) {
    if (id < 0) return false;
    if (id == model->info.eos_id || (model->bos_ends && id == model->info.bos_id)) return true;
    return model->tokenizer && tokenizer_ends(model->tokenizer, id);
}
