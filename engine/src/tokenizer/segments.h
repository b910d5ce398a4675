/* segments.h: encodes a text that consists of trusted, untrusted and generated segments. */
#ifndef LLAMITA_SEGMENTS_H
#define LLAMITA_SEGMENTS_H

#include "tokenizer/tokenizer.h"

/* See llamita_encode_segments. */
llamita_status tokenizer_encode_segments(const tokenizer *t, const llamita_text_segment *segments, size_t num_segments,
                                         int32_t *ids, size_t capacity, size_t *num_tokens, llamita_error *error);

#endif
