/* tensor_type.h: GGUF's tensor types: sizes of their blocks, and any row of them to floats.
 *
 * The types whose codes index tables of vectors (IQ1_*, IQ2_*, IQ3_*) are not here: their grids are kilobytes of data
 * that nothing else needs. gguf.c refuses them by name.
 */
#ifndef LLAMITA_TENSOR_TYPE_H
#define LLAMITA_TENSOR_TYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/float_math.h"

/* GGUF's numbers. */
typedef enum {
    TENSOR_F32 = 0,
    TENSOR_F16 = 1,
    TENSOR_Q4_0 = 2,
    TENSOR_Q4_1 = 3,
    TENSOR_Q5_0 = 6,
    TENSOR_Q5_1 = 7,
    TENSOR_Q8_0 = 8,
    TENSOR_Q2_K = 10,
    TENSOR_Q3_K = 11,
    TENSOR_Q4_K = 12,
    TENSOR_Q5_K = 13,
    TENSOR_Q6_K = 14,
    TENSOR_IQ4_NL = 20,
    TENSOR_IQ4_XS = 23,
    TENSOR_BF16 = 30,
    TENSOR_TQ1_0 = 34,
    TENSOR_TQ2_0 = 35,
    TENSOR_MXFP4 = 39,
    TENSOR_TYPES_END /* every number is below */
} tensor_type;

/* Sizes of a type: elements and bytes of one block; false if the engine does not read it. */
bool tensor_type_blocks(tensor_type type, int64_t *block_elements, size_t *block_bytes, const char **name);

/* Are its elements codes with a shared scale, rather than floats of their own? False for what is not read. */
bool tensor_type_is_quantized(tensor_type type);

/* A row of length elements, a multiple of the type's block, to floats. The row may lie at any address. The values are
 * those of ggml's reference, bit for bit: one product d * scale first where a block has both, then times the code, then
 * minus the product of the minimum's scale and code. Nothing is fused. */
typedef void dequantize_function(const void *row, int64_t length, float *out);

/* Never NULL for a type that tensor_type_blocks accepts. */
dequantize_function *tensor_type_dequantize(tensor_type type);

dequantize_function dequantize_f16, dequantize_bf16;

#endif
