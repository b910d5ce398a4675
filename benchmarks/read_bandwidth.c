/* read_bandwidth.c: bytes in memory to the gigabytes a second that threads can read of them, and do nothing else.
 *
 *     cc -O3 -march=native -pthread read_bandwidth.c -o read_bandwidth
 *     read_bandwidth BYTES
 *
 * Each line on stdin is a number of threads and asks for one measurement with them; the answer is a line "BEST MEDIAN"
 * in GB/s (1e9 bytes) of NUM_PASSES passes. A pass reads the whole buffer, again and again where it is small, so that
 * it takes PASS_SECONDS or more. Each thread reads a contiguous part of its own; the memory is in huge pages where the
 * system gives them. Between measurements no thread runs.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define NUM_PASSES 7
#define PASS_SECONDS 0.004
#define MAX_THREADS 256
#define HUGE_PAGE ((size_t)2 << 20)

typedef uint64_t lanes __attribute__((vector_size(32))); /* one AVX2 register, two NEON ones */
#define STEP 8                                           /* registers in flight */

static struct {
    char *bytes;
    size_t num_bytes;
    size_t part_bytes; /* of each thread, a multiple of STEP * sizeof(lanes) */
    int num_threads;
    int repeats[MAX_THREADS + 1]; /* how often one pass reads the buffer, by the number of threads; 0: not known yet */
    pthread_barrier_t barrier;
    double seconds[NUM_PASSES];
    uint64_t sums[MAX_THREADS]; /* so that nothing read is useless */
} stream;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t read_part(const char *part, size_t num_bytes) {
    const lanes *values = (const lanes *)part;
    lanes sum[STEP] = {0};
    for (size_t i = 0; i < num_bytes / sizeof(lanes); i += STEP)
        for (int j = 0; j < STEP; j++) sum[j] += values[i + j];
    uint64_t total = 0;
    for (int j = 0; j < STEP; j++)
        for (int k = 0; k < 4; k++) total += sum[j][k];
    return total;
}

static void *read_passes(void *argument) {
    const int thread = (int)(intptr_t)argument;
    const char *part = stream.bytes + (size_t)thread * stream.part_bytes;
    for (int pass = 0; pass < NUM_PASSES; pass++) {
        pthread_barrier_wait(&stream.barrier);
        const double start = now();
        for (int i = 0; i < stream.repeats[stream.num_threads]; i++) {
            stream.sums[thread] += read_part(part, stream.part_bytes);
            __asm__ volatile("" ::: "memory"); /* read again what has been read */
        }
        pthread_barrier_wait(&stream.barrier);
        if (thread == 0) stream.seconds[pass] = now() - start;
    }
    return NULL;
}

static int compare_numbers(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* All passes, to stream.seconds, from the shortest to the longest. */
static void measure(void) {
    pthread_t handles[MAX_THREADS];
    pthread_barrier_init(&stream.barrier, NULL, (unsigned)stream.num_threads);
    for (int i = 1; i < stream.num_threads; i++)
        if (pthread_create(&handles[i], NULL, read_passes, (void *)(intptr_t)i) != 0) {
            fprintf(stderr, "cannot read with %d threads: the system gives %d\n", stream.num_threads, i);
            exit(1);
        }
    read_passes((void *)0);
    for (int i = 1; i < stream.num_threads; i++) pthread_join(handles[i], NULL);
    pthread_barrier_destroy(&stream.barrier);
    qsort(stream.seconds, NUM_PASSES, sizeof *stream.seconds, compare_numbers);
}

/* Parts for so many threads, and so many repeats that a pass takes PASS_SECONDS, by the time that it takes with one. */
static void prepare(int num_threads) {
    const size_t step = STEP * sizeof(lanes), threads = (size_t)num_threads;
    stream.num_threads = num_threads;
    stream.part_bytes = (stream.num_bytes / threads + step - 1) / step * step;
    if (stream.repeats[num_threads] > 0) return;
    stream.repeats[num_threads] = 1;
    measure();
    const double once = stream.seconds[0] > 1e-9 ? stream.seconds[0] : 1e-9;
    stream.repeats[num_threads] = 1 + (int)(PASS_SECONDS / once);
}

int main(int argc, char **argv) {
    const double wanted = argc == 2 ? strtod(argv[1], NULL) : 0;
    if (!(wanted >= 1 && wanted < 1e13)) {
        fprintf(stderr, "usage: read_bandwidth BYTES\n");
        return 2;
    }
    stream.num_bytes = (size_t)wanted;
    /* Room for the rounding of every thread's part. */
    const size_t room = stream.num_bytes + MAX_THREADS * STEP * sizeof(lanes);
    const size_t total = (room + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    stream.bytes = aligned_alloc(HUGE_PAGE, total);
    if (stream.bytes == NULL) {
        fprintf(stderr, "cannot read %zu bytes: the memory is not there\n", stream.num_bytes);
        return 1;
    }
    madvise(stream.bytes, total, MADV_HUGEPAGE);
    memset(stream.bytes, 1, room);
    for (char line[64]; fgets(line, sizeof line, stdin) != NULL;) {
        const int num_threads = atoi(line);
        if (num_threads < 1 || num_threads > MAX_THREADS) {
            fprintf(stderr, "threads: expected 1 to %d, found %s", MAX_THREADS, line);
            return 2;
        }
        prepare(num_threads);
        measure();
        const double bytes = (double)stream.part_bytes * num_threads * stream.repeats[num_threads] * 1e-9;
        printf("%.3f %.3f\n", bytes / stream.seconds[0], bytes / stream.seconds[NUM_PASSES / 2]);
        fflush(stdout);
    }
    return 0;
}
