/* scheduler.c: the scheduler of llamita.h: runs many requests on the sequences of one session.
 *
 * A sequence whose request has ended keeps its tokens until another request takes it, so that a
 * prompt that starts alike need not compute them again. Requests never see each other: the logits
 * of a sequence do not depend on the others, and each request has its own sampler. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "model/ops.h"
#include "model/sampler.h"
#include "platform/platform.h"
#include "runtime/array.h"
#include "runtime/error.h"

enum {
    MAX_PARALLEL = 512,
    STEP_PROMPT_TOKENS = 64, /* of all prompts together in a step, while nothing else runs */
    MIN_PROMPT_TOKENS = 6,   /* beside running texts, or one for each of them if that is more, at the start of a
                              * prompt: more would double the time of a step */
    ATTENTION_COST = 3,      /* times that of as many multiplications with weights */
    MAX_RUN_EVENTS = 4096,   /* after these, run returns */
    MIN_SHARED_TOKENS = 16,  /* sharing copies a page, which takes longer than a few tokens */
};
static const float MAX_BIAS = 1e6f; /* sums with it stay finite */

typedef struct request {
    uint64_t number;
    int32_t *ids; /* [num_tokens] */
    int32_t num_tokens, max_new_tokens, num_top_logprobs, num_shared_tokens;
    llamita_sampler_params sampling;
    float presence_penalty, frequency_penalty;
    llamita_logit_bias *biases; /* [num_biases] */
    size_t num_biases, num_adapters;
    llamita_adapter_use adapters[LLAMITA_MAX_ADAPTERS];
    bool score_prompt;
    llamita_constraint constraint;
    void *constraint_state;
    struct request *next; /* in the queue */
} request;

/* A sequence of the session. */
typedef struct {
    request *request; /* NULL: idle */
    llamita_sampler *sampler;
    int32_t *ids; /* [context] the prompt and the new tokens */
    int32_t num_ids;
    llamita_adapter_use adapters[LLAMITA_MAX_ADAPTERS];
    size_t num_adapters;
    uint64_t last_used;
} slot;

struct llamita_scheduler {
    const llamita_model *model;
    llamita_session *session;
    int32_t context_tokens, num_parallel, num_slots;
    int64_t double_depth;  /* at this position, a token of a prompt takes twice as long as at its start */
    int32_t next_prompt;   /* the slot whose prompt is the first to be read in the next step */
    slot *slots;           /* [num_slots] */
    llamita_chunk *chunks; /* [num_slots] of this step */
    request *first_waiting, *last_waiting;
    uint64_t last_number, clock;
    llamita_scheduler_stats stats;
    float *logits, *adjusted; /* [logits_rows, V]; [V] */
    size_t logits_capacity;
    int32_t *counts;   /* [V] zeros between calls */
    uint32_t *allowed; /* [V / 32, rounded up] */
    llamita_event *events;
    size_t num_events, events_capacity;
    bool has_news; /* a text began or ended in this step */
    atomic_bool is_interrupted;
};

/* ------------------------------------------------------------------ opening and closing */

/* Compares a token's multiplications in a layer: with weights, and with the keys and values of each
 * position before it. */
static int64_t find_double_depth(const llamita_model_info *info) {
    const int64_t hidden = info->hidden_size, query = (int64_t)info->num_attention_heads * info->head_dim;
    const int64_t key_value = (int64_t)info->num_key_value_heads * info->head_dim;
    const int64_t weights = hidden * (2 * query + 2 * key_value + 3 * (int64_t)info->intermediate_size);
    return weights / (2 * query * ATTENTION_COST) + 1;
}

static bool fill_scheduler(llamita_scheduler *s) {
    const size_t vocab_size = (size_t)s->model->info.vocab_size;
    s->slots = calloc((size_t)s->num_slots, sizeof *s->slots);
    s->chunks = calloc((size_t)s->num_slots, sizeof *s->chunks);
    s->adjusted = malloc(vocab_size * sizeof *s->adjusted);
    s->counts = calloc(vocab_size, sizeof *s->counts);
    s->allowed = calloc(vocab_size / 32 + 1, sizeof *s->allowed);
    if (!s->slots || !s->chunks || !s->adjusted || !s->counts || !s->allowed) return false;
    for (int32_t i = 0; i < s->num_slots; i++) {
        s->slots[i].ids = malloc((size_t)s->context_tokens * sizeof *s->slots[i].ids);
        if (!s->slots[i].ids) return false;
    }
    return true;
}

llamita_status llamita_scheduler_open(const llamita_model *model, const llamita_scheduler_params *params,
                                      llamita_scheduler **scheduler, llamita_error *error) {
    if (params->num_parallel < 1 || params->num_parallel > MAX_PARALLEL)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot open a scheduler: num_parallel: expected 1 to %d, found %d", MAX_PARALLEL,
                         (int)params->num_parallel);
    if (params->num_cached < 0 || params->num_cached > MAX_PARALLEL)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot open a scheduler: num_cached: expected 0 to %d, found %d", MAX_PARALLEL,
                         (int)params->num_cached);
    const int32_t num_slots = params->num_parallel + params->num_cached;
    const llamita_session_params session_params = {.num_threads = params->num_threads,
                                                   .context_tokens = params->context_tokens,
                                                   .num_sequences = num_slots,
                                                   .kv_type = params->kv_type,
                                                   .speculation = LLAMITA_SPECULATION_OFF,
                                                   .rope = params->rope};
    llamita_session *session;
    const llamita_status status = llamita_session_open(model, &session_params, &session, error);
    if (status != LLAMITA_OK) return status;
    llamita_scheduler *s = calloc(1, sizeof *s);
    if (s) {
        s->model = model;
        s->session = session;
        s->context_tokens = llamita_session_context_tokens(session);
        s->num_parallel = params->num_parallel;
        s->num_slots = num_slots;
        s->double_depth = find_double_depth(&model->info);
    }
    if (!s || !fill_scheduler(s)) {
        if (s) llamita_scheduler_close(s);
        else llamita_session_close(session);
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot open a scheduler: out of memory for %d sequences",
                         (int)num_slots);
    }
    *scheduler = s;
    return LLAMITA_OK;
}

static void free_request(request *r) {
    if (!r) return;
    free(r->ids);
    free(r->biases);
    free(r);
}

void llamita_scheduler_close(llamita_scheduler *s) {
    if (!s) return;
    for (request *r = s->first_waiting, *next; r; r = next) {
        next = r->next;
        free_request(r);
    }
    for (int32_t i = 0; i < s->num_slots && s->slots; i++) {
        free_request(s->slots[i].request);
        llamita_sampler_close(s->slots[i].sampler);
        free(s->slots[i].ids);
    }
    llamita_session_close(s->session);
    free(s->slots);
    free(s->chunks);
    free(s->logits);
    free(s->adjusted);
    free(s->counts);
    free(s->allowed);
    free(s->events);
    free(s);
}

int32_t llamita_scheduler_context_tokens(const llamita_scheduler *s) { return s->context_tokens; }
void llamita_scheduler_get_stats(const llamita_scheduler *s, llamita_scheduler_stats *stats) { *stats = s->stats; }

const llamita_event *llamita_scheduler_events(const llamita_scheduler *s, size_t *num_events) {
    *num_events = s->num_events;
    return s->events;
}

/* ------------------------------------------------------------------ requests */

static llamita_status check_request(const llamita_scheduler *s, const llamita_request *r, llamita_error *error) {
    const int32_t vocab_size = s->model->info.vocab_size;
#define REFUSE(name, expected, found)                                                                           \
    return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot submit: " name ": expected " expected ", found %g", \
                     (double)(found))
    if (r->num_tokens == 0) REFUSE("num_tokens", "at least 1", 0);
    if (r->num_tokens > (size_t)s->context_tokens)
        return error_set(error, LLAMITA_ERROR_CONTEXT,
                         "cannot submit: the prompt: expected at most %d tokens (the context), found %zu; shorten it",
                         (int)s->context_tokens, r->num_tokens);
    for (size_t i = 0; i < r->num_tokens; i++)
        if (r->ids[i] < 0 || r->ids[i] >= vocab_size)
            return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot submit: id %zu: expected 0 to %d, found %d", i,
                             (int)vocab_size - 1, (int)r->ids[i]);
    if (r->max_new_tokens < 0) REFUSE("max_new_tokens", "0 or more", r->max_new_tokens);
    if (r->num_top_logprobs < -1 || r->num_top_logprobs > LLAMITA_MAX_TOP_LOGPROBS)
        REFUSE("num_top_logprobs", "-1 (no log-probabilities) to 20", r->num_top_logprobs);
    if (!(fabsf(r->presence_penalty) <= MAX_BIAS)) REFUSE("presence_penalty", "-1e6 to 1e6", r->presence_penalty);
    if (!(fabsf(r->frequency_penalty) <= MAX_BIAS)) REFUSE("frequency_penalty", "-1e6 to 1e6", r->frequency_penalty);
    for (size_t i = 0; i < r->num_biases; i++) {
        if (r->biases[i].id < 0 || r->biases[i].id >= vocab_size)
            REFUSE("the id of a bias", "one of the vocabulary", r->biases[i].id);
        if (!(fabsf(r->biases[i].bias) <= MAX_BIAS)) REFUSE("a bias", "-1e6 to 1e6", r->biases[i].bias);
    }
    if (r->num_adapters > LLAMITA_MAX_ADAPTERS) REFUSE("num_adapters", "at most 16", r->num_adapters);
#undef REFUSE
    llamita_sampler *sampler;
    const llamita_status status = llamita_sampler_open(&r->sampling, vocab_size, &sampler, error);
    if (status == LLAMITA_OK) llamita_sampler_close(sampler);
    return status;
}

static request *copy_request(const llamita_scheduler *s, const llamita_request *given) {
    request *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->ids = malloc(given->num_tokens * sizeof *r->ids);
    r->biases = malloc((given->num_biases + 1) * sizeof *r->biases);
    if (!r->ids || !r->biases) {
        free_request(r);
        return NULL;
    }
    memcpy(r->ids, given->ids, given->num_tokens * sizeof *r->ids);
    if (given->num_biases > 0) memcpy(r->biases, given->biases, given->num_biases * sizeof *r->biases);
    if (given->num_adapters > 0) memcpy(r->adapters, given->adapters, given->num_adapters * sizeof *r->adapters);
    r->num_tokens = (int32_t)given->num_tokens;
    r->num_biases = given->num_biases;
    r->num_adapters = given->num_adapters;
    r->max_new_tokens = given->max_new_tokens;
    r->num_top_logprobs = given->num_top_logprobs;
    r->sampling = given->sampling;
    r->sampling.model = s->model;
    r->presence_penalty = given->presence_penalty;
    r->frequency_penalty = given->frequency_penalty;
    r->score_prompt = given->score_prompt;
    r->constraint = given->constraint;
    r->constraint_state = given->constraint_state;
    return r;
}

llamita_status llamita_scheduler_submit(llamita_scheduler *s, const llamita_request *given, uint64_t *number,
                                        llamita_error *error) {
    const llamita_status status = check_request(s, given, error);
    if (status != LLAMITA_OK) return status;
    request *r = copy_request(s, given);
    if (!r)
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot submit: out of memory for a prompt of %zu tokens",
                         given->num_tokens);
    r->number = ++s->last_number;
    if (s->last_waiting) s->last_waiting->next = r;
    else s->first_waiting = r;
    s->last_waiting = r;
    s->stats.num_waiting++;
    *number = r->number;
    return LLAMITA_OK;
}

static request *take_waiting(llamita_scheduler *s) {
    request *r = s->first_waiting;
    s->first_waiting = r->next;
    if (!r->next) s->last_waiting = NULL;
    r->next = NULL;
    s->stats.num_waiting--;
    return r;
}

/* Ends the request of a slot. The tokens in the cache stay. */
static void release(llamita_scheduler *s, int32_t index) {
    slot *owner = &s->slots[index];
    free_request(owner->request);
    llamita_sampler_close(owner->sampler);
    owner->request = NULL;
    owner->sampler = NULL;
    owner->last_used = ++s->clock;
    s->stats.num_running--;
}

bool llamita_scheduler_cancel(llamita_scheduler *s, uint64_t number) {
    for (int32_t i = 0; i < s->num_slots; i++)
        if (s->slots[i].request && s->slots[i].request->number == number) {
            release(s, i);
            return true;
        }
    request *before = NULL;
    for (request *r = s->first_waiting; r; before = r, r = r->next) {
        if (r->number != number) continue;
        if (before) before->next = r->next;
        else s->first_waiting = r->next;
        if (s->last_waiting == r) s->last_waiting = before;
        s->stats.num_waiting--;
        free_request(r);
        return true;
    }
    return false;
}

/* ------------------------------------------------------------------ events */

/* step has reserved the memory. */
static llamita_event *add_event(llamita_scheduler *s, const request *r, llamita_event_kind kind) {
    llamita_event *event = &s->events[s->num_events++];
    memset(event, 0, sizeof *event);
    s->has_news |= kind == LLAMITA_EVENT_END;
    event->request = r->number;
    event->num_shared_tokens = r->num_shared_tokens;
    event->kind = kind;
    event->id = -1;
    return event;
}

static void fail(llamita_scheduler *s, const request *r, llamita_status status) {
    llamita_event *event = add_event(s, r, LLAMITA_EVENT_END);
    event->finish = LLAMITA_FINISH_ERROR;
    event->status = status;
}

/* Fills the log-probabilities of an event's id and of the most probable ones; of equal logits, the
 * first comes first. */
static void add_logprobs(const llamita_scheduler *s, const request *r, const float *logits, llamita_event *event) {
    if (r->num_top_logprobs < 0) return;
    const int32_t vocab_size = s->model->info.vocab_size;
    event->logprob = -negative_log_probability(s->model->kernels, logits, vocab_size, event->id);
    const double total = (double)logits[event->id] - event->logprob;
    int32_t num = 0;
    for (int32_t id = 0; id < vocab_size && r->num_top_logprobs > 0; id++) {
        if (num == r->num_top_logprobs && logits[id] <= logits[event->top_ids[num - 1]]) continue;
        int32_t at = num < r->num_top_logprobs ? num++ : num - 1;
        for (; at > 0 && logits[event->top_ids[at - 1]] < logits[id]; at--) event->top_ids[at] = event->top_ids[at - 1];
        event->top_ids[at] = id;
    }
    for (int32_t i = 0; i < num; i++) event->top_logprobs[i] = (double)logits[event->top_ids[i]] - total;
    event->num_top = num;
}

/* ------------------------------------------------------------------ starting requests */

static bool adapters_equal(const slot *owner, const request *r) {
    bool equal = owner->num_adapters == r->num_adapters;
    for (size_t i = 0; equal && i < r->num_adapters; i++)
        equal =
            owner->adapters[i].adapter == r->adapters[i].adapter && owner->adapters[i].scale == r->adapters[i].scale;
    return equal;
}

/* The number of tokens of a sequence that the prompt starts with. Its last token must be computed
 * for its logits, and all of them if they are scored. */
static int32_t shared_tokens(const llamita_scheduler *s, int32_t index, const request *r) {
    const slot *owner = &s->slots[index];
    if (r->score_prompt || !adapters_equal(owner, r)) return 0;
    const int32_t position = llamita_sequence_position(s->session, index);
    const int32_t limit = position < r->num_tokens - 1 ? position : r->num_tokens - 1;
    int32_t num = 0;
    while (num < limit && owner->ids[num] == r->ids[num]) num++;
    return num;
}

/* Gives the request a sequence that starts with as many of its tokens as any sequence has: an idle
 * one that holds nothing else, or the one that has been idle longest. */
static llamita_status choose_slot(llamita_scheduler *s, request *r, int32_t *index) {
    int32_t source = -1, num_shared = 0, target = -1;
    for (int32_t i = 0; i < s->num_slots; i++) {
        const int32_t num = shared_tokens(s, i, r);
        if (num > num_shared) {
            source = i;
            num_shared = num;
        }
        if (!s->slots[i].request && (target < 0 || s->slots[i].last_used < s->slots[target].last_used)) target = i;
    }
    const bool whole = source >= 0 && num_shared == llamita_sequence_position(s->session, source);
    if (source >= 0 && !s->slots[source].request && whole) target = source;
    if (source < 0) num_shared = 0;
    if (source != target && num_shared < MIN_SHARED_TOKENS) num_shared = 0;
    const llamita_status status = llamita_sequence_set_adapters(s->session, target, r->adapters, r->num_adapters, NULL);
    if (status != LLAMITA_OK) return status;
    slot *chosen = &s->slots[target];
    memcpy(chosen->adapters, r->adapters, sizeof r->adapters);
    chosen->num_adapters = r->num_adapters;
    /* Adapters of scale 0 are not kept, and others may be at their addresses by now: then these calls
     * fail, and nothing is shared. */
    const bool shared =
        num_shared > 0 &&
        (source == target ? llamita_sequence_rewind(s->session, target, num_shared, NULL)
                          : llamita_sequence_share(s->session, source, target, num_shared, NULL)) == LLAMITA_OK;
    if (!shared) llamita_sequence_rewind(s->session, target, 0, NULL);
    r->num_shared_tokens = shared ? num_shared : 0;
    s->stats.num_shared_tokens += r->num_shared_tokens;
    *index = target;
    return LLAMITA_OK;
}

static void start_request(llamita_scheduler *s, request *r) {
    llamita_sampler *sampler;
    int32_t index = 0;
    llamita_status status = llamita_sampler_open(&r->sampling, s->model->info.vocab_size, &sampler, NULL);
    if (status == LLAMITA_OK) {
        status = choose_slot(s, r, &index);
        if (status != LLAMITA_OK) llamita_sampler_close(sampler);
    }
    if (status != LLAMITA_OK) {
        fail(s, r, status);
        free_request(r);
        return;
    }
    slot *owner = &s->slots[index];
    owner->request = r;
    owner->sampler = sampler;
    owner->num_ids = r->num_tokens;
    memcpy(owner->ids, r->ids, (size_t)r->num_tokens * sizeof *r->ids);
    for (int32_t i = 0; i < r->num_tokens; i++) llamita_sampler_accept(sampler, r->ids[i]);
    s->stats.num_running++;
}

/* ------------------------------------------------------------------ steps */

static int32_t max(int32_t a, int32_t b) { return a > b ? a : b; }
static int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }

static bool reads_prompt(const llamita_scheduler *s, int32_t index) {
    const request *r = s->slots[index].request;
    return r && llamita_sequence_position(s->session, index) < r->num_tokens;
}

/* The chunks of this step: the last token of each running text, and pieces of the prompts (beside
 * running texts, fewer tokens the deeper they are in a prompt). Returns their number, and in
 * *num_logits the rows of logits that they ask for. */
static size_t plan_chunks(llamita_scheduler *s, size_t *num_logits) {
    int32_t num_prompts = 0;
    for (int32_t i = 0; i < s->num_slots; i++) num_prompts += reads_prompt(s, i);
    const int32_t num_decoding = s->stats.num_running - num_prompts;
    const bool is_alone = num_decoding == 0;
    const int32_t most = is_alone ? STEP_PROMPT_TOKENS : min(STEP_PROMPT_TOKENS, max(MIN_PROMPT_TOKENS, num_decoding));
    int64_t room = most * s->double_depth;
    size_t num = 0;
    *num_logits = 0;
    const int32_t first = s->next_prompt;
    for (int32_t turn = 0; turn < s->num_slots; turn++) {
        const int32_t i = (first + turn) % s->num_slots;
        const slot *owner = &s->slots[i];
        if (!owner->request) continue;
        const int32_t position = llamita_sequence_position(s->session, i), pending = owner->num_ids - position;
        int32_t count = pending;
        if (reads_prompt(s, i)) {
            if (room <= 0) continue; /* it comes first in the next step */
            const int64_t cost = s->double_depth + (is_alone ? 0 : position);
            count = min(pending, max(1, (int32_t)(room / num_prompts-- / cost)));
            room -= count * cost;
            s->next_prompt = i + 1;
        }
        const bool scored = owner->request->score_prompt && position < owner->request->num_tokens;
        const size_t logits = scored ? (size_t)count : count == pending;
        s->chunks[num++] = (llamita_chunk){i, owner->ids + position, (size_t)count, logits};
        *num_logits += logits;
    }
    return num;
}

/* Most words of a mask have all bits. */
static void forbid(const uint32_t *allowed, int32_t vocab_size, float *logits) {
    for (int32_t begin = 0; begin < vocab_size; begin += 32) {
        const uint32_t word = allowed[begin / 32];
        if (word == UINT32_MAX) continue;
        for (int32_t id = begin; id < min(begin + 32, vocab_size); id++)
            if (!(word >> (id - begin) & 1)) logits[id] = FORBIDDEN_LOGIT;
    }
}

/* The logits with the biases, the penalties for the new tokens so far, and no token that is not in
 * `allowed`, if there is a constraint. */
static const float *adjust(llamita_scheduler *s, const slot *owner, const float *logits) {
    const request *r = owner->request;
    const bool penalized = r->presence_penalty != 0.0f || r->frequency_penalty != 0.0f;
    if (!penalized && r->num_biases == 0 && !r->constraint) return logits;
    const int32_t vocab_size = s->model->info.vocab_size;
    memcpy(s->adjusted, logits, (size_t)vocab_size * sizeof *logits);
    for (size_t i = 0; i < r->num_biases; i++) s->adjusted[r->biases[i].id] += r->biases[i].bias;
    if (r->constraint) forbid(s->allowed, vocab_size, s->adjusted);
    if (!penalized) return s->adjusted;
    for (int32_t i = r->num_tokens; i < owner->num_ids; i++) s->counts[owner->ids[i]]++;
    for (int32_t i = r->num_tokens; i < owner->num_ids; i++) {
        const int32_t id = owner->ids[i];
        if (s->counts[id] == 0) continue; /* done at its first place */
        s->adjusted[id] -= r->presence_penalty + r->frequency_penalty * (float)s->counts[id];
        s->counts[id] = 0;
    }
    return s->adjusted;
}

/* Fills `allowed`, if the request has a constraint. */
static llamita_constraint_result ask_constraint(llamita_scheduler *s, const slot *owner) {
    const request *r = owner->request;
    if (!r->constraint) return LLAMITA_CONSTRAINT_ALLOWS;
    memset(s->allowed, 0, ((size_t)s->model->info.vocab_size / 32 + 1) * sizeof *s->allowed);
    return r->constraint(r->constraint_state, owner->num_ids > r->num_tokens ? owner->ids[owner->num_ids - 1] : -1,
                         s->allowed);
}

/* Picks the next token of a text whose tokens are all computed. */
static void pick(llamita_scheduler *s, int32_t index, const float *logits) {
    slot *owner = &s->slots[index];
    const request *r = owner->request;
    if (r->max_new_tokens == 0) {
        add_event(s, r, LLAMITA_EVENT_END)->finish = LLAMITA_FINISH_LENGTH;
        release(s, index);
        return;
    }
    const llamita_constraint_result allows = ask_constraint(s, owner);
    if (allows != LLAMITA_CONSTRAINT_ALLOWS) {
        if (allows == LLAMITA_CONSTRAINT_COMPLETE) add_event(s, r, LLAMITA_EVENT_END)->finish = LLAMITA_FINISH_STOP;
        else fail(s, r, LLAMITA_ERROR_ARGUMENT);
        release(s, index);
        return;
    }
    int32_t id;
    llamita_status status = llamita_sampler_pick(owner->sampler, adjust(s, owner, logits), &id, NULL);
    if (status == LLAMITA_OK && r->constraint && !(s->allowed[id / 32] >> (id % 32) & 1))
        status = LLAMITA_ERROR_ARGUMENT; /* it allows no token */
    if (status != LLAMITA_OK) {
        fail(s, r, status);
        release(s, index);
        return;
    }
    if (llamita_token_ends(s->model, id)) {
        add_event(s, r, LLAMITA_EVENT_END)->finish = LLAMITA_FINISH_STOP;
        release(s, index);
        return;
    }
    llamita_event *event = add_event(s, r, LLAMITA_EVENT_TOKEN);
    event->id = id;
    add_logprobs(s, r, logits, event);
    s->stats.num_new_tokens++;
    s->has_news |= owner->num_ids == r->num_tokens;
    llamita_sampler_accept(owner->sampler, id);
    if (owner->num_ids - r->num_tokens + 1 == r->max_new_tokens || owner->num_ids == s->context_tokens) {
        add_event(s, r, LLAMITA_EVENT_END)->finish = LLAMITA_FINISH_LENGTH;
        release(s, index);
        return;
    }
    owner->ids[owner->num_ids++] = id;
}

/* Reports the results of a chunk; position: where it began. */
static void finish_chunk(llamita_scheduler *s, const llamita_chunk *chunk, int32_t position, const float *logits) {
    const slot *owner = &s->slots[chunk->sequence];
    const request *r = owner->request;
    const size_t vocab_size = (size_t)s->model->info.vocab_size;
    const int32_t end = position + (int32_t)chunk->num_tokens;
    s->stats.num_prompt_tokens += position < r->num_tokens ? (int64_t)chunk->num_tokens : 0;
    if (r->score_prompt && position < r->num_tokens)
        for (int32_t i = position; i < end && i + 1 < r->num_tokens; i++) {
            llamita_event *event = add_event(s, r, LLAMITA_EVENT_PROMPT);
            event->id = owner->ids[i + 1];
            add_logprobs(s, r, logits + (size_t)(i - position) * vocab_size, event);
        }
    if (end == owner->num_ids) pick(s, chunk->sequence, logits + (chunk->num_logits - 1) * vocab_size);
}

static void run_chunks(llamita_scheduler *s, const llamita_chunk *chunks, size_t num_chunks) {
    if (num_chunks == 0) return;
    const llamita_status status = llamita_decode(s->session, chunks, num_chunks, s->logits, NULL);
    if (status != LLAMITA_OK && num_chunks > 1) { /* only the request that fails must end */
        for (size_t i = 0; i < num_chunks; i++) run_chunks(s, &chunks[i], 1);
        return;
    }
    if (status != LLAMITA_OK) {
        fail(s, s->slots[chunks->sequence].request, status);
        release(s, chunks->sequence);
        return;
    }
    s->stats.num_steps++;
    const float *logits = s->logits;
    for (size_t i = 0; i < num_chunks; i++) {
        const int32_t position =
            llamita_sequence_position(s->session, chunks[i].sequence) - (int32_t)chunks[i].num_tokens;
        finish_chunk(s, &chunks[i], position, logits);
        logits += chunks[i].num_logits * (size_t)s->model->info.vocab_size;
    }
}

static llamita_status run_step(llamita_scheduler *s, llamita_error *error) {
    s->has_news = false;
    /* At most two events a chunk, one for each scored token, and one for each request that cannot
     * start. */
    const size_t max_events = (size_t)(3 * s->num_slots + STEP_PROMPT_TOKENS + s->stats.num_waiting);
    if (!ARRAY_RESERVE(&s->events, &s->events_capacity, s->num_events + max_events))
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot step: out of memory for %zu events", max_events);
    while (s->first_waiting && s->stats.num_running < s->num_parallel) start_request(s, take_waiting(s));
    size_t num_logits;
    const size_t num_chunks = plan_chunks(s, &num_logits);
    const size_t needed = num_logits * (size_t)s->model->info.vocab_size;
    if (!ARRAY_RESERVE(&s->logits, &s->logits_capacity, needed))
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot step: out of memory for the logits of %zu tokens",
                         num_logits);
    run_chunks(s, s->chunks, num_chunks);
    return LLAMITA_OK;
}

llamita_status llamita_scheduler_step(llamita_scheduler *s, llamita_error *error) {
    s->num_events = 0;
    return run_step(s, error);
}

llamita_status llamita_scheduler_run(llamita_scheduler *s, double seconds, llamita_error *error) {
    const double start = platform_seconds();
    s->num_events = 0;
    llamita_status status;
    do status = run_step(s, error);
    while (status == LLAMITA_OK && !s->has_news && s->stats.num_running > 0 && s->num_events < MAX_RUN_EVENTS &&
           !atomic_load(&s->is_interrupted) && platform_seconds() - start < seconds);
    atomic_store(&s->is_interrupted, false);
    /* After a failure the events of the steps before must be read, too: the next call fails anew. */
    return s->num_events > 0 ? LLAMITA_OK : status;
}

void llamita_scheduler_interrupt(llamita_scheduler *s) { atomic_store(&s->is_interrupted, true); }
