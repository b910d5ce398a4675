/* test_sampler.c: the sampler compared with one that sorts, its draws with their probabilities, and
 * its argument checks. */
#include "llamita.h"

/* The sampler again, under other names and without its AVX2 clones. */
void portable_close(llamita_sampler *sampler);
#define SAMPLER_PORTABLE
#define llamita_sampler_open portable_open
#define llamita_sampler_begin_text portable_begin_text
#define llamita_sampler_close portable_close
#define llamita_sampler_accept portable_accept
#define llamita_sampler_pick portable_pick
#define sampler_vocab_size portable_vocab_size
#include "model/sampler.c"
#undef llamita_sampler_open
#undef llamita_sampler_close
#undef llamita_sampler_accept
#undef llamita_sampler_pick
#undef sampler_vocab_size

#include "random_model.h"

static llamita_error error;
static const llamita_sampler_params off = {.temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f};

static llamita_sampler *open_sampler(llamita_sampler_params params, int32_t vocab_size) {
    llamita_sampler *sampler = NULL;
    REQUIRE(llamita_sampler_open(&params, vocab_size, &sampler, &error) == LLAMITA_OK, "%s", error.message);
    return sampler;
}

static int32_t pick(llamita_sampler *sampler, const float *logits) {
    int32_t id = -1;
    REQUIRE(llamita_sampler_pick(sampler, logits, &id, &error) == LLAMITA_OK, "%s", error.message);
    return id;
}

/* ----------------------------------------------------------- candidates and their probabilities */

typedef struct {
    double weight;
    int32_t id;
} candidate;

static int by_weight(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    if (a->weight != b->weight) return a->weight < b->weight ? 1 : -1;
    return a->id < b->id ? -1 : 1;
}

/* Computes by sorting: the candidates in order and the probabilities they are drawn with. Returns
 * their number. doubtful: a candidate is so close to a limit, by this share, that rounding may
 * decide. */
static int32_t naive_candidates(const llamita_sampler_params *p, const float *logits, int32_t n, double share,
                                candidate *out, bool *doubtful) {
    float largest = logits[0];
    for (int32_t i = 1; i < n; i++) largest = fmaxf(largest, logits[i]);
    double total = 0, mass = 0;
    for (int32_t i = 0; i < n; i++) out[i] = (candidate){exp((double)((logits[i] - largest) / p->temperature)), i};
    qsort(out, (size_t)n, sizeof *out, by_weight);
    int32_t kept = p->top_k > 0 && p->top_k < n ? p->top_k : n;
    for (int32_t i = 0; i < kept; i++) total += out[i].weight;
    *doubtful = false;
    if (p->top_p < 1.0f)
        for (int32_t i = 0; i < kept; i++) {
            mass += out[i].weight;
            *doubtful |= fabs(mass / total - (double)p->top_p) < share;
            if (mass >= (double)p->top_p * total) kept = i + 1;
        }
    for (int32_t i = 0; i < kept; i++) {
        *doubtful |= fabs(out[i].weight - (double)p->min_p) < share && p->min_p > 0.0f;
        if (out[i].weight < (double)p->min_p) kept = i;
    }
    total = 0;
    for (int32_t i = 0; i < kept; i++) total += out[i].weight;
    for (int32_t i = 0; i < kept; i++) out[i].weight /= total;
    return kept;
}

/* Draws many times: only candidates may appear, each about as often as expected (five standard
 * deviations). */
static void check_odds(llamita_sampler_params params, const float *logits, int32_t vocab_size) {
    enum { DRAWS = 4000 };
    candidate *expected = allocate_or_die((size_t)vocab_size * sizeof *expected);
    int *counts = allocate_or_die((size_t)vocab_size * sizeof *counts);
    bool doubtful;
    const int32_t kept = naive_candidates(&params, logits, vocab_size, 1e-5, expected, &doubtful);
    llamita_sampler *sampler = open_sampler(params, vocab_size);
    for (int i = 0; i < DRAWS && !doubtful; i++) counts[pick(sampler, logits)]++;
    for (int32_t i = 0; i < kept && !doubtful; i++) {
        const double mean = DRAWS * expected[i].weight, deviation = sqrt(mean * (1 - expected[i].weight)) + 1e-9;
        CHECK(fabs(counts[expected[i].id] - mean) < 5.5 * deviation + 3,
              "k %d p %g min %g: id %d drawn %d times, expected %g", (int)params.top_k, (double)params.top_p,
              (double)params.min_p, (int)expected[i].id, counts[expected[i].id], mean);
        counts[expected[i].id] = 0;
    }
    for (int32_t i = 0; i < vocab_size; i++)
        CHECK(counts[i] == 0 || doubtful, "k %d p %g min %g t %g: id %d drawn %d times, but it was cut off",
              (int)params.top_k, (double)params.top_p, (double)params.min_p, (double)params.temperature, (int)i,
              counts[i]);
    llamita_sampler_close(sampler);
    free(expected);
    free(counts);
}

static void test_odds(void) {
    static float logits[3000];
    for (int round = 0; round < 30; round++) {
        const int32_t vocab_size = round % 3 == 0 ? 3000 : 1 + random_below(200);
        for (int32_t i = 0; i < vocab_size; i++) logits[i] = 3.0f * random_float();
        if (round % 4 == 0) /* many ties: the cut goes through them by id */
            for (int32_t i = 0; i < vocab_size; i++) logits[i] = floorf(logits[i]);
        llamita_sampler_params params = off;
        params.seed = (uint64_t)round;
        params.temperature = 0.5f + 0.25f * (float)(round % 5);
        if (round % 2) params.top_k = 1 + random_below(40);
        if (round % 3) params.top_p = 0.3f + 0.069f * (float)random_below(10);
        if (round % 5 == 4) params.min_p = 0.05f;
        check_odds(params, logits, vocab_size);
    }
    for (int i = 0; i < 300; i++) logits[i] = 1.0f; /* all equal */
    llamita_sampler_params params = off;
    params.top_k = 7;
    check_odds(params, logits, 300);
    params.top_k = 0;
    params.top_p = 0.101f;
    check_odds(params, logits, 300);
    check_odds(off, logits, 300);
}

/* ------------------------------------------------------------------ large vocabularies */

static int by_id(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    return (a->id > b->id) - (a->id < b->id);
}

/* The sampler's random numbers: splitmix64. */
static double next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

enum { LARGE = 20011 };

/* Compares consecutive picks with those of sorting and summing. Returns 1, without picking, if
 * rounding may decide which tokens are kept. */
static int check_picks(llamita_sampler_params params, const float *logits, int32_t vocab_size) {
    static candidate expected[LARGE];
    bool doubtful;
    const int32_t kept = naive_candidates(&params, logits, vocab_size, 5e-6, expected, &doubtful);
    if (doubtful) return 1;
    qsort(expected, (size_t)kept, sizeof *expected, by_id);
    llamita_sampler *sampler = open_sampler(params, vocab_size);
    uint64_t state = params.seed;
    for (int draw = 0; draw < 20; draw++) {
        double left = next_random(&state);
        int32_t at = 0;
        while (at < kept - 1 && left >= expected[at].weight) left -= expected[at++].weight;
        const bool near_boundary = left < 5e-6 || expected[at].weight - left < 5e-6;
        const int32_t found = pick(sampler, logits);
        CHECK(found == expected[at].id || near_boundary, "k %d p %g min %g t %g: draw %d: %d, expected %d",
              (int)params.top_k, (double)params.top_p, (double)params.min_p, (double)params.temperature, draw,
              (int)found, (int)expected[at].id);
    }
    llamita_sampler_close(sampler);
    return 0;
}

/* Peaked, wide, flat, with the mass at the end, and with many ties that the cut goes through, also
 * ties far below, after most tokens were left behind. */
static void fill_large(float *logits, int32_t vocab_size, int shape) {
    for (int32_t i = 0; i < vocab_size; i++) {
        float noise = 0;
        for (int j = 0; j < 6; j++) noise += random_float(); /* almost normal, deviation 1.4 */
        const float rank = -1.1f * logf((float)(i + 1));
        const float late = -0.01f * (float)(vocab_size - i);
        const float values[] = {rank + 2.0f * noise,
                                rank + noise,
                                0.3f * noise,
                                late,
                                floorf(noise),
                                floorf(noise + rank),
                                0.0f,
                                40.0f * noise,
                                -0.5f * floorf(sqrtf((float)i)),
                                i % 997 == 5  ? noise
                                : i % 31 == 5 ? -9.0f
                                              : -14.0f};
        logits[i] = values[shape];
    }
}

static void test_large(void) {
    static float logits[LARGE];
    static const float masses[] = {0.9f, 0.5f, 0.95f, 0.999f, 0.01f, 1.0f};
    int doubtful = 0, cases = 0;
    for (int shape = 0; shape < 10; shape++)
        for (int round = 0; round < 10; round++) {
            const int32_t vocab_size = round == 0 ? LARGE : round == 1 ? 16 * 256 : 1 + random_below(LARGE);
            fill_large(logits, vocab_size, shape);
            llamita_sampler_params params = off;
            params.seed = (uint64_t)round;
            params.temperature = round % 3 == 0 ? 1.0f : 0.4f + 0.3f * (float)random_below(5);
            params.top_p = masses[round % 6];
            if (round >= 5) params.top_k = round % 2 ? 40 : 1 + random_below(vocab_size);
            if (round % 4 == 3) params.min_p = 0.01f;
            doubtful += check_picks(params, logits, vocab_size);
            cases++;
        }
    CHECK(doubtful < cases / 4, "rounding decides in %d of %d cases", doubtful, cases);
}

/* ------------------------------------------------------------------ the same on every machine */

/* Logits computed from integers alone: rounded normals with a slope, or many ties. */
static void fill_exactly(float *logits, int32_t vocab_size, bool ties, uint64_t seed) {
    for (int32_t i = 0; i < vocab_size; i++) {
        int32_t sum = 0;
        for (int j = 0; j < 6; j++) sum += (int32_t)(next_random(&seed) * 0x1p16);
        logits[i] = (float)(sum >> (ties ? 14 : 0)) * (ties ? 0.5f : 0x1p-15f) - 0x1p-10f * (float)(i / 64);
    }
}

/* The AVX2 clones and the plain loops pick the same twenty tokens. The samplers accept each modulo
 * `distinct`. Returns the hash continued with the picks. */
static uint64_t compare_picks(const llamita_sampler_params *params, const float *logits, int32_t vocab_size,
                              int32_t distinct, uint64_t round, uint64_t hash) {
    llamita_sampler *fast = open_sampler(*params, vocab_size), *plain = NULL;
    REQUIRE(portable_open(params, vocab_size, &plain, &error) == LLAMITA_OK, "%s", error.message);
    for (int draw = 0; draw < 20; draw++) {
        int32_t expected = -1;
        CHECK(portable_pick(plain, logits, &expected, &error) == LLAMITA_OK, "%s", error.message);
        const int32_t found = pick(fast, logits);
        CHECK(found == expected, "round %d: %d, by plain loops %d", (int)round, (int)found, (int)expected);
        CHECK(found >= 0 && found < vocab_size, "round %d: %d of %d", (int)round, (int)found, (int)vocab_size);
        llamita_sampler_accept(fast, found % distinct);
        portable_accept(plain, found % distinct);
        hash = (hash ^ (uint64_t)found) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    llamita_sampler_close(fast);
    portable_close(plain);
    return hash;
}

/* The plain loops pick the same tokens as the AVX2 clones. The hash of all picks was computed
 * once, with other code, and may not change. */
static void test_every_machine(void) {
    static float logits[LARGE];
    static const float temperatures[] = {1.0f, 0.8f, 0.1f, 2.0f}, masses[] = {1.0f, 0.9f, 0.5f, 0.999f};
    static const int32_t ks[] = {0, 40, 1, 3000};
    uint64_t hash = 0;
    for (uint64_t round = 0; round < 128; round++) {
        const int32_t vocab_size = (int32_t[]){LARGE, 16 * 256, 512, 300}[round / 2 % 4];
        fill_exactly(logits, vocab_size, round % 2, round);
        llamita_sampler_params params = off;
        params.seed = round;
        params.temperature = temperatures[round / 8 % 4];
        params.top_p = masses[round % 4];
        params.top_k = ks[round / 32];
        params.min_p = round % 3 ? 0.0f : 0.02f;
        params.repetition_penalty = round % 5 ? 1.0f : 1.3f;
        params.repetition_window = 8;
        hash = compare_picks(&params, logits, vocab_size, vocab_size, round, hash);
    }
    CHECK(hash == 0xe614eb132b022002u, "hash of all picks: 0x%llx", (unsigned long long)hash);
}

/* Steps that the hash does not cover: the plain loops pick the same tokens. */
static void test_other_steps(void) {
    static float logits[LARGE];
    for (uint64_t round = 0; round < 96; round++) {
        const int32_t vocab_size = (int32_t[]){LARGE, 16 * 256, 300}[round % 3];
        fill_exactly(logits, vocab_size, round % 2, round);
        llamita_sampler_params params = off;
        params.seed = round;
        params.temperature = round % 7 ? 0.9f : 3.0f;
        if (round % 4 == 0) params.typical_p = 0.1f + 0.008f * (float)round;
        if (round % 4 == 1) params.xtc_probability = 0.8f, params.xtc_threshold = 0.002f * (float)(round % 20);
        if (round % 4 == 2) params.mirostat_tau = 0.1f * (float)round, params.mirostat_eta = 0.3f;
        if (round % 4 == 3) params.dry_multiplier = 0.8f, params.dry_base = 1.7f;
        if (round % 5 == 0) params.top_k = 1 + random_below(vocab_size);
        if (round % 5 == 1) params.top_p = 0.8f, params.min_p = 0.1f;
        params.dry_allowed_length = 1;
        params.dry_window = 50;
        compare_picks(&params, logits, vocab_size, 8, round, 0);
    }
}

/* ------------------------------------------------------------------ the rest */

static void test_greedy(void) {
    float logits[50];
    llamita_sampler_params greedy = off, first = off, cold = off;
    greedy.temperature = 0.0f;
    first.top_k = 1;
    cold.temperature = 1e-30f;
    llamita_sampler *samplers[] = {open_sampler(greedy, 50), open_sampler(first, 50), open_sampler(cold, 50)};
    for (int round = 0; round < 200; round++) {
        for (int i = 0; i < 50; i++) logits[i] = random_float();
        const int best = random_below(40), next = best + random_below(10);
        logits[best] = logits[next] = 9.0f; /* the first of a tie */
        CHECK(pick(samplers[0], logits) == best && pick(samplers[1], logits) == best, "expected %d", best);
        const int32_t found = pick(samplers[2], logits);
        CHECK(found == best || found == next, "cold: expected %d or %d, found %d", best, next, (int)found);
    }
    for (int i = 0; i < 3; i++) llamita_sampler_close(samplers[i]);
}

/* However small the mass that is asked for, and however large the temperature: at least one token is
 * left, of equal ones the first. Typical-p keeps equal ones together, and Mirostat drops none. */
static void test_one_is_left(void) {
    enum { SIZE = 6128, FIRST = 3 };
    static float logits[SIZE] = {-9.0f, -9.0f, -9.0f};
    const llamita_sampler_params steps[] = {
        {.top_p = 1e-30f},
        {.top_p = 1.0f, .top_k = 1},
        {.top_p = 1.0f, .typical_p = 1e-30f, .min_p = 1.0f},
        {.top_p = 1.0f, .mirostat_tau = 1e-3f, .mirostat_eta = 1.0f},
        {.top_p = 0.9f, .top_k = 6000, .typical_p = 0.9f},
    };
    const float temperatures[] = {1.0f, 1e-30f, 1e4f, 1e6f}; /* with the last one all are equal */
    for (int i = 0; i < 5; i++)
        for (int t = 0; t < 4; t++) {
            llamita_sampler_params params = steps[i];
            params.temperature = temperatures[t];
            params.repetition_penalty = 1.0f;
            llamita_sampler *sampler = open_sampler(params, SIZE);
            int32_t last = 0;
            for (int draw = 0; draw < 20; draw++) {
                const int32_t found = pick(sampler, logits);
                const bool as_expected = i < 2 ? found == FIRST || t == 3 : found >= FIRST || t > 1;
                CHECK(as_expected && found >= 0 && found < SIZE, "steps %d, %d: %d", i, t, (int)found);
                if (found > last) last = found;
            }
            CHECK(i < 2 || last > SIZE / 2, "steps %d, %d: only tokens up to %d", i, t, (int)last);
            llamita_sampler_close(sampler);
        }
}

/* The same on every machine: these numbers were computed once and may not change. */
static void test_fixed_draws(void) {
    static const int32_t expected[12] = {741, 173, 284, 336, 39, 877, 224, 804, 334, 618, 211, 495};
    float logits[1000];
    for (int i = 0; i < 1000; i++) logits[i] = (float)((i * 7919) % 1000) * 0.01f;
    llamita_sampler_params params = off;
    params.seed = 42;
    params.temperature = 0.9f;
    params.top_p = 0.95f;
    llamita_sampler *samplers[] = {open_sampler(params, 1000), open_sampler(params, 1000)};
    for (int i = 0; i < 12; i++) {
        const int32_t found = pick(samplers[0], logits);
        CHECK(found == expected[i], "draw %d: %d, expected %d", i, (int)found, (int)expected[i]);
        CHECK(found == pick(samplers[1], logits), "the same seed gives different tokens");
    }
    llamita_sampler_close(samplers[0]);
    llamita_sampler_close(samplers[1]);
}

static void test_penalty(void) {
    float logits[4] = {1.0f, 3.0f, -1.0f, 2.0f}, copy[4];
    memcpy(copy, logits, sizeof copy);
    llamita_sampler_params params = off;
    params.temperature = 0.0f;
    params.repetition_penalty = 2.0f;
    params.repetition_window = 2;
    llamita_sampler *sampler = open_sampler(params, 4);
    CHECK(pick(sampler, logits) == 1, "nothing repeated yet");
    llamita_sampler_accept(sampler, 1);
    CHECK(pick(sampler, logits) == 3, "3 / 2 < 2");
    llamita_sampler_accept(sampler, 1);
    CHECK(pick(sampler, logits) == 3, "a repeated token counts once");
    llamita_sampler_accept(sampler, 3);
    CHECK(pick(sampler, logits) == 1, "3 / 2 > 2 / 2");
    llamita_sampler_accept(sampler, 0);
    llamita_sampler_accept(sampler, 2);
    CHECK(pick(sampler, logits) == 1, "1 has left the window");
    const float negative[4] = {-1.0f, -9.0f, -1.2f, -9.0f};
    llamita_sampler_accept(sampler, 0);
    llamita_sampler_accept(sampler, 0);
    CHECK(pick(sampler, negative) == 2, "-1 * 2 < -1.2");
    llamita_sampler_accept(sampler, -1);
    llamita_sampler_accept(sampler, 4);
    CHECK(pick(sampler, negative) == 2, "ids out of range are ignored");
    CHECK(memcmp(copy, logits, sizeof copy) == 0, "the caller's logits must not change");
    llamita_sampler_close(sampler);
}

static void test_refusals(void) {
    llamita_sampler_params wrong[12];
    for (int i = 0; i < 12; i++) wrong[i] = off;
    wrong[0].temperature = -0.1f, wrong[1].temperature = NAN, wrong[2].temperature = INFINITY, wrong[3].top_k = -1;
    wrong[4].top_p = 0.0f, wrong[5].top_p = 1.1f, wrong[6].top_p = NAN, wrong[7].min_p = -0.1f, wrong[8].min_p = 1.5f;
    wrong[9].repetition_penalty = 0.0f, wrong[10].repetition_window = -1, wrong[11].repetition_penalty = NAN;
    llamita_sampler *sampler = NULL;
    for (int i = 0; i < 12; i++) {
        CHECK(llamita_sampler_open(&wrong[i], 10, &sampler, &error) == LLAMITA_ERROR_ARGUMENT && sampler == NULL,
              "params %d", i);
        CHECK(strstr(error.message, "expected") != NULL, "%s", error.message);
    }
    CHECK(llamita_sampler_open(&off, 0, &sampler, &error) == LLAMITA_ERROR_ARGUMENT,
          "an empty vocabulary was accepted");
    const float damage[] = {NAN, INFINITY, -INFINITY};
    sampler = open_sampler(off, 10);
    for (int i = 0; i < 3; i++) {
        float logits[10] = {0};
        int32_t id = -5;
        logits[7] = damage[i];
        CHECK(llamita_sampler_pick(sampler, logits, &id, &error) == LLAMITA_ERROR_NUMERIC && id == -5, "damage %d", i);
    }
    llamita_sampler_close(sampler);
    llamita_sampler_close(NULL);
}

int main(void) {
    test_greedy();
    test_one_is_left();
    test_odds();
    test_large();
    test_every_machine();
    test_other_steps();
    test_fixed_draws();
    test_penalty();
    test_refusals();
    return check_failures();
}
