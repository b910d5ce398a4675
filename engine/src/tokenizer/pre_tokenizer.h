/* pre_tokenizer.h: splits text into the pre-tokens of byte-level BPE. */
#ifndef LLAMITA_PRE_TOKENIZER_H
#define LLAMITA_PRE_TOKENIZER_H

#include "tokenizer/tokenizer.h"

/* clang-format off */
/* The values of tokenizer.ggml.pre in GGUF files, as llama.cpp reads them: name, regular expression.
 * The first name of each is the one that is written. */
#define PRE_TOKENIZER_NAMES(X)                                                                     \
    X("qwen2", QWEN2) X("deepseek-r1-qwen", QWEN2) X("stablelm2", QWEN2) X("megrez", QWEN2)        \
    X("llama-bpe", LLAMA_BPE) X("llama3", LLAMA_BPE) X("llama-v3", LLAMA_BPE)                      \
    X("falcon3", LLAMA_BPE) X("falcon-h1", LLAMA_BPE) X("pixtral", LLAMA_BPE)                      \
    X("midm-2.0", LLAMA_BPE) X("lfm2", LLAMA_BPE)                                                  \
    X("dbrx", DBRX) X("smaug-bpe", DBRX)                                                           \
    X("gpt-2", GPT2) X("phi-2", GPT2) X("mpt", GPT2) X("olmo", GPT2) X("jais", GPT2)               \
    X("gigachat", GPT2) X("trillion", GPT2) X("mellum", GPT2)                                      \
    X("smollm", SMOLLM) X("starcoder", SMOLLM) X("refact", SMOLLM) X("command-r", SMOLLM)          \
    X("codeshell", SMOLLM) X("exaone", SMOLLM) X("minerva-7b", SMOLLM)                             \
    X("gpt-4o", GPT4O) X("llama4", GPT4O)                                                          \
    X("tekken", TEKKEN)                                                                            \
    X("default", DEFAULT)
/* clang-format on */

/* False if the name is none of these. */
bool pre_tokenizer_find(byte_slice name, pre_tokenizer *kind);

/* True if a pre-token that is a token is not merged from its bytes. */
bool pre_tokenizer_ignores_merges(pre_tokenizer kind);

/* True if texts begin with BOS where the file does not say. */
bool pre_tokenizer_adds_bos(pre_tokenizer kind);

/* The length in bytes of the first pre-token of text[num_bytes], num_bytes >= 1: the first match of
 * the regular expression. Every byte belongs to a pre-token. Splitting a whole text takes linear
 * time. */
size_t pre_tokenizer_next(pre_tokenizer kind, const char *text, size_t num_bytes);

#endif
