/* platform.h: all that the engine asks of the operating system and the processor. Each system has
 * one file: posix.c (Linux, macOS), windows.c; WebAssembly has wasm.c, or wasi.c with files. No other
 * file of the engine includes a header of a system. */
#ifndef LLAMITA_PLATFORM_H
#define LLAMITA_PLATFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if !defined(_WIN32) && !defined(__wasm__)
#include <pthread.h>
#endif

/* ------------------------------------------------------------------ files */

/* A regular file, open for reading. Another process may cut or overwrite it meanwhile: touching a
 * mapped page that is no longer in the file kills a POSIX process. So the first num_private_bytes
 * of `bytes` are a copy in memory, and the rest must be made one (platform_file_keep), or read with
 * platform_file_read. Windows lets nobody write to a file that is open here. */
typedef struct {
    void *bytes; /* the whole contents, read-only; NULL if the file is empty */
    size_t num_bytes, num_private_bytes;
    intptr_t handle;
    size_t before, after; /* bytes of the file around these, see platform_file_narrow */
} platform_file;

#define PLATFORM_REASON_BYTES 160

/* path: UTF-8. whole: copy all of it. On failure returns false and writes why to reason[PLATFORM_REASON_BYTES]. */
bool platform_file_open(const char *path, bool whole, platform_file *file, char *reason);
void platform_file_close(platform_file *file);

/* From now on the contents are only this part of them. */
static inline void platform_file_narrow(platform_file *file, size_t offset, size_t num_bytes) {
    file->before += offset;
    file->after += file->num_bytes - offset - num_bytes;
    file->bytes = (char *)file->bytes + offset;
    file->num_private_bytes = file->num_private_bytes > offset ? file->num_private_bytes - offset : 0;
    if (file->num_private_bytes > num_bytes) file->num_private_bytes = num_bytes;
    file->num_bytes = num_bytes;
}

/* Makes the first num_bytes (at most all) a copy in memory as well, at the same place. False: they are
 * not in the file any more, or out of memory. Nobody else may use the file meanwhile. */
bool platform_file_keep(platform_file *file, size_t num_bytes);

/* Copies bytes of the file to `to`. False: they are not in the file any more, or reading failed.
 * Several threads may read at once. */
bool platform_file_read(const platform_file *file, size_t offset, void *to, size_t num_bytes);

/* A file that replaces what is at its path when it is complete. Until then it has another name in
 * the same folder, which a process that is killed leaves behind. On POSIX systems only its owner
 * may read it. It is not flushed to the disk, which takes long: after a power cut it may be
 * incomplete, which its reader must notice. */
typedef struct {
    char *path, *partial_path;
    intptr_t handle;
} platform_new_file;

/* On failure these return false and write why to reason[PLATFORM_REASON_BYTES]. An open file must be
 * closed, with `complete` or without, even after a failed write. */
bool platform_new_file_open(const char *path, platform_new_file *file, char *reason);
bool platform_new_file_write(platform_new_file *file, const void *bytes, size_t num_bytes, char *reason);
bool platform_new_file_close(platform_new_file *file, bool complete, char *reason);

/* ------------------------------------------------------------------ memory */

/* alignment: a power of two that divides num_bytes. NULL: out of memory. */
void *platform_aligned_alloc(size_t alignment, size_t num_bytes);
void platform_aligned_free(void *memory);

/* The size of the system's huge pages, where it has any. */
#define PLATFORM_HUGE_PAGE_BYTES ((size_t)2 << 20)

/* Zeroed memory from the system, num_bytes > 0, in huge pages where possible and starting at one.
 * NULL: out of memory. Release it with the same num_bytes. */
void *platform_pages_alloc(size_t num_bytes);
void platform_pages_free(void *memory, size_t num_bytes);

/* From now on, writing to these pages crashes, where the system supports it. */
void platform_pages_protect(void *memory, size_t num_bytes);

/* ------------------------------------------------------------------ threads */

typedef void platform_thread_function(void *argument);

/* None of these may move in memory while in use. */
#if defined(_WIN32)
typedef struct {
    void *handle;
    platform_thread_function *function;
    void *argument;
} platform_thread;
typedef struct {
    void *lock;
} platform_mutex;
typedef struct {
    void *queue;
} platform_condition;
#elif defined(__wasm__)
typedef struct {
    char unused;
} platform_thread, platform_mutex, platform_condition;
#else
typedef struct {
    pthread_t id;
    platform_thread_function *function;
    void *argument;
} platform_thread;
typedef pthread_mutex_t platform_mutex;
typedef pthread_cond_t platform_condition;
#endif

/* Runs function(argument) in a new thread. False: the system has no threads, or no more. */
bool platform_thread_start(platform_thread *thread, platform_thread_function *function, void *argument);
void platform_thread_join(platform_thread *thread);

void platform_mutex_init(platform_mutex *mutex);
void platform_mutex_destroy(platform_mutex *mutex);
void platform_mutex_lock(platform_mutex *mutex);
void platform_mutex_unlock(platform_mutex *mutex);

void platform_condition_init(platform_condition *condition);
void platform_condition_destroy(platform_condition *condition);
void platform_condition_wait(platform_condition *condition, platform_mutex *mutex);
void platform_condition_wake_all(platform_condition *condition);

/* Changes in the child of a fork, which has no thread but the one that forked. */
unsigned platform_fork_generation(void);

/* ------------------------------------------------------------------ clock and processors */

/* Seconds of a monotonic clock. */
double platform_seconds(void);

/* The number of processors this process may use: its affinity, limited by its cgroup quota (v1 and
 * v2). At least 1. */
int platform_num_processors(void);

/* The processor that the calling thread runs on, or -1 if unknown. */
int platform_current_processor(void);

/* Moves the calling thread to an allowed processor that is not in the list (negative numbers are
 * skipped) and restores its affinity. Returns false if there is no such processor or the system
 * refuses. */
bool platform_leave_processors(const int *taken, int num_taken);

/* What the processor can run and the system allows: AVX2 with FMA and F16C; AVX-VNNI with those;
 * ARM's dot products. */
bool platform_has_avx2(void);
bool platform_has_avxvnni(void);
bool platform_has_avx512(void); /* F, BW, DQ, VL and VNNI */
/* True if the processor has AMX tiles and their int8 products, and Linux lets this process use them.
 * Asks it for that, which lasts until the process ends. */
bool platform_request_amx(void);
bool platform_has_arm_dot_product(void);
bool platform_has_arm_i8mm(void); /* products of 8-bit matrices */

/* Lets the other threads of a processor's core run while this one polls. */
static inline void platform_spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

#endif
