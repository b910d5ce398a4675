/* test_forward.c: the engine's logits compared with a naive network in double precision. */
#include "random_model.h"

/* ------------------------------------------------------------------ a naive network */

static void multiply(const tensor *weights, const double *in, double *out) {
    float *row = allocate_or_die((size_t)weights->row_length * sizeof *row);
    for (int64_t r = 0; r < weights->num_rows; r++) {
        dequantize_row(weights->type, (const char *)weights->data + (size_t)r * weights->row_bytes, weights->row_length,
                       row);
        out[r] = 0;
        for (int64_t k = 0; k < weights->row_length; k++) out[r] += (double)row[k] * in[k];
    }
    free(row);
}

static void normalize(const double *in, const float *weight, double epsilon, int32_t length, double *out) {
    double squares = 0;
    for (int32_t i = 0; i < length; i++) squares += in[i] * in[i];
    for (int32_t i = 0; i < length; i++) out[i] = in[i] / sqrt(squares / length + epsilon) * (double)weight[i];
}

static void rotate(const float *frequency, int32_t head_dim, int32_t position, double *head) {
    for (int32_t i = 0; i < head_dim; i += 2) {
        const double angle = position * (double)frequency[i / 2], first = head[i], second = head[i + 1];
        head[i] = first * cos(angle) - second * sin(angle);
        head[i + 1] = first * sin(angle) + second * cos(angle);
    }
}

/* The bias, the norm and the rotation of the heads of a query or key, each if the layer has it. */
static void finish(const llamita_model *model, const layer *l, const float *bias, const float *norm, int32_t num_heads,
                   int32_t position, double *heads) {
    const int32_t head_dim = model->info.head_dim;
    for (int32_t i = 0; bias && i < num_heads * head_dim; i++) heads[i] += (double)bias[i];
    for (int32_t h = 0; h < num_heads; h++, heads += head_dim) {
        if (norm) normalize(heads, norm, (double)model->info.rms_norm_eps, head_dim, heads);
        if (!l->no_rope) rotate(model->rope_frequency, head_dim, position, heads);
    }
}

enum { MAX_LENGTH = 512 }; /* above every length of the test shapes */
static double keys[4][400][MAX_LENGTH], values[4][400][MAX_LENGTH];

static void attend_naively(const llamita_model_info *info, int32_t layer_index, int32_t position, const double *query,
                           double *out) {
    const int32_t head_dim = info->head_dim, group = info->num_attention_heads / info->num_key_value_heads;
    for (int32_t h = 0; h < info->num_attention_heads; h++) {
        double weights[400], total = 0;
        const int32_t offset = h / group * head_dim;
        for (int32_t p = 0; p <= position; p++) {
            double score = 0;
            for (int32_t i = 0; i < head_dim; i++) score += query[h * head_dim + i] * keys[layer_index][p][offset + i];
            total += weights[p] = exp(score / sqrt(head_dim));
        }
        for (int32_t i = 0; i < head_dim; i++) {
            out[h * head_dim + i] = 0;
            for (int32_t p = 0; p <= position; p++)
                out[h * head_dim + i] += weights[p] / total * values[layer_index][p][offset + i];
        }
    }
}

/* state: the hidden state after the last norm. */
static void naive_logits(const llamita_model *model, int32_t id, int32_t position, double *state, double *logits) {
    const llamita_model_info *info = &model->info;
    double residual[MAX_LENGTH], normed[MAX_LENGTH], query[MAX_LENGTH], attended[MAX_LENGTH], gate[MAX_LENGTH],
        up[MAX_LENGTH], update[MAX_LENGTH];
    float row[MAX_LENGTH];
    dequantize_row(model->token_embedding.type,
                   (const char *)model->token_embedding.data + (size_t)id * model->token_embedding.row_bytes,
                   info->hidden_size, row);
    for (int32_t i = 0; i < info->hidden_size; i++) residual[i] = (double)row[i];
    for (int32_t n = 0; n < info->num_hidden_layers; n++) {
        const layer *l = &model->layers[n];
        normalize(residual, l->attention_norm, (double)info->rms_norm_eps, info->hidden_size, normed);
        multiply(&l->query, normed, query);
        multiply(&l->key, normed, keys[n][position]);
        multiply(&l->value, normed, values[n][position]);
        finish(model, l, l->query_bias, l->query_norm, info->num_attention_heads, position, query);
        finish(model, l, l->key_bias, l->key_norm, info->num_key_value_heads, position, keys[n][position]);
        for (int64_t i = 0; l->value_bias && i < l->value.num_rows; i++)
            values[n][position][i] += (double)l->value_bias[i];
        attend_naively(info, n, position, query, attended);
        multiply(&l->attention_output, attended, update);
        for (int32_t i = 0; i < info->hidden_size; i++) residual[i] += update[i];
        normalize(residual, l->ffn_norm, (double)info->rms_norm_eps, info->hidden_size, normed);
        multiply(&l->ffn_gate, normed, gate);
        multiply(&l->ffn_up, normed, up);
        for (int32_t i = 0; i < info->intermediate_size; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        multiply(&l->ffn_down, gate, update);
        for (int32_t i = 0; i < info->hidden_size; i++) residual[i] += update[i];
    }
    normalize(residual, model->output_norm, (double)info->rms_norm_eps, info->hidden_size, state);
    multiply(&model->output, state, logits);
}

/* ------------------------------------------------------------------ comparison */

static void fill_ids(int32_t *ids, int32_t num_tokens, int32_t vocab_size) {
    for (int32_t i = 0; i < num_tokens; i++) ids[i] = random_below(vocab_size);
}

/* Root mean square of the difference, relative to that of the expected numbers. */
static double relative_difference(const float *found, const double *expected, size_t length) {
    double difference = 0, whole = 0;
    for (size_t i = 0; i < length; i++) {
        difference += pow((double)found[i] - expected[i], 2);
        whole += expected[i] * expected[i];
    }
    return sqrt(difference / whole);
}

static const char *const all_kernels[] = {"scalar", "avx2",    "avxvnni", "avx512",  "amx",
                                          "neon",   "dotprod", "i8mm",    "simd128", "relaxed"};
enum { NUM_KERNELS = sizeof all_kernels / sizeof *all_kernels };

/* Checks the engine with each of these kernels that this processor has: the root mean square of the difference over
 * all logits, relative to that of the expected logits, and the same of the hidden states. */
static void compare_with_naive(const model_shape *shape, tensor_type type, llamita_kv_type kv_type, int32_t num_tokens,
                               double bound, const char *const *names, size_t num_names) {
    const size_t vocab_size = (size_t)shape->vocab_size, hidden = (size_t)shape->hidden_size, n = (size_t)num_tokens;
    int32_t ids[400];
    fill_ids(ids, num_tokens, shape->vocab_size);
    double *expected = allocate_or_die(n * vocab_size * sizeof *expected),
           *expected_states = allocate_or_die(n * hidden * sizeof *expected_states);
    llamita_model *model = random_model(shape, type, "scalar", 7);
    for (size_t t = 0; t < n; t++)
        naive_logits(model, ids[t], (int32_t)t, expected_states + t * hidden, expected + t * vocab_size);
    free_random_model(model);
    float *logits = allocate_or_die(n * vocab_size * sizeof *logits),
          *states = allocate_or_die(n * hidden * sizeof *states);
    for (size_t i = 0; i < num_names; i++) {
        if (kernels_select(names[i]) == NULL) continue;
        model = random_model(shape, type, names[i], 7);
        llamita_session *session =
            open_session_with(model, (llamita_session_params){.num_threads = 3, .kv_type = kv_type});
        llamita_error error;
        REQUIRE(llamita_session_feed_logits(session, ids, n, logits, &error) == LLAMITA_OK, "%s", error.message);
        REQUIRE(llamita_session_rewind(session, 0, &error) == LLAMITA_OK, "%s", error.message);
        const llamita_chunk chunk = {0, ids, n, n};
        REQUIRE(llamita_decode_hidden_states(session, &chunk, 1, states, &error) == LLAMITA_OK, "%s", error.message);
        const double of_logits = relative_difference(logits, expected, n * vocab_size),
                     of_states = relative_difference(states, expected_states, n * hidden);
        CHECK(fmax(of_logits, of_states) < bound, "%s %s %s, KV type %d, %d tokens: off by %g and %g", names[i],
              shape->architecture, type_name(type), (int)kv_type, (int)num_tokens, of_logits, of_states);
        llamita_session_close(session);
        free_random_model(model);
    }
    free(logits);
    free(states);
    free(expected);
    free(expected_states);
}

/* Bounds on the rounding errors: of floats, of quantized activations (0.04), of keys and values
 * with 11 and with 8 bits. */
static void test_types(void) {
    static const double kv_type_bounds[] = {[LLAMITA_KV_F16] = 1e-3, [LLAMITA_KV_F32] = 2e-6, [LLAMITA_KV_Q8] = 2e-2};
    for (int t = 0; t < NUM_TYPES; t++) {
        const bool quantized = panel_is_quantized(panel_format_of(all_types[t]));
        const model_shape *shape = t < NUM_BLOCK_TYPES ? &small_shape : &super_shape;
        for (int kv = LLAMITA_KV_F16; kv <= LLAMITA_KV_Q8; kv++) {
            if (t > 0 && kv != LLAMITA_KV_F32) continue;
            const int32_t num_tokens = t == 0 ? 135 : 45; /* 135 are two pages */
            compare_with_naive(shape, all_types[t], (llamita_kv_type)kv, num_tokens,
                               quantized ? 0.04 : kv_type_bounds[kv], all_kernels, NUM_KERNELS);
        }
        if (t >= NUM_FLOAT_TYPES) continue;
        const llamita_kv_type kv_type = t == 0 ? LLAMITA_KV_Q8 : LLAMITA_KV_F32;
        compare_with_naive(&odd_shape, all_types[t], kv_type, 139, kv_type_bounds[kv_type], all_kernels, NUM_KERNELS);
    }
}

/* A type of each family of panels, and lengths that are no multiple of 8. With the best kernels: the others give the
 * same bits (test_kernels). */
static void test_architecture(const char *architecture) {
    static const struct {
        tensor_type type;
        const model_shape *shape;
        double bound;
    } cases[] = {{TENSOR_F32, &small_shape, 2e-6},  {TENSOR_F16, &odd_shape, 2e-6},
                 {TENSOR_Q8_0, &small_shape, 0.04}, {TENSOR_Q4_0, &small_shape, 0.04},
                 {TENSOR_Q4_K, &super_shape, 0.04}, {TENSOR_Q6_K, &super_shape, 0.04}};
    const char *const best = "auto";
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const model_shape shape = shape_of(cases[i].shape, architecture);
        compare_with_naive(&shape, cases[i].type, LLAMITA_KV_F32, 135, cases[i].bound, &best, 1);
    }
}

/* Buffers that an address space of 32 bits (WebAssembly) has no room for are not made smaller. */
static void test_too_large(void) {
    if (SIZE_MAX > UINT32_MAX) return;
    const model_shape shape = {2048, 32, 1, 1024, 1, 37, 1 << 22, false, "llama"};
    llamita_model *model = random_model(&shape, TENSOR_F32, NULL, 1);
    llamita_session *session = NULL;
    llamita_error error = {0};
    CHECK(llamita_session_open(model, NULL, &session, &error) == LLAMITA_ERROR_MEMORY, "%s", error.message);
    free_random_model(model);
}

int main(void) {
    test_too_large();
    test_types();
    for (int a = 1; a < NUM_ARCHITECTURES; a++) test_architecture(all_architectures[a]);
    return check_failures();
}
