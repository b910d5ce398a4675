/* symbol_table.h: numbers the byte strings of a tokenizer: the pieces of its vocabulary and the
 * products of merges. */
#ifndef LLAMITA_SYMBOL_TABLE_H
#define LLAMITA_SYMBOL_TABLE_H

#include "llamita.h"

#define SYMBOL_NONE (-1)
#define MAX_SYMBOL_BYTES 2048

/* A string in bytes[]. The hash of a concatenation follows from the hashes of its parts. */
typedef struct {
    uint64_t hash;
    uint32_t start; /* in bytes[] */
    uint16_t num_bytes;
    bool findable;
} symbol_entry;

typedef struct {
    uint32_t tag;   /* bits of the hash, to skip most comparisons */
    int32_t symbol; /* SYMBOL_NONE: free */
} symbol_slot;

/* Owns all its arrays. */
typedef struct {
    char *bytes; /* all strings, concatenated */
    size_t num_bytes, bytes_capacity;
    symbol_entry *entries; /* [num_symbols] */
    int32_t num_symbols, symbols_capacity;
    symbol_slot *slots; /* [num_slots] hash table of the findable symbols, at most half full */
    size_t num_slots, num_findable;
    int slots_shift;        /* num_slots == 1 << (64 - slots_shift) */
    size_t longest;         /* bytes of the longest findable symbol */
    uint64_t *hash_factors; /* [MAX_SYMBOL_BYTES + 1] BASE^(length of the right part) */
} symbol_table;

typedef enum {
    SYMBOL_ADDED,
    SYMBOL_EXISTS,    /* *symbol is the earlier one */
    SYMBOL_CROWDED,   /* more collisions than chance allows: the file is an attack */
    SYMBOL_NO_MEMORY, /* out of memory, or above the size limits of the table */
} symbol_result;

/* Initializes a zeroed table with room for num_symbols findable symbols and num_bytes bytes; it
 * grows as needed. Free it with symbol_table_free, also on failure. */
symbol_result symbol_table_create(symbol_table *table, size_t num_symbols, size_t num_bytes);
void symbol_table_free(symbol_table *table);

/* Appends a string of at most MAX_SYMBOL_BYTES bytes as the next *symbol, not findable. */
symbol_result symbol_append(symbol_table *table, const char *bytes, size_t num_bytes, int32_t *symbol);

/* Makes a symbol findable. SYMBOL_EXISTS: another symbol with the same bytes already is; *symbol
 * becomes that one. */
symbol_result symbol_make_findable(symbol_table *table, int32_t *symbol);

/* Finds the string or appends it findable: SYMBOL_EXISTS or SYMBOL_ADDED. */
symbol_result symbol_intern(symbol_table *table, const char *bytes, size_t num_bytes, int32_t *symbol);

/* The findable symbol with these bytes, or SYMBOL_NONE. */
int32_t symbol_find(const symbol_table *table, const char *bytes, size_t num_bytes);

/* The findable symbol that is the concatenation of left and right, both findable; or
 * SYMBOL_NONE. */
int32_t symbol_find_pair(const symbol_table *table, int32_t left, int32_t right);

/* The bytes of a symbol, valid until the table grows; not NUL-terminated. */
static inline const char *symbol_bytes(const symbol_table *table, int32_t symbol, size_t *num_bytes) {
    const symbol_entry *entry = &table->entries[symbol];
    *num_bytes = entry->num_bytes;
    return table->bytes + entry->start;
}

#endif
