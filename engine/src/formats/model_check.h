/* model_check.h: checks of sizes and weights, and the RoPE table, for every format of model files. */
#ifndef LLAMITA_MODEL_CHECK_H
#define LLAMITA_MODEL_CHECK_H

#include "formats/reader.h"
#include "model/model.h"

/* Checks the sizes in info: do they make a Llama, and one whose sizes fit the engine's integers? */
llamita_status model_check_shape(const llamita_model *model, const reader *from);

/* Refuses NaN and infinities. name: the tensor's, for the message. */
llamita_status model_check_finite(const reader *from, const char *name, const float *values, int64_t length);

/* Fills rope_frequency[S/2] from info.rope_theta; every angle is divided by scale, and by divisors[S/2] unless NULL. */
llamita_status model_fill_rope(llamita_model *model, const reader *from, double scale, const float *divisors);

#endif
