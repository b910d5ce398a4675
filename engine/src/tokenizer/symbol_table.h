/* symbol_table.h: byte strings to numbers and back: the pieces of a vocabulary, and what its merges pass through. */
#ifndef LLAMITA_SYMBOL_TABLE_H
#define LLAMITA_SYMBOL_TABLE_H

#include "llamita.h"

#define SYMBOL_NONE (-1)
#define MAX_SYMBOL_BYTES 2048

/* Where a string lies, and its hash: that of two strings together comes from theirs without looking at any byte. */
typedef struct {
    uint64_t hash;
    uint32_t start; /* in bytes */
    uint16_t num_bytes;
    bool findable;
} symbol_entry;

typedef struct {
    uint32_t tag;   /* of the hash: other strings are told apart without looking at them */
    int32_t symbol; /* SYMBOL_NONE: free */
} symbol_slot;

typedef struct {
    char *bytes; /* all strings, one after the other */
    size_t num_bytes, bytes_capacity;
    symbol_entry *entries; /* [num_symbols] */
    int32_t num_symbols, symbols_capacity;
    symbol_slot *slots; /* [num_slots] hash table of the findable symbols, at most half full */
    size_t num_slots, num_findable;
    int slots_shift;        /* num_slots == 1 << (64 - slots_shift) */
    size_t longest;         /* bytes of the longest findable symbol */
    uint64_t *hash_factors; /* [MAX_SYMBOL_BYTES + 1] by the length of what follows a string */
} symbol_table;

typedef enum {
    SYMBOL_ADDED,
    SYMBOL_EXISTS,    /* *symbol is the earlier one */
    SYMBOL_CROWDED,   /* more strings share a hash than chance can explain: the file was made to be slow */
    SYMBOL_NO_MEMORY, /* or more bytes than a table can hold */
} symbol_result;

/* Starts a table, zeroed before, with room for as many findable symbols and bytes; more make it grow. */
symbol_result symbol_table_create(symbol_table *table, size_t num_symbols, size_t num_bytes);
void symbol_table_free(symbol_table *table);

/* Appends the string of at most MAX_SYMBOL_BYTES bytes under the next number, *symbol, not findable. */
symbol_result symbol_append(symbol_table *table, const char *bytes, size_t num_bytes, int32_t *symbol);

/* Makes a symbol findable; SYMBOL_EXISTS: another with the same bytes is already, *symbol. */
symbol_result symbol_make_findable(symbol_table *table, int32_t *symbol);

/* Finds the string or appends it findable: SYMBOL_EXISTS or SYMBOL_ADDED. */
symbol_result symbol_intern(symbol_table *table, const char *bytes, size_t num_bytes, int32_t *symbol);

/* The findable symbol with these bytes, or SYMBOL_NONE. */
int32_t symbol_find(const symbol_table *table, const char *bytes, size_t num_bytes);

/* The findable symbol whose string is that of left and then that of right, both findable; or SYMBOL_NONE. */
int32_t symbol_find_pair(const symbol_table *table, int32_t left, int32_t right);

static inline const char *symbol_bytes(const symbol_table *table, int32_t symbol, size_t *num_bytes) {
    const symbol_entry *entry = &table->entries[symbol];
    *num_bytes = entry->num_bytes;
    return table->bytes + entry->start;
}

#endif
