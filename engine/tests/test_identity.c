/* test_identity.c: logits depend on model, adapters, KV type and ids alone: random ways of
 * computing them give the same bits.
 *
 *   test_identity [cases, default 20] [seed]
 *
 * A case takes a model of random type and shape, of each architecture in turn, and some texts with common beginnings. It computes
 * them with random kernels and threads, some with adapters, side by side in random pieces, with
 * rewinds, with keys and values shared from another text, and with speculation. Every row of logits,
 * and every hidden state, is compared with that of the scalar kernels on one thread, token by token.
 */
#include "random_model.h"

enum { NUM_ADAPTERS = 2, NUM_SETS = 5, NUM_TEXTS = 8, MAX_TOKENS = 160, CASES_PER_MODEL = 5 };

static llamita_error error;

typedef struct {
    tensor_type type;
    model_shape shape;
    llamita_kv_type kv_type;
    uint64_t seed;
    int32_t ids[NUM_TEXTS][MAX_TOKENS], num_tokens[NUM_TEXTS];
    int32_t shared[NUM_TEXTS];  /* length of the common beginning with text 0 */
    int set[NUM_TEXTS];         /* index of its adapter set */
    float *expected[NUM_TEXTS]; /* [num_tokens, V] */
    float *states[NUM_TEXTS];   /* [num_tokens, D] the expected hidden states */
} subject;

/* Part of the text repeats, for speculation to find; sometimes the repetition breaks off. */
static void fill_text(int32_t *ids, int32_t begin, int32_t end, int32_t vocab_size) {
    for (int32_t i = begin; i < end; i++)
        ids[i] = i >= 12 && random_below(8) != 0 ? ids[i - 12] : random_below(vocab_size);
}

static void make_adapters(const subject *s, llamita_model *model, llamita_adapter *adapters[NUM_ADAPTERS]) {
    adapters[0] = random_adapter(model, 3, s->seed + 7);
    adapters[1] = random_adapter(model, 17, s->seed + 8);
}

/* The sets: none, one, the other, both, both in reverse order. */
static void set_adapters(llamita_adapter *const adapters[NUM_ADAPTERS], int set, llamita_session *session,
                         int32_t sequence) {
    const llamita_adapter_use one = {adapters[0], 0.8f}, other = {adapters[1], -0.7f},
                              uses[NUM_SETS][2] = {{one}, {one}, {other}, {one, other}, {other, one}};
    const size_t num_uses = set == 0 ? 0 : set < 3 ? 1 : 2;
    REQUIRE(llamita_sequence_set_adapters(session, sequence, uses[set], num_uses, &error) == LLAMITA_OK, "%s",
            error.message);
}

static void compute_expected(subject *s, int32_t text) {
    llamita_model *model = random_model(&s->shape, s->type, "scalar", s->seed);
    llamita_session *session = open_session_with(
        model,
        (llamita_session_params){.num_threads = 1, .kv_type = s->kv_type, .speculation = LLAMITA_SPECULATION_OFF});
    llamita_adapter *adapters[NUM_ADAPTERS];
    make_adapters(s, model, adapters);
    set_adapters(adapters, s->set[text], session, 0);
    const size_t vocab_size = (size_t)s->shape.vocab_size;
    s->expected[text] = allocate_or_die((size_t)s->num_tokens[text] * vocab_size * sizeof(float));
    for (int32_t t = 0; t < s->num_tokens[text]; t++) {
        REQUIRE(llamita_session_feed(session, &s->ids[text][t], 1, &error) == LLAMITA_OK, "%s", error.message);
        memcpy(s->expected[text] + (size_t)t * vocab_size, llamita_session_logits(session), vocab_size * sizeof(float));
    }
    const size_t hidden = (size_t)s->shape.hidden_size;
    s->states[text] = allocate_or_die((size_t)s->num_tokens[text] * hidden * sizeof(float));
    REQUIRE(llamita_session_rewind(session, 0, &error) == LLAMITA_OK, "%s", error.message);
    for (int32_t t = 0; t < s->num_tokens[text]; t++) {
        const llamita_chunk chunk = {0, &s->ids[text][t], 1, 1};
        REQUIRE(llamita_decode_hidden_states(session, &chunk, 1, s->states[text] + (size_t)t * hidden, &error) ==
                    LLAMITA_OK,
                "%s", error.message);
    }
    llamita_session_close(session);
    free_random_model(model);
}

static void free_expected(subject *s) {
    for (int text = 0; text < NUM_TEXTS; text++) {
        free(s->expected[text]);
        free(s->states[text]);
    }
}

static void make_subject(subject *s, const char *architecture, uint64_t seed) {
    random_state = seed;
    const int t = random_below(NUM_TYPES);
    s->type = all_types[t];
    s->shape = shape_of(t >= NUM_BLOCK_TYPES                          ? &super_shape
                        : t < NUM_FLOAT_TYPES && random_below(3) == 0 ? &odd_shape
                                                                      : &small_shape,
                        architecture);
    s->kv_type = (llamita_kv_type)random_below(3);
    s->seed = seed;
    const int32_t max_tokens = s->shape.context_tokens < MAX_TOKENS ? s->shape.context_tokens : MAX_TOKENS;
    for (int32_t text = 0; text < NUM_TEXTS; text++) {
        s->num_tokens[text] = max_tokens - random_below(max_tokens / 2);
        s->shared[text] = text == 0 ? s->num_tokens[0] : random_below(s->num_tokens[text]);
        if (s->shared[text] > s->num_tokens[0]) s->shared[text] = s->num_tokens[0];
        memcpy(s->ids[text], s->ids[0], (size_t)s->shared[text] * sizeof(int32_t));
        s->set[text] = random_below(2) == 0 ? 0 : random_below(NUM_SETS);
        fill_text(s->ids[text], text == 0 ? 0 : s->shared[text], s->num_tokens[text], s->shape.vocab_size);
    }
    for (int32_t text = 0; text < NUM_TEXTS; text++) compute_expected(s, text);
}

/* ------------------------------------------------------------------ one case */

typedef struct {
    const subject *subject;
    llamita_session *session;
    int32_t num_sequences; /* sequence i runs text i */
    char description[160];
} run;

static void compare(const run *r, int32_t text, int32_t position, const float *found, const char *how) {
    const size_t vocab_size = (size_t)r->subject->shape.vocab_size;
    const float *expected = r->subject->expected[text] + (size_t)position * vocab_size;
    CHECK(memcmp(found, expected, vocab_size * sizeof(float)) == 0, "%s: text %d after token %d, %s", r->description,
          text, position, how);
}

static int32_t position_of(const run *r, int32_t text) { return llamita_sequence_position(r->session, text); }
static int32_t left_of(const run *r, int32_t text) { return r->subject->num_tokens[text] - position_of(r, text); }

static void compare_state(const run *r, int32_t text, int32_t position, const float *found) {
    const size_t hidden = (size_t)r->subject->shape.hidden_size;
    CHECK(memcmp(found, r->subject->states[text] + (size_t)position * hidden, hidden * sizeof(float)) == 0,
          "%s: the hidden state of text %d at token %d", r->description, text, position);
}

/* Continues some of the texts by pieces of any size, all in one call, for logits or hidden
 * states. */
static void decode_some(const run *r) {
    llamita_chunk chunks[NUM_TEXTS];
    int32_t num_chunks = 0, starts[NUM_TEXTS];
    size_t num_logits = 0;
    const int32_t limit = random_below(4) == 0 ? MAX_TOKENS : 1 + random_below(6),
                  begin = random_below(r->num_sequences);
    for (int32_t i = 0; i < r->num_sequences; i++) {
        const int32_t text = (begin + i) % r->num_sequences, left = left_of(r, text);
        if (left == 0 || random_below(4) == 0) continue;
        const int32_t count = 1 + random_below(left < limit ? left : limit);
        starts[num_chunks] = position_of(r, text);
        chunks[num_chunks] = (llamita_chunk){text, r->subject->ids[text] + starts[num_chunks], (size_t)count,
                                             (size_t)random_below(count + 1)};
        num_logits += chunks[num_chunks++].num_logits;
    }
    if (num_chunks == 0) return;
    const bool states = random_below(3) == 0;
    const size_t length = (size_t)(states ? r->subject->shape.hidden_size : r->subject->shape.vocab_size);
    float *out = allocate_or_die((num_logits + 1) * length * sizeof *out);
    const llamita_status status =
        states ? llamita_decode_hidden_states(r->session, chunks, (size_t)num_chunks, out, &error)
               : llamita_decode(r->session, chunks, (size_t)num_chunks, out, &error);
    REQUIRE(status == LLAMITA_OK, "%s", error.message);
    const float *row = out;
    for (int32_t i = 0; i < num_chunks; i++)
        for (size_t j = chunks[i].num_tokens - chunks[i].num_logits; j < chunks[i].num_tokens; j++, row += length)
            if (states) compare_state(r, chunks[i].sequence, starts[i] + (int32_t)j, row);
            else compare(r, chunks[i].sequence, starts[i] + (int32_t)j, row, "side by side");
    free(out);
}

/* Feeds text 0 token by token, as in generation. */
static void generate(const run *r) {
    for (int32_t left = left_of(r, 0) < 40 ? left_of(r, 0) : 1 + random_below(40); left > 0; left--) {
        const int32_t position = position_of(r, 0);
        REQUIRE(llamita_session_feed(r->session, &r->subject->ids[0][position], 1, &error) == LLAMITA_OK, "%s",
                error.message);
        compare(r, 0, position, llamita_session_logits(r->session), "one by one");
    }
}

static void feed_piece(const run *r) {
    const int32_t left = left_of(r, 0), position = position_of(r, 0);
    if (left == 0) return;
    const int32_t count = 1 + random_below(left);
    REQUIRE(llamita_session_feed(r->session, r->subject->ids[0] + position, (size_t)count, &error) == LLAMITA_OK, "%s",
            error.message);
    compare(r, 0, position + count - 1, llamita_session_logits(r->session), "in a piece");
}

static void score_piece(const run *r) {
    const int32_t left = left_of(r, 0), position = position_of(r, 0);
    double nats[MAX_TOKENS];
    if (left < 2) return;
    const int32_t count = 2 + random_below(left - 1);
    REQUIRE(llamita_session_score(r->session, r->subject->ids[0] + position, (size_t)count, nats, &error) == LLAMITA_OK,
            "%s", error.message);
    compare(r, 0, position + count - 2, llamita_session_logits(r->session), "scored");
}

static void rewind_text(const run *r) {
    const int32_t text = random_below(r->num_sequences), position = position_of(r, text);
    if (position == 0) return;
    REQUIRE(llamita_sequence_rewind(r->session, text, random_below(position), &error) == LLAMITA_OK, "%s",
            error.message);
}

/* A text restarts with the common beginning that another text holds. */
static void share_text(const run *r) {
    const int32_t from = random_below(r->num_sequences), to = random_below(r->num_sequences);
    if (from == to || r->subject->set[from] != r->subject->set[to]) return;
    int32_t common = from == 0                                           ? r->subject->shared[to]
                     : to == 0                                           ? r->subject->shared[from]
                     : r->subject->shared[from] < r->subject->shared[to] ? r->subject->shared[from]
                                                                         : r->subject->shared[to];
    common = common < position_of(r, from) ? common : position_of(r, from);
    REQUIRE(llamita_sequence_share(r->session, from, to, random_below(common + 1), &error) == LLAMITA_OK, "%s",
            error.message);
}

static bool unfinished(const run *r) {
    for (int32_t text = 0; text < r->num_sequences; text++)
        if (left_of(r, text) > 0) return true;
    return false;
}

static void run_case(const subject *s, int number) {
    const char *kernels_wanted = random_below(4) == 0 ? "scalar" : "auto";
    const llamita_session_params params = {.num_threads = 1 + random_below(4),
                                           .num_sequences = 1 + random_below(NUM_TEXTS),
                                           .kv_type = s->kv_type,
                                           .speculation = (llamita_speculation)random_below(3)};
    const uint64_t state = random_state;
    llamita_model *model = random_model(&s->shape, s->type, kernels_wanted, s->seed);
    run r = {.subject = s, .session = open_session_with(model, params), .num_sequences = params.num_sequences};
    llamita_adapter *adapters[NUM_ADAPTERS];
    make_adapters(s, model, adapters);
    for (int32_t text = 0; text < r.num_sequences; text++) set_adapters(adapters, s->set[text], r.session, text);
    random_state = state;
    snprintf(r.description, sizeof r.description,
             "case %d (%s, %s, KV type %d, %s, %d threads, %d texts, speculation %d)", number, s->shape.architecture,
             type_name(s->type), (int)s->kv_type, kernels_name(model->kernels), (int)params.num_threads,
             (int)params.num_sequences, (int)params.speculation);
    for (int step = 0; step < 60 && unfinished(&r); step++) switch (random_below(10)) {
        case 0: rewind_text(&r); break;
        case 1: share_text(&r); break;
        case 2: feed_piece(&r); break;
        case 3: score_piece(&r); break;
        case 4:
        case 5: generate(&r); break;
        default: decode_some(&r);
        }
    llamita_session_close(r.session);
    free_random_model(model);
}

int main(int argc, char **argv) {
    const int num_cases = argc > 1 ? atoi(argv[1]) : 20;
    const uint64_t seed = argc > 2 ? (uint64_t)atoll(argv[2]) : 1;
    static subject s;
    for (int i = 0; i < num_cases && check_num_failures < 10; i++) {
        if (i % CASES_PER_MODEL == 0) {
            free_expected(&s);
            make_subject(&s, all_architectures[i / CASES_PER_MODEL % NUM_ARCHITECTURES], seed * 1000 + (uint64_t)i);
        }
        run_case(&s, i);
    }
    free_expected(&s);
    printf("%d cases\n", num_cases);
    return check_failures();
}
