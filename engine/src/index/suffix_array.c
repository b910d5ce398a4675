/* suffix_array.c: SA-IS. A suffix is small if it is less than the one that starts a place later,
 * else large. A small one after a large one is a seed: the order of the seeds gives that of all
 * others in two passes. A recursion sorts the seeds, at most half as many. */
#include "index/suffix_array.h"

#include <stdlib.h>
#include <string.h>

#define EMPTY UINT32_MAX

typedef struct {
    const uint32_t *symbols;
    uint32_t *suffixes;
    uint32_t num, num_symbols;
    uint8_t *small;   /* a bit for each suffix */
    uint32_t *counts; /* [num_symbols] how often each symbol occurs */
    uint32_t *bounds; /* [num_symbols] of the suffixes that start with each symbol: first, or behind the last */
} sorter;

static bool is_small(const sorter *s, uint32_t i) { return s->small[i >> 3] >> (i & 7) & 1; }

static bool is_seed(const sorter *s, uint32_t i) { return i > 0 && is_small(s, i) && !is_small(s, i - 1); }

static void find_small(sorter *s) {
    bool small = true; /* the last suffix, which is only the 0 */
    for (uint32_t i = s->num; i-- > 0;) {
        if (i + 1 < s->num && s->symbols[i] != s->symbols[i + 1]) small = s->symbols[i] < s->symbols[i + 1];
        if (small) s->small[i >> 3] |= (uint8_t)(1U << (i & 7));
    }
}

static bool open_buckets(sorter *s) {
    s->counts = calloc(s->num_symbols, sizeof *s->counts);
    s->bounds = malloc(s->num_symbols * sizeof *s->bounds);
    if (!s->counts || !s->bounds) return false;
    for (uint32_t i = 0; i < s->num; i++) s->counts[s->symbols[i]]++;
    return true;
}

static void close_buckets(sorter *s) {
    free(s->counts);
    free(s->bounds);
    s->counts = s->bounds = NULL;
}

static void find_bounds(sorter *s, bool ends) {
    uint32_t sum = 0;
    for (uint32_t symbol = 0; symbol < s->num_symbols; symbol++) {
        if (!ends) s->bounds[symbol] = sum;
        sum += s->counts[symbol];
        if (ends) s->bounds[symbol] = sum;
    }
}

static void fill_empty(uint32_t *from, const uint32_t *end) {
    while (from < end) *from++ = EMPTY;
}

/* From the seeds in their order, at the ends of their buckets: the order of all suffixes. */
static void induce(sorter *s) {
    uint32_t *suffixes = s->suffixes;
    find_bounds(s, false);
    for (uint32_t i = 0; i < s->num; i++) {
        const uint32_t next = suffixes[i];
        if (next == EMPTY || next == 0) continue;
        const uint32_t symbol = s->symbols[next - 1];
        if (symbol >= s->symbols[next]) suffixes[s->bounds[symbol]++] = next - 1; /* large */
    }
    find_bounds(s, true);
    for (uint32_t i = s->num; i-- > 0;) {
        const uint32_t next = suffixes[i];
        if (next == EMPTY || next == 0) continue;
        if (is_small(s, next - 1)) suffixes[--s->bounds[s->symbols[next - 1]]] = next - 1;
    }
}

/* Whether the symbols and kinds from seed a to the next seed are those from b to its next. */
static bool are_alike(const sorter *s, uint32_t a, uint32_t b) {
    for (uint32_t i = 0;; i++) {
        if (s->symbols[a + i] != s->symbols[b + i] || is_small(s, a + i) != is_small(s, b + i)) return false;
        if (i > 0 && (is_seed(s, a + i) || is_seed(s, b + i))) return is_seed(s, a + i) && is_seed(s, b + i);
    }
}

/* Sorts the seeds by the stretches up to the next seed; then suffixes[num_seeds] are the seeds. */
static uint32_t sort_stretches(sorter *s) {
    fill_empty(s->suffixes, s->suffixes + s->num);
    find_bounds(s, true);
    for (uint32_t i = 1; i < s->num; i++)
        if (is_seed(s, i)) s->suffixes[--s->bounds[s->symbols[i]]] = i;
    induce(s);
    uint32_t num_seeds = 0;
    for (uint32_t i = 0; i < s->num; i++)
        if (is_seed(s, s->suffixes[i])) s->suffixes[num_seeds++] = s->suffixes[i];
    return num_seeds;
}

/* Sorts the seeds as suffixes: an array with a number for each stretch has suffixes of the same
 * order. Both arrays lie in suffixes: num_seeds is at most num / 2. */
static bool sort_seeds(sorter *s, uint32_t num_seeds) {
    uint32_t *order = s->suffixes, *names = s->suffixes + s->num - num_seeds;
    fill_empty(order + num_seeds, s->suffixes + s->num);
    uint32_t num_names = 0;
    for (uint32_t i = 0; i < num_seeds; i++) {
        num_names += i == 0 || !are_alike(s, order[i - 1], order[i]);
        order[num_seeds + order[i] / 2] = num_names - 1; /* no two seeds are neighbors */
    }
    for (uint32_t i = s->num, to = s->num; i-- > num_seeds;)
        if (s->suffixes[i] != EMPTY) s->suffixes[--to] = s->suffixes[i];
    if (num_names == num_seeds) {
        for (uint32_t i = 0; i < num_seeds; i++) order[names[i]] = i;
    } else {
        close_buckets(s); /* the recursion needs the memory */
        if (!suffix_array_build(names, order, num_seeds, num_names) || !open_buckets(s)) return false;
    }
    for (uint32_t i = 1, to = 0; i < s->num; i++)
        if (is_seed(s, i)) names[to++] = i;
    for (uint32_t i = 0; i < num_seeds; i++) order[i] = names[order[i]];
    return true;
}

bool suffix_array_build(const uint32_t *symbols, uint32_t *suffixes, uint32_t num, uint32_t num_symbols) {
    if (num == 1) {
        suffixes[0] = 0;
        return true;
    }
    sorter s = {.symbols = symbols, .suffixes = suffixes, .num = num, .num_symbols = num_symbols};
    s.small = calloc(num / 8 + 1, 1);
    bool done = s.small && open_buckets(&s);
    if (done) {
        find_small(&s);
        const uint32_t num_seeds = sort_stretches(&s);
        done = sort_seeds(&s, num_seeds);
        if (done) {
            fill_empty(suffixes + num_seeds, suffixes + num);
            find_bounds(&s, true);
            for (uint32_t i = num_seeds; i-- > 0;) {
                const uint32_t seed = suffixes[i];
                suffixes[i] = EMPTY;
                suffixes[--s.bounds[symbols[seed]]] = seed;
            }
            induce(&s);
        }
    }
    close_buckets(&s);
    free(s.small);
    return done;
}
