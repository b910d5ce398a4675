/* model_check.h: validates sizes and weights and computes RoPE frequencies, for every model
 * format. */
#ifndef LLAMITA_MODEL_CHECK_H
#define LLAMITA_MODEL_CHECK_H

#include "formats/reader.h"
#include "model/model.h"

/* Checks that the sizes in info describe a model and fit the engine's integers. */
llamita_status model_check_shape(const llamita_model *model, const reader *from);

/* Refuses NaN and infinities. name: the name of the tensor, for the message. */
llamita_status model_check_finite(const reader *from, const char *name, const float *values, int64_t length);

typedef struct {
    double factor;         /* divides every angle; with yarn, only those that turn slowly */
    const float *divisors; /* [S/2], divide the angles too; may be NULL */
    bool is_yarn;
    double original_context, beta_fast, beta_slow; /* yarn */
} rope_scaling;

/* Computes the angle per position of every pair, frequency[S/2], from info.rope_theta. The model
 * owns the result. */
llamita_status model_fill_rope(llamita_model *model, const reader *from, const rope_scaling *scaling,
                               const float **frequency);

/* The error if model_read fails. */
llamita_status model_cut_error(const reader *from);

#endif
