/* threads.h: a team of threads that runs one function together, and meets at barriers within it. */
#ifndef LLAMITA_THREADS_H
#define LLAMITA_THREADS_H

#include <stdint.h>

#define THREADS_MAX 256

typedef struct threads threads;

/* One member of the team, as the function sees itself. */
typedef struct {
    threads *team;
    int index, count; /* 0 <= index < count, the members of this run */
} worker;

typedef void threads_function(void *argument, worker w);

/* A team of count members, 1 <= count <= THREADS_MAX: the caller of threads_run and count - 1 threads, which wait
 * (spinning shortly, then asleep) between runs. NULL if the system gives no memory or no threads. */
threads *threads_create(int count);
void threads_free(threads *team);
int threads_count(const threads *team);

/* The first num_members of the team, 1 <= num_members <= threads_count, call function(argument, its worker); returns when
 * all have. One run at a time. */
void threads_run(threads *team, int num_members, threads_function *function, void *argument);

/* Within a run: nobody goes on before all are here. What was written before is seen by all after. */
void threads_barrier(worker w);

/* This worker's part [*begin, *end) of total items, as even as whole units allow; the parts are in order. */
void threads_share(worker w, int64_t total, int64_t unit, int64_t *begin, int64_t *end);

/* How many processors this process may use: its affinity, and its control group's quota (v1 and v2). At least 1. */
int threads_available(void);

#endif
