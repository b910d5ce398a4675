/* merge.c: a row of symbols to fewer symbols, by ranked pairs: short rows by scanning, long ones with a heap. */
#include "merge.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_PROBES = 4096, LEAST_SLOTS = 1024, MOST_SCANNED = 32 };
#define RANK_NONE UINT32_MAX

/* ------------------------------------------------------------------ the table */

void merge_table_free(merge_table *table) {
    free(table->slots);
    memset(table, 0, sizeof *table);
}

static inline size_t pair_slot(const merge_table *table, int32_t left, int32_t right) {
    uint64_t hash = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
    return (size_t)(hash * 0xBF58476D1CE4E5B9u >> 20) & (table->num_slots - 1);
}

/* The merge of the pair, or NULL. */
static inline const merge *pair_merge(const merge_table *table, int32_t left, int32_t right) {
    if (left < 0 || right < 0 || table->num_slots == 0) return NULL;
    for (size_t slot = pair_slot(table, left, right);; slot = (slot + 1) & (table->num_slots - 1)) {
        const merge *entry = &table->slots[slot];
        if (entry->left < 0) return NULL;
        if (entry->left == left && entry->right == right) return entry;
    }
}

static merge_result put(merge_table *table, merge added) {
    size_t slot = pair_slot(table, added.left, added.right);
    for (int probe = 0; probe < MOST_PROBES; probe++, slot = (slot + 1) & (table->num_slots - 1)) {
        merge *entry = &table->slots[slot];
        if (entry->left == added.left && entry->right == added.right) return MERGE_EXISTS;
        if (entry->left >= 0) continue;
        *entry = added;
        table->num_merges++;
        return MERGE_ADDED;
    }
    return MERGE_CROWDED;
}

merge_result merge_table_add(merge_table *table, merge added) {
    if ((table->num_merges + 1) * 2 > table->num_slots) {
        merge_table grown = {NULL, table->num_slots ? table->num_slots * 2 : LEAST_SLOTS, 0};
        grown.slots = malloc(grown.num_slots * sizeof *grown.slots);
        if (grown.slots == NULL) return MERGE_NO_MEMORY;
        for (size_t i = 0; i < grown.num_slots; i++) grown.slots[i].left = -1;
        for (size_t i = 0; i < table->num_slots; i++) {
            if (table->slots[i].left >= 0 && put(&grown, table->slots[i]) == MERGE_CROWDED) {
                merge_table_free(&grown);
                return MERGE_CROWDED;
            }
        }
        free(table->slots);
        *table = grown;
    }
    return put(table, added);
}

/* ------------------------------------------------------------------ short rows */

static uint32_t pair_rank(const merge_table *table, const int32_t *symbols, int32_t *product) {
    const merge *found = pair_merge(table, symbols[0], symbols[1]);
    *product = found ? found->product : -1;
    return found ? found->rank : RANK_NONE;
}

/* num_symbols <= MOST_SCANNED: finds the best pair by looking at all of them. */
static size_t merge_scanning(const merge_table *table, int32_t *symbols, size_t num_symbols) {
    uint32_t ranks[MOST_SCANNED]; /* ranks[i], products[i]: of the pair i, i + 1 */
    int32_t products[MOST_SCANNED];
    for (size_t i = 0; i + 1 < num_symbols; i++) ranks[i] = pair_rank(table, symbols + i, &products[i]);
    while (num_symbols > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < num_symbols; i++) {
            if (ranks[i] < ranks[best]) best = i;
        }
        if (ranks[best] == RANK_NONE) break;
        symbols[best] = products[best];
        num_symbols--;
        for (size_t i = best + 1; i < num_symbols; i++) {
            symbols[i] = symbols[i + 1];
            ranks[i - 1] = ranks[i];
            products[i - 1] = products[i];
        }
        if (best > 0) ranks[best - 1] = pair_rank(table, symbols + best - 1, &products[best - 1]);
        if (best + 1 < num_symbols) ranks[best] = pair_rank(table, symbols + best, &products[best]);
    }
    return num_symbols;
}

/* ------------------------------------------------------------------ long rows */

/* A pair to be merged, if it is still there when its turn comes: a place's symbol only ever grows, so the same two
 * symbols at the same place are the same pair. */
typedef struct {
    uint64_t order; /* rank << 32 | place of the left symbol */
    int32_t left, right, product;
} candidate;

/* One place a symbol of the original row; a merge moves the right symbol into the left one's place. */
typedef struct {
    int32_t symbol;
    int32_t previous, next; /* places, -1: none */
    bool gone;              /* merged into a place to the left */
    /* The merge that made this place's symbol is known by the place of its right half, from which it can be undone: */
    int32_t last_merge;   /* place of the right half, -1: a symbol of the original row */
    int32_t merge_before; /* of a right half: the left half's last_merge */
    int32_t left_half;    /* of a right half: the left half's symbol */
} place;

typedef struct {
    const merge_table *table;
    place *places;
    candidate *heap;
    size_t num_candidates;
} merger;

void merge_scratch_free(merge_scratch *scratch) {
    free(scratch->memory);
    memset(scratch, 0, sizeof *scratch);
}

static void heap_push(merger *m, candidate added) {
    size_t i = m->num_candidates++;
    while (i > 0 && m->heap[(i - 1) / 2].order > added.order) {
        m->heap[i] = m->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->heap[i] = added;
}

static candidate heap_pop(merger *m) {
    candidate best = m->heap[0], moved = m->heap[--m->num_candidates];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < m->num_candidates) {
        if (child + 1 < m->num_candidates && m->heap[child + 1].order < m->heap[child].order) child++;
        if (m->heap[child].order >= moved.order) break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = moved;
    return best;
}

static void consider(merger *m, int32_t left_place) {
    if (left_place < 0 || m->places[left_place].next < 0) return;
    int32_t left = m->places[left_place].symbol, right = m->places[m->places[left_place].next].symbol;
    const merge *found = pair_merge(m->table, left, right);
    if (found == NULL) return;
    heap_push(m, (candidate){(uint64_t)found->rank << 32 | (uint32_t)left_place, left, right, found->product});
}

static void merge_at(merger *m, int32_t left_place, int32_t product) {
    place *left = &m->places[left_place];
    int32_t right_place = left->next;
    place *right = &m->places[right_place];
    right->gone = true;
    right->merge_before = left->last_merge;
    right->left_half = left->symbol;
    left->last_merge = right_place;
    left->symbol = product;
    left->next = right->next;
    if (left->next >= 0) m->places[left->next].previous = left_place;
    consider(m, left->previous);
    consider(m, left_place);
}

/* Undoes merges until the symbol at this place needs no taking apart; what comes off follows it in the row. */
static void undo_merges(merger *m, int32_t at, const uint8_t *take_apart) {
    place *left = &m->places[at];
    while (left->symbol >= 0 && take_apart[left->symbol] && left->last_merge >= 0) {
        int32_t right_place = left->last_merge;
        place *right = &m->places[right_place];
        left->symbol = right->left_half;
        left->last_merge = right->merge_before;
        right->next = left->next;
        left->next = right_place;
    }
}

static bool prepare(merger *m, merge_scratch *scratch, const int32_t *symbols, size_t num_symbols) {
    /* A pop takes one candidate and its merge, one symbol fewer, brings at most two. */
    size_t place_bytes = num_symbols * sizeof(place), needed = place_bytes + 2 * num_symbols * sizeof(candidate);
    if (num_symbols > INT32_MAX || num_symbols > SIZE_MAX / 128) return false;
    if (scratch->num_bytes < needed) {
        merge_scratch_free(scratch);
        scratch->memory = malloc(needed);
        if (scratch->memory == NULL) return false;
        scratch->num_bytes = needed;
    }
    m->heap = scratch->memory; /* first: its alignment is the greater */
    m->places = (place *)(m->heap + 2 * num_symbols);
    for (size_t i = 0; i < num_symbols; i++) {
        int32_t here = (int32_t)i;
        m->places[i] = (place){symbols[i], here - 1, i + 1 < num_symbols ? here + 1 : -1, false, -1, -1, -1};
    }
    return true;
}

static bool merge_with_heap(merger *m, const uint8_t *take_apart, merge_scratch *scratch, int32_t *symbols,
                            size_t *num_symbols) {
    if (!prepare(m, scratch, symbols, *num_symbols)) return false;
    for (size_t i = 0; i + 1 < *num_symbols; i++) consider(m, (int32_t)i);
    while (m->num_candidates > 0) {
        candidate best = heap_pop(m);
        int32_t at = (int32_t)(best.order & UINT32_MAX);
        const place *left = &m->places[at];
        if (left->gone || left->symbol != best.left || left->next < 0) continue;
        if (m->places[left->next].symbol == best.right) merge_at(m, at, best.product);
    }
    size_t num_left = 0;
    for (int32_t at = 0; at >= 0; at = m->places[at].next) {
        if (take_apart != NULL) undo_merges(m, at, take_apart);
        symbols[num_left++] = m->places[at].symbol;
    }
    *num_symbols = num_left;
    return true;
}

bool merge_symbols(const merge_table *table, const uint8_t *take_apart, merge_scratch *scratch, int32_t *symbols,
                   size_t *num_symbols) {
    if (*num_symbols <= 1) return true;
    if (*num_symbols <= MOST_SCANNED && take_apart == NULL) {
        *num_symbols = merge_scanning(table, symbols, *num_symbols);
        return true;
    }
    merger m = {table, NULL, NULL, 0};
    return merge_with_heap(&m, take_apart, scratch, symbols, num_symbols);
}
