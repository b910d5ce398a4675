/* host.c: files and the clock of the library in WebAssembly: the host puts files into memory, by
 * name, before it opens them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "platform/platform.h"
#include "wasm/library.h"

typedef struct {
    char *name;
    void *bytes;
    size_t num_bytes;
} host_file;

#define MAX_HOST_FILES 64
static host_file files[MAX_HOST_FILES];
static size_t num_files;

bool host_add_file(char *name, void *bytes, size_t num_bytes) {
    if (num_files == MAX_HOST_FILES) return false;
    files[num_files++] = (host_file){name, bytes, num_bytes};
    return true;
}

void host_remove_files(void) {
    for (size_t i = 0; i < num_files; i++) {
        free(files[i].name);
        free(files[i].bytes);
    }
    num_files = 0;
}

bool platform_file_open(const char *path, bool whole, platform_file *file, char *reason) {
    (void)whole;
    for (size_t i = 0; i < num_files; i++) {
        if (strcmp(files[i].name, path) != 0) continue;
        *file = (platform_file){
            .bytes = files[i].bytes, .num_bytes = files[i].num_bytes, .num_private_bytes = files[i].num_bytes};
        return true;
    }
    snprintf(reason, PLATFORM_REASON_BYTES, "expected a file that was passed to load, found none of this name");
    return false;
}

void platform_file_close(platform_file *file) { *file = (platform_file){0}; }

bool platform_file_keep(platform_file *file, size_t num_bytes) { return num_bytes <= file->num_private_bytes; }

bool platform_file_read(const platform_file *file, size_t offset, void *to, size_t num_bytes) {
    memcpy(to, (const char *)file->bytes + offset, num_bytes);
    return true;
}

/* The page cannot write files, and exports no function that would. */
bool platform_new_file_open(const char *path, platform_new_file *file, char *reason) {
    (void)path, (void)file;
    snprintf(reason, PLATFORM_REASON_BYTES, "files cannot be written here");
    return false;
}
bool platform_new_file_write(platform_new_file *file, const void *bytes, size_t num_bytes, char *reason) {
    (void)file, (void)bytes, (void)num_bytes, (void)reason;
    return false;
}
bool platform_new_file_close(platform_new_file *file, bool complete, char *reason) {
    (void)file, (void)complete, (void)reason;
    return false;
}

__attribute__((import_module("llamita"), import_name("seconds"))) double host_seconds(void);

double platform_seconds(void) { return host_seconds(); }
