/* ladder.h: what the ladders share: memory, random numbers, checks against the obvious version, timing in turns.
 *
 * Times are the thread's own processor time, so that a busy machine disturbs them little; each is the median of ROUNDS
 * rounds, in each of which every version has its turn.
 */
#ifndef LADDER_H
#define LADDER_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

enum { ROUNDS = 11, MAX_VERSIONS = 12 };

/* A problem is a matrix and a vector (or more); a version of the operation writes its result into the problem. */
typedef struct {
    const char *name;
    void (*run)(void *problem);
} version;

/* ------------------------------------------------------------------ memory and numbers */

/* Zeros in huge pages where the system has them, as the engine keeps weights. Freed when the program ends. */
static inline void *allocate(size_t bytes) {
    const size_t huge = (size_t)2 << 20;
    void *memory = aligned_alloc(huge, (bytes + huge - 1) / huge * huge);
    if (memory == NULL) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(1);
    }
#if defined(MADV_HUGEPAGE)
    madvise(memory, (bytes + huge - 1) / huge * huge, MADV_HUGEPAGE);
#endif
    return memset(memory, 0, bytes);
}

/* splitmix64 */
static inline uint64_t random_bits(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Between -1 and 1. */
static inline float random_float(uint64_t *state) {
    return (float)((double)(random_bits(state) >> 11) * 0x1p-52 - 1.0);
}

static inline void random_floats(uint64_t *state, size_t num, float *out) {
    for (size_t i = 0; i < num; i++) out[i] = random_float(state);
}

/* ------------------------------------------------------------------ checks */

/* |out - exact| <= bound * magnitude, which is the sum of the absolute terms. */
static inline void expect_close(const char *name, const float *out, const double *exact, const double *magnitude,
                                size_t num, double bound) {
    for (size_t i = 0; i < num; i++)
        if (!(fabs((double)out[i] - exact[i]) <= bound * magnitude[i])) {
            fprintf(stderr, "%s: output %zu: expected %.9g, found %.9g\n", name, i, exact[i], (double)out[i]);
            exit(1);
        }
}

static inline void expect_same_bits(const char *name, const float *out, const float *expected, size_t num) {
    for (size_t i = 0; i < num; i++)
        if (memcmp(out + i, expected + i, sizeof *out) != 0) {
            fprintf(stderr, "%s: output %zu: expected the bits of %.9g, found %.9g\n", name, i, (double)expected[i],
                    (double)out[i]);
            exit(1);
        }
}

/* ------------------------------------------------------------------ timing */

static inline double seconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static inline int compare_doubles(const void *left, const void *right) {
    const double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static inline double median(double *values, int num) {
    qsort(values, (size_t)num, sizeof *values, compare_doubles);
    return values[num / 2];
}

static inline double seconds_of_runs(const version *v, void *problem, int num_runs) {
    const double start = seconds_of(CLOCK_THREAD_CPUTIME_ID);
    for (int i = 0; i < num_runs; i++) v->run(problem);
    return seconds_of(CLOCK_THREAD_CPUTIME_ID) - start;
}

/* Seconds a run of each version. A turn lasts a millisecond or one run; a run before it brings the caches back. */
static inline void measure(const version *versions, int num_versions, void *problem, double *seconds) {
    static double times[MAX_VERSIONS][ROUNDS];
    int num_runs[MAX_VERSIONS];
    for (int v = 0; v < num_versions; v++) {
        const double once = seconds_of_runs(&versions[v], problem, 1);
        num_runs[v] = once < 1e-3 ? (int)(1e-3 / (once > 1e-7 ? once : 1e-7)) + 1 : 1;
    }
    for (int round = 0; round < ROUNDS; round++)
        for (int v = 0; v < num_versions; v++) {
            if (num_runs[v] > 1) versions[v].run(problem);
            times[v][round] = seconds_of_runs(&versions[v], problem, num_runs[v]) / num_runs[v];
        }
    for (int v = 0; v < num_versions; v++) seconds[v] = median(times[v], ROUNDS);
}

/* A table of versions: time, `amount` a second in units of 1e9, ratio to the first. */
static inline void print_table(const char *title, const version *versions, int num_versions, const double *seconds,
                               double amount, const char *unit) {
    printf("%-50s %12s %9s %6s\n", title, "us", unit, "ratio");
    for (int v = 0; v < num_versions; v++)
        printf("  %-48s %12.1f %9.1f %6.2f\n", versions[v].name, seconds[v] * 1e6, amount / seconds[v] * 1e-9,
               seconds[0] / seconds[v]);
}

#endif
