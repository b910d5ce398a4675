/* thread_tuner.h: chooses the number of threads of the next pass from the times of earlier ones.
 *
 * Next to other busy processes several threads can be slower than one, because each waits at every
 * barrier for those that are not running. When passes take much longer on average than the fastest
 * one, the tuner tries fewer threads and keeps the faster setting; from time to time it tries all
 * threads again. On a quiet machine it never tries anything. */
#ifndef LLAMITA_THREAD_TUNER_H
#define LLAMITA_THREAD_TUNER_H

typedef struct {
    int max_threads, num_threads; /* in the pool, and for the next pass */
    int num_passes;               /* in the window */
    double sum, fastest;          /* seconds in the window */
    double kept_mean;             /* before the current trial; 0: no trial */
    int kept_threads;
    int tries_one;                /* what to try next: one thread, or half of them */
    int until_retry, retry_after; /* windows on fewer threads before all are tried again */
} thread_tuner;

void thread_tuner_init(thread_tuner *p, int num_threads);

/* Records the time of a pass on p->num_threads. All passes of one thread_tuner must do about the
 * same amount of work. */
void thread_tuner_record(thread_tuner *p, double seconds);

#endif
