/* dequantize_rows.c: `dequantize_rows TYPE LENGTH < rows > floats` converts rows of a tensor type
 * (its GGUF id) to float32. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/tensor_type.h"

static int fail(const char *what) {
    fprintf(stderr, "dequantize_rows: %s\n", what);
    return 2;
}

int main(int num_arguments, char **arguments) {
    if (num_arguments != 3) return fail("expected a tensor type and a row length");
    const tensor_type type = (tensor_type)strtoul(arguments[1], NULL, 10);
    const int64_t length = strtoll(arguments[2], NULL, 10);
    int64_t block_elements;
    size_t block_bytes;
    const char *name;
    if (!tensor_type_blocks(type, &block_elements, &block_bytes, &name)) return fail("unsupported tensor type");
    if (length < 1 || length > INT32_MAX || length % block_elements != 0)
        return fail("expected a row length that is a multiple of the block");
    const size_t row_bytes = (size_t)(length / block_elements) * block_bytes;
    /* An odd address, because nothing may rely on alignment. */
    char *memory = malloc(row_bytes + 1), *row = memory + 1;
    float *values = malloc((size_t)length * sizeof *values);
    if (!memory || !values) return fail("out of memory");
    size_t taken;
    while ((taken = fread(row, 1, row_bytes, stdin)) == row_bytes) {
        tensor_type_dequantize(type)(row, length, values);
        if (fwrite(values, sizeof *values, (size_t)length, stdout) != (size_t)length) return fail("cannot write");
    }
    free(values);
    free(memory);
    return taken == 0 ? 0 : fail("the last row is incomplete");
}
