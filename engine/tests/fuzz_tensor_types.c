/* fuzz_tensor_types.c: reads any bytes as floats to quantize, and as blocks to dequantize: numbers
 * that fit come back with the error that was promised, others are refused in one line. */
#include "fuzz.h"

enum { ROW = 256, MAX_ROWS = 4, FLOATS = ROW * MAX_ROWS };

static void check_quantized(const char *type, const float *values, int64_t num_rows) {
    llamita_tensor_type_info info = {0};
    for (size_t i = 0; llamita_tensor_type(i, &info) && strcmp(info.name, type) != 0;) i++;
    uint8_t blocks[FLOATS * 2];
    float back[FLOATS];
    double error_sum = -1;
    llamita_error error;
    const size_t num_bytes = (size_t)(num_rows * ROW / info.block_elements * info.block_bytes);
    const llamita_status status = llamita_quantize(type, values, ROW, num_rows, blocks, num_bytes, &error_sum, &error);
    bool finite = true;
    for (int64_t i = 0; i < num_rows * ROW; i++) finite &= isfinite(values[i]) != 0;
    CHECK(finite || status == LLAMITA_ERROR_NUMERIC, "%s: accepted what is not finite", type);
    if (!fuzz_succeeded(status, LLAMITA_ERROR_NUMERIC, &error)) return;
    CHECK(!llamita_dequantize(info.id, blocks, num_rows * ROW, back, &error), "%s", error.message);
    double found = 0;
    for (int64_t i = 0; i < num_rows * ROW; i++) {
        CHECK(isfinite(back[i]), "%s: value %d is %g", type, (int)i, (double)back[i]);
        found += ((double)back[i] - values[i]) * ((double)back[i] - values[i]);
    }
    CHECK(fabs(found - error_sum) <= 1e-3 * found + 1e-30, "%s: squared error %g, reported %g", type, found, error_sum);
}

static void use(const uint8_t *bytes, size_t num_bytes) {
    static const char *const types[] = {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"};
    float values[FLOATS] = {0};
    if (num_bytes > sizeof values) num_bytes = sizeof values;
    if (num_bytes) memcpy(values, bytes, num_bytes);
    const int64_t num_rows = (int64_t)(num_bytes + ROW * 4 - 1) / (ROW * 4);
    for (size_t i = 0; num_rows > 0 && i < sizeof types / sizeof *types; i++)
        check_quantized(types[i], values, num_rows);
    llamita_tensor_type_info info;
    llamita_error error;
    for (size_t i = 0; llamita_tensor_type(i, &info); i++) {
        const size_t num_blocks = num_bytes / (size_t)info.block_bytes;
        uint8_t *exact = malloc(num_blocks * (size_t)info.block_bytes + 1);
        float *out = malloc((num_blocks * (size_t)info.block_elements + 1) * sizeof *out);
        if (!exact || !out) abort();
        memcpy(exact, bytes ? bytes : (const uint8_t *)"", num_blocks * (size_t)info.block_bytes);
        const llamita_status status =
            llamita_dequantize(info.id, exact, (int64_t)num_blocks * info.block_elements, out, &error);
        CHECK(num_blocks == 0 || status == LLAMITA_OK, "%s: %s", info.name, error.message);
        free(exact);
        free(out);
    }
}

static buffer write_variant(uint64_t variant) {
    buffer file = {0};
    put_weights(&file, 1 + (size_t)(variant % FLOATS), (uint32_t)variant);
    return file;
}

/* Sets floats to extremes, scales a piece, or changes bytes. */
static void mutate(buffer *file, uint64_t *state) {
    const size_t num = file->num_bytes / 4;
    if (num == 0 || random_u64(state) % 4 == 0) {
        mutate_bytes(file, state);
        return;
    }
    const size_t at = random_up_to(state, num), length = random_up_to(state, 64) + 1;
    const uint32_t bits = random_float_bits(state);
    float factor, value;
    memcpy(&factor, &bits, sizeof factor);
    const uint64_t kind = random_u64(state) % 3;
    for (size_t i = at; i < num && i < at + (kind ? length : 1); i++) {
        memcpy(&value, file->bytes + 4 * i, sizeof value);
        value = kind == 1 ? value * factor : factor;
        memcpy(file->bytes + 4 * i, &value, sizeof value);
    }
}

FUZZ_TARGET(use, write_variant, mutate, 1500)
