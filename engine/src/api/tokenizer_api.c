/* tokenizer_api.c: the API of llamita.h for a tokenizer without a model. */
#include <stdlib.h>

#include "formats/formats.h"
#include "runtime/error.h"
#include "tokenizer/tokenizer.h"

struct llamita_tokenizer {
    tokenizer *tokenizer;
};

llamita_status llamita_tokenizer_open(const void *gguf, size_t num_bytes, const char *name, llamita_tokenizer **out,
                                      llamita_error *error) {
    tokenizer *t = NULL;
    char *chat_template = NULL;
    const char *shown = name ? name : "a tokenizer in memory";
    llamita_status status = gguf_read_tokenizer(gguf, num_bytes, shown, NULL, &t, &chat_template, error);
    if (status) return status;
    free(chat_template);
    if (!t) {
        return error_set(error, LLAMITA_ERROR_FORMAT,
                         "cannot open tokenizer %s: expected the key tokenizer.ggml.model, found none",
                         error_path(shown));
    }
    llamita_tokenizer *opened = malloc(sizeof *opened);
    if (!opened) {
        tokenizer_free(t);
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot open tokenizer %s: out of memory", error_path(shown));
    }
    opened->tokenizer = t;
    *out = opened;
    return LLAMITA_OK;
}

void llamita_tokenizer_close(llamita_tokenizer *tokenizer) {
    if (tokenizer) {
        tokenizer_free(tokenizer->tokenizer);
        free(tokenizer);
    }
}

llamita_status llamita_tokenizer_encode(const llamita_tokenizer *tokenizer, const char *text, const uint64_t *ends,
                                        size_t num_documents, int32_t last_id, int32_t *ids, size_t capacity,
                                        uint64_t *token_ends, llamita_error *error) {
    const int32_t vocab_size = tokenizer_vocab_size(tokenizer->tokenizer);
    if (last_id < -1 || last_id >= vocab_size) {
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot encode documents: last_id: expected -1 to %d, found %d",
                         (int)vocab_size - 1, (int)last_id);
    }
    return tokenizer_encode_documents(tokenizer->tokenizer, text, ends, num_documents, last_id, ids, capacity,
                                      token_ends, error);
}
