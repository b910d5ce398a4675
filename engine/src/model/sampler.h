/* sampler.h: what the engine needs of a sampler beyond llamita.h. */
#ifndef LLAMITA_SAMPLER_H
#define LLAMITA_SAMPLER_H

#include "llamita.h"

int32_t sampler_vocab_size(const llamita_sampler *sampler);

#endif
