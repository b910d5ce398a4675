/* sampler.c: logits in, one token id out: greedy, or drawn after temperature, top-k, top-p and min-p.
 *
 * Nothing is sorted. What top-k and top-p keep is everything above a cut and, of those exactly at it, the first few by
 * id. The cut is found by spreading weights over ranges of their bits, which are in the order of the weights, and that
 * only for the few weights near it: which are near, the largest of every column (top-k) or a sample (top-p) tells.
 * Everything random or rounded here is made of IEEE additions, products and divisions in a fixed order, so the same
 * seed and logits give the same token on every machine.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/error.h"
#include "model/sampler_passes.h"

struct llamita_sampler {
    llamita_sampler_params params;
    const sampler_passes *passes;
    int32_t vocab_size, num_chunks; /* chunks that hold the vocabulary, the last one filled up */
    uint64_t random_state;

    int32_t *recent; /* [repetition_window], a ring */
    int32_t num_recent, next_recent;

    float *penalised;       /* [V] the logits after the penalty */
    float last_chunk[CHUNK]; /* the logits of the last chunk where V does not fill it */
    float *column_largest;  /* [num_chunks][CHUNK_LANES] */
    float *column_weights;  /* [num_chunks][CHUNK_LANES] the weights of those */
    uint32_t *column_bits;  /* [num_chunks][CHUNK_LANES] */
    double *masses;         /* [num_chunks] of the candidates that are kept */
    float *scratch;         /* [num_chunks][CHUNK] */

    /* The candidates: all tokens, or (ids_used) those of top-k. */
    float *weights; /* [num_chunks][CHUNK] exp((logit - largest) / temperature); zeros after the last one */
    int32_t *ids;   /* [num_chunks][CHUNK] ascending, if ids_used */
    int32_t num_candidates;
    bool ids_used;

    /* Kept are those that weigh at least cut, and of those that weigh just that, the ones before place cut_end. */
    float cut;
    int32_t cut_end;
};

/* ------------------------------------------------------------------ opening and closing */

enum { MOST_TOKENS = 1 << 30 };

static llamita_status check(const llamita_sampler_params *p, int32_t vocab_size, llamita_error *error) {
#define REQUIRE(condition, name, expected, value)                                                                      \
    if (!(condition))                                                                                                  \
    return error_set(error, LLAMITA_ERROR_ARGUMENT,                                                                    \
                     "opening a sampler failed: " name ": expected " expected ", found %g", (double)(value))
    REQUIRE(vocab_size >= 1 && vocab_size <= MOST_TOKENS, "vocab_size", "1 to 1073741824", vocab_size);
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

static bool allocate(llamita_sampler *s) {
    const size_t chunks = (size_t)s->num_chunks;
    s->recent = calloc((size_t)s->params.repetition_window + 1, sizeof *s->recent);
    s->penalised = calloc(chunks * CHUNK, sizeof *s->penalised);
    s->column_largest = calloc((chunks + CHUNK_ROWS) * CHUNK_LANES, sizeof *s->column_largest);
    s->column_weights = calloc((chunks + CHUNK_ROWS) * CHUNK_LANES, sizeof *s->column_weights);
    s->column_bits = calloc(chunks * CHUNK_LANES, sizeof *s->column_bits);
    s->masses = calloc(chunks, sizeof *s->masses);
    s->scratch = calloc(chunks * CHUNK, sizeof *s->scratch);
    s->weights = calloc(chunks * CHUNK, sizeof *s->weights);
    s->ids = calloc(chunks * CHUNK, sizeof *s->ids);
    if (s->column_largest != NULL) /* a whole chunk of columns is read: those that are none weigh nothing */
        for (size_t i = 0; i < CHUNK; i++) s->column_largest[chunks * CHUNK_LANES + i] = -INFINITY;
    return s->recent && s->penalised && s->column_largest && s->column_weights && s->column_bits && s->masses &&
           s->scratch && s->weights && s->ids;
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
        s->passes = sampler_passes_select();
        s->num_chunks = (int32_t)(((int64_t)vocab_size + CHUNK - 1) / CHUNK);
    }
    if (s == NULL || !allocate(s)) {
        llamita_sampler_close(s);
        return error_set(error, LLAMITA_ERROR_MEMORY, "opening a sampler failed: out of memory");
    }
    *sampler = s;
    return LLAMITA_OK;
}

void llamita_sampler_close(llamita_sampler *s) {
    if (s == NULL) return;
    free(s->recent);
    free(s->penalised);
    free(s->column_largest);
    free(s->column_weights);
    free(s->column_bits);
    free(s->masses);
    free(s->scratch);
    free(s->weights);
    free(s->ids);
    free(s);
}

void llamita_sampler_accept(llamita_sampler *s, int32_t id) {
    if (s->params.repetition_window == 0 || id < 0 || id >= s->vocab_size) return;
    s->recent[s->next_recent] = id;
    s->next_recent = (s->next_recent + 1) % s->params.repetition_window;
    if (s->num_recent < s->params.repetition_window) s->num_recent++;
}

/* ------------------------------------------------------------------ from logits to weights */

/* The logits with the penalty: the caller's own where there is none to apply. */
static const float *penalise(llamita_sampler *s, const float *logits) {
    const float penalty = s->params.repetition_penalty;
    if (penalty == 1.0f || s->num_recent == 0) return logits;
    memcpy(s->penalised, logits, (size_t)s->vocab_size * sizeof *logits);
    for (int32_t i = 0; i < s->num_recent; i++) { /* always from the logits: a token counts once */
        const float logit = logits[s->recent[i]], changed = logit > 0 ? logit / penalty : logit * penalty;
        if (!(fabsf(logit) <= FLT_MAX)) continue; /* stays damaged */
        s->penalised[s->recent[i]] = changed > FLT_MAX ? FLT_MAX : changed < -FLT_MAX ? -FLT_MAX : changed;
    }
    return s->penalised;
}

/* The chunk of the logits: in place, or, if the vocabulary ends in it, copied. */
static const float *chunk_of(const llamita_sampler *s, const float *logits, int32_t chunk) {
    return (chunk + 1) * CHUNK <= s->vocab_size ? logits + chunk * CHUNK : s->last_chunk;
}

static void fill_last_chunk(llamita_sampler *s, const float *logits, float filling) {
    const int32_t used = s->vocab_size % CHUNK;
    if (used == 0) return;
    memcpy(s->last_chunk, logits + (s->vocab_size - used), (size_t)used * sizeof *logits);
    for (int32_t i = used; i < CHUNK; i++) s->last_chunk[i] = filling;
}

/* Fills column_largest; false if a logit is not finite. */
static bool survey(llamita_sampler *s, const float *logits, float *largest) {
    const int32_t num_whole = s->vocab_size / CHUNK;
    fill_last_chunk(s, logits, -FLT_MAX); /* finite, and never the first of the largest */
    bool sound = s->passes->survey(logits, num_whole, s->column_largest);
    if (num_whole < s->num_chunks)
        sound &= s->passes->survey(s->last_chunk, 1, s->column_largest + num_whole * CHUNK_LANES);
    *largest = s->column_largest[0];
    for (int32_t i = 1; i < s->num_chunks * CHUNK_LANES; i++)
        *largest = s->column_largest[i] > *largest ? s->column_largest[i] : *largest;
    fill_last_chunk(s, logits, -INFINITY); /* weighs nothing, and is above no limit */
    return sound;
}

static int32_t find_first(const llamita_sampler *s, const float *logits, float largest) {
    int32_t column = 0, place = 0;
    while (s->column_largest[column] < largest) column++;
    const int32_t chunk = column / CHUNK_LANES;
    const float *values = chunk_of(s, logits, chunk);
    while (values[place] < largest) place++;
    return chunk * CHUNK + place;
}

static double sum(const double *masses, int32_t num) {
    double total = 0;
    for (int32_t i = 0; i < num; i++) total += masses[i];
    return total;
}

static int32_t num_chunks(int32_t length) { return (length + CHUNK - 1) / CHUNK; }

static float exponent_scale(const llamita_sampler *s) {
    const float scale = 1.44269504f / s->params.temperature; /* exp(x) = 2^(x log2 e) */
    return scale > FLT_MAX ? FLT_MAX : scale;
}

/* All tokens become candidates, with their weights and the masses of their chunks. */
static void weigh_all(llamita_sampler *s, const float *logits, float largest) {
    const int32_t num_whole = s->vocab_size / CHUNK;
    const float scale = exponent_scale(s);
    s->passes->weigh(logits, num_whole, largest, scale, s->weights, s->masses);
    if (num_whole < s->num_chunks)
        s->passes->weigh(s->last_chunk, 1, largest, scale, s->weights + num_whole * CHUNK, s->masses + num_whole);
    s->num_candidates = s->vocab_size;
    s->ids_used = false;
}

static void weigh_columns(llamita_sampler *s, float largest) {
    s->passes->weigh(s->column_largest, num_chunks(s->num_chunks * CHUNK_LANES), largest, exponent_scale(s),
                     s->column_weights, s->masses);
}

/* ------------------------------------------------------------------ finding a cut */

/* How much is kept: candidates in descending weight (equal ones: ascending id) until there are max_count of them or
 * their weights reach max_mass. */
typedef struct {
    int32_t max_count;
    double max_mass;
} budget;

enum { NUM_RANGES = 256 };

static inline uint32_t weight_bits(float weight) { /* positive floats are in the order of their bits */
    uint32_t bits;
    memcpy(&bits, &weight, sizeof bits);
    return bits;
}

static inline float weight_of(uint32_t bits) {
    float weight;
    memcpy(&weight, &bits, sizeof weight);
    return weight;
}

/* Splits the bits from low to high into ranges of 2^shift, finds the one in which the budget ends, takes what lies
 * above it from the budget, and moves the weights in that range to the front. Returns how many. */
static int32_t narrow(float *weights, int32_t num, uint32_t low, int shift, budget *left) {
    int32_t counts[NUM_RANGES] = {0}, range = NUM_RANGES - 1, last = -1, kept = 0;
    double masses[NUM_RANGES] = {0};
    for (int32_t i = 0; i < num; i++) {
        const uint32_t at = (weight_bits(weights[i]) - low) >> shift;
        counts[at]++;
        masses[at] += (double)weights[i];
    }
    for (; range >= 0; range--) {
        if (counts[range] == 0) continue;
        last = range;
        if (counts[range] >= left->max_count || masses[range] >= left->max_mass) break;
        left->max_count -= counts[range];
        left->max_mass -= masses[range];
    }
    if (range < 0) { /* the budget outlasts them all (masses round): the last of them is the cut, and is kept whole */
        left->max_count += counts[last];
        left->max_mass += masses[last];
        range = last;
    }
    for (int32_t i = 0; i < num; i++) {
        weights[kept] = weights[i];
        kept += (weight_bits(weights[i]) - low) >> shift == (uint32_t)range;
    }
    return kept;
}

/* The smallest weight that the budget pays for; num >= 1. What it leaves is for the num_equal weights equal to it. */
static float find_cut(float *weights, int32_t num, budget *left, int32_t *num_equal) {
    for (;;) {
        uint32_t low = weight_bits(weights[0]), high = low;
        for (int32_t i = 1; i < num; i++) {
            const uint32_t bits = weight_bits(weights[i]);
            low = bits < low ? bits : low;
            high = bits > high ? bits : high;
        }
        *num_equal = num;
        if (low == high) return weights[0];
        int shift = 0;
        while ((high - low) >> shift >= NUM_RANGES) shift++;
        num = narrow(weights, num, low, shift, left);
    }
}

static inline int lowest_bit(uint32_t bits) { return __builtin_ctz(bits); }

/* Appends to out the values of a chunk whose bits are set, in order, and to places where they are. */
static int32_t gather_chunk(const float *values, const uint32_t *column_bits, int32_t start, float *out,
                            int32_t *places) {
    uint32_t row_bits[CHUNK_ROWS] = {0}, rows = 0;
    for (int j = 0; j < CHUNK_LANES; j++) rows |= column_bits[j];
    if (rows == 0) return 0;
    for (int j = 0; j < CHUNK_LANES; j++)
        for (uint32_t bits = column_bits[j]; bits != 0; bits &= bits - 1) row_bits[lowest_bit(bits)] |= 1u << j;
    int32_t num = 0;
    for (; rows != 0; rows &= rows - 1) {
        const int row = lowest_bit(rows);
        for (uint32_t bits = row_bits[row]; bits != 0; bits &= bits - 1) {
            const int place = row * CHUNK_LANES + lowest_bit(bits);
            out[num] = values[place];
            places[num++] = start + place;
        }
    }
    return num;
}

/* As above for all chunks of weights, to scratch, in any order. */
static int32_t gather_unordered(llamita_sampler *s, int32_t chunks) {
    int32_t num = 0;
    for (int32_t column = 0; column < chunks * CHUNK_LANES; column++) {
        const float *values = s->weights + column / CHUNK_LANES * CHUNK + column % CHUNK_LANES;
        for (uint32_t bits = s->column_bits[column]; bits != 0; bits &= bits - 1)
            s->scratch[num++] = values[lowest_bit(bits) * CHUNK_LANES];
    }
    return num;
}

/* All values of at least the limit to scratch, and where they are to ids; last: the last chunk of the values, columns:
 * the largest of each column. Returns how many. */
static int32_t gather_from(llamita_sampler *s, const float *values, const float *last, const float *columns,
                           float limit) {
    int32_t num = 0;
    double mass;
    for (int32_t c = 0; c < s->num_chunks; c++, columns += CHUNK_LANES) {
        const float *chunk = c + 1 < s->num_chunks ? values + c * CHUNK : last;
        int any = 0;
        for (int j = 0; j < CHUNK_LANES; j++) any |= columns[j] >= limit;
        if (!any) continue;
        s->passes->mark(chunk, 1, limit, INFINITY, s->column_bits, &mass);
        num += gather_chunk(chunk, s->column_bits, c * CHUNK, s->scratch + num, s->ids + num);
    }
    return num;
}

/* Sets cut and cut_end to where the budget ends among the num weights in scratch. Returns the mass of the kept ones. */
static double set_cut(llamita_sampler *s, int32_t num, budget all) {
    budget left = all;
    int32_t num_equal, place = 0;
    s->cut = find_cut(s->scratch, num, &left, &num_equal);
    s->cut_end = s->num_candidates;
    const double by_mass = ceil(left.max_mass / (double)s->cut);
    int32_t kept = left.max_count < num_equal ? left.max_count : num_equal;
    if (by_mass < (double)kept) kept = by_mass < 1.0 ? 1 : (int32_t)by_mass;
    const double mass = all.max_mass - left.max_mass + kept * (double)s->cut;
    if (kept == num_equal) return mass;
    for (; kept > 0; place++) kept -= s->weights[place] == s->cut;
    s->cut_end = place;
    return mass;
}

/* ------------------------------------------------------------------ top-k */

/* A logit that at least k tokens reach: the k-th largest of the columns' largest. Columns that weigh nothing count for
 * none, as their tokens are never drawn. */
static float limit_for_top_k(llamita_sampler *s, float largest, int32_t k) {
    const int32_t num_columns = s->num_chunks * CHUNK_LANES;
    if (k >= num_columns) return -FLT_MAX;
    weigh_columns(s, largest);
    memcpy(s->scratch, s->column_weights, (size_t)num_columns * sizeof *s->scratch);
    int32_t num_equal;
    budget left = {k, DBL_MAX};
    const float least = find_cut(s->scratch, num_columns, &left, &num_equal);
    float limit = largest;
    for (int32_t i = 0; i < num_columns; i++) {
        const bool heavy = s->column_weights[i] >= least && s->column_weights[i] > 0.0f;
        limit = heavy && s->column_largest[i] < limit ? s->column_largest[i] : limit;
    }
    return limit;
}

/* All tokens whose logits reach the limit become candidates. */
static void weigh_from(llamita_sampler *s, const float *logits, float largest, float limit) {
    const int32_t num = gather_from(s, logits, chunk_of(s, logits, s->num_chunks - 1), s->column_largest, limit);
    for (int32_t i = num; i < num_chunks(num) * CHUNK; i++) s->scratch[i] = -INFINITY;
    s->passes->weigh(s->scratch, num_chunks(num), largest, exponent_scale(s), s->weights, s->masses);
    s->num_candidates = num;
    s->ids_used = true;
}

static void keep_top_k(llamita_sampler *s, int32_t k) {
    if (s->num_candidates <= k) return;
    memcpy(s->scratch, s->weights, (size_t)s->num_candidates * sizeof *s->weights);
    set_cut(s, s->num_candidates, (budget){k, DBL_MAX});
    const int32_t num_before = num_chunks(s->num_candidates) * CHUNK;
    int32_t kept = 0;
    for (int32_t i = 0; i < s->num_candidates; i++) {
        const float weight = s->weights[i];
        s->ids[kept] = s->ids[i];
        s->weights[kept] = weight;
        kept += weight > s->cut || (weight == s->cut && i < s->cut_end);
    }
    for (int32_t i = kept; i < num_before; i++) s->weights[i] = 0.0f;
    s->num_candidates = kept;
    s->passes->weigh_upper(s->weights, num_chunks(kept), 0.0f, s->masses);
}

/* ------------------------------------------------------------------ top-p and min-p */

enum { SAMPLE_LEAST = 16, SAMPLE_STEPS = 7, FEW = 2048 };
static const double LOW_GUESS = 0.87, HIGH_GUESS = 1.13; /* of the mass below the cut */

/* A row of every chunk to scratch: one weight in CHUNK_ROWS. Returns how many chunks they are. */
static int32_t take_sample(llamita_sampler *s) {
    const int32_t chunks = num_chunks(s->num_candidates);
    for (int32_t c = 0; c < chunks; c++)
        memcpy(s->scratch + c * CHUNK_LANES, s->weights + c * CHUNK + c % CHUNK_ROWS * CHUNK_LANES,
               CHUNK_LANES * sizeof *s->scratch);
    const int32_t sampled = num_chunks(chunks * CHUNK_LANES);
    for (int32_t i = chunks * CHUNK_LANES; i < sampled * CHUNK; i++) s->scratch[i] = 0.0f;
    return sampled;
}

/* About the weight, from low to high, below which the sample weighs this much. */
static void bisect_sample(llamita_sampler *s, int32_t sampled, double upper_mass, uint32_t *low, uint32_t *high) {
    for (int step = 0; step < SAMPLE_STEPS; step++) {
        const uint32_t middle = *low + (*high - *low) / 2;
        s->passes->weigh_upper(s->scratch, sampled, weight_of(middle), s->masses);
        if (sum(s->masses, sampled) >= upper_mass) *low = middle;
        else *high = middle;
    }
}

/* Guesses from a sample between which weights the cut of top-p is. No kept weight is below *low as it comes in. */
static void guess_cut(llamita_sampler *s, double total, float *low, float *high) {
    const int32_t sampled = take_sample(s);
    s->passes->weigh_upper(s->scratch, sampled, 0.0f, s->masses);
    const double all = sum(s->masses, sampled), below = (1.0 - (double)s->params.top_p) * total / CHUNK_ROWS;
    const uint32_t one = weight_bits(1.0f); /* the largest weight */
    uint32_t low_bits = weight_bits(*low), high_bits = one, from;
    bisect_sample(s, sampled, all - LOW_GUESS * below, &low_bits, &high_bits);
    from = low_bits, high_bits = one;
    bisect_sample(s, sampled, all - HIGH_GUESS * below, &from, &high_bits);
    *low = weight_of(low_bits);
    *high = high_bits == one ? INFINITY : weight_of(high_bits);
}

/* If tokens that weigh at least this much are enough for the mass, makes them the only candidates. */
static bool keep_few(llamita_sampler *s, float largest, float least, double mass) {
    const int32_t columns = num_chunks(s->num_chunks * CHUNK_LANES);
    weigh_columns(s, largest);
    s->passes->weigh_upper(s->column_weights, columns, least, s->masses);
    if (sum(s->masses, columns) < mass) return false; /* the largest of the columns alone are most of such tokens */
    const int32_t num = gather_from(s, s->weights, s->weights + (s->num_chunks - 1) * CHUNK, s->column_weights, least);
    memcpy(s->weights, s->scratch, (size_t)num * sizeof *s->weights);
    for (int32_t i = num; i < num_chunks(num) * CHUNK; i++) s->weights[i] = 0.0f;
    s->num_candidates = num;
    s->ids_used = true;
    return true;
}

/* Sets the cut where the mass is reached, which should be from low to high. least: no kept weight is below. Returns the
 * mass of those kept. */
static double cut_between(llamita_sampler *s, float low, float high, float least, double target) {
    const int32_t chunks = num_chunks(s->num_candidates);
    for (bool low_fits = low == least;;) {
        s->passes->mark(s->weights, chunks, low, high, s->column_bits, s->masses);
        const double upper = sum(s->masses, chunks);
        if (upper < target && !low_fits) {
            high = low;
            low = least;
            low_fits = true;
            continue;
        }
        const int32_t num = gather_unordered(s, chunks);
        double between = 0;
        for (int32_t i = 0; i < num; i++) between += (double)s->scratch[i];
        const double above = high == INFINITY ? 0.0 : upper - between;
        if (above >= target) {
            low = high;
            high = INFINITY;
            low_fits = true;
            continue;
        }
        s->cut = low;
        s->cut_end = s->num_candidates;
        return num > 0 ? above + set_cut(s, num, (budget){INT32_MAX, target - above}) : upper;
    }
}

/* total: the mass of all candidates. Returns the mass of those kept. */
static double cut_top_p(llamita_sampler *s, float largest, double total) {
    const double target = (double)s->params.top_p * total;
    /* All that weigh less than (1 - p) total / n weigh less together than what is cut off. */
    const float least = (float)((total - target) / s->num_candidates * 0.999); /* for what rounding does */
    const float few = (float)(total / FEW);                                    /* no more than FEW weigh this much */
    float low = least, high = INFINITY;
    if (!s->ids_used && s->num_chunks >= SAMPLE_LEAST && few > least) {
        if (keep_few(s, largest, few, target)) {
            memcpy(s->scratch, s->weights, (size_t)s->num_candidates * sizeof *s->scratch);
            return set_cut(s, s->num_candidates, (budget){INT32_MAX, target});
        }
        guess_cut(s, total, &low, &high);
    }
    return cut_between(s, low, high, least, target);
}

/* ------------------------------------------------------------------ drawing */

/* splitmix64 (Steele, Lea and Flood, 2014), the upper 53 bits as a number in [0, 1). */
static double random_number(llamita_sampler *s) {
    uint64_t z = s->random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static bool is_kept(const llamita_sampler *s, int32_t place) {
    const float weight = s->weights[place];
    return weight > s->cut || (weight == s->cut && place < s->cut_end && weight > 0.0f);
}

/* The mass of what is kept in a chunk. */
static double kept_mass(const llamita_sampler *s, int32_t chunk) {
    if (s->cut == 0.0f) return s->masses[chunk]; /* all */
    double mass = 0;
    const int32_t start = chunk * CHUNK;
    if (s->cut_end <= start || s->cut_end >= start + CHUNK || s->cut_end == s->num_candidates) {
        const float least = s->cut_end <= start ? weight_of(weight_bits(s->cut) + 1) : s->cut;
        s->passes->weigh_upper(s->weights + start, 1, least, &mass);
        return mass;
    }
    for (int32_t i = start; i < start + CHUNK; i++) mass += is_kept(s, i) ? (double)s->weights[i] : 0.0;
    return mass;
}

/* mass: of all that is kept; where rounding makes it more than there is, the last one is drawn. */
static int32_t draw(llamita_sampler *s, double mass) {
    double left = random_number(s) * mass;
    int32_t chunk = 0, last = 0;
    for (int32_t c = 0; c < num_chunks(s->num_candidates); c++) {
        const double here = kept_mass(s, c);
        if (here <= 0.0) continue;
        chunk = c;
        if (left < here) break;
        left -= here;
    }
    for (int32_t i = chunk * CHUNK; i < s->num_candidates && i < (chunk + 1) * CHUNK; i++) {
        if (!is_kept(s, i)) continue;
        last = i;
        left -= (double)s->weights[i];
        if (left < 0.0) break;
    }
    return s->ids_used ? s->ids[last] : last;
}

llamita_status llamita_sampler_pick(llamita_sampler *s, const float *logits, int32_t *id, llamita_error *error) {
    logits = penalise(s, logits);
    float largest;
    if (!survey(s, logits, &largest))
        return error_set(
            error, LLAMITA_ERROR_NUMERIC,
            "picking a token failed: some logits are infinite or not a number; the model's weights are damaged");
    if (s->params.temperature == 0.0f) {
        *id = find_first(s, logits, largest);
        return LLAMITA_OK;
    }
    const int32_t k = s->params.top_k;
    if (k > 0 && k < s->vocab_size) {
        weigh_from(s, logits, largest, limit_for_top_k(s, largest, k));
        keep_top_k(s, k);
    } else {
        weigh_all(s, logits, largest);
    }
    s->cut = 0.0f;
    s->cut_end = s->num_candidates;
    double mass = sum(s->masses, num_chunks(s->num_candidates));
    if (s->params.top_p < 1.0f) mass = cut_top_p(s, largest, mass);
    if (s->params.min_p > s->cut) { /* the best weighs 1 */
        s->cut = s->params.min_p;
        s->cut_end = s->num_candidates;
        s->passes->weigh_upper(s->weights, num_chunks(s->num_candidates), s->cut, s->masses);
        mass = sum(s->masses, num_chunks(s->num_candidates));
    }
    *id = draw(s, mass);
    return LLAMITA_OK;
}
