/* test_lora.c: valid adapter files are read and applied, all others are rejected with a one-line
 * error, and a session never mixes results of different adapters. */
#include "formats/formats.h"
#include "random_model.h"

static llamita_error error;

enum { RANK = 3, NUM_IDS = 70 };

static int64_t rows_of(const tensor *t) { return t->num_rows; }

/* An adapter for a model of small_shape: query and ffn_down of both layers. */
static void draft_adapter(gguf_draft *d, llamita_model *model, uint32_t type) {
    *d = (gguf_draft){.magic = "GGUF", .version = 3, .alignment = 32};
    draft_text(d, "general.architecture", model->info.architecture);
    draft_text(d, "general.type", "adapter");
    draft_text(d, "general.name", "a draft");
    draft_text(d, "adapter.type", "lora");
    draft_f32(d, "adapter.lora.alpha", 6.0F);
    for (int l = 0; l < model->info.num_hidden_layers; l++) {
        const tensor *matrices[] = {&model->layers[l].query, &model->layers[l].ffn_down};
        for (int i = 0; i < 2; i++) {
            char name[DRAFT_NAME_BYTES];
            snprintf(name, sizeof name, "blk.%d.%s.weight.lora_a", l, i ? "ffn_down" : "attn_q");
            draft_add_tensor(d, name, type, (uint64_t)matrices[i]->row_length, RANK);
            name[strlen(name) - 1] = 'b';
            draft_add_tensor(d, name, TENSOR_F32, RANK, (uint64_t)rows_of(matrices[i]));
        }
    }
}

static llamita_adapter *read_draft(const llamita_model *model, gguf_draft *d) {
    llamita_adapter *adapter = NULL;
    buffer file = draft_write(d);
    error = (llamita_error){0};
    const llamita_status status = gguf_read_lora(model, file.bytes, file.num_bytes, "a.gguf", &adapter, &error);
    CHECK((status == LLAMITA_OK) == (adapter != NULL) && status == error.status, "status %d", status);
    free_buffer(&file); /* the adapter keeps no pointer into it */
    return adapter;
}

static void feed(llamita_session *session, const int32_t *ids, size_t count, float logits[75]) {
    REQUIRE(llamita_session_feed(session, ids, count, &error) == LLAMITA_OK, "%s", error.message);
    memcpy(logits, llamita_session_logits(session), 75 * sizeof *logits);
}

/* The row of B that belongs to a row of q: files of Qwen have the rows of a head in two halves. */
static size_t stored_row(const llamita_model *model, size_t row) {
    const size_t head_dim = (size_t)model->info.head_dim, in_head = row % head_dim;
    return row - in_head + (in_head % 2 == 0 ? in_head / 2 : head_dim / 2 + in_head / 2);
}

/* Compares W + s B A, merged in double into the model's own matrices, with the engine's adapter. */
static void test_logits(const char *architecture, uint32_t type) {
    const model_shape shape = shape_of(&small_shape, architecture);
    const bool two_halves = strncmp(architecture, "qwen", 4) == 0;
    llamita_model *model = random_model(&shape, TENSOR_F32, NULL, 5),
                  *merged = random_model(&shape, TENSOR_F32, NULL, 5);
    for (int i = 0; two_halves && i < shape.num_layers; i++)
        model->layers[i].query.two_halves = model->layers[i].key.two_halves = model->info.head_dim;
    gguf_draft d;
    draft_adapter(&d, model, type);
    llamita_adapter *adapter = read_draft(model, &d);
    REQUIRE(adapter, "%s", error.message);
    llamita_adapter_info info;
    llamita_adapter_get_info(adapter, &info);
    CHECK(info.rank == RANK && info.alpha == 6.0f && info.num_matrices == 4 && strcmp(info.name, "a draft") == 0,
          "rank %d, alpha %g, %d matrices, %s", info.rank, (double)info.alpha, info.num_matrices, info.name);
    for (size_t i = 0; i < d.num_tensors; i += 2) {
        const draft_tensor *a = &d.tensors[i], *b = &d.tensors[i + 1];
        layer *l = &merged->layers[i / 4];
        tensor *matrix = i % 4 == 0 ? &l->query : &l->ffn_down;
        float *weights = (float *)(uintptr_t)matrix->data, *a_rows = allocate_or_die(a->data.num_bytes * 4);
        const size_t length = a->shape[0];
        for (size_t r = 0; r < RANK; r++)
            tensor_type_dequantize((tensor_type)type)(a->data.bytes +
                                                          r * row_bytes_of((tensor_type)type, (int64_t)length),
                                                      (int64_t)length, a_rows + r * length);
        for (int64_t row = 0; row < matrix->num_rows; row++)
            for (size_t k = 0; k < length; k++) {
                double sum = 0;
                const size_t stored = two_halves && i % 4 == 0 ? stored_row(model, (size_t)row) : (size_t)row;
                for (size_t r = 0; r < RANK; r++)
                    sum += (double)((const float *)(const void *)b->data.bytes)[stored * RANK + r] *
                           (double)a_rows[r * length + k];
                weights[(size_t)row * length + k] += (float)(0.05 * 6.0 / RANK * sum);
            }
        free(a_rows);
        char *memory;
        matrix->panels = packed_rows(TENSOR_F32, weights, matrix->num_rows, matrix->row_length, &memory);
        own(merged, memory);
    }
    int32_t ids[NUM_IDS];
    for (int i = 0; i < NUM_IDS; i++) ids[i] = random_below(75);
    llamita_session *plain = open_session_with(merged, (llamita_session_params){.kv_type = LLAMITA_KV_F32}),
                    *session =
                        open_session_with(model, (llamita_session_params){.num_threads = 2, .kv_type = LLAMITA_KV_F32});
    const llamita_adapter_use use = {adapter, 0.05f};
    REQUIRE(llamita_session_set_adapters(session, &use, 1, &error) == LLAMITA_OK, "%s", error.message);
    llamita_adapter_close(adapter); /* the session holds a reference */
    float expected[75], found[75];
    feed(plain, ids, NUM_IDS, expected);
    feed(session, ids, NUM_IDS, found);
    for (int i = 0; i < 75; i++)
        CHECK(fabsf(found[i] - expected[i]) < 1e-4f, "%s, logit %d: %g, merged %g", type_name((tensor_type)type), i,
              (double)found[i], (double)expected[i]);
    llamita_session_close(plain);
    llamita_session_close(session);
    draft_free(&d);
    free_random_model(model);
    free_random_model(merged);
}

static void test_switching(void) {
    llamita_model *model = random_model(&small_shape, TENSOR_Q8_0, NULL, 5);
    llamita_adapter *adapter = random_adapter(model, 4, 9);
    llamita_session *session = open_session_with(model, (llamita_session_params){.num_sequences = 2});
    const int32_t ids[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    float base[75], adapted[75], found[75];
    feed(session, ids, 9, base);
    const llamita_adapter_use use = {adapter, 0.5f}, none = {adapter, 0.0f}, nan = {adapter, NAN};
    CHECK(llamita_session_set_adapters(session, &none, 1, &error) == LLAMITA_OK &&
              llamita_session_position(session) == 9,
          "scale 0 must mean no adapter");
    CHECK(llamita_session_set_adapters(session, &nan, 1, &error) == LLAMITA_ERROR_ARGUMENT,
          "a scale of NaN was accepted");
    CHECK(llamita_session_set_adapters(session, &use, 17, &error) == LLAMITA_ERROR_ARGUMENT,
          "17 adapters were accepted");
    CHECK(llamita_sequence_set_adapters(session, 2, &use, 1, &error) == LLAMITA_ERROR_ARGUMENT,
          "sequence 2 does not exist");
    CHECK(llamita_session_position(session) == 9 && llamita_session_logits(session) != NULL,
          "a rejected call changed the session");
    CHECK(llamita_session_set_adapters(session, &use, 1, &error) == LLAMITA_OK &&
              llamita_session_position(session) == 0 && llamita_session_logits(session) == NULL,
          "results without the adapter were kept");
    feed(session, ids, 9, adapted);
    CHECK(memcmp(base, adapted, sizeof base) != 0, "the adapter changes nothing");
    CHECK(llamita_session_set_adapters(session, &use, 1, &error) == LLAMITA_OK &&
              llamita_session_position(session) == 9,
          "setting the same adapters discarded results");
    CHECK(llamita_sequence_share(session, 0, 1, 4, &error) == LLAMITA_ERROR_ARGUMENT,
          "shared between different adapters");
    CHECK(llamita_sequence_set_adapters(session, 1, &use, 1, &error) == LLAMITA_OK &&
              llamita_sequence_share(session, 0, 1, 4, &error) == LLAMITA_OK,
          "%s", error.message);
    CHECK(llamita_session_set_adapters(session, NULL, 0, &error) == LLAMITA_OK, "%s", error.message);
    feed(session, ids, 9, found);
    CHECK(memcmp(base, found, sizeof base) == 0, "different bits after removing the adapter");

    llamita_model *another = random_model(&small_shape, TENSOR_Q8_0, NULL, 6);
    llamita_session *other_session = open_session(another, 1);
    CHECK(llamita_session_set_adapters(other_session, &use, 1, &error) == LLAMITA_ERROR_ARGUMENT,
          "an adapter of another model was accepted");
    llamita_session_close(other_session);
    free_random_model(another);

    const llamita_adapter_use huge = {adapter, 1e38f};
    CHECK(llamita_session_set_adapters(session, &huge, 1, &error) == LLAMITA_OK, "%s", error.message);
    CHECK(llamita_session_feed(session, ids, 9, &error) == LLAMITA_ERROR_NUMERIC && strstr(error.message, "scale"),
          "%s", error.message);
    llamita_session_close(session);
    free_random_model(model);
}

/* ------------------------------------------------------------------ refusals */

static void wrong_kind(gguf_draft *d) { draft_text(d, "general.type", "model"); }
static void no_kind(gguf_draft *d) { draft_remove(d, "general.type"); }
static void wrong_adapter(gguf_draft *d) { draft_text(d, "adapter.type", "ia3"); }
static void wrong_architecture(gguf_draft *d) { draft_text(d, "general.architecture", "qwen2"); }
static void no_alpha(gguf_draft *d) { draft_remove(d, "adapter.lora.alpha"); }
static void nan_alpha(gguf_draft *d) { draft_f32(d, "adapter.lora.alpha", NAN); }
static void zero_alpha(gguf_draft *d) { draft_f32(d, "adapter.lora.alpha", 0); }
static void number_alpha(gguf_draft *d) { draft_u32(d, "adapter.lora.alpha", 4); }
static void invocation(gguf_draft *d) { draft_array(d, "adapter.alora.invocation_tokens", GGUF_U32, 0); }
static void no_half(gguf_draft *d) { draft_remove_tensor(d, "blk.1.attn_q.weight.lora_b"); }
static void no_other_half(gguf_draft *d) { draft_remove_tensor(d, "blk.1.attn_q.weight.lora_a"); }
static void no_tensors(gguf_draft *d) {
    while (d->num_tensors > 0) draft_remove_tensor(d, d->tensors[0].name);
}
static void unknown(gguf_draft *d) { draft_add_tensor(d, "token_embd.weight.lora_a", TENSOR_F32, 96, 2); }
static void third_layer(gguf_draft *d) { draft_add_tensor(d, "blk.2.attn_q.weight.lora_a", TENSOR_F32, 96, 2); }
static void reshape(gguf_draft *d, const char *name, int dimension, uint64_t size) {
    draft_tensor *t = draft_find_tensor(d, name);
    t->shape[dimension] = size;
    draft_fill_tensor(t);
}
static void short_a(gguf_draft *d) { reshape(d, "blk.0.attn_q.weight.lora_a", 0, 64); }
static void other_rank(gguf_draft *d) { reshape(d, "blk.0.attn_q.weight.lora_a", 1, 4); }
static void short_b(gguf_draft *d) { reshape(d, "blk.0.ffn_down.weight.lora_b", 1, 95); }
static void vast_rank(gguf_draft *d) { reshape(d, "blk.0.attn_q.weight.lora_a", 1, 20000); }
static void nan_weight(gguf_draft *d) {
    const float nan = NAN;
    memcpy(draft_find_tensor(d, "blk.0.attn_q.weight.lora_b")->data.bytes + 8, &nan, 4);
}

static void test_refusals(void) {
    static const struct {
        void (*corrupt)(gguf_draft *);
        const char *expected;
    } cases[] = {
        {wrong_kind, "general.type: expected adapter, found model"},
        {no_kind, "general.type: expected adapter, found none"},
        {wrong_adapter, "adapter.type: expected lora, found ia3"},
        {wrong_architecture, "general.architecture: expected llama, found qwen2"},
        {no_alpha, "adapter.lora.alpha is missing"},
        {nan_alpha, "adapter.lora.alpha: expected a finite number"},
        {zero_alpha, "adapter.lora.alpha: expected a positive number"},
        {number_alpha, "adapter.lora.alpha: expected f32"},
        {invocation, "alora"},
        {no_half, "blk.1.attn_q.weight.lora_b is missing"},
        {no_other_half, "blk.1.attn_q.weight.lora_a is missing"},
        {no_tensors, "the file has no tensors"},
        {unknown, "token_embd.weight.lora_a: expected lora_a and lora_b of"},
        {third_layer, "blk.2.attn_q.weight.lora_a: expected"},
        {short_a, "blk.0.attn_q.weight.lora_a: expected shape [96, rank], found [64, 3]"},
        {other_rank, "blk.0.attn_q.weight.lora_b: expected shape [4, 96], found [3, 96]"},
        {short_b, "blk.0.ffn_down.weight.lora_b: expected shape [3, 96], found [3, 95]"},
        {vast_rank, "expected a rank of 1 to 16384, found 20000"},
        {nan_weight, "blk.0.attn_q.weight.lora_b: expected finite numbers"},
    };
    llamita_model *model = random_model(&small_shape, TENSOR_F32, NULL, 5);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gguf_draft d;
        draft_adapter(&d, model, TENSOR_F32);
        cases[i].corrupt(&d);
        llamita_adapter *adapter = read_draft(model, &d);
        CHECK(!adapter && error.status == LLAMITA_ERROR_FORMAT, "case %zu was accepted", i);
        CHECK(strncmp(error.message, "cannot open adapter a.gguf: ", 28) == 0 &&
                  strstr(error.message, cases[i].expected) != NULL,
              "case %zu: %s", i, error.message);
        llamita_adapter_close(adapter);
        draft_free(&d);
    }
    llamita_adapter *adapter = NULL;
    CHECK(llamita_adapter_open(model, "no such file", &adapter, &error) == LLAMITA_ERROR_IO && !adapter, "%s",
          error.message);
    CHECK(strstr(error.message, "cannot open adapter no such file") != NULL, "%s", error.message);
    llamita_adapter_close(NULL);
    free_random_model(model);
}

int main(void) {
    const uint32_t types[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16, TENSOR_Q8_0};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) test_logits("llama", types[i]);
    for (int i = 1; i < NUM_ARCHITECTURES; i++) {
        test_logits(all_architectures[i], TENSOR_F32);
        test_logits(all_architectures[i], TENSOR_F16);
    }
    test_switching();
    test_refusals();
    return check_failures();
}
