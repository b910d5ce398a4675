/* model_check.h: validates sizes and weights and computes RoPE frequencies, for every model
 * format. */
#ifndef LLAMITA_MODEL_CHECK_H
#define LLAMITA_MODEL_CHECK_H

#include "formats/reader.h"
#include "model/model.h"

/* Checks that the sizes in info describe a Llama and fit the engine's integers. */
llamita_status model_check_shape(const llamita_model *model, const reader *from);

/* Refuses NaN and infinities. name: the name of the tensor, for the message. */
llamita_status model_check_finite(const reader *from, const char *name, const float *values, int64_t length);

/* Fills rope_frequency[S/2] from info.rope_theta. Divides every angle by scale, and by
 * divisors[S/2] unless they are NULL. The model owns the result. */
llamita_status model_fill_rope(llamita_model *model, const reader *from, double scale, const float *divisors);

/* The error if model_read fails. */
llamita_status model_cut_error(const reader *from);

#endif
