/* read_bandwidth.c: bytes in memory to the gigabytes a second that threads can read of them, and do nothing else.
 *
 *     cc -O3 -march=native -pthread read_bandwidth.c -o read_bandwidth
 *     read_bandwidth BYTES THREADS
 *
 * Each line on stdin asks for one measurement; the answer is a line "BEST MEDIAN" in GB/s (1e9 bytes) of NUM_PASSES
 * passes. A pass reads the whole buffer, again and again where it is small, so that it takes PASS_SECONDS or more.
 * Threads read their own contiguous parts, which they have written first; the memory is in huge pages where the system
 * gives them. Between measurements no thread runs.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define NUM_PASSES 9
#define PASS_SECONDS 0.004
#define MAX_THREADS 256
#define HUGE_PAGE ((size_t)2 << 20)

typedef uint64_t lanes __attribute__((vector_size(32))); /* one AVX2 register, two NEON ones */
#define STEP 8                                           /* registers in flight */

static struct {
    char *bytes;
    size_t part_bytes; /* of each thread, a multiple of STEP * sizeof(lanes) */
    int num_threads;
    int repeats; /* how often one pass reads the buffer */
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
        for (int i = 0; i < stream.repeats; i++) {
            stream.sums[thread] += read_part(part, stream.part_bytes);
            __asm__ volatile("" ::: "memory"); /* read again what has been read */
        }
        pthread_barrier_wait(&stream.barrier);
        if (thread == 0) stream.seconds[pass] = now() - start;
    }
    return NULL;
}

static void *write_part(void *argument) {
    memset(stream.bytes + (size_t)(intptr_t)argument * stream.part_bytes, 1, stream.part_bytes);
    return NULL;
}

static void on_all_threads(void *(*function)(void *)) {
    pthread_t handles[MAX_THREADS];
    for (int i = 1; i < stream.num_threads; i++)
        if (pthread_create(&handles[i], NULL, function, (void *)(intptr_t)i) != 0) {
            fprintf(stderr, "cannot read with %d threads: the system gives %d\n", stream.num_threads, i);
            exit(1);
        }
    function((void *)0);
    for (int i = 1; i < stream.num_threads; i++) pthread_join(handles[i], NULL);
}

static int compare_numbers(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* So many repeats that a pass takes PASS_SECONDS, by the time that a measurement with one of them takes. */
static void choose_repeats(void) {
    stream.repeats = 1;
    on_all_threads(read_passes);
    qsort(stream.seconds, NUM_PASSES, sizeof *stream.seconds, compare_numbers);
    const double once = stream.seconds[0] > 1e-9 ? stream.seconds[0] : 1e-9;
    stream.repeats = 1 + (int)(PASS_SECONDS / once);
}

int main(int argc, char **argv) {
    const double wanted = argc == 3 ? strtod(argv[1], NULL) : 0;
    stream.num_threads = argc == 3 ? atoi(argv[2]) : 0;
    if (!(wanted >= 1 && wanted < 1e13) || stream.num_threads < 1 || stream.num_threads > MAX_THREADS) {
        fprintf(stderr, "usage: read_bandwidth BYTES THREADS (1 to %d)\n", MAX_THREADS);
        return 2;
    }
    const size_t step = STEP * sizeof(lanes);
    stream.part_bytes = ((size_t)wanted / (size_t)stream.num_threads + step - 1) / step * step;
    const size_t total = stream.part_bytes * (size_t)stream.num_threads;
    stream.bytes = aligned_alloc(HUGE_PAGE, (total + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    if (stream.bytes == NULL) {
        fprintf(stderr, "cannot read %zu bytes: the memory is not there\n", total);
        return 1;
    }
    madvise(stream.bytes, total, MADV_HUGEPAGE);
    pthread_barrier_init(&stream.barrier, NULL, (unsigned)stream.num_threads);
    on_all_threads(write_part);
    choose_repeats();
    for (char line[64]; fgets(line, sizeof line, stdin) != NULL;) {
        on_all_threads(read_passes);
        qsort(stream.seconds, NUM_PASSES, sizeof *stream.seconds, compare_numbers);
        const double bytes = (double)total * stream.repeats * 1e-9;
        printf("%.3f %.3f\n", bytes / stream.seconds[0], bytes / stream.seconds[NUM_PASSES / 2]);
        fflush(stdout);
    }
    return 0;
}
