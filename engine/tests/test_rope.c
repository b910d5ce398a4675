/* test_rope.c: RoPE parameters of a session give the bits of a file that says the same; which values are
 * refused. */
#include "random_model.h"

enum { CONTEXT = 16, VOCAB = 8, NUM_IDS = 40 };

static llamita_error error;

typedef struct {
    const char *type;   /* NULL: the file says nothing */
    float factor, base; /* 0: no key */
    uint32_t original;  /* 0: no key */
    uint32_t context;   /* 0: CONTEXT */
    bool has_divisors;  /* of Llama 3.1 */
    bool is_longrope;
} file_rope;

/* A packed model of a file with these keys. */
static llamita_model *open_file(const file_rope *rope, buffer *file) {
    gguf_draft d;
    draft_llama(&d, TENSOR_F32, true);
    draft_u32(&d, "llama.context_length", rope->context ? rope->context : CONTEXT);
    if (rope->type) draft_text(&d, "llama.rope.scaling.type", rope->type);
    if (rope->factor > 0) draft_f32(&d, "llama.rope.scaling.factor", rope->factor);
    if (rope->base > 0) draft_f32(&d, "llama.rope.freq_base", rope->base);
    if (rope->original) draft_u32(&d, "llama.rope.scaling.original_context_length", rope->original);
    static const char *const names[] = {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"};
    for (int i = rope->has_divisors ? 0 : 1; i < (rope->is_longrope ? 3 : 1); i++)
        memcpy(draft_add_tensor(&d, names[i], TENSOR_F32, 4, 0)->data.bytes, (const float[]){1, 2, 4, 8}, 16);
    *file = draft_write(&d);
    draft_free(&d);
    llamita_model *model = open_bytes(file->bytes, file->num_bytes, NULL, &error);
    REQUIRE(model && pack_bytes(model, &error) == LLAMITA_OK, "%s", error.message);
    return model;
}

/* The logits after each of NUM_IDS ids. */
static void compute(const file_rope *rope, llamita_rope_params params, float logits[NUM_IDS * VOCAB]) {
    buffer file;
    llamita_model *model = open_file(rope, &file);
    llamita_session *session =
        open_session_with(model, (llamita_session_params){.num_threads = 1, .context_tokens = NUM_IDS, .rope = params});
    int32_t ids[NUM_IDS];
    for (int i = 0; i < NUM_IDS; i++) ids[i] = (i * 5 + i / 7) % VOCAB;
    REQUIRE(llamita_session_feed_logits(session, ids, NUM_IDS, logits, &error) == LLAMITA_OK, "%s", error.message);
    llamita_session_close(session);
    close_bytes(model);
    free_buffer(&file);
}

static void test_same_as_a_file(void) {
    static const struct {
        file_rope asked, said; /* the file of the session with parameters, and the one that says the same */
        llamita_rope_params params;
    } cases[] = {
        {{0}, {.type = "linear", .factor = 4, .context = 64}, {.scaling = LLAMITA_ROPE_LINEAR, .scale = 4}},
        {{0}, {.type = "linear", .factor = 4, .context = 64}, {.scale = 4}},
        {{.has_divisors = true},
         {.type = "linear", .factor = 4, .has_divisors = true, .context = 64},
         {.scaling = LLAMITA_ROPE_LINEAR, .scale = 4}},
        {{0},
         {.type = "yarn", .factor = 4, .original = CONTEXT, .context = 64},
         {.scaling = LLAMITA_ROPE_YARN, .scale = 4}},
        {{0},
         {.type = "yarn", .factor = 4, .original = 1000, .context = 64},
         {.scaling = LLAMITA_ROPE_YARN, .scale = 4, .yarn_orig_ctx = 1000}},
        {{.type = "yarn", .factor = 2, .original = CONTEXT},
         {.type = "yarn", .factor = 4, .original = CONTEXT, .context = 64},
         {.scale = 4}},
        {{.type = "linear", .factor = 4},
         {.type = "yarn", .factor = 4, .original = CONTEXT, .context = 64},
         {.scaling = LLAMITA_ROPE_YARN}},
        {{.type = "linear", .factor = 4, .context = 64}, {.context = 64}, {.scaling = LLAMITA_ROPE_NONE}},
        {{0}, {.base = 50000, .context = 64}, {.freq_base = 50000}},
        {{0}, {.base = 160000, .context = 64}, {.scaling = LLAMITA_ROPE_NTK, .scale = 8}}, /* 8^(8/6) = 16 */
        {{0}, {.context = 64}, {.scaling = LLAMITA_ROPE_NONE}},
    };
    float asked[NUM_IDS * VOCAB], said[NUM_IDS * VOCAB], plain[NUM_IDS * VOCAB];
    compute(&(file_rope){.context = 64}, (llamita_rope_params){0}, plain);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        compute(&cases[i].asked, cases[i].params, asked);
        compute(&cases[i].said, (llamita_rope_params){0}, said);
        const bool is_plain = memcmp(asked, plain, sizeof plain) == 0;
        CHECK(memcmp(asked, said, sizeof said) == 0, "case %zu: other logits than of a file", i);
        CHECK(is_plain == (cases[i].params.scaling == LLAMITA_ROPE_NONE), "case %zu: as without scaling", i);
    }
}

static void refuse(const file_rope *rope, llamita_session_params params, const char *words) {
    buffer file;
    llamita_model *model = open_file(rope, &file);
    llamita_session *session = NULL;
    CHECK(llamita_session_open(model, &params, &session, &error) == LLAMITA_ERROR_ARGUMENT && !session &&
              strstr(error.message, words) && strncmp(error.message, "cannot open a session: ", 23) == 0,
          "%s, expected %s", error.message, words);
    llamita_scheduler *scheduler = NULL;
    const llamita_scheduler_params scheduled = {
        .num_parallel = 1, .context_tokens = params.context_tokens, .rope = params.rope};
    CHECK(llamita_scheduler_open(model, &scheduled, &scheduler, &error) == LLAMITA_ERROR_ARGUMENT && !scheduler,
          "a scheduler: %s", words);
    llamita_session_close(session);
    close_bytes(model);
    free_buffer(&file);
}

static void test_refusals(void) {
    const file_rope plain = {0}, yarn = {.type = "yarn", .factor = 4, .original = CONTEXT},
                    longrope = {.type = "longrope", .is_longrope = true};
#define ROPE(...) ((llamita_session_params){.rope = {__VA_ARGS__}})
    refuse(&plain, ROPE(.scaling = (llamita_rope_scaling)5),
           "rope_scaling: expected none, linear, ntk or yarn, found 5");
    refuse(&plain, ROPE(.scaling = (llamita_rope_scaling)-1), "rope_scaling: expected none");
    refuse(&plain, ROPE(.scale = 0.5F), "rope_scale: expected 1 to 10000, or 0 (the model's), found 0.5");
    refuse(&plain, ROPE(.scale = 10001), "rope_scale: expected 1 to 10000");
    refuse(&plain, ROPE(.scale = NAN), "rope_scale: expected 1 to 10000");
    refuse(&plain, ROPE(.freq_base = 0.9F), "rope_freq_base: expected 1 to 1e+30");
    refuse(&plain, ROPE(.freq_base = INFINITY), "rope_freq_base: expected 1 to 1e+30");
    refuse(&plain, ROPE(.freq_base = NAN), "rope_freq_base: expected 1 to 1e+30");
    refuse(&plain, ROPE(.scaling = LLAMITA_ROPE_YARN, .scale = 2, .yarn_orig_ctx = -1),
           "yarn_orig_ctx: expected 1 to 16777216");
    refuse(&plain, ROPE(.yarn_orig_ctx = 8), "yarn_orig_ctx: expected rope_scaling yarn with it, found linear");
    refuse(&yarn, ROPE(.scaling = LLAMITA_ROPE_NTK, .yarn_orig_ctx = 8), "rope_scaling yarn with it, found ntk");
    refuse(&plain, ROPE(.scaling = LLAMITA_ROPE_NONE, .scale = 2),
           "rope_scale: expected 0 with rope_scaling none, found 2");
    refuse(&plain, ROPE(.scaling = LLAMITA_ROPE_YARN), "rope_scale: expected a number with rope_scaling yarn");
    refuse(&plain, ROPE(.scaling = LLAMITA_ROPE_YARN, .scale = 2, .freq_base = 1.5F, .yarn_orig_ctx = 1),
           "yarn: expected beta_fast above beta_slow and");
    refuse(&longrope, ROPE(.scale = 2), "expected none for a model with longrope");
    refuse(&plain, (llamita_session_params){.context_tokens = 33, .rope = {.scaling = LLAMITA_ROPE_YARN, .scale = 2}},
           "context_tokens: expected 0 (the model's) to 32 (with these RoPE parameters), found 33");
    refuse(&plain, (llamita_session_params){.context_tokens = (1 << 24) + 1, .rope = {.scaling = LLAMITA_ROPE_NONE}},
           "to 16777216 (with these RoPE parameters)");
    refuse(&plain, (llamita_session_params){.context_tokens = 17}, "to 16 (the model's), found 17");
}

int main(void) {
    test_same_as_a_file();
    test_refusals();
    return check_failures();
}
