/* mmap_file.c: maps a regular file into memory, read-only and private. */
#include "formats/mmap_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/error.h"

static llamita_status file_error(const char *what, const char *path, const char *reason, llamita_error *error) {
    return error_set(error, LLAMITA_ERROR_IO, "cannot open %s %s: %s", what, error_path(path), reason);
}

/* O_NONBLOCK: opening a pipe without a writer would block forever. */
llamita_status mmap_file_open(const char *what, const char *path, mmap_file *file, llamita_error *error) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat info;
    if (descriptor < 0) return file_error(what, path, strerror(errno), error);
    llamita_status status = LLAMITA_OK;
    if (fstat(descriptor, &info) != 0) {
        status = file_error(what, path, strerror(errno), error);
    } else if (!S_ISREG(info.st_mode)) {
        status = file_error(what, path,
                            S_ISDIR(info.st_mode) ? "expected a file, found a directory"
                                                  : "expected a regular file, found a device or a pipe",
                            error);
    } else if (info.st_size == 0) {
        error_set(error, status = LLAMITA_ERROR_FORMAT, "cannot open %s %s: the file is empty", what, error_path(path));
    } else if ((uint64_t)info.st_size > SIZE_MAX) {
        status = file_error(what, path, "the file is larger than the address space", error);
    } else {
        file->num_bytes = (size_t)info.st_size;
        file->bytes = mmap(NULL, file->num_bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (file->bytes == MAP_FAILED) status = file_error(what, path, strerror(errno), error);
    }
    close(descriptor);
    return status;
}
