/* thread_tuner.h: chooses the number of threads of the next pass from the times of earlier ones.
 *
 * Beside other busy processes several threads can be slower than one, as each waits at every barrier for those that are
 * not running. When passes take much longer on average than the fastest ones, fewer threads are tried, and what was
 * faster is kept; from time to time all are tried again. On a quiet machine nothing is ever tried.
 */
#ifndef LLAMITA_THREAD_TUNER_H
#define LLAMITA_THREAD_TUNER_H

typedef struct {
    int max_threads, num_threads; /* of the pool, and of the next pass */
    int num_passes;               /* in the window */
    double sum, fastest;          /* seconds in the window */
    double kept_mean;             /* of the threads that a trial is compared with; 0: no trial runs */
    int kept_threads;
    int tries_one;                /* what is tried next: one thread, or half of them */
    int until_retry, retry_after; /* windows on fewer threads before all are tried again */
} thread_tuner;

void thread_tuner_init(thread_tuner *p, int num_threads);

/* A pass on p->num_threads took this long. All passes that one thread_tuner sees do the same amount of work, nearly. */
void thread_tuner_record(thread_tuner *p, double seconds);

#endif
