/* test_generate.c: llamita_generate gives the text of a loop over feeding, picking and decoding,
 * whatever the session held before; where it ends; what it refuses. */
#include "random_model.h"

enum { CONTEXT = 300, VOCAB = 259, MAX_TEXT = 4096 };

static llamita_error error;

/* What a callback got, and when it is to stop. */
typedef struct {
    const llamita_session *session;
    int32_t ids[CONTEXT + 1];
    int num_ids, num_parts, stop_after_ids, stop_after_parts; /* stop_after: 0: never */
    int32_t first_position;
    llamita_finish finish;
    char text[MAX_TEXT];
    size_t num_bytes, num_held;
} received;

static bool receive(void *state, const llamita_piece *piece) {
    received *r = state;
    if (piece->id < 0) {
        CHECK(piece->num_bytes == 0 && piece->num_held_bytes == 0 && r->num_ids == 0 && !piece->finish, "a part");
        if (r->num_parts++ == 0) r->first_position = llamita_session_position(r->session);
        return r->num_parts != r->stop_after_parts;
    }
    REQUIRE(r->num_ids <= CONTEXT && r->num_bytes + piece->num_bytes + 3 < MAX_TEXT, "too long");
    CHECK(llamita_utf8_complete(piece->text, piece->num_bytes + piece->num_held_bytes) == piece->num_bytes,
          "token %d: a piece ends inside a character", r->num_ids);
    memcpy(r->text + r->num_bytes, piece->text, piece->num_bytes + piece->num_held_bytes);
    r->num_bytes += piece->num_bytes;
    r->num_held = piece->num_held_bytes;
    CHECK(r->finish == LLAMITA_FINISH_NONE, "a piece after the last one");
    r->finish = piece->finish;
    r->ids[r->num_ids++] = piece->id;
    return r->num_ids != r->stop_after_ids;
}

static bool refuse_any(void *state, const llamita_piece *piece) {
    (void)state;
    CHECK(false, "a piece of a refused text: token %d", piece->id);
    return true;
}

/* A byte-level model: its random texts are full of unfinished characters. */
static llamita_model *open_model(buffer *file) {
    gguf_draft d;
    draft_llama(&d, TENSOR_F32, false);
    draft_u32(&d, "llama.context_length", CONTEXT);
    draft_byte_level(&d, "qwen2");
    draft_u32(&d, "tokenizer.ggml.bos_token_id", 258);
    *file = draft_write(&d);
    draft_free(&d);
    llamita_model *model = open_bytes(file->bytes, file->num_bytes, NULL, &error);
    REQUIRE(model && model->info.vocab_size == VOCAB && pack_bytes(model, &error) == LLAMITA_OK, "%s", error.message);
    model->info.eos_id = 101; /* besides two end tokens of the tokenizer: texts end more often */
    return model;
}

static llamita_sampler_params params_of(uint64_t seed) {
    return (llamita_sampler_params){.temperature = seed % 3 ? 1.0f : 0.0f,
                                    .top_p = 1,
                                    .repetition_penalty = seed % 2 ? 1.3f : 1.0f,
                                    .repetition_window = 20,
                                    .seed = seed};
}

static llamita_sampler *open_sampler(const llamita_sampler_params *params, int32_t vocab_size) {
    llamita_sampler *sampler = NULL;
    REQUIRE(llamita_sampler_open(params, vocab_size, &sampler, &error) == LLAMITA_OK, "%s", error.message);
    return sampler;
}

/* The slow, obvious way. */
static void generate_by_loop(const llamita_model *model, const int32_t *ids, size_t num_ids,
                             const llamita_sampler_params *params, int32_t max_new_tokens, received *r) {
    llamita_session *session = open_session_with(model, (llamita_session_params){.num_threads = 1});
    llamita_sampler *sampler = open_sampler(params, VOCAB);
    int32_t previous = ids[num_ids - 1], id;
    for (size_t i = 0; i < num_ids; i++) llamita_sampler_accept(sampler, ids[i]);
    REQUIRE(llamita_session_feed(session, ids, num_ids, &error) == LLAMITA_OK, "%s", error.message);
    while (r->finish == LLAMITA_FINISH_NONE && max_new_tokens != 0) {
        const char *bytes;
        size_t num_bytes;
        REQUIRE(!llamita_sampler_pick(sampler, llamita_session_logits(session), &id, &error), "%s", error.message);
        llamita_sampler_accept(sampler, id);
        r->ids[r->num_ids++] = id;
        if (llamita_token_ends(model, id)) {
            r->finish = LLAMITA_FINISH_STOP;
            break;
        }
        REQUIRE(!llamita_token_bytes(model, previous, id, &bytes, &num_bytes, &error), "%s", error.message);
        memcpy(r->text + r->num_bytes, bytes, num_bytes);
        r->num_bytes += num_bytes;
        if (r->num_ids == max_new_tokens || llamita_session_position(session) == CONTEXT)
            r->finish = LLAMITA_FINISH_LENGTH;
        else REQUIRE(!llamita_session_feed(session, &id, 1, &error), "%s", error.message);
        previous = id;
    }
    llamita_sampler_close(sampler);
    llamita_session_close(session);
}

static void check_same(const received *found, const received *expected, int number) {
    CHECK(found->num_ids == expected->num_ids &&
              memcmp(found->ids, expected->ids, (size_t)found->num_ids * sizeof *found->ids) == 0,
          "text %d: other tokens: %d, expected %d", number, found->num_ids, expected->num_ids);
    CHECK(found->finish == expected->finish, "text %d: finish %d, expected %d", number, found->finish,
          expected->finish);
    CHECK(found->num_bytes + found->num_held == expected->num_bytes &&
              memcmp(found->text, expected->text, expected->num_bytes) == 0,
          "text %d: other bytes", number);
}

/* One session generates text after text; some begin like the one before. */
static void test_same_as_a_loop(const llamita_model *model) {
    llamita_session *session = open_session_with(
        model,
        (llamita_session_params){.num_threads = 1, .num_sequences = 2, .speculation = LLAMITA_SPECULATION_ALWAYS});
    int32_t ids[CONTEXT], before[CONTEXT];
    int num_finishes[3] = {0}, num_held = 0, num_before = 0;
    for (int n = 0; n < 40; n++) {
        const llamita_sampler_params params = params_of((uint64_t)n);
        const size_t num_ids = (size_t)(n % 7 == 6 ? CONTEXT - n % 3 : 1 + random_below(150));
        const int32_t max_new_tokens = n % 5 == 4 ? -1 : random_below(40);
        int32_t same = random_below(160);
        for (size_t i = 0; i < num_ids; i++) ids[i] = random_below(VOCAB - 2);
        for (int32_t i = 0; i < same && i < num_before && i < (int32_t)num_ids; i++) ids[i] = before[i];
        received expected = {0}, found = {.session = session};
        generate_by_loop(model, ids, num_ids, &params, max_new_tokens, &expected);
        llamita_sampler *sampler = open_sampler(&params, VOCAB);
        int32_t shared = 0;
        while (shared < num_before && shared < (int32_t)num_ids - 1 && ids[shared] == before[shared]) shared++;
        REQUIRE(llamita_generate(session, sampler, ids, num_ids, max_new_tokens, receive, &found, &error) == LLAMITA_OK,
                "%s", error.message);
        check_same(&found, &expected, n);
        CHECK(found.first_position == shared, "text %d: %d tokens were kept, expected %d", n, found.first_position,
              shared);
        CHECK(found.num_parts == ((int32_t)num_ids - shared + 127) / 128, "text %d: %d parts", n, found.num_parts);
        num_before = (int)num_ids + (found.num_ids > 0 ? found.num_ids - 1 : 0);
        CHECK(llamita_session_position(session) == num_before, "text %d: %d tokens, expected %d", n,
              llamita_session_position(session), num_before);
        memcpy(before, ids, num_ids * sizeof *ids);
        if (found.num_ids > 0) memcpy(before + num_ids, found.ids, (size_t)(found.num_ids - 1) * sizeof *ids);
        num_finishes[found.finish]++;
        num_held += found.num_held > 0;
        llamita_sampler_close(sampler);
    }
    CHECK(num_finishes[LLAMITA_FINISH_NONE] > 0 && num_finishes[LLAMITA_FINISH_STOP] > 3 &&
              num_finishes[LLAMITA_FINISH_LENGTH] > 3 && num_held > 3,
          "the cases are too few: %d %d %d, %d inside a character", num_finishes[0], num_finishes[1], num_finishes[2],
          num_held);
    /* Tokens of another sequence, whose ids the session does not know, are not taken for the text's. */
    const int32_t others[] = {1, 2, 3, 4, 5}, own[] = {1, 2, 3, 9, 5, 6};
    const llamita_chunk chunk = {1, others, 5, 0};
    const llamita_sampler_params params = params_of(1);
    received expected = {0}, found = {.session = session};
    REQUIRE(llamita_session_rewind(session, 0, &error) == LLAMITA_OK &&
                llamita_session_feed(session, own, 5, &error) == LLAMITA_OK &&
                llamita_decode(session, &chunk, 1, NULL, &error) == LLAMITA_OK &&
                llamita_sequence_share(session, 1, 0, 5, &error) == LLAMITA_OK,
            "%s", error.message);
    generate_by_loop(model, own, 6, &params, 20, &expected);
    llamita_sampler *sampler = open_sampler(&params, VOCAB);
    REQUIRE(llamita_generate(session, sampler, own, 6, 20, receive, &found, &error) == LLAMITA_OK, "%s", error.message);
    check_same(&found, &expected, -1);
    llamita_sampler_close(sampler);
    llamita_session_close(session);
}

static void test_callback_stops(const llamita_model *model) {
    llamita_session *session = open_session(model, 1);
    const llamita_sampler_params params = params_of(1);
    int32_t ids[280];
    for (int i = 0; i < 280; i++) ids[i] = i % 250;
    received all = {.session = session};
    llamita_sampler *sampler = open_sampler(&params, VOCAB);
    REQUIRE(!llamita_generate(session, sampler, ids, 100, 20, receive, &all, &error), "%s", error.message);
    llamita_sampler_close(sampler);
    REQUIRE(all.num_ids > 5, "a text of %d tokens", all.num_ids);
    for (int count = 1; count < 5; count++) {
        received some = {.session = session, .stop_after_ids = count};
        sampler = open_sampler(&params, VOCAB);
        REQUIRE(!llamita_generate(session, sampler, ids, 100, 20, receive, &some, &error), "%s", error.message);
        CHECK(some.num_ids == count && memcmp(some.ids, all.ids, (size_t)count * sizeof *ids) == 0 && !some.finish,
              "stopped after %d tokens, expected %d", some.num_ids, count);
        CHECK(llamita_session_position(session) == 100 + count - 1, "position %d", llamita_session_position(session));
        llamita_sampler_close(sampler);
    }
    for (int part = 1; part <= 3; part++) {
        received none = {.session = session, .stop_after_parts = part};
        REQUIRE(!llamita_session_rewind(session, 0, &error), "%s", error.message);
        sampler = open_sampler(&params, VOCAB);
        REQUIRE(!llamita_generate(session, sampler, ids, 280, 20, receive, &none, &error), "%s", error.message);
        CHECK(none.num_parts == part && none.num_ids == 0, "part %d: %d parts", part, none.num_parts);
        CHECK(llamita_session_position(session) == (part - 1) * 128, "position %d", llamita_session_position(session));
        llamita_sampler_close(sampler);
    }
    llamita_session_close(session);
}

static void check_error(llamita_status status, llamita_status expected, const char *words) {
    CHECK(status == expected && error.status == expected && strstr(error.message, words), "status %d: %s, expected %s",
          status, error.message, words);
    CHECK(strncmp(error.message, "cannot ", 7) == 0 && !strchr(error.message, '\n'), "%s", error.message);
}

static void test_refusals(llamita_model *model) {
    model->info.bos_id = -1;
    llamita_session *session = open_session_with(model, (llamita_session_params){.context_tokens = 200});
    llamita_sampler_params params = params_of(1);
    llamita_sampler *sampler = open_sampler(&params, VOCAB), *other = open_sampler(&params, VOCAB + 1);
    int32_t ids[201] = {0};
    float before[VOCAB];
    REQUIRE(llamita_session_feed(session, ids, 4, &error) == LLAMITA_OK, "%s", error.message);
    memcpy(before, llamita_session_logits(session), sizeof before);
#define GENERATE(sampler, num_ids, max) llamita_generate(session, sampler, ids, num_ids, max, refuse_any, NULL, &error)
    check_error(GENERATE(sampler, 0, 5), LLAMITA_ERROR_ARGUMENT, "at least 1 id, found 0");
    check_error(GENERATE(sampler, 201, 5), LLAMITA_ERROR_CONTEXT, "at most 200 tokens (the context), found 201");
    check_error(GENERATE(sampler, SIZE_MAX, 5), LLAMITA_ERROR_CONTEXT, "at most 200 tokens");
    check_error(GENERATE(sampler, 4, -2), LLAMITA_ERROR_ARGUMENT, "max_new_tokens: expected -1 (no limit) or more");
    check_error(GENERATE(other, 4, 5), LLAMITA_ERROR_ARGUMENT, "expected one of 259 tokens (the model's), found one");
    ids[190] = VOCAB;
    check_error(GENERATE(sampler, 200, 5), LLAMITA_ERROR_ARGUMENT, "id 190: expected 0 to 258, found 259");
    ids[190] = -1;
    check_error(GENERATE(sampler, 200, 5), LLAMITA_ERROR_ARGUMENT, "id 190: expected 0 to 258, found -1");
    CHECK(llamita_generate(session, sampler, ids, 0, 5, refuse_any, NULL, NULL) == LLAMITA_ERROR_ARGUMENT, "no error");
#define TEXT(text, num_bytes, max) \
    llamita_generate_text(session, text, num_bytes, &params, max, refuse_any, NULL, &error)
    check_error(TEXT("", 0, 5), LLAMITA_ERROR_ARGUMENT, "expected a text, found none; this model has no BOS");
    check_error(TEXT("a", 1, -5), LLAMITA_ERROR_ARGUMENT, "max_new_tokens");
    char much[201];
    memset(much, 'x', sizeof much);
    check_error(TEXT(much, 201, 5), LLAMITA_ERROR_CONTEXT, "found 201; shorten the prompt");
    params.top_p = 0;
    check_error(TEXT("a", 1, 5), LLAMITA_ERROR_ARGUMENT, "top_p: expected above 0");
    CHECK(llamita_session_position(session) == 4 && memcmp(before, llamita_session_logits(session), sizeof before) == 0,
          "a refused text changed the session");
    model->info.bos_id = 258;
    llamita_sampler_close(sampler);
    llamita_sampler_close(other);
    llamita_session_close(session);
}

static void test_text(llamita_model *model) {
    llamita_session *session = open_session(model, 1);
    const llamita_sampler_params params = params_of(1);
    const char prompt[] = "ab\0\xc3"; /* 4 bytes: a NUL, and the start of a character */
    for (int i = 0; i < 4; i++) {
        const bool with_bos = i >= 2, empty = i == 3;
        const size_t num_bytes = empty ? 0 : 4;
        int32_t ids[16];
        size_t num_ids;
        model->info.add_bos = i == 2;
        received expected = {.session = session}, found = {.session = session};
        REQUIRE(!llamita_encode(model, prompt, num_bytes, with_bos, ids, 16, &num_ids, &error), "%s", error.message);
        llamita_sampler *sampler = open_sampler(&params, VOCAB);
        REQUIRE(!llamita_generate(session, sampler, ids, num_ids, 30, receive, &expected, &error), "%s", error.message);
        REQUIRE(!llamita_generate_text(session, prompt, num_bytes, &params, 30, receive, &found, &error), "%s",
                error.message);
        expected.num_bytes += expected.num_held;
        check_same(&found, &expected, i);
        CHECK(found.num_ids > 0 && found.first_position == (int32_t)num_ids - 1, "%d tokens", found.num_ids);
        llamita_sampler_close(sampler);
    }
    llamita_session_close(session);
}

static void test_without_tokenizer(void) {
    llamita_model *model = random_model(&small_shape, TENSOR_F32, NULL, 1);
    llamita_session *session = open_session(model, 1);
    const llamita_sampler_params params = params_of(1);
    llamita_sampler *sampler = open_sampler(&params, small_shape.vocab_size);
    const int32_t ids[] = {7, 8, 9};
    received found = {.session = session};
    CHECK(llamita_generate(session, sampler, ids, 3, 10, receive, &found, &error) == LLAMITA_OK, "%s", error.message);
    CHECK(found.num_ids > 1 && found.num_bytes == 0, "%d tokens, %zu bytes", found.num_ids, found.num_bytes);
    check_error(llamita_generate_text(session, "a", 1, &params, 10, refuse_any, NULL, &error), LLAMITA_ERROR_ARGUMENT,
                "no tokenizer");
    *(float *)(uintptr_t)model->output_norm = NAN;
    found = (received){.session = session};
    check_error(llamita_generate(session, sampler, ids, 3, 10, receive, &found, &error), LLAMITA_ERROR_NUMERIC,
                "expected finite numbers");
    CHECK(found.num_ids == 0 && llamita_session_position(session) == 2, "position %d",
          llamita_session_position(session));
    llamita_sampler_close(sampler);
    llamita_session_close(session);
    free_random_model(model);
}

/* What a callback got of a text that is longer than any context. */
typedef struct {
    int32_t ids[1000];
    int num_ids;
    llamita_finish finish;
} long_text;

static bool receive_long(void *state, const llamita_piece *piece) {
    long_text *text = state;
    if (piece->id < 0) return true;
    text->ids[text->num_ids++] = piece->id;
    text->finish = piece->finish;
    return true;
}

/* The slow, obvious way: a session of its own for each token, which gets all ids that the context
 * holds. Returns how often it was full. */
static int generate_shifting(const llamita_model *model, const llamita_session_params *params, const int32_t *prompt,
                             int32_t num_prompt, int32_t num_kept, const llamita_sampler_params *sampling,
                             int32_t max_new_tokens, long_text *text) {
    int32_t held[64], num_held = num_prompt;
    int num_shifts = 0;
    llamita_sampler *sampler = open_sampler(sampling, model->info.vocab_size);
    memcpy(held, prompt, (size_t)num_prompt * sizeof *held);
    for (int32_t i = 0; i < num_prompt; i++) llamita_sampler_accept(sampler, prompt[i]);
    while (text->num_ids < max_new_tokens) {
        int32_t *id = &text->ids[text->num_ids++];
        llamita_session *session = open_session_with(model, *params);
        REQUIRE(!llamita_session_feed(session, held, (size_t)num_held, &error), "%s", error.message);
        REQUIRE(!llamita_sampler_pick(sampler, llamita_session_logits(session), id, &error), "%s", error.message);
        llamita_sampler_accept(sampler, *id);
        llamita_session_close(session);
        if (num_held == params->context_tokens) {
            const int32_t num_dropped = (num_held - num_kept) / 2;
            if (num_dropped == 0) break;
            for (int32_t i = num_kept; i + num_dropped < num_held; i++) held[i] = held[i + num_dropped];
            num_held -= num_dropped;
            num_shifts++;
        }
        held[num_held++] = *id;
    }
    llamita_sampler_close(sampler);
    return num_shifts;
}

static void test_shift(void) {
    static const struct {
        int32_t num_prompt, num_keep, num_kept; /* kept: with BOS, which the prompt begins with */
        llamita_kv_type kv_type;
        int num_shifts;
    } cases[] = {
        {10, 0, 1, LLAMITA_KV_F16, 5},   {10, 3, 4, LLAMITA_KV_F32, 5},           {10, -1, 10, LLAMITA_KV_Q8, 6},
        {40, 0, 1, LLAMITA_KV_Q8, 6},    {40, INT32_MAX, 40, LLAMITA_KV_F16, 33}, {46, -1, 46, LLAMITA_KV_F16, 138},
        {47, -1, 47, LLAMITA_KV_F16, 0}, {48, 46, 47, LLAMITA_KV_F16, 0},
    };
    llamita_model *model = random_model(&small_shape, TENSOR_F32, NULL, 1);
    model->info.eos_id = -1;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const llamita_session_params params = {.num_threads = 1, .context_tokens = 48, .kv_type = cases[i].kv_type};
        llamita_session_params shifting = params;
        shifting.context_full = LLAMITA_CONTEXT_SHIFT;
        shifting.num_keep = cases[i].num_keep;
        shifting.speculation = i % 2 ? LLAMITA_SPECULATION_ALWAYS : LLAMITA_SPECULATION_OFF;
        const llamita_sampler_params sampling = params_of(i);
        int32_t prompt[48];
        for (int32_t t = 0; t < 48; t++) prompt[t] = t == 0 ? model->info.bos_id : random_below(75);
        static long_text expected, found;
        expected = found = (long_text){.num_ids = 0};
        const int num_shifts = generate_shifting(model, &params, prompt, cases[i].num_prompt, cases[i].num_kept,
                                                 &sampling, 140, &expected);
        llamita_session *session = open_session_with(model, shifting);
        llamita_sampler *sampler = open_sampler(&sampling, model->info.vocab_size);
        REQUIRE(
            !llamita_generate(session, sampler, prompt, (size_t)cases[i].num_prompt, 140, receive_long, &found, &error),
            "%s", error.message);
        CHECK(found.num_ids == expected.num_ids &&
                  memcmp(found.ids, expected.ids, (size_t)found.num_ids * sizeof *found.ids) == 0,
              "case %zu: other tokens: %d, expected %d", i, found.num_ids, expected.num_ids);
        CHECK(num_shifts == cases[i].num_shifts, "case %zu: %d shifts", i, num_shifts);
        CHECK(found.finish == LLAMITA_FINISH_LENGTH && llamita_session_position(session) <= 48, "case %zu", i);
        llamita_sampler_close(sampler);
        llamita_session_close(session);
    }
    free_random_model(model);
}

int main(void) {
    buffer file;
    llamita_model *model = open_model(&file);
    test_same_as_a_loop(model);
    test_callback_stops(model);
    test_refusals(model);
    test_text(model);
    test_without_tokenizer();
    test_shift();
    close_bytes(model);
    free_buffer(&file);
    return check_failures();
}
