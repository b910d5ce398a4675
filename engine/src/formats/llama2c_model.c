/* llama2c_model.c: reads llama2.c model files, export versions 0, 1 and 2.
 *
 * Formats: karpathy/llama2.c export.py at 350e04f; docs/formats.md describes the bytes. The files
 * have no checksum and no redundancy, so a header is accepted only if it predicts the file's length
 * to the byte.
 */
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "formats/model_check.h"
#include "runtime/error.h"

enum { MAGIC = 0x616b3432, V0_HEADER_BYTES = 28, HEADER_BYTES = 256 };
enum { MAX_PLAUSIBLE_DIM = 1 << 20 }; /* less than any four ASCII letters read as a number */

/* Constants of llama2.c; its files do not store them. */
static const float ROPE_THETA = 10000.0F, RMS_NORM_EPS = 1e-5F;

/* The parts of a file after its header. Per-layer parts hold all layers in order. */
typedef enum {
    EMBEDDING,
    ATTENTION_NORM,
    QUERY,
    KEY,
    VALUE,
    ATTENTION_OUTPUT,
    FFN_NORM,
    FFN_GATE,
    FFN_DOWN,
    FFN_UP,
    OUTPUT_NORM,
    ROPE_TABLES,
    OUTPUT,
    NUM_PARTS,
} part;

static const part V0_ORDER[] = {EMBEDDING,        ATTENTION_NORM, QUERY,    KEY,      VALUE,
                                ATTENTION_OUTPUT, FFN_NORM,       FFN_GATE, FFN_DOWN, FFN_UP,
                                OUTPUT_NORM,      ROPE_TABLES,    OUTPUT,   NUM_PARTS};
static const part V1_ORDER[] = {ATTENTION_NORM,   FFN_NORM, OUTPUT_NORM, EMBEDDING, QUERY,  KEY,      VALUE,
                                ATTENTION_OUTPUT, FFN_GATE, FFN_DOWN,    FFN_UP,    OUTPUT, NUM_PARTS};

/* GGUF's names, for messages. */
static const char *const PART_NAMES[] = {"token_embd",  "attn_norm", "attn_q",   "attn_k",   "attn_v",
                                         "attn_output", "ffn_norm",  "ffn_gate", "ffn_down", "ffn_up",
                                         "output_norm", "rope",      "output"};

typedef struct {
    int version;
    const part *order;
    int32_t group_size; /* version 2: weights per scale; else 0 */
    size_t header_bytes;
} layout;

/* Rows, row length and number of copies of a part; 0 copies: not in the file. */
static void part_shape(const llamita_model_info *info, part p, int64_t *num_rows, int64_t *row_length,
                       int64_t *copies) {
    const int64_t hidden = info->hidden_size, ffn = info->intermediate_size, vocab = info->vocab_size;
    const int64_t key_value = (int64_t)info->num_key_value_heads * info->head_dim;
    const struct {
        int64_t num_rows, row_length;
        bool in_layer;
    } shapes[NUM_PARTS] = {
        [EMBEDDING] = {vocab, hidden, false}, [ATTENTION_NORM] = {1, hidden, true},
        [QUERY] = {hidden, hidden, true},     [KEY] = {key_value, hidden, true},
        [VALUE] = {key_value, hidden, true},  [ATTENTION_OUTPUT] = {hidden, hidden, true},
        [FFN_NORM] = {1, hidden, true},       [FFN_GATE] = {ffn, hidden, true},
        [FFN_DOWN] = {hidden, ffn, true},     [FFN_UP] = {ffn, hidden, true},
        [OUTPUT_NORM] = {1, hidden, false},   [ROPE_TABLES] = {info->context_tokens, info->head_dim, false},
        [OUTPUT] = {vocab, hidden, false},
    };
    *num_rows = shapes[p].num_rows;
    *row_length = shapes[p].row_length;
    *copies = p == OUTPUT && info->tied_embeddings ? 0 : shapes[p].in_layer ? info->num_hidden_layers : 1;
}

static bool is_norm(part p) { return p == ATTENTION_NORM || p == FFN_NORM || p == OUTPUT_NORM; }

/* The model's field for a matrix, or NULL if the part is none. The RoPE tables have no field: they
 * are recomputed. */
static tensor *matrix_field(llamita_model *model, part p, int64_t copy) {
    layer *l = &model->layers[copy];
    switch (p) {
    case EMBEDDING: return &model->token_embedding;
    case QUERY: return &l->query;
    case KEY: return &l->key;
    case VALUE: return &l->value;
    case ATTENTION_OUTPUT: return &l->attention_output;
    case FFN_GATE: return &l->ffn_gate;
    case FFN_DOWN: return &l->ffn_down;
    case FFN_UP: return &l->ffn_up;
    case OUTPUT: return &model->output;
    default: return NULL;
    }
}

/* The model's field for a norm, or NULL if the part is none. */
static const float **norm_field(llamita_model *model, part p, int64_t copy) {
    switch (p) {
    case ATTENTION_NORM: return &model->layers[copy].attention_norm;
    case FFN_NORM: return &model->layers[copy].ffn_norm;
    case OUTPUT_NORM: return &model->output_norm;
    default: return NULL;
    }
}

/* ---------------------------------------------------------------- header */

static llamita_status format_error(const reader *from) {
    return reader_error(from, "expected a GGUF or llama2.c model file, found another format; use a .gguf or a "
                              "llama2.c .bin file");
}

/* Version 0 has no magic number, so this checks for the magic numbers of other formats first. */
static llamita_status check_magic(const reader *from) {
    static const struct {
        const char *magic;
        size_t num_bytes;
        const char *advice;
    } known[] = {
        {"PK\x03\x04", 4, "found a PyTorch checkpoint (.pt); import it with: llamita import"},
        {"FUGG", 4, "found a big-endian GGUF file; convert it again as little-endian"},
        {"tjgg", 4, "found a GGML file from before GGUF; convert the model again"},
        {"lmgg", 4, "found a GGML file from before GGUF; convert the model again"},
        {"version https://git-lfs", 23, "found a Git LFS pointer; fetch the file with: git lfs pull"},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (from->num_bytes >= known[i].num_bytes && memcmp(from->bytes, known[i].magic, known[i].num_bytes) == 0)
            return reader_error(from, "expected a GGUF or llama2.c model file, %s", known[i].advice);
    if (from->num_bytes > 10 && from->bytes[8] == '{' && from->bytes[9] == '"') {
        return reader_error(from,
                            "expected a GGUF or llama2.c model file, found safetensors; export the checkpoint with: "
                            "llamita export");
    }
    return LLAMITA_OK;
}

static llamita_status read_config(reader *from, const layout *l, llamita_model_info *info) {
    const char *const names[] = {"dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len"};
    int32_t *const values[] = {&info->hidden_size,         &info->intermediate_size,   &info->num_hidden_layers,
                               &info->num_attention_heads, &info->num_key_value_heads, &info->vocab_size,
                               &info->context_tokens};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        uint32_t bits;
        if (!reader_u32(from, &bits)) {
            return reader_error(from,
                                "expected a header of %zu bytes, found a file of %zu; it is incomplete or not a "
                                "llama2.c model",
                                l->header_bytes, from->num_bytes);
        }
        int64_t value = (int32_t)bits;
        if (l->version == 0 && values[i] == &info->vocab_size) {
            info->tied_embeddings = value > 0; /* negative: the file has an output matrix */
            value = value < 0 ? -value : value;
        }
        if (value < 1 || value > INT32_MAX) {
            return l->version == 0
                       ? format_error(from)
                       : reader_error(from, "header: %s: expected at least 1, found %" PRId64 "; the file is damaged",
                                      names[i], value);
        }
        *values[i] = (int32_t)value;
    }
    return LLAMITA_OK;
}

/* Versions 1 and 2: magic, version, seven sizes, shared-classifier byte and, in version 2, the
 * group size (unaligned). */
static llamita_status read_new_header(reader *from, layout *l, llamita_model_info *info) {
    uint32_t magic, version, group_size = 0;
    const unsigned char *shared, *padding;
    if (from->num_bytes < HEADER_BYTES || !reader_u32(from, &magic) || !reader_u32(from, &version)) {
        return reader_error(from, "expected a header of %d bytes, found a file of %zu; it is incomplete", HEADER_BYTES,
                            from->num_bytes);
    }
    if (version != 1 && version != 2) {
        return reader_error(from, "llama2.c version: expected 1 or 2, found %" PRId32 "; export the model again",
                            (int32_t)version);
    }
    *l = (layout){(int)version, V1_ORDER, 0, HEADER_BYTES};
    llamita_status status = read_config(from, l, info);
    if (status) return status;
    if (!reader_bytes(from, 1, &shared) || *shared > 1)
        return reader_error(from, "header: shared classifier: expected 0 or 1, found %d; the file is damaged", *shared);
    info->tied_embeddings = *shared == 1;
    if (version == 2 && (!reader_u32(from, &group_size) || group_size < 1 || group_size > INT32_MAX)) {
        return reader_error(from, "header: group size: expected at least 1, found %" PRId32 "; the file is damaged",
                            (int32_t)group_size);
    }
    l->group_size = (int32_t)group_size;
    reader_bytes(from, HEADER_BYTES - from->position, &padding);
    return LLAMITA_OK;
}

static llamita_status read_header(reader *from, layout *l, llamita_model_info *info) {
    llamita_status status;
    *l = (layout){0, V0_ORDER, 0, V0_HEADER_BYTES};
    if (from->num_bytes >= 4 && read_u32(from->bytes) == MAGIC) {
        status = read_new_header(from, l, info);
    } else {
        status = check_magic(from);
        status = status ? status : read_config(from, l, info);
    }
    if (status) return status;
    if (l->version == 0 && info->hidden_size > MAX_PLAUSIBLE_DIM) return format_error(from);
    if (info->hidden_size % info->num_attention_heads != 0) {
        return l->version == 0 ? format_error(from)
                               : reader_error(from,
                                              "header: n_heads: expected a divisor of dim %d, found %d; the file is "
                                              "damaged",
                                              info->hidden_size, info->num_attention_heads);
    }
    info->head_dim = info->hidden_size / info->num_attention_heads;
    info->rope_theta = ROPE_THETA;
    info->rms_norm_eps = RMS_NORM_EPS;
    return LLAMITA_OK;
}

/* ---------------------------------------------------------------- length */

/* The size in the file of one copy of a part. */
static uint64_t part_bytes(const layout *l, part p, int64_t num_rows, int64_t row_length) {
    uint64_t elements = saturating_multiply((uint64_t)num_rows, (uint64_t)row_length);
    if (l->group_size == 0 || is_norm(p)) return saturating_multiply(elements, sizeof(float));
    return saturating_add(elements, saturating_multiply(elements / (uint64_t)l->group_size, sizeof(float)));
}

static llamita_status check_length(const reader *from, const layout *l, llamita_model_info *info) {
    uint64_t weights = 0, skipped = 0;
    for (const part *p = l->order; *p != NUM_PARTS; p++) {
        int64_t num_rows, row_length, copies;
        part_shape(info, *p, &num_rows, &row_length, &copies);
        /* The header is not checked yet: num_rows may be near 2^62. */
        const uint64_t elements = saturating_multiply((uint64_t)num_rows, (uint64_t)row_length);
        if (l->group_size && copies && !is_norm(*p) && elements % (uint64_t)l->group_size != 0) {
            return reader_error(from,
                                "header: group size: expected a divisor of the %" PRIu64
                                " weights of %s, found %d; the file is damaged",
                                elements, PART_NAMES[*p], l->group_size);
        }
        uint64_t bytes = saturating_multiply(part_bytes(l, *p, num_rows, row_length), (uint64_t)copies);
        uint64_t *sum = *p == ROPE_TABLES ? &skipped : &weights;
        *sum = saturating_add(*sum, bytes);
    }
    uint64_t expected = saturating_add(saturating_add(weights, skipped), l->header_bytes);
    if (expected != from->num_bytes) {
        return reader_error(
            from,
            "expected the %" PRIu64 " bytes that the header implies (dim %d, hidden_dim %d, layers %d, heads %d, kv "
            "heads %d, vocabulary %d, context %d), found %zu; the file is incomplete, damaged or not a llama2.c "
            "model",
            expected, info->hidden_size, info->intermediate_size, info->num_hidden_layers, info->num_attention_heads,
            info->num_key_value_heads, info->vocab_size, info->context_tokens, from->num_bytes);
    }
    info->weight_bytes = (int64_t)weights;
    return LLAMITA_OK;
}

/* ---------------------------------------------------------------- weights */

static void part_name(char name[64], part p, int64_t copy) {
    if (p == EMBEDDING || p == OUTPUT_NORM || p == ROPE_TABLES || p == OUTPUT)
        snprintf(name, 64, "%s.weight", PART_NAMES[p]);
    else snprintf(name, 64, "blk.%" PRId64 ".%s.weight", copy, PART_NAMES[p]);
}

/* Version 2: checks the scales of a tensor, which follow its values. */
static llamita_status check_scales(const llamita_model *model, const reader *from, const layout *l, const char *name,
                                   const unsigned char *bytes, int64_t elements) {
    enum { CHUNK = 1024 };
    unsigned char scales[CHUNK * sizeof(float)];
    const int64_t num_scales = elements / l->group_size;
    for (int64_t g = 0; g < num_scales; g++) {
        const size_t left = (size_t)(num_scales - g) * sizeof(float);
        if (g % CHUNK == 0 &&
            !model_read(model, bytes + elements + 4 * g, left < sizeof scales ? left : sizeof scales, scales))
            return model_cut_error(from);
        const float scale = read_f32(scales + 4 * (g % CHUNK));
        if (!isfinite(scale)) {
            return reader_error(from,
                                "tensor %s: expected finite scales, found %f at group %" PRId64 "; the weights are "
                                "damaged",
                                name, (double)scale, g);
        }
    }
    return LLAMITA_OK;
}

static llamita_status take_copy(llamita_model *model, reader *from, const layout *l, part p, int64_t copy) {
    int64_t num_rows, row_length, copies;
    const unsigned char *bytes;
    char name[64];
    part_shape(&model->info, p, &num_rows, &row_length, &copies);
    part_name(name, p, copy);
    if (!reader_bytes(from, part_bytes(l, p, num_rows, row_length), &bytes))
        return reader_error(from, "tensor %s runs past the end of the file; it is incomplete", name);
    const float **norm = norm_field(model, p, copy);
    tensor *matrix = matrix_field(model, p, copy);
    if (norm) {
        float *values = model_allocate(model, (size_t)row_length * sizeof *values);
        if (!values) return reader_memory_error(from, (uint64_t)row_length * sizeof *values);
        if (!model_read(model, bytes, (size_t)row_length * sizeof *values, values)) return model_cut_error(from);
        *norm = values;
        return model_check_finite(from, name, values, row_length);
    }
    if (matrix) {
        *matrix = (tensor){.type = TENSOR_F32,
                           .num_rows = num_rows,
                           .row_length = row_length,
                           .row_bytes = (size_t)row_length * sizeof(float),
                           .data = bytes};
        return l->group_size ? check_scales(model, from, l, name, bytes, num_rows * row_length) : LLAMITA_OK;
    }
    return LLAMITA_OK;
}

/* Version 2: weight i is values[i] * scales[i / group_size], exactly. The model owns the result. */
static llamita_status dequantize(llamita_model *model, const reader *from, const layout *l, tensor *matrix) {
    const int64_t elements = matrix->num_rows * matrix->row_length;
    const uint64_t num_bytes = saturating_multiply((uint64_t)elements, sizeof(float));
    float *weights = num_bytes > SIZE_MAX ? NULL : model_allocate(model, (size_t)num_bytes);
    const size_t stored_bytes = (size_t)(elements + elements / l->group_size * (int64_t)sizeof(float));
    unsigned char *values = weights ? malloc(stored_bytes) : NULL;
    if (!values) return reader_memory_error(from, num_bytes);
    if (!model_read(model, matrix->data, stored_bytes, values)) {
        free(values);
        return model_cut_error(from);
    }
    const unsigned char *scales = values + elements;
    for (int64_t g = 0; g < elements / l->group_size; g++) {
        const float scale = read_f32(scales + 4 * g);
        for (int64_t i = g * l->group_size; i < (g + 1) * l->group_size; i++)
            weights[i] = (float)(int8_t)values[i] * scale;
    }
    free(values);
    matrix->data = weights;
    return LLAMITA_OK;
}

/* Takes all parts in the file's order, or, with dequantizing, converts the ones taken before to
 * floats: a separate pass, because it needs four times the file's size and the file should be valid
 * first. */
static llamita_status take_parts(llamita_model *model, reader *from, const layout *l, bool dequantizing) {
    for (const part *p = l->order; *p != NUM_PARTS; p++) {
        int64_t num_rows, row_length, copies;
        part_shape(&model->info, *p, &num_rows, &row_length, &copies);
        for (int64_t copy = 0; copy < copies; copy++) {
            tensor *matrix = matrix_field(model, *p, copy);
            llamita_status status = !dequantizing ? take_copy(model, from, l, *p, copy)
                                    : matrix      ? dequantize(model, from, l, matrix)
                                                  : LLAMITA_OK;
            if (status) return status;
        }
    }
    return LLAMITA_OK;
}

static llamita_status take_weights(llamita_model *model, reader *from, const layout *l) {
    const uint64_t layer_bytes = (uint64_t)model->info.num_hidden_layers * sizeof *model->layers;
    model->layers = model_allocate(model, (size_t)layer_bytes);
    if (!model->layers) return reader_memory_error(from, layer_bytes);
    llamita_status status = take_parts(model, from, l, false);
    if (!status && l->group_size) status = take_parts(model, from, l, true);
    if (model->info.tied_embeddings) model->output = model->token_embedding;
    return status;
}

llamita_status llama2c_fill_model(llamita_model *model, const char *path, llamita_error *error) {
    reader from = {model->mapping, model->mapping_bytes, 0, "model", path, error, NULL};
    layout l;
    llamita_status status = read_header(&from, &l, &model->info);
    status = status ? status : check_length(&from, &l, &model->info);
    status = status ? status : model_check_shape(model, &from);
    status = status ? status : take_weights(model, &from, &l);
    model->rope = (rope_scaling){.type = ROPE_NONE,
                                 .base = (double)ROPE_THETA,
                                 .factor = 1.0,
                                 .attention_factor = 1.0,
                                 .original_context = model->info.context_tokens,
                                 .beta_fast = 32.0,
                                 .beta_slow = 1.0};
    model->rope_attention_factor = 1.0F;
    status = status ? status : model_fill_rope(model, &from, &model->rope, &model->rope_frequency);
    if (status) return status;
    snprintf(model->info.architecture, sizeof model->info.architecture, "llama");
    snprintf(model->info.format, sizeof model->info.format, "llama2.c v%d", l.version);
    if (l.version == 2) snprintf(model->info.weight_type, sizeof model->info.weight_type, "int8");
    model->bos_ends = true;
    return LLAMITA_OK;
}
