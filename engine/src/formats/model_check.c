/* model_check.c: validates sizes and weights and computes RoPE frequencies, for every model
 * format. */
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

/* The pair that turns this often within the original context (arXiv 2309.00071, section 3.2). */
static double pair_of_turns(const llamita_model_info *info, double original_context, double turns) {
    const double two_pi = 6.283185307179586;
    return info->head_dim * log(original_context / (turns * two_pi)) / (2.0 * log((double)info->rope_theta));
}

/* yarn keeps the angles of pairs up to *low, divides those from *high on by the factor, and mixes
 * the pairs between. */
static llamita_status yarn_range(const llamita_model_info *info, const reader *from, const rope_scaling *scaling,
                                 double *low, double *high) {
    *low = fmax(0.0, floor(pair_of_turns(info, scaling->original_context, scaling->beta_fast)));
    *high = fmin(info->head_dim - 1.0, ceil(pair_of_turns(info, scaling->original_context, scaling->beta_slow)));
    if (*low <= *high) return LLAMITA_OK;
    return reader_error(from,
                        "yarn: expected beta_fast above beta_slow and an original context in which some pairs turn "
                        "that often, found %g, %g and %g tokens; the file is damaged",
                        scaling->beta_fast, scaling->beta_slow, scaling->original_context);
}

/* RoFormer (arXiv 2104.09864, section 3.2.2): the angle of pair i per position is theta^(-2i/S).
 * Computed in double and rounded once. */
llamita_status model_fill_rope(llamita_model *model, const reader *from, const rope_scaling *scaling,
                               const float **frequency) {
    const llamita_model_info *info = &model->info;
    const int32_t num_pairs = info->head_dim / 2;
    double low = 0.0, high = 0.0;
    llamita_status status = scaling->is_yarn ? yarn_range(info, from, scaling, &low, &high) : LLAMITA_OK;
    if (status) return status;
    float *angles = model_allocate(model, (size_t)num_pairs * sizeof *angles);
    if (!angles) return reader_memory_error(from, (uint64_t)num_pairs * sizeof *angles);
    for (int32_t i = 0; i < num_pairs; i++) {
        const double plain = pow((double)info->rope_theta, -2.0 * i / info->head_dim);
        const double slow = scaling->is_yarn ? fmin(1.0, fmax(0.0, (i - low) / fmax(0.001, high - low))) : 1.0;
        const double angle =
            slow == 1.0 ? plain / scaling->factor : plain / scaling->factor * slow + plain * (1.0 - slow);
        angles[i] = (float)(scaling->divisors ? angle / (double)scaling->divisors[i] : angle);
        if (!isfinite(angles[i])) {
            return reader_error(from, "RoPE angle of pair %d: expected a finite number, found %f; the file is damaged",
                                i, (double)angles[i]);
        }
    }
    *frequency = angles;
    return LLAMITA_OK;
}

llamita_status model_cut_error(const reader *from) {
    return error_set(from->error, LLAMITA_ERROR_IO,
                     "cannot open %s %s: expected %zu bytes, found fewer; the file was cut while it was read",
                     from->what, error_path(from->path), from->num_bytes);
}
