/* symbol_table.c: byte strings to numbers and back, with an open-addressed hash table of twice the size at least. */
#include "symbol_table.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_PROBES = 4096, LEAST_SLOTS = 1024 };

void symbol_table_free(symbol_table *table) {
    free(table->bytes);
    free(table->ends);
    free(table->slots);
    memset(table, 0, sizeof *table);
}

uint64_t bytes_hash(const char *bytes, size_t num_bytes) {
    const uint64_t odd = 0x9E3779B97F4A7C15u;
    uint64_t hash = odd ^ num_bytes, word;
    while (num_bytes >= 8) {
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * odd;
        hash ^= hash >> 32;
        bytes += 8;
        num_bytes -= 8;
    }
    word = 0;
    memcpy(&word, bytes, num_bytes);
    hash = (hash ^ word) * odd;
    hash ^= hash >> 29;
    hash *= 0xBF58476D1CE4E5B9u;
    return hash ^ hash >> 32;
}

const char *symbol_bytes(const symbol_table *table, int32_t symbol, size_t *num_bytes) {
    size_t start = symbol > 0 ? table->ends[symbol - 1] : 0;
    *num_bytes = table->ends[symbol] - start;
    return table->bytes + start;
}

/* The slot of the string: the one that holds it, or the free one where it belongs; num_slots if neither is near. */
static size_t slot_of(const symbol_table *table, const char *bytes, size_t num_bytes) {
    size_t mask = table->num_slots - 1, slot = (size_t)bytes_hash(bytes, num_bytes) & mask;
    for (int probe = 0; probe < MOST_PROBES; probe++, slot = (slot + 1) & mask) {
        int32_t symbol = table->slots[slot];
        if (symbol == SYMBOL_NONE) return slot;
        size_t length;
        const char *held = symbol_bytes(table, symbol, &length);
        if (length == num_bytes && memcmp(held, bytes, length) == 0) return slot;
    }
    return table->num_slots;
}

int32_t symbol_find(const symbol_table *table, const char *bytes, size_t num_bytes) {
    if (table->num_slots == 0) return SYMBOL_NONE;
    size_t slot = slot_of(table, bytes, num_bytes);
    return slot < table->num_slots ? table->slots[slot] : SYMBOL_NONE;
}

/* Doubles the hash table when it would be more than half full. */
static symbol_result make_room(symbol_table *table) {
    if ((table->num_findable + 1) * 2 <= table->num_slots) return SYMBOL_ADDED;
    size_t num_slots = table->num_slots ? table->num_slots * 2 : LEAST_SLOTS, num_old = table->num_slots;
    int32_t *old = table->slots, *slots = malloc(num_slots * sizeof *slots);
    if (slots == NULL) return SYMBOL_NO_MEMORY;
    for (size_t i = 0; i < num_slots; i++) slots[i] = SYMBOL_NONE;
    table->slots = slots;
    table->num_slots = num_slots;
    symbol_result result = SYMBOL_ADDED;
    for (size_t i = 0; i < num_old && result == SYMBOL_ADDED; i++) {
        if (old[i] == SYMBOL_NONE) continue;
        size_t length;
        const char *held = symbol_bytes(table, old[i], &length);
        size_t slot = slot_of(table, held, length);
        if (slot == num_slots) result = SYMBOL_CROWDED;
        else slots[slot] = old[i];
    }
    free(old);
    return result;
}

symbol_result symbol_append(symbol_table *table, const char *bytes, size_t num_bytes, int32_t *symbol) {
    if (table->num_symbols == table->symbols_capacity) {
        if (table->symbols_capacity > INT32_MAX / 2) return SYMBOL_NO_MEMORY;
        int32_t capacity = table->symbols_capacity ? table->symbols_capacity * 2 : 1024;
        size_t *ends = realloc(table->ends, (size_t)capacity * sizeof *ends);
        if (ends == NULL) return SYMBOL_NO_MEMORY;
        table->ends = ends;
        table->symbols_capacity = capacity;
    }
    if (num_bytes > table->bytes_capacity - table->num_bytes) {
        if (num_bytes > SIZE_MAX / 4 || table->bytes_capacity > SIZE_MAX / 4) return SYMBOL_NO_MEMORY;
        size_t capacity = table->bytes_capacity * 2 + num_bytes + 4096;
        char *grown = realloc(table->bytes, capacity);
        if (grown == NULL) return SYMBOL_NO_MEMORY;
        table->bytes = grown;
        table->bytes_capacity = capacity;
    }
    if (num_bytes > 0) memcpy(table->bytes + table->num_bytes, bytes, num_bytes);
    table->num_bytes += num_bytes;
    table->ends[table->num_symbols] = table->num_bytes;
    *symbol = table->num_symbols++;
    return SYMBOL_ADDED;
}

symbol_result symbol_make_findable(symbol_table *table, int32_t *symbol) {
    symbol_result result = make_room(table);
    if (result != SYMBOL_ADDED) return result;
    size_t num_bytes;
    const char *bytes = symbol_bytes(table, *symbol, &num_bytes);
    size_t slot = slot_of(table, bytes, num_bytes);
    if (slot == table->num_slots) return SYMBOL_CROWDED;
    if (table->slots[slot] != SYMBOL_NONE) {
        *symbol = table->slots[slot];
        return SYMBOL_EXISTS;
    }
    table->slots[slot] = *symbol;
    table->num_findable++;
    return SYMBOL_ADDED;
}

symbol_result symbol_intern(symbol_table *table, const char *bytes, size_t num_bytes, int32_t *symbol) {
    *symbol = symbol_find(table, bytes, num_bytes);
    if (*symbol != SYMBOL_NONE) return SYMBOL_EXISTS;
    symbol_result result = symbol_append(table, bytes, num_bytes, symbol);
    return result == SYMBOL_ADDED ? symbol_make_findable(table, symbol) : result;
}
