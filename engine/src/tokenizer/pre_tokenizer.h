/* pre_tokenizer.h: text to the pre-tokens that byte-level BPE merges within. */
#ifndef LLAMITA_PRE_TOKENIZER_H
#define LLAMITA_PRE_TOKENIZER_H

#include "tokenizer/tokenizer.h"

/* The number of bytes of the first pre-token of text[num_bytes], num_bytes >= 1: what the regular expression of the
 * kind matches first. Every byte belongs to one pre-token. Calling it again and again for a whole text takes linear
 * time. */
size_t pre_tokenizer_next(pre_tokenizer kind, const char *text, size_t num_bytes);

#endif
