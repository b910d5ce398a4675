/* bpe_merge.h: a row of symbols to fewer symbols, by ranked pairs: the one algorithm of both kinds of BPE. */
#ifndef LLAMITA_BPE_MERGE_H
#define LLAMITA_BPE_MERGE_H

#include "tokenizer/symbol_table.h"

#define BPE_RANK_NONE UINT32_MAX

/* A merge of a string that other merges make too, of other halves. */
typedef struct {
    int32_t product; /* -1: a free slot */
    uint32_t left_bytes, rank;
} other_merge;

/* Which neighbors become one symbol: those whose strings together are a symbol that has a rank. Nothing lists the
 * pairs: they are looked up as they meet. */
typedef struct {
    const symbol_table *symbols;
    uint32_t *ranks;      /* [num_ranks] by product; BPE_RANK_NONE: nothing becomes this symbol */
    uint16_t *left_bytes; /* [num_ranks] the length of the left half; NULL: any two halves merge */
    int32_t num_ranks;    /* further symbols have no rank */
    other_merge *others;  /* [num_other_slots] hash table, by product and left_bytes */
    size_t num_other_slots, num_others;
} bpe_rules;

typedef enum { BPE_ADDED, BPE_EXISTS, BPE_CROWDED, BPE_NO_MEMORY } bpe_result;

/* Rules without a merge for symbols 0 .. num_ranks; more may follow. any_halves: products alone decide. */
bpe_result bpe_rules_create(bpe_rules *rules, const symbol_table *symbols, int32_t num_ranks, bool any_halves);
void bpe_rules_free(bpe_rules *rules);

/* The first left_bytes bytes of product and the rest of it merge, with this rank. BPE_EXISTS: they do already, with
 * the rank that they have. */
bpe_result bpe_rules_add(bpe_rules *rules, int32_t product, size_t left_bytes, uint32_t rank);

/* What became of a pair that was looked up. */
typedef struct {
    uint64_t key; /* (left + 1) << 32 | right, 0: free */
    uint32_t rank;
    int32_t product;
} known_pair;

/* Memory that merging needs, kept from one row to the next. Zero it first. */
typedef struct {
    void *memory;
    size_t num_bytes;
    known_pair *pairs; /* [1 << (64 - pairs_shift)], each pair has one place; NULL: none are kept */
    int pairs_shift;
} bpe_scratch;

/* Keeps about as many pairs; without memory for them merging is slower, and right. */
void bpe_scratch_keep_pairs(bpe_scratch *scratch, size_t num_pairs);
void bpe_scratch_free(bpe_scratch *scratch);

/* Merges symbols[num_symbols] in place until no pair merges, the lowest rank first, of equal ranks the leftmost, and
 * sets *num_symbols to what is left. Negative symbols never merge, all others are findable. take_apart: NULL, or flags
 * by symbol: a final symbol so flagged is replaced by the two that it was merged from. O(n log n). False: out of
 * memory. */
bool bpe_merge(const bpe_rules *rules, const uint8_t *take_apart, bpe_scratch *scratch, int32_t *symbols,
               size_t *num_symbols);

#endif
