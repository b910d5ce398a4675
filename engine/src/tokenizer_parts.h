/* tokenizer_parts.h: a text of parts that differ in what may become of them, to ids. */
#ifndef LLAMITA_TOKENIZER_PARTS_H
#define LLAMITA_TOKENIZER_PARTS_H

#include "tokenizer.h"

/* The contract of llamita_encode_parts. */
llamita_status tokenizer_encode_parts(const tokenizer *t, const llamita_part *parts, size_t num_parts, int32_t *ids,
                                      size_t capacity, size_t *num_tokens, llamita_error *error);

#endif
