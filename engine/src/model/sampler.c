/* sampler.c: picks the next token from the logits.
 *
 * A pick is a chain of small steps (llamita_sampler_pick): penalties change logits, softmax with
 * temperature makes weights of them, the keep_* functions drop tokens by setting their weight to 0,
 * and one of the rest is drawn. Each does what llama.cpp's does.
 *
 * Nothing is sorted: bisection finds the smallest weight that a step keeps. All arithmetic is IEEE
 * additions, products and divisions in a fixed order, so the same seed and logits give the same
 * token on every machine. */
#include "model/sampler.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/float_math.h"
#include "model/model.h"
#include "runtime/error.h"
#include "tokenizer/tokenizer.h"

enum { MAX_SIZE = 1 << 24, COLUMNS = 16, ROWS = 16, BLOCK = ROWS * COLUMNS };

struct llamita_sampler {
    llamita_sampler_params params;
    int32_t vocab_size, num_blocks, window, num_recent;
    uint64_t random_state;
    double mirostat_mu; /* tokens of more surprise, in bits, are dropped */
    bool *breaks;       /* [V] tokens that no repetition goes beyond; NULL without DRY */

    /* All in `memory`. */
    float *memory, *logits; /* [num_blocks][BLOCK] a copy, if a penalty or a partial last block needs one */
    float *peaks;           /* [num_blocks][COLUMNS] the largest value of each column of a block */
    float *scratch;         /* [num_blocks][BLOCK] */
    int32_t *recent;        /* [2 * window] the last num_recent tokens, in order */
    int32_t *matches;       /* [window] */

    /* The candidates: all tokens, or (use_ids) those that top-k leaves. */
    float *weights; /* [candidate_blocks][BLOCK] exp((logit - largest) / temperature); 0: dropped */
    int32_t *ids;   /* [candidate_blocks][BLOCK] ascending, if use_ids */
    int32_t candidate_blocks;
    bool use_ids;
};

/* ------------------------------------------------------------------ opening and closing */

static llamita_status check(const llamita_sampler_params *p, int32_t vocab_size, llamita_error *error) {
    const bool dry = p->dry_multiplier > 0.0f;
    const struct {
        const char *name, *expected;
        double value, low, high;
    } rules[] = {
        {"vocab_size", "1 to 16777216", vocab_size, 1, MAX_SIZE},
        {"temperature", "0 (greedy) or a positive number", (double)p->temperature, 0, (double)FLT_MAX},
        {"top_k", "0 (off) or a positive number", p->top_k, 0, INT32_MAX},
        {"typical_p", "above 0 and at most 1 (off)", (double)p->typical_p, 0, 1},
        {"top_p", "above 0 and at most 1 (off)", (double)p->top_p, (double)FLT_TRUE_MIN, 1},
        {"min_p", "0 (off) to 1", (double)p->min_p, 0, 1},
        {"xtc_probability", "0 (off) to 1", (double)p->xtc_probability, 0, 1},
        {"xtc_threshold", "0 to 1", (double)p->xtc_threshold, 0, 1},
        {"mirostat_tau", "0 (off) to 100", (double)p->mirostat_tau, 0, 100},
        {"mirostat_eta", "0 to 1", (double)p->mirostat_eta, 0, 1},
        {"repetition_penalty", "a positive number, 1 (off)", (double)p->repetition_penalty, (double)FLT_TRUE_MIN,
         (double)FLT_MAX},
        {"presence_penalty", "-1e6 to 1e6", (double)p->presence_penalty, -1e6, 1e6},
        {"frequency_penalty", "-1e6 to 1e6", (double)p->frequency_penalty, -1e6, 1e6},
        {"repetition_window", "0 (off) to 16777216", p->repetition_window, 0, MAX_SIZE},
        {"dry_multiplier", "0 (off) to 1e6", (double)p->dry_multiplier, 0, 1e6},
        {"dry_base", "1 to 1e6", dry ? (double)p->dry_base : 1, 1, 1e6},
        {"dry_allowed_length", "1 to 16777216", dry ? p->dry_allowed_length : 1, 1, MAX_SIZE},
        {"dry_window", "1 to 16777216", dry ? p->dry_window : 1, 1, MAX_SIZE},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!(rules[i].value >= rules[i].low && rules[i].value <= rules[i].high))
            return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot open a sampler: %s: expected %s, found %g",
                             rules[i].name, rules[i].expected, rules[i].value);
    return LLAMITA_OK;
}

/* Marks the tokens with a line end, colon, quotation mark or asterisk, as llama.cpp does. */
static bool mark_breaks(llamita_sampler *s) {
    const tokenizer *t = s->params.model ? s->params.model->tokenizer : NULL;
    s->breaks = calloc((size_t)s->vocab_size, sizeof *s->breaks);
    for (int32_t id = 0; s->breaks && t && id < s->vocab_size; id++) {
        const char *bytes;
        size_t num_bytes;
        if (tokenizer_decode(t, -1, id, &bytes, &num_bytes, NULL) != LLAMITA_OK) continue;
        for (size_t i = 0; i < num_bytes; i++) s->breaks[id] |= bytes[i] && strchr("\n:\"*", bytes[i]);
    }
    return s->breaks;
}

static bool allocate(llamita_sampler *s) {
    if (s->params.typical_p == 0.0f) s->params.typical_p = 1.0f; /* off */
    const bool dry = s->params.dry_multiplier > 0.0f;
    const int32_t dry_window = dry ? s->params.dry_window : 0;
    s->window = dry_window > s->params.repetition_window ? dry_window : s->params.repetition_window;
    s->num_blocks = (s->vocab_size + BLOCK - 1) / BLOCK;
    const size_t num = (size_t)s->num_blocks * BLOCK, window = (size_t)s->window;
    s->memory = calloc(4 * num + num / ROWS + BLOCK + 3 * window, sizeof *s->memory);
    if (!s->memory || (dry && !mark_breaks(s))) return false;
    s->logits = s->memory;
    s->scratch = s->logits + num;
    s->weights = s->scratch + num;
    s->peaks = s->weights + num; /* read in whole blocks */
    s->ids = (int32_t *)(void *)(s->peaks + num / ROWS + BLOCK);
    s->recent = s->ids + num;
    s->matches = s->recent + 2 * window;
    return true;
}

llamita_status llamita_sampler_open(const llamita_sampler_params *params, int32_t vocab_size, llamita_sampler **sampler,
                                    llamita_error *error) {
    const llamita_status status = check(params, vocab_size, error);
    if (status != LLAMITA_OK) return status;
    llamita_sampler *s = calloc(1, sizeof *s);
    if (s)
        *s = (llamita_sampler){.params = *params,
                               .vocab_size = vocab_size,
                               .random_state = params->seed,
                               .mirostat_mu = 2.0 * (double)params->mirostat_tau};
    if (!s || !allocate(s)) {
        llamita_sampler_close(s);
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot open a sampler: out of memory");
    }
    *sampler = s;
    return LLAMITA_OK;
}

void llamita_sampler_close(llamita_sampler *s) {
    if (!s) return;
    free(s->memory);
    free(s->breaks);
    free(s);
}

int32_t sampler_vocab_size(const llamita_sampler *s) { return s->vocab_size; }

/* ------------------------------------------------------------------ penalties */

void llamita_sampler_accept(llamita_sampler *s, int32_t id) {
    if (s->window == 0 || id < 0 || id >= s->vocab_size) return;
    if (s->num_recent == 2 * s->window) {
        memcpy(s->recent, s->recent + s->window, (size_t)s->window * sizeof *s->recent);
        s->num_recent = s->window;
    }
    s->recent[s->num_recent++] = id;
}

void llamita_sampler_begin_text(llamita_sampler *s) { s->num_recent = 0; }

/* Logits that are not finite stay: survey reports them. Those of forbidden tokens stay the lowest. */
static void change(float *logit, float changed) {
    const float lowest = FORBIDDEN_LOGIT / 2;
    if (!(fabsf(*logit) <= FLT_MAX) || *logit <= FORBIDDEN_LOGIT) return;
    *logit = changed > FLT_MAX ? FLT_MAX : changed < lowest ? lowest : changed;
}

/* The last tokens of the text, at most *num; *num becomes their number. */
static const int32_t *last_tokens(const llamita_sampler *s, int32_t *num) {
    *num = *num < s->num_recent ? *num : s->num_recent;
    return s->recent + s->num_recent - *num;
}

/* Lowers logits by how often their tokens come in the window. */
static void penalize_tokens(llamita_sampler *s) {
    const llamita_sampler_params *p = &s->params;
    int32_t num = p->repetition_window;
    const int32_t *text = last_tokens(s, &num);
    float *counts = s->scratch;
    for (int32_t i = 0; i < num; i++) counts[text[i]] = 0.0f;
    for (int32_t i = 0; i < num; i++) counts[text[i]] += 1.0f;
    for (int32_t i = 0; i < num; i++) {
        float *logit = &s->logits[text[i]], *count = &counts[text[i]];
        if (*count == 0.0f) continue; /* done at its first place */
        change(logit, *logit > 0 ? *logit / p->repetition_penalty : *logit * p->repetition_penalty);
        change(logit, *logit - (*count * p->frequency_penalty + p->presence_penalty));
        *count = 0.0f;
    }
}

/* DRY: lowers the logits of tokens that would continue a repetition. matches[k]: how many tokens
 * before the last k ones are the end of the text again (the Z algorithm, from the end). */
static void penalize_repetitions(llamita_sampler *s) {
    const llamita_sampler_params *p = &s->params;
    int32_t num = p->dry_window, limit = 0;
    const int32_t *text = last_tokens(s, &num), *last = text + num - 1;
    while (limit < num && !s->breaks[last[-limit]]) limit++;
    if (num <= p->dry_allowed_length || limit < p->dry_allowed_length) return;
    for (int32_t k = 1, left = 0, right = 0; k < num; k++) {
        int32_t length = k < right ? s->matches[k - left] : 0;
        if (length > right - k) length = k < right ? right - k : 0;
        while (k + length < num && last[-length] == last[-k - length]) length++;
        s->matches[k] = length;
        if (k + length > right) right = (left = k) + length;
    }
    float *longest = s->scratch; /* of each token that came next */
    for (int32_t k = 1; k < num; k++) longest[last[1 - k]] = 0.0f;
    for (int32_t k = 1; k < num; k++) {
        const float length = (float)(s->matches[k] < limit ? s->matches[k] : limit);
        if (length > longest[last[1 - k]]) longest[last[1 - k]] = length;
    }
    for (int32_t k = 1; k < num; k++) {
        const int32_t id = last[1 - k];
        float penalty = p->dry_multiplier, more = longest[id] - (float)p->dry_allowed_length;
        if (more < 0.0f || s->breaks[id]) continue;
        for (; more > 0.0f && penalty < 1e30f; more -= 1.0f) penalty *= p->dry_base;
        change(&s->logits[id], s->logits[id] - penalty);
        longest[id] = -1.0f; /* done */
    }
}

/* Returns the logits with all penalties, in whole blocks: the caller's own array if nothing changes. */
static const float *penalize(llamita_sampler *s, const float *logits) {
    const llamita_sampler_params *p = &s->params;
    const bool tokens = p->repetition_penalty != 1.0f || p->frequency_penalty != 0.0f || p->presence_penalty != 0.0f;
    const bool changes = s->num_recent > 0 && (tokens || s->breaks);
    if (!changes && s->vocab_size % BLOCK == 0) return logits;
    memcpy(s->logits, logits, (size_t)s->vocab_size * sizeof *logits);
    if (changes && tokens) penalize_tokens(s);
    if (changes && s->breaks) penalize_repetitions(s);
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

/* log2 of x > 0: with m in [sqrt 1/2, sqrt 2] and t = (m - 1) / (m + 1), ln m = 2 (t + t^3/3 + ...). */
static inline float log2_of(float x) {
    int32_t bits, m_bits;
    float m;
    memcpy(&bits, &x, sizeof bits);
    const int32_t exponent = (bits - 0x3f3504f3) >> 23; /* sqrt 1/2 */
    m_bits = bits - exponent * (1 << 23);
    memcpy(&m, &m_bits, sizeof m);
    const float t = (m - 1.0f) / (m + 1.0f), u = t * t;
    return (float)exponent + t * (2.88539008f + u * (0.961796694f + u * (0.577078016f + u * 0.412198583f)));
}

/* out = -weights log2(weights), 0 for 0 */
VECTOR static void weigh_surprise(const float *restrict weights, int32_t num_blocks, float *restrict out) {
    for (int32_t i = 0; i < num_blocks * BLOCK; i++) out[i] = -weights[i] * log2_of(weights[i]);
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

VECTOR static void drop_outside(float *weights, int32_t num_blocks, float least, float most) {
    for (int32_t i = 0; i < num_blocks * BLOCK; i++)
        weights[i] = weights[i] >= least && weights[i] <= most ? weights[i] : 0.0f;
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
    drop_outside(s->weights, s->candidate_blocks, c.weight, FLT_MAX);
    double num_kept = fmax(1.0, ceil(c.rest / unit));
    for (int32_t i = 0; i < s->candidate_blocks * BLOCK && num_kept < c.ties; i++)
        if (s->weights[i] == c.weight && --num_kept < 0) s->weights[i] = 0.0f;
}

/* ------------------------------------------------------------------ the chain */

/* Fills peaks, and *largest. False if a value is not finite. */
static bool find_largest(llamita_sampler *s, const float *values, int32_t num_blocks, float *largest) {
    if (!survey(values, num_blocks, s->peaks)) return false;
    *largest = s->peaks[0];
    for (int32_t i = 1; i < num_blocks * COLUMNS; i++) *largest = s->peaks[i] > *largest ? s->peaks[i] : *largest;
    return true;
}

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

static double mass(const llamita_sampler *s) { return mass_from(s->weights, s->candidate_blocks, 0.0f); }

/* Keeps weights of at least p times the largest. */
static void keep_min_p(llamita_sampler *s, float p) {
    float largest = 1.0f; /* unless typical-p has dropped it */
    if (s->params.typical_p < 1.0f) find_largest(s, s->weights, s->candidate_blocks, &largest);
    drop_outside(s->weights, s->candidate_blocks, p * largest, FLT_MAX);
}

/* total / 2^bits, for weights: at most 1 */
static float share_of(double total, double bits) {
    const double share = bits > 0 ? total * (double)power_of_16((float)(bits * -0.25), -31.75f) : 1.0;
    return share < 1.0 ? (float)share : 1.0f;
}

/* Keeps the tokens whose surprise is nearest to the entropy, with at least the share p of the mass: the
 * weights between `center`, divided and multiplied by the same number. */
static void keep_typical(llamita_sampler *s, float p) {
    const double total = mass(s);
    weigh_surprise(s->weights, s->candidate_blocks, s->scratch);
    const double entropy = (double)log2_of((float)total) + mass_from(s->scratch, s->candidate_blocks, 0.0f) / total;
    const float center = share_of(total, entropy);
    uint32_t enough = bits_of(FLT_MIN), too_high = bits_of(center) + 1;
    while (too_high - enough > 1) {
        const uint32_t middle = enough + (too_high - enough) / 2;
        const float least = float_of(middle), beyond = float_of(bits_of(center * center / least) + 1);
        const double inside =
            mass_from(s->weights, s->candidate_blocks, least) - mass_from(s->weights, s->candidate_blocks, beyond);
        if (inside >= (double)p * total) enough = middle;
        else too_high = middle;
    }
    drop_outside(s->weights, s->candidate_blocks, float_of(enough), center * center / float_of(enough));
}

/* XTC: drops the tokens above the least probable one that has at least the threshold. */
static void keep_unusual(llamita_sampler *s, float threshold) {
    const float limit = fmaxf(FLT_MIN, (float)((double)threshold * mass(s)));
    float least = FLT_MAX;
    for (int32_t i = 0; i < s->candidate_blocks * BLOCK; i++)
        least = s->weights[i] >= limit && s->weights[i] < least ? s->weights[i] : least;
    drop_outside(s->weights, s->candidate_blocks, 0.0f, least);
}

/* splitmix64 (Steele, Lea and Flood, 2014), the upper 53 bits as a number in [0, 1). */
static double random_number(llamita_sampler *s) {
    uint64_t z = s->random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* The place of a candidate: walks them up to a random share of their mass. If rounding leaves some of
 * it, the last one. */
static int32_t draw(llamita_sampler *s) {
    double left = random_number(s) * mass(s);
    int32_t start = 0, last = 0;
    for (int32_t b = 0; b < s->candidate_blocks; b++) {
        const double block_mass = mass_from(s->weights + b * BLOCK, 1, 0.0f);
        if (block_mass <= 0.0) continue;
        start = b * BLOCK;
        if (left < block_mass) break;
        left -= block_mass;
    }
    for (int32_t i = start; i < start + BLOCK && left >= 0.0; i++) {
        if (s->weights[i] == 0.0f) continue;
        last = i;
        left -= (double)s->weights[i];
    }
    return last;
}

/* Mirostat 2.0: draws among the tokens of at most mu bits of surprise, and moves mu so that the
 * surprise of what is drawn comes near tau. */
static int32_t draw_by_surprise(llamita_sampler *s) {
    drop_outside(s->weights, s->candidate_blocks, share_of(mass(s), s->mirostat_mu), FLT_MAX);
    const int32_t place = draw(s);
    const float surprise = log2_of((float)mass(s)) - log2_of(s->weights[place]);
    s->mirostat_mu -= (double)(s->params.mirostat_eta * (surprise - s->params.mirostat_tau));
    return place;
}

llamita_status llamita_sampler_pick(llamita_sampler *s, const float *logits, int32_t *id, llamita_error *error) {
    const llamita_sampler_params *p = &s->params;
    float largest;
    logits = penalize(s, logits);
    pad(s->logits, s->vocab_size, -FLT_MAX); /* finite, and never the first of the largest */
    if (!find_largest(s, logits, s->num_blocks, &largest))
        return error_set(
            error, LLAMITA_ERROR_NUMERIC,
            "cannot pick a token: expected finite logits, found infinity or NaN; the model's weights are damaged");
    pad(s->logits, s->vocab_size, -INFINITY); /* weight 0 */
    if (p->temperature == 0.0f) {
        *id = first_of(s, logits, largest);
        return LLAMITA_OK;
    }
    const float scale = fminf(FLT_MAX, EXP_LOG2_E / p->temperature);
    const bool mirostat = p->mirostat_tau > 0.0f;
    if (p->top_k > 0 && p->top_k < s->vocab_size && !mirostat) softmax_of_top_k(s, logits, largest, scale, p->top_k);
    else softmax(s, logits, largest, scale);
    if (p->typical_p < 1.0f && !mirostat) keep_typical(s, p->typical_p);
    if (p->top_p < 1.0f && !mirostat) keep_top_p(s, p->top_p);
    if (p->min_p > 0.0f && !mirostat) keep_min_p(s, p->min_p);
    if (p->xtc_probability > 0.0f && !mirostat && random_number(s) <= (double)p->xtc_probability)
        keep_unusual(s, p->xtc_threshold);
    const int32_t place = mirostat ? draw_by_surprise(s) : draw(s);
    *id = s->use_ids ? s->ids[place] : place;
    return LLAMITA_OK;
}
