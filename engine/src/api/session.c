/* session.c: the functions of llamita.h about running a model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "model/forward.h"
#include "model/ops.h"
#include "model/prompt_lookup.h"
#include "runtime/clock.h"
#include "runtime/error.h"
#include "runtime/thread_tuner.h"

typedef struct {
    kv_cache cache;
    lora_set adapters;
    int32_t position; /* tokens held */
} sequence;

struct llamita_session {
    const llamita_model *model;
    thread_pool *pool;
    forward *forward;
    kv_shape kv_shape;
    int32_t context_tokens, num_sequences;
    sequence *sequences;                      /* [num_sequences] */
    thread_tuner decode_tuner, prefill_tuner; /* of passes of one token, and of full ones */
    int64_t num_passes;

    /* Sequence 0. */
    int32_t *ids;         /* [context_tokens] the ids held, which speculation looks through */
    float *logits;        /* [1 + num_ahead, V]: after the last token, then after each guessed one */
    const float *current; /* the logits of the last token, in logits; NULL: none */
    size_t logits_rows;   /* room in logits */

    /* Tokens that were guessed to follow, computed already: their keys and values lie beyond the position. */
    prompt_lookup lookup;
    bool speculates;
    int32_t guess[MAX_DRAFT_TOKENS], num_guessed, num_taken; /* the first num_taken of them were fed */

    float *score_logits; /* [PASS_TOKENS, V]; NULL before the first llamita_session_score */
};

/* ------------------------------------------------------------------ opening and closing */

/* A thread is worth its barriers only with some bytes of weights to read; more than a few share one memory anyway. */
#define BYTES_PER_THREAD ((int64_t)2 << 20)
#define MAX_AUTO_THREADS 16
#define MAX_SEQUENCES 1024

static int32_t choose_threads(const llamita_model *model) {
    const int64_t useful = 1 + model->info.decode_bytes / BYTES_PER_THREAD;
    const int64_t available = thread_pool_available(),
                  most = available < MAX_AUTO_THREADS ? available : MAX_AUTO_THREADS;
    return (int32_t)(useful < most ? useful : most);
}

static llamita_status check_params(const llamita_model *model, const llamita_session_params *asked,
                                   llamita_error *error) {
    const llamita_model_info *info = &model->info;
    if (asked->num_threads < 0 || asked->num_threads > MAX_THREADS)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "opening a session failed: num_threads: expected 0 (automatic) to %d, found %d", MAX_THREADS,
                         (int)asked->num_threads);
    if (asked->context_tokens < 0 || asked->context_tokens > info->context_tokens)
        return error_set(
            error, LLAMITA_ERROR_ARGUMENT,
            "opening a session failed: context_tokens: expected 0 (the model's) to %d (the model's), found %d",
            (int)info->context_tokens, (int)asked->context_tokens);
    if (asked->num_sequences < 0 || asked->num_sequences > MAX_SEQUENCES)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "opening a session failed: num_sequences: expected 0 (one) to %d, found %d", MAX_SEQUENCES,
                         (int)asked->num_sequences);
    if ((unsigned)asked->kv_type > LLAMITA_KV_Q8)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "opening a session failed: kv_type: expected F16, F32 or Q8, found number %d",
                         (int)asked->kv_type);
    if ((unsigned)asked->speculation > LLAMITA_SPECULATION_ALWAYS)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "opening a session failed: speculation: expected AUTO, OFF or ALWAYS, found number %d",
                         (int)asked->speculation);
    return LLAMITA_OK;
}

static bool fill_session(llamita_session *s, const llamita_session_params *asked, int32_t num_threads) {
    const llamita_model_info *info = &s->model->info;
    static const kv_type types[] = {[LLAMITA_KV_F16] = KV_F16, [LLAMITA_KV_F32] = KV_F32, [LLAMITA_KV_Q8] = KV_Q8};
    s->context_tokens = asked->context_tokens > 0 ? asked->context_tokens : info->context_tokens;
    const int32_t num_sequences = asked->num_sequences > 0 ? asked->num_sequences : 1;
    s->sequences = calloc((size_t)num_sequences, sizeof *s->sequences);
    s->ids = calloc((size_t)s->context_tokens, sizeof *s->ids); /* always ids of the vocabulary */
    s->logits_rows = 1;
    s->logits = malloc((size_t)info->vocab_size * sizeof *s->logits);
    s->speculates = asked->speculation != LLAMITA_SPECULATION_OFF;
    prompt_lookup_init(&s->lookup, asked->speculation == LLAMITA_SPECULATION_ALWAYS);
    if (!s->sequences || !s->ids || !s->logits ||
        !kv_shape_init(&s->kv_shape, info->num_hidden_layers, info->num_key_value_heads, info->head_dim,
                       types[asked->kv_type]))
        return false;
    for (; s->num_sequences < num_sequences; s->num_sequences++)
        if (!kv_cache_init(&s->sequences[s->num_sequences].cache, &s->kv_shape, s->context_tokens)) return false;
    s->pool = thread_pool_create(num_threads);
    thread_tuner_init(&s->decode_tuner, num_threads);
    thread_tuner_init(&s->prefill_tuner, num_threads);
    if (s->pool) s->forward = forward_create(s->model, &s->kv_shape, s->context_tokens, s->pool);
    return s->forward;
}

llamita_status llamita_session_open(const llamita_model *model, const llamita_session_params *params,
                                    llamita_session **session, llamita_error *error) {
    const llamita_session_params asked = params ? *params : (llamita_session_params){0};
    const llamita_status status = check_params(model, &asked, error);
    if (status != LLAMITA_OK) return status;
    const int32_t num_threads = asked.num_threads > 0 ? asked.num_threads : choose_threads(model);
    llamita_session *s = calloc(1, sizeof *s);
    if (s) s->model = model;
    if (!s || !fill_session(s, &asked, num_threads)) {
        llamita_session_close(s);
        return error_set(error, LLAMITA_ERROR_MEMORY,
                         "opening a session failed: no memory or no threads: expected %d threads; ask for fewer",
                         (int)num_threads);
    }
    *session = s;
    return LLAMITA_OK;
}

void llamita_session_close(llamita_session *s) {
    if (!s) return;
    forward_free(s->forward);
    thread_pool_free(s->pool);
    for (int32_t i = 0; i < s->num_sequences; i++) {
        kv_cache_clear(&s->sequences[i].cache);
        lora_set_release(&s->sequences[i].adapters);
    }
    free(s->sequences);
    free(s->ids);
    free(s->logits);
    free(s->score_logits);
    free(s);
}

int32_t llamita_session_num_threads(const llamita_session *s) { return thread_pool_size(s->pool); }
int32_t llamita_session_context_tokens(const llamita_session *s) { return s->context_tokens; }
int64_t llamita_session_num_passes(const llamita_session *s) { return s->num_passes; }
int32_t llamita_session_position(const llamita_session *s) { return s->sequences[0].position; }
const float *llamita_session_logits(const llamita_session *s) { return s->current; }

/* ------------------------------------------------------------------ sequences */

static void forget_guess(llamita_session *s) { s->num_guessed = s->num_taken = 0; }

static llamita_status no_sequence(const llamita_session *s, const char *what, int32_t found, llamita_error *error) {
    return error_set(error, LLAMITA_ERROR_ARGUMENT, "%s failed: sequence: expected 0 to %d, found %d", what,
                     (int)s->num_sequences - 1, (int)found);
}

int32_t llamita_sequence_position(const llamita_session *s, int32_t index) {
    return index >= 0 && index < s->num_sequences ? s->sequences[index].position : -1;
}

llamita_status llamita_sequence_rewind(llamita_session *s, int32_t index, int32_t position, llamita_error *error) {
    if (index < 0 || index >= s->num_sequences) return no_sequence(s, "rewinding", index, error);
    if (position < 0 || position > s->sequences[index].position)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "rewinding failed: position: expected 0 to %d (tokens held), found %d",
                         (int)s->sequences[index].position, (int)position);
    s->sequences[index].position = position;
    if (index == 0) {
        s->current = NULL;
        forget_guess(s);
    }
    return LLAMITA_OK;
}

llamita_status llamita_session_rewind(llamita_session *s, int32_t position, llamita_error *error) {
    return llamita_sequence_rewind(s, 0, position, error);
}

llamita_status llamita_sequence_share(llamita_session *s, int32_t from, int32_t to, int32_t num_tokens,
                                      llamita_error *error) {
    if (from < 0 || from >= s->num_sequences) return no_sequence(s, "sharing a sequence", from, error);
    if (to < 0 || to >= s->num_sequences) return no_sequence(s, "sharing a sequence", to, error);
    if (from == to || num_tokens < 0 || num_tokens > s->sequences[from].position)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "sharing a sequence failed: expected another sequence and 0 to %d tokens (held), found "
                         "sequence %d and %d",
                         (int)s->sequences[from].position, (int)to, (int)num_tokens);
    if (!lora_sets_equal(&s->sequences[from].adapters, &s->sequences[to].adapters))
        return error_set(
            error, LLAMITA_ERROR_ARGUMENT,
            "sharing a sequence failed: expected the same adapters in both, found others in %d than in %d; "
            "set them first",
            (int)to, (int)from);
    kv_cache_share(&s->sequences[to].cache, &s->sequences[from].cache, num_tokens);
    s->sequences[to].position = num_tokens;
    forget_guess(s);
    if (to == 0) s->current = NULL;
    return LLAMITA_OK;
}

/* ------------------------------------------------------------------ adapters */

/* The set that these uses make, those of scale 0 left out. */
static llamita_status make_set(const llamita_session *s, const llamita_adapter_use *uses, size_t num_uses,
                               lora_set *set, llamita_error *error) {
    if (num_uses > LLAMITA_MAX_ADAPTERS)
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "setting adapters failed: expected at most %d, found %zu",
                         LLAMITA_MAX_ADAPTERS, num_uses);
    for (size_t i = 0; i < num_uses; i++) {
        if (!uses[i].adapter || uses[i].adapter->model != s->model)
            return error_set(error, LLAMITA_ERROR_ARGUMENT,
                             "setting adapters failed: adapter %zu: expected one that was opened for the session's "
                             "model, found another's; open it with this model",
                             i);
        if (!isfinite(uses[i].scale))
            return error_set(error, LLAMITA_ERROR_ARGUMENT,
                             "setting adapters failed: scale of adapter %zu: expected a finite number, found %f", i,
                             (double)uses[i].scale);
        if (uses[i].scale == 0.0f) continue;
        set->adapters[set->count] = uses[i].adapter;
        set->scales[set->count++] = uses[i].scale;
    }
    return LLAMITA_OK;
}

llamita_status llamita_sequence_set_adapters(llamita_session *s, int32_t index, const llamita_adapter_use *uses,
                                             size_t num_uses, llamita_error *error) {
    lora_set set = {0};
    if (index < 0 || index >= s->num_sequences) return no_sequence(s, "setting adapters", index, error);
    const llamita_status status = make_set(s, uses, num_uses, &set, error);
    if (status != LLAMITA_OK) return status;
    lora_set *held = &s->sequences[index].adapters;
    if (lora_sets_equal(held, &set)) return LLAMITA_OK;
    if (!forward_reserve_lora(s->forward, lora_set_floats(&set)))
        return error_set(error, LLAMITA_ERROR_MEMORY,
                         "setting adapters failed: no memory for the products of %d adapters", (int)set.count);
    lora_set_retain(&set);
    lora_set_release(held);
    *held = set;
    return llamita_sequence_rewind(s, index, 0, error);
}

llamita_status llamita_session_set_adapters(llamita_session *s, const llamita_adapter_use *uses, size_t num_uses,
                                            llamita_error *error) {
    return llamita_sequence_set_adapters(s, 0, uses, num_uses, error);
}

/* ------------------------------------------------------------------ passes */

static int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }

/* Everything that can be wrong with a chunk, and the memory it needs, before anything changes. num_held of the ids are
 * to be kept in the cache, and there may be num_guessed more. */
static llamita_status prepare(llamita_session *s, const llamita_chunk *chunk, size_t num_held, int32_t num_guessed,
                              llamita_error *error) {
    if (chunk->sequence < 0 || chunk->sequence >= s->num_sequences)
        return no_sequence(s, "feeding tokens", chunk->sequence, error);
    sequence *held = &s->sequences[chunk->sequence];
    const int32_t vocab_size = s->model->info.vocab_size, left = s->context_tokens - held->position;
    if (chunk->num_tokens == 0)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "feeding tokens failed: num_tokens: expected at least 1, found 0");
    if (chunk->num_logits > chunk->num_tokens)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "feeding tokens failed: num_logits: expected at most num_tokens, %zu, found %zu",
                         chunk->num_tokens, chunk->num_logits);
    if (num_held > (size_t)left)
        return error_set(
            error, LLAMITA_ERROR_CONTEXT,
            "feeding tokens failed: the context holds %d tokens, %d are used: expected at most %d more, found %zu; "
            "shorten the text, rewind or open a session with a larger context",
            (int)s->context_tokens, (int)held->position, (int)left, num_held);
    for (size_t i = 0; i < chunk->num_tokens; i++)
        if (chunk->ids[i] < 0 || chunk->ids[i] >= vocab_size)
            return error_set(error, LLAMITA_ERROR_ARGUMENT, "feeding tokens failed: id %zu: expected 0 to %d, found %d",
                             i, (int)vocab_size - 1, (int)chunk->ids[i]);
    const int32_t end = held->position + (int32_t)num_held;
    if (!kv_cache_reserve(&held->cache, held->position, end + min(num_guessed, s->context_tokens - end)))
        return error_set(error, LLAMITA_ERROR_MEMORY,
                         "feeding tokens failed: no memory for the keys and values of %d tokens", (int)end);
    return LLAMITA_OK;
}

static llamita_status damaged(const llamita_session *s, llamita_error *error) {
    bool adapted = false;
    for (int32_t i = 0; i < s->num_sequences; i++) adapted |= s->sequences[i].adapters.count > 0;
    return error_set(error, LLAMITA_ERROR_NUMERIC,
                     "computing logits failed: some are infinite or not a number; the model's weights are damaged%s",
                     adapted ? ", or an adapter's scale is too large" : "");
}

/* Some of a chunk's tokens, from the first that are left. */
static forward_span next_span(llamita_session *s, const llamita_chunk *chunk, size_t done, int32_t room) {
    const size_t left = chunk->num_tokens - done, without_logits = chunk->num_tokens - chunk->num_logits;
    const int32_t count = left < (size_t)room ? (int32_t)left : room;
    const size_t end = done + (size_t)count, first_logits = done > without_logits ? done : without_logits;
    sequence *held = &s->sequences[chunk->sequence];
    return (forward_span){&held->cache, &held->adapters, chunk->ids + done,
                          count,        held->position,  end > first_logits ? (int32_t)(end - first_logits) : 0};
}

/* Passes of one token and full ones teach how many threads are fastest; others go by the nearer of them. */
static bool run_pass(llamita_session *s, const forward_span *spans, int32_t num_spans, int32_t num_tokens,
                     float *logits) {
    thread_tuner *thread_tuner = num_tokens > PASS_TOKENS / 2 ? &s->prefill_tuner : &s->decode_tuner;
    const double start = clock_seconds();
    const bool finite = forward_run(s->forward, thread_tuner->num_threads, spans, num_spans, logits);
    s->num_passes++;
    if (num_tokens == 1 || num_tokens == PASS_TOKENS) thread_tuner_record(thread_tuner, clock_seconds() - start);
    return finite;
}

/* Runs all chunks, which were prepared, and moves their sequences on. False: some logits are not finite. */
static bool run_chunks(llamita_session *s, const llamita_chunk *chunks, size_t num_chunks, float *logits) {
    size_t current = 0, done = 0;
    while (current < num_chunks) {
        forward_span spans[PASS_TOKENS];
        int32_t num_spans = 0, num_tokens = 0;
        size_t num_logits = 0;
        while (current < num_chunks && num_tokens < PASS_TOKENS) {
            const llamita_chunk *chunk = &chunks[current];
            const forward_span span = next_span(s, chunk, done, PASS_TOKENS - num_tokens);
            spans[num_spans++] = span;
            num_tokens += span.num_tokens;
            num_logits += (size_t)span.num_logits;
            s->sequences[chunk->sequence].position += span.num_tokens;
            done += (size_t)span.num_tokens;
            if (done < chunk->num_tokens) break;
            current++;
            done = 0;
        }
        if (!run_pass(s, spans, num_spans, num_tokens, logits)) return false;
        logits += num_logits * (size_t)s->model->info.vocab_size;
    }
    return true;
}

/* After a failure. */
static void move_back(llamita_session *s, const llamita_chunk *chunks, size_t num_chunks, const int32_t *positions) {
    for (size_t i = 0; i < num_chunks; i++) s->sequences[chunks[i].sequence].position = positions[i];
}

/* Sequence 0 holds these ids at these positions. */
static void remember_ids(llamita_session *s, const int32_t *ids, size_t num_ids, int32_t position) {
    memcpy(s->ids + position, ids, num_ids * sizeof *ids);
}

/* One chunk of sequence 0; logits may be NULL if none are wanted. */
static llamita_status feed_chunk(llamita_session *s, const int32_t *ids, size_t num_tokens, size_t num_logits,
                                 float *logits, llamita_error *error) {
    const llamita_chunk chunk = {0, ids, num_tokens, num_logits};
    const llamita_status status = prepare(s, &chunk, num_tokens, 0, error);
    if (status != LLAMITA_OK) return status;
    const int32_t start = s->sequences[0].position;
    s->current = NULL;
    forget_guess(s);
    if (!run_chunks(s, &chunk, 1, logits)) {
        s->sequences[0].position = start;
        return damaged(s, error);
    }
    remember_ids(s, ids, num_tokens, start);
    return LLAMITA_OK;
}

llamita_status llamita_decode(llamita_session *s, const llamita_chunk *chunks, size_t num_chunks, float *logits,
                              llamita_error *error) {
    int32_t positions[MAX_SEQUENCES];
    if (num_chunks == 0 || num_chunks > (size_t)s->num_sequences)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "feeding tokens failed: num_chunks: expected 1 to %d (one for each sequence), found %zu",
                         (int)s->num_sequences, num_chunks);
    for (size_t i = 0; i < num_chunks; i++) {
        const llamita_status status = prepare(s, &chunks[i], chunks[i].num_tokens, 0, error);
        if (status != LLAMITA_OK) return status;
        positions[i] = s->sequences[chunks[i].sequence].position;
        for (size_t j = 0; j < i; j++)
            if (chunks[j].sequence == chunks[i].sequence)
                return error_set(error, LLAMITA_ERROR_ARGUMENT,
                                 "feeding tokens failed: expected each sequence once, found %d twice",
                                 (int)chunks[i].sequence);
    }
    for (size_t i = 0; i < num_chunks; i++)
        if (chunks[i].sequence == 0) {
            s->current = NULL;
            forget_guess(s);
        }
    if (!run_chunks(s, chunks, num_chunks, logits)) {
        move_back(s, chunks, num_chunks, positions);
        return damaged(s, error);
    }
    for (size_t i = 0; i < num_chunks; i++)
        if (chunks[i].sequence == 0) remember_ids(s, chunks[i].ids, chunks[i].num_tokens, positions[i]);
    return LLAMITA_OK;
}

/* ------------------------------------------------------------------ feeding sequence 0 */

/* The id was guessed, and all is there already. */
static bool take_guessed(llamita_session *s, int32_t id) {
    if (s->num_taken == s->num_guessed || s->guess[s->num_taken] != id) return false;
    s->ids[s->sequences[0].position++] = id;
    s->current = s->logits + (size_t)++s->num_taken * (size_t)s->model->info.vocab_size;
    return true;
}

/* Room for the logits of this many tokens; what they hold is lost. */
static bool make_room(llamita_session *s, size_t rows) {
    if (rows <= s->logits_rows) return true;
    float *logits = malloc(rows * (size_t)s->model->info.vocab_size * sizeof *logits);
    if (!logits) return false;
    free(s->logits);
    s->logits = logits;
    s->logits_rows = rows;
    return true;
}

/* One id, and with it a guess of those that may come next. */
static llamita_status feed_one(llamita_session *s, int32_t id, llamita_error *error) {
    if (take_guessed(s, id)) return LLAMITA_OK;
    if (s->num_guessed > 0) prompt_lookup_record_hits(&s->lookup, s->num_guessed, s->num_taken);
    forget_guess(s);
    const llamita_chunk chunk = {0, &id, 1, 1};
    const llamita_status status = prepare(s, &chunk, 1, s->speculates ? MAX_DRAFT_TOKENS : 0, error);
    if (status != LLAMITA_OK) return status;
    sequence *held = &s->sequences[0];
    int32_t ids[1 + MAX_DRAFT_TOKENS] = {id}, num_guessed = 0;
    s->current = NULL;
    s->ids[held->position] = id;
    if (s->speculates)
        num_guessed = prompt_lookup_guess(&s->lookup, s->ids, held->position + 1,
                                          min(MAX_DRAFT_TOKENS, s->context_tokens - held->position - 1), ids + 1);
    if (num_guessed > 0 && !make_room(s, 1 + MAX_DRAFT_TOKENS)) num_guessed = 0;
    const double start = clock_seconds();
    forward_span span = {&held->cache, &held->adapters, ids, 1 + num_guessed, held->position, 1 + num_guessed};
    bool finite = run_pass(s, &span, 1, span.num_tokens, s->logits);
    if (!finite && num_guessed > 0) { /* perhaps only after what was guessed */
        num_guessed = 0;
        span.num_tokens = span.num_logits = 1;
        finite = run_pass(s, &span, 1, 1, s->logits);
    }
    if (!finite) return damaged(s, error);
    prompt_lookup_record_pass(&s->lookup, num_guessed, clock_seconds() - start);
    memcpy(s->guess, ids + 1, (size_t)num_guessed * sizeof *ids);
    s->num_guessed = num_guessed;
    s->current = s->logits;
    held->position++;
    return LLAMITA_OK;
}

llamita_status llamita_session_feed(llamita_session *s, const int32_t *ids, size_t num_tokens, llamita_error *error) {
    if (num_tokens == 1) return feed_one(s, ids[0], error);
    const llamita_status status = feed_chunk(s, ids, num_tokens, 1, s->logits, error);
    if (status == LLAMITA_OK) s->current = s->logits;
    return status;
}

static void keep_logits(llamita_session *s, const float *logits) {
    memcpy(s->logits, logits, (size_t)s->model->info.vocab_size * sizeof *logits);
    s->current = s->logits;
}

llamita_status llamita_session_feed_logits(llamita_session *s, const int32_t *ids, size_t num_tokens, float *logits,
                                           llamita_error *error) {
    const llamita_status status = feed_chunk(s, ids, num_tokens, num_tokens, logits, error);
    if (status == LLAMITA_OK) keep_logits(s, logits + (num_tokens - 1) * (size_t)s->model->info.vocab_size);
    return status;
}

typedef struct {
    const llamita_model *model;
    const float *logits; /* [num_tokens, V] */
    const int32_t *next_ids;
    int32_t num_tokens;
    double *nats;
} score_job;

static void score_worker(void *argument, worker w) {
    const score_job *job = argument;
    const int32_t vocab_size = job->model->info.vocab_size;
    int64_t begin, end;
    thread_pool_share(w, job->num_tokens, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        job->nats[t] =
            negative_log_probability(job->model->kernels, job->logits + t * vocab_size, vocab_size, job->next_ids[t]);
}

llamita_status llamita_session_score(llamita_session *s, const int32_t *ids, size_t num_tokens, double *nats,
                                     llamita_error *error) {
    if (num_tokens < 2)
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "scoring failed: num_tokens: expected at least 2, found %zu",
                         num_tokens);
    const llamita_chunk whole = {0, ids, num_tokens, 0};
    const llamita_status status = prepare(s, &whole, num_tokens - 1, 0, error);
    if (status != LLAMITA_OK) return status;
    const size_t vocab_size = (size_t)s->model->info.vocab_size;
    if (!s->score_logits) s->score_logits = malloc(PASS_TOKENS * vocab_size * sizeof *s->score_logits);
    if (!s->score_logits)
        return error_set(error, LLAMITA_ERROR_MEMORY, "scoring failed: no memory for the logits of %d tokens",
                         PASS_TOKENS);
    const int32_t start = s->sequences[0].position;
    size_t count = 0;
    for (size_t done = 0; done < num_tokens - 1; done += count) {
        count = num_tokens - 1 - done < PASS_TOKENS ? num_tokens - 1 - done : PASS_TOKENS;
        const llamita_status fed = feed_chunk(s, ids + done, count, count, s->score_logits, error);
        if (fed != LLAMITA_OK) {
            s->sequences[0].position = start;
            return fed;
        }
        score_job job = {s->model, s->score_logits, ids + done + 1, (int32_t)count, nats + done};
        thread_pool_run(s->pool, thread_pool_size(s->pool), score_worker, &job);
    }
    keep_logits(s, s->score_logits + (count - 1) * vocab_size);
    return LLAMITA_OK;
}
