/* bpe_merge.c: a row of symbols to fewer symbols, by ranked pairs: short rows by scanning, long ones with a heap. */
#include "tokenizer/bpe_merge.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_PROBES = 1024, MIN_SLOTS = 1024, MIN_PAIRS_LOG2 = 6, MAX_PAIRS_LOG2 = 15, MAX_SCANNED_SYMBOLS = 32 };

/* ------------------------------------------------------------------ the rules */

static bool grow_ranks(bpe_rules *rules, size_t num_ranks, bool any_halves) {
    if (num_ranks > INT32_MAX) return false;
    uint32_t *ranks = realloc(rules->ranks, num_ranks * sizeof *ranks);
    if (!ranks) return false;
    rules->ranks = ranks;
    for (size_t i = (size_t)rules->num_ranks; i < num_ranks; i++) ranks[i] = BPE_RANK_NONE;
    if (!any_halves) {
        uint16_t *left_bytes = realloc(rules->left_bytes, num_ranks * sizeof *left_bytes);
        if (!left_bytes) return false;
        rules->left_bytes = left_bytes;
    }
    rules->num_ranks = (int32_t)num_ranks;
    return true;
}

bpe_result bpe_rules_create(bpe_rules *rules, const symbol_table *symbols, int32_t num_ranks, bool any_halves) {
    *rules = (bpe_rules){.symbols = symbols};
    return grow_ranks(rules, (size_t)num_ranks, any_halves) ? BPE_ADDED : BPE_NO_MEMORY;
}

void bpe_rules_free(bpe_rules *rules) {
    free(rules->ranks);
    free(rules->left_bytes);
    free(rules->others);
    memset(rules, 0, sizeof *rules);
}

/* The slot of a further merge: the one that holds it, or the free one where it belongs; NULL if neither is near. */
static other_merge *other_slot(const bpe_rules *rules, int32_t product, uint32_t left_bytes) {
    const uint64_t odd = 0x9E3779B97F4A7C15u;
    uint64_t hash = ((uint64_t)(uint32_t)product << 32 | left_bytes) * odd;
    hash = (hash ^ hash >> 32) * odd; /* the product alone would be in the upper half only */
    const size_t mask = rules->num_other_slots - 1;
    size_t at = (size_t)(hash >> 20) & mask;
    for (int probe = 0; probe < MAX_PROBES; probe++, at = (at + 1) & mask) {
        other_merge *slot = &rules->others[at];
        if (slot->product < 0 || (slot->product == product && slot->left_bytes == left_bytes)) return slot;
    }
    return NULL;
}

static bpe_result grow_others(bpe_rules *rules) {
    bpe_rules grown = {.num_other_slots = rules->num_other_slots ? 2 * rules->num_other_slots : MIN_SLOTS};
    grown.others = malloc(grown.num_other_slots * sizeof *grown.others);
    if (!grown.others) return BPE_NO_MEMORY;
    for (size_t i = 0; i < grown.num_other_slots; i++) grown.others[i].product = -1;
    for (size_t i = 0; i < rules->num_other_slots; i++) {
        if (rules->others[i].product < 0) continue;
        other_merge *slot = other_slot(&grown, rules->others[i].product, rules->others[i].left_bytes);
        if (!slot) {
            free(grown.others);
            return BPE_CROWDED;
        }
        *slot = rules->others[i];
    }
    free(rules->others);
    rules->others = grown.others;
    rules->num_other_slots = grown.num_other_slots;
    return BPE_ADDED;
}

bpe_result bpe_rules_add(bpe_rules *rules, int32_t product, size_t left_bytes, uint32_t rank) {
    if (product >= rules->num_ranks && !grow_ranks(rules, 2 * (size_t)product + 1, false)) return BPE_NO_MEMORY;
    if (rules->ranks[product] == BPE_RANK_NONE) {
        rules->ranks[product] = rank;
        rules->left_bytes[product] = (uint16_t)left_bytes;
        return BPE_ADDED;
    }
    if (rules->left_bytes[product] == left_bytes) return BPE_EXISTS;
    if ((rules->num_others + 1) * 2 > rules->num_other_slots) {
        const bpe_result result = grow_others(rules);
        if (result != BPE_ADDED) return result;
    }
    other_merge *slot = other_slot(rules, product, (uint32_t)left_bytes);
    if (!slot) return BPE_CROWDED;
    if (slot->product >= 0) return BPE_EXISTS;
    *slot = (other_merge){product, (uint32_t)left_bytes, rank};
    rules->num_others++;
    return BPE_ADDED;
}

/* ------------------------------------------------------------------ pairs */

void bpe_scratch_keep_pairs(bpe_scratch *scratch, size_t num_pairs) {
    int log2 = MIN_PAIRS_LOG2;
    while (log2 < MAX_PAIRS_LOG2 && (size_t)1 << log2 < num_pairs) log2++;
    scratch->pairs = calloc((size_t)1 << log2, sizeof *scratch->pairs);
    scratch->pairs_shift = 64 - log2;
}

void bpe_scratch_free(bpe_scratch *scratch) {
    free(scratch->memory);
    free(scratch->pairs);
    memset(scratch, 0, sizeof *scratch);
}

/* What the pair becomes, with its rank: BPE_RANK_NONE if it does not merge. */
static uint32_t look_up(const bpe_rules *rules, int32_t left, int32_t right, int32_t *product) {
    *product = symbol_find_pair(rules->symbols, left, right);
    if (*product < 0 || *product >= rules->num_ranks) return BPE_RANK_NONE;
    const uint32_t rank = rules->ranks[*product];
    if (!rules->left_bytes || rank == BPE_RANK_NONE) return rank;
    const uint32_t left_bytes = rules->symbols->entries[left].num_bytes;
    if (rules->left_bytes[*product] == left_bytes) return rank;
    if (rules->num_others == 0) return BPE_RANK_NONE;
    const other_merge *other = other_slot(rules, *product, left_bytes);
    return other && other->product >= 0 ? other->rank : BPE_RANK_NONE;
}

/* What rows are merged by. */
typedef struct {
    const bpe_rules *rules;
    known_pair *pairs;
    int pairs_shift;
} pair_source;

static inline uint32_t pair_rank(const pair_source *source, int32_t left, int32_t right, int32_t *product) {
    if ((left | right) < 0) return BPE_RANK_NONE;
    if (!source->pairs) return look_up(source->rules, left, right, product);
    const uint64_t key = ((uint64_t)left + 1) << 32 | (uint32_t)right;
    uint64_t hash = key * 0x9E3779B97F4A7C15u;
    hash = (hash ^ hash >> 32) * 0xBF58476D1CE4E5B9u;
    known_pair *known = &source->pairs[hash >> source->pairs_shift];
    if (known->key != key) {
        known->key = key;
        known->rank = look_up(source->rules, left, right, &known->product);
    }
    *product = known->product;
    return known->rank;
}

/* ------------------------------------------------------------------ short rows */

/* num_symbols <= MAX_SCANNED_SYMBOLS: finds the best pair by looking at all of them. */
static size_t merge_scanning(const pair_source *source, int32_t *symbols, size_t num_symbols) {
    uint32_t ranks[MAX_SCANNED_SYMBOLS]; /* ranks[i], products[i]: of the pair i, i + 1 */
    int32_t products[MAX_SCANNED_SYMBOLS];
    for (size_t i = 0; i + 1 < num_symbols; i++) ranks[i] = pair_rank(source, symbols[i], symbols[i + 1], &products[i]);
    while (num_symbols > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < num_symbols; i++)
            if (ranks[i] < ranks[best]) best = i;
        if (ranks[best] == BPE_RANK_NONE) break;
        symbols[best] = products[best];
        num_symbols--;
        for (size_t i = best + 1; i < num_symbols; i++) {
            symbols[i] = symbols[i + 1];
            ranks[i - 1] = ranks[i];
            products[i - 1] = products[i];
        }
        if (best > 0) ranks[best - 1] = pair_rank(source, symbols[best - 1], symbols[best], &products[best - 1]);
        if (best + 1 < num_symbols) ranks[best] = pair_rank(source, symbols[best], symbols[best + 1], &products[best]);
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
    const pair_source *source;
    place *places;
    candidate *heap;
    size_t num_candidates;
} merger;

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
    int32_t product;
    const uint32_t rank = pair_rank(m->source, left, right, &product);
    if (rank == BPE_RANK_NONE) return;
    heap_push(m, (candidate){(uint64_t)rank << 32 | (uint32_t)left_place, left, right, product});
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

static bool prepare(merger *m, bpe_scratch *scratch, const int32_t *symbols, size_t num_symbols) {
    /* A pop takes one candidate and its merge, one symbol fewer, brings at most two. */
    size_t place_bytes = num_symbols * sizeof(place), needed = place_bytes + 2 * num_symbols * sizeof(candidate);
    if (num_symbols > INT32_MAX || num_symbols > SIZE_MAX / 128) return false;
    if (scratch->num_bytes < needed) {
        free(scratch->memory);
        scratch->memory = malloc(needed);
        scratch->num_bytes = scratch->memory ? needed : 0;
        if (!scratch->memory) return false;
    }
    m->heap = scratch->memory; /* first: its alignment is the greater */
    m->places = (place *)(m->heap + 2 * num_symbols);
    for (size_t i = 0; i < num_symbols; i++) {
        int32_t here = (int32_t)i;
        m->places[i] = (place){symbols[i], here - 1, i + 1 < num_symbols ? here + 1 : -1, false, -1, -1, -1};
    }
    return true;
}

static bool merge_with_heap(merger *m, const uint8_t *take_apart, bpe_scratch *scratch, int32_t *symbols,
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
        if (take_apart) undo_merges(m, at, take_apart);
        symbols[num_left++] = m->places[at].symbol;
    }
    *num_symbols = num_left;
    return true;
}

bool bpe_merge(const bpe_rules *rules, const uint8_t *take_apart, bpe_scratch *scratch, int32_t *symbols,
               size_t *num_symbols) {
    if (*num_symbols <= 1) return true;
    const pair_source source = {rules, scratch->pairs, scratch->pairs_shift};
    if (*num_symbols <= MAX_SCANNED_SYMBOLS && !take_apart) {
        *num_symbols = merge_scanning(&source, symbols, *num_symbols);
        return true;
    }
    merger m = {&source, NULL, NULL, 0};
    return merge_with_heap(&m, take_apart, scratch, symbols, num_symbols);
}
