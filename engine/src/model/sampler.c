/* sampler.c: picks the next token from the logits.
 *
 * A pick is a chain of small steps (llamita_sampler_pick): penalties, softmax with temperature,
 * rules that drop tokens by setting their weight to 0 (top-k, top-p, min-p), and a draw among the
 * rest. A new rule is one more keep_* function in the chain.
 *
 * Nothing is sorted: bisection finds the smallest weight that top-k or top-p keeps. All arithmetic
 * is IEEE additions, products and divisions in a fixed order, so the same seed and logits give the
 * same token on every machine. */
#include "model/sampler.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/float_math.h"
#include "runtime/error.h"

enum { MAX_TOKENS = 1 << 30, COLUMNS = 16, ROWS = 16, BLOCK = ROWS * COLUMNS };

struct llamita_sampler {
    llamita_sampler_params params;
    int32_t vocab_size, num_blocks;
    uint64_t random_state;

    int32_t *recent; /* [repetition_window], a ring */
    int32_t num_recent, next_recent;

    float *logits;  /* [num_blocks][BLOCK] a copy, if a penalty or a partial last block needs one */
    float *peaks;   /* [num_blocks][COLUMNS] the largest logit of each column of a block */
    float *scratch; /* [num_blocks][BLOCK] */

    /* The candidates: all tokens, or (use_ids) those that top-k leaves. */
    float *weights; /* [candidate_blocks][BLOCK] exp((logit - largest) / temperature); 0: dropped */
    int32_t *ids;   /* [candidate_blocks][BLOCK] ascending, if use_ids */
    int32_t candidate_blocks;
    bool use_ids;
};

/* ------------------------------------------------------------------ opening and closing */

static llamita_status check(const llamita_sampler_params *p, int32_t vocab_size, llamita_error *error) {
#define REQUIRE(condition, name, expected, value)   \
    if (!(condition))                               \
    return error_set(error, LLAMITA_ERROR_ARGUMENT, \
                     "cannot open a sampler: " name ": expected " expected ", found %g", (double)(value))
    REQUIRE(vocab_size >= 1 && vocab_size <= MAX_TOKENS, "vocab_size", "1 to 1073741824", vocab_size);
    REQUIRE(p->temperature >= 0 && p->temperature <= FLT_MAX, "temperature", "0 (greedy) or a positive number",
            p->temperature);
    REQUIRE(p->top_k >= 0, "top_k", "0 (off) or a positive number", p->top_k);
    REQUIRE(p->top_p > 0 && p->top_p <= 1, "top_p", "above 0 and at most 1 (off)", p->top_p);
    REQUIRE(p->min_p >= 0 && p->min_p <= 1, "min_p", "0 (off) to 1", p->min_p);
    REQUIRE(p->repetition_penalty > 0 && p->repetition_penalty <= FLT_MAX, "repetition_penalty",
            "a positive number, 1 (off)", p->repetition_penalty);
    REQUIRE(p->repetition_window >= 0, "repetition_window", "0 (off) or a positive number", p->repetition_window);
#undef REQUIRE
    return LLAMITA_OK;
}

static bool allocate(llamita_sampler *s) {
    const size_t num = (size_t)s->num_blocks * BLOCK;
    s->recent = calloc((size_t)s->params.repetition_window + 1, sizeof *s->recent);
    s->logits = calloc(num, sizeof *s->logits);
    s->peaks = calloc(num / ROWS + BLOCK, sizeof *s->peaks); /* read in whole blocks */
    s->scratch = calloc(num, sizeof *s->scratch);
    s->weights = calloc(num, sizeof *s->weights);
    s->ids = calloc(num, sizeof *s->ids);
    return s->recent && s->logits && s->peaks && s->scratch && s->weights && s->ids;
}

llamita_status llamita_sampler_open(const llamita_sampler_params *params, int32_t vocab_size, llamita_sampler **sampler,
                                    llamita_error *error) {
    const llamita_status status = check(params, vocab_size, error);
    if (status != LLAMITA_OK) return status;
    llamita_sampler *s = calloc(1, sizeof *s);
    if (s) {
        s->params = *params;
        s->vocab_size = vocab_size;
        s->random_state = params->seed;
        s->num_blocks = (vocab_size + BLOCK - 1) / BLOCK;
    }
    if (!s || !allocate(s)) {
        llamita_sampler_close(s);
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot open a sampler: out of memory");
    }
    *sampler = s;
    return LLAMITA_OK;
}

void llamita_sampler_close(llamita_sampler *s) {
    if (!s) return;
    free(s->recent);
    free(s->logits);
    free(s->peaks);
    free(s->scratch);
    free(s->weights);
    free(s->ids);
    free(s);
}

int32_t sampler_vocab_size(const llamita_sampler *s) { return s->vocab_size; }

/* ------------------------------------------------------------------ penalties */

void llamita_sampler_accept(llamita_sampler *s, int32_t id) {
    if (s->params.repetition_window == 0 || id < 0 || id >= s->vocab_size) return;
    s->recent[s->next_recent] = id;
    s->next_recent = (s->next_recent + 1) % s->params.repetition_window;
    if (s->num_recent < s->params.repetition_window) s->num_recent++;
}

/* Returns the logits with the penalty, in whole blocks: the caller's own array if nothing
 * changes. */
static const float *penalize(llamita_sampler *s, const float *logits) {
    const float penalty = s->params.repetition_penalty;
    const bool penalized = penalty != 1.0f && s->num_recent > 0;
    if (!penalized && s->vocab_size % BLOCK == 0) return logits;
    memcpy(s->logits, logits, (size_t)s->vocab_size * sizeof *logits);
    for (int32_t i = 0; i < s->num_recent && penalized; i++) {
        /* Computed from the original logit, so a token counts once. */
        const float logit = logits[s->recent[i]], changed = logit > 0 ? logit / penalty : logit * penalty;
        if (!(fabsf(logit) <= FLT_MAX)) continue; /* survey reports it */
        s->logits[s->recent[i]] = changed > FLT_MAX ? FLT_MAX : changed < -FLT_MAX ? -FLT_MAX : changed;
    }
    return s->logits;
}

/* ------------------------------------------------------------------ loops over the vocabulary */

/* A block is ROWS rows of COLUMNS. Sums and maxima run down the columns, so compilers can vectorize
 * them. The AVX2 clones give the same bits: CMakeLists.txt forbids fusing and reordering of
 * floating-point operations. ThreadSanitizer crashes on clones: their resolver runs before it
 * starts. */
#if defined(__SANITIZE_THREAD__)
#define SAMPLER_PORTABLE
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SAMPLER_PORTABLE
#endif
#endif
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(SAMPLER_PORTABLE)
#define VECTOR __attribute__((target_clones("avx2", "default")))
#else
#define VECTOR
#endif

/* Fills peaks with the largest value of each column. False if a value is not finite. */
VECTOR static bool survey(const float *restrict values, int32_t num_blocks, float *restrict peaks) {
    float damage[COLUMNS] = {0}, sum = 0; /* only finite values times 0 are 0 */
    for (int32_t b = 0; b < num_blocks; b++, values += BLOCK, peaks += COLUMNS)
        for (int j = 0; j < COLUMNS; j++) {
            float largest = values[j], zero = values[j] * 0.0f;
            for (int row = 1; row < ROWS; row++) {
                const float value = values[row * COLUMNS + j];
                largest = value > largest ? value : largest;
                zero += value * 0.0f;
            }
            peaks[j] = largest;
            damage[j] += zero;
        }
    for (int j = 0; j < COLUMNS; j++) sum += damage[j];
    return sum == 0.0f;
}

/* 2^(4 y) for y <= 0. With 4 y = n + 4 f, |4 f| <= 1/2, it is 2^n (2^f)^4, and 2^f is 1 + f q(f),
 * where q is the Chebyshev interpolation of degree 2 of (2^f - 1) / f. Relative error: below 3e-6,
 * the relative distance of neighboring floats of the size of a logit, with half the operations of
 * exponential() in float_math.h. Adding ROUND rounds to quarters, whose number then lies, with the
 * exponent's bias, in the low bits; `lowest` is -127 / 4, where that is the exponent of 0. */
static inline float power_of_16(float y, float lowest) {
    static const float ROUND = 3145728.0f + 31.75f; /* 1.5 * 2^21, and 127 quarters */
    const float clamped = y > lowest ? y : lowest, shifted = clamped + ROUND, f = clamped - (shifted - ROUND);
    const float root = 1.0f + f * (0.693147182f + f * (0.240339234f + f * 0.0555197373f)), square = root * root;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return square * square * power;
}

/* weights = 2^((logits - largest) * scale) */
VECTOR static void weigh(const float *restrict logits, int32_t num_blocks, float largest, float scale,
                         float *restrict weights) {
    volatile const float known_at_run_time = -31.75f; /* otherwise the clamp is two instructions */
    const float lowest = known_at_run_time;
    for (int32_t i = 0; i < num_blocks * BLOCK; i++)
        weights[i] = power_of_16((logits[i] - largest) * (scale * 0.25f), lowest);
}

/* The sum of the weights that are at least `least`. */
VECTOR static double mass_from(const float *weights, int32_t num_blocks, float least) {
    double total = 0;
    for (int32_t b = 0; b < num_blocks; b++, weights += BLOCK) {
        float lane[COLUMNS];
        for (int j = 0; j < COLUMNS; j++) {
            float mass = 0;
            for (int row = 0; row < ROWS; row += 2) {
                const float first = weights[row * COLUMNS + j], second = weights[(row + 1) * COLUMNS + j];
                mass += (first >= least ? first : 0.0f) + (second >= least ? second : 0.0f);
            }
            lane[j] = mass;
        }
        double sum[4];
        for (int j = 0; j < 4; j++)
            sum[j] = ((double)lane[j] + (double)lane[j + 4]) + ((double)lane[j + 8] + (double)lane[j + 12]);
        total += (sum[0] + sum[2]) + (sum[1] + sum[3]);
    }
    return total;
}

/* The number of weights that are at least `least`. */
VECTOR static double count_from(const float *weights, int32_t num_blocks, float least) {
    int32_t count = 0;
    for (int32_t i = 0; i < num_blocks * BLOCK; i++) count += weights[i] >= least;
    return (double)count;
}

VECTOR static void drop_below(float *weights, int32_t num_blocks, float least) {
    for (int32_t i = 0; i < num_blocks * BLOCK; i++) weights[i] = weights[i] >= least ? weights[i] : 0.0f;
}

/* Copies the values in [low, high) to out, which may be `values`, and their indices to places
 * unless it is NULL. Returns the count. */
VECTOR static int32_t gather(const float *values, int32_t num_blocks, float low, float high, float *out,
                             int32_t *places) {
    enum { GROUP = 32 };
    int32_t num = 0;
    for (int32_t start = 0; start < num_blocks * BLOCK; start += GROUP) {
        int32_t any = 0;
        for (int i = 0; i < GROUP; i++) any |= (values[start + i] >= low) & (values[start + i] < high);
        if (any == 0) continue;
        for (int i = 0; i < GROUP; i++) {
            const float value = values[start + i];
            out[num] = value;
            if (places) places[num] = start + i;
            num += (value >= low) & (value < high);
        }
    }
    return num;
}

/* Pads the last block. Returns the number of blocks. */
static int32_t pad(float *values, int32_t num, float padding) {
    for (; num % BLOCK != 0; num++) values[num] = padding;
    return num / BLOCK;
}

/* ------------------------------------------------------------------ cuts */

/* The bits of positive floats are in the order of the floats. */
static uint32_t bits_of(float weight) {
    uint32_t bits;
    memcpy(&bits, &weight, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float weight;
    memcpy(&weight, &bits, sizeof weight);
    return weight;
}

/* mass_from or count_from */
typedef double measure(const float *weights, int32_t num_blocks, float least);

typedef struct {
    float weight; /* the smallest that is kept */
    double rest;  /* of the wanted amount, for weights equal to this one */
    int32_t ties; /* number of weights equal to this one */
} cut;

/* The largest cut that keeps the wanted amount, or `least` if all weights from there on are not
 * enough. After some steps only the weights that can still be the cut are searched. */
static cut find_cut(const float *weights, int32_t num_blocks, measure *measure, double wanted, float least,
                    float *scratch) {
    enum { STEPS_BEFORE_GATHERING = 8 };
    uint32_t enough = bits_of(least), too_high = bits_of(1.0f) + 1;
    double above = 0; /* the amount from too_high on */
    for (int step = 1;; step++) {
        const uint32_t middle = enough + (too_high - enough) / 2;
        const double amount = measure(weights, num_blocks, float_of(middle));
        if (amount >= wanted) {
            enough = middle;
        } else {
            too_high = middle;
            above = amount;
        }
        const bool found = too_high - enough <= 1;
        if (!found && step % STEPS_BEFORE_GATHERING != 0) continue;
        const int32_t num = gather(weights, num_blocks, float_of(enough), float_of(too_high), scratch, NULL);
        wanted -= above;
        above = 0;
        if (found) return (cut){float_of(enough), wanted, num};
        weights = scratch;
        num_blocks = pad(scratch, num, 0.0f);
    }
}

/* Drops all weights below the cut, and all ties but the first: each tie that is kept takes `unit`
 * of the rest. */
static void apply(llamita_sampler *s, cut c, double unit) {
    drop_below(s->weights, s->candidate_blocks, c.weight);
    double num_kept = fmax(1.0, ceil(c.rest / unit));
    for (int32_t i = 0; i < s->candidate_blocks * BLOCK && num_kept < c.ties; i++)
        if (s->weights[i] == c.weight && --num_kept < 0) s->weights[i] = 0.0f;
}

/* ------------------------------------------------------------------ the chain */

static int32_t first_of(const llamita_sampler *s, const float *logits, float largest) {
    int32_t column = 0;
    while (s->peaks[column] < largest) column++;
    int32_t id = column / COLUMNS * BLOCK;
    while (logits[id] < largest) id++;
    return id;
}

static void softmax(llamita_sampler *s, const float *logits, float largest, float scale) {
    weigh(logits, s->num_blocks, largest, scale, s->weights);
    s->candidate_blocks = s->num_blocks;
    s->use_ids = false;
}

/* Like softmax, but keeps only the k most probable tokens: first those that reach the k-th largest
 * peak, which are few and at least k, then exactly k. */
static void softmax_of_top_k(llamita_sampler *s, const float *logits, float largest, float scale, int32_t k) {
    const int32_t num_peaks = s->num_blocks * COLUMNS, peak_blocks = pad(s->peaks, num_peaks, -INFINITY);
    weigh(s->peaks, peak_blocks, largest, scale, s->weights);
    const float floor = find_cut(s->weights, peak_blocks, count_from, k, FLT_MIN, s->scratch).weight;
    float limit = k < num_peaks && floor > FLT_MIN ? largest : -FLT_MAX; /* too few peaks: all */
    for (int32_t i = 0; i < num_peaks; i++) limit = s->weights[i] >= floor && s->peaks[i] < limit ? s->peaks[i] : limit;
    const int32_t num = gather(logits, s->num_blocks, limit, INFINITY, s->scratch, s->ids);
    s->candidate_blocks = pad(s->scratch, num, -INFINITY);
    s->use_ids = true;
    weigh(s->scratch, s->candidate_blocks, largest, scale, s->weights);
    apply(s, find_cut(s->weights, s->candidate_blocks, count_from, k, FLT_MIN, s->scratch), 1.0);
}

static void keep_top_p(llamita_sampler *s, float p) {
    const double total = mass_from(s->weights, s->candidate_blocks, 0.0f), wanted = (double)p * total;
    /* All tokens below `least` together weigh less than what top-p drops. 0.999 covers rounding. */
    const float least = fmaxf(FLT_MIN, (float)((total - wanted) / s->vocab_size * 0.999));
    const cut c = find_cut(s->weights, s->candidate_blocks, mass_from, wanted, least, s->scratch);
    apply(s, c, (double)c.weight);
}

/* Weights are relative to the best token's, which is 1. */
static void keep_min_p(llamita_sampler *s, float p) { drop_below(s->weights, s->candidate_blocks, p); }

/* splitmix64 (Steele, Lea and Flood, 2014), the upper 53 bits as a number in [0, 1). */
static double random_number(llamita_sampler *s) {
    uint64_t z = s->random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* Walks the candidates up to a random share of their mass. If rounding leaves some of it, draws the
 * last one. */
static int32_t draw(llamita_sampler *s) {
    double left = random_number(s) * mass_from(s->weights, s->candidate_blocks, 0.0f);
    int32_t start = 0, last = 0;
    for (int32_t b = 0; b < s->candidate_blocks; b++) {
        const double mass = mass_from(s->weights + b * BLOCK, 1, 0.0f);
        if (mass <= 0.0) continue;
        start = b * BLOCK;
        if (left < mass) break;
        left -= mass;
    }
    for (int32_t i = start; i < start + BLOCK && left >= 0.0; i++) {
        if (s->weights[i] == 0.0f) continue;
        last = i;
        left -= (double)s->weights[i];
    }
    return s->use_ids ? s->ids[last] : last;
}

llamita_status llamita_sampler_pick(llamita_sampler *s, const float *logits, int32_t *id, llamita_error *error) {
    const llamita_sampler_params *p = &s->params;
    logits = penalize(s, logits);
    pad(s->logits, s->vocab_size, -FLT_MAX); /* finite, and never the first of the largest */
    if (!survey(logits, s->num_blocks, s->peaks))
        return error_set(
            error, LLAMITA_ERROR_NUMERIC,
            "cannot pick a token: expected finite logits, found infinity or NaN; the model's weights are damaged");
    pad(s->logits, s->vocab_size, -INFINITY); /* weight 0 */
    float largest = s->peaks[0];
    for (int32_t i = 1; i < s->num_blocks * COLUMNS; i++) largest = s->peaks[i] > largest ? s->peaks[i] : largest;
    if (p->temperature == 0.0f) {
        *id = first_of(s, logits, largest);
        return LLAMITA_OK;
    }
    const float scale = fminf(FLT_MAX, EXP_LOG2_E / p->temperature);
    if (p->top_k > 0 && p->top_k < s->vocab_size) softmax_of_top_k(s, logits, largest, scale, p->top_k);
    else softmax(s, logits, largest, scale);
    if (p->top_p < 1.0f) keep_top_p(s, p->top_p);
    if (p->min_p > 0.0f) keep_min_p(s, p->min_p);
    *id = draw(s);
    return LLAMITA_OK;
}
