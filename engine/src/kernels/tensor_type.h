/* tensor_type.h: GGUF's tensor types: block sizes and dequantization.
 *
 * The types whose codes index tables of vectors (IQ1_*, IQ2_*, IQ3_*) are not supported: their
 * tables are kilobytes of data that nothing else needs. gguf.c rejects them by name. */
#ifndef LLAMITA_TENSOR_TYPE_H
#define LLAMITA_TENSOR_TYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/float_math.h"

#define BLOCK_LENGTH 32 /* elements of a quantized block, of weights and of activations */
#define SUPER_LENGTH 256

/* clang-format off */
/* Every type that the engine reads, described once: name, function suffix, GGUF id, elements and
 * bytes of a block, and the panel format it is packed into without loss (panel.h). */
#define TENSOR_TYPES(X)                                                                            \
    X(F32, f32, 0, 1, 4, F32)                                                                      \
    X(F16, f16, 1, 1, 2, F16)                                                                      \
    X(Q4_0, q4_0, 2, BLOCK_LENGTH, 18, Q4_0)                                                       \
    X(Q4_1, q4_1, 3, BLOCK_LENGTH, 20, Q4_1)                                                       \
    X(Q5_0, q5_0, 6, BLOCK_LENGTH, 22, Q8_0)                                                       \
    X(Q5_1, q5_1, 7, BLOCK_LENGTH, 24, Q5_1)                                                       \
    X(Q8_0, q8_0, 8, BLOCK_LENGTH, 34, Q8_0)                                                       \
    X(Q2_K, q2_k, 10, SUPER_LENGTH, 84, F32)                                                       \
    X(Q3_K, q3_k, 11, SUPER_LENGTH, 110, Q6_K) /* fewer codes, the same scales */                  \
    X(Q4_K, q4_k, 12, SUPER_LENGTH, 144, Q4_K)                                                     \
    X(Q5_K, q5_k, 13, SUPER_LENGTH, 176, Q5_K)                                                     \
    X(Q6_K, q6_k, 14, SUPER_LENGTH, 210, Q6_K)                                                     \
    X(IQ4_NL, iq4_nl, 20, BLOCK_LENGTH, 18, Q8_0) /* int8 codes times a half */               \
    X(IQ4_XS, iq4_xs, 23, SUPER_LENGTH, 136, F32)                                                  \
    X(BF16, bf16, 30, 1, 2, BF16)                                                                  \
    X(TQ1_0, tq1_0, 34, SUPER_LENGTH, 54, Q8_0)                                                    \
    X(TQ2_0, tq2_0, 35, SUPER_LENGTH, 66, Q8_0)                                                    \
    X(MXFP4, mxfp4, 39, BLOCK_LENGTH, 17, BF16) /* four bits and a power of two */

/* The types that llamita_quantize writes: name, suffix, and the largest magnitude that gives finite
 * 16-bit scales. */
#define QUANTIZED_TYPES(X)                                                                         \
    X(Q8_0, q8_0, 127.0F * HALF_MAX)                                                               \
    X(Q4_0, q4_0, 8.0F * HALF_MAX)                                                                 \
    X(Q4_1, q4_1, HALF_MAX)                                                                        \
    X(Q5_0, q5_0, 16.0F * HALF_MAX)                                                                \
    X(Q5_1, q5_1, HALF_MAX)                                                                        \
    X(Q4_K, q4_k, 63.0F * HALF_MAX)                                                                \
    X(Q5_K, q5_k, 63.0F * HALF_MAX)                                                                \
    X(Q6_K, q6_k, 63.0F * HALF_MAX)
/* clang-format on */
#define HALF_MAX 65504.0F

#define TENSOR_ENUM(name, suffix, id, elements, bytes, panel) TENSOR_##name = id,
typedef enum { TENSOR_TYPES(TENSOR_ENUM) TENSOR_TYPES_END /* every id is below */ } tensor_type;
#undef TENSOR_ENUM

/* Stores the elements and bytes of a block, and the type's name (a static string). Returns false if
 * the engine does not read the type. */
bool tensor_type_blocks(tensor_type type, int64_t *block_elements, size_t *block_bytes, const char **name);

/* True if elements are codes with a shared scale rather than floats. False for types that are not
 * read. */
bool tensor_type_is_quantized(tensor_type type);

/* Converts a row of `length` elements, a multiple of the type's block, to floats. The row may be at
 * any address. The values are those of ggml's reference, bit for bit: the product d * scale first
 * where a block has both, then times the code, then minus the product of the minimum's scale and
 * code. Nothing is fused. */
typedef void dequantize_function(const void *row, int64_t length, float *out);

/* NULL only if tensor_type_blocks rejects the type. */
dequantize_function *tensor_type_dequantize(tensor_type type);

dequantize_function dequantize_f16, dequantize_bf16;

#endif
