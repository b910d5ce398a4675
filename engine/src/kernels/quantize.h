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
#define MEMBER(name, suffix, largest) quantize_function *suffix;
typedef struct {
    QUANTIZED_TYPES(MEMBER)
} quantize_table;
#undef MEMBER

extern const quantize_table quantize_plain;
#if defined(__x86_64__)
extern const quantize_table quantize_avx2;
#endif

#endif
