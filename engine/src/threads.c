/* threads.c: a team of threads that runs one function together, and meets at barriers within it. */
#if defined(__linux__)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#endif
#include "threads.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "placement.h"

/* A wait begins with pauses, 10 to 50 us of them: the others are near. Then it looks on for as long as its patience lasts,
 * and sleeps. It never yields: where other processes are busy, a yield hands them the processor for milliseconds, at every
 * barrier (15M Q8_0 beside four busy loops, 2 threads: 48 tok/s where sleeping gives 570).
 *
 * Patience doubles after a sleep that it would have spared, and halves after a longer one: where nobody disturbs, members
 * hardly sleep while there is work, and beside busy processes they do not use up time that these let them have. A team
 * larger than the machine has none. */
#define PAUSES 1024
#define MOST_PATIENCE 1e-3 /* seconds */
#define LEAST_PATIENCE 4e-6
/* Between two runs the caller samples and writes a token, or goes through Python: waking up costs more than that. */
#define PAUSES_BETWEEN_RUNS 8192
/* Linux may wake a thread where its waker runs, above all in virtual machines, whose sleeping processors do not count as
 * idle, and takes some 30 ms to part them. Meanwhile each waits for the other's time slices: after a rest, 42M Q4_0 took
 * 1.6 ms a token where it takes 0.5. So who wakes up beside another member leaves, at most so often. */
#define SECONDS_BETWEEN_MOVES 1e-3

/* Where threads sleep until a word changes. */
typedef struct {
    _Alignas(64) atomic_uint word;
    atomic_int num_asleep;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} bell;

typedef struct {
    threads *team;
    int index;
    bell start; /* rings when a run begins that this member is part of */
    _Alignas(64) atomic_int processor; /* where it was seen last; -1: nowhere */
    double patience;                   /* in seconds */
    double moved;                      /* when it left a processor to another member, in seconds */
} member;

struct threads {
    int count;
    double most_patience;
    pthread_t *handles; /* [count - 1] */
    member *members;    /* [count], the first unused */

    /* This run. Written before the bells ring. */
    int num_members;
    threads_function *function; /* NULL: go home */
    void *argument;

    /* The barrier: the last one to arrive rings. */
    _Alignas(64) atomic_int arrived;
    bell all_arrived;
};

static inline void spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static void bell_init(bell *b) {
    atomic_init(&b->word, 0);
    atomic_init(&b->num_asleep, 0);
    pthread_mutex_init(&b->mutex, NULL);
    pthread_cond_init(&b->wake, NULL);
}

static void bell_clear(bell *b) {
    pthread_cond_destroy(&b->wake);
    pthread_mutex_destroy(&b->mutex);
}

/* Either the one who rings sees num_asleep > 0, or the sleeper sees the new word: both are sequentially consistent. */
static void bell_ring(bell *b) {
    atomic_fetch_add(&b->word, 1);
    if (atomic_load(&b->num_asleep) == 0) return;
    pthread_mutex_lock(&b->mutex);
    pthread_cond_broadcast(&b->wake);
    pthread_mutex_unlock(&b->mutex);
}

/* Whether the word changed while it was looked at so many times. */
static bool changes(const bell *b, unsigned word, int pauses) {
    for (int i = 0; i < pauses; i++) {
        if (atomic_load_explicit(&b->word, memory_order_acquire) != word) return true;
        spin_pause();
    }
    return false;
}

/* Seconds asleep; 0: the bell rang before. */
static double bell_wait(bell *b, unsigned word, int pauses, double patience) {
    if (changes(b, word, pauses)) return 0.0;
    const double start = clock_seconds();
    for (double time = start; time < start + patience; time = clock_seconds())
        if (changes(b, word, PAUSES / 16)) return 0.0;
    pthread_mutex_lock(&b->mutex);
    atomic_fetch_add(&b->num_asleep, 1);
    while (atomic_load(&b->word) == word) pthread_cond_wait(&b->wake, &b->mutex);
    atomic_fetch_sub(&b->num_asleep, 1);
    pthread_mutex_unlock(&b->mutex);
    return clock_seconds() - start;
}

/* Remembers where this member of a run is. */
static int note_place(member *self) {
    const int here = placement_here();
    if (atomic_load_explicit(&self->processor, memory_order_relaxed) != here)
        atomic_store_explicit(&self->processor, here, memory_order_relaxed);
    return here;
}

/* Where another member of the run is seen on this one's processor, it leaves. */
static void keep_apart(worker w) {
    member *members = w.team->members, *self = &members[w.index];
    const int here = note_place(self);
    int processors[THREADS_MAX];
    bool shared = false;
    for (int i = 0; i < w.count; i++) {
        processors[i] = atomic_load_explicit(&members[i].processor, memory_order_relaxed);
        shared |= i != w.index && here >= 0 && processors[i] == here;
    }
    const double time = clock_seconds();
    if (!shared || time - self->moved < SECONDS_BETWEEN_MOVES) return;
    self->moved = time;
    if (placement_leave(processors, w.count)) note_place(self);
}

void threads_barrier(worker w) {
    if (w.count == 1) return;
    threads *team = w.team;
    const unsigned word = atomic_load(&team->all_arrived.word);
    if (atomic_fetch_add(&team->arrived, 1) + 1 < w.count) {
        member *self = &team->members[w.index];
        const double asleep = bell_wait(&team->all_arrived, word, PAUSES, self->patience);
        if (asleep == 0.0) return;
        const double wanted = asleep < team->most_patience ? 2.0 * self->patience : 0.5 * self->patience;
        self->patience = wanted < LEAST_PATIENCE ? LEAST_PATIENCE : wanted;
        if (self->patience > team->most_patience) self->patience = team->most_patience;
        keep_apart(w);
        return;
    }
    atomic_store(&team->arrived, 0);
    bell_ring(&team->all_arrived);
}

static void *member_main(void *argument) {
    member *self = argument;
    threads *team = self->team;
    for (unsigned runs = 0;; runs++) {
        const double asleep = bell_wait(&self->start, runs, PAUSES_BETWEEN_RUNS, 0.0);
        if (team->function == NULL) return NULL;
        const worker w = {team, self->index, team->num_members};
        if (asleep > 0.0) keep_apart(w);
        else note_place(self);
        team->function(team->argument, w);
        threads_barrier(w);
    }
}

void threads_run(threads *team, int num_members, threads_function *function, void *argument) {
    const worker first = {team, 0, num_members};
    team->num_members = num_members;
    team->function = function;
    team->argument = argument;
    note_place(&team->members[0]);
    for (int i = 1; i < num_members; i++) bell_ring(&team->members[i].start);
    function(argument, first);
    threads_barrier(first);
}

int threads_count(const threads *team) { return team->count; }

/* Those that started are told to go home. */
static void dismiss(threads *team, int num_started) {
    team->function = NULL;
    for (int i = 1; i <= num_started; i++) bell_ring(&team->members[i].start);
    for (int i = 0; i < num_started; i++) pthread_join(team->handles[i], NULL);
    for (int i = 0; team->members != NULL && i < team->count; i++) bell_clear(&team->members[i].start);
    bell_clear(&team->all_arrived);
    free(team->handles);
    free(team->members);
    free(team);
}

threads *threads_create(int count) {
    threads *team = aligned_alloc(_Alignof(threads), sizeof *team);
    if (team == NULL) return NULL;
    memset(team, 0, sizeof *team);
    team->count = count;
    team->most_patience = count <= threads_available() ? MOST_PATIENCE : 0.0;
    atomic_init(&team->arrived, 0);
    bell_init(&team->all_arrived);
    team->handles = calloc((size_t)count, sizeof *team->handles);
    team->members = aligned_alloc(_Alignof(member), (size_t)count * sizeof *team->members);
    for (int i = 0; team->members != NULL && i < count; i++) {
        team->members[i].team = team;
        team->members[i].index = i;
        team->members[i].patience = team->most_patience;
        team->members[i].moved = 0.0;
        atomic_init(&team->members[i].processor, -1);
        bell_init(&team->members[i].start);
    }
    if (team->handles == NULL || team->members == NULL) {
        dismiss(team, 0);
        return NULL;
    }
    for (int i = 1; i < count; i++)
        if (pthread_create(&team->handles[i - 1], NULL, member_main, &team->members[i]) != 0) {
            dismiss(team, i - 1);
            return NULL;
        }
    return team;
}

void threads_free(threads *team) {
    if (team != NULL) dismiss(team, team->count - 1);
}

void threads_share(worker w, int64_t total, int64_t unit, int64_t *begin, int64_t *end) {
    const int64_t units = (total + unit - 1) / unit;
    const int64_t first = units * w.index / w.count * unit, last = units * (w.index + 1) / w.count * unit;
    *begin = first < total ? first : total;
    *end = last < total ? last : total;
}

/* ------------------------------------------------------------------ the machine */

#if defined(__linux__)
static bool read_line(const char *path, char *line, size_t size) {
    FILE *file = fopen(path, "r");
    if (file == NULL) return false;
    const bool read = fgets(line, (int)size, file) != NULL;
    fclose(file);
    return read;
}

/* Processors' worth of time that a folder of the control group tree grants, rounded up; INT_MAX: no limit. */
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

/* The smallest quota on the way from a group up to the root of its tree. */
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

/* Whether "cpu" is one of the names between commas. */
static bool lists_cpu(const char *controllers) {
    for (;;) {
        const size_t length = strcspn(controllers, ",");
        if (length == 3 && memcmp(controllers, "cpu", 3) == 0) return true;
        if (controllers[length] == '\0') return false;
        controllers += length + 1;
    }
}

/* /proc/self/cgroup has lines "0::/group" (v2) and "4:cpu,cpuacct:/group" (v1). Inside a container the group may lie
 * above what is mounted, so the root of the mount is asked too: quota_of_group ends there. */
static int quota_of_process(void) {
    FILE *file = fopen("/proc/self/cgroup", "r");
    if (file == NULL) return INT_MAX;
    char line[4096];
    int smallest = INT_MAX;
    while (fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL) continue;
        *group++ = '\0';
        controllers++;
        const char *root = *controllers == '\0'     ? "/sys/fs/cgroup"
                           : lists_cpu(controllers) ? "/sys/fs/cgroup/cpu"
                                                    : NULL;
        const int quota = root != NULL ? quota_of_group(root, group) : INT_MAX;
        smallest = quota < smallest ? quota : smallest;
    }
    fclose(file);
    return smallest;
}
#endif

int threads_available(void) {
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
