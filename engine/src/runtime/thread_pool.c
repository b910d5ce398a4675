/* thread_pool.c: threads that run one function together and synchronize at barriers inside it. */
#include "runtime/thread_pool.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "platform/platform.h"

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
    platform_mutex mutex;
    platform_condition wake;
} event;

typedef struct {
    thread_pool *pool;
    int index;
    event start;                       /* signaled when a run begins that includes this worker */
    _Alignas(64) atomic_int processor; /* where it last ran; -1: unknown */
    double spin_seconds;               /* the spin budget */
    double moved_at;                   /* platform_seconds() when it last left a shared processor */
} worker_slot;

struct thread_pool {
    int count;
    double max_spin_seconds;
    unsigned fork_generation; /* of the process that has the threads */
    platform_thread *threads; /* [count - 1] */
    worker_slot *slots;       /* [count]; slot 0 is the caller's */

    /* The current run. Written before the start events are signaled. */
    int num_workers;
    thread_pool_function *function; /* NULL: exit */
    void *argument;

    /* The barrier: the last worker to arrive signals. */
    _Alignas(64) atomic_int arrived;
    event all_arrived;
};

static void event_init(event *e) {
    atomic_init(&e->word, 0);
    atomic_init(&e->num_asleep, 0);
    platform_mutex_init(&e->mutex);
    platform_condition_init(&e->wake);
}

static void event_destroy(event *e) {
    platform_condition_destroy(&e->wake);
    platform_mutex_destroy(&e->mutex);
}

/* Either the signaler sees num_asleep > 0, or the sleeper sees the new word: both are sequentially
 * consistent. */
static void event_signal(event *e) {
    atomic_fetch_add(&e->word, 1);
    if (atomic_load(&e->num_asleep) == 0) return;
    platform_mutex_lock(&e->mutex);
    platform_condition_wake_all(&e->wake);
    platform_mutex_unlock(&e->mutex);
}

/* Polls the word up to `pauses` times; true if it changed. */
static bool word_changes(const event *e, unsigned word, int pauses) {
    for (int i = 0; i < pauses; i++) {
        if (atomic_load_explicit(&e->word, memory_order_acquire) != word) return true;
        platform_spin_pause();
    }
    return false;
}

/* Waits until the word changes. Returns the seconds spent asleep, or 0 if signaled while
 * spinning. */
static double event_wait(event *e, unsigned word, int pauses, double spin_seconds) {
    if (word_changes(e, word, pauses)) return 0.0;
    const double start = platform_seconds();
    for (double time = start; time < start + spin_seconds; time = platform_seconds())
        if (word_changes(e, word, PAUSES / 16)) return 0.0;
    platform_mutex_lock(&e->mutex);
    atomic_fetch_add(&e->num_asleep, 1);
    while (atomic_load(&e->word) == word) platform_condition_wait(&e->wake, &e->mutex);
    atomic_fetch_sub(&e->num_asleep, 1);
    platform_mutex_unlock(&e->mutex);
    return platform_seconds() - start;
}

/* Stores and returns the processor that this worker runs on. */
static int record_processor(worker_slot *self) {
    const int current = platform_current_processor();
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
    const double time = platform_seconds();
    if (!shared || time - self->moved_at < SECONDS_BETWEEN_MOVES) return;
    self->moved_at = time;
    if (platform_leave_processors(processors, w.count)) record_processor(self);
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

static void worker_main(void *argument) {
    worker_slot *self = argument;
    thread_pool *pool = self->pool;
    for (unsigned runs = 0;; runs++) {
        const double asleep = event_wait(&self->start, runs, PAUSES_BETWEEN_RUNS, 0.0);
        if (!pool->function) return;
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

bool thread_pool_usable(const thread_pool *pool) {
    return pool->count == 1 || pool->fork_generation == platform_fork_generation();
}

/* Stops the first num_started threads and frees the pool. In the child of a fork the threads are
 * gone, and the events may be locked or waited for by them: destroying one would wait forever. */
static void stop_and_free(thread_pool *pool, int num_started) {
    if (thread_pool_usable(pool)) {
        pool->function = NULL;
        for (int i = 1; i <= num_started; i++) event_signal(&pool->slots[i].start);
        for (int i = 0; i < num_started; i++) platform_thread_join(&pool->threads[i]);
        for (int i = 0; pool->slots && i < pool->count; i++) event_destroy(&pool->slots[i].start);
        event_destroy(&pool->all_arrived);
    }
    free(pool->threads);
    platform_aligned_free(pool->slots);
    platform_aligned_free(pool);
}

thread_pool *thread_pool_create(int count) {
    thread_pool *pool = platform_aligned_alloc(_Alignof(thread_pool), sizeof *pool);
    if (!pool) return NULL;
    memset(pool, 0, sizeof *pool);
    pool->count = count;
    pool->fork_generation = platform_fork_generation();
    pool->max_spin_seconds = count <= platform_num_processors() ? MAX_SPIN_SECONDS : 0.0;
    atomic_init(&pool->arrived, 0);
    event_init(&pool->all_arrived);
    pool->threads = calloc((size_t)count, sizeof *pool->threads);
    pool->slots = platform_aligned_alloc(_Alignof(worker_slot), (size_t)count * sizeof *pool->slots);
    for (int i = 0; pool->slots && i < count; i++) {
        pool->slots[i].pool = pool;
        pool->slots[i].index = i;
        pool->slots[i].spin_seconds = pool->max_spin_seconds;
        pool->slots[i].moved_at = 0.0;
        atomic_init(&pool->slots[i].processor, -1);
        event_init(&pool->slots[i].start);
    }
    if (!pool->threads || !pool->slots) {
        stop_and_free(pool, 0);
        return NULL;
    }
    for (int i = 1; i < count; i++)
        if (!platform_thread_start(&pool->threads[i - 1], worker_main, &pool->slots[i])) {
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
