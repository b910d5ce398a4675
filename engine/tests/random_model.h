/* random_model.h: builds tiny models with random weights of any type in memory, and helpers for
 * tests. */
#ifndef LLAMITA_RANDOM_MODEL_H
#define LLAMITA_RANDOM_MODEL_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "kernels/kernels.h"
#include "model/lora.h"
#include "model/model.h"
#include "model_files.h"

/* Like CHECK, but exits on failure. */
#define REQUIRE(condition, ...)                   \
    do {                                          \
        const int before = check_num_failures;    \
        CHECK(condition, __VA_ARGS__);            \
        if (check_num_failures > before) exit(1); \
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
    REQUIRE(memory, "out of memory: %zu bytes", bytes);
    return memory;
}

static const tensor_type all_types[] = {TENSOR_F32,    TENSOR_F16,   TENSOR_BF16, TENSOR_Q8_0,   TENSOR_Q4_0,
                                        TENSOR_Q4_1,   TENSOR_Q5_0,  TENSOR_Q5_1, TENSOR_IQ4_NL, TENSOR_MXFP4,
                                        TENSOR_Q2_K,   TENSOR_Q3_K,  TENSOR_Q4_K, TENSOR_Q5_K,   TENSOR_Q6_K,
                                        TENSOR_IQ4_XS, TENSOR_TQ1_0, TENSOR_TQ2_0};
#define NUM_TYPES ((int)(sizeof all_types / sizeof all_types[0]))
#define NUM_FLOAT_TYPES 3
#define NUM_BLOCK_TYPES 10 /* of these, blocks have at most 32 elements */

static inline const char *type_name(tensor_type type) {
    int64_t elements;
    size_t bytes;
    const char *name = "?";
    tensor_type_blocks(type, &elements, &bytes, &name);
    return name;
}

static inline size_t row_bytes_of(tensor_type type, int64_t length) {
    int64_t elements;
    size_t bytes;
    const char *name;
    tensor_type_blocks(type, &elements, &bytes, &name);
    return (size_t)(length / elements) * bytes;
}

/* Rounds to the nearest half; for normal results only. */
static inline uint16_t half_of(float value) {
    const uint32_t bits = bits_from_float(value), sign = bits >> 16 & 0x8000u;
    const int exponent = (int)(bits >> 23 & 255) - 112;
    if (exponent <= 0) return (uint16_t)sign;
    REQUIRE(exponent < 31, "%g is too large for a half", (double)value);
    return (uint16_t)(sign | (((uint32_t)exponent << 10 | (bits & 0x7fffffu) >> 13) + (bits >> 12 & 1)));
}

/* The offsets in a block of its scale and its minimum, both halves; -1: none. */
static inline void scale_offsets(tensor_type type, int *scale, int *minimum) {
    *minimum = type == TENSOR_Q4_1 || type == TENSOR_Q5_1 || type == TENSOR_Q4_K || type == TENSOR_Q5_K ? 2
               : type == TENSOR_Q2_K                                                                    ? 82
                                                                                                        : -1;
    *scale = type == TENSOR_Q2_K    ? 80
             : type == TENSOR_Q3_K  ? 108
             : type == TENSOR_Q6_K  ? 208
             : type == TENSOR_TQ1_0 ? 52
             : type == TENSOR_TQ2_0 ? 64
                                    : 0;
}

static inline void dequantize_row(tensor_type type, const void *row, int64_t length, float *out) {
    tensor_type_dequantize(type)(row, length, out);
}

/* Fills a block with random codes and about this scale. MXFP4's is a power of two in a byte. */
static inline void random_block(tensor_type type, size_t block_bytes, float scale, char *block) {
    int scale_offset, minimum_offset;
    scale_offsets(type, &scale_offset, &minimum_offset);
    for (size_t i = 0; i < block_bytes; i++) block[i] = (char)random_bits();
    if (type == TENSOR_MXFP4) {
        block[0] = (char)(127 + (int)log2f(scale));
        return;
    }
    const uint16_t half = half_of(scale * (1.0f + 0.3f * random_float()));
    memcpy(block + scale_offset, &half, 2);
    const float middle = type == TENSOR_Q2_K ? 1.5f : type == TENSOR_Q4_1 || type == TENSOR_Q4_K ? 7.5f : 15.5f;
    const bool added = type == TENSOR_Q4_1 || type == TENSOR_Q5_1; /* the others subtract it */
    const uint16_t minimum = half_of((added ? -middle : middle) * scale);
    if (minimum_offset >= 0) memcpy(block + minimum_offset, &minimum, 2);
}

/* The scale that gives elements of about this standard deviation. */
static inline float scale_for(tensor_type type, float deviation) {
    switch (type) {
    case TENSOR_Q8_0: return deviation / 73.0f;
    case TENSOR_Q5_0:
    case TENSOR_Q5_1: return deviation / 9.2f;
    case TENSOR_IQ4_NL: return deviation / 63.0f;
    case TENSOR_MXFP4: return deviation / 2.5f;
    case TENSOR_Q2_K: return deviation / 40.0f;
    case TENSOR_Q3_K: return deviation / 43.0f;
    case TENSOR_Q4_K: return deviation / 250.0f;
    case TENSOR_Q5_K: return deviation / 500.0f;
    case TENSOR_Q6_K: return deviation / 1400.0f;
    case TENSOR_IQ4_XS: return deviation / 1100.0f;
    case TENSOR_TQ1_0:
    case TENSOR_TQ2_0: return deviation;
    default: return deviation / 4.6f;
    }
}

/* Random weights of about this standard deviation, of any type, starting 2 bytes after the start of
 * the allocation (4 for F32), as in files. The caller frees *memory. */
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
        int64_t elements;
        size_t block_bytes;
        const char *name;
        tensor_type_blocks(type, &elements, &block_bytes, &name);
        for (char *block = row; block < row + row_bytes; block += block_bytes)
            random_block(type, block_bytes, scale_for(type, deviation), block);
    }
    return data;
}

/* Packs the rows for the kernels. The caller frees *memory. */
static inline void *packed_rows(tensor_type type, const void *rows, int64_t num_rows, int64_t length, char **memory) {
    const int64_t num_panels = (num_rows + PANEL_ROWS - 1) / PANEL_ROWS;
    const size_t bytes = (size_t)num_panels * panel_bytes(panel_format_of(type), length);
    *memory = allocate_or_die(bytes + PANEL_ALIGNMENT);
    void *panels = *memory + (PANEL_ALIGNMENT - (uintptr_t)*memory % PANEL_ALIGNMENT);
    REQUIRE(panel_pack(type, rows, row_bytes_of(type, length), num_rows, length, 0, num_panels, panels),
            "out of memory");
    return panels;
}

/* ------------------------------------------------------------------ models */

typedef struct {
    int32_t hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, vocab_size, context_tokens;
    bool tied;
    const char *architecture;
} model_shape;

/* The same shape with the biases of qwen2; the norms of qwen3, whose heads are twice as large; or the
 * last layer of smollm3, without RoPE. */
static inline model_shape shape_of(const model_shape *base, const char *architecture) {
    model_shape shape = *base;
    shape.architecture = architecture;
    return shape;
}

static inline bool has_architecture(const model_shape *shape, const char *architecture) {
    return strcmp(shape->architecture, architecture) == 0;
}

/* Multiples of 32 where quantized types need them, grouped heads, and row counts that are no
 * multiple of any tile. */
static const model_shape small_shape = {96, 160, 2, 6, 2, 75, 300, false, "llama"};
/* Lengths that are no multiple of 8, for float types: a head size of 6. */
static const model_shape odd_shape = {30, 43, 2, 5, 5, 37, 140, true, "llama"};
/* Whole super-blocks; as many kv heads as some pools have workers. */
static const model_shape super_shape = {256, 512, 1, 4, 4, 75, 300, false, "llama"};

static inline void own(llamita_model *model, void *memory) {
    model->owned = realloc(model->owned, (model->num_owned + 1) * sizeof *model->owned);
    REQUIRE(model->owned, "out of memory");
    model->owned[model->num_owned++] = memory;
}

static inline tensor random_tensor(llamita_model *model, tensor_type type, int64_t num_rows, int64_t length) {
    char *memory, *panel_memory;
    const void *data = random_rows(type, num_rows, length, 1.0f / sqrtf((float)length), &memory);
    void *panels = packed_rows(type, data, num_rows, length, &panel_memory);
    own(model, memory);
    own(model, panel_memory);
    return (tensor){.type = type,
                    .num_rows = num_rows,
                    .row_length = length,
                    .row_bytes = row_bytes_of(type, length),
                    .data = data,
                    .format = panel_format_of(type),
                    .panel_bytes = panel_bytes(panel_format_of(type), length),
                    .panels = panels};
}

static inline const float *random_norm(llamita_model *model, int64_t length) {
    float *values = (float *)(uintptr_t)random_tensor(model, TENSOR_F32, 1, length).data;
    for (int64_t i = 0; i < length; i++) values[i] = 1.0f + 0.2f * random_float();
    return values;
}

static inline const float *random_bias(llamita_model *model, int64_t length) {
    float *values = (float *)(uintptr_t)random_norm(model, length);
    for (int64_t i = 0; i < length; i++) values[i] = 0.5f * random_float();
    return values;
}

static inline void random_attention_vectors(llamita_model *model, const model_shape *shape, layer *l) {
    if (has_architecture(shape, "qwen2")) {
        l->query_bias = random_bias(model, l->query.num_rows);
        l->key_bias = random_bias(model, l->key.num_rows);
        l->value_bias = random_bias(model, l->value.num_rows);
    }
    if (has_architecture(shape, "qwen3")) {
        l->query_norm = random_norm(model, model->info.head_dim);
        l->key_norm = random_norm(model, model->info.head_dim);
    }
    l->no_rope = has_architecture(shape, "smollm3") && l == &model->layers[shape->num_layers - 1];
}

/* The same seed gives the same weights. free_random_model frees the model. */
static inline llamita_model *random_model(const model_shape *shape, tensor_type type, const char *kernels_wanted,
                                          uint64_t seed) {
    random_state = seed;
    llamita_model *model = calloc(1, sizeof *model);
    REQUIRE(model, "out of memory");
    const int32_t head_dim = shape->hidden_size / shape->num_heads * (has_architecture(shape, "qwen3") ? 2 : 1),
                  hidden = shape->hidden_size, ffn = shape->intermediate_size;
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
    strcpy(model->info.architecture, shape->architecture);
    model->kernels = kernels_select(kernels_wanted);
    REQUIRE(model->kernels, "kernels %s are not available", kernels_wanted ? kernels_wanted : "auto");
    model->token_embedding = random_tensor(model, type, shape->vocab_size, hidden);
    model->output = shape->tied ? model->token_embedding : random_tensor(model, type, shape->vocab_size, hidden);
    model->output_norm = random_norm(model, hidden);
    float *frequency = (float *)(uintptr_t)random_norm(model, head_dim / 2);
    for (int32_t i = 0; i < head_dim / 2; i++) frequency[i] = (float)pow(10000.0, -2.0 * i / head_dim);
    model->rope_frequency = frequency;
    model->rope = (rope_scaling){.type = ROPE_NONE,
                                 .base = 10000.0,
                                 .factor = 1.0,
                                 .attention_factor = 1.0,
                                 .original_context = shape->context_tokens,
                                 .beta_fast = 32.0,
                                 .beta_slow = 1.0};
    model->rope_attention_factor = 1.0F;
    model->layers = calloc((size_t)shape->num_layers, sizeof *model->layers);
    REQUIRE(model->layers, "out of memory");
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
        random_attention_vectors(model, shape, l);
    }
    return model;
}

static inline void free_random_model(llamita_model *model) {
    for (size_t i = 0; i < model->num_owned; i++) free(model->owned[i]);
    free(model->owned);
    free(model->layers);
    free(model);
}

/* Random updates of some of the model's matrices, of at most this rank, in floats of random types;
 * the same seed gives the same updates. The model owns the memory. Large enough to change every
 * logit. */
static inline llamita_adapter *random_adapter(llamita_model *model, int32_t rank, uint64_t seed) {
    static const tensor_type types[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16};
    random_state = seed;
    llamita_adapter *adapter = allocate_or_die(sizeof *adapter);
    own(model, adapter);
    adapter->model = model;
    adapter->info = (llamita_adapter_info){.rank = rank, .alpha = 1.5f * (float)rank};
    atomic_init(&adapter->ref_count, 1 << 20); /* never reaches 0: the model frees it */
    adapter->layers = allocate_or_die((size_t)model->info.num_hidden_layers * sizeof *adapter->layers);
    own(model, adapter->layers);
    for (int32_t i = 0; i < model->info.num_hidden_layers; i++) {
        tensor *matrices[MATRICES_PER_LAYER];
        model_layer_matrices(&model->layers[i], matrices);
        for (int which = 0; which < MATRICES_PER_LAYER; which++) {
            if (random_below(5) == 0) continue;
            const int32_t own_rank = 1 + random_below(rank);
            lora_pair *update = &adapter->layers[i][which];
            update->a = random_tensor(model, types[random_below(3)], own_rank, matrices[which]->row_length);
            update->b = random_tensor(model, types[random_below(3)], matrices[which]->num_rows, own_rank);
        }
    }
    return adapter;
}

static inline llamita_session *open_session_with(const llamita_model *model, llamita_session_params params) {
    llamita_error error;
    llamita_session *session = NULL;
#if defined(__wasm__)
    params.num_threads = 1; /* there are no others */
#endif
    REQUIRE(llamita_session_open(model, &params, &session, &error) == LLAMITA_OK, "%s", error.message);
    return session;
}

static inline llamita_session *open_session(const llamita_model *model, int32_t num_threads) {
    return open_session_with(model, (llamita_session_params){.num_threads = num_threads});
}

#endif
