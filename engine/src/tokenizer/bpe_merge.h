/* bpe_merge.h: merges the symbols of a word by rank: the algorithm shared by both kinds of BPE. */
#ifndef LLAMITA_BPE_MERGE_H
#define LLAMITA_BPE_MERGE_H

#include "tokenizer/symbol_table.h"

#define BPE_RANK_NONE UINT32_MAX

/* A further merge with the same product but a different left half. */
typedef struct {
    int32_t product; /* -1: free slot */
    uint32_t left_bytes, rank;
} extra_merge;

/* The merges: two neighbors merge if their concatenation is a symbol with a rank. Pairs are not
 * stored: they are looked up when they become neighbors. Owns its tables, borrows the symbols. */
typedef struct {
    const symbol_table *symbols;
    uint32_t *ranks;           /* [num_ranks] by product; BPE_RANK_NONE: no merge makes it */
    uint16_t *left_bytes;      /* [num_ranks] length of the left half; NULL: any two halves merge */
    int32_t num_ranks;         /* symbols from here on have no rank */
    extra_merge *extra_merges; /* [num_extra_slots] hash table by product and left_bytes */
    size_t num_extra_slots, num_extra_merges;
} bpe_rules;

typedef enum { BPE_ADDED, BPE_EXISTS, BPE_CROWDED, BPE_NO_MEMORY } bpe_result;

/* Creates rules without merges, with room for products below num_ranks; they grow as needed.
 * any_halves: two halves merge if their product has a rank, wherever it is split. */
bpe_result bpe_rules_create(bpe_rules *rules, const symbol_table *symbols, int32_t num_ranks, bool any_halves);
void bpe_rules_free(bpe_rules *rules);

/* Adds the merge of the first left_bytes bytes of product with the rest. BPE_EXISTS: it exists and
 * keeps its rank. */
bpe_result bpe_rules_add(bpe_rules *rules, int32_t product, size_t left_bytes, uint32_t rank);

/* The result of looking up a pair. */
typedef struct {
    uint64_t key; /* (left + 1) << 32 | right, 0: free */
    uint32_t rank;
    int32_t product;
} cached_pair;

/* Buffers that are reused from one word to the next. Zero-initialize; release with
 * bpe_scratch_free. */
typedef struct {
    void *memory;
    size_t num_bytes;
    cached_pair *pairs; /* [1 << (64 - pairs_shift)] direct-mapped cache; NULL: none */
    int pairs_shift;
} bpe_scratch;

/* Allocates a cache for about num_pairs pairs. If that fails, merging works without it. */
void bpe_scratch_cache_pairs(bpe_scratch *scratch, size_t num_pairs);
void bpe_scratch_free(bpe_scratch *scratch);

/* Merges symbols[num_symbols] in place until no pair merges: the lowest rank first and, of equal
 * ranks, the leftmost. Sets *num_symbols to the number left. Negative symbols never merge; all
 * others must be findable. resegment: NULL, or flags by symbol: a flagged symbol in the result is
 * split again into the two it was merged from. O(n log n). False: out of memory. */
bool bpe_merge(const bpe_rules *rules, const uint8_t *resegment, bpe_scratch *scratch, int32_t *symbols,
               size_t *num_symbols);

#endif
