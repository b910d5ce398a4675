/* unicode.c: decodes UTF-8 and classifies code points for the pre-tokenizers. */
#include "tokenizer/unicode.h"

#include "llamita.h"

unicode_class unicode_classify(uint32_t code_point) {
    if (code_point < 128) return (unicode_class)unicode_ascii[code_point];
    if (code_point > 0x10FFFF) return UNICODE_OTHER;
    const uint32_t page = code_point >> UNICODE_PAGE_BITS;
    /* The last run that starts at or before the code point is in [low, high). */
    size_t low = unicode_pages[UNICODE_NUM_PAGES], high = unicode_num_runs;
    if (page < UNICODE_NUM_PAGES) {
        low = unicode_pages[page];
        high = (size_t)unicode_pages[page + 1] + 1;
    }
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (unicode_runs[middle] >> 2 <= code_point) low = middle;
        else high = middle;
    }
    return (unicode_class)(unicode_runs[low] & 3);
}

bool unicode_is_han(uint32_t code_point) {
    if (code_point < 0x2E80) return false;
    return code_point <= 0x2FD5 || code_point == 0x3005 || code_point == 0x3007 ||
           (code_point >= 0x3021 && code_point <= 0x3029) || (code_point >= 0x3038 && code_point <= 0x303B) ||
           (code_point >= 0x3400 && code_point <= 0x4DBF) || (code_point >= 0x4E00 && code_point <= 0x9FFF) ||
           (code_point >= 0xF900 && code_point <= 0xFAFF) || (code_point >= 0x16FE2 && code_point <= 0x16FF6) ||
           (code_point >= 0x20000 && code_point <= 0x3FFFF);
}

unicode_kind unicode_kind_of(uint32_t code_point) {
    if (code_point > 0x10FFFF) return KIND_OTHER;
    /* The last run that starts at or before the code point is in [low, high). */
    size_t low = 0, high = unicode_num_kind_runs;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (unicode_kind_runs[middle] >> 3 <= code_point) low = middle;
        else high = middle;
    }
    return (unicode_kind)(unicode_kind_runs[low] & 7);
}

/* The length of a character that starts with this byte (0: none does) and the range of its second
 * byte. */
static size_t lead_byte(unsigned char lead, unsigned char *second_low, unsigned char *second_high) {
    *second_low = 0x80;
    *second_high = 0xBF;
    if (lead < 0x80) return 1;
    if (lead < 0xC2) return 0;
    if (lead < 0xE0) return 2;
    if (lead < 0xF0) {
        if (lead == 0xE0) *second_low = 0xA0;  /* else overlong */
        if (lead == 0xED) *second_high = 0x9F; /* else a surrogate */
        return 3;
    }
    if (lead > 0xF4) return 0;
    if (lead == 0xF0) *second_low = 0x90;
    if (lead == 0xF4) *second_high = 0x8F; /* else above U+10FFFF */
    return 4;
}

/* The full length of the first character if text[num_bytes] starts with a well-formed one, or with
 * an incomplete one that the end of the text cuts off; else 0. */
static size_t character_begins(const char *text, size_t num_bytes) {
    unsigned char low, high;
    size_t length = lead_byte((unsigned char)text[0], &low, &high);
    for (size_t i = 1; i < length && i < num_bytes; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte < low || byte > high) return 0;
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

size_t utf8_decode_rare(const char *text, size_t num_bytes, uint32_t *code_point) {
    const unsigned char *bytes = (const unsigned char *)text;
    size_t length = character_begins(text, num_bytes);
    if (length == 0 || length > num_bytes) {
        *code_point = UNICODE_INVALID;
        return 1;
    }
    static const unsigned char lead_bits[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t value = bytes[0] & lead_bits[length];
    for (size_t i = 1; i < length; i++) value = value << 6 | (bytes[i] & 0x3F);
    *code_point = value;
    return length;
}

size_t llamita_utf8_complete(const char *bytes, size_t num_bytes) {
    for (size_t tail = 1; tail <= 3 && tail <= num_bytes; tail++) {
        const char *start = bytes + num_bytes - tail;
        if (((unsigned char)*start & 0xC0) == 0x80) continue; /* not a lead byte */
        return character_begins(start, tail) > tail ? num_bytes - tail : num_bytes;
    }
    return num_bytes;
}
