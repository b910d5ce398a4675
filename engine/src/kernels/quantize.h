/* quantize.h: rows of floats to the blocks of a tensor type: what quantize.c chooses between. */
#ifndef LLAMITA_QUANTIZE_H
#define LLAMITA_QUANTIZE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/tensor_type.h"

/* num_blocks consecutive blocks of finite values, none larger than the type's largest (quantize.c). Returns the sum of
 * (stored - value)^2. */
typedef double quantize_function(const float *values, int64_t num_blocks, uint8_t *out);

/* The same bytes from both. */
typedef struct {
    quantize_function *q8_0, *q4_0, *q5_0, *q4_1, *q5_1, *q4_k, *q5_k, *q6_k;
} quantize_table;

extern const quantize_table quantize_plain;
#if defined(__x86_64__)
extern const quantize_table quantize_avx2;
#endif

#endif
