/* sampler.c: picks the next token from the logits.
 *
 * A pick is a chain of small steps (llamita_sampler_pick): penalties change logits, softmax with
 * temperature makes weights of them, each keep_* function narrows the range of weights whose tokens
 * are candidates, and one of those is drawn. Each step does what llama.cpp's does.
 *
 * Nothing is sorted: `keep` finds the end of a range by bisection, and leaves tokens behind as it
 * goes. All arithmetic is IEEE additions, products and divisions in a fixed order, so the same seed
 * and logits give the same token on every machine. */
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
    int32_t vocab_size, padded_size, window, num_recent; /* padded_size: P, in whole blocks */
    uint64_t random_state;
    double mirostat_mu; /* tokens of more surprise, in bits, are dropped */

    int32_t *recent;  /* [2 * window] the last num_recent tokens, in order */
    int32_t *matches; /* [window] */
    float *counts;    /* [P] of tokens; 0 between uses */
    bool *breaks;     /* [P] tokens that no repetition goes beyond */

    float *copy;   /* [P] of the logits, if a penalty or a partial last block needs one */
    float *peaks;  /* [P / ROWS] the largest logit of each column of a block */
    float *chosen; /* [P] the logits that top-k weighs */
    int32_t *all;  /* [P] 0, 1, 2, ... */
    int32_t *some; /* [P] */

    /* The candidates: those of `num` tokens whose weight is in [low, high]. */
    float *weights;     /* [num] 2^((logit - largest) * scale) */
    const int32_t *ids; /* [num] ascending: all or some */
    int32_t num;        /* whole blocks, padded with weights of 0 */
    float largest, scale, low, high;
};

/* ------------------------------------------------------------------ opening and closing */

static llamita_status check(const llamita_sampler_params *p, int32_t vocab_size, llamita_error *error) {
    const bool dry = p->dry_multiplier > 0.0f;
    const struct {
        const char *name, *expected;
        double value, low, high;
    } rules[] = {
        {"vocab_size", "1 to 16777216", vocab_size, 1, MAX_SIZE},
        {"temperature", "0 (greedy) to 1e6", (double)p->temperature, 0, 1e6}, /* more would draw what is forbidden */
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
static void mark_breaks(llamita_sampler *s) {
    const tokenizer *t = s->params.model ? s->params.model->tokenizer : NULL;
    for (int32_t id = 0; t && id < s->vocab_size; id++) {
        const char *bytes;
        size_t num_bytes;
        if (tokenizer_decode(t, -1, id, &bytes, &num_bytes, NULL) != LLAMITA_OK) continue;
        for (size_t i = 0; i < num_bytes; i++) s->breaks[id] |= bytes[i] && strchr("\n:\"*", bytes[i]);
    }
}

llamita_status llamita_sampler_open(const llamita_sampler_params *params, int32_t vocab_size, llamita_sampler **sampler,
                                    llamita_error *error) {
    const llamita_status status = check(params, vocab_size, error);
    if (status != LLAMITA_OK) return status;
    llamita_sampler_params p = *params; /* what is off gets the value that changes nothing */
    if (p.repetition_penalty == 1.0f && p.frequency_penalty == 0.0f && p.presence_penalty == 0.0f)
        p.repetition_window = 0;
    if (p.dry_multiplier == 0.0f) p.dry_window = 0;
    if (p.mirostat_tau > 0.0f) p.top_k = 0, p.typical_p = p.top_p = 1.0f, p.min_p = p.xtc_probability = 0.0f;
    if (p.top_k >= vocab_size) p.top_k = 0;
    if (p.typical_p == 0.0f) p.typical_p = 1.0f;
    const int32_t window = p.dry_window > p.repetition_window ? p.dry_window : p.repetition_window;
    const size_t padded = ((size_t)vocab_size + BLOCK - 1) / BLOCK * BLOCK;
    const size_t num_values = 6 * padded + padded / ROWS + 3 * (size_t)window;
    llamita_sampler *s = calloc(1, sizeof *s + num_values * sizeof(float) + padded * sizeof(bool));
    if (!s) return error_set(error, LLAMITA_ERROR_MEMORY, "cannot open a sampler: out of memory");
    s->params = p;
    s->vocab_size = vocab_size;
    s->padded_size = (int32_t)padded;
    s->window = window;
    s->random_state = p.seed;
    s->mirostat_mu = 2.0 * (double)p.mirostat_tau;
    s->scale = fminf(FLT_MAX, EXP_LOG2_E / p.temperature);
    s->weights = (float *)(void *)(s + 1);
    s->copy = s->weights + padded;
    s->chosen = s->copy + padded;
    s->counts = s->chosen + padded;
    s->peaks = s->counts + padded;
    s->all = (int32_t *)(void *)(s->peaks + padded / ROWS);
    s->some = s->all + padded;
    s->recent = s->some + padded;
    s->matches = s->recent + 2 * window;
    s->breaks = (bool *)(s->matches + window);
    for (int32_t i = 0; i < s->padded_size; i++) s->all[i] = i;
    for (int32_t i = vocab_size; i < s->padded_size; i++) s->copy[i] = -FLT_MAX; /* never first */
    if (p.dry_multiplier > 0.0f) mark_breaks(s);
    *sampler = s;
    return LLAMITA_OK;
}

void llamita_sampler_close(llamita_sampler *s) { free(s); }

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

/* What is not finite stays: survey reports it. Logits of forbidden tokens stay the lowest. */
static void change(float *logit, float changed) {
    const float lowest = FORBIDDEN_LOGIT / 2;
    if (!(fabsf(*logit) <= FLT_MAX) || *logit <= FORBIDDEN_LOGIT) return;
    *logit = changed > FLT_MAX ? FLT_MAX : changed < lowest ? lowest : changed;
}

/* Lowers logits by how often their tokens come in the window. */
static void penalize_tokens(llamita_sampler *s) {
    const llamita_sampler_params *p = &s->params;
    const int32_t num = p->repetition_window < s->num_recent ? p->repetition_window : s->num_recent;
    const int32_t *text = s->recent + s->num_recent - num;
    for (int32_t i = 0; i < num; i++) s->counts[text[i]] += 1.0f;
    for (int32_t i = 0; i < num; i++) {
        float *logit = &s->copy[text[i]], *count = &s->counts[text[i]];
        if (*count == 0.0f) continue; /* done at its first place */
        change(logit, *logit > 0 ? *logit / p->repetition_penalty : *logit * p->repetition_penalty);
        change(logit, *logit - (*count * p->frequency_penalty + p->presence_penalty));
        *count = 0.0f;
    }
}

/* DRY: lowers the logits of tokens that would continue a repetition. matches[k]: how many tokens
 * before the last k ones are the end of the text again (the Z algorithm, from the end). counts: the
 * longest match before each token. */
static void penalize_repetitions(llamita_sampler *s) {
    const llamita_sampler_params *p = &s->params;
    const int32_t num = p->dry_window < s->num_recent ? p->dry_window : s->num_recent;
    const int32_t *last = s->recent + s->num_recent - 1;
    int32_t limit = 0;
    while (limit < num && !s->breaks[last[-limit]]) limit++;
    for (int32_t k = 1, left = 0, right = 0; k < num; k++) {
        int32_t length = k < right ? s->matches[k - left] : 0;
        if (length > right - k) length = k < right ? right - k : 0;
        while (k + length < num && last[-length] == last[-k - length]) length++;
        s->matches[k] = length;
        if (k + length > right) right = (left = k) + length;
        float *longest = &s->counts[last[1 - k]];
        *longest = fmaxf(*longest, (float)(length < limit ? length : limit));
    }
    for (int32_t k = 1; k < num; k++) {
        const int32_t id = last[1 - k];
        float penalty = p->dry_multiplier, more = s->counts[id] - (float)p->dry_allowed_length;
        s->counts[id] = 0.0f;
        if (more < 0.0f || s->breaks[id]) continue; /* or done */
        for (; more > 0.0f && penalty < 1e30f; more -= 1.0f) penalty *= p->dry_base;
        change(&s->copy[id], s->copy[id] - penalty);
    }
}

/* Returns the logits with penalties, in whole blocks: the caller's own array if nothing changes. */
static const float *penalize(llamita_sampler *s, const float *logits) {
    if (s->num_recent == 0 && s->vocab_size == s->padded_size) return logits;
    memcpy(s->copy, logits, (size_t)s->vocab_size * sizeof *logits);
    penalize_tokens(s);
    penalize_repetitions(s);
    return s->copy;
}

/* ------------------------------------------------------------------ loops over the vocabulary */

/* Sums and maxima run down columns, so compilers can vectorize them. The AVX2 clones give the same
 * bits: CMakeLists.txt forbids fusing and reordering of floating-point operations. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(SAMPLER_PORTABLE)
#define VECTOR __attribute__((target_clones("avx2", "default")))
#else
#define VECTOR
#endif

/* Fills peaks with the largest value of each column, and returns the largest of all, or NaN if a
 * value is not finite. */
VECTOR static float survey(const float *restrict values, int32_t num, float *restrict peaks) {
    float top[COLUMNS], damage[COLUMNS] = {0}; /* only finite values times 0 are 0 */
    memcpy(top, values, sizeof top);
    for (int32_t b = 0; b < num / BLOCK; b++, values += BLOCK, peaks += COLUMNS)
        for (int j = 0; j < COLUMNS; j++) {
            float peak = values[j], zero = values[j] * 0.0f;
            for (int row = 1; row < ROWS; row++) {
                const float value = values[row * COLUMNS + j];
                peak = value > peak ? value : peak;
                zero += value * 0.0f;
            }
            peaks[j] = peak;
            top[j] = peak > top[j] ? peak : top[j];
            damage[j] += zero;
        }
    for (int j = 1; j < COLUMNS; j++) {
        top[0] = top[j] > top[0] ? top[j] : top[0];
        damage[0] += damage[j];
    }
    return top[0] + damage[0];
}

/* 2^(4 y) for y <= 0. With 4 y = n + 4 f, |4 f| <= 1/2, it is 2^n (2^f)^4, and 2^f is 1 + f q(f),
 * where q is the Chebyshev interpolation of degree 2 of (2^f - 1) / f. Relative error: below 3e-6,
 * the relative distance of neighboring floats of the size of a logit, with half the operations of
 * exponential() in float_math.h. Adding ROUND rounds to quarters, whose number then lies, with the
 * exponent's bias, in the low bits. At -127 / 4 that is the exponent of 0. */
static inline float power_of_16(float y) {
    static const float ROUND = 3145728.0f + 31.75f; /* 1.5 * 2^21, and 127 quarters */
    const float clamped = y > -31.75f ? y : -31.75f, shifted = clamped + ROUND, f = clamped - (shifted - ROUND);
    const float root = 1.0f + f * (0.693147182f + f * (0.240339234f + f * 0.0555197373f)), square = root * root;
    return square * square * float_from_bits(bits_from_float(shifted) << 23);
}

/* weights = 2^((logits - largest) * scale) */
VECTOR static void weigh(const float *restrict logits, int32_t num, float largest, float scale,
                         float *restrict weights) {
    for (int32_t i = 0; i < num; i++) weights[i] = power_of_16((logits[i] - largest) * (scale * 0.25f));
}

/* The sum of the weights in [low, high], or their number (counting). */
VECTOR static double measure(const float *weights, int32_t num, float low, float high, bool counting) {
    enum { WIDTH = 32 };
    const float one = counting;
    double total[8] = {0}, sum = 0;
    for (int32_t b = 0; b < num / BLOCK; b++, weights += BLOCK) {
        float lane[WIDTH];
        for (int j = 0; j < WIDTH; j++) {
            float mass = 0;
            for (int row = 0; row < BLOCK / WIDTH; row++) {
                const float weight = weights[row * WIDTH + j], amount = weight > one ? weight : one;
                mass += ((weight >= low) & (weight <= high)) ? amount : 0.0f;
            }
            lane[j] = mass;
        }
        for (int j = 0; j < 8; j++) total[j] += (double)((lane[j] + lane[j + 8]) + (lane[j + 16] + lane[j + 24]));
    }
    for (int j = 0; j < 8; j++) sum += total[j];
    return sum;
}

/* Copies the values in [low, high] and their ids, and returns their number. `out` may be `values`,
 * and `out_ids` may be `ids`. */
VECTOR static int32_t gather(const float *values, const int32_t *ids, int32_t num, float low, float high, float *out,
                             int32_t *out_ids) {
    uint32_t bits[32];
    for (int i = 0; i < 32; i++) bits[i] = 1u << i;
    int32_t found = 0;
    for (int32_t start = 0; start < num; start += 32) {
        uint32_t inside = 0;
        for (int i = 0; i < 32; i++) inside |= ((values[start + i] >= low) & (values[start + i] <= high)) ? bits[i] : 0;
        for (; inside != 0; inside &= inside - 1) {
            const int32_t at = start + __builtin_ctz(inside);
            out[found] = values[at];
            out_ids[found++] = ids[at];
        }
    }
    return found;
}

/* ------------------------------------------------------------------ candidates */

static void set_candidates(llamita_sampler *s, const int32_t *ids, int32_t num) {
    while (num % BLOCK != 0) s->weights[num++] = 0.0f;
    s->ids = ids;
    s->num = num;
}

static void softmax(llamita_sampler *s, const float *logits, const int32_t *ids, int32_t num) {
    weigh(logits, num, s->largest, s->scale, s->weights);
    set_candidates(s, ids, num);
    s->low = FLT_MIN;
    s->high = INFINITY;
}

static double mass(const llamita_sampler *s) { return measure(s->weights, s->num, s->low, s->high, false); }

/* Keeps as few candidates as have the wanted mass, or number (counting): those of the largest
 * weights, of equal ones the lowest ids. With a center: those of the weights nearest to it, above
 * and below by the same factor, equal ones together.
 *
 * Bisects the bits of the lowest weight kept, which are in the order of the floats, from `least`
 * on. Tokens that are surely dropped are left behind when that halves the number of the others. */
static void keep(llamita_sampler *s, double wanted, bool counting, float least, float center) {
    uint32_t enough = bits_from_float(least), too_high = bits_from_float(fminf(center, 1.0f)) + 1;
    double amount_above = 0, number_above = 0, surplus = 0;
    while (too_high - enough > 1) {
        const uint32_t middle = enough + (too_high - enough) / 2;
        const float end = float_from_bits(middle);
        const float low = fmaxf(s->low, end), high = fminf(s->high, center / end * center);
        const double amount = measure(s->weights, s->num, low, high, counting), unit = counting ? 1.0 : (double)low;
        const double number = number_above + (amount - amount_above) / unit; /* at most */
        if (amount < wanted) {
            too_high = middle;
            amount_above = amount;
            number_above = number;
            continue;
        }
        enough = middle;
        s->low = low;
        s->high = high;
        if (number <= s->num / 2)
            set_candidates(s, s->some, gather(s->weights, s->ids, s->num, low, high, s->weights, s->some));
        surplus = (amount - fmax(wanted, unit)) / unit;
        if (surplus < 1.0) return; /* without any of them it is less than wanted */
    }
    for (int32_t i = s->num; center > 1.0f && surplus >= 1.0 && i-- > 0;)
        if (s->weights[i] == float_from_bits(enough)) s->weights[i] = 0.0f, surplus -= 1.0;
}

/* ------------------------------------------------------------------ the chain */

/* Weighs the logits from the k-th largest peak on, which are few but at least k, and keeps k. */
static void keep_top_k(llamita_sampler *s, const float *logits, int32_t k) {
    softmax(s, s->peaks, s->all, s->padded_size / ROWS);
    keep(s, k, true, FLT_MIN, INFINITY);
    float limit = s->low > FLT_MIN ? s->largest : -FLT_MAX; /* too few peaks: all */
    for (int32_t i = 0; i < s->num; i++)
        if (s->weights[i] >= s->low && s->peaks[s->ids[i]] < limit) limit = s->peaks[s->ids[i]];
    softmax(s, s->chosen, s->some, gather(logits, s->all, s->padded_size, limit, INFINITY, s->chosen, s->some));
    keep(s, k, true, FLT_MIN, INFINITY);
}

/* Keeps this share of the mass. All tokens below `least` together have less than what is dropped;
 * 0.999 covers rounding. */
static void keep_mass(llamita_sampler *s, float share, float center) {
    const double total = mass(s), wanted = (double)share * total;
    const float least = fminf(center * center, (float)((total - wanted) / s->num * 0.999));
    keep(s, wanted, false, fmaxf(FLT_MIN, least), center);
}

/* Keeps the tokens whose surprise is nearest to the entropy, the mean surprise. */
static void keep_typical(llamita_sampler *s, const float *logits, float share) {
    double sum = 0; /* of weight times distance from the largest logit */
    for (int32_t i = 0; i < s->num; i++)
        if (s->weights[i] >= s->low) sum += (double)s->weights[i] * (double)(s->largest - logits[s->ids[i]]);
    keep_mass(s, share, power_of_16((float)(sum / mass(s) * (double)s->scale * -0.25)));
}

/* Keeps weights of at least p times the largest: 1, unless typical-p has dropped it. */
static void keep_min_p(llamita_sampler *s, float p) {
    float largest = s->high < 1.0f ? 0.0f : 1.0f;
    for (int32_t i = 0; s->high < 1.0f && i < s->num; i++)
        if (s->weights[i] <= s->high && s->weights[i] > largest) largest = s->weights[i];
    s->low = fmaxf(s->low, p * largest);
}

/* XTC: drops the tokens above the least probable one that has at least the threshold. */
static void keep_unusual(llamita_sampler *s, float threshold) {
    const float limit = fmaxf(s->low, (float)((double)threshold * mass(s)));
    float least = s->high;
    for (int32_t i = 0; i < s->num; i++)
        if (s->weights[i] >= limit && s->weights[i] < least) least = s->weights[i];
    s->high = least;
}

/* splitmix64 (Steele, Lea and Flood, 2014), the upper 53 bits as a number in [0, 1). */
static double random_number(llamita_sampler *s) {
    uint64_t z = s->random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* The place of a candidate: walks them up to a random share of their mass. If rounding leaves some
 * of it, the last one. */
static int32_t draw(llamita_sampler *s) {
    double left = random_number(s) * mass(s);
    int32_t start = 0, place = 0;
    for (int32_t next = 0; next < s->num; next += BLOCK) {
        const double block_mass = measure(s->weights + next, BLOCK, s->low, s->high, false);
        if (block_mass > 0.0) start = next;
        if (left < block_mass) break;
        left -= block_mass;
    }
    for (int32_t i = start; i < start + BLOCK && left >= 0.0; i++)
        if (s->weights[i] >= s->low && s->weights[i] <= s->high) left -= (double)s->weights[place = i];
    return place;
}

/* log2 of x >= 1, bit by bit: squaring x doubles it. */
static double log2_of(double x) {
    double log = 0;
    for (; x >= 2.0; x /= 2.0) log += 1.0;
    for (double bit = 0.5; bit > 1e-9; bit /= 2.0)
        if ((x *= x) >= 2.0) x /= 2.0, log += bit;
    return log;
}

/* Mirostat 2.0: draws among the tokens of at most mu bits of surprise, and moves mu so that the
 * surprise of what is drawn comes near tau. */
static int32_t draw_by_surprise(llamita_sampler *s) {
    const double share = (double)power_of_16((float)fmin(0.0, s->mirostat_mu * -0.25));
    s->low = fmaxf(s->low, (float)fmin(1.0, mass(s) * share));
    const int32_t place = draw(s);
    const double surprise = log2_of(mass(s) / (double)s->weights[place]);
    s->mirostat_mu -= (double)s->params.mirostat_eta * (surprise - (double)s->params.mirostat_tau);
    return place;
}

llamita_status llamita_sampler_pick(llamita_sampler *s, const float *logits, int32_t *id, llamita_error *error) {
    const llamita_sampler_params *p = &s->params;
    if (!logits)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot pick a token: expected logits, found NULL; feed the session first");
    logits = penalize(s, logits);
    s->largest = survey(logits, s->padded_size, s->peaks);
    if (isnan(s->largest))
        return error_set(
            error, LLAMITA_ERROR_NUMERIC,
            "cannot pick a token: expected finite logits, found infinity or NaN; the model's weights are damaged");
    if (p->temperature == 0.0f) { /* the first of the largest */
        int32_t at = 0;
        while (s->peaks[at] < s->largest) at++;
        for (at = at / COLUMNS * BLOCK; logits[at] < s->largest;) at++;
        *id = at;
        return LLAMITA_OK;
    }
    if (p->top_k > 0) keep_top_k(s, logits, p->top_k);
    else softmax(s, logits, s->all, s->vocab_size);
    if (p->typical_p < 1.0f) keep_typical(s, logits, p->typical_p);
    if (p->top_p < 1.0f) keep_mass(s, p->top_p, INFINITY);
    if (p->min_p > 0.0f) keep_min_p(s, p->min_p);
    if (p->xtc_probability > 0.0f && random_number(s) <= (double)p->xtc_probability) keep_unusual(s, p->xtc_threshold);
    *id = s->ids[p->mirostat_tau > 0.0f ? draw_by_surprise(s) : draw(s)];
    return LLAMITA_OK;
}
