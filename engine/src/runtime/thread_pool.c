/* thread_pool.c: threads that run one function together and synchronize at barriers inside it. */
#if defined(__linux__)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity, sched_getcpu, sched_setaffinity */
#endif
#endif
#include "runtime/thread_pool.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/clock.h"

/* A waiting worker first executes PAUSES pause instructions (10 to 50 us), because the others
 * usually arrive soon. Then it polls until its spin budget is used up, and sleeps. It never yields:
 * on a busy machine a yield gives the processor away for milliseconds at every barrier (15M Q8_0
 * next to four busy loops, 2 threads: 48 tok/s, compared with 570 if workers sleep).
 *
 * The spin budget doubles after a sleep that a longer budget would have avoided, and halves after a
 * longer one. On a quiet machine workers hardly sleep while there is work; on a busy one they do
 * not waste their time slices. A pool with more workers than processors has no spin budget. */
#define PAUSES 1024
#define MAX_SPIN_SECONDS 1e-3
#define MIN_SPIN_SECONDS 4e-6
/* Between two runs the caller samples and prints a token, or returns to Python. That takes less
 * time than a wake-up. */
#define PAUSES_BETWEEN_RUNS 8192
/* Linux may wake a thread on its waker's processor and take 30 ms to separate them, especially in
 * virtual machines, where a sleeping processor does not count as idle. Until then each waits for
 * the other's time slice: after a pause 42M Q4_0 needed 1.6 ms per token instead of 0.5. So a
 * worker that wakes on a shared processor moves away, at most this often. */
#define SECONDS_BETWEEN_MOVES 1e-3

/* Lets threads sleep until a word changes. */
typedef struct {
    _Alignas(64) atomic_uint word;
    atomic_int num_asleep;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} event;

typedef struct {
    thread_pool *pool;
    int index;
    event start;                       /* signaled when a run begins that includes this worker */
    _Alignas(64) atomic_int processor; /* where it last ran; -1: unknown */
    double spin_seconds;               /* the spin budget */
    double moved_at;                   /* clock_seconds() when it last left a shared processor */
} worker_slot;

struct thread_pool {
    int count;
    double max_spin_seconds;
    pthread_t *handles; /* [count - 1] */
    worker_slot *slots; /* [count]; slot 0 is the caller's */

    /* The current run. Written before the start events are signaled. */
    int num_workers;
    thread_pool_function *function; /* NULL: exit */
    void *argument;

    /* The barrier: the last worker to arrive signals. */
    _Alignas(64) atomic_int arrived;
    event all_arrived;
};

static inline void spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static void event_init(event *e) {
    atomic_init(&e->word, 0);
    atomic_init(&e->num_asleep, 0);
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->wake, NULL);
}

static void event_destroy(event *e) {
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->mutex);
}

/* Either the signaler sees num_asleep > 0, or the sleeper sees the new word: both are sequentially
 * consistent. */
static void event_signal(event *e) {
    atomic_fetch_add(&e->word, 1);
    if (atomic_load(&e->num_asleep) == 0) return;
    pthread_mutex_lock(&e->mutex);
    pthread_cond_broadcast(&e->wake);
    pthread_mutex_unlock(&e->mutex);
}

/* Polls the word up to `pauses` times; true if it changed. */
static bool word_changes(const event *e, unsigned word, int pauses) {
    for (int i = 0; i < pauses; i++) {
        if (atomic_load_explicit(&e->word, memory_order_acquire) != word) return true;
        spin_pause();
    }
    return false;
}

/* Waits until the word changes. Returns the seconds spent asleep, or 0 if signaled while
 * spinning. */
static double event_wait(event *e, unsigned word, int pauses, double spin_seconds) {
    if (word_changes(e, word, pauses)) return 0.0;
    const double start = clock_seconds();
    for (double time = start; time < start + spin_seconds; time = clock_seconds())
        if (word_changes(e, word, PAUSES / 16)) return 0.0;
    pthread_mutex_lock(&e->mutex);
    atomic_fetch_add(&e->num_asleep, 1);
    while (atomic_load(&e->word) == word) pthread_cond_wait(&e->wake, &e->mutex);
    atomic_fetch_sub(&e->num_asleep, 1);
    pthread_mutex_unlock(&e->mutex);
    return clock_seconds() - start;
}

#if defined(__linux__)
int thread_pool_current_processor(void) { return sched_getcpu(); }

/* Linux moves a thread as soon as its processor is forbidden, but not back when it is allowed
 * again. */
bool thread_pool_leave_processors(const int *taken, int num_taken) {
    cpu_set_t allowed, wanted;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return false;
    wanted = allowed;
    for (int i = 0; i < num_taken; i++)
        if (taken[i] >= 0 && taken[i] < CPU_SETSIZE) CPU_CLR((size_t)taken[i], &wanted);
    if (CPU_COUNT(&wanted) == 0 || sched_setaffinity(0, sizeof wanted, &wanted) != 0) return false;
    return sched_setaffinity(0, sizeof allowed, &allowed) == 0;
}
#else
int thread_pool_current_processor(void) { return -1; }
bool thread_pool_leave_processors(const int *taken, int num_taken) {
    (void)taken, (void)num_taken;
    return false;
}
#endif

/* Stores and returns the processor that this worker runs on. */
static int record_processor(worker_slot *self) {
    const int current = thread_pool_current_processor();
    if (atomic_load_explicit(&self->processor, memory_order_relaxed) != current)
        atomic_store_explicit(&self->processor, current, memory_order_relaxed);
    return current;
}

/* Moves the calling worker off a processor that another worker of the run uses. */
static void leave_shared_processor(worker w) {
    worker_slot *slots = w.pool->slots, *self = &slots[w.index];
    const int current = record_processor(self);
    int processors[MAX_THREADS];
    bool shared = false;
    for (int i = 0; i < w.count; i++) {
        processors[i] = atomic_load_explicit(&slots[i].processor, memory_order_relaxed);
        shared |= i != w.index && current >= 0 && processors[i] == current;
    }
    const double time = clock_seconds();
    if (!shared || time - self->moved_at < SECONDS_BETWEEN_MOVES) return;
    self->moved_at = time;
    if (thread_pool_leave_processors(processors, w.count)) record_processor(self);
}

void thread_pool_barrier(worker w) {
    if (w.count == 1) return;
    thread_pool *pool = w.pool;
    const unsigned word = atomic_load(&pool->all_arrived.word);
    if (atomic_fetch_add(&pool->arrived, 1) + 1 < w.count) {
        worker_slot *self = &pool->slots[w.index];
        const double asleep = event_wait(&pool->all_arrived, word, PAUSES, self->spin_seconds);
        if (asleep == 0.0) return;
        const double wanted = asleep < pool->max_spin_seconds ? 2.0 * self->spin_seconds : 0.5 * self->spin_seconds;
        self->spin_seconds = wanted < MIN_SPIN_SECONDS ? MIN_SPIN_SECONDS : wanted;
        if (self->spin_seconds > pool->max_spin_seconds) self->spin_seconds = pool->max_spin_seconds;
        leave_shared_processor(w);
        return;
    }
    atomic_store(&pool->arrived, 0);
    event_signal(&pool->all_arrived);
}

static void *worker_main(void *argument) {
    worker_slot *self = argument;
    thread_pool *pool = self->pool;
    for (unsigned runs = 0;; runs++) {
        const double asleep = event_wait(&self->start, runs, PAUSES_BETWEEN_RUNS, 0.0);
        if (!pool->function) return NULL;
        const worker w = {pool, self->index, pool->num_workers};
        if (asleep > 0.0) leave_shared_processor(w);
        else record_processor(self);
        pool->function(pool->argument, w);
        thread_pool_barrier(w);
    }
}

void thread_pool_run(thread_pool *pool, int num_workers, thread_pool_function *function, void *argument) {
    const worker first = {pool, 0, num_workers};
    pool->num_workers = num_workers;
    pool->function = function;
    pool->argument = argument;
    record_processor(&pool->slots[0]);
    for (int i = 1; i < num_workers; i++) event_signal(&pool->slots[i].start);
    function(argument, first);
    thread_pool_barrier(first);
}

int thread_pool_size(const thread_pool *pool) { return pool->count; }

/* Stops the first num_started threads and frees the pool. */
static void stop_and_free(thread_pool *pool, int num_started) {
    pool->function = NULL;
    for (int i = 1; i <= num_started; i++) event_signal(&pool->slots[i].start);
    for (int i = 0; i < num_started; i++) pthread_join(pool->handles[i], NULL);
    for (int i = 0; pool->slots && i < pool->count; i++) event_destroy(&pool->slots[i].start);
    event_destroy(&pool->all_arrived);
    free(pool->handles);
    free(pool->slots);
    free(pool);
}

thread_pool *thread_pool_create(int count) {
    thread_pool *pool = aligned_alloc(_Alignof(thread_pool), sizeof *pool);
    if (!pool) return NULL;
    memset(pool, 0, sizeof *pool);
    pool->count = count;
    pool->max_spin_seconds = count <= thread_pool_available() ? MAX_SPIN_SECONDS : 0.0;
    atomic_init(&pool->arrived, 0);
    event_init(&pool->all_arrived);
    pool->handles = calloc((size_t)count, sizeof *pool->handles);
    pool->slots = aligned_alloc(_Alignof(worker_slot), (size_t)count * sizeof *pool->slots);
    for (int i = 0; pool->slots && i < count; i++) {
        pool->slots[i].pool = pool;
        pool->slots[i].index = i;
        pool->slots[i].spin_seconds = pool->max_spin_seconds;
        pool->slots[i].moved_at = 0.0;
        atomic_init(&pool->slots[i].processor, -1);
        event_init(&pool->slots[i].start);
    }
    if (!pool->handles || !pool->slots) {
        stop_and_free(pool, 0);
        return NULL;
    }
    for (int i = 1; i < count; i++)
        if (pthread_create(&pool->handles[i - 1], NULL, worker_main, &pool->slots[i]) != 0) {
            stop_and_free(pool, i - 1);
            return NULL;
        }
    return pool;
}

void thread_pool_free(thread_pool *pool) {
    if (pool) stop_and_free(pool, pool->count - 1);
}

void thread_pool_share(worker w, int64_t total, int64_t unit, int64_t *begin, int64_t *end) {
    const int64_t units = (total + unit - 1) / unit;
    const int64_t first = units * w.index / w.count * unit, last = units * (w.index + 1) / w.count * unit;
    *begin = first < total ? first : total;
    *end = last < total ? last : total;
}

/* ------------------------------------------------------------------ the machine */

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

int thread_pool_available(void) {
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
