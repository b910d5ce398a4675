/* error.c: formats error messages as one clean line of UTF-8. */
#include "runtime/error.h"

#include <stdio.h>
#include <string.h>

enum { PATH_BYTES_SHOWN = 160 };

/* Length of the well-formed, printable UTF-8 character at `bytes` (Unicode 15.0, table 3-7), or 0
 * if there is none. */
static size_t printable_length(const unsigned char *bytes, size_t num_bytes) {
    unsigned char lead = bytes[0];
    if (lead < 0x80) return lead >= 0x20 && lead != 0x7F;
    size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || length > num_bytes) return 0;
    /* 0xA0 after 0xC2 excludes the C1 controls. */
    unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : lead == 0xC2 ? 0xA0 : 0x80;
    unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (bytes[1] < low || bytes[1] > high) return 0;
    for (size_t i = 2; i < length; i++)
        if (bytes[i] < 0x80 || bytes[i] > 0xBF) return 0;
    /* U+2028 and U+2029 */
    bool separator = lead == 0xE2 && bytes[1] == 0x80 && (bytes[2] == 0xA8 || bytes[2] == 0xA9);
    return separator ? 0 : length;
}

void error_clean_line(char *line, size_t capacity, const char *bytes, size_t num_bytes) {
    size_t written = 0;
    for (size_t i = 0; i < num_bytes;) {
        size_t length = printable_length((const unsigned char *)bytes + i, num_bytes - i);
        if (written + (length ? length : 1) >= capacity) break;
        if (length) memcpy(line + written, bytes + i, length);
        else line[written] = '?';
        written += length ? length : 1;
        i += length ? length : 1;
    }
    line[written] = '\0';
}

llamita_status error_set_list(llamita_error *error, llamita_status status, const char *format, va_list arguments) {
    if (!error) return status;
    char message[2 * LLAMITA_MESSAGE_BYTES]; /* error_clean_line cuts it at a character boundary */
    int length = vsnprintf(message, sizeof message, format, arguments);
    if (length < 0) message[0] = '\0';
    error->status = status;
    error_clean_line(error->message, sizeof error->message, message, strlen(message));
    return status;
}

llamita_status error_set(llamita_error *error, llamita_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    error_set_list(error, status, format, arguments);
    va_end(arguments);
    return status;
}

const char *error_path(const char *path) {
    size_t length = strlen(path);
    if (length <= PATH_BYTES_SHOWN) return path;
    const char *tail = path + length - PATH_BYTES_SHOWN;
    while (((unsigned char)*tail & 0xC0) == 0x80) tail++;
    return tail;
}
