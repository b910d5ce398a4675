/* quantize.h: the table of quantizers that quantize.c selects from, one per tensor type. */
#ifndef LLAMITA_QUANTIZE_H
#define LLAMITA_QUANTIZE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/tensor_type.h"

/* Quantizes num_blocks consecutive blocks of finite values within the type's limit
 * (QUANTIZED_TYPES) to `out`, the caller's memory. Returns the sum of (stored - value)^2. */
typedef double quantize_function(const float *values, int64_t num_blocks, uint8_t *out);

/* Both tables write the same bytes. */
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
