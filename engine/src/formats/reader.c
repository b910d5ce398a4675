/* reader.c: reads little-endian numbers and byte ranges from a mapped file with bounds checks. */
#include "formats/reader.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runtime/error.h"

llamita_status reader_error(const reader *from, const char *format, ...) {
    char reason[LLAMITA_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    return error_set(from->error, LLAMITA_ERROR_FORMAT, "cannot open %s %s: %s", from->what, error_path(from->path),
                     length < 0 ? "the file is damaged" : reason);
}

llamita_status reader_memory_error(const reader *from, uint64_t num_bytes) {
    return error_set(from->error, LLAMITA_ERROR_MEMORY,
                     "cannot open %s %s: out of memory: cannot allocate %" PRIu64
                     " bytes; free some or use a smaller file",
                     from->what, error_path(from->path), num_bytes);
}

uint32_t read_u32(const unsigned char *bytes) {
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

uint64_t read_u64(const unsigned char *bytes) {
    return (uint64_t)read_u32(bytes) | (uint64_t)read_u32(bytes + 4) << 32;
}

float read_f32(const unsigned char *bytes) {
    uint32_t bits = read_u32(bytes);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

double read_f64(const unsigned char *bytes) {
    uint64_t bits = read_u64(bytes);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

bool reader_bytes(reader *from, uint64_t num_bytes, const unsigned char **bytes) {
    if (num_bytes > from->num_bytes - from->position) return false;
    const size_t end = from->position + (size_t)num_bytes;
    if (from->file && end > from->file->num_private_bytes && !platform_file_keep(from->file, end)) return false;
    *bytes = from->bytes + from->position;
    from->position = end;
    return true;
}

bool reader_u32(reader *from, uint32_t *value) {
    const unsigned char *bytes;
    if (!reader_bytes(from, 4, &bytes)) return false;
    *value = read_u32(bytes);
    return true;
}

bool reader_u64(reader *from, uint64_t *value) {
    const unsigned char *bytes;
    if (!reader_bytes(from, 8, &bytes)) return false;
    *value = read_u64(bytes);
    return true;
}

uint64_t saturating_add(uint64_t a, uint64_t b) { return a > UINT64_MAX - b ? UINT64_MAX : a + b; }

uint64_t saturating_multiply(uint64_t a, uint64_t b) { return b != 0 && a > UINT64_MAX / b ? UINT64_MAX : a * b; }
