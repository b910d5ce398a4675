/* bpe_merge.c: merges the symbols of a word by rank: short words by scanning, long ones with a
 * heap. */
#include "tokenizer/bpe_merge.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_PROBES = 1024, MIN_SLOTS = 1024, MIN_PAIRS_LOG2 = 6, MAX_PAIRS_LOG2 = 15, MAX_SCANNED_SYMBOLS = 32 };

/* ------------------------------------------------------------------ rules */

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
    free(rules->extra_merges);
    memset(rules, 0, sizeof *rules);
}

/* The slot of a further merge, or the free slot where it belongs; NULL: too many collisions. */
static extra_merge *extra_slot(const bpe_rules *rules, int32_t product, uint32_t left_bytes) {
    const uint64_t odd = 0x9E3779B97F4A7C15u;
    uint64_t hash = ((uint64_t)(uint32_t)product << 32 | left_bytes) * odd;
    hash = (hash ^ hash >> 32) * odd; /* mixes the product into the low half */
    const size_t mask = rules->num_extra_slots - 1;
    size_t at = (size_t)(hash >> 20) & mask;
    for (int probe = 0; probe < MAX_PROBES; probe++, at = (at + 1) & mask) {
        extra_merge *slot = &rules->extra_merges[at];
        if (slot->product < 0 || (slot->product == product && slot->left_bytes == left_bytes)) return slot;
    }
    return NULL;
}

static bpe_result grow_extra_merges(bpe_rules *rules) {
    bpe_rules grown = {.num_extra_slots = rules->num_extra_slots ? 2 * rules->num_extra_slots : MIN_SLOTS};
    grown.extra_merges = malloc(grown.num_extra_slots * sizeof *grown.extra_merges);
    if (!grown.extra_merges) return BPE_NO_MEMORY;
    for (size_t i = 0; i < grown.num_extra_slots; i++) grown.extra_merges[i].product = -1;
    for (size_t i = 0; i < rules->num_extra_slots; i++) {
        if (rules->extra_merges[i].product < 0) continue;
        extra_merge *slot = extra_slot(&grown, rules->extra_merges[i].product, rules->extra_merges[i].left_bytes);
        if (!slot) {
            free(grown.extra_merges);
            return BPE_CROWDED;
        }
        *slot = rules->extra_merges[i];
    }
    free(rules->extra_merges);
    rules->extra_merges = grown.extra_merges;
    rules->num_extra_slots = grown.num_extra_slots;
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
    if ((rules->num_extra_merges + 1) * 2 > rules->num_extra_slots) {
        const bpe_result result = grow_extra_merges(rules);
        if (result != BPE_ADDED) return result;
    }
    extra_merge *slot = extra_slot(rules, product, (uint32_t)left_bytes);
    if (!slot) return BPE_CROWDED;
    if (slot->product >= 0) return BPE_EXISTS;
    *slot = (extra_merge){product, (uint32_t)left_bytes, rank};
    rules->num_extra_merges++;
    return BPE_ADDED;
}

/* ------------------------------------------------------------------ pairs */

void bpe_scratch_cache_pairs(bpe_scratch *scratch, size_t num_pairs) {
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

/* The rank and product of a pair; BPE_RANK_NONE: it does not merge. */
static uint32_t look_up(const bpe_rules *rules, int32_t left, int32_t right, int32_t *product) {
    *product = symbol_find_pair(rules->symbols, left, right);
    if (*product < 0 || *product >= rules->num_ranks) return BPE_RANK_NONE;
    const uint32_t rank = rules->ranks[*product];
    if (!rules->left_bytes || rank == BPE_RANK_NONE) return rank;
    const uint32_t left_bytes = rules->symbols->entries[left].num_bytes;
    if (rules->left_bytes[*product] == left_bytes) return rank;
    if (rules->num_extra_merges == 0) return BPE_RANK_NONE;
    const extra_merge *other = extra_slot(rules, *product, left_bytes);
    return other && other->product >= 0 ? other->rank : BPE_RANK_NONE;
}

typedef struct {
    const bpe_rules *rules;
    cached_pair *pairs;
    int pairs_shift;
} pair_source;

static inline uint32_t pair_rank(const pair_source *source, int32_t left, int32_t right, int32_t *product) {
    if ((left | right) < 0) return BPE_RANK_NONE;
    if (!source->pairs) return look_up(source->rules, left, right, product);
    const uint64_t key = ((uint64_t)left + 1) << 32 | (uint32_t)right;
    uint64_t hash = key * 0x9E3779B97F4A7C15u;
    hash = (hash ^ hash >> 32) * 0xBF58476D1CE4E5B9u;
    cached_pair *cached = &source->pairs[hash >> source->pairs_shift];
    if (cached->key != key) {
        cached->key = key;
        cached->rank = look_up(source->rules, left, right, &cached->product);
    }
    *product = cached->product;
    return cached->rank;
}

/* ------------------------------------------------------------------ short words */

/* Finds the best pair by scanning all of them; num_symbols <= MAX_SCANNED_SYMBOLS. */
static size_t merge_scanning(const pair_source *source, int32_t *symbols, size_t num_symbols) {
    uint32_t ranks[MAX_SCANNED_SYMBOLS]; /* ranks[i] and products[i]: of the pair (i, i + 1) */
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

/* ------------------------------------------------------------------ long words */

/* A pair in the heap. It is stale if its symbols have changed since: the symbol of a node only
 * grows, so the same two symbols at the same node are the same pair. */
typedef struct {
    uint64_t order; /* rank << 32 | left node */
    int32_t left, right, product;
} candidate;

/* A node of the linked list of symbols, one per symbol of the word at first. A merge replaces the
 * left node's symbol and removes the right node. */
typedef struct {
    int32_t symbol;
    int32_t previous, next; /* nodes; -1: none */
    bool removed;           /* merged into a node to the left */
    /* To undo merges: the last one of this node, and what the left node was before. */
    int32_t last_merge;   /* node of the right half; -1: not merged */
    int32_t merge_before; /* in the right node: last_merge of the left node before */
    int32_t left_half;    /* in the right node: symbol of the left node before */
} node;

typedef struct {
    const pair_source *source;
    node *nodes;
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

static void push_pair(merger *m, int32_t left_node) {
    if (left_node < 0 || m->nodes[left_node].next < 0) return;
    int32_t left = m->nodes[left_node].symbol, right = m->nodes[m->nodes[left_node].next].symbol;
    int32_t product;
    const uint32_t rank = pair_rank(m->source, left, right, &product);
    if (rank == BPE_RANK_NONE) return;
    heap_push(m, (candidate){(uint64_t)rank << 32 | (uint32_t)left_node, left, right, product});
}

static void merge_at(merger *m, int32_t left_node, int32_t product) {
    node *left = &m->nodes[left_node];
    int32_t right_node = left->next;
    node *right = &m->nodes[right_node];
    right->removed = true;
    right->merge_before = left->last_merge;
    right->left_half = left->symbol;
    left->last_merge = right_node;
    left->symbol = product;
    left->next = right->next;
    if (left->next >= 0) m->nodes[left->next].previous = left_node;
    push_pair(m, left->previous);
    push_pair(m, left_node);
}

/* Undoes merges until the symbol at this node is not flagged; the nodes split off follow it in the
 * list. */
static void undo_merges(merger *m, int32_t at, const uint8_t *resegment) {
    node *left = &m->nodes[at];
    while (left->symbol >= 0 && resegment[left->symbol] && left->last_merge >= 0) {
        int32_t right_node = left->last_merge;
        node *right = &m->nodes[right_node];
        left->symbol = right->left_half;
        left->last_merge = right->merge_before;
        right->next = left->next;
        left->next = right_node;
    }
}

static bool start_merging(merger *m, bpe_scratch *scratch, const int32_t *symbols, size_t num_symbols) {
    /* Every merge removes one symbol and pushes at most two candidates. */
    size_t node_bytes = num_symbols * sizeof(node), needed = node_bytes + 2 * num_symbols * sizeof(candidate);
    if (num_symbols > INT32_MAX || num_symbols > SIZE_MAX / 128) return false;
    if (scratch->num_bytes < needed) {
        free(scratch->memory);
        scratch->memory = malloc(needed);
        scratch->num_bytes = scratch->memory ? needed : 0;
        if (!scratch->memory) return false;
    }
    m->heap = scratch->memory; /* first: it has the stricter alignment */
    m->nodes = (node *)(m->heap + 2 * num_symbols);
    for (size_t i = 0; i < num_symbols; i++) {
        int32_t at = (int32_t)i;
        m->nodes[i] = (node){symbols[i], at - 1, i + 1 < num_symbols ? at + 1 : -1, false, -1, -1, -1};
    }
    return true;
}

static bool merge_with_heap(merger *m, const uint8_t *resegment, bpe_scratch *scratch, int32_t *symbols,
                            size_t *num_symbols) {
    if (!start_merging(m, scratch, symbols, *num_symbols)) return false;
    for (size_t i = 0; i + 1 < *num_symbols; i++) push_pair(m, (int32_t)i);
    while (m->num_candidates > 0) {
        candidate best = heap_pop(m);
        int32_t at = (int32_t)(best.order & UINT32_MAX);
        const node *left = &m->nodes[at];
        if (left->removed || left->symbol != best.left || left->next < 0) continue;
        if (m->nodes[left->next].symbol == best.right) merge_at(m, at, best.product);
    }
    size_t num_left = 0;
    for (int32_t at = 0; at >= 0; at = m->nodes[at].next) {
        if (resegment) undo_merges(m, at, resegment);
        symbols[num_left++] = m->nodes[at].symbol;
    }
    *num_symbols = num_left;
    return true;
}

bool bpe_merge(const bpe_rules *rules, const uint8_t *resegment, bpe_scratch *scratch, int32_t *symbols,
               size_t *num_symbols) {
    if (*num_symbols <= 1) return true;
    const pair_source source = {rules, scratch->pairs, scratch->pairs_shift};
    if (*num_symbols <= MAX_SCANNED_SYMBOLS && !resegment) {
        *num_symbols = merge_scanning(&source, symbols, *num_symbols);
        return true;
    }
    merger m = {&source, NULL, NULL, 0};
    return merge_with_heap(&m, resegment, scratch, symbols, num_symbols);
}
