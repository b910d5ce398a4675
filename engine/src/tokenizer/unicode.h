/* unicode.h: decodes UTF-8 and classifies code points for the pre-tokenizers. */
#ifndef LLAMITA_UNICODE_H
#define LLAMITA_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* \p{L}, \p{N} and \s of the pre-tokenizers' regular expressions, which are disjoint. */
typedef enum { UNICODE_OTHER = 0, UNICODE_LETTER = 1, UNICODE_NUMBER = 2, UNICODE_SPACE = 3 } unicode_class;

/* What cased expressions and \p{P} tell apart: Lu and Lt; Ll; Lm, Lo and M, which count as both;
 * P. */
typedef enum { KIND_OTHER, KIND_UPPER, KIND_LOWER, KIND_BOTH, KIND_PUNCTUATION } unicode_kind;

/* Whether a byte is a printable character of Latin-1: one that stands for itself in GPT-2's
 * alphabet. */
static inline bool unicode_is_printable_latin1(int byte) {
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

#define UNICODE_INVALID 0xFFFFFFFFu /* the code point of an invalid byte */

/* unicode_tables.c */
extern const char unicode_version[];
extern const uint32_t unicode_runs[];
extern const size_t unicode_num_runs;
extern const uint8_t unicode_ascii[128];

extern const uint32_t unicode_kind_runs[];
extern const size_t unicode_num_kind_runs;

/* unicode_pages[n]: the run of the first code point of page n (1 << UNICODE_PAGE_BITS code points).
 * Code points beyond the last page are in its run or a later one. */
enum { UNICODE_PAGE_BITS = 7, UNICODE_NUM_PAGES = 1024 };
extern const uint16_t unicode_pages[UNICODE_NUM_PAGES + 1];

/* The class of a code point; UNICODE_INVALID is UNICODE_OTHER. */
unicode_class unicode_classify(uint32_t code_point);

/* True for Chinese characters, also those of Japanese and Korean texts: Unicode's script Han. */
bool unicode_is_han(uint32_t code_point);

/* The kind of a code point; UNICODE_INVALID is KIND_OTHER. */
unicode_kind unicode_kind_of(uint32_t code_point);

/* The slow path of utf8_decode: invalid bytes and rare characters. */
size_t utf8_decode_rare(const char *text, size_t num_bytes, uint32_t *code_point);

/* Decodes the first character of text[num_bytes], num_bytes >= 1; returns its length in bytes.
 * Well-formed UTF-8 is defined by Unicode's table 3-7 (no surrogates, no overlong forms). A byte
 * that starts no such character is UNICODE_INVALID, of length 1. */
static inline size_t utf8_decode(const char *text, size_t num_bytes, uint32_t *code_point) {
    const unsigned char *bytes = (const unsigned char *)text;
    const unsigned char lead = bytes[0];
    if (lead < 0x80) {
        *code_point = lead;
        return 1;
    }
    if (num_bytes >= 3 && lead > 0xE0 && lead < 0xF0 && lead != 0xED && (bytes[1] & 0xC0) == 0x80 &&
        (bytes[2] & 0xC0) == 0x80) {
        *code_point = (lead & 0x0Fu) << 12 | (bytes[1] & 0x3Fu) << 6 | (bytes[2] & 0x3Fu);
        return 3;
    }
    if (num_bytes >= 2 && lead >= 0xC2 && lead < 0xE0 && (bytes[1] & 0xC0) == 0x80) {
        *code_point = (lead & 0x1Fu) << 6 | (bytes[1] & 0x3Fu);
        return 2;
    }
    return utf8_decode_rare(text, num_bytes, code_point);
}

/* As above, without the code point. */
static inline size_t utf8_length(const char *text, size_t num_bytes) {
    uint32_t code_point;
    return utf8_decode(text, num_bytes, &code_point);
}

#endif
