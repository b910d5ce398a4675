/* pre_tokenizer.h: splits text into the pre-tokens of byte-level BPE. */
#ifndef LLAMITA_PRE_TOKENIZER_H
#define LLAMITA_PRE_TOKENIZER_H

#include "tokenizer/tokenizer.h"

/* The length in bytes of the first pre-token of text[num_bytes], num_bytes >= 1: the first match of
 * the regular expression. Every byte belongs to a pre-token. Splitting a whole text takes linear
 * time. */
size_t pre_tokenizer_next(pre_tokenizer kind, const char *text, size_t num_bytes);

#endif
