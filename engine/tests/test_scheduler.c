/* test_scheduler.c: the scheduler gives each request the tokens that it gets alone, at any load. */
#include "random_model.h"

enum { NUM_REQUESTS = 60, MAX_EVENTS = 400, VOCAB = 75, CONTEXT = 300 };

static llamita_error error;

/* What a request got. */
typedef struct {
    llamita_event events[MAX_EVENTS];
    int num;
} answer;

typedef struct {
    int32_t ids[CONTEXT];
    llamita_logit_bias biases[2];
    llamita_request request;
} question;

static llamita_scheduler *open_scheduler(const llamita_model *model, int32_t num_parallel, int32_t num_cached) {
    llamita_scheduler *scheduler = NULL;
    const llamita_scheduler_params params = {.num_threads = 1, .num_parallel = num_parallel, .num_cached = num_cached};
    REQUIRE(llamita_scheduler_open(model, &params, &scheduler, &error) == LLAMITA_OK, "%s", error.message);
    return scheduler;
}

static uint64_t submit(llamita_scheduler *scheduler, const llamita_request *request) {
    uint64_t number = 0;
    REQUIRE(llamita_scheduler_submit(scheduler, request, &number, &error) == LLAMITA_OK, "%s", error.message);
    return number;
}

static void step(llamita_scheduler *scheduler) {
    REQUIRE(llamita_scheduler_step(scheduler, &error) == LLAMITA_OK, "%s", error.message);
}

/* Prompts of which many start alike, and sampling of all kinds. */
static void random_question(question *q, const int32_t *prefix, const llamita_adapter_use *uses) {
    const int32_t num_tokens = 1 + random_below(120), num_same = random_below(200);
    for (int32_t i = 0; i < num_tokens; i++) q->ids[i] = i < num_same ? prefix[i] : random_below(VOCAB);
    q->biases[0] = (llamita_logit_bias){random_below(VOCAB), -100.0f};
    q->biases[1] = (llamita_logit_bias){random_below(VOCAB), 2.0f};
    const bool greedy = random_below(3) == 0, penalized = random_below(3) == 0;
    q->request = (llamita_request){
        .ids = q->ids,
        .num_tokens = (size_t)num_tokens,
        .max_new_tokens = random_below(40),
        .sampling = {greedy ? 0.0f : 0.8f, random_below(2) * 20, random_below(2) ? 1.0f : 0.9f, 0.0f,
                     random_below(2) ? 1.0f : 1.2f, 64, random_bits()},
        .presence_penalty = penalized ? 0.5f : 0.0f,
        .frequency_penalty = penalized ? 0.3f : 0.0f,
        .biases = q->biases,
        .num_biases = (size_t)random_below(3),
        .num_top_logprobs = random_below(6) - 1,
        .score_prompt = random_below(5) == 0,
        .adapters = uses,
        .num_adapters = (size_t)random_below(2),
    };
}

static void collect(const llamita_scheduler *scheduler, const uint64_t *numbers, int num_numbers, answer *answers) {
    size_t num_events;
    const llamita_event *events = llamita_scheduler_events(scheduler, &num_events);
    for (size_t i = 0; i < num_events; i++)
        for (int n = 0; n < num_numbers; n++)
            if (numbers[n] == events[i].request) {
                REQUIRE(answers[n].num < MAX_EVENTS, "request %d has too many events", n);
                answers[n].events[answers[n].num] = events[i];
                answers[n].events[answers[n].num].num_shared_tokens = 0; /* depends on what ran before */
                answers[n].events[answers[n].num++].request = 0;
            }
}

static bool is_idle(const llamita_scheduler *scheduler) {
    llamita_scheduler_stats stats;
    llamita_scheduler_get_stats(scheduler, &stats);
    return stats.num_running == 0 && stats.num_waiting == 0;
}

static void answer_alone(const llamita_model *model, const question *q, answer *out) {
    out->num = 0;
    llamita_scheduler *scheduler = open_scheduler(model, 1, 0);
    const uint64_t number = submit(scheduler, &q->request);
    while (!is_idle(scheduler)) {
        step(scheduler);
        collect(scheduler, &number, 1, out);
    }
    llamita_scheduler_close(scheduler);
}

static void test_same_as_alone(const llamita_model *model, llamita_adapter *adapter) {
    static question questions[NUM_REQUESTS];
    static answer alone[NUM_REQUESTS], together[NUM_REQUESTS];
    uint64_t numbers[NUM_REQUESTS];
    int32_t prefix[CONTEXT];
    const llamita_adapter_use use = {adapter, 0.7f};
    for (int i = 0; i < CONTEXT; i++) prefix[i] = random_below(VOCAB);
    for (int i = 0; i < NUM_REQUESTS; i++) {
        random_question(&questions[i], prefix, &use);
        answer_alone(model, &questions[i], &alone[i]);
    }
    llamita_scheduler *scheduler = open_scheduler(model, 5, 2);
    int num = 0;
    for (int i = 0; i < NUM_REQUESTS; i++) together[i].num = 0;
    while (num < NUM_REQUESTS || !is_idle(scheduler)) {
        for (int i = random_below(4); i > 0 && num < NUM_REQUESTS; i--, num++)
            numbers[num] = submit(scheduler, &questions[num].request);
        if (random_below(7) == 0) { /* others come, and go at any moment */
            const uint64_t other = submit(scheduler, &questions[random_below(NUM_REQUESTS)].request);
            if (random_below(2)) step(scheduler), collect(scheduler, numbers, num, together);
            llamita_scheduler_cancel(scheduler, other);
        }
        step(scheduler);
        collect(scheduler, numbers, num, together);
    }
    for (int i = 0; i < NUM_REQUESTS; i++) {
        CHECK(alone[i].num > 0 && alone[i].events[alone[i].num - 1].kind == LLAMITA_EVENT_END, "request %d: no end", i);
        CHECK(alone[i].num == together[i].num &&
                  memcmp(alone[i].events, together[i].events, (size_t)alone[i].num * sizeof(llamita_event)) == 0,
              "request %d: %d events alone, %d together", i, alone[i].num, together[i].num);
    }
    llamita_scheduler_stats stats;
    llamita_scheduler_get_stats(scheduler, &stats);
    CHECK(stats.num_shared_tokens > 500, "%d shared tokens", (int)stats.num_shared_tokens);
    llamita_scheduler_close(scheduler);
}

/* The plain loop over a session gives the same tokens. */
static void test_same_as_session(const llamita_model *model) {
    int32_t prompt[30], id = 0;
    for (int i = 0; i < 30; i++) prompt[i] = random_below(VOCAB);
    const llamita_sampler_params sampling = {
        .temperature = 0.8f, .top_p = 0.9f, .repetition_penalty = 1.1f, .repetition_window = 64, .seed = 7};
    const llamita_request request = {
        .ids = prompt, .num_tokens = 30, .max_new_tokens = 50, .sampling = sampling, .num_top_logprobs = 3};
    static question q;
    static answer got;
    q.request = request;
    answer_alone(model, &q, &got);
    llamita_session *session = open_session(model, 1);
    llamita_sampler *sampler = NULL;
    REQUIRE(llamita_sampler_open(&sampling, VOCAB, &sampler, &error) == LLAMITA_OK, "%s", error.message);
    for (int i = 0; i < 30; i++) llamita_sampler_accept(sampler, prompt[i]);
    REQUIRE(llamita_session_feed(session, prompt, 30, &error) == LLAMITA_OK, "%s", error.message);
    for (int i = 0; i + 1 < got.num; i++) {
        const float *logits = llamita_session_logits(session);
        REQUIRE(llamita_sampler_pick(sampler, logits, &id, &error) == LLAMITA_OK, "%s", error.message);
        const llamita_event *event = &got.events[i];
        CHECK(event->id == id, "token %d: %d, expected %d", i, event->id, id);
        double total = 0;
        int32_t best = 0;
        for (int v = 0; v < VOCAB; v++) {
            total += exp((double)logits[v]);
            if (logits[v] > logits[best]) best = v;
        }
        CHECK(fabs(event->logprob - ((double)logits[id] - log(total))) < 1e-5, "log-probability of token %d", i);
        CHECK(event->num_top == 3 && event->top_ids[0] == best, "most probable: %d, expected %d", event->top_ids[0],
              best);
        CHECK(event->top_logprobs[0] >= event->top_logprobs[1] && event->top_logprobs[1] >= event->top_logprobs[2],
              "the log-probabilities of token %d are not in order", i);
        llamita_sampler_accept(sampler, id);
        REQUIRE(llamita_session_feed(session, &id, 1, &error) == LLAMITA_OK, "%s", error.message);
    }
    llamita_sampler_close(sampler);
    llamita_session_close(session);
}

static int num_prompt_tokens(const llamita_scheduler *scheduler) {
    llamita_scheduler_stats stats;
    llamita_scheduler_get_stats(scheduler, &stats);
    return (int)stats.num_prompt_tokens;
}

/* While a long prompt is read, a running text gets a token in every step, and a step reads fewer tokens
 * the deeper it is in the prompt. */
static void test_long_prompt(const llamita_model *model) {
    static int32_t ids[CONTEXT];
    llamita_scheduler *scheduler = open_scheduler(model, 2, 0);
    const llamita_sampler_params greedy = {.top_p = 1, .repetition_penalty = 1};
    const llamita_request text = {.ids = ids, .num_tokens = 1, .max_new_tokens = 200, .sampling = greedy};
    const llamita_request prompt = {.ids = ids, .num_tokens = CONTEXT, .max_new_tokens = 1, .sampling = greedy};
    const uint64_t running = submit(scheduler, &text);
    step(scheduler);
    const uint64_t other = submit(scheduler, &prompt);
    int num_steps = 0, last_read = 6;
    for (bool ended = false; !ended; num_steps++) {
        size_t num_events, num_tokens = 0;
        const int before = num_prompt_tokens(scheduler);
        step(scheduler);
        const int read = num_prompt_tokens(scheduler) - before;
        CHECK(read <= last_read && (num_steps > 0 || read == 6), "step %d reads %d tokens", num_steps, read);
        REQUIRE(read > 0, "the prompt never ends");
        last_read = read;
        const llamita_event *events = llamita_scheduler_events(scheduler, &num_events);
        for (size_t i = 0; i < num_events; i++) {
            num_tokens += events[i].request == running && events[i].kind == LLAMITA_EVENT_TOKEN;
            ended |= events[i].request == other && events[i].kind == LLAMITA_EVENT_END;
        }
        CHECK(num_tokens == 1, "step %d: the running text got %zu tokens", num_steps, num_tokens);
    }
    CHECK(last_read == 1, "the last step reads %d tokens", last_read);
    llamita_scheduler_close(scheduler);
}

/* Beside a running text, a step reads few tokens of prompts, however many there are, and all of them
 * get their turn. */
static void test_many_prompts(const llamita_model *model) {
    static int32_t ids[10][CONTEXT];
    const llamita_sampler_params greedy = {.top_p = 1, .repetition_penalty = 1};
    llamita_scheduler *scheduler = open_scheduler(model, 12, 0);
    const llamita_logit_bias no_end = {2, -1e6f};
    const llamita_request running = {
        .ids = ids[0], .num_tokens = 1, .max_new_tokens = 250, .sampling = greedy, .biases = &no_end, .num_biases = 1};
    submit(scheduler, &running);
    step(scheduler);
    for (int i = 0; i < 10; i++) {
        for (int k = 0; k < CONTEXT; k++) ids[i][k] = random_below(VOCAB);
        const llamita_request prompt = {.ids = ids[i], .num_tokens = CONTEXT, .max_new_tokens = 1, .sampling = greedy};
        submit(scheduler, &prompt);
    }
    const llamita_request brief = {.ids = ids[5], .num_tokens = 3, .max_new_tokens = 1, .sampling = greedy};
    const uint64_t number = submit(scheduler, &brief);
    int num_steps = 0;
    for (answer got = {.num = 0}; got.num == 0; num_steps++) {
        const int before = num_prompt_tokens(scheduler);
        step(scheduler);
        const int read = num_prompt_tokens(scheduler) - before;
        CHECK(read == 6, "%d tokens of prompts in a step", read);
        collect(scheduler, &number, 1, &got);
        REQUIRE(num_steps < 20, "the short prompt waits for the long ones");
    }
    llamita_scheduler_close(scheduler);
}

static void test_cancel(const llamita_model *model) {
    static int32_t ids[100];
    llamita_scheduler *scheduler = open_scheduler(model, 1, 0);
    const llamita_request request = {
        .ids = ids, .num_tokens = 100, .max_new_tokens = 100, .sampling = {.top_p = 1, .repetition_penalty = 1}};
    uint64_t numbers[3];
    for (int i = 0; i < 3; i++) numbers[i] = submit(scheduler, &request);
    step(scheduler);
    CHECK(llamita_scheduler_cancel(scheduler, numbers[2]), "a waiting request can be cancelled");
    CHECK(llamita_scheduler_cancel(scheduler, numbers[0]), "a running request can be cancelled");
    CHECK(!llamita_scheduler_cancel(scheduler, numbers[0]), "it has ended");
    llamita_scheduler_stats before, after;
    llamita_scheduler_get_stats(scheduler, &before);
    CHECK(before.num_running == 0 && before.num_waiting == 1, "%d running, %d waiting", before.num_running,
          before.num_waiting);
    CHECK(llamita_scheduler_cancel(scheduler, numbers[1]), "the last one");
    step(scheduler);
    llamita_scheduler_get_stats(scheduler, &after);
    CHECK(after.num_steps == before.num_steps && after.num_prompt_tokens == before.num_prompt_tokens,
          "a step computed something for nobody");
    const uint64_t last = submit(scheduler, &request); /* the queue works as before */
    step(scheduler);
    CHECK(llamita_scheduler_cancel(scheduler, last), "it runs");
    submit(scheduler, &request);
    llamita_scheduler_close(scheduler);
    llamita_scheduler_close(NULL);
}

static void test_refusals(const llamita_model *model) {
    llamita_scheduler *scheduler = NULL;
    const llamita_scheduler_params wrong[] = {{.num_parallel = 0},
                                              {.num_parallel = 5000},
                                              {.num_parallel = 1, .num_cached = -1},
                                              {.num_parallel = 1, .context_tokens = 301}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK(llamita_scheduler_open(model, &wrong[i], &scheduler, &error) == LLAMITA_ERROR_ARGUMENT, "params %zu", i);
        CHECK(!scheduler && strstr(error.message, "expected") != NULL, "%s", error.message);
    }
    scheduler = open_scheduler(model, 1, 0);
    static int32_t ids[CONTEXT + 1];
    const int32_t bad_id = VOCAB;
    const llamita_logit_bias bad_bias = {VOCAB, 1.0f}, infinite = {1, INFINITY};
    const llamita_sampler_params sampling = {.top_p = 1, .repetition_penalty = 1};
    const llamita_request refused[] = {
        {.ids = ids, .num_tokens = 0, .sampling = sampling},
        {.ids = &bad_id, .num_tokens = 1, .sampling = sampling},
        {.ids = ids, .num_tokens = 1, .sampling = sampling, .max_new_tokens = -1},
        {.ids = ids, .num_tokens = 1, .sampling = sampling, .num_top_logprobs = 21},
        {.ids = ids, .num_tokens = 1, .sampling = sampling, .presence_penalty = NAN},
        {.ids = ids, .num_tokens = 1, .sampling = sampling, .frequency_penalty = INFINITY},
        {.ids = ids, .num_tokens = 1, .sampling = sampling, .biases = &bad_bias, .num_biases = 1},
        {.ids = ids, .num_tokens = 1, .sampling = sampling, .biases = &infinite, .num_biases = 1},
        {.ids = ids, .num_tokens = 1, .sampling = {.top_p = 2, .repetition_penalty = 1}},
        {.ids = ids, .num_tokens = 1, .sampling = sampling, .num_adapters = 17},
    };
    uint64_t number = 42;
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        CHECK(llamita_scheduler_submit(scheduler, &refused[i], &number, &error) == LLAMITA_ERROR_ARGUMENT,
              "request %zu", i);
        CHECK(strstr(error.message, "expected") != NULL, "%s", error.message);
    }
    const llamita_request long_prompt = {.ids = ids, .num_tokens = CONTEXT + 1, .sampling = sampling};
    CHECK(llamita_scheduler_submit(scheduler, &long_prompt, &number, &error) == LLAMITA_ERROR_CONTEXT, "too long");
    CHECK(number == 42 && is_idle(scheduler), "a refused request left something behind");
    llamita_scheduler_close(scheduler);
}

/* Many steps in one call give the same events, and stop where they must. */
/* A constraint: the token after id is id + 1 or id + 2, the first is 10 or 11; from `end` on the
 * text is complete, at `fail` it fails. */
typedef struct {
    int32_t end, fail;
    int num_calls;
} climb;

static llamita_constraint_result allow_climb(void *state, int32_t last_id, uint32_t *allowed) {
    climb *c = state;
    c->num_calls++;
    for (int i = 0; i <= VOCAB / 32; i++) REQUIRE(allowed[i] == 0, "word %d", i);
    if (last_id >= c->fail) return LLAMITA_CONSTRAINT_FAILED;
    if (last_id >= c->end) return LLAMITA_CONSTRAINT_COMPLETE;
    const int32_t from = last_id < 0 ? 10 : last_id + 1;
    for (int32_t id = from; id < from + 2; id++) allowed[id / 32] |= 1u << (id % 32);
    return LLAMITA_CONSTRAINT_ALLOWS;
}

static void test_constraint(const llamita_model *model) {
    llamita_scheduler *scheduler = open_scheduler(model, 3, 0);
    for (int round = 0; round < 20; round++) {
        /* One that completes, one that fails, one that runs out of tokens; one without constraint. */
        climb climbs[3] = {{60, 1000, 0}, {1000, 40, 0}, {1000, 1000, 0}};
        answer answers[4] = {0};
        uint64_t numbers[4];
        const int32_t id = random_below(VOCAB);
        for (int n = 0; n < 4; n++) {
            llamita_request request = {.ids = &id, .num_tokens = 1, .max_new_tokens = n == 2 ? 9 : 100};
            request.sampling = (llamita_sampler_params){.temperature = round % 2 ? 5.0f : 0.0f,
                                                        .top_p = 0.9f,
                                                        .repetition_penalty = 1.2f,
                                                        .repetition_window = 64,
                                                        .seed = random_bits()};
            request.presence_penalty = round % 3 ? 2.0f : 0.0f;
            request.num_top_logprobs = 0;
            if (n < 3) {
                request.constraint = allow_climb;
                request.constraint_state = &climbs[n];
            }
            numbers[n] = submit(scheduler, &request);
        }
        while (!is_idle(scheduler)) {
            step(scheduler);
            collect(scheduler, numbers, 4, answers);
        }
        static const llamita_finish finishes[] = {LLAMITA_FINISH_STOP, LLAMITA_FINISH_ERROR, LLAMITA_FINISH_LENGTH};
        for (int n = 0; n < 3; n++) {
            const int num_tokens = answers[n].num - 1;
            const llamita_event *end = &answers[n].events[num_tokens];
            CHECK(end->kind == LLAMITA_EVENT_END && end->finish == finishes[n], "request %d: end %d", n, end->finish);
            int32_t last = 9;
            for (int i = 0; i < num_tokens; i++) {
                const int32_t step = answers[n].events[i].id - last;
                CHECK(step == 1 || step == 2, "request %d: token %d is %d more than the one before", n, i, step);
                last += step;
            }
            const int32_t least = n == 0 ? climbs[n].end : n == 1 ? climbs[n].fail : last;
            CHECK(last == least || last == least + 1, "request %d: ended with %d", n, last);
            CHECK(climbs[n].num_calls == num_tokens + (n < 2), "request %d: %d calls", n, climbs[n].num_calls);
            CHECK(n < 2 || num_tokens == 9, "request %d: %d tokens", n, num_tokens);
        }
    }
    llamita_scheduler_close(scheduler);
}

static llamita_constraint_result allow_7(void *state, int32_t last_id, uint32_t *allowed) {
    (void)state, (void)last_id;
    allowed[0] = 1u << 7;
    return LLAMITA_CONSTRAINT_ALLOWS;
}

static llamita_constraint_result allow_nothing(void *state, int32_t last_id, uint32_t *allowed) {
    (void)state, (void)last_id, (void)allowed;
    return LLAMITA_CONSTRAINT_ALLOWS;
}

/* A constraint without a token, and an adapter of no scale, end their requests with an error of their own. */
static void test_failing_requests(const llamita_model *model, llamita_adapter *adapter) {
    llamita_scheduler *scheduler = open_scheduler(model, 1, 0);
    const llamita_adapter_use use = {adapter, NAN};
    for (int n = 0; n < 4; n++) {
        const int32_t id = 3;
        answer got = {0};
        llamita_request request = {.ids = &id, .num_tokens = 1, .max_new_tokens = 5, .num_top_logprobs = -1};
        request.sampling = (llamita_sampler_params){.temperature = n % 2 ? 1e6f : 0.0f, .top_p = 1};
        request.sampling.repetition_penalty = 1;
        if (n < 2) request.constraint = allow_nothing;
        else request.adapters = &use, request.num_adapters = 1;
        const uint64_t number = submit(scheduler, &request);
        while (!is_idle(scheduler)) {
            step(scheduler);
            collect(scheduler, &number, 1, &got);
        }
        const llamita_event *end = &got.events[0];
        CHECK(got.num == 1 && end->finish == LLAMITA_FINISH_ERROR && end->status == LLAMITA_ERROR_ARGUMENT,
              "request %d: %d events, %d, %d", n, got.num, end->finish, end->status);
    }
    llamita_scheduler_close(scheduler);
}

/* No penalty makes the one token that is allowed less probable than those that are not. */
static void test_constraint_and_penalties(const llamita_model *model) {
    llamita_scheduler *scheduler = open_scheduler(model, 1, 0);
    const llamita_sampler_params most = {.top_p = 1,
                                         .repetition_penalty = 1,
                                         .repetition_window = 64,
                                         .dry_multiplier = 1e6f,
                                         .dry_base = 1e6f,
                                         .dry_allowed_length = 1,
                                         .dry_window = 64};
    for (int n = 0; n < 6; n++) {
        const int32_t id = 3;
        answer got = {0};
        llamita_request request = {.ids = &id, .num_tokens = 1, .max_new_tokens = 40, .sampling = most};
        request.sampling.temperature = n == 1 ? 1e6f : n % 2 ? 1.0f : 0.0f;
        request.sampling.mirostat_tau = n == 3 ? 5.0f : 0.0f;
        if (n >= 4) request.sampling.dry_multiplier = 0, request.sampling.repetition_penalty = 1e38f;
        request.constraint = allow_7;
        request.num_top_logprobs = 0;
        const uint64_t number = submit(scheduler, &request);
        while (!is_idle(scheduler)) {
            step(scheduler);
            collect(scheduler, &number, 1, &got);
        }
        CHECK(got.num == 41, "request %d: %d events", n, got.num);
        for (int i = 0; i < 40 && i < got.num; i++)
            CHECK(got.events[i].id == 7, "request %d: token %d is %d", n, i, got.events[i].id);
    }
    llamita_scheduler_close(scheduler);
}

static void test_run(const llamita_model *model) {
    static int32_t ids[40];
    const llamita_request request = {.ids = ids,
                                     .num_tokens = 40,
                                     .max_new_tokens = 100,
                                     .sampling = {0.8f, 0, 1.0f, 0.0f, 1.0f, 0, 3},
                                     .num_top_logprobs = 2,
                                     .score_prompt = true};
    static question q;
    static answer alone, got;
    q.request = request;
    answer_alone(model, &q, &alone);
    llamita_scheduler *scheduler = open_scheduler(model, 1, 0);
    const uint64_t number = submit(scheduler, &request);
    size_t num_events[2];
    int num_calls = 0;
    for (; !is_idle(scheduler); num_calls++) {
        if (num_calls == 1) llamita_scheduler_interrupt(scheduler);
        REQUIRE(llamita_scheduler_run(scheduler, 1000.0, &error) == LLAMITA_OK, "%s", error.message);
        if (num_calls < 2) llamita_scheduler_events(scheduler, &num_events[num_calls]);
        collect(scheduler, &number, 1, &got);
    }
    CHECK(got.num == alone.num && memcmp(got.events, alone.events, (size_t)got.num * sizeof(llamita_event)) == 0,
          "%d events in runs, %d in steps", got.num, alone.num);
    CHECK(num_events[0] == 40 && num_events[1] == 1, "until the first token: %zu events; interrupted: %zu",
          num_events[0], num_events[1]);
    CHECK(num_calls == 3, "%d calls", num_calls);
    llamita_scheduler_close(scheduler);
}

/* Models of the other architectures. */
static void test_architectures(void) {
    for (int i = 1; i < NUM_ARCHITECTURES; i++) {
        const model_shape shape = shape_of(&small_shape, all_architectures[i]);
        llamita_model *model = random_model(&shape, TENSOR_Q8_0, NULL, 5);
        llamita_adapter *adapter = random_adapter(model, 4, 6);
        test_same_as_session(model);
        test_same_as_alone(model, adapter);
        llamita_adapter_close(adapter);
        free_random_model(model);
    }
}

int main(void) {
    llamita_model *model = random_model(&small_shape, TENSOR_Q8_0, NULL, 5);
    llamita_adapter *adapter = random_adapter(model, 4, 6);
    test_refusals(model);
    test_cancel(model);
    test_long_prompt(model);
    test_many_prompts(model);
    test_same_as_session(model);
    test_constraint(model);
    test_constraint_and_penalties(model);
    test_run(model);
    test_same_as_alone(model, adapter);
    test_failing_requests(model, adapter);
    llamita_adapter_close(adapter);
    free_random_model(model);
    test_architectures();
    return check_failures();
}
