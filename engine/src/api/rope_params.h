/* rope_params.h: the RoPE parameters of a session. */
#ifndef LLAMITA_API_ROPE_PARAMS_H
#define LLAMITA_API_ROPE_PARAMS_H

#include "llamita.h"
#include "model/rope.h"

/* True if any of them differs from the model's. */
bool rope_params_given(const llamita_rope_params *params);

/* The model's scaling with these parameters in place of its own, and the largest context of a session
 * with them. */
llamita_status rope_params_apply(const llamita_model *model, const llamita_rope_params *params, rope_scaling *scaling,
                                 int32_t *max_context, llamita_error *error);

#endif
