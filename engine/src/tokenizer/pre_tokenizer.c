/* pre_tokenizer.c: splits text into the pre-tokens of byte-level BPE: regular expressions as
 * scanners.
 *
 *   gpt-2      's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *   smollm     every \p{N} alone, and gpt-2 on the text between them
 *   llama-bpe  (?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+
 *              |\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *   dbrx       the same
 *   qwen2      the same with \p{N} for \p{N}{1,3}
 *   gpt-4o     [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+('s|...)?
 *              |[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*('s|...)?
 *              |\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *   tekken     the same without ('s|...)? and with \p{N} for \p{N}{1,3}
 *   default    four in a row: [\p{P}\$\+<=>\^~\|]+, gpt-2, \p{N}+, [0-9][0-9][0-9]
 *
 * Names are llama.cpp's, and so are the expressions, but for gpt-4o and tekken, which are those of
 * the models' own tokenizers: llama.cpp takes every letter but a to z and A to Z for both cases.
 * Hugging Face and tiktoken write (?i:'s|...) where any case matches, which also matches U+017F
 * (long s) after an apostrophe; nothing else differs. Each function tries the alternatives from left
 * to right, as the expression does. An invalid UTF-8 byte is one character of the class "other".
 */
#include "tokenizer/pre_tokenizer.h"

#include <string.h>

#include "tokenizer/unicode.h"

/* A unicode_class, or the end of the text. */
enum { CLASS_END = 4 };

typedef struct {
    const char *text;
    size_t num_bytes;
    bool numbers_end;     /* smollm: treat numbers as the end of the text */
    bool punctuation_end; /* default: treat its punctuation as the end of the text */
} scanner;

/* [\p{P}\$\+<=>\^~\|] at this position: its length, else 0. */
static size_t punctuation(const scanner *s, size_t position) {
    if (position >= s->num_bytes) return 0;
    uint32_t code_point;
    size_t length = utf8_decode(s->text + position, s->num_bytes - position, &code_point);
    const bool symbol = code_point > 0 && code_point < 128 && strchr("$+<=>^~|", (int)code_point);
    return symbol || unicode_kind_of(code_point) == KIND_PUNCTUATION ? length : 0;
}

/* The class of the character at this position and its length in bytes (0 at the end). */
static inline int class_at(const scanner *s, size_t position, size_t *length) {
    *length = 0;
    if (position >= s->num_bytes) return CLASS_END;
    unsigned char byte = (unsigned char)s->text[position];
    int class;
    size_t num_bytes = 1;
    if (byte < 0x80) {
        class = unicode_ascii[byte];
    } else {
        uint32_t code_point;
        num_bytes = utf8_decode(s->text + position, s->num_bytes - position, &code_point);
        class = (int)unicode_classify(code_point);
    }
    if (class == UNICODE_NUMBER && s->numbers_end) return CLASS_END;
    if (class == UNICODE_OTHER && s->punctuation_end && punctuation(s, position)) return CLASS_END;
    *length = num_bytes;
    return class;
}

/* The end of the run of characters of this class at position. */
static size_t run_end(const scanner *s, size_t position, int class) {
    size_t length;
    while (class_at(s, position, &length) == class) position += length;
    return position;
}

static bool is_newline(char c) { return c == '\r' || c == '\n'; }

static char lower_ascii(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c; }

/* The length of 's|'t|'re|'ve|'m|'ll|'d at this position, or 0. */
static size_t contraction_at(const scanner *s, size_t position, bool any_case) {
    const char *text = s->text + position;
    size_t left = s->num_bytes - position;
    if (left < 2 || text[0] != '\'') return 0;
    char first = any_case ? lower_ascii(text[1]) : text[1];
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if (left < 3) return 0;
    char second = any_case ? lower_ascii(text[2]) : text[2];
    bool matches =
        (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l');
    return matches ? 3 : 0;
}

static size_t contraction(const scanner *s, bool any_case) { return contraction_at(s, 0, any_case); }

/* \s+(?!\S)|\s+ at the start of the text: the last space of a run belongs to the word after it. */
static size_t spaces(const scanner *s) {
    size_t end = 0, last = 0, length;
    int class;
    while ((class = class_at(s, end, &length)) == UNICODE_SPACE) {
        last = end;
        end += length;
    }
    return class == CLASS_END || last == 0 ? end : last;
}

static size_t split_gpt2(const scanner *s) {
    size_t length = contraction(s, false);
    if (length > 0) return length;
    size_t start = s->text[0] == ' ' ? 1 : 0;
    int class = class_at(s, start, &length);
    if (class == UNICODE_SPACE || class == CLASS_END) return spaces(s);
    return run_end(s, start, class);
}

/* smollm: one number, else gpt-2 up to the next number. */
static size_t split_smollm(scanner *s) {
    size_t length;
    s->numbers_end = false;
    if (class_at(s, 0, &length) == UNICODE_NUMBER) return length;
    s->numbers_end = true;
    return split_gpt2(s);
}

/* \p{N}{1,max_digits} */
static size_t numbers(const scanner *s, int max_digits) {
    size_t end = 0, length;
    for (int i = 0; i < max_digits && class_at(s, end, &length) == UNICODE_NUMBER; i++) end += length;
    return end;
}

/* \s*[\r\n]+ : the end of the last newline in the run of spaces, or 0. */
static size_t line_ends(const scanner *s) {
    size_t end = 0, after_newline = 0, length;
    while (class_at(s, end, &length) == UNICODE_SPACE) {
        end += length;
        if (is_newline(s->text[end - 1])) after_newline = end;
    }
    return after_newline;
}

/* llama-bpe (max_digits 3) and qwen2 (max_digits 1) */
static size_t split_llama(const scanner *s, int max_digits) {
    size_t length = contraction(s, true);
    if (length > 0) return length;

    size_t first_length, next_length;
    int class = class_at(s, 0, &first_length);
    if (class == UNICODE_LETTER) return run_end(s, first_length, UNICODE_LETTER);
    if (class == UNICODE_NUMBER) return numbers(s, max_digits);
    int next = class_at(s, first_length, &next_length);
    if (next == UNICODE_LETTER && !is_newline(s->text[0])) return run_end(s, first_length, UNICODE_LETTER);

    size_t start = s->text[0] == ' ' ? 1 : 0;
    if (class_at(s, start, &length) == UNICODE_OTHER) {
        size_t end = run_end(s, start, UNICODE_OTHER);
        while (end < s->num_bytes && is_newline(s->text[end])) end++;
        return end;
    }
    length = line_ends(s);
    return length > 0 ? length : spaces(s);
}

/* The kind of the character at this position and its length (0 at the end). */
static unicode_kind kind_at(const scanner *s, size_t position, size_t *length) {
    uint32_t code_point = UNICODE_INVALID;
    *length = position < s->num_bytes ? utf8_decode(s->text + position, s->num_bytes - position, &code_point) : 0;
    return unicode_kind_of(code_point);
}

/* [\p{Ll}\p{Lm}\p{Lo}\p{M}]* : its end. */
static size_t lower_end(const scanner *s, size_t position) {
    size_t length;
    for (unicode_kind kind; kind = kind_at(s, position, &length), kind == KIND_LOWER || kind == KIND_BOTH;)
        position += length;
    return position;
}

/* [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]* : its end, and the end of the last character that counts as both
 * cases (0: none). */
static size_t upper_end(const scanner *s, size_t position, size_t *last_both) {
    size_t length;
    *last_both = 0;
    for (unicode_kind kind; kind = kind_at(s, position, &length), kind == KIND_UPPER || kind == KIND_BOTH;) {
        position += length;
        if (kind == KIND_BOTH) *last_both = position;
    }
    return position;
}

/* The two alternatives of words in gpt-4o and tekken, without prefix and contraction: the end of the
 * match at this position, or 0. The first one needs a lower character at its end: without one after
 * the upper characters, the expression goes back to the last that is both. */
static size_t cased_word(const scanner *s, size_t position, bool first) {
    size_t last_both;
    const size_t end = upper_end(s, position, &last_both), lower = lower_end(s, end);
    if (!first) return end > position ? lower : 0;
    return lower > end ? lower : last_both;
}

/* gpt-4o (max_digits 3, contractions) and tekken (max_digits 1) */
static size_t split_cased(const scanner *s, int max_digits, bool contractions) {
    size_t prefix, length;
    int class = class_at(s, 0, &prefix);
    if (class == UNICODE_NUMBER) return numbers(s, max_digits);
    if (class == UNICODE_LETTER || is_newline(s->text[0])) prefix = 0;
    for (int alternative = 0; alternative < 2; alternative++) {
        size_t end = prefix ? cased_word(s, prefix, alternative == 0) : 0;
        if (end == 0) end = cased_word(s, 0, alternative == 0);
        if (end > 0) return end + (contractions ? contraction_at(s, end, true) : 0);
    }
    size_t start = s->text[0] == ' ' ? 1 : 0;
    if (class_at(s, start, &length) == UNICODE_OTHER) {
        size_t end = run_end(s, start, UNICODE_OTHER);
        while (end < s->num_bytes && (is_newline(s->text[end]) || s->text[end] == '/')) end++;
        return end;
    }
    length = line_ends(s);
    return length > 0 ? length : spaces(s);
}

static bool is_digit(const scanner *s, size_t position) {
    return position < s->num_bytes && s->text[position] >= '0' && s->text[position] <= '9';
}

/* [0-9][0-9][0-9] in a run of numbers: three digits, or what precedes the first three. */
static size_t three_digits(const scanner *s) {
    size_t at = 0, length;
    while (class_at(s, at, &length) == UNICODE_NUMBER &&
           !(is_digit(s, at) && is_digit(s, at + 1) && is_digit(s, at + 2)))
        at += length;
    return at == 0 ? 3 : at;
}

static size_t split_default(scanner *s) {
    size_t end = 0, length;
    while ((length = punctuation(s, end)) > 0) end += length;
    if (end > 0) return end;
    s->punctuation_end = true;
    const size_t start = s->text[0] == ' ' ? 1 : 0;
    if (class_at(s, start, &length) != UNICODE_NUMBER) return split_gpt2(s);
    return start ? start : three_digits(s); /* a space before numbers is apart */
}

static const struct {
    const char *name;
    pre_tokenizer kind;
} NAMES[] = {
#define ROW(name, kind) {name, PRE_TOKENIZER_##kind},
    PRE_TOKENIZER_NAMES(ROW)
#undef ROW
};
enum { NUM_NAMES = sizeof NAMES / sizeof NAMES[0] };

bool pre_tokenizer_find(byte_slice name, pre_tokenizer *kind) {
    for (size_t i = 0; i < NUM_NAMES; i++) {
        if (name.num_bytes == strlen(NAMES[i].name) && memcmp(name.bytes, NAMES[i].name, name.num_bytes) == 0) {
            *kind = NAMES[i].kind;
            return true;
        }
    }
    return false;
}

bool pre_tokenizer_ignores_merges(pre_tokenizer kind) {
    return kind == PRE_TOKENIZER_LLAMA_BPE || kind == PRE_TOKENIZER_TEKKEN;
}

bool pre_tokenizer_adds_bos(pre_tokenizer kind) {
    return kind == PRE_TOKENIZER_LLAMA_BPE || kind == PRE_TOKENIZER_TEKKEN;
}

bool llamita_pre_tokenizer(size_t index, llamita_pre_tokenizer_info *info) {
    if (index >= NUM_NAMES) return false;
    const pre_tokenizer kind = NAMES[index].kind;
    size_t written = 0;
    while (NAMES[written].kind != kind) written++;
    *info = (llamita_pre_tokenizer_info){NAMES[index].name, NAMES[written].name, pre_tokenizer_ignores_merges(kind),
                                         pre_tokenizer_adds_bos(kind)};
    return true;
}

size_t pre_tokenizer_next(pre_tokenizer kind, const char *text, size_t num_bytes) {
    scanner s = {.text = text, .num_bytes = num_bytes};
    switch (kind) {
    case PRE_TOKENIZER_LLAMA_BPE:
    case PRE_TOKENIZER_DBRX: return split_llama(&s, 3);
    case PRE_TOKENIZER_GPT4O: return split_cased(&s, 3, true);
    case PRE_TOKENIZER_TEKKEN: return split_cased(&s, 1, false);
    case PRE_TOKENIZER_DEFAULT: return split_default(&s);
    case PRE_TOKENIZER_QWEN2: return split_llama(&s, 1);
    case PRE_TOKENIZER_SMOLLM: return split_smollm(&s);
    case PRE_TOKENIZER_GPT2: break;
    }
    return split_gpt2(&s);
}
