/* sampler.h: what the engine needs of a sampler beyond llamita.h. */
#ifndef LLAMITA_SAMPLER_H
#define LLAMITA_SAMPLER_H

#include "llamita.h"

/* The logit of a token that must not come: its weight is 0. Penalties leave other logits far above. */
#define FORBIDDEN_LOGIT (-1e30f)

int32_t sampler_vocab_size(const llamita_sampler *sampler);

#endif
