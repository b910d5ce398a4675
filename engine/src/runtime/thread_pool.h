/* thread_pool.h: threads that run one function together and synchronize at barriers inside it. */
#ifndef LLAMITA_THREAD_POOL_H
#define LLAMITA_THREAD_POOL_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_THREADS 256

typedef struct thread_pool thread_pool;

/* Identifies the worker that runs the function. */
typedef struct {
    thread_pool *pool;
    int index, count; /* 0 <= index < count, the number of workers in this run */
} worker;

typedef void thread_pool_function(void *argument, worker w);

/* Starts a pool of count workers, 1 <= count <= MAX_THREADS: the caller of thread_pool_run and
 * count - 1 threads, which spin briefly and then sleep between runs. Returns NULL if out of memory
 * or threads. thread_pool_free stops and frees it; NULL is allowed. */
thread_pool *thread_pool_create(int count);
void thread_pool_free(thread_pool *pool);
int thread_pool_size(const thread_pool *pool);

/* False in the child of a fork, where the pool's threads do not exist: it can only be freed there.
 * A pool of one worker is always usable. */
bool thread_pool_usable(const thread_pool *pool);

/* Runs function(argument, worker) on the first num_workers workers, 1 <= num_workers <=
 * thread_pool_size, and returns when all have finished. One run at a time. */
void thread_pool_run(thread_pool *pool, int num_workers, thread_pool_function *function, void *argument);

/* Within a run: waits until all workers have arrived. Writes before it are visible to all after
 * it. */
void thread_pool_barrier(worker w);

/* Computes this worker's part [*begin, *end) of `total` items, as even as whole units allow; the
 * parts are in order. */
void thread_pool_share(worker w, int64_t total, int64_t unit, int64_t *begin, int64_t *end);

#endif
