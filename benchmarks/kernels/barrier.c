/* barrier.c: what does a barrier of two threads cost, alone and beside two busy processes?
 *
 *     make -C benchmarks/kernels barrier
 *
 * Answer (ns, medians of short rounds, two runs; Xeon (Sapphire Rapids), 2 cores with other users, so noisy):
 *                                alone   20 us of work   beside two busy processes   20 us of work
 *   pthread_barrier          1,700 to 32,000    38,000      3,000 to 43,000   38,000 to 71,000
 *   spin                           320          20,000 up   4 ms              4 to 6 ms
 *   spin, then sched_yield         300          19,000      12,000 to 13,000  47,000 to 760,000
 *   the engine                     300          20,000      12,000 to 13,000  48,000 to 91,000
 * Spinning alone collapses as soon as somebody else wants the processors: the one who waits uses up its time slice
 * while the other does not run. Yielding hands whole slices away, at times. Sleeping after 1,024 looks costs nothing
 * alone, and beside two busy processes the work takes 2.4 to 4.5 times as long, where 2 is its fair share.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif

#include "ladder.h"
#include "threads.h"

enum { NUM_THREADS = 2, NUM_BUSY = 2, SOME = 16, MAX_ROUNDS = 41 };

/* A way to wait for the other. */
typedef struct {
    const char *name;
    void (*wait)(worker w);
} barrier;

/* ------------------------------------------------------------------ versions */

static pthread_barrier_t system_barrier;

/* 1: asleep in the kernel at once. */
static void wait_asleep(worker w) {
    (void)w;
    pthread_barrier_wait(&system_barrier);
}

static _Alignas(64) atomic_int arrived;
static _Alignas(64) atomic_uint phase;

static inline void spin_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

/* The last to arrive turns the phase over, for which the others look, and yield after so many looks (0: never). */
static void wait_spinning(worker w, int looks) {
    const unsigned before = atomic_load(&phase);
    if (atomic_fetch_add(&arrived, 1) + 1 == w.count) {
        atomic_store(&arrived, 0);
        atomic_fetch_add(&phase, 1);
        return;
    }
    for (int i = 1; atomic_load_explicit(&phase, memory_order_acquire) == before; i++) {
        spin_pause();
        if (looks > 0 && i % looks == 0) sched_yield();
    }
}

static void wait_spin(worker w) { wait_spinning(w, 0); }
static void wait_yield(worker w) { wait_spinning(w, 1024); }

static const barrier barriers[] = {{"1 pthread_barrier", wait_asleep},
                                   {"2 spin", wait_spin},
                                   {"3 spin, then sched_yield", wait_yield},
                                   {"4 the engine: spin, then sleep", threads_barrier}};
enum { NUM_BARRIERS = sizeof barriers / sizeof *barriers };

/* ------------------------------------------------------------------ checking and timing */

typedef struct {
    void (*wait)(worker w);
    double work_us;  /* of each thread between two barriers, on a free processor */
    double budget_s; /* how long to go on */
    atomic_bool enough;
    long num_barriers;
    int wrong;
    atomic_long steps[2][NUM_THREADS]; /* of the last two steps */
} trial;

/* Additions that depend on each other. */
static void add_up(int num_additions) {
    volatile float sink;
    float value = 1;
    for (int i = 0; i < num_additions; i++) {
        value += 1e-7f;
        __asm__ volatile("" : "+r"(i));
    }
    sink = value;
    (void)sink;
}

static double additions_per_us;

static void calibrate(void) {
    enum { NUM = 2000000 };
    const double start = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    add_up(NUM);
    additions_per_us = NUM / ((seconds_of(CLOCK_THREAD_CPUTIME_ID) - start) * 1e6);
}

static void work(double us) { add_up((int)(us * additions_per_us)); }

static void go_through(void *argument, worker w) {
    trial *t = argument;
    const double start = seconds_of(CLOCK_MONOTONIC);
    long step = 0, num_waits = 0;
    while (!atomic_load(&t->enough)) {
        for (int i = 0; i < SOME; i++, step++) {
            if (t->work_us > 0) work(t->work_us);
            atomic_store_explicit(&t->steps[step % 2][w.index], step, memory_order_relaxed);
            t->wait(w);
            const long other = atomic_load_explicit(&t->steps[step % 2][1 - w.index], memory_order_relaxed);
            if (other != step) t->wrong = 1;
        }
        t->wait(w); /* so that both see the same answer to whether it is enough */
        if (w.index == 0 && seconds_of(CLOCK_MONOTONIC) - start > t->budget_s) atomic_store(&t->enough, true);
        t->wait(w);
        num_waits += SOME + 2;
    }
    if (w.index == 0) t->num_barriers = num_waits;
}

/* Nanoseconds a barrier with the work before it. */
static double time_barrier(threads *team, const barrier *b, double work_us, double budget_s) {
    trial t = {.wait = b->wait, .work_us = work_us, .budget_s = budget_s};
    const double start = seconds_of(CLOCK_MONOTONIC);
    threads_run(team, NUM_THREADS, go_through, &t);
    const double seconds = seconds_of(CLOCK_MONOTONIC) - start;
    if (t.wrong) {
        fprintf(stderr, "%s: a thread went on before the other had arrived\n", b->name);
        exit(1);
    }
    return seconds / (double)t.num_barriers * 1e9;
}

static void start_busy(pid_t *children) {
    const pid_t parent = getpid();
    for (int i = 0; i < NUM_BUSY; i++) {
        children[i] = fork();
        if (children[i] != 0) continue;
#if defined(__linux__)
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* never outlives this program */
#endif
        while (getppid() == parent) work(1000);
        _exit(0);
    }
}

static void stop_busy(const pid_t *children) {
    for (int i = 0; i < NUM_BUSY; i++)
        if (children[i] > 0) {
            kill(children[i], SIGKILL);
            waitpid(children[i], NULL, 0);
        }
}

/* medians[b] of interleaved rounds. */
static void measure_all(threads *team, double work_us, int num_rounds, double budget_s, double *medians) {
    double times[NUM_BARRIERS][MAX_ROUNDS];
    for (int round = 0; round < num_rounds; round++)
        for (int b = 0; b < NUM_BARRIERS; b++) times[b][round] = time_barrier(team, &barriers[b], work_us, budget_s);
    for (int b = 0; b < NUM_BARRIERS; b++) medians[b] = median(times[b], num_rounds);
}

int main(void) {
    threads *team = threads_create(NUM_THREADS);
    if (team == NULL || pthread_barrier_init(&system_barrier, NULL, NUM_THREADS) != 0) return 1;
    double alone[NUM_BARRIERS], busy[NUM_BARRIERS], alone_working[NUM_BARRIERS], busy_working[NUM_BARRIERS];
    pid_t children[NUM_BUSY];
    calibrate();
    /* Alone: rounds shorter than a time slice, so that most are undisturbed. Beside others: of many time slices. */
    measure_all(team, 0, MAX_ROUNDS, 0.002, alone);
    measure_all(team, 20, MAX_ROUNDS, 0.002, alone_working);
    start_busy(children);
    measure_all(team, 0, 9, 0.06, busy);
    measure_all(team, 20, 9, 0.06, busy_working);
    stop_busy(children);
    printf("two threads: ns a barrier, and with 20 us of work before it; the same beside two busy processes\n");
    printf("%-34s %12s %12s %12s %12s\n", "", "alone", "with work", "busy", "with work");
    for (int b = 0; b < NUM_BARRIERS; b++)
        printf("  %-32s %12.0f %12.0f %12.0f %12.0f\n", barriers[b].name, alone[b], alone_working[b], busy[b],
               busy_working[b]);
    pthread_barrier_destroy(&system_barrier);
    threads_free(team);
    return 0;
}
