/* file.c: opens a file that the caller named. */
#include "formats/file.h"

#include <string.h>

#include "runtime/error.h"

/* The end of a program with a model inside, as src/llamita/convert/program.py writes it. */
#define TRAILER_MAGIC "llamita-program\n"
enum { MAGIC_BYTES = 16, TRAILER_BYTES = 32 };

static uint64_t number_at(const unsigned char *bytes) {
    uint64_t number = 0;
    for (int i = 7; i >= 0; i--) number = number << 8 | bytes[i];
    return number;
}

/* If the file is a program with a model inside, narrows it to the model. False: its numbers are wrong. */
static bool find_model_inside(platform_file *file) {
    unsigned char end[TRAILER_BYTES];
    if (file->num_bytes < TRAILER_BYTES || memcmp(file->bytes, "GGUF", 4) == 0) return true;
    const size_t most = file->num_bytes - TRAILER_BYTES;
    if (!platform_file_read(file, most, end, TRAILER_BYTES) || memcmp(end, TRAILER_MAGIC, MAGIC_BYTES) != 0)
        return true;
    const uint64_t offset = number_at(end + MAGIC_BYTES), num_bytes = number_at(end + MAGIC_BYTES + 8);
    if (num_bytes == 0 || offset > most || num_bytes > most - offset) return false; /* a signature may follow it */
    platform_file_narrow(file, (size_t)offset, (size_t)num_bytes);
    return platform_file_keep(file, 1);
}

llamita_status file_open(const char *what, const char *path, bool whole, platform_file *file, llamita_error *error) {
    char reason[PLATFORM_REASON_BYTES];
    if (!platform_file_open(path, whole, file, reason))
        return error_set(error, LLAMITA_ERROR_IO, "cannot open %s %s: %s", what, error_path(path), reason);
    if (file->num_bytes > 0 && find_model_inside(file)) return LLAMITA_OK;
    const char *found = file->num_bytes > 0 ? "the program around the model is damaged" : "the file is empty";
    platform_file_close(file);
    return error_set(error, LLAMITA_ERROR_FORMAT, "cannot open %s %s: %s", what, error_path(path), found);
}
