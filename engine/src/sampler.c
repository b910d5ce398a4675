/* sampler.c: logits in, one token id out: greedy, or drawn after temperature, top-k, top-p and min-p.
 *
 * Nothing is sorted. What top-k and top-p keep is everything above a cut and, of those exactly at it, the first few by
 * id; the cut is found digit by digit from the bits of the weights, which are in the order of the weights themselves.
 * Everything random or rounded here is made of IEEE additions, products and divisions in a fixed order, so the same
 * seed and logits give the same token on every machine.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "exponential.h"

struct llamita_sampler {
    llamita_sampler_params params;
    int32_t vocab_size;
    uint64_t random_state;

    int32_t *recent; /* [repetition_window], a ring */
    int32_t num_recent, next_recent;

    float *scaled;  /* [V] the logits after the penalty; then the weights exp((logit - largest) / temperature) */
    int32_t *ids;   /* [V] the candidates, ascending */
    float *weights; /* [V] theirs */
    int32_t num_candidates;
};

/* ------------------------------------------------------------------ opening and closing */

static llamita_status check(const llamita_sampler_params *p, int32_t vocab_size, llamita_error *error) {
#define REQUIRE(condition, name, expected, value)                                                                      \
    if (!(condition))                                                                                                  \
    return error_set(error, LLAMITA_ERROR_ARGUMENT,                                                                    \
                     "opening a sampler failed: " name ": expected " expected ", found %g", (double)(value))
    REQUIRE(vocab_size >= 1, "vocab_size", "at least 1", vocab_size);
    REQUIRE(p->temperature >= 0 && p->temperature <= FLT_MAX, "temperature", "0 (greedy) or a positive number",
            p->temperature);
    REQUIRE(p->top_k >= 0, "top_k", "0 (off) or a positive number", p->top_k);
    REQUIRE(p->top_p > 0 && p->top_p <= 1, "top_p", "above 0, to 1 (off)", p->top_p);
    REQUIRE(p->min_p >= 0 && p->min_p <= 1, "min_p", "0 (off) to 1", p->min_p);
    REQUIRE(p->repetition_penalty > 0 && p->repetition_penalty <= FLT_MAX, "repetition_penalty",
            "a positive number, 1 (off)", p->repetition_penalty);
    REQUIRE(p->repetition_window >= 0, "repetition_window", "0 (off) or a positive number", p->repetition_window);
#undef REQUIRE
    return LLAMITA_OK;
}

llamita_status llamita_sampler_open(const llamita_sampler_params *params, int32_t vocab_size, llamita_sampler **sampler,
                                    llamita_error *error) {
    const llamita_status status = check(params, vocab_size, error);
    if (status != LLAMITA_OK) return status;
    llamita_sampler *s = calloc(1, sizeof *s);
    if (s != NULL) {
        s->params = *params;
        s->vocab_size = vocab_size;
        s->random_state = params->seed;
        s->recent = calloc((size_t)params->repetition_window + 1, sizeof *s->recent);
        s->scaled = calloc((size_t)vocab_size, sizeof *s->scaled);
        s->ids = calloc((size_t)vocab_size, sizeof *s->ids);
        s->weights = calloc((size_t)vocab_size, sizeof *s->weights);
    }
    if (s == NULL || s->recent == NULL || s->scaled == NULL || s->ids == NULL || s->weights == NULL) {
        llamita_sampler_close(s);
        return error_set(error, LLAMITA_ERROR_MEMORY, "opening a sampler failed: out of memory");
    }
    *sampler = s;
    return LLAMITA_OK;
}

void llamita_sampler_close(llamita_sampler *s) {
    if (s == NULL) return;
    free(s->recent);
    free(s->scaled);
    free(s->ids);
    free(s->weights);
    free(s);
}

void llamita_sampler_accept(llamita_sampler *s, int32_t id) {
    if (s->params.repetition_window == 0 || id < 0 || id >= s->vocab_size) return;
    s->recent[s->next_recent] = id;
    s->next_recent = (s->next_recent + 1) % s->params.repetition_window;
    if (s->num_recent < s->params.repetition_window) s->num_recent++;
}

/* ------------------------------------------------------------------ from logits to weights */

/* Copies the logits to scaled with the penalty; false if one is not finite. */
static bool penalise(llamita_sampler *s, const float *logits) {
    int damaged = 0;
    for (int32_t i = 0; i < s->vocab_size; i++) {
        damaged |= !(fabsf(logits[i]) <= FLT_MAX);
        s->scaled[i] = logits[i];
    }
    if (s->params.repetition_penalty != 1.0f)
        for (int32_t i = 0; i < s->num_recent; i++) { /* always from the logits: a token counts once */
            const float logit = logits[s->recent[i]], penalty = s->params.repetition_penalty;
            const float penalised = logit > 0 ? logit / penalty : logit * penalty;
            s->scaled[s->recent[i]] = penalised > FLT_MAX ? FLT_MAX : penalised < -FLT_MAX ? -FLT_MAX : penalised;
        }
    return !damaged;
}

/* First the value, in lanes that become vector code, then where it is. No value is NaN. */
static int32_t first_maximum(const float *values, int32_t length) {
    enum { LANES = 16 };
    float lane[LANES], largest = values[0];
    int32_t i = 0, place = 0;
    for (int j = 0; j < LANES; j++) lane[j] = largest;
    for (; i + LANES <= length; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] = values[i + j] > lane[j] ? values[i + j] : lane[j];
    for (; i < length; i++) largest = values[i] > largest ? values[i] : largest;
    for (int j = 0; j < LANES; j++) largest = lane[j] > largest ? lane[j] : largest;
    while (values[place] < largest) place++;
    return place;
}

/* scaled = exp((scaled - largest) / temperature): the largest weight is 1. */
static void weigh(llamita_sampler *s, float largest) {
    const float temperature = s->params.temperature;
    for (int32_t i = 0; i < s->vocab_size; i++) s->scaled[i] = exponential((s->scaled[i] - largest) / temperature);
}

/* Candidates are all tokens with at least this weight. Where few are, most groups hold none and are passed over. */
static void gather(llamita_sampler *s, float least) {
    enum { GROUP = 16 };
    int32_t n = 0;
    for (int32_t first = 0; first < s->vocab_size; first += GROUP) {
        const int32_t end = s->vocab_size - first < GROUP ? s->vocab_size : first + GROUP;
        int any = end - first < GROUP;
        if (!any)
            for (int j = 0; j < GROUP; j++) any |= s->scaled[first + j] >= least;
        if (!any) continue;
        for (int32_t i = first; i < end; i++) {
            s->ids[n] = i;
            s->weights[n] = s->scaled[i];
            n += s->scaled[i] >= least;
        }
    }
    s->num_candidates = n;
}

static double total_weight(const float *weights, int32_t length) {
    double lane[4] = {0};
    int32_t i = 0;
    for (; i + 4 <= length; i += 4)
        for (int j = 0; j < 4; j++) lane[j] += (double)weights[i + j];
    for (; i < length; i++) lane[i % 4] += (double)weights[i];
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

/* ------------------------------------------------------------------ cutting off */

/* How much is kept: candidates in descending weight (equal ones: ascending id) until there are max_count of them or
 * their weights reach max_mass. */
typedef struct {
    int32_t max_count;
    double max_mass;
} budget;

#define DIGIT_BITS 11
#define NUM_DIGITS (1 << DIGIT_BITS)

static inline uint32_t weight_bits(float weight) { /* positive floats are in the order of their bits */
    uint32_t bits;
    memcpy(&bits, &weight, sizeof bits);
    return bits;
}

/* Of the candidates whose bits above shift + DIGIT_BITS equal those of prefix: finds the digit at shift in which the
 * budget ends, takes what lies above it from the budget, and returns prefix with that digit put in. */
static uint32_t find_digit(const llamita_sampler *s, uint32_t prefix, int shift, budget *left) {
    int32_t counts[NUM_DIGITS] = {0};
    double masses[NUM_DIGITS] = {0};
    const int above = shift + DIGIT_BITS;
    for (int32_t i = 0; i < s->num_candidates; i++) {
        const uint32_t bits = weight_bits(s->weights[i]);
        if (above < 32 && (bits >> above) != (prefix >> above)) continue;
        const uint32_t digit = (bits >> shift) % NUM_DIGITS;
        counts[digit]++;
        masses[digit] += (double)s->weights[i];
    }
    int32_t digit = NUM_DIGITS - 1, last = -1;
    for (; digit >= 0; digit--) {
        if (counts[digit] == 0) continue;
        last = digit;
        if (counts[digit] >= left->max_count || masses[digit] >= left->max_mass) break;
        left->max_count -= counts[digit];
        left->max_mass -= masses[digit];
    }
    if (digit < 0) { /* the budget outlasts them all (masses round): the last of them is the cut, and is kept whole */
        left->max_count += counts[last];
        left->max_mass += masses[last];
        digit = last;
    }
    return prefix | (uint32_t)digit << shift;
}

static void keep(llamita_sampler *s, budget left) {
    uint32_t cut = 0; /* bits of the smallest weight that is kept: 10 + 11 + 11 of them */
    for (int shift = 2 * DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) cut = find_digit(s, cut, shift, &left);
    int32_t n = 0;
    for (int32_t i = 0; i < s->num_candidates; i++) {
        const float weight = s->weights[i];
        if (weight_bits(weight) < cut) continue;
        if (weight_bits(weight) == cut) {
            if (left.max_count <= 0 || left.max_mass <= 0) continue;
            left.max_count--;
            left.max_mass -= (double)weight;
        }
        s->ids[n] = s->ids[i];
        s->weights[n++] = weight;
    }
    s->num_candidates = n;
}

/* Gathers what top-k keeps, or else all that top-p could keep, and then keeps what it does. A token that weighs less
 * than (1 - p) * total / n is not among those: all such together weigh less than what is cut off. */
static void gather_top(llamita_sampler *s) {
    const double p = (double)s->params.top_p;
    double total;
    if (s->params.top_k > 0 && s->params.top_k < s->vocab_size) {
        gather(s, 0.0f);
        keep(s, (budget){s->params.top_k, DBL_MAX});
        total = total_weight(s->weights, s->num_candidates);
    } else {
        total = total_weight(s->scaled, s->vocab_size);
        gather(s, (float)((1.0 - p) * total / s->vocab_size * 0.999)); /* rounding must not cut what belongs */
    }
    if (p < 1.0) keep(s, (budget){INT32_MAX, p * total});
}

static void keep_min_p(llamita_sampler *s) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->num_candidates; i++) {
        if (s->weights[i] < s->params.min_p) continue; /* the best weighs 1 */
        s->ids[n] = s->ids[i];
        s->weights[n++] = s->weights[i];
    }
    s->num_candidates = n;
}

/* ------------------------------------------------------------------ drawing */

/* splitmix64 (Steele, Lea and Flood, 2014), the upper 53 bits as a number in [0, 1). */
static double random_number(llamita_sampler *s) {
    uint64_t z = s->random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static int32_t draw(llamita_sampler *s) {
    double left = random_number(s) * total_weight(s->weights, s->num_candidates);
    int32_t last = 0;
    for (int32_t i = 0; i < s->num_candidates; i++) {
        if (s->weights[i] <= 0.0f) continue;
        last = i;
        left -= (double)s->weights[i];
        if (left < 0.0) break;
    }
    return s->ids[last];
}

llamita_status llamita_sampler_pick(llamita_sampler *s, const float *logits, int32_t *id, llamita_error *error) {
    if (!penalise(s, logits))
        return error_set(
            error, LLAMITA_ERROR_NUMERIC,
            "picking a token failed: some logits are infinite or not a number; the model's weights are damaged");
    const int32_t best = first_maximum(s->scaled, s->vocab_size);
    if (s->params.temperature == 0.0f) {
        *id = best;
        return LLAMITA_OK;
    }
    weigh(s, s->scaled[best]);
    gather_top(s);
    keep_min_p(s);
    *id = draw(s);
    return LLAMITA_OK;
}
