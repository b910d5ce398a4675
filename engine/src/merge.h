/* merge.h: a row of symbols to fewer symbols, by a ranked list of pairs: the one algorithm of both kinds of BPE. */
#ifndef LLAMITA_MERGE_H
#define LLAMITA_MERGE_H

#include "llamita.h"

/* left and right, side by side, become product; the lowest rank first, of equal ranks the leftmost. */
typedef struct {
    int32_t left, right; /* left < 0: a free slot */
    uint32_t rank;
    int32_t product;
} merge;

typedef struct {
    merge *slots; /* [num_slots] hash table */
    size_t num_slots, num_merges;
} merge_table;

typedef enum { MERGE_ADDED, MERGE_EXISTS, MERGE_CROWDED, MERGE_NO_MEMORY } merge_result;

void merge_table_free(merge_table *table);

/* MERGE_EXISTS: the pair has a merge already, which stays. */
merge_result merge_table_add(merge_table *table, merge added);

/* Memory that merging needs, kept from one call to the next. Zero it first. */
typedef struct {
    void *memory;
    size_t num_bytes;
} merge_scratch;

void merge_scratch_free(merge_scratch *scratch);

/* Merges symbols[num_symbols] in place until no pair has a merge, and sets *num_symbols to what is left. Negative
 * symbols never merge. take_apart: NULL, or flags by symbol: a final symbol so flagged is replaced by the two that it
 * was merged from. O(n log n). False: out of memory. */
bool merge_symbols(const merge_table *table, const uint8_t *take_apart, merge_scratch *scratch, int32_t *symbols,
                   size_t *num_symbols);

#endif
