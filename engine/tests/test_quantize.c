/* test_quantize.c: all implementations write the same bytes, errors stay within bounds, and what
 * cannot be stored is rejected. */
#include <math.h>

#include "check.h"
#include "kernels/quantize.h"
#include "llamita.h"

enum { ROWS = 13, LENGTH = 512, MAX_BYTES = ROWS * LENGTH * 2 };

static const tensor_type written[] = {TENSOR_Q8_0, TENSOR_Q4_0, TENSOR_Q5_0, TENSOR_Q4_1,
                                      TENSOR_Q5_1, TENSOR_Q4_K, TENSOR_Q5_K, TENSOR_Q6_K};
enum { NUM_WRITTEN = sizeof written / sizeof written[0] };

static uint64_t state = 12345;

/* Uniform in [-1, 1). */
static float uniform(void) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (float)(int32_t)(state >> 32) * 0x1p-31F;
}

/* Rows of many kinds: sizes from 1e-9 to 1e3, outliers, zeros, constants, one sign only. */
static void fill(float *values) {
    for (int r = 0; r < ROWS; r++) {
        const float size = powf(10.0F, (float)(r % 5) - 3.0F);
        for (int k = 0; k < LENGTH; k++) {
            float *value = &values[r * LENGTH + k];
            *value = size * (uniform() + uniform() + uniform());
            if (r == 1 && k % 3) *value = 0.0F;
            if (r == 2) *value = 0.0F;
            if (r == 3) *value = -3.5F;
            if (r == 4) *value = fabsf(*value);
            if (r == 5) *value = -fabsf(*value) - size;
            if (r == 6 && k % 50 == 7) *value *= 40.0F;
            if (r == 7) *value *= 1e-6F;
            if (r == 8) *value *= k < LENGTH / 2 ? 1e-30F : 1e-35F;
        }
    }
}

static size_t bytes_of(tensor_type type, int64_t num_elements, const char **name) {
    int64_t block_elements = 1;
    size_t block_bytes = 0;
    CHECK(tensor_type_blocks(type, &block_elements, &block_bytes, name), "type %d", (int)type);
    return (size_t)(num_elements / block_elements) * block_bytes;
}

static quantize_function *function_of(const quantize_table *table, tensor_type type) {
    switch (type) {
    case TENSOR_Q8_0: return table->q8_0;
    case TENSOR_Q4_0: return table->q4_0;
    case TENSOR_Q5_0: return table->q5_0;
    case TENSOR_Q4_1: return table->q4_1;
    case TENSOR_Q5_1: return table->q5_1;
    case TENSOR_Q4_K: return table->q4_k;
    case TENSOR_Q5_K: return table->q5_k;
    default: return table->q6_k;
    }
}

/* The selected implementation, the plain one, and one row at a time. */
static void test_same_bytes(void) {
    static float values[ROWS * LENGTH];
    static uint8_t together[MAX_BYTES], plain[MAX_BYTES], single[MAX_BYTES];
    fill(values);
    for (int t = 0; t < NUM_WRITTEN; t++) {
        const char *name;
        const size_t num_bytes = bytes_of(written[t], ROWS * LENGTH, &name), row_bytes = num_bytes / ROWS;
        int64_t block_elements = 1;
        size_t block_bytes;
        tensor_type_blocks(written[t], &block_elements, &block_bytes, &name);
        CHECK(llamita_quantize(name, values, LENGTH, ROWS, together, num_bytes, NULL, NULL) == LLAMITA_OK, "%s", name);
        function_of(&quantize_plain, written[t])(values, ROWS * LENGTH / block_elements, plain);
        CHECK(memcmp(together, plain, num_bytes) == 0, "%s: the implementations differ", name);
        for (int r = 0; r < ROWS; r++) {
            uint8_t *out = single + (size_t)r * row_bytes;
            llamita_quantize(name, values + r * LENGTH, LENGTH, 1, out, row_bytes, NULL, NULL);
        }
        CHECK(memcmp(together, single, num_bytes) == 0, "%s: a row's bytes depend on other rows", name);
        for (int64_t blocks = 1; blocks < 12; blocks++) { /* fewer than eight at once, and more */
            if (blocks * block_elements > ROWS * LENGTH) break;
            const size_t size = (size_t)blocks * block_bytes;
            single[size] = 0xa5;
            llamita_quantize(name, values, blocks * block_elements, 1, single, size, NULL, NULL);
            CHECK(memcmp(together, single, size) == 0, "%s: %d blocks", name, (int)blocks);
            CHECK(single[size] == 0xa5, "%s: it writes past %d blocks", name, (int)blocks);
        }
    }
}

/* Root mean square error of a row, relative to that of its values. */
static double relative_error(tensor_type type, const float *values, const uint8_t *bytes, size_t row_bytes, int row) {
    float decoded[LENGTH];
    double error = 0.0, power = 0.0;
    tensor_type_dequantize(type)(bytes + (size_t)row * row_bytes, LENGTH, decoded);
    for (int k = 0; k < LENGTH; k++) {
        const double difference = (double)decoded[k] - (double)values[row * LENGTH + k];
        error += difference * difference;
        power += (double)values[row * LENGTH + k] * (double)values[row * LENGTH + k];
    }
    return power > 0.0 ? sqrt(error / power) : sqrt(error);
}

static void test_errors(void) {
    static float values[ROWS * LENGTH], decoded[ROWS * LENGTH];
    static uint8_t bytes[MAX_BYTES];
    static const double bounds[NUM_WRITTEN] = {0.006, 0.1, 0.05, 0.08, 0.04, 0.08, 0.04, 0.025};
    fill(values);
    for (int t = 0; t < NUM_WRITTEN; t++) {
        const char *name;
        const size_t num_bytes = bytes_of(written[t], ROWS * LENGTH, &name);
        double reported = -1.0, found = 0.0;
        CHECK(llamita_quantize(name, values, LENGTH, ROWS, bytes, num_bytes, &reported, NULL) == LLAMITA_OK, "%s",
              name);
        tensor_type_dequantize(written[t])(bytes, ROWS * LENGTH, decoded);
        for (int k = 0; k < ROWS * LENGTH; k++)
            found += ((double)decoded[k] - (double)values[k]) * ((double)decoded[k] - (double)values[k]);
        CHECK(fabs(reported - found) <= 1e-3 * found, "%s: squared error %g, reported %g", name, found, reported);
        for (int r = 0; r < ROWS; r++) {
            const double error = relative_error(written[t], values, bytes, num_bytes / ROWS, r);
            /* Rows 7 and 8 are below the steps of 16-bit floats, row 6 has outliers. */
            const double bound = r == 7 || r == 8 ? 2.2 : r == 6 ? 3.0 * bounds[t] : bounds[t];
            CHECK(error <= bound * (1 + 1e-6), "%s, row %d: relative error %g", name, r, error);
        }
        CHECK(relative_error(written[t], values, bytes, num_bytes / ROWS, 2) == 0.0, "%s: zeros", name);
    }
}

/* Values that a type stores exactly come back unchanged, or nearly so. */
static void test_again(void) {
    static float values[ROWS * LENGTH], decoded[ROWS * LENGTH];
    static uint8_t bytes[MAX_BYTES];
    fill(values);
    for (int t = 0; t < NUM_WRITTEN; t++) {
        const char *name;
        const size_t num_bytes = bytes_of(written[t], ROWS * LENGTH, &name);
        llamita_quantize(name, values, LENGTH, ROWS, bytes, num_bytes, NULL, NULL);
        tensor_type_dequantize(written[t])(bytes, ROWS * LENGTH, decoded);
        llamita_quantize(name, decoded, LENGTH, ROWS, bytes, num_bytes, NULL, NULL);
        for (int r = 0; r < ROWS; r++) {
            if (r == 7 || r == 8) continue; /* their scales are subnormal */
            const double error = relative_error(written[t], decoded, bytes, num_bytes / ROWS, r);
            CHECK(error < 0.02, "%s, row %d: quantizing again loses %g", name, r, error);
        }
    }
}

/* Rounding to the nearest half, for every float near the middle between two halves. */
static void test_half_from_float(void) {
    for (uint32_t half = 0; half < 0x7c00; half++) {
        const uint16_t low = (uint16_t)half, high = (uint16_t)(half + 1);
        const float a = float_from_half(&low), b = half + 1 < 0x7c00 ? float_from_half(&high) : 65536.0F;
        const float middle = a + (b - a) / 2;
        CHECK(half_from_float(a) == half && half_from_float(-a) == (half | 0x8000), "%g", (double)a);
        CHECK(half_from_float(middle) == (half % 2 ? half + 1 : half), "%g", (double)middle);
        CHECK(half_from_float(nextafterf(middle, b)) == half + 1, "above %g", (double)middle);
        CHECK(half_from_float(nextafterf(middle, a)) == half, "below %g", (double)middle);
    }
    CHECK(half_from_float(3e38F) == 0x7c00 && half_from_float(-INFINITY) == 0xfc00, "infinity");
}

static void check_rejected(const char *what, const char *type, float *values, int64_t row_length, int64_t num_rows,
                           size_t out_bytes, llamita_status expected) {
    static uint8_t out[MAX_BYTES];
    llamita_error error = {0};
    const llamita_status status = llamita_quantize(type, values, row_length, num_rows, out, out_bytes, NULL, &error);
    CHECK(status == expected && strstr(error.message, what), "status %d: %s", (int)status, error.message);
}

static void test_rejections(void) {
    static float values[ROWS * LENGTH];
    const size_t room = MAX_BYTES;
    fill(values);
    check_rejected("found Q2_K", "Q2_K", values, LENGTH, ROWS, room, LLAMITA_ERROR_ARGUMENT);
    check_rejected("found F32", "F32", values, LENGTH, ROWS, room, LLAMITA_ERROR_ARGUMENT);
    check_rejected("found none", NULL, values, LENGTH, ROWS, room, LLAMITA_ERROR_ARGUMENT);
    check_rejected("a row length that is a multiple of 256, found 1 rows of 288", "Q6_K", values, 288, 1, room,
                   LLAMITA_ERROR_ARGUMENT);
    check_rejected("found -1 rows", "Q4_0", values, 32, -1, room, LLAMITA_ERROR_ARGUMENT);
    check_rejected("an output buffer for 2 rows of 34 bytes, found 67 bytes", "Q8_0", values, 32, 2, 67,
                   LLAMITA_ERROR_ARGUMENT);
    for (int t = 0; t < NUM_WRITTEN; t++) {
        static const float bad[] = {NAN, INFINITY, -INFINITY, 1e30F};
        const char *name;
        bytes_of(written[t], 0, &name);
        for (int b = 0; b < 4; b++) {
            values[11 * LENGTH + 500] = bad[b];
            check_rejected("row 11, position 500: expected", name, values, LENGTH, ROWS, room, LLAMITA_ERROR_NUMERIC);
            check_rejected(b < 3 ? "expected finite numbers" : "use F32", name, values, LENGTH, ROWS, room,
                           LLAMITA_ERROR_NUMERIC);
        }
        values[11 * LENGTH + 500] = 65504.0F; /* the largest value that all types can store */
        static uint8_t out[MAX_BYTES];
        static float decoded[ROWS * LENGTH];
        const size_t num_bytes = bytes_of(written[t], ROWS * LENGTH, &name);
        CHECK(llamita_quantize(name, values, LENGTH, ROWS, out, num_bytes, NULL, NULL) == LLAMITA_OK, "%s", name);
        tensor_type_dequantize(written[t])(out, ROWS * LENGTH, decoded);
        for (int k = 0; k < ROWS * LENGTH; k++) CHECK(isfinite(decoded[k]), "%s, number %d", name, k);
    }
    CHECK(llamita_quantize("Q4_0", NULL, 0, 0, NULL, 0, NULL, NULL) == LLAMITA_OK, "nothing");
}

int main(void) {
    test_same_bytes();
    test_errors();
    test_again();
    test_half_from_float();
    test_rejections();
    return check_failures();
}
