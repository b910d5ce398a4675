/* sampling.c: how long one pick from 32,000 logits takes: versions from sorting everything to the engine's sampler.
 *
 *     make -C benchmarks/kernels sampling        (prints the table; the numbers go to ../results)
 *
 * Each version is first checked against the obvious one: the same picks for the same seed. Where a draw falls within
 * rounding of the border between two tokens they may differ, which 1 pick in 100 may do. Then they are timed in turns.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "llamita.h"

enum { VOCAB = 32000, NUM_LOGITS = 8, ROUNDS = 9, PICKS = 8 };

static float logits[NUM_LOGITS][VOCAB];

/* ------------------------------------------------------------------ random numbers, logits */

/* splitmix64, as the sampler draws. */
static double random_number(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static double random_normal(uint64_t *state) {
    const double u = 1.0 - random_number(state), v = random_number(state);
    return sqrt(-2.0 * log(u)) * cos(2.0 * 3.14159265358979323846 * v);
}

/* Logits of ids in the order of their frequency: -slope ln(rank) + noise. Trained models: slope 1.1, noise 2 to 3. */
static void make_logits(double slope, double noise) {
    uint64_t state = 1;
    for (int row = 0; row < NUM_LOGITS; row++)
        for (int i = 0; i < VOCAB; i++)
            logits[row][i] = (float)(-slope * log(i + 1.0) + noise * random_normal(&state));
}

/* ------------------------------------------------------------------ version 1: sort everything */

typedef struct {
    double weight;
    int32_t id;
} candidate;

static candidate candidates[VOCAB];

static int by_weight(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    if (a->weight != b->weight) return a->weight < b->weight ? 1 : -1;
    return (a->id > b->id) - (a->id < b->id);
}

static int by_id(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    return (a->id > b->id) - (a->id < b->id);
}

/* Cuts sorted candidates off, puts them in the order of ids again, and draws. total: of all weights before top-k. */
static int32_t cut_and_draw(const llamita_sampler_params *p, int32_t num, double total, uint64_t *state) {
    if (p->top_k > 0) {
        num = p->top_k < num ? p->top_k : num;
        total = 0;
        for (int32_t i = 0; i < num; i++) total += candidates[i].weight;
    }
    double mass = 0;
    for (int32_t i = 0; i < num && p->top_p < 1.0f; i++) {
        mass += candidates[i].weight;
        if (mass >= (double)p->top_p * total) num = i + 1;
    }
    qsort(candidates, (size_t)num, sizeof *candidates, by_id);
    total = 0;
    for (int32_t i = 0; i < num; i++) total += candidates[i].weight;
    double left = random_number(state) * total;
    for (int32_t i = 0; i < num - 1; i++)
        if ((left -= candidates[i].weight) < 0) return candidates[i].id;
    return candidates[num - 1].id;
}

static int32_t first_maximum(const float *row) {
    int32_t best = 0;
    for (int32_t i = 1; i < VOCAB; i++)
        if (row[i] > row[best]) best = i;
    return best;
}

static int32_t pick_sorting(const llamita_sampler_params *p, const float *row, uint64_t *state) {
    const float largest = row[first_maximum(row)];
    if (p->temperature == 0.0f) return first_maximum(row);
    double total = 0;
    for (int32_t i = 0; i < VOCAB; i++) {
        candidates[i] = (candidate){exp((double)((row[i] - largest) / p->temperature)), i};
        total += candidates[i].weight;
    }
    qsort(candidates, VOCAB, sizeof *candidates, by_weight);
    return cut_and_draw(p, VOCAB, total, state);
}

/* ------------------------------------------------------------------ version 2: sort only what can be kept */

/* Top-p: no token below (1 - p) * total / (n - 1) is among the kept ones (llama2.c's run.c). Top-k: a heap of k. */
static int32_t gather_likely(const llamita_sampler_params *p, double total, const float *weights) {
    const float least = (float)((1.0 - (double)p->top_p) * total / (VOCAB - 1) * 0.999);
    int32_t num = 0;
    for (int32_t i = 0; i < VOCAB; i++)
        if (weights[i] >= least) candidates[num++] = (candidate){(double)weights[i], i};
    return num;
}

static int32_t gather_heap(int32_t k, const float *weights) {
    for (int32_t i = 0; i < VOCAB; i++) {
        const candidate added = {(double)weights[i], i};
        if (i >= k && by_weight(&added, &candidates[0]) > 0) continue;
        int32_t at = 0;
        if (i < k) { /* sift up: the worst stands at the top */
            for (at = i; at > 0 && by_weight(&candidates[(at - 1) / 2], &added) < 0; at = (at - 1) / 2)
                candidates[at] = candidates[(at - 1) / 2];
        } else {
            for (int32_t child; (child = 2 * at + 1) < k; at = child) {
                if (child + 1 < k && by_weight(&candidates[child + 1], &candidates[child]) > 0) child++;
                if (by_weight(&candidates[child], &added) < 0) break;
                candidates[at] = candidates[child];
            }
        }
        candidates[at] = added;
    }
    return k;
}

static int32_t pick_filtering(const llamita_sampler_params *p, const float *row, uint64_t *state) {
    static float weights[VOCAB];
    const float largest = row[first_maximum(row)];
    if (p->temperature == 0.0f) return first_maximum(row);
    double total = 0;
    for (int32_t i = 0; i < VOCAB; i++) total += (double)(weights[i] = expf((row[i] - largest) / p->temperature));
    const int32_t num = p->top_k > 0 ? gather_heap(p->top_k, weights) : gather_likely(p, total, weights);
    if (p->top_k > 0 || p->top_p < 1.0f) qsort(candidates, (size_t)num, sizeof *candidates, by_weight);
    return cut_and_draw(p, num, total, state);
}

/* ------------------------------------------------------------------ version 3: the engine */

static llamita_sampler *engine_sampler;

static int32_t pick_engine(const llamita_sampler_params *p, const float *row, uint64_t *state) {
    int32_t id = -1;
    (void)p, (void)state; /* the sampler has its own */
    if (llamita_sampler_pick(engine_sampler, row, &id, NULL) != LLAMITA_OK) abort();
    return id;
}

/* ------------------------------------------------------------------ checking and timing */

typedef int32_t (*picker)(const llamita_sampler_params *, const float *, uint64_t *);
static const picker pickers[] = {pick_sorting, pick_filtering, pick_engine};
enum { NUM_PICKERS = sizeof pickers / sizeof *pickers };

static void open_engine_sampler(const llamita_sampler_params *p) {
    llamita_sampler_close(engine_sampler);
    llamita_error error;
    if (llamita_sampler_open(p, VOCAB, &engine_sampler, &error) == LLAMITA_OK) return;
    fprintf(stderr, "%s\n", error.message);
    exit(1);
}

static void check(const llamita_sampler_params *p, const char *name) {
    enum { CHECKS = 200 };
    uint64_t states[NUM_PICKERS];
    int differing = 0;
    for (int v = 0; v < NUM_PICKERS; v++) states[v] = p->seed;
    open_engine_sampler(p);
    for (int i = 0; i < CHECKS; i++) {
        const int32_t expected = pickers[0](p, logits[i % NUM_LOGITS], &states[0]);
        for (int v = 1; v < NUM_PICKERS; v++)
            differing += pickers[v](p, logits[i % NUM_LOGITS], &states[v]) != expected;
    }
    if (differing * 100 <= CHECKS) return;
    fprintf(stderr, "%s: %d of %d picks differ from sorting\n", name, differing, CHECKS * (NUM_PICKERS - 1));
    exit(1);
}

static double now_us(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

static int by_value(const void *left, const void *right) {
    const double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* Microseconds a pick: medians of interleaved rounds. */
static void measure(const llamita_sampler_params *p, double *medians) {
    double times[NUM_PICKERS][ROUNDS];
    uint64_t state = p->seed;
    for (int round = -1; round < ROUNDS; round++) /* round -1 warms up */
        for (int v = 0; v < NUM_PICKERS; v++) {
            const int picks = v == NUM_PICKERS - 1 ? 8 * PICKS : PICKS; /* the fast ones want a longer look */
            volatile int32_t sink;
            const double start = now_us();
            for (int i = 0; i < picks; i++) sink = pickers[v](p, logits[i % NUM_LOGITS], &state);
            (void)sink;
            if (round >= 0) times[v][round] = (now_us() - start) / picks;
        }
    for (int v = 0; v < NUM_PICKERS; v++) {
        qsort(times[v], ROUNDS, sizeof times[v][0], by_value);
        medians[v] = times[v][ROUNDS / 2];
    }
}

int main(void) {
    static const struct {
        const char *name;
        double slope, noise;
    } shapes[] = {{"peaked (-1.1 ln rank, noise 3)", 1.1, 3.0},
                  {"wide (-1.1 ln rank, noise 2)", 1.1, 2.0},
                  {"flat (noise 0.5)", 0.0, 0.5}};
    static const struct {
        const char *name;
        float temperature;
        int32_t top_k;
        float top_p;
    } settings[] = {{"greedy", 0, 0, 1},        {"temperature 1", 1, 0, 1},   {"temperature 0.7", 0.7f, 0, 1},
                    {"top-p 0.9", 1, 0, 0.9f},  {"top-p 0.9, t 0.7", 0.7f, 0, 0.9f}, {"top-k 40", 1, 40, 1},
                    {"k 40, p 0.95", 1, 40, 0.95f}, {"k 1000", 1, 1000, 1}};
    printf("microseconds a pick, %d ids, medians of %d interleaved rounds\n", (int)VOCAB, (int)ROUNDS);
    printf("%-32s %-18s %10s %10s %10s %8s\n", "logits", "setting", "sort all", "filter", "engine", "ratio");
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        make_logits(shapes[s].slope, shapes[s].noise);
        for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
            const llamita_sampler_params p = {.temperature = settings[i].temperature,
                                              .top_k = settings[i].top_k,
                                              .top_p = settings[i].top_p,
                                              .repetition_penalty = 1.0f,
                                              .seed = 7};
            check(&p, settings[i].name);
            double medians[NUM_PICKERS];
            measure(&p, medians);
            printf("%-32s %-18s %10.1f %10.1f %10.1f %8.1f\n", shapes[s].name, settings[i].name, medians[0],
                   medians[1], medians[2], medians[1] / medians[2]);
        }
    }
    llamita_sampler_close(engine_sampler);
    return 0;
}
