/* test_tokenizer.c: both kinds of BPE, on vocabularies small enough to work out by hand, against
 * naive merging on random ones, and on invalid sources. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

enum { MAX_PIECES = 700, MAX_MERGES = 64 };

/* A source under construction, and the memory behind it. */
typedef struct {
    tokenizer_source source;
    byte_slice pieces[MAX_PIECES], merges[MAX_MERGES];
    float scores[MAX_PIECES];
    int32_t types[MAX_PIECES];
    char bytes[MAX_PIECES][8];
} draft;

static draft *draft_new(tokenizer_kind kind, pre_tokenizer split) {
    draft *d = calloc(1, sizeof *d);
    if (!d) abort();
    d->source = (tokenizer_source){.kind = kind,
                                   .pre_tokenizer = split,
                                   .pieces = d->pieces,
                                   .scores = d->scores,
                                   .types = d->types,
                                   .merges = d->merges,
                                   .bos_id = -1,
                                   .eos_id = -1,
                                   .unknown_id = -1,
                                   .add_space_prefix = true};
    return d;
}

static int32_t add_piece(draft *d, const char *piece, int32_t type, float score) {
    int32_t id = d->source.vocab_size++;
    d->pieces[id] = (byte_slice){piece, strlen(piece)};
    d->types[id] = type;
    d->scores[id] = score;
    return id;
}

static void add_merge_line(draft *d, const char *line) {
    d->merges[d->source.num_merges++] = (byte_slice){line, strlen(line)};
}

static void add_byte_tokens(draft *d) {
    for (int byte = 0; byte < 256; byte++) {
        int32_t id = d->source.vocab_size;
        snprintf(d->bytes[id], sizeof d->bytes[id], "<0x%02X>", (unsigned)byte);
        add_piece(d, d->bytes[id], TOKEN_BYTE, 0);
    }
}

/* The 256 symbols of GPT-2's alphabet, in byte order, so that the id of a byte is first + byte. */
static int32_t add_alphabet(draft *d) {
    int32_t first = d->source.vocab_size;
    unsigned next = 0x100;
    for (unsigned byte = 0; byte < 256; byte++) {
        bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        unsigned code_point = printable ? byte : next++;
        char *text = d->bytes[d->source.vocab_size];
        if (code_point < 0x80) snprintf(text, 8, "%c", (char)code_point);
        else snprintf(text, 8, "%c%c", (char)(0xC0 | code_point >> 6), (char)(0x80 | (code_point & 0x3F)));
        add_piece(d, text, TOKEN_NORMAL, 0);
    }
    return first;
}

static tokenizer *create(draft *d) {
    tokenizer *t = NULL;
    llamita_error error = {0};
    CHECK(tokenizer_create(&d->source, "draft", &t, &error) == LLAMITA_OK, "%s", error.message);
    if (!t) abort();
    return t;
}

/* The ids as text, like "3 7 9", in a buffer that the next call reuses. */
static const char *encode(const tokenizer *t, const char *text, int flags) {
    static char shown[1024];
    int32_t ids[256];
    size_t num = 0;
    llamita_error error = {0};
    shown[0] = '\0';
    llamita_status status = tokenizer_encode(t, text, strlen(text), flags, ids, 256, &num, &error);
    if (status) {
        snprintf(shown, sizeof shown, "%s", error.message);
        return shown;
    }
    for (size_t i = 0, at = 0; i < num; i++)
        at += (size_t)snprintf(shown + at, sizeof shown - at, i ? " %d" : "%d", (int)ids[i]);
    return shown;
}

/* The pieces of the ids, separated by |, in a buffer that the next call reuses. */
static const char *pieces(const tokenizer *t, const char *text, int flags) {
    static char shown[1024];
    int32_t ids[256];
    size_t num = 0, at = 0;
    llamita_error error = {0};
    shown[0] = '\0';
    CHECK(!tokenizer_encode(t, text, strlen(text), flags, ids, 256, &num, &error), "%s", error.message);
    for (size_t i = 0; i < num; i++)
        at += (size_t)snprintf(shown + at, sizeof shown - at, i ? "|%s" : "%s", tokenizer_text(t, ids[i]));
    return shown;
}

static void check_text(const char *found, const char *expected, const char *what) {
    CHECK(strcmp(found, expected) == 0, "%s: expected '%s', found '%s'", what, expected, found);
}

static void check_decode(const tokenizer *t, int32_t previous, int32_t id, const char *expected, size_t length) {
    const char *bytes = NULL;
    size_t num = 0;
    llamita_error error = {0};
    CHECK(!tokenizer_decode(t, previous, id, &bytes, &num, &error), "%s", error.message);
    CHECK(num == length && memcmp(bytes, expected, length) == 0, "token %d after %d: found '%.*s'", (int)id,
          (int)previous, (int)num, bytes);
}

/* ------------------------------------------------------------------ SentencePiece */

#define SPACE "\xE2\x96\x81"

/* ids: 0 <unk>, 1 <s>, 2 </s>, 3 .. 258 bytes, then from 259 on what each test adds. */
static draft *sentencepiece_draft(bool with_bytes) {
    draft *d = draft_new(TOKENIZER_SENTENCEPIECE, PRE_TOKENIZER_GPT2);
    add_piece(d, "<unk>", TOKEN_UNKNOWN, 0);
    add_piece(d, "<s>", TOKEN_CONTROL, 0);
    add_piece(d, "</s>", TOKEN_CONTROL, 0);
    if (with_bytes) add_byte_tokens(d);
    d->source.unknown_id = 0;
    d->source.bos_id = 1;
    d->source.eos_id = 2;
    return d;
}

static void test_sentencepiece_merges(void) {
    draft *d = sentencepiece_draft(true);
    const char *const letters[] = {SPACE, "a", "b", "c", "d"};
    for (int i = 0; i < 5; i++) add_piece(d, letters[i], TOKEN_NORMAL, -100);
    add_piece(d, "ab", TOKEN_NORMAL, -2);
    add_piece(d, "bc", TOKEN_NORMAL, -1);
    add_piece(d, "cd", TOKEN_NORMAL, -1);
    add_piece(d, "abc", TOKEN_NORMAL, -0.5f);
    add_piece(d, "dd", TOKEN_NORMAL, -1e9f);
    add_piece(d, SPACE "a", TOKEN_NORMAL, -3);
    add_piece(d, SPACE SPACE, TOKEN_NORMAL, -4);
    tokenizer *t = create(d);
    check_text(pieces(t, "abc", 0), SPACE "|abc", "the best score first: bc, then a+bc");
    check_text(pieces(t, "bcd", 0), SPACE "|bc|d", "equal scores: the leftmost");
    check_text(pieces(t, "ddd", 0), SPACE "|dd|d", "a score of -1e9 still merges");
    check_text(pieces(t, "a a", 0), SPACE "a|" SPACE "a", "the space prefix");
    check_text(pieces(t, "  a", 0), SPACE SPACE "|" SPACE "a", "runs of spaces");
    check_text(pieces(t, SPACE "a", 0), SPACE "|" SPACE "a", "U+2581 in a text is a space");
    check_text(pieces(t, "a\n\xC3\xA9", 0), SPACE "a|<0x0A>|<0xC3>|<0xA9>", "characters without a piece become bytes");
    check_text(pieces(t,
                      "\xFF"
                      "a\xC3",
                      0),
               SPACE "|<0xFF>|a|<0xC3>", "bytes that are not UTF-8");
    check_text(pieces(t, "<s>a", 0), SPACE "|<0x3C>|<0x73>|<0x3E>|a", "control tokens are text");
    check_text(pieces(t, "<s>a</s>a", LLAMITA_ENCODE_SPECIAL), "<s>|" SPACE "a|</s>|" SPACE "a", "unless asked for");
    check_text(pieces(t, "", LLAMITA_ENCODE_BOS), "<s>", "only BOS");
    check_text(encode(t, "", 0), "", "the empty text");
    tokenizer_free(t);
    d->source.add_space_prefix = false;
    t = create(d);
    check_text(pieces(t, "a a", 0), "a|" SPACE "a", "no space prefix");
    tokenizer_free(t);
    free(d);
}

static void test_sentencepiece_decodes(void) {
    draft *d = sentencepiece_draft(true);
    int32_t word = add_piece(d, SPACE "a" SPACE "b", TOKEN_NORMAL, 0), user = add_piece(d, " u", TOKEN_USER, 0);
    tokenizer *t = create(d);
    check_decode(t, -1, word, "a b", 3);
    check_decode(t, 1, word, "a b", 3);
    check_decode(t, 3, word, " a b", 4);
    check_decode(t, 1, 3, "\0", 1); /* <0x00> */
    check_decode(t, -1, 3 + 0x20, " ", 1);
    check_decode(t, 3, 3 + 0xE6, "\xE6", 1);
    check_decode(t, -1, 1, "", 0);
    check_decode(t, -1, 0, " \xE2\x81\x87 ", 5);
    check_decode(t, -1, user, " u", 2);
    const char *bytes;
    size_t num;
    for (int32_t id = -1; id <= tokenizer_vocab_size(t); id += tokenizer_vocab_size(t) + 1) {
        CHECK(tokenizer_decode(t, -1, id, &bytes, &num, NULL) == LLAMITA_ERROR_ARGUMENT, "decoded id %d", (int)id);
        CHECK(tokenizer_text(t, id) == NULL, "id %d has a text", (int)id);
        CHECK(!tokenizer_ends(t, id), "id %d ends", (int)id);
    }
    CHECK(tokenizer_ends(t, 2) && !tokenizer_ends(t, 1), "the end tokens");
    tokenizer_free(t);
    free(d);
}

static void test_sentencepiece_unknown(void) {
    draft *d = sentencepiece_draft(false);
    add_piece(d, SPACE, TOKEN_NORMAL, 0);
    add_piece(d, "a", TOKEN_NORMAL, 0);
    tokenizer *t = create(d);
    check_text(encode(t, "xyza\xE4\xB8\xAD", 0), "3 0 4 0", "a run of unknown characters is one id");
    check_text(encode(t, "<unk>x", LLAMITA_ENCODE_SPECIAL), "0 3 0", "a written <unk> does not join the run");
    tokenizer_free(t);
    d->types[0] = TOKEN_CONTROL;
    d->source.unknown_id = -1;
    t = create(d);
    CHECK(strstr(encode(t, "x", 0), "found 0x78 in 'x'"), "no token for x: %s", encode(t, "x", 0));
    tokenizer_free(t);
    free(d);
}

/* Pieces of type "unused": merges pass through them, but they are never output. */
static void test_sentencepiece_unused(void) {
    draft *d = sentencepiece_draft(true);
    d->source.add_space_prefix = false;
    const char *const letters[] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++) add_piece(d, letters[i], TOKEN_NORMAL, -9);
    add_piece(d, "ab", TOKEN_UNUSED, -1);
    add_piece(d, "abc", TOKEN_NORMAL, -2);
    add_piece(d, "abab", TOKEN_UNUSED, -3);
    tokenizer *t = create(d);
    check_text(pieces(t, "abc", 0), "abc", "through ab");
    check_text(pieces(t, "abb", 0), "a|b|b", "ab is taken apart");
    check_text(pieces(t, "ababa", 0), "a|b|a|b|a", "abab is taken apart twice");
    tokenizer_free(t);
    free(d);
}

static void test_special_tokens(void) {
    draft *d = sentencepiece_draft(true);
    add_piece(d, SPACE, TOKEN_NORMAL, 0);
    add_piece(d, "<x>", TOKEN_USER, 0);
    add_piece(d, "<x><y>", TOKEN_USER, 0);
    add_piece(d, "<x><z>", TOKEN_CONTROL, 0);
    add_piece(d, "", TOKEN_CONTROL, 0);
    add_piece(d, SPACE SPACE "u", TOKEN_USER, 0);
    tokenizer *t = create(d);
    check_text(pieces(t, "<x><x><y>", 0), "<x>|<x><y>", "the longest");
    check_text(pieces(t, "<x><z>", LLAMITA_ENCODE_SPECIAL), "<x><z>", "the longest of all kinds");
    check_text(pieces(t, "<x><z", LLAMITA_ENCODE_SPECIAL), "<x>|" SPACE "|<0x3C>|<0x7A>", "a shorter one at the end");
    check_text(pieces(t, "  u", 0), SPACE SPACE "u", "U+2581 in a user-defined token is a space");
    tokenizer_free(t);
    free(d);
}

/* ------------------------------------------------------------------ byte level */

static void test_byte_level(void) {
    draft *d = draft_new(TOKENIZER_BYTE_LEVEL, PRE_TOKENIZER_QWEN2);
    d->source.bos_id = add_piece(d, "<|endoftext|>", TOKEN_CONTROL, 0);
    add_alphabet(d);
    add_piece(d, "\xC4\xA0t", TOKEN_NORMAL, 0);   /* Ġt: 257 */
    add_piece(d, "he", TOKEN_NORMAL, 0);          /* 258 */
    add_piece(d, "\xC4\xA0the", TOKEN_NORMAL, 0); /* 259 */
    add_piece(d, "xyz", TOKEN_NORMAL, 0);         /* 260: no merge leads there */
    add_piece(d, "  ", TOKEN_USER, 0);            /* 261 */
    const char *const lines[] = {"\xC4\xA0 t", "h e", "\xC4\xA0t he", "h e", "q q", "\xE4\xB8\xAD a"};
    for (int i = 0; i < 6; i++) add_merge_line(d, lines[i]);
    tokenizer *t = create(d);
    check_text(encode(t, "the the", 0), "117 258 259", "ranks");
    check_text(encode(t, "xyz", 0), "121 122 123", "merges only");
    check_text(encode(t, "qq", 0), "114 114", "a merge result that is not a token falls back to bytes");
    check_text(encode(t, "\xFF\x80", 0), "256 129", "bytes that are not UTF-8");
    check_text(encode(t, "a  b", 0), "98 261 99", "user-defined tokens come first");
    check_text(encode(t, "<|endoftext|>", LLAMITA_ENCODE_SPECIAL | LLAMITA_ENCODE_BOS), "0 0", "control tokens");
    check_decode(t, -1, 259, " the", 4);
    check_decode(t, -1, 1, "\0", 1);
    check_decode(t, -1, 0, "", 0);
    check_decode(t, -1, 261, "  ", 2);
    tokenizer_free(t);
    d->source.pre_tokenizer = PRE_TOKENIZER_LLAMA_BPE;
    t = create(d);
    check_text(encode(t, "xyz", 0), "260", "llama-bpe matches whole tokens first");
    tokenizer_free(t);
    d->pieces[1 + 'b'] = (byte_slice){"bb", 2};
    t = create(d);
    CHECK(strstr(encode(t, "ab", 0), "found 0x62"), "a byte without a token: %s", encode(t, "ab", 0));
    tokenizer_free(t);
    free(d);
}

static void check_split(pre_tokenizer kind, const char *text, const char *expected) {
    char shown[256];
    size_t at = 0, end = strlen(text);
    for (size_t from = 0, length; from < end; from += length) {
        length = pre_tokenizer_next(kind, text + from, end - from);
        at += (size_t)snprintf(shown + at, sizeof shown - at, from ? "|%.*s" : "%.*s", (int)length, text + from);
    }
    check_text(shown, expected, text);
}

static void test_splits(void) {
    const char *mixed = "I'll go  to 12345, DON'T\n \n x!? \xE4\xB8\xAD\xE6\x96\x87\xEF\xBC\x8C  ";
    check_split(PRE_TOKENIZER_GPT2, mixed,
                "I|'ll| go| | to| 12345|,| DON|'|T|\n \n| x|!?| \xE4\xB8\xAD\xE6\x96\x87|\xEF\xBC\x8C|  ");
    check_split(PRE_TOKENIZER_SMOLLM, mixed,
                "I|'ll| go| | to| |1|2|3|4|5|,| DON|'|T|\n \n| x|!?| \xE4\xB8\xAD\xE6\x96\x87|\xEF\xBC\x8C|  ");
    check_split(PRE_TOKENIZER_LLAMA_BPE, mixed,
                "I|'ll| go| | to| |123|45|,| DON|'T|\n \n| x|!?| \xE4\xB8\xAD\xE6\x96\x87|\xEF\xBC\x8C|  ");
    check_split(PRE_TOKENIZER_QWEN2, mixed,
                "I|'ll| go| | to| |1|2|3|4|5|,| DON|'T|\n \n| x|!?| \xE4\xB8\xAD\xE6\x96\x87|\xEF\xBC\x8C|  ");
    check_split(PRE_TOKENIZER_QWEN2, "'\xC5\xBFo", "'\xC5\xBFo"); /* the long s is not an s */
    check_split(PRE_TOKENIZER_GPT2, "'\xC5\xBFo", "'|\xC5\xBFo");
    check_split(PRE_TOKENIZER_QWEN2, "I'VeX'lLy'", "I|'Ve|X|'lL|y|'");
    check_split(PRE_TOKENIZER_QWEN2,
                "(a\t\tb..\r\n\r\n c\xC2\xA0\xC2\xA0"
                "d",
                "(a|\t|\tb|..\r\n\r\n| c|\xC2\xA0|\xC2\xA0"
                "d");
    check_split(PRE_TOKENIZER_QWEN2, "  \n\n  y", "  \n\n| | y");
    check_split(PRE_TOKENIZER_DBRX, mixed,
                "I|'ll| go| | to| |123|45|,| DON|'T|\n \n| x|!?| \xE4\xB8\xAD\xE6\x96\x87|\xEF\xBC\x8C|  ");
    check_split(PRE_TOKENIZER_GPT4O, mixed,
                "I'll| go| | to| |123|45|,| DON'T|\n \n| x|!?| \xE4\xB8\xAD\xE6\x96\x87|\xEF\xBC\x8C|  ");
    check_split(PRE_TOKENIZER_TEKKEN, mixed,
                "I|'ll| go| | to| |1|2|3|4|5|,| DON|'T|\n \n| x|!?| \xE4\xB8\xAD\xE6\x96\x87|\xEF\xBC\x8C|  ");
    check_split(PRE_TOKENIZER_DEFAULT, mixed,
                "I|'|ll| go| | to| |123|45|,| DON|'|T|\n \n| x|!?| \xE4\xB8\xAD\xE6\x96\x87|\xEF\xBC\x8C|  ");
    check_split(PRE_TOKENIZER_GPT4O, "HTMLParser getX !\n/a", "HTMLParser| get|X| !\n/|a");
    /* A mark counts as both cases: the expression goes back to the last one. */
    check_split(PRE_TOKENIZER_GPT4O,
                "e\xCC\x81"
                "AB\xCC\x81"
                "CD",
                "e\xCC\x81|AB\xCC\x81|CD");
    check_split(PRE_TOKENIZER_TEKKEN,
                "\xCC\x81"
                "A",
                "\xCC\x81|A");
    check_split(PRE_TOKENIZER_DEFAULT,
                "12\xC2\xB2"
                "3456 ^a",
                "12\xC2\xB2|345|6| |^|a");
    check_split(PRE_TOKENIZER_SMOLLM, "a  1", "a|  |1");
    check_split(PRE_TOKENIZER_GPT2, "a  1", "a| | 1");
}

/* ------------------------------------------------------------------ against naive merging */

static uint64_t random_state = 1;
static unsigned random_below(unsigned limit) { /* xorshift64 (Marsaglia 2003) */
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)((random_state >> 11) % limit);
}

/* Merges strings of a, b and c: repeatedly joins the neighbors whose joined string ranks best. */
static size_t merge_naively(const draft *d, int32_t first, const char *text, size_t length, int32_t *ids) {
    size_t starts[512], num = length;
    for (size_t i = 0; i <= num; i++) starts[i] = i;
    for (;;) {
        int32_t best = -1;
        size_t best_at = 0;
        for (size_t i = 0; i + 1 < num; i++) {
            for (int32_t id = first; id < d->source.vocab_size; id++) {
                size_t joined = starts[i + 2] - starts[i];
                if (d->pieces[id].num_bytes != joined || memcmp(d->pieces[id].bytes, text + starts[i], joined) != 0)
                    continue;
                if (best < 0 || d->scores[id] > d->scores[best]) best = id, best_at = i;
            }
        }
        if (best < 0) break;
        memmove(starts + best_at + 1, starts + best_at + 2, (num - best_at - 1) * sizeof *starts);
        num--;
    }
    for (size_t i = 0; i < num; i++) {
        for (int32_t id = first; id < d->source.vocab_size; id++) {
            size_t n = starts[i + 1] - starts[i];
            if (d->pieces[id].num_bytes == n && memcmp(d->pieces[id].bytes, text + starts[i], n) == 0) ids[i] = id;
        }
    }
    return num;
}

static void test_random_vocabularies(void) {
    for (int round = 0; round < 400 && !check_num_failures; round++) {
        draft *d = sentencepiece_draft(true);
        d->source.add_space_prefix = false;
        int32_t first = d->source.vocab_size;
        const char *const letters[] = {"a", "b", "c"};
        for (int i = 0; i < 3; i++) add_piece(d, letters[i], TOKEN_NORMAL, 0);
        for (int tries = 0; tries < 30; tries++) {
            char *piece = d->bytes[d->source.vocab_size];
            unsigned length = 2 + random_below(5);
            bool repeated = false;
            for (unsigned i = 0; i < length; i++) piece[i] = "abc"[random_below(3)];
            piece[length] = '\0';
            for (int32_t id = first; id < d->source.vocab_size; id++)
                repeated |= strcmp(piece, d->pieces[id].bytes) == 0;
            if (!repeated) add_piece(d, piece, TOKEN_NORMAL, -(float)random_below(8));
        }
        tokenizer *t = create(d);
        char text[256];
        int32_t found[256], expected[256];
        size_t length = random_below(round % 2 ? 20 : 250), num = 0;
        for (size_t i = 0; i < length; i++) text[i] = "abc"[random_below(3)];
        CHECK(!tokenizer_encode(t, text, length, 0, found, 256, &num, NULL), "round %d", round);
        size_t num_expected = merge_naively(d, first, text, length, expected);
        CHECK(num == num_expected && memcmp(found, expected, num * sizeof *found) == 0, "round %d: '%.*s'", round,
              (int)length, text);
        tokenizer_free(t);
        free(d);
    }
}

/* A quadratic algorithm would take hours here. */
static void test_long_runs(void) {
    size_t length = 1 << 20, num = 0;
    char *text = malloc(length);
    int32_t *ids = malloc((length + 2) * sizeof *ids);
    if (!text || !ids) abort();
    memset(text, 'a', length);
    for (int kind = 0; kind < 2; kind++) {
        draft *d = kind ? draft_new(TOKENIZER_BYTE_LEVEL, PRE_TOKENIZER_GPT2) : sentencepiece_draft(true);
        if (kind) add_alphabet(d);
        else add_piece(d, "a", TOKEN_NORMAL, 0);
        add_piece(d, "aa", TOKEN_NORMAL, -1);
        int32_t last = add_piece(d, "aaaa", TOKEN_NORMAL, -2);
        add_merge_line(d, "a a");
        add_merge_line(d, "aa aa");
        tokenizer *t = create(d);
        CHECK(!tokenizer_encode(t, text, length, 0, ids, length + 2, &num, NULL), "kind %d", kind);
        CHECK(num == length / 4 && ids[num - 1] == last, "kind %d: %zu tokens", kind, num);
        tokenizer_free(t);
        free(d);
    }
    free(text);
    free(ids);
}

static void test_capacity(void) {
    draft *d = draft_new(TOKENIZER_BYTE_LEVEL, PRE_TOKENIZER_GPT2);
    add_alphabet(d);
    tokenizer *t = create(d);
    int32_t ids[3] = {-7, -7, -7};
    size_t num = 0;
    llamita_error error = {0};
    CHECK(tokenizer_encode(t, "abc", 3, 0, ids, 2, &num, &error) == LLAMITA_ERROR_ARGUMENT, "room for two");
    CHECK(num == 3 && ids[0] == -7, "needed %zu, wrote %d", num, (int)ids[0]);
    CHECK(tokenizer_encode(t, "abc", 3, LLAMITA_ENCODE_BOS, ids, 3, &num, &error) == LLAMITA_ERROR_ARGUMENT, "no BOS");
    CHECK(tokenizer_encode(t, NULL, 0, 0, NULL, 0, &num, &error) == LLAMITA_OK && num == 0, "no text");
    tokenizer_free(t);
    tokenizer_free(NULL);
    free(d);
}

/* ------------------------------------------------------------------ invalid sources */

static void check_refused(draft *d, const char *expected) {
    tokenizer *t = NULL;
    llamita_error error = {0};
    llamita_status status = tokenizer_create(&d->source, "draft", &t, &error);
    CHECK(status == LLAMITA_ERROR_FORMAT && !t, "accepted; expected '%s'", expected);
    CHECK(strstr(error.message, expected) && strstr(error.message, ": draft: "), "expected '%s', found '%s'", expected,
          error.message);
    free(d);
}

static draft *wrong_piece(tokenizer_kind kind, const char *piece, int32_t type, float score) {
    draft *d = kind == TOKENIZER_SENTENCEPIECE ? sentencepiece_draft(true) : draft_new(kind, PRE_TOKENIZER_GPT2);
    if (kind == TOKENIZER_BYTE_LEVEL) add_alphabet(d);
    add_piece(d, "ab", TOKEN_NORMAL, 0);
    add_piece(d, "<x>", TOKEN_CONTROL, 0);
    add_piece(d, piece, type, score);
    return d;
}

static draft *wrong_merge(const char *line) {
    draft *d = wrong_piece(TOKENIZER_BYTE_LEVEL, "cd", TOKEN_NORMAL, 0);
    add_merge_line(d, line);
    return d;
}

static void test_refused_sources(void) {
    const tokenizer_kind spm = TOKENIZER_SENTENCEPIECE, bytes = TOKENIZER_BYTE_LEVEL;
    draft *d = draft_new(spm, PRE_TOKENIZER_GPT2);
    check_refused(d, "expected 1 to 16777216 tokens, found 0");
    d = draft_new(bytes, PRE_TOKENIZER_GPT2);
    d->source.vocab_size = -5;
    check_refused(d, "found -5");
    check_refused(wrong_piece(spm, "ab", TOKEN_NORMAL, 0), "token 261 'ab': expected unique pieces");
    check_refused(wrong_piece(bytes, "ab", TOKEN_NORMAL, 0), "token 258 'ab': expected unique pieces");
    check_refused(wrong_piece(spm, "<x>", TOKEN_USER, 0), "'<x>': expected unique special tokens");
    check_refused(wrong_piece(spm, "c", TOKEN_NORMAL, NAN), "'c': expected a score, found NaN");
    check_refused(wrong_piece(spm, "<0x0G>", TOKEN_BYTE, 0), "expected a byte token of the form <0xNN>");
    check_refused(wrong_piece(spm, "<0x-1>", TOKEN_BYTE, 0), "expected a byte token of the form <0xNN>");
    check_refused(wrong_piece(bytes, "<0x4", TOKEN_BYTE, 0), "expected a byte token of the form <0xNN>");
    check_refused(wrong_piece(spm, "<0x0a>", TOKEN_BYTE, 0), "expected one token per byte, found a second");
    check_refused(wrong_piece(spm, "c", 0, 0), "expected a token_type from 1 to 6");
    check_refused(wrong_piece(spm, "c", 7, 0), "expected a token_type from 1 to 6");
    check_refused(wrong_merge("ab"), "merge 0 'ab': expected two strings with a space between them");
    check_refused(wrong_merge(""), "merge 0 '': expected two strings");
    check_refused(wrong_merge(" a"), "expected two strings");
    check_refused(wrong_merge("a "), "expected two strings");
    d = wrong_piece(spm, "c", TOKEN_NORMAL, 0);
    d->source.bos_id = d->source.vocab_size;
    check_refused(d, "bos_token_id: expected an id below 262, found 262");
    d = wrong_piece(spm, "c", TOKEN_NORMAL, 0);
    d->source.unknown_id = -2;
    check_refused(d, "unknown_token_id: expected an id below 262, found -2");
    d = wrong_piece(spm, "c", TOKEN_NORMAL, 0);
    const int32_t end = -1;
    d->source.end_ids = &end;
    d->source.num_end_ids = 1;
    check_refused(d, "end token: expected an id below 262, found -1");
    d = wrong_piece(spm, "c", TOKEN_NORMAL, 0);
    d->source.scores = NULL;
    check_refused(d, "expected a score for every piece");
    check_refused(sentencepiece_draft(true), "expected normal pieces, found none");
    d = draft_new(bytes, PRE_TOKENIZER_GPT2);
    add_piece(d, "ab", TOKEN_NORMAL, 0);
    check_refused(d, "expected tokens for single bytes, found none");
    char *longest = calloc(1026, 1);
    if (!longest) abort();
    memset(longest, 'a', 1025);
    check_refused(wrong_piece(spm, longest, TOKEN_NORMAL, 0), "expected at most 1,024 bytes");
    free(longest);
}

/* Odd sources with only one possible meaning: empty pieces, repeated merges, merges of unknown or
 * impossible strings. */
static void test_tolerated_sources(void) {
    draft *d = wrong_piece(TOKENIZER_BYTE_LEVEL, "", TOKEN_NORMAL, 0);
    add_piece(d, "", TOKEN_NORMAL, 0);
    add_piece(d, "\xE4\xB8\xAD", TOKEN_NORMAL, 0); /* not in the alphabet: never matched */
    const char *const lines[] = {"a b", "a b", "z z", "\xE4 \xB8", "a b c"};
    for (int i = 0; i < 5; i++) add_merge_line(d, lines[i]);
    tokenizer *t = create(d);
    check_text(encode(t, "abzz", 0), "256 122 122", "odd, but unambiguous");
    check_decode(t, -1, 258, "", 0);
    check_decode(t, -1, 260, "\xE4\xB8\xAD", 3);
    tokenizer_free(t);
    free(d);
    /* Without types, byte tokens are recognized by their spelling and special tokens by their
     * ids. */
    d = sentencepiece_draft(true);
    d->source.types = NULL;
    add_piece(d, "a", TOKEN_NORMAL, INFINITY);
    t = create(d);
    check_text(pieces(t, "a\n", 0), "a|<0x0A>", "guessed types; no space prefix without a space piece");
    check_decode(t, -1, 2, "", 0);
    tokenizer_free(t);
    free(d);
}

static void test_utf8_complete(void) {
    const struct {
        const char *bytes;
        size_t whole;
    } cases[] = {{"", 0},
                 {"a", 1},
                 {"a\xC3", 1},
                 {"a\xC3\xA9", 3},
                 {"\xE4\xB8", 0},
                 {"\xE4\xB8\xAD", 3},
                 {"\xF0\x9F\xA6", 0},
                 {"\xF0\x9F\xA6\x99", 4},
                 {"\x80", 1},
                 {"\x80\x80\x80\x80", 4},
                 {"a\xFF", 2},
                 {"\xC0", 1},
                 {"\xE0\x80", 2},
                 {"\xED\xA0", 2},
                 {"\xF4\x90", 2},
                 {"\xF4\x8F", 0},
                 {"\xC3\xC3", 1},
                 {"\xE4"
                  "a",
                  2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t whole = llamita_utf8_complete(cases[i].bytes, strlen(cases[i].bytes));
        CHECK(whole == cases[i].whole, "case %zu: found %zu", i, whole);
    }
}

int main(void) {
    test_sentencepiece_merges();
    test_sentencepiece_decodes();
    test_sentencepiece_unknown();
    test_sentencepiece_unused();
    test_special_tokens();
    test_byte_level();
    test_splits();
    test_random_vocabularies();
    test_long_runs();
    test_capacity();
    test_refused_sources();
    test_tolerated_sources();
    test_utf8_complete();
    return check_failures();
}
