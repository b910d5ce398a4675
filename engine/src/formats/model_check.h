/* model_check.h: validates sizes, weights and RoPE scalings, for every model format. */
#ifndef LLAMITA_MODEL_CHECK_H
#define LLAMITA_MODEL_CHECK_H

#include "formats/reader.h"
#include "model/model.h"

/* Checks that the sizes in info describe a model and fit the engine's integers. */
llamita_status model_check_shape(const llamita_model *model, const reader *from);

/* Refuses NaN and infinities. name: the name of the tensor, for the message. */
llamita_status model_check_finite(const reader *from, const char *name, const float *values, int64_t length);

/* Computes the angle per position of every pair, frequency[S/2]. The model owns the result. */
llamita_status model_fill_rope(llamita_model *model, const reader *from, const rope_scaling *scaling,
                               const float **frequency);

/* The error if model_read fails. */
llamita_status model_cut_error(const reader *from);

#endif
