/* random_model.h: tiny models with random weights of any type, made in memory, for tests; and what tests check with. */
#ifndef LLAMITA_RANDOM_MODEL_H
#define LLAMITA_RANDOM_MODEL_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "kernels.h"
#include "model.h"

/* A CHECK without which the test cannot go on. */
#define REQUIRE(condition, ...)                                                                                        \
    do {                                                                                                               \
        const int before = check_num_failures;                                                                         \
        CHECK(condition, __VA_ARGS__);                                                                                 \
        if (check_num_failures > before) exit(1);                                                                      \
    } while (0)

static uint64_t random_state = 1;

static inline uint32_t random_bits(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static inline int32_t random_below(int32_t limit) { return (int32_t)(random_bits() % (uint32_t)limit); }

/* Roughly normal, standard deviation 1. */
static inline float random_float(void) {
    double sum = 0;
    for (int i = 0; i < 4; i++) sum += (double)random_bits() / 2147483648.0 - 0.5;
    return (float)(sum * 1.732);
}

static inline void *allocate_or_die(size_t bytes) {
    void *memory = calloc(1, bytes);
    REQUIRE(memory != NULL, "no memory for %zu bytes", bytes);
    return memory;
}

static const tensor_type all_types[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16, TENSOR_Q8_0, TENSOR_Q4_0, TENSOR_Q4_1};
#define NUM_TYPES ((int)(sizeof all_types / sizeof all_types[0]))

static inline const char *type_name(tensor_type type) {
    return type == TENSOR_F32    ? "F32"
           : type == TENSOR_F16  ? "F16"
           : type == TENSOR_BF16 ? "BF16"
           : type == TENSOR_Q8_0 ? "Q8_0"
           : type == TENSOR_Q4_0 ? "Q4_0"
                                 : "Q4_1";
}

static inline size_t row_bytes_of(tensor_type type, int64_t length) {
    switch (type) {
    case TENSOR_F32: return (size_t)length * 4;
    case TENSOR_Q8_0: return (size_t)length / 32 * 34;
    case TENSOR_Q4_0: return (size_t)length / 32 * 18;
    case TENSOR_Q4_1: return (size_t)length / 32 * 20;
    default: return (size_t)length * 2;
    }
}

/* To the nearest half, for normal results only. */
static inline uint16_t half_of(float value) {
    const uint32_t bits = bits_from_float(value), sign = bits >> 16 & 0x8000u;
    const int exponent = (int)(bits >> 23 & 255) - 112;
    if (exponent <= 0) return (uint16_t)sign;
    REQUIRE(exponent < 31, "%g is too large for a half", (double)value);
    return (uint16_t)(sign | (((uint32_t)exponent << 10 | (bits & 0x7fffffu) >> 13) + (bits >> 12 & 1)));
}

/* Random weights of this standard deviation, in any type; 2 bytes past an allocation's start (4 for F32), as
 * files may have it. */
static inline void *random_rows(tensor_type type, int64_t num_rows, int64_t length, float deviation, char **memory) {
    const size_t row_bytes = row_bytes_of(type, length), offset = type == TENSOR_F32 ? 4 : 2;
    *memory = allocate_or_die(offset + (size_t)num_rows * row_bytes);
    char *data = *memory + offset;
    for (int64_t r = 0; r < num_rows; r++) {
        char *row = data + (size_t)r * row_bytes;
        if (type == TENSOR_F32 || type == TENSOR_F16 || type == TENSOR_BF16) {
            for (int64_t k = 0; k < length; k++) {
                const float value = random_float() * deviation;
                const uint16_t half = type == TENSOR_F16 ? half_of(value) : (uint16_t)(bits_from_float(value) >> 16);
                if (type == TENSOR_F32) memcpy(row + 4 * k, &value, 4);
                else memcpy(row + 2 * k, &half, 2);
            }
            continue;
        }
        const size_t block_bytes = row_bytes_of(type, 32), header = type == TENSOR_Q4_1 ? 4 : 2;
        for (char *block = row; block < row + row_bytes; block += block_bytes) {
            const float steps = type == TENSOR_Q8_0 ? 73.0f : 4.6f; /* standard deviation of uniform values */
            const uint16_t scale = half_of(deviation / steps * (1.0f + 0.3f * random_float())),
                           minimum = half_of(-7.5f * deviation / steps);
            memcpy(block, &scale, 2);
            if (type == TENSOR_Q4_1) memcpy(block + 2, &minimum, 2);
            for (size_t i = header; i < block_bytes; i++) block[i] = (char)random_bits();
        }
    }
    return data;
}

static inline void dequantise_row(tensor_type type, const void *row, int64_t length, float *out) {
    tensor_type_dequantise(type)(row, length, out);
}

/* ------------------------------------------------------------------ models */

typedef struct {
    int32_t hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, vocab_size, context_tokens;
    bool tied;
} model_shape;

/* 32s everywhere that quantised types need them; grouped heads; rows that are no multiple of any tile. */
static const model_shape small_shape = {96, 160, 2, 6, 2, 75, 300, false};
/* Lengths that are no multiple of 8, for float types: heads of 6. */
static const model_shape odd_shape = {30, 43, 2, 5, 5, 37, 140, true};

static inline tensor random_tensor(llamita_model *model, tensor_type type, int64_t num_rows, int64_t length) {
    char *memory;
    const void *data = random_rows(type, num_rows, length, 1.0f / sqrtf((float)length), &memory);
    model->owned = realloc(model->owned, (model->num_owned + 1) * sizeof *model->owned);
    REQUIRE(model->owned != NULL, "no memory");
    model->owned[model->num_owned++] = memory;
    return (tensor){type, num_rows, length, row_bytes_of(type, length), data};
}

static inline const float *random_norm(llamita_model *model, int64_t length) {
    float *values = (float *)(uintptr_t)random_tensor(model, TENSOR_F32, 1, length).data;
    for (int64_t i = 0; i < length; i++) values[i] = 1.0f + 0.2f * random_float();
    return values;
}

/* The same weights for the same seed. */
static inline llamita_model *random_model(const model_shape *shape, tensor_type type, const char *kernels_wanted,
                                          uint64_t seed) {
    random_state = seed;
    llamita_model *model = calloc(1, sizeof *model);
    REQUIRE(model != NULL, "no memory");
    const int32_t head_dim = shape->hidden_size / shape->num_heads, hidden = shape->hidden_size,
                  ffn = shape->intermediate_size;
    model->info = (llamita_model_info){.hidden_size = hidden,
                                       .intermediate_size = ffn,
                                       .num_hidden_layers = shape->num_layers,
                                       .num_attention_heads = shape->num_heads,
                                       .num_key_value_heads = shape->num_kv_heads,
                                       .head_dim = head_dim,
                                       .vocab_size = shape->vocab_size,
                                       .context_tokens = shape->context_tokens,
                                       .rope_theta = 10000.0f,
                                       .rms_norm_eps = 1e-5f,
                                       .bos_id = 1,
                                       .eos_id = 2,
                                       .tied_embeddings = shape->tied,
                                       .decode_bytes = 1000};
    model->kernels = kernels_select(kernels_wanted);
    REQUIRE(model->kernels != NULL, "no such kernels");
    model->token_embedding = random_tensor(model, type, shape->vocab_size, hidden);
    model->output = shape->tied ? model->token_embedding : random_tensor(model, type, shape->vocab_size, hidden);
    model->output_norm = random_norm(model, hidden);
    float *frequency = (float *)(uintptr_t)random_norm(model, head_dim / 2);
    for (int32_t i = 0; i < head_dim / 2; i++) frequency[i] = (float)pow(10000.0, -2.0 * i / head_dim);
    model->rope_frequency = frequency;
    model->layers = calloc((size_t)shape->num_layers, sizeof *model->layers);
    REQUIRE(model->layers != NULL, "no memory");
    for (int32_t i = 0; i < shape->num_layers; i++) {
        layer *l = &model->layers[i];
        l->attention_norm = random_norm(model, hidden);
        l->query = random_tensor(model, type, shape->num_heads * head_dim, hidden);
        l->key = random_tensor(model, type, shape->num_kv_heads * head_dim, hidden);
        l->value = random_tensor(model, type, shape->num_kv_heads * head_dim, hidden);
        l->attention_output = random_tensor(model, type, hidden, shape->num_heads * head_dim);
        l->ffn_norm = random_norm(model, hidden);
        l->ffn_gate = random_tensor(model, type, ffn, hidden);
        l->ffn_up = random_tensor(model, type, ffn, hidden);
        l->ffn_down = random_tensor(model, type, hidden, ffn);
    }
    return model;
}

static inline void free_random_model(llamita_model *model) {
    for (size_t i = 0; i < model->num_owned; i++) free(model->owned[i]);
    free(model->owned);
    free(model->layers);
    free(model);
}

static inline llamita_session *open_session(const llamita_model *model, int32_t num_threads) {
    llamita_error error;
    llamita_session *session = NULL;
    const llamita_session_params params = {num_threads, 0};
    REQUIRE(llamita_session_open(model, &params, &session, &error) == LLAMITA_OK, "%s", error.message);
    return session;
}

#endif
