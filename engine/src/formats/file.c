/* file.c: opens a file that the caller named. */
#include "formats/file.h"

#include "runtime/error.h"

llamita_status file_open(const char *what, const char *path, bool whole, platform_file *file, llamita_error *error) {
    char reason[PLATFORM_REASON_BYTES];
    if (!platform_file_open(path, whole, file, reason))
        return error_set(error, LLAMITA_ERROR_IO, "cannot open %s %s: %s", what, error_path(path), reason);
    if (file->num_bytes > 0) return LLAMITA_OK;
    platform_file_close(file);
    return error_set(error, LLAMITA_ERROR_FORMAT, "cannot open %s %s: the file is empty", what, error_path(path));
}
