/* pre_tokenizer.c: splits text into the pre-tokens of byte-level BPE: four regular expressions as
 * scanners.
 *
 *   gpt-2      's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *   smollm     every \p{N} alone, and gpt-2 on the text between them
 *   llama-bpe  (?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+
 *              |\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *   qwen2      the same with \p{N} for \p{N}{1,3}
 *
 * Names and expressions are llama.cpp's. Hugging Face and tiktoken write (?i:'s|...) in the last
 * two, which also matches U+017F (long s) after an apostrophe; nothing else differs. Each function
 * tries the alternatives from left to right, as the expression does. An invalid UTF-8 byte is one
 * character of the class "other".
 */
#include "tokenizer/pre_tokenizer.h"

#include "tokenizer/unicode.h"

/* A unicode_class, or the end of the text. */
enum { CLASS_END = 4 };

typedef struct {
    const char *text;
    size_t num_bytes;
    bool numbers_end; /* smollm: treat numbers as the end of the text */
} scanner;

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

/* The length of 's|'t|'re|'ve|'m|'ll|'d at the start of the text, or 0. */
static size_t contraction(const scanner *s, bool any_case) {
    const char *text = s->text;
    size_t left = s->num_bytes;
    if (left < 2 || text[0] != '\'') return 0;
    char first = any_case ? lower_ascii(text[1]) : text[1];
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if (left < 3) return 0;
    char second = any_case ? lower_ascii(text[2]) : text[2];
    bool matches =
        (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l');
    return matches ? 3 : 0;
}

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

size_t pre_tokenizer_next(pre_tokenizer kind, const char *text, size_t num_bytes) {
    scanner s = {text, num_bytes, false};
    switch (kind) {
    case PRE_TOKENIZER_LLAMA_BPE: return split_llama(&s, 3);
    case PRE_TOKENIZER_QWEN2: return split_llama(&s, 1);
    case PRE_TOKENIZER_SMOLLM: return split_smollm(&s);
    case PRE_TOKENIZER_GPT2: break;
    }
    return split_gpt2(&s);
}
