/* wasm.c: the platform layer in WebAssembly (WASI): files are read whole, and there is one
 * thread. */
#if defined(__wasm__)
#include "platform/platform.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* ------------------------------------------------------------------ files */

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

bool platform_file_read(const platform_file *file, size_t offset, void *to, size_t num_bytes) {
    memcpy(to, (const char *)file->bytes + offset, num_bytes);
    return true;
}

/* ------------------------------------------------------------------ memory */

void *platform_aligned_alloc(size_t alignment, size_t num_bytes) { return aligned_alloc(alignment, num_bytes); }
void platform_aligned_free(void *memory) { free(memory); }

void *platform_pages_alloc(size_t num_bytes) {
    enum { CACHE_LINE = 64 };
    if (num_bytes > SIZE_MAX / 2) return NULL;
    const size_t rounded = (num_bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    void *memory = aligned_alloc(CACHE_LINE, rounded);
    if (memory) memset(memory, 0, rounded);
    return memory;
}

void platform_pages_free(void *memory, size_t num_bytes) {
    (void)num_bytes;
    free(memory);
}
void platform_pages_protect(void *memory, size_t num_bytes) { (void)memory, (void)num_bytes; }

/* ------------------------------------------------------------------ threads */

bool platform_thread_start(platform_thread *thread, platform_thread_function *function, void *argument) {
    (void)thread, (void)function, (void)argument;
    return false;
}
void platform_thread_join(platform_thread *thread) { (void)thread; }

void platform_mutex_init(platform_mutex *mutex) { (void)mutex; }
void platform_mutex_destroy(platform_mutex *mutex) { (void)mutex; }
void platform_mutex_lock(platform_mutex *mutex) { (void)mutex; }
void platform_mutex_unlock(platform_mutex *mutex) { (void)mutex; }

void platform_condition_init(platform_condition *condition) { (void)condition; }
void platform_condition_destroy(platform_condition *condition) { (void)condition; }
void platform_condition_wait(platform_condition *condition, platform_mutex *mutex) { (void)condition, (void)mutex; }
void platform_condition_wake_all(platform_condition *condition) { (void)condition; }

unsigned platform_fork_generation(void) { return 0; }

/* ------------------------------------------------------------------ clock and processors */

double platform_seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int platform_num_processors(void) { return 1; }
int platform_current_processor(void) { return -1; }
bool platform_leave_processors(const int *taken, int num_taken) {
    (void)taken, (void)num_taken;
    return false;
}
bool platform_has_arm_dot_product(void) { return false; }
#else
typedef int not_this_platform; /* C forbids an empty file */
#endif
