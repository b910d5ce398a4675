/* posix.c: the platform layer on Linux, macOS and other POSIX systems. */
#if !defined(_WIN32) && !defined(__wasm__)
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_getaffinity, sched_getcpu, sched_setaffinity */
#endif
#define _FILE_OFFSET_BITS 64 /* files over 2 GB on 32-bit systems */
#include "platform/platform.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

/* ------------------------------------------------------------------ files */

/* The part of a file that is copied first: the metadata of a model with 32,000 tokens, and all of a
 * small file. A multiple of all page sizes. */
#define PRIVATE_BYTES ((size_t)1 << 20)

/* All pages at once: faults one by one take longer than the reading. */
#if defined(MAP_POPULATE)
#define PREFAULT MAP_POPULATE
#else
#define PREFAULT 0
#endif

/* A single read is at most this long: Linux and macOS stop at about 2 GB. */
#define MAX_READ_BYTES ((size_t)1 << 30)

bool platform_file_read(const platform_file *file, size_t offset, void *to, size_t num_bytes) {
    offset += file->before;
    for (char *at = to; num_bytes > 0;) {
        const size_t wanted = num_bytes < MAX_READ_BYTES ? num_bytes : MAX_READ_BYTES;
        const ssize_t count = pread((int)file->handle, at, wanted, (off_t)offset);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return false;
        at += count;
        offset += (size_t)count;
        num_bytes -= (size_t)count;
    }
    return true;
}

static size_t round_to_page(size_t num_bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (num_bytes + page - 1) / page * page;
}

static bool fail_with(const char *found, char *reason) {
    snprintf(reason, PLATFORM_REASON_BYTES, "%s", found);
    return false;
}

/* Replaces bytes [begin, end) of a mapping of the whole file by a copy. begin: where a page begins. */
static bool copy_part(const platform_file *file, size_t begin, size_t end) {
    char *bytes = (char *)file->bytes + begin;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | PREFAULT;
    if (mmap(bytes, end - begin, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) return false;
    if (!platform_file_read(file, begin, bytes, end - begin)) return false;
    platform_pages_protect(bytes, end - begin);
    return true;
}

/* Fills file->bytes: a copy of the whole file, or of its beginning and a mapping of the rest. */
static bool fill(platform_file *file, bool whole, char *reason) {
    file->num_private_bytes = whole || file->num_bytes < PRIVATE_BYTES ? file->num_bytes : PRIVATE_BYTES;
    errno = 0;
    bool copied;
    if (file->num_private_bytes < file->num_bytes) {
        char *bytes = mmap(NULL, file->num_bytes, PROT_READ, MAP_PRIVATE, (int)file->handle, 0);
        if (bytes == MAP_FAILED) return fail_with(strerror(errno), reason);
        file->bytes = bytes;
        copied = copy_part(file, 0, file->num_private_bytes);
    } else {
        file->bytes = platform_pages_alloc(file->num_bytes);
        if (!file->bytes) return fail_with(strerror(ENOMEM), reason);
        copied = platform_file_read(file, 0, file->bytes, file->num_bytes);
        platform_pages_protect(file->bytes, file->num_bytes);
    }
    return copied || fail_with(errno ? strerror(errno) : "the file was cut while it was read", reason);
}

/* Doubles the copy, so that a long one takes few calls. */
bool platform_file_keep(platform_file *file, size_t num_bytes) {
    const size_t kept = file->num_private_bytes;
    if (num_bytes <= kept) return true;
    const size_t doubled = kept + (kept > PRIVATE_BYTES ? kept : PRIVATE_BYTES);
    const size_t wanted = file->before + (doubled > num_bytes ? doubled : num_bytes);
    const size_t all = file->before + file->num_bytes, rounded = round_to_page(wanted);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), begin = (file->before + kept) / page * page;
    const size_t end = rounded < all ? rounded : all;
    const platform_file whole = {.bytes = (char *)file->bytes - file->before, .handle = file->handle};
    if (!copy_part(&whole, begin, end)) return false;
    file->num_private_bytes = end - file->before;
    return true;
}

static bool check_kind(const struct stat *info, char *reason) {
    const char *found = S_ISDIR(info->st_mode)               ? "expected a file, found a directory"
                        : !S_ISREG(info->st_mode)            ? "expected a regular file, found a device or a pipe"
                        : (uint64_t)info->st_size > SIZE_MAX ? "the file is larger than the address space"
                                                             : NULL;
    return !found || fail_with(found, reason);
}

/* O_NONBLOCK: opening a pipe without a writer would block forever. */
bool platform_file_open(const char *path, bool whole, platform_file *file, char *reason) {
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat info;
    *file = (platform_file){.handle = descriptor};
    if (descriptor < 0 || fstat(descriptor, &info) != 0) {
        const int code = errno;
        if (descriptor >= 0) close(descriptor);
        return fail_with(strerror(code), reason);
    }
    if (check_kind(&info, reason)) {
        file->num_bytes = (size_t)info.st_size;
        if (file->num_bytes == 0 || fill(file, whole, reason)) return true;
    }
    platform_file_close(file);
    return false;
}

void platform_file_close(platform_file *file) {
    if (file->bytes)
        platform_pages_free((char *)file->bytes - file->before, file->before + file->num_bytes + file->after);
    close((int)file->handle);
    *file = (platform_file){.handle = -1};
}

bool platform_new_file_open(const char *path, platform_new_file *file, char *reason) {
    static const char suffix[] = ".XXXXXX";
    const size_t length = strlen(path);
    file->path = malloc(length + 1);
    file->partial_path = malloc(length + sizeof suffix);
    file->handle = -1;
    if (file->path && file->partial_path) {
        memcpy(file->path, path, length + 1);
        memcpy(file->partial_path, path, length);
        memcpy(file->partial_path + length, suffix, sizeof suffix);
        file->handle = mkstemp(file->partial_path);
    }
    if (file->handle >= 0) {
        (void)fcntl((int)file->handle, F_SETFD, FD_CLOEXEC);
        return true;
    }
    fail_with(strerror(file->path && file->partial_path ? errno : ENOMEM), reason);
    free(file->path);
    free(file->partial_path);
    return false;
}

bool platform_new_file_write(platform_new_file *file, const void *bytes, size_t num_bytes, char *reason) {
    for (const char *at = bytes; num_bytes > 0;) {
        const ssize_t count = write((int)file->handle, at, num_bytes < MAX_READ_BYTES ? num_bytes : MAX_READ_BYTES);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return fail_with(strerror(errno), reason);
        at += count;
        num_bytes -= (size_t)count;
    }
    return true;
}

bool platform_new_file_close(platform_new_file *file, bool complete, char *reason) {
    bool placed = close((int)file->handle) == 0 && complete;
    placed = placed && rename(file->partial_path, file->path) == 0;
    if (complete && !placed) fail_with(strerror(errno), reason);
    if (!placed) (void)unlink(file->partial_path);
    free(file->path);
    free(file->partial_path);
    return placed || !complete;
}

/* ------------------------------------------------------------------ memory */

void *platform_aligned_alloc(size_t alignment, size_t num_bytes) { return aligned_alloc(alignment, num_bytes); }
void platform_aligned_free(void *memory) { free(memory); }

/* The last, partial huge page stays in small ones, so only memory that is used is taken. */
void *platform_pages_alloc(size_t num_bytes) {
    const size_t huge = PLATFORM_HUGE_PAGE_BYTES;
    if (num_bytes > SIZE_MAX / 2) return NULL;
    char *memory = mmap(NULL, num_bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    const size_t before = (huge - (uintptr_t)memory % huge) % huge, used = round_to_page(before + num_bytes);
    if (before > 0) (void)munmap(memory, before);
    if (used < num_bytes + huge) (void)munmap(memory + used, num_bytes + huge - used);
#ifdef MADV_HUGEPAGE
    if (num_bytes >= huge) (void)madvise(memory + before, num_bytes / huge * huge, MADV_HUGEPAGE);
#endif
    return memory + before;
}

void platform_pages_free(void *memory, size_t num_bytes) { (void)munmap(memory, round_to_page(num_bytes)); }
void platform_pages_protect(void *memory, size_t num_bytes) { (void)mprotect(memory, num_bytes, PROT_READ); }

/* ------------------------------------------------------------------ threads */

/* musl's default, 128 KB, is too small under a sanitizer. */
#define MIN_STACK_BYTES ((size_t)1 << 20)

static void *run_thread(void *argument) {
    platform_thread *thread = argument;
    thread->function(thread->argument);
    return NULL;
}

bool platform_thread_start(platform_thread *thread, platform_thread_function *function, void *argument) {
    pthread_attr_t attributes;
    size_t stack_bytes = 0;
    thread->function = function;
    thread->argument = argument;
    if (pthread_attr_init(&attributes) != 0) return false;
    if (pthread_attr_getstacksize(&attributes, &stack_bytes) == 0 && stack_bytes < MIN_STACK_BYTES)
        (void)pthread_attr_setstacksize(&attributes, MIN_STACK_BYTES);
    const bool started = pthread_create(&thread->id, &attributes, run_thread, thread) == 0;
    pthread_attr_destroy(&attributes);
    return started;
}

void platform_thread_join(platform_thread *thread) { pthread_join(thread->id, NULL); }

void platform_mutex_init(platform_mutex *mutex) { pthread_mutex_init(mutex, NULL); }
void platform_mutex_destroy(platform_mutex *mutex) { pthread_mutex_destroy(mutex); }
void platform_mutex_lock(platform_mutex *mutex) { pthread_mutex_lock(mutex); }
void platform_mutex_unlock(platform_mutex *mutex) { pthread_mutex_unlock(mutex); }

void platform_condition_init(platform_condition *condition) { pthread_cond_init(condition, NULL); }
void platform_condition_destroy(platform_condition *condition) { pthread_cond_destroy(condition); }
void platform_condition_wait(platform_condition *condition, platform_mutex *mutex) {
    pthread_cond_wait(condition, mutex);
}
void platform_condition_wake_all(platform_condition *condition) { pthread_cond_broadcast(condition); }

static atomic_uint fork_generation;

static void count_fork(void) { atomic_fetch_add(&fork_generation, 1); }
static void watch_forks(void) { (void)pthread_atfork(NULL, NULL, count_fork); }

unsigned platform_fork_generation(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    return atomic_load(&fork_generation);
}

/* ------------------------------------------------------------------ clock and processors */

double platform_seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

#if defined(__linux__)
static bool read_line(const char *path, char *line, size_t size) {
    FILE *file = fopen(path, "r");
    if (!file) return false;
    const bool read = fgets(line, (int)size, file) != NULL;
    fclose(file);
    return read;
}

/* Processors' worth of time that a folder of the cgroup tree grants, rounded up; INT_MAX: no
 * limit. */
static int quota_of_folder(const char *folder) {
    char path[4096 + 64], line[128];
    long long quota = 0, period = 0;
    snprintf(path, sizeof path, "%s/cpu.max", folder); /* v2: "max 100000" or "150000 100000" */
    if (read_line(path, line, sizeof line)) {
        if (sscanf(line, "%lld %lld", &quota, &period) != 2) return INT_MAX;
    } else {
        snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder); /* v1: -1 is no limit */
        if (!read_line(path, line, sizeof line) || sscanf(line, "%lld", &quota) != 1) return INT_MAX;
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
        if (!read_line(path, line, sizeof line) || sscanf(line, "%lld", &period) != 1) return INT_MAX;
    }
    if (quota <= 0 || period <= 0) return INT_MAX;
    const long long processors = quota / period + (quota % period != 0);
    return processors < INT_MAX ? (int)processors : INT_MAX;
}

/* The smallest quota on the path from a group up to the root of its tree. */
static int quota_of_group(const char *root, const char *group) {
    char folder[4096];
    if (snprintf(folder, sizeof folder, "%s%s", root, group) >= (int)sizeof folder) return INT_MAX;
    int smallest = INT_MAX;
    for (;;) {
        const int quota = quota_of_folder(folder);
        smallest = quota < smallest ? quota : smallest;
        if (strlen(folder) <= strlen(root)) return smallest;
        *strrchr(folder, '/') = '\0';
    }
}

/* True if "cpu" is in the comma-separated list. */
static bool lists_cpu(const char *controllers) {
    for (;;) {
        const size_t length = strcspn(controllers, ",");
        if (length == 3 && memcmp(controllers, "cpu", 3) == 0) return true;
        if (controllers[length] == '\0') return false;
        controllers += length + 1;
    }
}

/* /proc/self/cgroup has lines "0::/group" (v2) and "4:cpu,cpuacct:/group" (v1). Inside a container
 * the group may be above what is mounted, so the root of the mount is read too: quota_of_group ends
 * there. */
static int quota_of_process(void) {
    FILE *file = fopen("/proc/self/cgroup", "r");
    if (!file) return INT_MAX;
    char line[4096];
    int smallest = INT_MAX;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        controllers++;
        const char *root = *controllers == '\0'     ? "/sys/fs/cgroup"
                           : lists_cpu(controllers) ? "/sys/fs/cgroup/cpu"
                                                    : NULL;
        const int quota = root ? quota_of_group(root, group) : INT_MAX;
        smallest = quota < smallest ? quota : smallest;
    }
    fclose(file);
    return smallest;
}
#endif

int platform_num_processors(void) {
    int available = 0;
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) available = CPU_COUNT(&allowed);
#endif
    if (available <= 0) available = (int)sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
    const int quota = quota_of_process();
    available = quota < available ? quota : available;
#endif
    return available > 0 ? available : 1;
}

#if defined(__linux__)
int platform_current_processor(void) { return sched_getcpu(); }

/* Linux moves a thread as soon as its processor is forbidden, but not back when it is allowed
 * again. */
bool platform_leave_processors(const int *taken, int num_taken) {
    cpu_set_t allowed, wanted;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return false;
    wanted = allowed;
    for (int i = 0; i < num_taken; i++)
        if (taken[i] >= 0 && taken[i] < CPU_SETSIZE) CPU_CLR((size_t)taken[i], &wanted);
    if (CPU_COUNT(&wanted) == 0 || sched_setaffinity(0, sizeof wanted, &wanted) != 0) return false;
    return sched_setaffinity(0, sizeof allowed, &allowed) == 0;
}
#else
int platform_current_processor(void) { return -1; }
bool platform_leave_processors(const int *taken, int num_taken) {
    (void)taken, (void)num_taken;
    return false;
}
#endif

#if defined(__aarch64__) && defined(__linux__)
#if !defined(HWCAP_ASIMDDP)
#define HWCAP_ASIMDDP (1UL << 20) /* for headers older than Linux 4.16 */
#endif
bool platform_has_arm_dot_product(void) { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
bool platform_has_arm_dot_product(void) {
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, NULL, 0) == 0 && found != 0;
}
#else
bool platform_has_arm_dot_product(void) { return false; } /* no known way to detect it */
#endif
#else
typedef int not_this_platform; /* C forbids an empty file */
#endif
