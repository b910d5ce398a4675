/* text_index.c: finds strings in the text of tokens, by a sorted array of its blocks. Blocks have a
 * fixed size, so numbers made of their bytes are in the order of the text, and sorting them takes a
 * quarter of the work of sorting bytes. */
#include <stdlib.h>
#include <string.h>

#include "index/suffix_array.h"
#include "llamita.h"
#include "runtime/error.h"

enum {
    BLOCK_BYTES = LLAMITA_INDEX_BLOCK_BYTES,
    ENTRY_BLOCKS = LLAMITA_INDEX_ENTRY_BLOCKS,
    ENTRY_BYTES = ENTRY_BLOCKS * BLOCK_BYTES,
    MAX_MISSES = 1 << 12, /* places that are looked at without a find */
};

static const unsigned char separator[BLOCK_BYTES] = {0xFF, 0xFF, 0xFF, 0xFF};

struct llamita_text_index {
    llamita_indexed_text text;
    uint64_t *first_tokens; /* [num_parts + 1] of each part, and all */
    const void **ids;
    uint32_t num_blocks;
    const uint32_t *suffixes, *entry_tokens;
    const uint16_t *entry_offsets;
};

/* ------------------------------------------------------------------ the text */

/* Reads the tokens in order. */
typedef struct {
    const llamita_indexed_text *text;
    size_t part;
    uint64_t next;     /* of the part's tokens */
    uint64_t position; /* in the text, where the next token starts */
} reader;

static uint32_t id_at(const llamita_indexed_text *text, size_t part, uint64_t token) {
    const void *ids = text->ids[part];
    return text->id_bytes == 2 ? ((const uint16_t *)ids)[token] : ((const uint32_t *)ids)[token];
}

/* The bytes of the next token; an id that is not in the vocabulary has none. False: there is none. */
static bool read_token(reader *r, const unsigned char **bytes, size_t *num_bytes) {
    const llamita_indexed_text *text = r->text;
    while (r->part < text->num_parts && r->next >= text->num_tokens[r->part]) {
        r->part++;
        r->next = 0;
    }
    if (r->part >= text->num_parts) return false;
    const uint32_t id = id_at(text, r->part, r->next++);
    if (id == (uint32_t)text->eos_id) {
        *bytes = separator;
        *num_bytes = BLOCK_BYTES - r->position % BLOCK_BYTES;
    } else if (id < (uint32_t)text->vocab_size) {
        const uint32_t start = id > 0 ? text->token_ends[id - 1] : 0;
        *bytes = (const unsigned char *)text->token_bytes + start;
        *num_bytes = text->token_ends[id] - start;
    } else {
        *num_bytes = 0;
    }
    r->position += *num_bytes;
    return true;
}

static llamita_status check_vocabulary(const llamita_indexed_text *text, llamita_error *error) {
    if ((text->id_bytes != 2 && text->id_bytes != 4) || text->vocab_size < 1 || text->eos_id < 0 ||
        text->eos_id >= text->vocab_size)
        return error_set(
            error, LLAMITA_ERROR_ARGUMENT,
            "cannot index a text: expected ids of 2 or 4 bytes and an EOS in the vocabulary, found %d bytes, EOS "
            "%d and %d ids",
            (int)text->id_bytes, (int)text->eos_id, (int)text->vocab_size);
    for (int32_t id = 0; id < text->vocab_size; id++) {
        const uint32_t start = id > 0 ? text->token_ends[id - 1] : 0, end = text->token_ends[id];
        if (end < start || end - start > LLAMITA_INDEX_MAX_TOKEN_BYTES)
            return error_set(
                error, LLAMITA_ERROR_FORMAT,
                "cannot index a text: token %d: expected at most %d bytes, found that it goes from %u to %u", (int)id,
                LLAMITA_INDEX_MAX_TOKEN_BYTES, (unsigned)start, (unsigned)end);
    }
    return LLAMITA_OK;
}

llamita_status llamita_text_index_measure(const llamita_indexed_text *text, uint64_t *num_blocks,
                                          llamita_error *error) {
    const llamita_status status = check_vocabulary(text, error);
    if (status) return status;
    uint64_t num_tokens = 0;
    uint32_t last = (uint32_t)text->eos_id;
    for (size_t part = 0; part < text->num_parts; part++) {
        for (uint64_t i = 0; i < text->num_tokens[part]; i++) {
            last = id_at(text, part, i);
            if (last >= (uint32_t)text->vocab_size)
                return error_set(error, LLAMITA_ERROR_FORMAT,
                                 "cannot index a text: token %llu: expected an id below %d, found %u",
                                 (unsigned long long)(num_tokens + i), (int)text->vocab_size, (unsigned)last);
        }
        num_tokens += text->num_tokens[part];
    }
    if (last != (uint32_t)text->eos_id)
        return error_set(error, LLAMITA_ERROR_FORMAT, "cannot index a text: expected EOS (%d) at the end, found id %u",
                         (int)text->eos_id, (unsigned)last);
    reader r = {.text = text};
    const unsigned char *bytes;
    size_t num_bytes;
    while (read_token(&r, &bytes, &num_bytes)) continue;
    *num_blocks = r.position / BLOCK_BYTES;
    if (num_tokens > UINT32_MAX || *num_blocks > LLAMITA_INDEX_MAX_BLOCKS)
        return error_set(
            error, LLAMITA_ERROR_FORMAT,
            "cannot index a text: expected at most 2^32 tokens and 2^31 blocks, found %llu and %llu; cut the text",
            (unsigned long long)num_tokens, (unsigned long long)*num_blocks);
    return LLAMITA_OK;
}

/* ------------------------------------------------------------------ building */

/* Writes the blocks as numbers in the order of their bytes, and the entries. False: the text has
 * another number of blocks. */
static bool read_blocks(const llamita_indexed_text *text, uint64_t num_blocks, uint32_t *blocks, uint32_t *entry_tokens,
                        uint16_t *entry_offsets) {
    reader r = {.text = text};
    const unsigned char *bytes;
    size_t num_bytes;
    uint32_t token = 0, block = 0;
    for (uint64_t start = 0; read_token(&r, &bytes, &num_bytes); start = r.position, token++) {
        if (r.position > num_blocks * BLOCK_BYTES) return false;
        for (uint64_t entry = (start + ENTRY_BYTES - 1) / ENTRY_BYTES; entry * ENTRY_BYTES < r.position; entry++) {
            entry_tokens[entry] = token;
            entry_offsets[entry] = (uint16_t)(entry * ENTRY_BYTES - start);
        }
        for (size_t i = 0; i < num_bytes; i++) {
            block = block << 8 | bytes[i];
            if ((start + i) % BLOCK_BYTES == BLOCK_BYTES - 1) blocks[(start + i) / BLOCK_BYTES] = block;
        }
    }
    return r.position == num_blocks * BLOCK_BYTES;
}

/* Sorts by the digit of 11 bits at `shift`, keeping the order of equal ones. */
static void sort_digit(const uint32_t *from, uint32_t *to, size_t num, int shift) {
    enum { DIGITS = 1 << 11 };
    size_t places[DIGITS] = {0}, sum = 0;
    for (size_t i = 0; i < num; i++) places[from[i] >> shift & (DIGITS - 1)]++;
    for (size_t digit = 0; digit < DIGITS; digit++) {
        const size_t count = places[digit];
        places[digit] = sum;
        sum += count;
    }
    for (size_t i = 0; i < num; i++) to[places[from[i] >> shift & (DIGITS - 1)]++] = from[i];
}

/* Replaces each block by its place among the distinct ones, from 1. scratch[num], other[num]: memory.
 * Returns the number of distinct ones. */
static uint32_t rank_blocks(uint32_t *blocks, size_t num, uint32_t *scratch, uint32_t *other) {
    enum { FIRST_BITS = 16 };
    static const int shifts[] = {0, 11, 22};
    sort_digit(blocks, scratch, num, shifts[0]);
    sort_digit(scratch, other, num, shifts[1]);
    sort_digit(other, scratch, num, shifts[2]);
    uint32_t *firsts = other, num_distinct = 0; /* of the distinct ones, by their first bits */
    for (size_t i = 0; i < num; i++)
        if (i == 0 || scratch[i] != scratch[i - 1]) scratch[num_distinct++] = scratch[i];
    const bool has_firsts = num > (size_t)1 << FIRST_BITS;
    if (has_firsts) {
        uint32_t at = 0;
        for (uint32_t first = 0; first <= 1U << FIRST_BITS; first++) {
            while (at < num_distinct && scratch[at] >> FIRST_BITS < first) at++;
            firsts[first] = at;
        }
    }
    for (size_t i = 0; i < num; i++) {
        uint32_t low = has_firsts ? firsts[blocks[i] >> FIRST_BITS] : 0;
        uint32_t high = has_firsts ? firsts[(blocks[i] >> FIRST_BITS) + 1] : num_distinct;
        while (low + 1 < high) {
            const uint32_t middle = low + (high - low) / 2;
            if (scratch[middle] <= blocks[i]) low = middle;
            else high = middle;
        }
        blocks[i] = low + 1;
    }
    return num_distinct;
}

llamita_status llamita_text_index_build(const llamita_indexed_text *text, uint64_t num_blocks, uint32_t *suffixes,
                                        uint32_t *entry_tokens, uint16_t *entry_offsets, llamita_error *error) {
    uint64_t found;
    const llamita_status status = llamita_text_index_measure(text, &found, error);
    if (status) return status;
    if (found != num_blocks)
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot index a text: expected %llu blocks, found %llu",
                         (unsigned long long)num_blocks, (unsigned long long)found);
    const size_t num = (size_t)num_blocks;
    uint32_t *symbols = malloc((num + 1) * sizeof *symbols), *scratch = malloc((num + 1) * sizeof *scratch);
    bool done = symbols && scratch && read_blocks(text, num_blocks, symbols, entry_tokens, entry_offsets);
    if (done) {
        const uint32_t num_distinct = rank_blocks(symbols, num, suffixes, scratch);
        free(scratch);
        scratch = NULL;
        symbols[num] = 0; /* the end, which suffix_array_build needs */
        done = suffix_array_build(symbols, suffixes, (uint32_t)num + 1, num_distinct + 1);
        if (done) memmove(suffixes, suffixes + 1, num * sizeof *suffixes);
    }
    free(symbols);
    free(scratch);
    if (!done) return error_set(error, LLAMITA_ERROR_MEMORY, "cannot index a text: out of memory for %zu blocks", num);
    return LLAMITA_OK;
}

/* ------------------------------------------------------------------ searching */

llamita_status llamita_text_index_open(const llamita_indexed_text *text, uint64_t num_blocks, const uint32_t *suffixes,
                                       const uint32_t *entry_tokens, const uint16_t *entry_offsets,
                                       llamita_text_index **index, llamita_error *error) {
    const llamita_status status = check_vocabulary(text, error);
    if (status) return status;
    if (num_blocks > LLAMITA_INDEX_MAX_BLOCKS)
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot index a text: expected at most 2^31 blocks, found %llu",
                         (unsigned long long)num_blocks);
    llamita_text_index *x = malloc(sizeof *x);
    const void **ids = malloc((text->num_parts + 1) * sizeof *ids);
    uint64_t *first_tokens = malloc((text->num_parts + 1) * sizeof *first_tokens);
    uint64_t *num_tokens = malloc((text->num_parts + 1) * sizeof *num_tokens);
    if (!x || !ids || !first_tokens || !num_tokens) {
        free(x);
        free(ids);
        free(first_tokens);
        free(num_tokens);
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot index a text: out of memory");
    }
    first_tokens[0] = 0;
    for (size_t part = 0; part < text->num_parts; part++) {
        ids[part] = text->ids[part];
        num_tokens[part] = text->num_tokens[part];
        first_tokens[part + 1] = first_tokens[part] + num_tokens[part];
    }
    *x = (llamita_text_index){.text = *text,
                              .first_tokens = first_tokens,
                              .ids = ids,
                              .num_blocks = (uint32_t)num_blocks,
                              .suffixes = suffixes,
                              .entry_tokens = entry_tokens,
                              .entry_offsets = entry_offsets};
    x->text.ids = ids;
    x->text.num_tokens = num_tokens;
    *index = x;
    return LLAMITA_OK;
}

void llamita_text_index_close(llamita_text_index *index) {
    if (index) {
        free(index->first_tokens);
        free(index->ids);
        free((void *)index->text.num_tokens);
        free(index);
    }
}

/* Goes to the token that holds this byte of the text, or as near before it as the entry says. */
static reader read_near(const llamita_text_index *x, uint64_t position) {
    const uint64_t entry = position / ENTRY_BYTES;
    reader r = {.text = &x->text, .part = x->text.num_parts};
    if (position >= (uint64_t)x->num_blocks * BLOCK_BYTES) return r;
    const uint64_t token = x->entry_tokens[entry], offset = x->entry_offsets[entry];
    if (token >= x->first_tokens[x->text.num_parts] || offset > entry * ENTRY_BYTES) return r; /* damaged */
    size_t low = 0, high = x->text.num_parts; /* first_tokens[low] <= token < first_tokens[high] */
    while (low + 1 < high) {
        const size_t middle = low + (high - low) / 2;
        if (x->first_tokens[middle] <= token) low = middle;
        else high = middle;
    }
    r.part = low;
    r.next = token - x->first_tokens[low];
    r.position = entry * ENTRY_BYTES - offset;
    return r;
}

/* Compares the text from a byte on with the query, whose first *num_common bytes are known to be
 * there. Below 0: the text comes first; 0: it begins with the query. Counts the common bytes. */
static int compare(const llamita_text_index *x, uint64_t position, const unsigned char *query, size_t num_bytes,
                   size_t *num_common) {
    size_t common = *num_common, length;
    const uint64_t start = position + common;
    const unsigned char *bytes;
    int order = 0;
    reader r = read_near(x, start);
    while (common < num_bytes && order == 0) {
        if (!read_token(&r, &bytes, &length)) {
            order = -1;
            break;
        }
        const uint64_t here = r.position - length;
        size_t i = here < start ? (size_t)(start - here) : 0;
        for (; i < length && common < num_bytes; i++, common++) {
            if (bytes[i] == query[common]) continue;
            order = bytes[i] < query[common] ? -1 : 1;
            break;
        }
    }
    *num_common = common;
    return order;
}

/* The first place in the order that does not come before the query; with `after`, that comes after
 * all that begin with it. Raises *longest to the most bytes in common. */
static uint32_t search(const llamita_text_index *x, const unsigned char *query, size_t num_bytes, bool after,
                       size_t *longest) {
    uint32_t low = 0, high = x->num_blocks;
    size_t low_common = 0, high_common = 0; /* of the neighbors of low and high with the query */
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        size_t common = low_common < high_common ? low_common : high_common;
        const uint64_t position = (uint64_t)x->suffixes[middle] * BLOCK_BYTES;
        const int order = compare(x, position, query, num_bytes, &common);
        if (common > *longest) *longest = common;
        if (order < 0 || (after && order == 0)) {
            low = middle + 1;
            low_common = common;
        } else {
            high = middle;
            high_common = common;
        }
    }
    return low;
}

static llamita_status check_query(size_t num_bytes, size_t min, llamita_error *error) {
    if (num_bytes >= min && num_bytes <= LLAMITA_INDEX_MAX_QUERY_BYTES) return LLAMITA_OK;
    return error_set(error, LLAMITA_ERROR_ARGUMENT,
                     "cannot search a text: expected a query of %zu to %d bytes, found %zu", min,
                     LLAMITA_INDEX_MAX_QUERY_BYTES, num_bytes);
}

llamita_status llamita_text_index_match(const llamita_text_index *index, const char *query, size_t num_bytes,
                                        size_t step, uint32_t *lengths, llamita_error *error) {
    const llamita_status status = check_query(num_bytes, 0, error);
    if (status) return status;
    if (step < 1)
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot search a text: expected a step of 1 or more, found 0");
    const unsigned char *bytes = (const unsigned char *)query;
    size_t end = 0; /* of what the text may have: the next separator */
    for (size_t i = 0; i < num_bytes; i += step) {
        if (end < i) end = i;
        while (end < num_bytes && bytes[end] != separator[0]) end++;
        size_t longest = 0;
        if (end > i) search(index, bytes + i, end - i, false, &longest);
        lengths[i / step] = (uint32_t)longest;
    }
    return LLAMITA_OK;
}

static llamita_text_place place_of(const llamita_text_index *x, uint64_t position) {
    reader r = read_near(x, position);
    const unsigned char *bytes;
    size_t length;
    while (read_token(&r, &bytes, &length)) {
        if (r.position <= position) continue;
        return (llamita_text_place){x->first_tokens[r.part] + r.next - 1, (uint32_t)(position + length - r.position)};
    }
    return (llamita_text_place){0, 0};
}

llamita_status llamita_text_index_find(const llamita_text_index *index, const char *query, size_t num_bytes,
                                       llamita_text_place *places, size_t capacity, uint64_t *num_found,
                                       bool *is_complete, llamita_error *error) {
    const llamita_status status = check_query(num_bytes, BLOCK_BYTES, error);
    if (status) return status;
    const unsigned char *bytes = (const unsigned char *)query;
    size_t num_places = 0, ignored = 0;
    *num_found = 0;
    *is_complete = true;
    if (memchr(query, separator[0], num_bytes)) return LLAMITA_OK;
    for (size_t before = 0; before < BLOCK_BYTES; before++) { /* bytes of the query before its first block */
        const uint32_t first = search(index, bytes + before, num_bytes - before, false, &ignored);
        const uint32_t end = search(index, bytes + before, num_bytes - before, true, &ignored);
        size_t num_misses = 0;
        if (before == 0) *num_found = end - first;
        for (uint32_t i = first; i < end; i++) {
            if (before == 0 ? num_places == capacity : num_places == capacity || num_misses == MAX_MISSES) {
                *is_complete &= before == 0;
                break;
            }
            const uint64_t position = (uint64_t)index->suffixes[i] * BLOCK_BYTES;
            size_t common = 0;
            if (position < before || compare(index, position - before, bytes, before, &common) != 0) {
                num_misses++;
                continue;
            }
            *num_found += before > 0;
            places[num_places++] = place_of(index, position - before);
        }
    }
    return LLAMITA_OK;
}
