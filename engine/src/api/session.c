/* session.c: the session API of llamita.h: sequences, forward passes and speculative decoding. */
#include "api/session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/rope_params.h"
#include "kernels/kernels.h"
#include "model/forward.h"
#include "model/model_pack.h"
#include "model/ops.h"
#include "model/prompt_cache.h"
#include "model/prompt_lookup.h"
#include "platform/platform.h"
#include "runtime/error.h"
#include "runtime/thread_tuner.h"

typedef struct {
    kv_cache cache;
    lora_set adapters;
    int32_t *ids;     /* [context_tokens] of the tokens in the cache */
    int32_t position; /* tokens in the cache */
} sequence;

struct llamita_session {
    const llamita_model *model;
    thread_pool *pool;
    forward *forward;
    kv_shape kv_shape;
    rope_angles rope;
    float *own_frequency; /* [S/2] of parameters in place of the model's; NULL: none */
    int32_t context_tokens, num_sequences;
    bool shifts;                              /* LLAMITA_CONTEXT_SHIFT */
    int32_t num_keep;                         /* of a prompt; -1: all */
    sequence *sequences;                      /* [num_sequences] */
    thread_tuner decode_tuner, prefill_tuner; /* for passes of one token, and for full passes */
    int64_t num_passes;
    uint64_t model_hash; /* once it has been needed */
    bool has_model_hash;

    /* Sequence 0. */
    float *logits;        /* [logits_rows, V]: after the last token, then after each draft token */
    const float *current; /* the logits of the last token, in logits; NULL: none */
    size_t logits_rows;

    /* Draft tokens that were already computed: their keys and values are beyond the position. */
    prompt_lookup lookup;
    bool speculates;
    int32_t draft[MAX_DRAFT_TOKENS], num_draft, num_accepted; /* the first num_accepted were fed */

    float *score_logits; /* [PASS_TOKENS, V]; NULL before the first llamita_session_score */
};

/* ------------------------------------------------------------------ opening and closing */

/* A thread pays for its barriers only if it has enough weights to read, and memory bandwidth limits
 * how many threads help. */
#define BYTES_PER_THREAD ((int64_t)2 << 20)
#define MAX_AUTO_THREADS 16
#define MAX_SEQUENCES 1024

static int32_t choose_threads(const llamita_model *model) {
    const int64_t useful = 1 + model->info.decode_bytes / BYTES_PER_THREAD;
    const int64_t available = platform_num_processors(),
                  limit = available < MAX_AUTO_THREADS ? available : MAX_AUTO_THREADS;
    return (int32_t)(useful < limit ? useful : limit);
}

static int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }

/* max_context, rope: of its RoPE parameters. */
static llamita_status check_params(const llamita_model *model, const llamita_session_params *params,
                                   int32_t *max_context, rope_scaling *rope, llamita_error *error) {
    const bool scales = rope_params_given(&params->rope);
    *max_context = model->info.context_tokens;
    if (scales) {
        const llamita_status status = rope_params_apply(model, &params->rope, rope, max_context, error);
        if (status != LLAMITA_OK) return status;
    }
    if (params->num_threads < 0 || params->num_threads > MAX_THREADS)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot open a session: num_threads: expected 0 (automatic) to %d, found %d", MAX_THREADS,
                         (int)params->num_threads);
    if (params->context_tokens < 0 || params->context_tokens > *max_context)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot open a session: context_tokens: expected 0 (the model's) to %d (%s), found %d",
                         (int)*max_context, scales ? "with these RoPE parameters" : "the model's",
                         (int)params->context_tokens);
    if (params->num_sequences < 0 || params->num_sequences > MAX_SEQUENCES)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot open a session: num_sequences: expected 0 (one) to %d, found %d", MAX_SEQUENCES,
                         (int)params->num_sequences);
    if ((unsigned)params->kv_type > LLAMITA_KV_Q8)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot open a session: kv_type: expected F16, F32 or Q8, found %d", (int)params->kv_type);
    if ((unsigned)params->speculation > LLAMITA_SPECULATION_ALWAYS)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot open a session: speculation: expected AUTO, OFF or ALWAYS, found %d",
                         (int)params->speculation);
    if ((unsigned)params->context_full > LLAMITA_CONTEXT_SHIFT)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot open a session: context_full: expected STOP or SHIFT, found %d",
                         (int)params->context_full);
    if (params->num_keep < -1 || (params->num_keep != 0 && params->context_full == LLAMITA_CONTEXT_STOP))
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot open a session: num_keep: expected -1 (all) or more with SHIFT, else 0, found %d",
                         (int)params->num_keep);
    return LLAMITA_OK;
}

/* Longrope has two sets of angles: the context decides. */
static rope_angles model_angles(const llamita_model *model, int32_t context_tokens) {
    const bool is_long = model->rope_long_frequency && context_tokens > model->rope_short_context;
    return (rope_angles){is_long ? model->rope_long_frequency : model->rope_frequency, model->rope_attention_factor};
}

/* Replaces the model's angles by those of the session. */
static llamita_status fill_rope(llamita_session *s, const rope_scaling *scaling, llamita_error *error) {
    const int32_t head_dim = s->model->info.head_dim;
    char reason[ROPE_REASON_BYTES];
    s->own_frequency = calloc((size_t)head_dim / 2, sizeof *s->own_frequency);
    if (!s->own_frequency) return error_set(error, LLAMITA_ERROR_MEMORY, "cannot open a session: out of memory");
    if (!rope_fill_frequency(scaling, head_dim, s->own_frequency, reason))
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot open a session: %s", reason);
    s->rope = (rope_angles){s->own_frequency, rope_attention_factor(scaling)};
    return LLAMITA_OK;
}

static bool fill_session(llamita_session *s, const llamita_session_params *params, int32_t num_threads) {
    const llamita_model_info *info = &s->model->info;
    static const kv_type types[] = {[LLAMITA_KV_F16] = KV_F16, [LLAMITA_KV_F32] = KV_F32, [LLAMITA_KV_Q8] = KV_Q8};
    s->shifts = params->context_full == LLAMITA_CONTEXT_SHIFT;
    s->num_keep = params->num_keep;
    const int32_t num_sequences = params->num_sequences > 0 ? params->num_sequences : 1;
    s->sequences = calloc((size_t)num_sequences, sizeof *s->sequences);
    s->logits_rows = 1;
    s->logits = malloc((size_t)info->vocab_size * sizeof *s->logits);
    s->speculates = params->speculation != LLAMITA_SPECULATION_OFF;
    prompt_lookup_init(&s->lookup, params->speculation == LLAMITA_SPECULATION_ALWAYS);
    if (!s->sequences || !s->logits ||
        !kv_shape_init(&s->kv_shape, info->num_hidden_layers, info->num_key_value_heads, info->head_dim,
                       types[params->kv_type]))
        return false;
    for (; s->num_sequences < num_sequences; s->num_sequences++) {
        sequence *seq = &s->sequences[s->num_sequences];
        if (!kv_cache_init(&seq->cache, &s->kv_shape, s->context_tokens)) return false;
        seq->ids = calloc((size_t)s->context_tokens, sizeof *seq->ids); /* memory that is touched when needed */
        if (!seq->ids) {
            kv_cache_clear(&seq->cache);
            return false;
        }
    }
    s->pool = thread_pool_create(num_threads);
    thread_tuner_init(&s->decode_tuner, num_threads);
    thread_tuner_init(&s->prefill_tuner, num_threads);
    if (s->pool) s->forward = forward_create(s->model, &s->kv_shape, s->context_tokens, s->rope, s->pool);
    return s->forward;
}

llamita_status llamita_session_open(const llamita_model *model, const llamita_session_params *params,
                                    llamita_session **session, llamita_error *error) {
    const llamita_session_params resolved = params ? *params : (llamita_session_params){0};
    rope_scaling rope = {0};
    int32_t max_context;
    llamita_status status = check_params(model, &resolved, &max_context, &rope, error);
    if (status != LLAMITA_OK) return status;
    const int32_t num_threads = resolved.num_threads > 0 ? resolved.num_threads : choose_threads(model);
    llamita_session *s = calloc(1, sizeof *s);
    if (s) {
        s->model = model;
        s->context_tokens =
            resolved.context_tokens > 0 ? resolved.context_tokens : min(model->info.context_tokens, max_context);
        s->rope = model_angles(model, s->context_tokens);
        if (rope_params_given(&resolved.rope)) status = fill_rope(s, &rope, error);
    }
    if (status != LLAMITA_OK) {
        llamita_session_close(s);
        return status;
    }
    if (!s || !fill_session(s, &resolved, num_threads)) {
        llamita_session_close(s);
        return error_set(error, LLAMITA_ERROR_MEMORY,
                         "cannot open a session: out of memory, or cannot start %d threads; use fewer threads",
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
        free(s->sequences[i].ids);
    }
    free(s->sequences);
    free(s->logits);
    free(s->score_logits);
    free(s->own_frequency);
    free(s);
}

int32_t llamita_session_num_threads(const llamita_session *s) { return thread_pool_size(s->pool); }
int32_t llamita_session_context_tokens(const llamita_session *s) { return s->context_tokens; }
int64_t llamita_session_num_passes(const llamita_session *s) { return s->num_passes; }
int32_t llamita_session_position(const llamita_session *s) { return s->sequences[0].position; }
const int32_t *llamita_session_ids(const llamita_session *s) { return s->sequences[0].ids; }
const float *llamita_session_logits(const llamita_session *s) { return s->current; }
const llamita_model *session_model(const llamita_session *s) { return s->model; }

/* ------------------------------------------------------------------ sequences */

static void discard_draft(llamita_session *s) { s->num_draft = s->num_accepted = 0; }

static llamita_status sequence_error(const llamita_session *s, const char *what, int32_t found, llamita_error *error) {
    return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot %s: sequence: expected 0 to %d, found %d", what,
                     (int)s->num_sequences - 1, (int)found);
}

static llamita_status forked_error(const llamita_session *s, const char *what, llamita_error *error) {
    return error_set(error, LLAMITA_ERROR_ARGUMENT,
                     "cannot %s: the session was opened before this process was forked, and its %d threads stayed in "
                     "the parent; open a session in this process",
                     what, thread_pool_size(s->pool));
}

int32_t llamita_sequence_position(const llamita_session *s, int32_t index) {
    return index >= 0 && index < s->num_sequences ? s->sequences[index].position : -1;
}

llamita_status llamita_sequence_rewind(llamita_session *s, int32_t index, int32_t position, llamita_error *error) {
    if (index < 0 || index >= s->num_sequences) return sequence_error(s, "rewind", index, error);
    if (position < 0 || position > s->sequences[index].position)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot rewind: position: expected 0 to %d (the current position), found %d",
                         (int)s->sequences[index].position, (int)position);
    s->sequences[index].position = position;
    if (index == 0) {
        s->current = NULL;
        discard_draft(s);
    }
    return LLAMITA_OK;
}

llamita_status llamita_session_rewind(llamita_session *s, int32_t position, llamita_error *error) {
    return llamita_sequence_rewind(s, 0, position, error);
}

llamita_status llamita_sequence_share(llamita_session *s, int32_t from, int32_t to, int32_t num_tokens,
                                      llamita_error *error) {
    if (from < 0 || from >= s->num_sequences) return sequence_error(s, "share a sequence", from, error);
    if (to < 0 || to >= s->num_sequences) return sequence_error(s, "share a sequence", to, error);
    if (from == to || num_tokens < 0 || num_tokens > s->sequences[from].position)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot share a sequence: expected another sequence and 0 to %d tokens (its length), "
                         "found sequence %d and %d tokens",
                         (int)s->sequences[from].position, (int)to, (int)num_tokens);
    if (!lora_sets_equal(&s->sequences[from].adapters, &s->sequences[to].adapters))
        return error_set(
            error, LLAMITA_ERROR_ARGUMENT,
            "cannot share a sequence: expected the same adapters in both, found different ones in %d and %d; "
            "set them first",
            (int)to, (int)from);
    kv_cache_share(&s->sequences[to].cache, &s->sequences[from].cache, num_tokens);
    memcpy(s->sequences[to].ids, s->sequences[from].ids, (size_t)num_tokens * sizeof(int32_t));
    s->sequences[to].position = num_tokens;
    discard_draft(s);
    if (to == 0) s->current = NULL;
    return LLAMITA_OK;
}

/* ------------------------------------------------------------------ adapters */

/* Checks the uses and collects them in *set, without those of scale 0. */
static llamita_status make_set(const llamita_session *s, const llamita_adapter_use *uses, size_t num_uses,
                               lora_set *set, llamita_error *error) {
    if (num_uses > LLAMITA_MAX_ADAPTERS)
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot set adapters: expected at most %d, found %zu",
                         LLAMITA_MAX_ADAPTERS, num_uses);
    for (size_t i = 0; i < num_uses; i++) {
        if (!uses[i].adapter || uses[i].adapter->model != s->model)
            return error_set(error, LLAMITA_ERROR_ARGUMENT,
                             "cannot set adapters: adapter %zu: expected one opened for the session's model, "
                             "found one of another model; open it with this model",
                             i);
        if (!isfinite(uses[i].scale))
            return error_set(error, LLAMITA_ERROR_ARGUMENT,
                             "cannot set adapters: scale of adapter %zu: expected a finite number, found %f", i,
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
    if (index < 0 || index >= s->num_sequences) return sequence_error(s, "set adapters", index, error);
    const llamita_status status = make_set(s, uses, num_uses, &set, error);
    if (status != LLAMITA_OK) return status;
    lora_set *current = &s->sequences[index].adapters;
    if (lora_sets_equal(current, &set)) return LLAMITA_OK;
    if (!forward_reserve_lora(s->forward, lora_set_floats(&set)))
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot set adapters: out of memory for %d adapters",
                         (int)set.count);
    lora_set_retain(&set);
    lora_set_release(current);
    *current = set;
    return llamita_sequence_rewind(s, index, 0, error);
}

llamita_status llamita_session_set_adapters(llamita_session *s, const llamita_adapter_use *uses, size_t num_uses,
                                            llamita_error *error) {
    return llamita_sequence_set_adapters(s, 0, uses, num_uses, error);
}

/* ------------------------------------------------------------------ files of sequence 0 */

/* What the keys and values of sequence 0 depend on. */
static llamita_status make_cache_key(llamita_session *s, prompt_cache_key *key, llamita_error *error) {
    if (!thread_pool_usable(s->pool)) return forked_error(s, "save or load a session", error);
    const weights_state weights = model_begin_use(s->model, s->pool, false);
    if (weights == WEIGHTS_FAILED) return model_pack_failure(s->model, error);
    if (!s->has_model_hash) s->has_model_hash = prompt_cache_hash_model(s->model, s->rope, s->pool, &s->model_hash);
    model_end_use(s->model, weights);
    if (!s->has_model_hash)
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot save or load a session: out of memory");
    *key = (prompt_cache_key){s->model_hash, prompt_cache_hash_adapters(s->model, &s->sequences[0].adapters)};
    return LLAMITA_OK;
}

llamita_status llamita_session_save(llamita_session *s, const char *path, llamita_error *error) {
    const sequence *seq = &s->sequences[0];
    prompt_cache_key key;
    if (seq->position == 0)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot save %s: expected a session that holds tokens, found none; feed it first",
                         error_path(path));
    const llamita_status status = make_cache_key(s, &key, error);
    return status ? status : prompt_cache_write(path, key, &seq->cache, seq->ids, seq->position, error);
}

llamita_status llamita_session_load(llamita_session *s, const char *path, llamita_error *error) {
    sequence *seq = &s->sequences[0];
    prompt_cache_key key;
    int32_t num_tokens = 0;
    kv_cache cache;
    llamita_status status = make_cache_key(s, &key, error);
    if (status) return status;
    int32_t *ids = calloc((size_t)s->context_tokens, sizeof *ids);
    if (!kv_cache_init(&cache, &s->kv_shape, s->context_tokens) || !ids)
        status = error_set(error, LLAMITA_ERROR_MEMORY, "cannot load %s: out of memory", error_path(path));
    else
        status =
            prompt_cache_read(path, key, s->model->info.vocab_size, s->context_tokens, &cache, ids, &num_tokens, error);
    if (!status) {
        const sequence before = *seq;
        *seq = (sequence){cache, before.adapters, ids, num_tokens};
        cache = before.cache;
        ids = before.ids;
        s->current = NULL;
        discard_draft(s);
    }
    kv_cache_clear(&cache);
    free(ids);
    return status;
}

/* ------------------------------------------------------------------ passes */

static llamita_status check_ids(const llamita_session *s, const int32_t *ids, size_t num_ids, llamita_error *error) {
    const int32_t vocab_size = s->model->info.vocab_size;
    for (size_t i = 0; i < num_ids; i++)
        if (ids[i] < 0 || ids[i] >= vocab_size)
            return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot feed tokens: id %zu: expected 0 to %d, found %d", i,
                             (int)vocab_size - 1, (int)ids[i]);
    return LLAMITA_OK;
}

/* Checks a chunk and reserves the cache for num_new of its ids and up to num_draft draft tokens,
 * before anything changes. */
static llamita_status prepare_chunk(llamita_session *s, const llamita_chunk *chunk, size_t num_new, int32_t num_draft,
                                    llamita_error *error) {
    if (!thread_pool_usable(s->pool)) return forked_error(s, "feed tokens", error);
    if (chunk->sequence < 0 || chunk->sequence >= s->num_sequences)
        return sequence_error(s, "feed tokens", chunk->sequence, error);
    sequence *seq = &s->sequences[chunk->sequence];
    const int32_t left = s->context_tokens - seq->position;
    if (chunk->num_tokens == 0)
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot feed tokens: num_tokens: expected at least 1, found 0");
    if (chunk->num_logits > chunk->num_tokens)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot feed tokens: num_logits: expected at most num_tokens (%zu), found %zu",
                         chunk->num_tokens, chunk->num_logits);
    if (num_new > (size_t)left)
        return error_set(
            error, LLAMITA_ERROR_CONTEXT,
            "cannot feed tokens: the context of %d tokens has %d in use: expected at most %d more, found %zu; "
            "shorten the text, rewind, or open a session with a larger context",
            (int)s->context_tokens, (int)seq->position, (int)left, num_new);
    const llamita_status status = check_ids(s, chunk->ids, chunk->num_tokens, error);
    if (status != LLAMITA_OK) return status;
    const int32_t end = seq->position + (int32_t)num_new;
    if (!kv_cache_reserve(&seq->cache, seq->position, end + min(num_draft, s->context_tokens - end)))
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot feed tokens: out of memory for the KV cache of %d tokens",
                         (int)end);
    return LLAMITA_OK;
}

static llamita_status pass_error(const llamita_session *s, forward_output kind, llamita_error *error) {
    const llamita_status failure = model_pack_failure(s->model, error);
    if (failure) return failure;
    const char *what = kind == OUTPUT_LOGITS ? "logits" : "hidden states";
    bool adapted = false;
    for (int32_t i = 0; i < s->num_sequences; i++) adapted |= s->sequences[i].adapters.count > 0;
    return error_set(error, LLAMITA_ERROR_NUMERIC,
                     "cannot compute %s: expected finite numbers, found infinity or NaN; the model's weights are "
                     "damaged%s",
                     what, adapted ? ", or an adapter's scale is too large" : "");
}

/* The next tokens of a chunk, from token `done` on and at most `room` of them. */
static forward_span next_span(llamita_session *s, const llamita_chunk *chunk, size_t done, int32_t room) {
    const size_t left = chunk->num_tokens - done, without_logits = chunk->num_tokens - chunk->num_logits;
    const int32_t count = left < (size_t)room ? (int32_t)left : room;
    const size_t end = done + (size_t)count, first_logits = done > without_logits ? done : without_logits;
    sequence *seq = &s->sequences[chunk->sequence];
    return (forward_span){&seq->cache, &seq->adapters, chunk->ids + done,
                          count,       seq->position,  end > first_logits ? (int32_t)(end - first_logits) : 0};
}

/* Passes of one token and full passes are timed to tune the number of threads; others use the
 * closer tuner. */
static bool run_pass(llamita_session *s, const forward_span *spans, int32_t num_spans, int32_t num_tokens,
                     forward_output kind, float *out) {
    thread_tuner *tuner = num_tokens > PASS_TOKENS / 2 ? &s->prefill_tuner : &s->decode_tuner;
    const weights_state weights = model_begin_use(s->model, s->pool, num_tokens < PASS_TOKENS);
    if (weights == WEIGHTS_FAILED) return false;
    const double start = platform_seconds();
    const bool succeeded = forward_run(s->forward, tuner->num_threads, weights, spans, num_spans, kind, out) &&
                           model_pack_failure(s->model, NULL) == LLAMITA_OK;
    model_end_use(s->model, weights);
    s->num_passes++;
    if (weights == WEIGHTS_PACKED && (num_tokens == 1 || num_tokens == PASS_TOKENS))
        thread_tuner_record(tuner, platform_seconds() - start);
    return succeeded;
}

/* Runs all chunks, which are prepared, and advances their sequences. False: see pass_error. */
static bool run_chunks(llamita_session *s, const llamita_chunk *chunks, size_t num_chunks, forward_output kind,
                       float *out) {
    const llamita_model_info *info = &s->model->info;
    const size_t length = (size_t)(kind == OUTPUT_LOGITS ? info->vocab_size : info->hidden_size);
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
        if (!run_pass(s, spans, num_spans, num_tokens, kind, out)) return false;
        if (num_logits > 0) out += num_logits * length; /* out may be NULL without */
    }
    return true;
}

/* After a failure. */
static void restore_positions(llamita_session *s, const llamita_chunk *chunks, size_t num_chunks,
                              const int32_t *positions) {
    for (size_t i = 0; i < num_chunks; i++) s->sequences[chunks[i].sequence].position = positions[i];
}

/* position: of its first token. */
static void record_ids(llamita_session *s, const llamita_chunk *chunk, int32_t position) {
    memcpy(s->sequences[chunk->sequence].ids + position, chunk->ids, chunk->num_tokens * sizeof *chunk->ids);
}

/* Runs one chunk of sequence 0. logits may be NULL if num_logits is 0. */
static llamita_status feed_chunk(llamita_session *s, const int32_t *ids, size_t num_tokens, size_t num_logits,
                                 float *logits, llamita_error *error) {
    const llamita_chunk chunk = {0, ids, num_tokens, num_logits};
    const llamita_status status = prepare_chunk(s, &chunk, num_tokens, 0, error);
    if (status != LLAMITA_OK) return status;
    const int32_t start = s->sequences[0].position;
    s->current = NULL;
    discard_draft(s);
    if (!run_chunks(s, &chunk, 1, OUTPUT_LOGITS, logits)) {
        s->sequences[0].position = start;
        return pass_error(s, OUTPUT_LOGITS, error);
    }
    record_ids(s, &chunk, start);
    return LLAMITA_OK;
}

static llamita_status decode(llamita_session *s, const llamita_chunk *chunks, size_t num_chunks, forward_output kind,
                             float *out, llamita_error *error) {
    int32_t positions[MAX_SEQUENCES];
    if (num_chunks == 0 || num_chunks > (size_t)s->num_sequences)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot feed tokens: num_chunks: expected 1 to %d (one for each sequence), found %zu",
                         (int)s->num_sequences, num_chunks);
    for (size_t i = 0; i < num_chunks; i++) {
        const llamita_status status = prepare_chunk(s, &chunks[i], chunks[i].num_tokens, 0, error);
        if (status != LLAMITA_OK) return status;
        positions[i] = s->sequences[chunks[i].sequence].position;
        for (size_t j = 0; j < i; j++)
            if (chunks[j].sequence == chunks[i].sequence)
                return error_set(error, LLAMITA_ERROR_ARGUMENT,
                                 "cannot feed tokens: expected each sequence once, found sequence %d twice",
                                 (int)chunks[i].sequence);
    }
    for (size_t i = 0; i < num_chunks; i++)
        if (chunks[i].sequence == 0) {
            s->current = NULL;
            discard_draft(s);
        }
    if (!run_chunks(s, chunks, num_chunks, kind, out)) {
        restore_positions(s, chunks, num_chunks, positions);
        return pass_error(s, kind, error);
    }
    for (size_t i = 0; i < num_chunks; i++) record_ids(s, &chunks[i], positions[i]);
    return LLAMITA_OK;
}

llamita_status llamita_decode(llamita_session *s, const llamita_chunk *chunks, size_t num_chunks, float *logits,
                              llamita_error *error) {
    return decode(s, chunks, num_chunks, OUTPUT_LOGITS, logits, error);
}

llamita_status llamita_decode_hidden_states(llamita_session *s, const llamita_chunk *chunks, size_t num_chunks,
                                            float *hidden_states, llamita_error *error) {
    return decode(s, chunks, num_chunks, OUTPUT_HIDDEN_STATES, hidden_states, error);
}

/* ------------------------------------------------------------------ feeding sequence 0 */

/* True if the id is the next draft token: its logits were already computed. */
static bool accept_draft(llamita_session *s, int32_t id) {
    if (s->num_accepted == s->num_draft || s->draft[s->num_accepted] != id) return false;
    s->sequences[0].ids[s->sequences[0].position++] = id;
    s->current = s->logits + (size_t)++s->num_accepted * (size_t)s->model->info.vocab_size;
    return true;
}

/* Makes room for the logits of this many tokens; does not keep the contents. */
static bool reserve_logits(llamita_session *s, size_t rows) {
    if (rows <= s->logits_rows) return true;
    float *logits = malloc(rows * (size_t)s->model->info.vocab_size * sizeof *logits);
    if (!logits) return false;
    free(s->logits);
    s->logits = logits;
    s->logits_rows = rows;
    return true;
}

/* Feeds one id, together with a draft of the ids that may follow it. */
static llamita_status feed_one(llamita_session *s, int32_t id, llamita_error *error) {
    if (!thread_pool_usable(s->pool)) return forked_error(s, "feed tokens", error);
    if (accept_draft(s, id)) return LLAMITA_OK;
    if (s->num_draft > 0) prompt_lookup_record_hits(&s->lookup, s->num_draft, s->num_accepted);
    discard_draft(s);
    const llamita_chunk chunk = {0, &id, 1, 1};
    const llamita_status status = prepare_chunk(s, &chunk, 1, s->speculates ? MAX_DRAFT_TOKENS : 0, error);
    if (status != LLAMITA_OK) return status;
    sequence *seq = &s->sequences[0];
    int32_t ids[1 + MAX_DRAFT_TOKENS] = {id}, num_draft = 0;
    s->current = NULL;
    seq->ids[seq->position] = id;
    if (s->speculates)
        num_draft = prompt_lookup_guess(&s->lookup, seq->ids, seq->position + 1,
                                        min(MAX_DRAFT_TOKENS, s->context_tokens - seq->position - 1), ids + 1);
    if (num_draft > 0 && !reserve_logits(s, 1 + MAX_DRAFT_TOKENS)) num_draft = 0;
    const double start = platform_seconds();
    forward_span span = {&seq->cache, &seq->adapters, ids, 1 + num_draft, seq->position, 1 + num_draft};
    bool passed = run_pass(s, &span, 1, span.num_tokens, OUTPUT_LOGITS, s->logits);
    if (!passed && num_draft > 0) { /* perhaps only after the draft tokens */
        num_draft = 0;
        span.num_tokens = span.num_logits = 1;
        passed = run_pass(s, &span, 1, 1, OUTPUT_LOGITS, s->logits);
    }
    if (!passed) return pass_error(s, OUTPUT_LOGITS, error);
    prompt_lookup_record_pass(&s->lookup, num_draft, platform_seconds() - start);
    memcpy(s->draft, ids + 1, (size_t)num_draft * sizeof *ids);
    s->num_draft = num_draft;
    s->current = s->logits;
    seq->position++;
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
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot score: num_tokens: expected at least 2, found %zu",
                         num_tokens);
    const llamita_chunk whole = {0, ids, num_tokens, 0};
    const llamita_status status = prepare_chunk(s, &whole, num_tokens - 1, 0, error);
    if (status != LLAMITA_OK) return status;
    const size_t vocab_size = (size_t)s->model->info.vocab_size;
    if (!s->score_logits) s->score_logits = malloc(PASS_TOKENS * vocab_size * sizeof *s->score_logits);
    if (!s->score_logits)
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot score: out of memory for the logits of %d tokens",
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

/* ------------------------------------------------------------------ for generate.c */

int32_t session_kept_tokens(const llamita_session *s, int32_t num_prompt_tokens, bool begins_with_bos) {
    if (!s->shifts) return -1;
    const int32_t others = num_prompt_tokens - begins_with_bos;
    return s->num_keep < 0 || s->num_keep > others ? num_prompt_tokens : s->num_keep + begins_with_bos;
}

llamita_status session_begin_text(llamita_session *s, const int32_t *ids, size_t num_ids, llamita_error *error) {
    if (num_ids == 0)
        return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot generate: the prompt: expected at least 1 id, found 0");
    if (num_ids > (size_t)s->context_tokens)
        return error_set(error, LLAMITA_ERROR_CONTEXT,
                         "cannot generate: the prompt: expected at most %d tokens (the context), found %zu; shorten "
                         "the prompt",
                         (int)s->context_tokens, num_ids);
    const llamita_status status = check_ids(s, ids, num_ids, error);
    if (status != LLAMITA_OK) return status;
    const int32_t most = min(s->sequences[0].position, (int32_t)num_ids - 1), *held = s->sequences[0].ids;
    int32_t shared = 0;
    while (shared < most && held[shared] == ids[shared]) shared++;
    return llamita_session_rewind(s, shared, error);
}
