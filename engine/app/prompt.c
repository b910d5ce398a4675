/* prompt.c: the prompt, from the command line, a file, or what is piped in. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "system.h"

enum { MAX_PROMPT_BYTES = 64 << 20, CHUNK_BYTES = 1 << 16, WAIT_MS = 1000 };

size_t utf8_bytes(const char *bytes, size_t num_bytes) {
    const unsigned char *text = (const unsigned char *)bytes;
    size_t at = 0;
    while (at < num_bytes) {
        const unsigned lead = text[at];
        const size_t more = lead < 0x80 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
        /* Unicode's table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF. */
        unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        if ((lead >= 0x80 && lead < 0xc2) || lead > 0xf4 || more >= num_bytes - at) return at;
        for (size_t i = 1; i <= more; i++, low = 0x80, high = 0xbf)
            if (text[at + i] < low || text[at + i] > high) return at;
        at += more + 1;
    }
    return num_bytes;
}

/* Reads all of the file, without a byte order mark and without one line end at the end, which
 * editors and echo add. */
static char *read_all(FILE *file, const char *name, size_t *num_bytes) {
    char *bytes = NULL;
    size_t size = 0, capacity = 0, count = 1;
    while (count > 0) {
        if (capacity - size < CHUNK_BYTES) {
            capacity = 2 * capacity + CHUNK_BYTES;
            bytes = realloc(bytes, capacity);
            if (!bytes) fail("out of memory: %zu bytes for the prompt", capacity);
        }
        count = fread(bytes + size, 1, CHUNK_BYTES, file);
        size += count;
        if (size > MAX_PROMPT_BYTES)
            fail("%s: expected a prompt of at most %d bytes, found more", name, MAX_PROMPT_BYTES);
    }
    if (ferror(file)) fail("%s: %s", name, strerror(errno));
    if (size >= 3 && memcmp(bytes, "\xef\xbb\xbf", 3) == 0) memmove(bytes, bytes + 3, size -= 3);
    if (size > 0 && bytes[size - 1] == '\n') size--;
    if (size > 0 && bytes[size - 1] == '\r') size--;
    const size_t valid = utf8_bytes(bytes, size);
    if (valid < size) fail(NOT_UTF8, name, (unsigned char)bytes[valid], valid);
    *num_bytes = size;
    return bytes;
}

static char *read_stdin(size_t *num_bytes) {
    /* Programs that start this one may leave it a pipe that nobody writes to. */
    if (!system_wait_for_stdin(WAIT_MS)) fputs("waiting for a prompt on stdin (-i '' starts without one)\n", stderr);
    return read_all(stdin, "the prompt on stdin", num_bytes);
}

static char *read_file(const char *path, size_t *num_bytes) {
    FILE *file = system_open_file(path);
    if (!file) fail("--prompt-file: %s: %s", path, strerror(errno));
    char *bytes = read_all(file, path, num_bytes);
    fclose(file);
    return bytes;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    const char lower = (char)(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

/* Replaces escapes in place; returns the new number of bytes. */
static size_t unescape(char *bytes, size_t num_bytes) {
    static const char letters[] = "nrt'\"\\", values[] = "\n\r\t'\"\\";
    size_t written = 0, at = 0;
    while (at < num_bytes) {
        const char next = bytes[at] == '\\' && at + 1 < num_bytes ? bytes[at + 1] : 0;
        const char *found = next ? strchr(letters, next) : NULL;
        if (found) {
            bytes[written++] = values[found - letters];
            at += 2;
        } else if (next == 'x' && at + 2 < num_bytes && hex_digit(bytes[at + 2]) >= 0) {
            int value = 0, digits = 0;
            for (; digits < 2 && at + 2 < num_bytes && hex_digit(bytes[at + 2]) >= 0; digits++, at++)
                value = 16 * value + hex_digit(bytes[at + 2]);
            bytes[written++] = (char)value;
            at += 2;
        } else {
            bytes[written++] = bytes[at++];
        }
    }
    return written;
}

char *read_prompt(const options *o, bool may_be_piped, size_t *num_bytes) {
    const char *source = o->prompt_file ? o->prompt_file : o->prompt;
    char *bytes;
    if (source ? strcmp(source, "-") == 0 : may_be_piped && system_stdin_is_piped()) {
        bytes = read_stdin(num_bytes);
    } else if (o->prompt_file) {
        bytes = read_file(source, num_bytes);
    } else {
        *num_bytes = source ? strlen(source) : 0;
        bytes = malloc(*num_bytes + 1);
        if (!bytes) fail("out of memory: %zu bytes for the prompt", *num_bytes);
        if (source) memcpy(bytes, source, *num_bytes);
    }
    if (o->escape) *num_bytes = unescape(bytes, *num_bytes);
    return bytes;
}
