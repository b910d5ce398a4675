/* wasi.c: files and the clock of WASI, for programs in WebAssembly: files are read whole. */
#if defined(__wasm__)
#include "platform/platform.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static bool read_all(FILE *stream, platform_file *file) {
    return fread(file->bytes, 1, file->num_bytes, stream) == file->num_bytes;
}

bool platform_file_open(const char *path, bool whole, platform_file *file, char *reason) {
    (void)whole;
    struct stat info;
    *file = (platform_file){0};
    FILE *stream = fopen(path, "rb");
    if (!stream || fstat(fileno(stream), &info) != 0) {
        snprintf(reason, PLATFORM_REASON_BYTES, "%s", strerror(errno));
        if (stream) fclose(stream);
        return false;
    }
    const char *failed = NULL;
    if (S_ISDIR(info.st_mode)) failed = "expected a file, found a directory";
    else if (!S_ISREG(info.st_mode)) failed = "expected a regular file, found a device or a pipe";
    else if ((uint64_t)info.st_size > SIZE_MAX / 2) failed = "the file is larger than the address space";
    else if (info.st_size > 0) {
        file->num_bytes = file->num_private_bytes = (size_t)info.st_size;
        file->bytes = malloc(file->num_bytes);
        if (!file->bytes) failed = "out of memory";
        else if (!read_all(stream, file)) failed = "the file was cut while it was read";
    }
    fclose(stream);
    if (!failed) return true;
    snprintf(reason, PLATFORM_REASON_BYTES, "%s", failed);
    platform_file_close(file);
    return false;
}

void platform_file_close(platform_file *file) {
    if (file->bytes) free((char *)file->bytes - file->before);
    *file = (platform_file){0};
}

bool platform_file_keep(platform_file *file, size_t num_bytes) { return num_bytes <= file->num_private_bytes; }

bool platform_file_read(const platform_file *file, size_t offset, void *to, size_t num_bytes) {
    memcpy(to, (const char *)file->bytes + offset, num_bytes);
    return true;
}

/* WASI programs have one thread and no process id: ".partial" is name enough. */
bool platform_new_file_open(const char *path, platform_new_file *file, char *reason) {
    static const char suffix[] = ".partial";
    const size_t length = strlen(path);
    FILE *stream = NULL;
    file->path = malloc(length + 1);
    file->partial_path = malloc(length + sizeof suffix);
    if (file->path && file->partial_path) {
        memcpy(file->path, path, length + 1);
        memcpy(file->partial_path, path, length);
        memcpy(file->partial_path + length, suffix, sizeof suffix);
        stream = fopen(file->partial_path, "wb");
    }
    file->handle = (intptr_t)stream;
    if (stream) return true;
    snprintf(reason, PLATFORM_REASON_BYTES, "%s", file->path && file->partial_path ? strerror(errno) : "out of memory");
    free(file->path);
    free(file->partial_path);
    return false;
}

bool platform_new_file_write(platform_new_file *file, const void *bytes, size_t num_bytes, char *reason) {
    if (fwrite(bytes, 1, num_bytes, (FILE *)file->handle) == num_bytes) return true;
    snprintf(reason, PLATFORM_REASON_BYTES, "%s", strerror(errno));
    return false;
}

bool platform_new_file_close(platform_new_file *file, bool complete, char *reason) {
    bool placed = fclose((FILE *)file->handle) == 0 && complete;
    placed = placed && rename(file->partial_path, file->path) == 0;
    if (complete && !placed) snprintf(reason, PLATFORM_REASON_BYTES, "%s", strerror(errno));
    if (!placed) remove(file->partial_path);
    free(file->path);
    free(file->partial_path);
    return placed || !complete;
}

double platform_seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

#else
typedef int not_this_platform; /* C forbids an empty file */
#endif
