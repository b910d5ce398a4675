/* wasm.c: the platform layer in WebAssembly, where there is one thread. Files and the clock are the
 * host's: wasi.c, or wasm/host.c in browsers. */
#if defined(__wasm__)
#include "platform/platform.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ memory */

void *platform_aligned_alloc(size_t alignment, size_t num_bytes) { return aligned_alloc(alignment, num_bytes); }
void platform_aligned_free(void *memory) { free(memory); }

void *platform_pages_alloc(size_t num_bytes) {
    enum { CACHE_LINE = 64 };
    if (num_bytes > SIZE_MAX / 2) return NULL;
    const size_t rounded = (num_bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    /* Memory beyond the present end will come from the host, which zeroes it. */
    const size_t end = (size_t)__builtin_wasm_memory_size(0) * 65536;
    char *memory = aligned_alloc(CACHE_LINE, rounded);
    if (memory && (uintptr_t)memory < end) {
        const size_t used = end - (uintptr_t)memory;
        memset(memory, 0, used < rounded ? used : rounded);
    }
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

/* ------------------------------------------------------------------ processors */

int platform_num_processors(void) { return 1; }
int platform_current_processor(void) { return -1; }
bool platform_leave_processors(const int *taken, int num_taken) {
    (void)taken, (void)num_taken;
    return false;
}
bool platform_has_arm_dot_product(void) { return false; }
bool platform_has_arm_i8mm(void) { return false; }
#else
typedef int not_this_platform; /* C forbids an empty file */
#endif
