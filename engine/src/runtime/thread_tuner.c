/* thread_tuner.c: chooses the number of threads of the next pass from the times of earlier ones. */
#include "runtime/thread_tuner.h"

#define WINDOW_PASSES 8     /* at least this many passes per window, */
#define WINDOW_SECONDS 0.05 /* and this long: an interruption of a few ms must not matter */
#define DISTURBED 1.6       /* mean over fastest; above, other processes are busy */
#define WORTH_CHANGING 0.9  /* a change must bring the mean below this part of the old one */
#define FIRST_RETRY 1
#define LAST_RETRY 64

static void begin_window(thread_tuner *p) {
    p->num_passes = 0;
    p->sum = p->fastest = 0.0;
}

void thread_tuner_init(thread_tuner *p, int num_threads) {
    *p = (thread_tuner){.max_threads = num_threads, .num_threads = num_threads, .retry_after = FIRST_RETRY};
    begin_window(p);
}

static void try_threads(thread_tuner *p, int num_threads, double mean) {
    p->kept_mean = mean;
    p->kept_threads = p->num_threads;
    p->num_threads = num_threads;
}

/* Ends a trial: keeps whichever number of threads was faster. */
static void end_trial(thread_tuner *p, double mean) {
    const int tried = p->num_threads;
    if (mean > p->kept_mean * WORTH_CHANGING) p->num_threads = p->kept_threads;
    p->kept_mean = 0.0;
    if (tried != p->max_threads || p->num_threads == p->max_threads) p->retry_after = FIRST_RETRY;
    else if (p->retry_after < LAST_RETRY) p->retry_after *= 2;
    p->until_retry = p->retry_after;
}

void thread_tuner_record(thread_tuner *p, double seconds) {
    if (p->max_threads == 1) return;
    if (p->num_passes == 0 || seconds < p->fastest) p->fastest = seconds;
    p->sum += seconds;
    if (++p->num_passes < WINDOW_PASSES || p->sum < WINDOW_SECONDS) return;
    const double mean = p->sum / p->num_passes;
    const int disturbed = mean > DISTURBED * p->fastest;
    begin_window(p);
    if (p->kept_mean > 0.0) {
        end_trial(p, mean);
    } else if (disturbed && p->num_threads > 1) {
        try_threads(p, p->tries_one ? 1 : p->num_threads / 2, mean); /* alternate: either may win */
        p->tries_one = !p->tries_one;
    } else if (p->num_threads < p->max_threads && --p->until_retry <= 0) {
        try_threads(p, p->max_threads, mean);
    }
}
