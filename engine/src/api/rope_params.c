/* rope_params.c: checks the RoPE parameters of a session and applies them to the model's scaling. */
#include "api/rope_params.h"

#include "model/model.h"
#include "runtime/error.h"

enum { MAX_CONTEXT = 1 << 24 };
static const float MAX_SCALE = 1e4F, MAX_FREQ_BASE = 1e30F;
static const char *const NAMES[] = {"the model's", "none", "linear", "ntk", "yarn"};

bool rope_params_given(const llamita_rope_params *p) {
    return p->scaling != LLAMITA_ROPE_MODEL || p->scale != 0.0F || p->freq_base != 0.0F || p->yarn_orig_ctx != 0;
}

#define REFUSE(...) return error_set(error, LLAMITA_ERROR_ARGUMENT, "cannot open a session: " __VA_ARGS__)

static llamita_status check_ranges(const llamita_model *model, const llamita_rope_params *p, llamita_error *error) {
    if ((unsigned)p->scaling > LLAMITA_ROPE_YARN)
        REFUSE("rope_scaling: expected none, linear, ntk or yarn, found %d", (int)p->scaling);
    if (p->scale != 0.0F && !(p->scale >= 1.0F && p->scale <= MAX_SCALE))
        REFUSE("rope_scale: expected 1 to %g, or 0 (the model's), found %g", (double)MAX_SCALE, (double)p->scale);
    if (p->freq_base != 0.0F && !(p->freq_base >= 1.0F && p->freq_base <= MAX_FREQ_BASE))
        REFUSE("rope_freq_base: expected 1 to %g, or 0 (the model's), found %g", (double)MAX_FREQ_BASE,
               (double)p->freq_base);
    if (p->yarn_orig_ctx < 0 || p->yarn_orig_ctx > MAX_CONTEXT)
        REFUSE("yarn_orig_ctx: expected 1 to %d, or 0 (the model's), found %d", MAX_CONTEXT, (int)p->yarn_orig_ctx);
    if (model->rope.type == ROPE_LONGROPE)
        REFUSE("RoPE parameters: expected none for a model with longrope, which brings its own, found some");
    return LLAMITA_OK;
}

llamita_status rope_params_apply(const llamita_model *model, const llamita_rope_params *p, rope_scaling *scaling,
                                 int32_t *max_context, llamita_error *error) {
    const llamita_status status = check_ranges(model, p, error);
    if (status != LLAMITA_OK) return status;
    *scaling = model->rope;
    if (p->scaling != LLAMITA_ROPE_MODEL) scaling->type = (rope_type)p->scaling;
    else if (p->scale != 0.0F && scaling->type == ROPE_NONE) scaling->type = ROPE_LINEAR;
    if (scaling->type == ROPE_NONE && p->scale != 0.0F)
        REFUSE("rope_scale: expected 0 with rope_scaling none, found %g", (double)p->scale);
    if (scaling->type != ROPE_YARN && p->yarn_orig_ctx != 0)
        REFUSE("yarn_orig_ctx: expected rope_scaling yarn with it, found %s", NAMES[scaling->type]);
    if (scaling->type == ROPE_NONE) scaling->factor = 1.0;
    else if (p->scale != 0.0F) scaling->factor = (double)p->scale;
    else if (p->scaling != LLAMITA_ROPE_MODEL && !(scaling->factor > 1.0))
        REFUSE("rope_scale: expected a number with rope_scaling %s, as the model has none, found 0", NAMES[p->scaling]);
    if (p->freq_base != 0.0F) scaling->base = (double)p->freq_base;
    if (p->yarn_orig_ctx != 0) scaling->original_context = p->yarn_orig_ctx;
    const int32_t own = model->info.context_tokens;
    const double scaled = scaling->original_context * scaling->factor;
    *max_context = MAX_CONTEXT;
    if (scaling->type != ROPE_NONE && p->freq_base == 0.0F && scaled < MAX_CONTEXT)
        *max_context = scaled > own ? (int32_t)scaled : own;
    return LLAMITA_OK;
}
