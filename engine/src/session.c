/* session.c: the functions of llamita.h about running a model and about text. */
#include <math.h>
#include <stdlib.h>

#include "error.h"
#include "forward.h"
#include "kernels.h"
#include "ops.h"
#include "tokenizer.h"

struct llamita_session {
    const llamita_model *model;
    threads *team;
    forward *forward;
    kv_cache cache;
    int32_t context_tokens;
    int32_t position; /* tokens held */
    float *logits;    /* [V] after the last token, if has_logits */
    bool has_logits;
    float *score_logits; /* [PASS_TOKENS, V]; NULL before the first llamita_session_score */
};

/* ------------------------------------------------------------------ library and text */

const char *llamita_version(void) { return "0.1.0"; }

const char *llamita_kernels(void) { return kernels_name(kernels_select(NULL)); }

static llamita_status no_tokenizer(llamita_error *error, const char *what) {
    return error_set(error, LLAMITA_ERROR_ARGUMENT,
                     "%s failed: the model has no tokenizer; name one when opening it (tokenizer_path)", what);
}

llamita_status llamita_encode(const llamita_model *model, const char *text, size_t num_bytes, int flags, int32_t *ids,
                              size_t capacity, size_t *num_tokens, llamita_error *error) {
    if (model->tokenizer == NULL) return no_tokenizer(error, "encoding text");
    return tokenizer_encode(model->tokenizer, text, num_bytes, flags, ids, capacity, num_tokens, error);
}

llamita_status llamita_decode(const llamita_model *model, int32_t previous_id, int32_t id, const char **bytes,
                              size_t *num_bytes, llamita_error *error) {
    if (model->tokenizer == NULL) return no_tokenizer(error, "decoding a token");
    return tokenizer_decode(model->tokenizer, previous_id, id, bytes, num_bytes, error);
}

const char *llamita_token_text(const llamita_model *model, int32_t id) {
    return model->tokenizer != NULL ? tokenizer_text(model->tokenizer, id) : NULL;
}

bool llamita_token_ends(const llamita_model *model, int32_t id) {
    if (id < 0) return false;
    if (id == model->info.eos_id || (model->bos_ends && id == model->info.bos_id)) return true;
    return model->tokenizer != NULL && tokenizer_ends(model->tokenizer, id);
}

/* ------------------------------------------------------------------ opening and closing */

/* A thread is worth its barriers only with some bytes of weights to read; more than a few share one memory anyway. */
#define BYTES_PER_THREAD ((int64_t)2 << 20)
#define MOST_CHOSEN_THREADS 16

static int32_t choose_threads(const llamita_model *model) {
    const int64_t useful = 1 + model->info.decode_bytes / BYTES_PER_THREAD;
    const int64_t available = threads_available(),
                  most = available < MOST_CHOSEN_THREADS ? available : MOST_CHOSEN_THREADS;
    return (int32_t)(useful < most ? useful : most);
}

llamita_status llamita_session_open(const llamita_model *model, const llamita_session_params *params,
                                    llamita_session **session, llamita_error *error) {
    const llamita_session_params asked = params != NULL ? *params : (llamita_session_params){0};
    const llamita_model_info *info = &model->info;
    if (asked.num_threads < 0 || asked.num_threads > THREADS_MAX)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "opening a session failed: num_threads: expected 0 (automatic) to %d, found %d", THREADS_MAX,
                         (int)asked.num_threads);
    if (asked.context_tokens < 0 || asked.context_tokens > info->context_tokens)
        return error_set(
            error, LLAMITA_ERROR_ARGUMENT,
            "opening a session failed: context_tokens: expected 0 (the model's) to %d (the model's), found %d",
            (int)info->context_tokens, (int)asked.context_tokens);
    llamita_session *s = calloc(1, sizeof *s);
    if (s == NULL) return error_set(error, LLAMITA_ERROR_MEMORY, "opening a session failed: out of memory");
    s->model = model;
    s->context_tokens = asked.context_tokens > 0 ? asked.context_tokens : info->context_tokens;
    const int32_t num_threads = asked.num_threads > 0 ? asked.num_threads : choose_threads(model);
    s->team = threads_create(num_threads);
    if (s->team != NULL) s->forward = forward_create(model, s->team);
    s->logits = calloc((size_t)info->vocab_size, sizeof *s->logits);
    const bool cache =
        kv_cache_init(&s->cache, info->num_hidden_layers, info->num_key_value_heads, info->head_dim, s->context_tokens);
    if (s->forward == NULL || s->logits == NULL || !cache) {
        llamita_session_close(s);
        return error_set(error, LLAMITA_ERROR_MEMORY,
                         "opening a session failed: no memory or no threads: expected %d threads; ask for fewer",
                         (int)num_threads);
    }
    *session = s;
    return LLAMITA_OK;
}

void llamita_session_close(llamita_session *s) {
    if (s == NULL) return;
    forward_free(s->forward);
    threads_free(s->team);
    kv_cache_clear(&s->cache);
    free(s->logits);
    free(s->score_logits);
    free(s);
}

int32_t llamita_session_num_threads(const llamita_session *s) { return threads_count(s->team); }
int32_t llamita_session_context_tokens(const llamita_session *s) { return s->context_tokens; }
int32_t llamita_session_position(const llamita_session *s) { return s->position; }
const float *llamita_session_logits(const llamita_session *s) { return s->has_logits ? s->logits : NULL; }

llamita_status llamita_session_rewind(llamita_session *s, int32_t position, llamita_error *error) {
    if (position < 0 || position > s->position)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "rewinding failed: position: expected 0 to %d (tokens held), found %d", (int)s->position,
                         (int)position);
    s->position = position;
    s->has_logits = false;
    return LLAMITA_OK;
}

/* ------------------------------------------------------------------ feeding */

/* Everything that can be wrong with a call, and the memory it needs, before anything changes. num_held of the ids are
 * to be kept in the cache. */
static llamita_status prepare(llamita_session *s, const int32_t *ids, size_t num_tokens, size_t num_held,
                              llamita_error *error) {
    const int32_t vocab_size = s->model->info.vocab_size, left = s->context_tokens - s->position;
    if (num_tokens == 0)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "feeding tokens failed: num_tokens: expected at least 1, found 0");
    if (num_held > (size_t)left)
        return error_set(
            error, LLAMITA_ERROR_CONTEXT,
            "feeding tokens failed: the context holds %d tokens, %d are used: expected at most %d more, found %zu; "
            "shorten the text, rewind or open a session with a larger context",
            (int)s->context_tokens, (int)s->position, (int)left, num_held);
    for (size_t i = 0; i < num_tokens; i++)
        if (ids[i] < 0 || ids[i] >= vocab_size)
            return error_set(error, LLAMITA_ERROR_ARGUMENT, "feeding tokens failed: id %zu: expected 0 to %d, found %d",
                             i, (int)vocab_size - 1, (int)ids[i]);
    if (!kv_cache_reserve(&s->cache, s->position + (int32_t)num_held))
        return error_set(error, LLAMITA_ERROR_MEMORY,
                         "feeding tokens failed: no memory for the keys and values of %d tokens",
                         (int)(s->position + (int32_t)num_held));
    return LLAMITA_OK;
}

/* The call's tokens never happened. */
static llamita_status undo(llamita_session *s, int32_t position, llamita_error *error) {
    s->position = position;
    s->has_logits = false;
    return error_set(error, LLAMITA_ERROR_NUMERIC,
                     "computing logits failed: some are infinite or not a number; the model's weights are damaged");
}

static int32_t next_pass(size_t num_left) { return num_left < PASS_TOKENS ? (int32_t)num_left : PASS_TOKENS; }

static void keep_logits(llamita_session *s, const float *logits) {
    memcpy(s->logits, logits, (size_t)s->model->info.vocab_size * sizeof *logits);
    s->has_logits = true;
}

llamita_status llamita_session_feed(llamita_session *s, const int32_t *ids, size_t num_tokens, llamita_error *error) {
    const llamita_status status = prepare(s, ids, num_tokens, num_tokens, error);
    if (status != LLAMITA_OK) return status;
    const int32_t start = s->position;
    s->has_logits = false;
    for (size_t done = 0; done < num_tokens;) {
        const int32_t count = next_pass(num_tokens - done);
        const bool last = done + (size_t)count == num_tokens;
        if (!forward_run(s->forward, &s->cache, ids + done, count, s->position, last, s->logits))
            return undo(s, start, error);
        s->position += count;
        done += (size_t)count;
    }
    s->has_logits = true;
    return LLAMITA_OK;
}

llamita_status llamita_session_feed_logits(llamita_session *s, const int32_t *ids, size_t num_tokens, float *logits,
                                           llamita_error *error) {
    const llamita_status status = prepare(s, ids, num_tokens, num_tokens, error);
    if (status != LLAMITA_OK) return status;
    const int32_t start = s->position;
    const size_t vocab_size = (size_t)s->model->info.vocab_size;
    for (size_t done = 0; done < num_tokens;) {
        const int32_t count = next_pass(num_tokens - done);
        if (!forward_run(s->forward, &s->cache, ids + done, count, s->position, count, logits + done * vocab_size))
            return undo(s, start, error);
        s->position += count;
        done += (size_t)count;
    }
    keep_logits(s, logits + (num_tokens - 1) * vocab_size);
    return LLAMITA_OK;
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
    threads_share(w, job->num_tokens, 1, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        job->nats[t] =
            negative_log_probability(job->model->kernels, job->logits + t * vocab_size, vocab_size, job->next_ids[t]);
}

llamita_status llamita_session_score(llamita_session *s, const int32_t *ids, size_t num_tokens, double *nats,
                                     llamita_error *error) {
    if (num_tokens < 2)
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "scoring failed: num_tokens: expected at least 2, found %zu",
                         num_tokens);
    const llamita_status status = prepare(s, ids, num_tokens, num_tokens - 1, error);
    if (status != LLAMITA_OK) return status;
    const size_t vocab_size = (size_t)s->model->info.vocab_size;
    if (s->score_logits == NULL) s->score_logits = malloc(PASS_TOKENS * vocab_size * sizeof *s->score_logits);
    if (s->score_logits == NULL)
        return error_set(error, LLAMITA_ERROR_MEMORY, "scoring failed: no memory for the logits of %d tokens",
                         PASS_TOKENS);
    const int32_t start = s->position;
    int32_t count = 0;
    for (size_t done = 0; done < num_tokens - 1; done += (size_t)count) {
        count = next_pass(num_tokens - 1 - done);
        if (!forward_run(s->forward, &s->cache, ids + done, count, s->position, count, s->score_logits))
            return undo(s, start, error);
        s->position += count;
        score_job job = {s->model, s->score_logits, ids + done + 1, count, nats + done};
        threads_run(s->team, score_worker, &job);
    }
    keep_logits(s, s->score_logits + (size_t)(count - 1) * vocab_size);
    return LLAMITA_OK;
}
