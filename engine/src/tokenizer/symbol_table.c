/* symbol_table.c: numbers byte strings with an open-addressing hash table that is at most half
 * full.
 *
 * The hash of a string is a polynomial of its bytes (Karp and Rabin 1987), modulo 2^64: hash(left
 * right) = hash(left) * BASE^bytes(right) + hash(right). So merging can look up a pair without
 * hashing its bytes, and most pairs are no symbol: one probe is enough.
 */
#include "tokenizer/symbol_table.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_PROBES = 1024, MIN_SLOTS_LOG2 = 10, MAX_SLOTS_LOG2 = 26, MIN_BYTES = 4096 };
#define BASE 0x9E3779B97F4A7C15u

/* ------------------------------------------------------------------ hashes */

/* The sum of (byte[i] + 1) * BASE^(num_bytes - 1 - i). */
static uint64_t string_hash(const char *bytes, size_t num_bytes) {
    const uint64_t base = BASE, base2 = base * base, base3 = base2 * base, base4 = base2 * base2;
    const unsigned char *at = (const unsigned char *)bytes;
    uint64_t hash = 0;
    for (; num_bytes >= 4; num_bytes -= 4, at += 4)
        hash = hash * base4 + ((at[0] + 1) * base3 + (at[1] + 1) * base2 + (at[2] + 1) * base + (at[3] + 1));
    for (; num_bytes > 0; num_bytes--, at++) hash = hash * base + (*at + 1);
    return hash;
}

/* Mixes the hash: the high bits select the first slot, the low ones are the tag. */
static inline uint64_t spread(uint64_t hash) { return (hash ^ hash >> 32) * 0xBF58476D1CE4E5B9u; }

/* ------------------------------------------------------------------ slots */

typedef struct {
    const char *bytes;
    size_t num_bytes;
} string;

static inline bool holds(const symbol_table *table, int32_t symbol, string left, string right) {
    const symbol_entry *entry = &table->entries[symbol];
    const char *held = table->bytes + entry->start;
    return entry->num_bytes == left.num_bytes + right.num_bytes && memcmp(held, left.bytes, left.num_bytes) == 0 &&
           memcmp(held + left.num_bytes, right.bytes, right.num_bytes) == 0;
}

/* The slot of the concatenation of left and right, which has this hash, or the free slot where it
 * belongs; NULL: too many collisions. */
static inline symbol_slot *slot_of(const symbol_table *table, uint64_t hash, string left, string right) {
    const uint64_t bits = spread(hash);
    const size_t mask = table->num_slots - 1;
    size_t at = (size_t)(bits >> table->slots_shift);
    for (int probe = 0; probe < MAX_PROBES; probe++, at = (at + 1) & mask) {
        symbol_slot *slot = &table->slots[at];
        if (slot->symbol == SYMBOL_NONE) return slot;
        if (slot->tag == (uint32_t)bits && holds(table, slot->symbol, left, right)) return slot;
    }
    return NULL;
}

/* Moves the findable symbols to a table of 1 << log2 slots. */
static symbol_result resize(symbol_table *table, int log2) {
    if (log2 > MAX_SLOTS_LOG2) return SYMBOL_NO_MEMORY;
    const size_t num_slots = (size_t)1 << log2;
    symbol_slot *slots = malloc(num_slots * sizeof *slots);
    if (!slots) return SYMBOL_NO_MEMORY;
    memset(slots, 0xFF, num_slots * sizeof *slots); /* SYMBOL_NONE everywhere */
    for (size_t i = 0; i < table->num_slots; i++) {
        if (table->slots[i].symbol == SYMBOL_NONE) continue;
        const uint64_t bits = spread(table->entries[table->slots[i].symbol].hash);
        size_t at = (size_t)(bits >> (64 - log2));
        int probe = 0;
        for (; probe < MAX_PROBES && slots[at].symbol != SYMBOL_NONE; probe++) at = (at + 1) & (num_slots - 1);
        if (probe == MAX_PROBES) {
            free(slots);
            return SYMBOL_CROWDED;
        }
        slots[at] = table->slots[i];
    }
    free(table->slots);
    table->slots = slots;
    table->num_slots = num_slots;
    table->slots_shift = 64 - log2;
    return SYMBOL_ADDED;
}

/* ------------------------------------------------------------------ the table */

void symbol_table_free(symbol_table *table) {
    free(table->bytes);
    free(table->entries);
    free(table->slots);
    free(table->hash_factors);
    memset(table, 0, sizeof *table);
}

static bool grow_entries(symbol_table *table, size_t capacity) {
    if (capacity > INT32_MAX / 2) return false;
    symbol_entry *entries = realloc(table->entries, capacity * sizeof *entries);
    if (!entries) return false;
    table->entries = entries;
    table->symbols_capacity = (int32_t)capacity;
    return true;
}

static bool grow_bytes(symbol_table *table, size_t capacity) {
    if (capacity > UINT32_MAX) return false;
    char *bytes = realloc(table->bytes, capacity);
    if (!bytes) return false;
    table->bytes = bytes;
    table->bytes_capacity = capacity;
    return true;
}

symbol_result symbol_table_create(symbol_table *table, size_t num_symbols, size_t num_bytes) {
    int log2 = MIN_SLOTS_LOG2;
    while (log2 < MAX_SLOTS_LOG2 && (size_t)1 << log2 < 2 * num_symbols) log2++;
    table->hash_factors = malloc((MAX_SYMBOL_BYTES + 1) * sizeof *table->hash_factors);
    if (!table->hash_factors || !grow_entries(table, num_symbols + 1) || !grow_bytes(table, num_bytes + MIN_BYTES))
        return SYMBOL_NO_MEMORY;
    uint64_t factor = 1;
    for (int i = 0; i <= MAX_SYMBOL_BYTES; i++, factor *= BASE) table->hash_factors[i] = factor;
    return resize(table, log2);
}

symbol_result symbol_append(symbol_table *table, const char *bytes, size_t num_bytes, int32_t *symbol) {
    if (num_bytes > MAX_SYMBOL_BYTES) return SYMBOL_NO_MEMORY;
    const size_t symbols = (size_t)table->symbols_capacity, held = table->bytes_capacity;
    if (table->num_symbols == table->symbols_capacity && !grow_entries(table, symbols * 2)) return SYMBOL_NO_MEMORY;
    if (num_bytes > held - table->num_bytes && !grow_bytes(table, held * 2)) return SYMBOL_NO_MEMORY;
    if (num_bytes > 0) memcpy(table->bytes + table->num_bytes, bytes, num_bytes);
    *symbol = table->num_symbols++;
    table->entries[*symbol] =
        (symbol_entry){string_hash(bytes, num_bytes), (uint32_t)table->num_bytes, (uint16_t)num_bytes, false};
    table->num_bytes += num_bytes;
    return SYMBOL_ADDED;
}

static void occupy(symbol_table *table, symbol_slot *slot, int32_t symbol) {
    symbol_entry *entry = &table->entries[symbol];
    *slot = (symbol_slot){(uint32_t)spread(entry->hash), symbol};
    entry->findable = true;
    table->num_findable++;
    if (entry->num_bytes > table->longest) table->longest = entry->num_bytes;
}

symbol_result symbol_make_findable(symbol_table *table, int32_t *symbol) {
    if ((table->num_findable + 1) * 2 > table->num_slots) {
        const symbol_result result = resize(table, 65 - table->slots_shift);
        if (result != SYMBOL_ADDED) return result;
    }
    string whole;
    whole.bytes = symbol_bytes(table, *symbol, &whole.num_bytes);
    symbol_slot *slot = slot_of(table, table->entries[*symbol].hash, whole, (string){"", 0});
    if (!slot) return SYMBOL_CROWDED;
    if (slot->symbol != SYMBOL_NONE) {
        *symbol = slot->symbol;
        return SYMBOL_EXISTS;
    }
    occupy(table, slot, *symbol);
    return SYMBOL_ADDED;
}

symbol_result symbol_intern(symbol_table *table, const char *bytes, size_t num_bytes, int32_t *symbol) {
    *symbol = symbol_find(table, bytes, num_bytes);
    if (*symbol != SYMBOL_NONE) return SYMBOL_EXISTS;
    symbol_result result = symbol_append(table, bytes, num_bytes, symbol);
    return result == SYMBOL_ADDED ? symbol_make_findable(table, symbol) : result;
}

/* ------------------------------------------------------------------ lookup */

int32_t symbol_find(const symbol_table *table, const char *bytes, size_t num_bytes) {
    if (num_bytes > table->longest) return SYMBOL_NONE;
    const symbol_slot *slot =
        slot_of(table, string_hash(bytes, num_bytes), (string){bytes, num_bytes}, (string){"", 0});
    return slot ? slot->symbol : SYMBOL_NONE;
}

int32_t symbol_find_pair(const symbol_table *table, int32_t left, int32_t right) {
    const symbol_entry *first = &table->entries[left], *second = &table->entries[right];
    const size_t second_bytes = second->num_bytes;
    if (first->num_bytes + second_bytes > table->longest) return SYMBOL_NONE;
    const symbol_slot *slot = slot_of(table, first->hash * table->hash_factors[second_bytes] + second->hash,
                                      (string){table->bytes + first->start, first->num_bytes},
                                      (string){table->bytes + second->start, second_bytes});
    return slot ? slot->symbol : SYMBOL_NONE;
}
