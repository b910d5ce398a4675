/* model_check.c: validates sizes, weights and RoPE scalings, for every model format. */
#include "formats/model_check.h"

#include <inttypes.h>
#include <math.h>

#include "runtime/error.h"

/* Above any Llama (405B: hidden 16384, ffn 53248, 128 heads, 126 layers), and products of two do
 * not overflow. */
enum { MAX_HIDDEN = 1 << 20, MAX_FFN = 1 << 22, MAX_HEADS = 1 << 14, MAX_HEAD_DIM = 1 << 14, MAX_LAYERS = 1 << 12 };
enum { MAX_VOCAB = 1 << 20 };

static llamita_status check_size(const reader *from, const char *name, int64_t value, int64_t highest) {
    if (value < 1 || value > highest) {
        return reader_error(from, "%s: expected 1 to %" PRId64 ", found %" PRId64 "; the file is damaged", name,
                            highest, value);
    }
    return LLAMITA_OK;
}

llamita_status model_check_shape(const llamita_model *model, const reader *from) {
    const llamita_model_info *info = &model->info;
    const struct {
        const char *name;
        int64_t value, highest;
    } sizes[] = {
        {"hidden size", info->hidden_size, MAX_HIDDEN},
        {"feed-forward size", info->intermediate_size, MAX_FFN},
        {"number of layers", info->num_hidden_layers, MAX_LAYERS},
        {"number of attention heads", info->num_attention_heads, MAX_HEADS},
        {"number of key-value heads", info->num_key_value_heads, MAX_HEADS},
        {"head size", info->head_dim, MAX_HEAD_DIM},
        {"vocabulary", info->vocab_size, MAX_VOCAB},
        {"context length", info->context_tokens, INT32_MAX},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        llamita_status status = check_size(from, sizes[i].name, sizes[i].value, sizes[i].highest);
        if (status) return status;
    }
    if (info->num_attention_heads % info->num_key_value_heads != 0) {
        return reader_error(from,
                            "number of key-value heads: expected a divisor of %d attention heads, found %d; the file "
                            "is damaged",
                            info->num_attention_heads, info->num_key_value_heads);
    }
    if (info->head_dim % 2 != 0)
        return reader_error(from, "head size: expected an even number, found %d; the file is damaged", info->head_dim);
    return LLAMITA_OK;
}

llamita_status model_check_finite(const reader *from, const char *name, const float *values, int64_t length) {
    for (int64_t i = 0; i < length; i++) {
        if (!isfinite(values[i])) {
            return reader_error(
                from, "tensor %s: expected finite numbers, found %f at position %" PRId64 "; the weights are damaged",
                name, (double)values[i], i);
        }
    }
    return LLAMITA_OK;
}

llamita_status model_fill_rope(llamita_model *model, const reader *from, const rope_scaling *scaling,
                               const float **frequency) {
    const int32_t num_pairs = model->info.head_dim / 2;
    char reason[ROPE_REASON_BYTES];
    float *angles = model_allocate(model, (size_t)num_pairs * sizeof *angles);
    if (!angles) return reader_memory_error(from, (uint64_t)num_pairs * sizeof *angles);
    if (!rope_fill_frequency(scaling, model->info.head_dim, angles, reason))
        return reader_error(from, "%s; the file is damaged", reason);
    *frequency = angles;
    return LLAMITA_OK;
}

llamita_status model_cut_error(const reader *from) {
    return error_set(from->error, LLAMITA_ERROR_IO,
                     "cannot open %s %s: expected %zu bytes, found fewer; the file was cut while it was read",
                     from->what, error_path(from->path), from->num_bytes);
}
