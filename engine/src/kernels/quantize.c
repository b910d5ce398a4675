/* quantize.c: quantizes rows of floats: selects the implementation and rejects what a type cannot
 * store. */
#include "kernels/quantize.h"

#include <inttypes.h>

#include "kernels/kernels.h"
#include "llamita.h"
#include "runtime/error.h"

/* A type that can be written. Magnitudes up to `largest` give finite 16-bit scales. */
typedef struct {
    tensor_type type;
    float largest;
    quantize_function *quantize;
} written_type;

enum { CHUNK_ELEMENTS = 1 << 15 };

static const quantize_table *fastest(void) {
#if defined(__x86_64__)
    if (kernels_select("avx2")) return &quantize_avx2;
#endif
    return &quantize_plain;
}

static bool find_written(const char *name, written_type *out) {
    const quantize_table *table = fastest();
#define FIND(type_name, suffix, largest)                                   \
    if (name && strcmp(name, #type_name) == 0) {                           \
        *out = (written_type){TENSOR_##type_name, largest, table->suffix}; \
        return true;                                                       \
    }
    QUANTIZED_TYPES(FIND)
#undef FIND
    return false;
}

/* Magnitudes compare as integers: NaN > infinity > finite values. */
static int32_t largest_magnitude(const float *values, int64_t length) {
    int32_t largest = 0;
    for (int64_t i = 0; i < length; i++) {
        const int32_t magnitude = (int32_t)(bits_from_float(values[i]) & 0x7fffffffu);
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

/* Reports the first number that the type cannot store. These rows contain one; the first of them is
 * first_row. */
static llamita_status reject_number(const written_type *to, const char *type, const float *rows, int64_t row_length,
                                    int64_t first_row, llamita_error *error) {
    int64_t at = 0;
    const int32_t limit = (int32_t)bits_from_float(to->largest);
    while (largest_magnitude(rows + at, 1) <= limit) at++;
    const bool not_finite = largest_magnitude(rows + at, 1) >= 0x7f800000;
    return error_set(error, LLAMITA_ERROR_NUMERIC,
                     "cannot quantize to %s: row %" PRId64 ", position %" PRId64 ": expected %s, found %g; %s", type,
                     first_row + at / row_length, at % row_length,
                     not_finite ? "finite numbers" : "numbers within the range of 16-bit scales", (double)rows[at],
                     not_finite ? "the weights are damaged" : "use F32");
}

llamita_status llamita_quantize(const char *type, const float *values, int64_t row_length, int64_t num_rows, void *out,
                                size_t out_bytes, double *squared_error, llamita_error *error) {
#define NAME(name, suffix, largest) " " #name
    written_type to;
    if (!find_written(type, &to)) {
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot quantize: type: expected one of" QUANTIZED_TYPES(NAME) ", found %s",
                         type ? type : "none");
    }
#undef NAME
    int64_t block_elements = 1;
    size_t block_bytes = 0;
    const char *name;
    tensor_type_blocks(to.type, &block_elements, &block_bytes, &name);
    if (row_length < 0 || num_rows < 0 || row_length % block_elements != 0) {
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot quantize to %s: expected a row length that is a multiple of %d, found %" PRId64
                         " rows of %" PRId64 "; use F16",
                         name, (int)block_elements, num_rows, row_length);
    }
    const size_t row_bytes = (size_t)(row_length / block_elements) * block_bytes;
    if (row_bytes > 0 && out_bytes / row_bytes < (uint64_t)num_rows) {
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot quantize to %s: expected an output buffer for %" PRId64
                         " rows of %zu bytes, found %zu bytes",
                         name, num_rows, row_bytes, out_bytes);
    }
    double sum = 0.0;
    /* In chunks that stay in the cache between the check and the quantizer. */
    const int64_t max_rows = row_length > 0 ? CHUNK_ELEMENTS / row_length + 1 : num_rows;
    for (int64_t r = 0; row_bytes > 0 && r < num_rows; r += max_rows) {
        const int64_t rows = num_rows - r < max_rows ? num_rows - r : max_rows;
        const float *chunk = values + r * row_length;
        if (largest_magnitude(chunk, rows * row_length) > (int32_t)bits_from_float(to.largest))
            return reject_number(&to, name, chunk, row_length, r, error);
        sum += to.quantize(chunk, rows * row_length / block_elements, (uint8_t *)out + (size_t)r * row_bytes);
    }
    if (squared_error) *squared_error = sum;
    return LLAMITA_OK;
}
