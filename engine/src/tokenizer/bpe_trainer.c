/* bpe_trainer.c: documents to the merges of a byte-level BPE: counts their words, then merges the most frequent pair until
 * there are tokens enough.
 *
 * The order is that of Hugging Face's BpeTrainer: of equally frequent pairs the one of the lower numbers, where bytes are
 * numbered in the order of the characters that GPT-2's alphabet writes them with. A pair's words are known (some may have
 * lost it since), so that a merge costs what it changes.
 */
#include <stdlib.h>
#include <string.h>

#include "llamita.h"
#include "runtime/array.h"
#include "runtime/error.h"
#include "runtime/hash.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/symbol_table.h"

enum { MAX_TOKEN_BYTES = 512, MIN_SLOTS = 1 << 12 }; /* bytes: twice that at most when written in GPT-2's alphabet */
#define NO_ENTRY UINT32_MAX

typedef struct {
    uint64_t start; /* in bytes, and in symbols */
    uint64_t count;
    uint32_t num_bytes, hash;
} word;

struct llamita_bpe_trainer {
    char *bytes; /* all words, one after the other */
    size_t num_bytes, bytes_capacity;
    word *words;
    size_t num_words, words_capacity;
    uint32_t *slots; /* [num_slots] number of a word + 1, 0: free; at most half full */
    size_t num_slots;
};

/* Two neighbors: how often they stand in the text, and in which words. */
typedef struct {
    uint64_t key; /* left << 32 | right */
    int64_t count;
    uint32_t *places; /* [num_places] words; NULL: none */
    uint32_t num_places, places_capacity;
    bool risen; /* since the heap last heard of it */
} pair;

typedef struct {
    int64_t count;
    uint64_t key;
    uint32_t pair;
} candidate;

typedef struct {
    const llamita_bpe_trainer *trainer;
    int32_t *symbols;  /* [trainer->num_bytes] the words as they are now, each where its bytes begin */
    uint32_t *lengths; /* [num_words] symbols of each */
    symbol_table tokens;
    pair *pairs;
    size_t num_pairs, pairs_capacity;
    uint32_t *slots; /* [num_slots] number of a pair + 1, 0: free; at most half full */
    size_t num_slots;
    candidate *heap; /* the most frequent first; counts may have fallen since, never risen */
    size_t num_candidates, heap_capacity;
    uint32_t *risen;
    size_t num_risen, risen_capacity;
} merging;

/* ------------------------------------------------------------------ counting words */

static bool grow_words(llamita_bpe_trainer *l) {
    if (l->num_words * 2 < l->num_slots) return true;
    const size_t num_slots = l->num_slots ? 2 * l->num_slots : MIN_SLOTS;
    uint32_t *slots = calloc(num_slots, sizeof *slots);
    if (!slots || l->num_words >= UINT32_MAX / 2) {
        free(slots);
        return false;
    }
    for (size_t i = 0; i < l->num_words; i++) {
        size_t at = l->words[i].hash & (num_slots - 1);
        while (slots[at] != 0) at = (at + 1) & (num_slots - 1);
        slots[at] = (uint32_t)i + 1;
    }
    free(l->slots);
    l->slots = slots;
    l->num_slots = num_slots;
    return true;
}

static bool append_bytes(llamita_bpe_trainer *l, const char *bytes, size_t num_bytes) {
    if (!ARRAY_RESERVE(&l->bytes, &l->bytes_capacity, l->num_bytes + num_bytes)) return false;
    memcpy(l->bytes + l->num_bytes, bytes, num_bytes);
    l->num_bytes += num_bytes;
    return true;
}

static bool count_word(llamita_bpe_trainer *l, const char *bytes, size_t num_bytes) {
    if (!grow_words(l)) return false;
    const uint32_t hash = (uint32_t)hash_bytes(bytes, num_bytes);
    size_t at = hash & (l->num_slots - 1);
    for (; l->slots[at] != 0; at = (at + 1) & (l->num_slots - 1)) {
        word *known = &l->words[l->slots[at] - 1];
        if (known->hash == hash && known->num_bytes == num_bytes &&
            memcmp(l->bytes + known->start, bytes, num_bytes) == 0) {
            known->count++;
            return true;
        }
    }
    const uint64_t start = l->num_bytes;
    if (!ARRAY_RESERVE(&l->words, &l->words_capacity, l->num_words + 1)) return false;
    if (!append_bytes(l, bytes, num_bytes)) return false;
    l->words[l->num_words++] = (word){start, 1, (uint32_t)num_bytes, hash};
    l->slots[at] = (uint32_t)l->num_words;
    return true;
}

static llamita_status no_memory(llamita_error *error) {
    return error_set(error, LLAMITA_ERROR_MEMORY, "cannot learn a vocabulary: out of memory; learn from less text");
}

llamita_status llamita_bpe_trainer_open(llamita_bpe_trainer **trainer, llamita_error *error) {
    llamita_bpe_trainer *opened = calloc(1, sizeof *opened);
    if (!opened) return no_memory(error);
    *trainer = opened;
    return LLAMITA_OK;
}

void llamita_bpe_trainer_close(llamita_bpe_trainer *trainer) {
    if (!trainer) return;
    free(trainer->bytes);
    free(trainer->words);
    free(trainer->slots);
    free(trainer);
}

llamita_status llamita_bpe_trainer_add(llamita_bpe_trainer *trainer, const char *text, const uint64_t *ends,
                                       size_t num_documents, llamita_error *error) {
    uint64_t at = 0;
    for (size_t i = 0; i < num_documents; i++) {
        if (ends[i] < at || ends[i] - at > UINT32_MAX / 2) {
            return error_set(
                error, LLAMITA_ERROR_ARGUMENT,
                "cannot learn a vocabulary: document %zu: expected an end after its beginning, byte %llu, by "
                "less than 2^31, found byte %llu",
                i, (unsigned long long)at, (unsigned long long)ends[i]);
        }
        for (size_t length; at < ends[i]; at += length) {
            length = pre_tokenizer_next(PRE_TOKENIZER_QWEN2, text + at, (size_t)(ends[i] - at));
            if (!count_word(trainer, text + at, length)) return no_memory(error);
        }
    }
    return LLAMITA_OK;
}

/* ------------------------------------------------------------------ the most frequent pair */

static bool comes_before(const candidate *a, const candidate *b) {
    return a->count != b->count ? a->count > b->count : a->key < b->key;
}

static bool heap_push(merging *m, candidate added) {
    if (!ARRAY_RESERVE(&m->heap, &m->heap_capacity, m->num_candidates + 1)) return false;
    size_t at = m->num_candidates++;
    for (; at > 0 && comes_before(&added, &m->heap[(at - 1) / 2]); at = (at - 1) / 2)
        m->heap[at] = m->heap[(at - 1) / 2];
    m->heap[at] = added;
    return true;
}

static candidate heap_pop(merging *m) {
    const candidate first = m->heap[0], last = m->heap[--m->num_candidates];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < m->num_candidates; at = child) {
        child += child + 1 < m->num_candidates && comes_before(&m->heap[child + 1], &m->heap[child]);
        if (!comes_before(&m->heap[child], &last)) break;
        m->heap[at] = m->heap[child];
    }
    m->heap[at] = last;
    return first;
}

/* ------------------------------------------------------------------ pairs */

static bool grow_pairs(merging *m) {
    if (m->num_pairs * 2 < m->num_slots) return true;
    const size_t num_slots = m->num_slots ? 2 * m->num_slots : MIN_SLOTS;
    uint32_t *slots = m->num_pairs < UINT32_MAX / 2 ? calloc(num_slots, sizeof *slots) : NULL;
    if (!slots) return false;
    for (size_t i = 0; i < m->num_pairs; i++) {
        size_t at = hash_mix(m->pairs[i].key) & (num_slots - 1);
        while (slots[at] != 0) at = (at + 1) & (num_slots - 1);
        slots[at] = (uint32_t)i + 1;
    }
    free(m->slots);
    m->slots = slots;
    m->num_slots = num_slots;
    return true;
}

/* The pair's number; NO_ENTRY: out of memory. */
static uint32_t find_pair(merging *m, int32_t left, int32_t right) {
    const uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    if (!grow_pairs(m)) return NO_ENTRY;
    size_t at = hash_mix(key) & (m->num_slots - 1);
    for (; m->slots[at] != 0; at = (at + 1) & (m->num_slots - 1))
        if (m->pairs[m->slots[at] - 1].key == key) return m->slots[at] - 1;
    if (!ARRAY_RESERVE(&m->pairs, &m->pairs_capacity, m->num_pairs + 1)) return NO_ENTRY;
    m->pairs[m->num_pairs++] = (pair){.key = key};
    m->slots[at] = (uint32_t)m->num_pairs;
    return (uint32_t)m->num_pairs - 1;
}

/* The pair stands in this word `count` times more. */
static bool add_pair(merging *m, int32_t left, int32_t right, uint32_t place, int64_t count) {
    const uint32_t number = find_pair(m, left, right);
    if (number == NO_ENTRY) return false;
    pair *p = &m->pairs[number];
    p->count += count;
    if (!p->risen) {
        p->risen = true;
        if (!ARRAY_RESERVE(&m->risen, &m->risen_capacity, m->num_risen + 1)) return false;
        m->risen[m->num_risen++] = number;
    }
    if (p->num_places > 0 && p->places[p->num_places - 1] == place) return true;
    if (p->num_places == p->places_capacity) {
        const uint32_t capacity = p->places_capacity + p->places_capacity / 2 + 2;
        uint32_t *moved = realloc(p->places, capacity * sizeof *moved);
        if (!moved) return false;
        p->places = moved;
        p->places_capacity = capacity;
    }
    p->places[p->num_places++] = place;
    return true;
}

static bool remove_pair(merging *m, int32_t left, int32_t right, int64_t count) {
    const uint32_t number = find_pair(m, left, right);
    if (number != NO_ENTRY) m->pairs[number].count -= count;
    return number != NO_ENTRY;
}

/* Tells the heap of the pairs that rose. */
static bool offer_risen(merging *m) {
    for (size_t i = 0; i < m->num_risen; i++) {
        pair *p = &m->pairs[m->risen[i]];
        p->risen = false;
        if (p->count > 0 && !heap_push(m, (candidate){p->count, p->key, m->risen[i]})) return false;
    }
    m->num_risen = 0;
    return true;
}

/* ------------------------------------------------------------------ merging */

/* Bytes in the order of the characters that stand for them: printable ones for themselves, then the others. */
static void number_bytes(int32_t number_of[256], char byte_of[256]) {
    int32_t next = 0;
    for (int printable = 1; printable >= 0; printable--) {
        for (int byte = 0; byte < 256; byte++) {
            const bool is_printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
            if (is_printable != (printable == 1)) continue;
            byte_of[next] = (char)byte;
            number_of[byte] = next++;
        }
    }
}

static bool start_merging(merging *m, const llamita_bpe_trainer *l, int32_t num_tokens) {
    int32_t number_of[256], symbol;
    char byte_of[256];
    number_bytes(number_of, byte_of);
    *m = (merging){.trainer = l};
    m->symbols = malloc((l->num_bytes + 1) * sizeof *m->symbols);
    m->lengths = malloc((l->num_words + 1) * sizeof *m->lengths);
    if (!m->symbols || !m->lengths) return false;
    if (symbol_table_create(&m->tokens, (size_t)num_tokens, (size_t)num_tokens * 8) != SYMBOL_ADDED) return false;
    for (int i = 0; i < 256; i++)
        if (symbol_intern(&m->tokens, &byte_of[i], 1, &symbol) != SYMBOL_ADDED) return false;
    for (size_t i = 0; i < l->num_bytes; i++) m->symbols[i] = number_of[(unsigned char)l->bytes[i]];
    for (size_t i = 0; i < l->num_words; i++) {
        const word *w = &l->words[i];
        const int32_t *symbols = m->symbols + w->start;
        m->lengths[i] = w->num_bytes;
        for (uint32_t k = 1; k < w->num_bytes; k++)
            if (!add_pair(m, symbols[k - 1], symbols[k], (uint32_t)i, (int64_t)w->count)) return false;
    }
    return offer_risen(m);
}

static void stop_merging(merging *m) {
    for (size_t i = 0; i < m->num_pairs; i++) free(m->pairs[i].places);
    symbol_table_free(&m->tokens);
    free(m->symbols);
    free(m->lengths);
    free(m->pairs);
    free(m->slots);
    free(m->heap);
    free(m->risen);
}

/* Every left and right of the word becomes one product; the neighbors' pairs change with them. */
static bool merge_word(merging *m, uint32_t place, int32_t left, int32_t right, int32_t product) {
    int32_t *symbols = m->symbols + m->trainer->words[place].start;
    const int64_t count = (int64_t)m->trainer->words[place].count;
    const uint32_t num = m->lengths[place];
    uint32_t kept = 0;
    bool ok = true;
    for (uint32_t i = 0; i < num && ok;) {
        if (i + 1 == num || symbols[i] != left || symbols[i + 1] != right) {
            symbols[kept++] = symbols[i++];
            continue;
        }
        if (kept > 0) {
            ok =
                remove_pair(m, symbols[kept - 1], left, count) && add_pair(m, symbols[kept - 1], product, place, count);
        }
        if (i + 2 < num) {
            ok = ok && remove_pair(m, right, symbols[i + 2], count) &&
                 add_pair(m, product, symbols[i + 2], place, count);
        }
        symbols[kept++] = product;
        i += 2;
    }
    m->lengths[place] = kept;
    return ok;
}

/* Merges a pair everywhere. *product: the token that it becomes, -1: it would be too long. */
static bool merge_pair(merging *m, uint32_t number, int32_t *product) {
    const int32_t left = (int32_t)(m->pairs[number].key >> 32), right = (int32_t)(uint32_t)m->pairs[number].key;
    char joined[2 * MAX_TOKEN_BYTES];
    size_t left_bytes, right_bytes;
    const char *bytes = symbol_bytes(&m->tokens, left, &left_bytes);
    memcpy(joined, bytes, left_bytes);
    bytes = symbol_bytes(&m->tokens, right, &right_bytes);
    memcpy(joined + left_bytes, bytes, right_bytes);
    *product = -1;
    bool ok = true;
    if (left_bytes + right_bytes <= MAX_TOKEN_BYTES) {
        const symbol_result result = symbol_intern(&m->tokens, joined, left_bytes + right_bytes, product);
        ok = result == SYMBOL_ADDED || result == SYMBOL_EXISTS;
    }
    uint32_t *places = m->pairs[number].places;
    const uint32_t num_places = m->pairs[number].num_places;
    m->pairs[number].places = NULL;
    m->pairs[number].num_places = m->pairs[number].places_capacity = 0;
    for (uint32_t i = 0; i < num_places && ok && *product >= 0; i++)
        ok = merge_word(m, places[i], left, right, *product);
    m->pairs[number].count = 0;
    free(places);
    return ok && offer_risen(m);
}

llamita_status llamita_bpe_trainer_train(const llamita_bpe_trainer *trainer, int32_t num_tokens, int64_t min_count,
                                         int32_t *merges, size_t capacity, size_t *num_merges, llamita_error *error) {
    if (num_tokens < 256 || num_tokens > 1 << 24 || min_count < 1) {
        return error_set(
            error, LLAMITA_ERROR_ARGUMENT,
            "cannot learn a vocabulary: expected 256 to 2^24 tokens and a least count of 1 or more, found %d "
            "and %lld",
            (int)num_tokens, (long long)min_count);
    }
    merging m;
    bool ok = start_merging(&m, trainer, num_tokens);
    size_t num = 0;
    while (ok && m.tokens.num_symbols < num_tokens && m.num_candidates > 0 && num < capacity) {
        candidate best = heap_pop(&m);
        const int64_t count = m.pairs[best.pair].count;
        if (best.count != count) { /* it has fallen, or rose and stands there a second time */
            best.count = count;
            ok = count < min_count || heap_push(&m, best);
            continue;
        }
        if (count < min_count) break;
        int32_t product;
        ok = merge_pair(&m, best.pair, &product);
        if (!ok || product < 0) continue;
        const int32_t merge[3] = {(int32_t)(best.key >> 32), (int32_t)(uint32_t)best.key, product};
        memcpy(merges + 3 * num++, merge, sizeof merge);
    }
    stop_merging(&m);
    if (!ok) return no_memory(error);
    *num_merges = num;
    return LLAMITA_OK;
}
