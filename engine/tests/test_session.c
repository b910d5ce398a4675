/* test_session.c: sessions apart from logits: rejected calls change nothing; rewinding, scoring,
 * UTF-8. */
#include "random_model.h"

static llamita_error error;

static void test_refusals(const llamita_model *model) {
    const llamita_session_params wrong[] = {{.num_threads = -1},
                                            {.num_threads = 100000},
                                            {.context_tokens = -1},
                                            {.context_tokens = 301},
                                            {.num_sequences = -1},
                                            {.num_sequences = 5000},
                                            {.kv_type = (llamita_kv_type)3},
                                            {.speculation = (llamita_speculation)9},
                                            {.context_full = (llamita_context_full)2},
                                            {.num_keep = 1},
                                            {.context_full = LLAMITA_CONTEXT_SHIFT, .num_keep = -2}};
    llamita_session *session = NULL;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK(llamita_session_open(model, &wrong[i], &session, &error) == LLAMITA_ERROR_ARGUMENT, "params %zu", i);
        CHECK(!session && error.status == LLAMITA_ERROR_ARGUMENT && strstr(error.message, "expected") != NULL, "%s",
              error.message);
    }
    const llamita_session_params params = {.num_threads = 2, .context_tokens = 10};
    REQUIRE(llamita_session_open(model, &params, &session, &error) == LLAMITA_OK, "%s", error.message);
    CHECK(llamita_session_num_threads(session) == 2 && llamita_session_context_tokens(session) == 10,
          "threads or context differ from the parameters");
    CHECK(llamita_session_logits(session) == NULL, "logits before any feed");
    const int32_t ids[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, bad[][2] = {{-1, 1}, {1, 75}, {2147483647, 0}};
    REQUIRE(llamita_session_feed(session, ids, 4, &error) == LLAMITA_OK, "%s", error.message);
    float before[75];
    memcpy(before, llamita_session_logits(session), sizeof before);

    float out[12 * 75] = {0};
    double nats[12] = {0};
    CHECK(llamita_session_feed(session, ids, 7, &error) == LLAMITA_ERROR_CONTEXT, "7 tokens where 6 fit");
    CHECK(strstr(error.message, "10") != NULL && strstr(error.message, "7") != NULL, "%s", error.message);
    CHECK(llamita_session_feed_logits(session, ids, 7, out, &error) == LLAMITA_ERROR_CONTEXT, "7 tokens where 6 fit");
    CHECK(llamita_session_score(session, ids, 8, nats, &error) == LLAMITA_ERROR_CONTEXT, "8 - 1 tokens where 6 fit");
    CHECK(llamita_session_feed(session, ids, SIZE_MAX, NULL) == LLAMITA_ERROR_CONTEXT, "SIZE_MAX");
    CHECK(llamita_session_feed(session, ids, 0, &error) == LLAMITA_ERROR_ARGUMENT, "no tokens");
    CHECK(llamita_session_score(session, ids, 1, nats, &error) == LLAMITA_ERROR_ARGUMENT, "nothing to score");
    for (size_t i = 0; i < 3; i++) {
        CHECK(llamita_session_feed(session, bad[i], 2, &error) == LLAMITA_ERROR_ARGUMENT, "id %d %d", bad[i][0],
              bad[i][1]);
        CHECK(llamita_session_score(session, bad[i], 2, nats, &error) == LLAMITA_ERROR_ARGUMENT, "id %d %d", bad[i][0],
              bad[i][1]);
        CHECK(llamita_session_feed_logits(session, bad[i], 2, out, &error) == LLAMITA_ERROR_ARGUMENT, "id %d %d",
              bad[i][0], bad[i][1]);
    }
    CHECK(llamita_session_rewind(session, 5, &error) == LLAMITA_ERROR_ARGUMENT &&
              llamita_session_rewind(session, -1, &error) == LLAMITA_ERROR_ARGUMENT,
          "rewind");
    CHECK(llamita_session_position(session) == 4 && memcmp(before, llamita_session_logits(session), sizeof before) == 0,
          "a rejected call changed the session");
    for (size_t i = 0; i < sizeof out / sizeof out[0]; i++) CHECK(out[i] == 0.0f, "a rejected call wrote logits");
    CHECK(llamita_session_feed(session, ids, 6, &error) == LLAMITA_OK && llamita_session_position(session) == 10,
          "exactly full");
    CHECK(llamita_session_feed(session, ids, 1, &error) == LLAMITA_ERROR_CONTEXT, "one more than full");
    CHECK(llamita_session_rewind(session, 4, &error) == LLAMITA_OK && llamita_session_logits(session) == NULL,
          "rewind must discard the logits");
    llamita_session_close(session);
    llamita_session_close(NULL);
}

static void test_score(const llamita_model *model) {
    llamita_session *session = open_session(model, 2);
    enum { COUNT = 150 };
    int32_t ids[COUNT];
    double nats[COUNT - 1];
    static float logits[COUNT * 75];
    for (int i = 0; i < COUNT; i++) ids[i] = random_below(75);
    REQUIRE(llamita_session_score(session, ids, COUNT, nats, &error) == LLAMITA_OK, "%s", error.message);
    CHECK(llamita_session_position(session) == COUNT - 1, "the last id must not be appended: position %d",
          llamita_session_position(session));
    REQUIRE(llamita_session_rewind(session, 0, &error) == LLAMITA_OK, "%s", error.message);
    REQUIRE(llamita_session_feed_logits(session, ids, COUNT, logits, &error) == LLAMITA_OK, "%s", error.message);
    for (int t = 0; t < COUNT - 1; t++) {
        double total = 0;
        for (int i = 0; i < 75; i++) total += exp((double)logits[t * 75 + i]);
        const double expected = log(total) - (double)logits[t * 75 + ids[t + 1]];
        CHECK(fabs(nats[t] - expected) < 1e-6, "nats of %d: %.9g, expected %.9g", t, nats[t], expected);
    }
    llamita_session_close(session);
}

static void test_damaged_weights(tensor_type type) {
    llamita_model *model = random_model(&small_shape, type, NULL, 3);
    llamita_session *session = open_session(model, 2);
    const int32_t ids[3] = {1, 2, 3};
    REQUIRE(llamita_session_feed(session, ids, 2, &error) == LLAMITA_OK, "%s", error.message);
    const float nan = NAN;
    const uint16_t half_nan = 0x7e00, bfloat_nan = 0x7fc0;
    /* The first element of a float panel, or the first scale of a quantized one, after all its
     * codes. */
    tensor *damaged = &model->layers[1].ffn_up;
    const size_t place = panel_is_quantized(damaged->format) ? (size_t)(damaged->row_length / BLOCK_LENGTH) *
                                                                   panel_layout_of(damaged->format).code_bytes
                                                             : 0;
    uint8_t *number = (uint8_t *)(uintptr_t)damaged->panels + place;
    if (damaged->format == PANEL_F32) memcpy(number, &nan, sizeof nan);
    else if (damaged->format == PANEL_BF16) memcpy(number, &bfloat_nan, sizeof bfloat_nan);
    else if (damaged->format == PANEL_F16) memcpy(number, &half_nan, sizeof half_nan);
    else panel_put_scale(number, 0, &half_nan);
    float logits[75];
    double nats[1];
    CHECK(llamita_session_feed(session, ids, 1, &error) == LLAMITA_ERROR_NUMERIC, "%s: damage is not detected",
          type_name(type));
    CHECK(llamita_session_position(session) == 2 && llamita_session_logits(session) == NULL,
          "%s: part of a failed feed remains", type_name(type));
    CHECK(llamita_session_feed_logits(session, ids, 1, logits, &error) == LLAMITA_ERROR_NUMERIC, "%s", type_name(type));
    const llamita_chunk chunk = {0, ids, 1, 1};
    float *states = allocate_or_die((size_t)small_shape.hidden_size * sizeof *states);
    CHECK(llamita_decode_hidden_states(session, &chunk, 1, states, &error) == LLAMITA_ERROR_NUMERIC &&
              strstr(error.message, "hidden states"),
          "%s: %s", type_name(type), error.message);
    free(states);
    CHECK(llamita_session_score(session, ids, 2, nats, &error) == LLAMITA_ERROR_NUMERIC, "%s", type_name(type));
    CHECK(llamita_session_position(session) == 2, "%s: part of a failed feed remains", type_name(type));
    llamita_session_close(session);
    free_random_model(model);
}

static void test_without_tokenizer(llamita_model *model) {
    int32_t id;
    size_t count;
    const char *bytes;
    CHECK(llamita_encode(model, "a", 1, 0, &id, 1, &count, &error) == LLAMITA_ERROR_ARGUMENT, "encode");
    CHECK(llamita_token_bytes(model, -1, 5, &bytes, &count, &error) == LLAMITA_ERROR_ARGUMENT, "decode");
    CHECK(llamita_token_text(model, 5) == NULL, "token_text");
    CHECK(llamita_token_ends(model, 2) && !llamita_token_ends(model, 1) && !llamita_token_ends(model, -1), "EOS ends");
    model->bos_ends = true;
    CHECK(llamita_token_ends(model, 1), "BOS ends in llama2.c files");
    model->bos_ends = false;
}

static void test_utf8(void) {
    static const struct {
        const char *bytes;
        size_t num_bytes, complete;
    } cases[] = {
        {"", 0, 0},
        {"abc", 3, 3},
        {"\xc3\xa9", 2, 2},
        {"a\xc3", 2, 1},
        {"a\xe6", 2, 1},
        {"a\xe6\x97", 3, 1},
        {"a\xe6\x97\xa5", 4, 4},
        {"\xf0", 1, 0},
        {"\xf0\x9f", 2, 0},
        {"\xf0\x9f\xa6", 3, 0},
        {"\xf0\x9f\xa6\x99", 4, 4},
        {"\xf0\x9f\xa6\x99\xf0\x9f\xa6", 7, 4},
        /* never valid, so complete: lone continuation bytes, overlong forms, surrogates, above
         * U+10FFFF, 0xff */
        {"\x80", 1, 1},
        {"\x80\x80\x80\x80", 4, 4},
        {"\xc0", 1, 1},
        {"\xc1\x81", 2, 2},
        {"\xe0\x80", 2, 2},
        {"\xed\xa0", 2, 2},
        {"\xf0\x80", 2, 2},
        {"\xf4\x90", 2, 2},
        {"\xf5", 1, 1},
        {"\xff", 1, 1},
        {"\xc3\x28", 2, 2},
        {"\xe6\x28", 2, 2},
        {"\xe6\x97\x28", 3, 3},
        {"\xe0\xa0", 2, 0},
        {"\xed\x9f", 2, 0},
        {"\xf4\x8f", 2, 0},
        {"\xe6\xe6\x97", 3, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const size_t found = llamita_utf8_complete(cases[i].bytes, cases[i].num_bytes);
        CHECK(found == cases[i].complete, "case %zu: %zu, expected %zu", i, found, cases[i].complete);
    }
}

int main(void) {
    llamita_model *model = random_model(&small_shape, TENSOR_F32, NULL, 1);
    test_refusals(model);
    test_score(model);
    test_without_tokenizer(model);
    for (int t = 0; t < NUM_BLOCK_TYPES; t++) test_damaged_weights(all_types[t]);
    test_utf8();
    CHECK(strcmp(llamita_version(), "0.1.0") == 0 && kernels_select(llamita_kernels()) == kernels_select(NULL), "%s %s",
          llamita_version(), llamita_kernels());
    llamita_session *session = open_session(model, 0);
    CHECK(llamita_session_num_threads(session) == 1, "a tiny model gets one thread, not %d",
          llamita_session_num_threads(session));
    llamita_session_close(session);
    free_random_model(model);
    return check_failures();
}
