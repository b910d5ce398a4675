/* test_text_index.c: suffixes are in order, every string of the text is found where it is, and arrays
 * that do not belong together are read without harm. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "index/suffix_array.h"
#include "llamita.h"

enum { MAX_TOKENS = 600, MAX_BYTES = 8 * MAX_TOKENS, MAX_BLOCKS = MAX_BYTES / 4, VOCAB = 10, EOS = 9 };

/* Tokens of 0 to 7 bytes; 7 is cut within a character, 8 is NUL. */
static const char token_bytes[] = "a"
                                  "b"
                                  "ab"
                                  "ba "
                                  "aaaa"
                                  "\xE4\xB8\xAD\xE6\x96\x87"
                                  "\xE4\xB8"
                                  "\0"
                                  "</s>";
static const uint32_t token_ends[VOCAB] = {1, 2, 4, 7, 11, 17, 17, 19, 20, 24}; /* 6 has no bytes */

static uint64_t state = 1;

static uint32_t random_below(uint32_t limit) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(state >> 33) % limit;
}

typedef struct {
    uint16_t short_ids[MAX_TOKENS];
    uint32_t long_ids[MAX_TOKENS];
    const void *parts[3];
    uint64_t num_tokens[3], num_blocks;
    llamita_indexed_text text;
    unsigned char bytes[MAX_BYTES];          /* its text */
    uint32_t token_at[MAX_BYTES], num_bytes; /* the token of each byte, */
    uint32_t offset_at[MAX_BYTES];           /* and which of its bytes it is */
    uint32_t suffixes[MAX_BLOCKS + 1], entry_tokens[MAX_BLOCKS];
    uint16_t entry_offsets[MAX_BLOCKS];
} sample;

/* num_ids: how many of the first ids occur besides EOS. */
static void make_sample(sample *s, size_t num_tokens, uint32_t num_ids, bool is_long) {
    s->num_bytes = 0;
    for (size_t i = 0; i < num_tokens; i++) {
        uint32_t id = random_below(40) == 0 ? EOS : random_below(num_ids);
        if (i + 1 == num_tokens) id = EOS;
        s->short_ids[i] = (uint16_t)id;
        s->long_ids[i] = id;
        const uint32_t start = id ? token_ends[id - 1] : 0;
        const uint32_t length = id == EOS ? 4 - s->num_bytes % 4 : token_ends[id] - start;
        for (uint32_t k = 0; k < length; k++) {
            s->token_at[s->num_bytes] = (uint32_t)i;
            s->offset_at[s->num_bytes] = k;
            s->bytes[s->num_bytes++] = id == EOS ? 0xFF : (unsigned char)token_bytes[start + k];
        }
    }
    const size_t first = num_tokens / 3;
    const size_t starts[] = {0, first, first}; /* the second part is empty */
    for (int part = 0; part < 3; part++) {
        const size_t end = part < 2 ? starts[part + 1] : num_tokens;
        s->parts[part] = is_long ? (const void *)(s->long_ids + starts[part]) : s->short_ids + starts[part];
        s->num_tokens[part] = end - starts[part];
    }
    s->text = (llamita_indexed_text){s->parts, s->num_tokens, 3, is_long ? 4 : 2, VOCAB, EOS, token_bytes, token_ends};
}

static llamita_text_index *open_sample(sample *s) {
    llamita_error error = {0};
    llamita_text_index *index = NULL;
    CHECK(llamita_text_index_measure(&s->text, &s->num_blocks, &error) == LLAMITA_OK, "%s", error.message);
    CHECK(s->num_blocks * 4 == s->num_bytes, "%d blocks, %d bytes", (int)s->num_blocks, (int)s->num_bytes);
    /* Arrays of their exact size: AddressSanitizer sees what lies beyond. */
    const size_t num_entries = ((size_t)s->num_blocks + 31) / 32;
    uint32_t *suffixes = malloc((size_t)(s->num_blocks + 1) * 4), *entry_tokens = malloc(num_entries * 4 + 1);
    uint16_t *entry_offsets = malloc(num_entries * 2 + 1);
    CHECK(llamita_text_index_build(&s->text, s->num_blocks, suffixes, entry_tokens, entry_offsets, &error) ==
              LLAMITA_OK,
          "%s", error.message);
    memcpy(s->suffixes, suffixes, (size_t)s->num_blocks * 4);
    memcpy(s->entry_tokens, entry_tokens, num_entries * 4);
    memcpy(s->entry_offsets, entry_offsets, num_entries * 2);
    free(suffixes);
    free(entry_tokens);
    free(entry_offsets);
    CHECK(llamita_text_index_open(&s->text, s->num_blocks, s->suffixes, s->entry_tokens, s->entry_offsets, &index,
                                  &error) == LLAMITA_OK,
          "%s", error.message);
    return index;
}

static void check_order(const sample *s) {
    for (size_t i = 0; i + 1 < s->num_blocks; i++) {
        const uint32_t a = 4 * s->suffixes[i], b = 4 * s->suffixes[i + 1];
        const uint32_t longest = a > b ? a : b;
        const int order = memcmp(s->bytes + a, s->bytes + b, s->num_bytes - longest);
        CHECK(order < 0 || (order == 0 && a > b), "suffixes %zu and %zu", i, i + 1);
    }
}

static void check_find(const sample *s, const llamita_text_index *index, const unsigned char *query, size_t length) {
    static llamita_text_place places[MAX_BYTES];
    uint64_t num_found = 0, expected = 0;
    bool is_complete = false;
    llamita_error error = {0};
    CHECK(llamita_text_index_find(index, (const char *)query, length, places, MAX_BYTES, &num_found, &is_complete,
                                  &error) == LLAMITA_OK,
          "%s", error.message);
    for (size_t at = 0; at + length <= s->num_bytes; at++) {
        if (memcmp(s->bytes + at, query, length) != 0) continue;
        bool is_there = false;
        for (uint64_t i = 0; i < num_found; i++)
            is_there |= places[i].token == s->token_at[at] && places[i].offset == s->offset_at[at];
        CHECK(is_there, "%zu bytes at %zu were not found", length, at);
        expected++;
    }
    CHECK(is_complete && num_found == expected, "found %d of %d", (int)num_found, (int)expected);
}

static void check_match(const sample *s, const llamita_text_index *index, const unsigned char *query, size_t length) {
    static uint32_t lengths[MAX_BYTES];
    static uint32_t some[MAX_BYTES];
    CHECK(llamita_text_index_match(index, (const char *)query, length, 1, lengths, NULL) == LLAMITA_OK, "match");
    CHECK(llamita_text_index_match(index, (const char *)query, length, 3, some, NULL) == LLAMITA_OK, "match");
    for (size_t i = 0; i < length; i++) {
        if (i % 3 == 0) CHECK(some[i / 3] == lengths[i], "at %zu: %d bytes with a step", i, (int)some[i / 3]);
        uint32_t longest = 0;
        for (size_t block = 0; block < s->num_blocks; block++) {
            uint32_t common = 0;
            while (i + common < length && 4 * block + common < s->num_bytes && query[i + common] != 0xFF &&
                   s->bytes[4 * block + common] == query[i + common])
                common++;
            if (common > longest) longest = common;
        }
        CHECK(lengths[i] == longest, "at %zu: %d bytes, expected %d", i, (int)lengths[i], (int)longest);
    }
}

static void test_samples(void) {
    static sample s;
    static const size_t sizes[] = {0, 1, 2, 3, 40, 150, 600};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (uint32_t num_ids = 1; num_ids <= EOS; num_ids += 2) {
            make_sample(&s, sizes[i], num_ids, num_ids % 4 == 1);
            llamita_text_index *index = open_sample(&s);
            check_order(&s);
            for (int n = 0; n < 20 && s.num_bytes > 8; n++) {
                const uint32_t length = 4 + random_below(s.num_bytes / 4), start = random_below(s.num_bytes - length);
                unsigned char query[MAX_BYTES];
                memcpy(query, s.bytes + start, length);
                if (n % 3 == 0) query[random_below(length)] = (unsigned char)"ab\xE4\0"[random_below(4)];
                if (n < 3) check_match(&s, index, query, length);
                if (!memchr(query, 0xFF, length)) check_find(&s, index, query, length);
            }
            llamita_text_index_close(index);
        }
    }
}

/* What a damaged file may hold. */
static void test_damage(void) {
    static sample s;
    make_sample(&s, 300, EOS, false);
    llamita_text_index *index = open_sample(&s);
    for (int n = 0; n < 300; n++) {
        const size_t at = random_below((uint32_t)s.num_blocks), entry = at / 32;
        s.suffixes[at] = random_below(2) ? UINT32_MAX - random_below(9) : random_below(600);
        s.entry_tokens[entry] = random_below(2) ? UINT32_MAX - random_below(9) : random_below(600);
        s.entry_offsets[entry] = (uint16_t)random_below(65536);
        s.short_ids[random_below(300)] = (uint16_t)random_below(65536);
        llamita_text_place places[4];
        uint32_t lengths[8];
        uint64_t num_found;
        bool is_complete;
        CHECK(llamita_text_index_find(index, "abaaaab", 7, places, 4, &num_found, &is_complete, NULL) == LLAMITA_OK,
              "find");
        CHECK(llamita_text_index_match(index, "ba aaaab", 8, 1, lengths, NULL) == LLAMITA_OK, "match");
    }
    llamita_text_index_close(index);
}

static void expect(llamita_status found, llamita_status status, const llamita_error *error, const char *message) {
    CHECK(found == status && strstr(error->message, message), "status %d: %s", (int)found, error->message);
}

static void test_errors(void) {
    static sample s;
    llamita_error error = {0};
    uint64_t num_blocks;
    make_sample(&s, 10, EOS, false);
    s.short_ids[3] = VOCAB;
    expect(llamita_text_index_measure(&s.text, &num_blocks, &error), LLAMITA_ERROR_FORMAT, &error,
           "token 3: expected an id below 10, found 10");
    s.short_ids[3] = 0;
    s.short_ids[9] = 1;
    expect(llamita_text_index_measure(&s.text, &num_blocks, &error), LLAMITA_ERROR_FORMAT, &error,
           "expected EOS (9) at the end, found id 1");
    s.short_ids[9] = EOS;
    s.text.id_bytes = 3;
    expect(llamita_text_index_measure(&s.text, &num_blocks, &error), LLAMITA_ERROR_ARGUMENT, &error, "found 3 bytes");
    s.text.id_bytes = 2;
    const uint32_t wrong[VOCAB] = {5, 4, 6, 7, 11, 17, 17, 19, 20, 24};
    s.text.token_ends = wrong;
    expect(llamita_text_index_measure(&s.text, &num_blocks, &error), LLAMITA_ERROR_FORMAT, &error, "token 1");
    s.text.token_ends = token_ends;
    expect(llamita_text_index_build(&s.text, 1000, s.suffixes, s.entry_tokens, s.entry_offsets, &error),
           LLAMITA_ERROR_ARGUMENT, &error, "expected 1000 blocks, found");
    llamita_text_index *index = open_sample(&s);
    bool is_complete;
    expect(llamita_text_index_find(index, "abc", 3, NULL, 0, &num_blocks, &is_complete, &error), LLAMITA_ERROR_ARGUMENT,
           &error, "expected a query of 4 to 16777216 bytes, found 3");
    uint32_t length;
    expect(llamita_text_index_match(index, "abcd", 4, 0, &length, &error), LLAMITA_ERROR_ARGUMENT, &error,
           "expected a step of 1 or more");
    llamita_text_index_close(index);
}

/* Long arrays, against the definition of the order; the recursion goes deep in the second. */
static void test_suffix_array(void) {
    enum { NUM = 20000 };
    static uint32_t symbols[NUM], suffixes[NUM], ranks[NUM + 1];
    for (int kind = 0; kind < 4; kind++) {
        for (uint32_t i = 0; i < NUM; i++) {
            uint32_t bits = 0, n = i; /* kind 1: the Thue-Morse word, in which nothing occurs three times in a row */
            for (; n; n &= n - 1) bits ^= 1;
            symbols[i] = kind == 0   ? 1
                         : kind == 1 ? 1 + bits
                         : kind == 2 ? 1 + random_below(3)
                                     : 1 + random_below(9999);
        }
        symbols[NUM - 1] = 0;
        CHECK(suffix_array_build(symbols, suffixes, NUM, 10000), "out of memory");
        for (uint32_t i = 0; i < NUM; i++) ranks[suffixes[i]] = i;
        for (uint32_t i = 0; i + 1 < NUM;
             i++) { /* sorted if each pair is in order by its symbols, then by what follows */
            const uint32_t a = suffixes[i], b = suffixes[i + 1];
            CHECK(symbols[a] < symbols[b] || (symbols[a] == symbols[b] && ranks[a + 1] < ranks[b + 1]),
                  "kind %d: suffixes %d and %d", kind, (int)i, (int)i + 1);
        }
    }
}

int main(void) {
    test_suffix_array();
    test_samples();
    test_damage();
    test_errors();
    return check_failures();
}
