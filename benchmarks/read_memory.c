/* Memory bandwidth: how many GB/s OpenMP's threads read from BYTES of memory, doing nothing else.
 *
 *     cc -O3 -march=native -fopenmp read_memory.c -o read_memory
 *     OMP_NUM_THREADS=2 ./read_memory BYTES
 *
 * The upper limit for decoding, which reads all weights for each token. Prints the median of
 * NUM_PASSES passes.
 */
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define NUM_PASSES 7
#define PASS_SECONDS 0.004 /* small buffers are read repeatedly for this long */
#define HUGE_PAGE ((size_t)2 << 20)

typedef uint64_t vector __attribute__((vector_size(32)));

/* Each thread reads a contiguous part. Eight independent sums keep enough loads in flight. */
static double read_seconds(const vector *values, size_t num_values, long repeats) {
    const double start = omp_get_wtime();
#pragma omp parallel
    {
        const size_t num_threads = (size_t)omp_get_num_threads(), thread = (size_t)omp_get_thread_num();
        const size_t part = num_values / num_threads / 8 * 8;
        for (long r = 0; r < repeats; r++) {
            vector sums[8] = {{0}};
            for (size_t i = thread * part; i < (thread + 1) * part; i += 8)
                for (int j = 0; j < 8; j++) sums[j] += values[i + (size_t)j];
            for (int j = 0; j < 8; j++) __asm__ volatile("" ::"m"(sums[j]) : "memory"); /* the sums are used */
        }
    }
    return (omp_get_wtime() - start) / (double)repeats;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    const double bytes = argc == 2 ? strtod(argv[1], NULL) : 0;
    if (!(bytes >= 65536 && bytes < 1e12)) {
        fprintf(stderr, "usage: read_memory BYTES (at least 65536)\n");
        return 2;
    }
    const size_t size = ((size_t)bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    char *buffer = aligned_alloc(HUGE_PAGE, size);
    if (buffer == NULL) {
        fprintf(stderr, "cannot allocate %zu bytes\n", size);
        return 1;
    }
    madvise(buffer, size, MADV_HUGEPAGE);
    memset(buffer, 1, size);
    const size_t num_values = (size_t)bytes / sizeof(vector);
    const vector *values = (const vector *)buffer;
    read_seconds(values, num_values, 1); /* starts the threads */
    const long repeats = 1 + (long)(PASS_SECONDS / read_seconds(values, num_values, 1));
    double seconds[NUM_PASSES];
    for (int i = 0; i < NUM_PASSES; i++) seconds[i] = read_seconds(values, num_values, repeats);
    qsort(seconds, NUM_PASSES, sizeof *seconds, compare);
    printf("%.3f GB/s\n", 1e-9 * bytes / seconds[NUM_PASSES / 2]);
    return 0;
}
