/* bpe_trainer.c: trains a byte-level BPE: counts the words of documents, then merges the most
 * frequent pair again and again.
 *
 * Words are the pre-tokens of qwen2, cut between Han and other characters, and, if the unit is the
 * character, between Han characters. Only tokens of whole characters are joined, apart from the first
 * bytes of one character. So a vocabulary never has a token like "，\xE5", and a tokenizer that splits
 * by qwen2 alone gives the same ids.
 *
 * The order of merges is that of Hugging Face's BpeTrainer: of equally frequent pairs, the one with
 * the lower ids wins, where bytes are numbered in the order of GPT-2's alphabet. Each pair keeps a
 * list of its words (some may have lost it since), so that a merge visits only the words it
 * changes.
 */
#include <stdlib.h>
#include <string.h>

#include "llamita.h"
#include "runtime/array.h"
#include "runtime/error.h"
#include "runtime/hash.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/symbol_table.h"
#include "tokenizer/unicode.h"

enum {
    MAX_TOKEN_BYTES = 512, /* at most 1,024 bytes in GPT-2's alphabet */
    MIN_SLOTS = 1 << 12,
    WORD_HEAD = 3, /* numbers before the symbols of a word */
    AHEAD = 12,    /* words that are fetched before their turn */
};
#define NO_ENTRY UINT32_MAX

typedef struct {
    uint64_t start; /* offset in bytes[] */
    uint64_t count;
    uint32_t num_bytes, hash;
} word;

struct llamita_bpe_trainer {
    llamita_bpe_unit unit;
    char *bytes; /* all distinct words, concatenated */
    size_t num_bytes, bytes_capacity;
    word *words;
    size_t num_words, words_capacity;
    uint32_t *slots; /* [num_slots] hash table of word index + 1, 0: free; at most half full */
    size_t num_slots;
};

/* Which part of characters a token is; only whole characters, and the start and rest of one
 * character, are merged. */
typedef enum { PART_WHOLE, PART_START, PART_REST } token_part;

/* Two neighboring symbols: how often they occur, and in which words. */
typedef struct {
    uint64_t key; /* left << 32 | right */
    int64_t count;
    uint32_t *places; /* [num_places] places in symbols[] of the words that have, or had, the pair */
    uint32_t num_places, places_capacity;
    bool increased; /* the count has increased since the last heap push */
} pair;

typedef struct {
    int64_t count;
    uint64_t key;
    uint32_t pair;
} candidate;

typedef struct {
    const llamita_bpe_trainer *trainer;
    /* For each word the low and high half of its count, its current number of symbols, and these:
     * all in one place, because reading memory is what takes the time. */
    int32_t *symbols;
    symbol_table tokens;
    uint8_t *parts; /* [num_tokens] a token_part */
    pair *pairs;
    size_t num_pairs, pairs_capacity;
    uint32_t *slots; /* [num_slots] hash table of pair index + 1, 0: free; at most half full */
    size_t num_slots;
    candidate *heap; /* most frequent first; real counts may be lower, never higher */
    size_t num_candidates, heap_capacity;
    uint32_t *increased; /* pairs to push */
    size_t num_increased, increased_capacity;
} merge_state;

/* ------------------------------------------------------------------ counting words */

static bool grow_words(llamita_bpe_trainer *trainer) {
    if (trainer->num_words * 2 < trainer->num_slots) return true;
    const size_t num_slots = trainer->num_slots ? 2 * trainer->num_slots : MIN_SLOTS;
    uint32_t *slots = calloc(num_slots, sizeof *slots);
    if (!slots || trainer->num_words >= UINT32_MAX / 2) {
        free(slots);
        return false;
    }
    for (size_t i = 0; i < trainer->num_words; i++) {
        size_t at = trainer->words[i].hash & (num_slots - 1);
        while (slots[at] != 0) at = (at + 1) & (num_slots - 1);
        slots[at] = (uint32_t)i + 1;
    }
    free(trainer->slots);
    trainer->slots = slots;
    trainer->num_slots = num_slots;
    return true;
}

static bool append_bytes(llamita_bpe_trainer *trainer, const char *bytes, size_t num_bytes) {
    if (!ARRAY_RESERVE(&trainer->bytes, &trainer->bytes_capacity, trainer->num_bytes + num_bytes)) return false;
    memcpy(trainer->bytes + trainer->num_bytes, bytes, num_bytes);
    trainer->num_bytes += num_bytes;
    return true;
}

static bool count_word(llamita_bpe_trainer *trainer, const char *bytes, size_t num_bytes) {
    if (!grow_words(trainer)) return false;
    const uint32_t hash = (uint32_t)hash_bytes(bytes, num_bytes);
    size_t at = hash & (trainer->num_slots - 1);
    for (; trainer->slots[at] != 0; at = (at + 1) & (trainer->num_slots - 1)) {
        word *existing = &trainer->words[trainer->slots[at] - 1];
        if (existing->hash == hash && existing->num_bytes == num_bytes &&
            memcmp(trainer->bytes + existing->start, bytes, num_bytes) == 0) {
            existing->count++;
            return true;
        }
    }
    const uint64_t start = trainer->num_bytes;
    if (!ARRAY_RESERVE(&trainer->words, &trainer->words_capacity, trainer->num_words + 1)) return false;
    if (!append_bytes(trainer, bytes, num_bytes)) return false;
    trainer->words[trainer->num_words++] = (word){start, 1, (uint32_t)num_bytes, hash};
    trainer->slots[at] = (uint32_t)trainer->num_words;
    return true;
}

static llamita_status no_memory(llamita_error *error) {
    return error_set(error, LLAMITA_ERROR_MEMORY, "cannot train the vocabulary: out of memory; use less text");
}

llamita_status llamita_bpe_trainer_open(llamita_bpe_trainer **trainer, llamita_bpe_unit unit, llamita_error *error) {
    if (unit != LLAMITA_BPE_WORDS && unit != LLAMITA_BPE_CHARACTERS)
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot train the vocabulary: unknown unit %d", (int)unit);
    llamita_bpe_trainer *opened = calloc(1, sizeof *opened);
    if (!opened) return no_memory(error);
    opened->unit = unit;
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

static bool is_cut(llamita_bpe_unit unit, uint32_t left, uint32_t right) {
    const bool left_han = unicode_is_han(left), right_han = unicode_is_han(right);
    return left_han != right_han || (left_han && unit == LLAMITA_BPE_CHARACTERS);
}

/* Counts the words of one pre-token. */
static bool count_words(llamita_bpe_trainer *trainer, const char *text, size_t num_bytes) {
    uint32_t left, right;
    size_t start = 0, length;
    for (size_t at = utf8_decode(text, num_bytes, &left); at < num_bytes; at += length, left = right) {
        length = utf8_decode(text + at, num_bytes - at, &right);
        if (!is_cut(trainer->unit, left, right)) continue;
        if (!count_word(trainer, text + start, at - start)) return false;
        start = at;
    }
    return count_word(trainer, text + start, num_bytes - start);
}

llamita_status llamita_bpe_trainer_add(llamita_bpe_trainer *trainer, const char *text, const uint64_t *ends,
                                       size_t num_documents, llamita_error *error) {
    uint64_t at = 0;
    for (size_t i = 0; i < num_documents; i++) {
        if (ends[i] < at || ends[i] - at > UINT32_MAX / 2) {
            return error_set(
                error, LLAMITA_ERROR_ARGUMENT,
                "cannot train the vocabulary: document %zu: expected an end less than 2^31 bytes after its start "
                "at byte %llu, found byte %llu",
                i, (unsigned long long)at, (unsigned long long)ends[i]);
        }
        for (size_t length; at < ends[i]; at += length) {
            length = pre_tokenizer_next(PRE_TOKENIZER_QWEN2, text + at, (size_t)(ends[i] - at));
            if (!count_words(trainer, text + at, length)) return no_memory(error);
        }
    }
    return LLAMITA_OK;
}

/* ------------------------------------------------------------------ heap of pairs */

static bool comes_before(const candidate *a, const candidate *b) {
    return a->count != b->count ? a->count > b->count : a->key < b->key;
}

static bool heap_push(merge_state *m, candidate added) {
    if (!ARRAY_RESERVE(&m->heap, &m->heap_capacity, m->num_candidates + 1)) return false;
    size_t at = m->num_candidates++;
    for (; at > 0 && comes_before(&added, &m->heap[(at - 1) / 2]); at = (at - 1) / 2)
        m->heap[at] = m->heap[(at - 1) / 2];
    m->heap[at] = added;
    return true;
}

static candidate heap_pop(merge_state *m) {
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

static bool grow_pairs(merge_state *m) {
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

/* The index of a pair, which is added if needed; NO_ENTRY: out of memory. */
static uint32_t find_pair(merge_state *m, int32_t left, int32_t right) {
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

static token_part part_of(const char *bytes, size_t num_bytes) {
    const unsigned char first = (unsigned char)bytes[0];
    if (first < 0x80) return PART_WHOLE;
    if (first < 0xC2 || first > 0xF4) return PART_REST;
    const size_t character_bytes = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    return num_bytes < character_bytes ? PART_START : PART_WHOLE;
}

static bool may_merge(const merge_state *m, int32_t left, int32_t right) {
    return m->parts[left] == m->parts[right] ? m->parts[left] == PART_WHOLE
                                             : m->parts[left] == PART_START && m->parts[right] == PART_REST;
}

/* Records `count` more occurrences of the pair in the word at this place. */
static bool add_pair(merge_state *m, int32_t left, int32_t right, uint32_t place, int64_t count) {
    if (!may_merge(m, left, right)) return true;
    const uint32_t pair_index = find_pair(m, left, right);
    if (pair_index == NO_ENTRY) return false;
    pair *p = &m->pairs[pair_index];
    p->count += count;
    if (!p->increased) {
        p->increased = true;
        if (!ARRAY_RESERVE(&m->increased, &m->increased_capacity, m->num_increased + 1)) return false;
        m->increased[m->num_increased++] = pair_index;
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

static bool remove_pair(merge_state *m, int32_t left, int32_t right, int64_t count) {
    if (!may_merge(m, left, right)) return true;
    const uint32_t pair_index = find_pair(m, left, right);
    if (pair_index != NO_ENTRY) m->pairs[pair_index].count -= count;
    return pair_index != NO_ENTRY;
}

/* Pushes the pairs whose count has increased. */
static bool push_increased(merge_state *m) {
    for (size_t i = 0; i < m->num_increased; i++) {
        pair *p = &m->pairs[m->increased[i]];
        p->increased = false;
        if (p->count > 0 && !heap_push(m, (candidate){p->count, p->key, m->increased[i]})) return false;
    }
    m->num_increased = 0;
    return true;
}

/* ------------------------------------------------------------------ merging */

/* Numbers the bytes in the order of their characters in GPT-2's alphabet: printable ones first. */
static void number_bytes(int32_t id_of[256], char byte_of[256]) {
    int32_t next = 0;
    for (int printable = 1; printable >= 0; printable--) {
        for (int byte = 0; byte < 256; byte++) {
            if (unicode_is_printable_latin1(byte) != (printable == 1)) continue;
            byte_of[next] = (char)byte;
            id_of[byte] = next++;
        }
    }
}

static bool start_merging(merge_state *m, const llamita_bpe_trainer *trainer, int32_t num_tokens) {
    int32_t id_of[256], symbol;
    char byte_of[256];
    number_bytes(id_of, byte_of);
    *m = (merge_state){.trainer = trainer};
    const size_t num_symbols = trainer->num_bytes + trainer->num_words * WORD_HEAD;
    m->symbols = num_symbols < UINT32_MAX ? malloc((num_symbols + 1) * sizeof *m->symbols) : NULL;
    m->parts = malloc((size_t)num_tokens);
    if (!m->symbols || !m->parts) return false;
    if (symbol_table_create(&m->tokens, (size_t)num_tokens, (size_t)num_tokens * 8) != SYMBOL_ADDED) return false;
    for (int i = 0; i < 256; i++) {
        if (symbol_intern(&m->tokens, &byte_of[i], 1, &symbol) != SYMBOL_ADDED) return false;
        m->parts[i] = (uint8_t)part_of(&byte_of[i], 1);
    }
    size_t place = 0;
    for (size_t i = 0; i < trainer->num_words; i++) {
        const word *w = &trainer->words[i];
        int32_t *symbols = m->symbols + place + WORD_HEAD;
        memcpy(m->symbols + place, &w->count, sizeof w->count);
        symbols[-1] = (int32_t)w->num_bytes;
        for (uint32_t k = 0; k < w->num_bytes; k++) {
            symbols[k] = id_of[(unsigned char)trainer->bytes[w->start + k]];
            if (k > 0 && !add_pair(m, symbols[k - 1], symbols[k], (uint32_t)place, (int64_t)w->count)) return false;
        }
        place += WORD_HEAD + w->num_bytes;
    }
    return push_increased(m);
}

static void stop_merging(merge_state *m) {
    for (size_t i = 0; i < m->num_pairs; i++) free(m->pairs[i].places);
    symbol_table_free(&m->tokens);
    free(m->symbols);
    free(m->parts);
    free(m->pairs);
    free(m->slots);
    free(m->heap);
    free(m->increased);
}

/* Replaces every (left, right) in the word by product and updates the counts of the neighboring
 * pairs. */
static bool merge_word(merge_state *m, uint32_t place, int32_t left, int32_t right, int32_t product) {
    int32_t *symbols = m->symbols + place + WORD_HEAD;
    int64_t count;
    memcpy(&count, m->symbols + place, sizeof count);
    const uint32_t num = (uint32_t)symbols[-1];
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
    symbols[-1] = (int32_t)kept;
    return ok;
}

/* Merges a pair in all words. *product: the new token; -1: it would be too long, and nothing is
 * merged. */
static bool merge_pair(merge_state *m, uint32_t pair_index, int32_t *product) {
    const int32_t left = (int32_t)(m->pairs[pair_index].key >> 32), right = (int32_t)(uint32_t)m->pairs[pair_index].key;
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
        if (ok) m->parts[*product] = (uint8_t)part_of(joined, left_bytes + right_bytes);
    }
    uint32_t *places = m->pairs[pair_index].places;
    const uint32_t num_places = m->pairs[pair_index].num_places;
    m->pairs[pair_index].places = NULL;
    m->pairs[pair_index].num_places = m->pairs[pair_index].places_capacity = 0;
    for (uint32_t i = 0; i < num_places && ok && *product >= 0; i++) {
        if (i + AHEAD < num_places) __builtin_prefetch(m->symbols + places[i + AHEAD], 1);
        ok = merge_word(m, places[i], left, right, *product);
    }
    m->pairs[pair_index].count = 0;
    free(places);
    return ok && push_increased(m);
}

llamita_status llamita_bpe_trainer_train(const llamita_bpe_trainer *trainer, int32_t num_tokens, int64_t min_count,
                                         int32_t *merges, size_t capacity, size_t *num_merges, llamita_error *error) {
    if (num_tokens < 256 || num_tokens > 1 << 24 || min_count < 1) {
        return error_set(
            error, LLAMITA_ERROR_ARGUMENT,
            "cannot train the vocabulary: expected 256 to 2^24 tokens and a min_count of at least 1, found %d and %lld",
            (int)num_tokens, (long long)min_count);
    }
    merge_state m;
    bool ok = start_merging(&m, trainer, num_tokens);
    size_t num = 0;
    while (ok && m.tokens.num_symbols < num_tokens && m.num_candidates > 0 && num < capacity) {
        candidate best = heap_pop(&m);
        const int64_t count = m.pairs[best.pair].count;
        if (best.count != count) { /* stale */
            best.count = count;
            ok = count < min_count || heap_push(&m, best);
            continue;
        }
        if (count < min_count) break;
        int32_t product;
        ok = merge_pair(&m, best.pair, &product);
        if (!ok || product < 0) continue;
        const int32_t merge[4] = {(int32_t)(best.key >> 32), (int32_t)(uint32_t)best.key, product,
                                  count < INT32_MAX ? (int32_t)count : INT32_MAX};
        memcpy(merges + 4 * num++, merge, sizeof merge);
    }
    stop_merging(&m);
    if (!ok) return no_memory(error);
    *num_merges = num;
    return LLAMITA_OK;
}
