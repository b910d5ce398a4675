/* unicode.h: UTF-8 bytes to code points, and code points to the classes that text is split by. */
#ifndef LLAMITA_UNICODE_H
#define LLAMITA_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the pre-tokenizers' regular expressions call \p{L}, \p{N} and \s; no code point is two of them. */
typedef enum { UNICODE_OTHER = 0, UNICODE_LETTER = 1, UNICODE_NUMBER = 2, UNICODE_SPACE = 3 } unicode_class;

#define UNICODE_INVALID 0xFFFFFFFFu /* in the place of a byte that begins no well-formed character */

/* unicode_tables.c */
extern const char unicode_version[];
extern const uint32_t unicode_runs[];
extern const size_t unicode_num_runs;
extern const uint8_t unicode_ascii[128];

/* The class of a code point; UNICODE_INVALID is UNICODE_OTHER. */
unicode_class unicode_classify(uint32_t code_point);

/* The number of bytes of the first character of text[num_bytes], num_bytes >= 1, and its code point. Well-formed is
 * what Unicode's table 3-7 says (no surrogates, no overlong forms); a byte that begins no such character is taken
 * alone, as UNICODE_INVALID. */
size_t utf8_decode(const char *text, size_t num_bytes, uint32_t *code_point);

/* As above, for callers that need no code point. */
static inline size_t utf8_length(const char *text, size_t num_bytes) {
    uint32_t code_point;
    if ((unsigned char)text[0] < 0x80) return 1;
    return utf8_decode(text, num_bytes, &code_point);
}

#endif
