/* symbol_table.h: byte strings to numbers and back: the pieces of a vocabulary, and what its merges pass through. */
#ifndef LLAMITA_SYMBOL_TABLE_H
#define LLAMITA_SYMBOL_TABLE_H

#include "llamita.h"

#define SYMBOL_NONE (-1)

typedef struct {
    char *bytes; /* all strings, one after the other */
    size_t num_bytes, bytes_capacity;
    size_t *ends; /* [num_symbols] where each string ends in bytes */
    int32_t num_symbols, symbols_capacity;
    int32_t *slots; /* [num_slots] hash table of the findable symbols, SYMBOL_NONE: free */
    size_t num_slots, num_findable;
} symbol_table;

typedef enum {
    SYMBOL_ADDED,
    SYMBOL_EXISTS,  /* *symbol is the earlier one */
    SYMBOL_CROWDED, /* more strings share a hash than chance can explain: the file was made to be slow */
    SYMBOL_NO_MEMORY,
} symbol_result;

void symbol_table_free(symbol_table *table);

/* Appends the string under the next number, *symbol, not findable. */
symbol_result symbol_append(symbol_table *table, const char *bytes, size_t num_bytes, int32_t *symbol);

/* Makes a symbol findable; SYMBOL_EXISTS: another with the same bytes is already, *symbol. */
symbol_result symbol_make_findable(symbol_table *table, int32_t *symbol);

/* Finds the string or appends it findable: SYMBOL_EXISTS or SYMBOL_ADDED. */
symbol_result symbol_intern(symbol_table *table, const char *bytes, size_t num_bytes, int32_t *symbol);

/* The findable symbol with these bytes, or SYMBOL_NONE. */
int32_t symbol_find(const symbol_table *table, const char *bytes, size_t num_bytes);

const char *symbol_bytes(const symbol_table *table, int32_t symbol, size_t *num_bytes);

/* A hash of bytes, the same on every machine of one byte order. */
uint64_t bytes_hash(const char *bytes, size_t num_bytes);

#endif
