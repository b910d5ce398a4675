/* test_tensor_type.c: hand-made blocks of every type check each field, its place and its
 * extremes. */
#include <math.h>

#include "check.h"
#include "kernels/tensor_type.h"

enum { MAX_BYTES = 256, MAX_ELEMENTS = 256, END = -1 };

typedef struct {
    int offset, value; /* END ends the list */
} byte_set;

/* A block of zeros except for these bytes, and the expected value of one element, bit for bit (-0
 * and 0 compare equal). */
typedef struct {
    tensor_type type;
    int element;
    float expected;
    byte_set bytes[8];
} block_case;

/* Halves: 0x3c00 is 1, 0xc000 is -2, 0x0001 is 2^-24, 0x7bff is 65504. */
#define ONE(offset) {(offset) + 1, 0x3c}
#define MINUS_TWO(offset) {(offset) + 1, 0xc0}
#define LAST {END, 0}

static const block_case cases[] = {
    {TENSOR_F32, 0, 1.0F, {{2, 0x80}, {3, 0x3f}, LAST}},
    {TENSOR_F16, 0, -2.0F, {MINUS_TWO(0), LAST}},
    {TENSOR_BF16, 0, 1.0F, {{0, 0x80}, {1, 0x3f}, LAST}},
    {TENSOR_Q8_0, 0, 127.0F, {ONE(0), {2, 0x7f}, LAST}},
    {TENSOR_Q8_0, 31, 256.0F, {MINUS_TWO(0), {33, 0x80}, LAST}},
    {TENSOR_Q8_0, 31, 0x1p-24F, {{0, 1}, {33, 1}, LAST}},
    {TENSOR_Q4_0, 0, -8.0F, {ONE(0), LAST}},
    {TENSOR_Q4_0, 15, 7.0F, {ONE(0), {17, 0x0f}, LAST}},
    {TENSOR_Q4_0, 16, 7.0F, {ONE(0), {2, 0xf0}, LAST}},
    {TENSOR_Q4_0, 31, -14.0F, {MINUS_TWO(0), {17, 0xf0}, LAST}},
    {TENSOR_Q4_1, 0, -2.0F, {ONE(0), MINUS_TWO(2), LAST}},
    {TENSOR_Q4_1, 15, 13.0F, {ONE(0), MINUS_TWO(2), {19, 0x0f}, LAST}},
    {TENSOR_Q4_1, 16, 3.0F, {ONE(0), MINUS_TWO(2), {4, 0x50}, LAST}},
    {TENSOR_Q5_0, 0, -16.0F, {ONE(0), LAST}},
    {TENSOR_Q5_0, 0, 15.0F, {ONE(0), {2, 0x01}, {6, 0x0f}, LAST}},
    {TENSOR_Q5_0, 15, 0.0F, {ONE(0), {3, 0x80}, LAST}},
    {TENSOR_Q5_0, 16, 1.0F, {ONE(0), {4, 0x01}, {6, 0x10}, LAST}},
    {TENSOR_Q5_0, 31, 15.0F, {ONE(0), {5, 0x80}, {21, 0xf0}, LAST}},
    {TENSOR_Q5_1, 0, 29.0F, {ONE(0), MINUS_TWO(2), {4, 0x01}, {8, 0x0f}, LAST}},
    {TENSOR_Q5_1, 31, 29.0F, {ONE(0), MINUS_TWO(2), {7, 0x80}, {23, 0xf0}, LAST}},
    {TENSOR_IQ4_NL, 0, -127.0F, {ONE(0), LAST}},
    {TENSOR_IQ4_NL, 15, 113.0F, {ONE(0), {17, 0x0f}, LAST}},
    {TENSOR_IQ4_NL, 16, 1.0F, {ONE(0), {2, 0x80}, LAST}},
    {TENSOR_MXFP4, 0, 6.0F, {{0, 127}, {1, 0x07}, LAST}},
    {TENSOR_MXFP4, 31, -0.5F, {{0, 127}, {16, 0x90}, LAST}},
    {TENSOR_MXFP4, 0, 0x1p-128F, {{0, 0}, {1, 0x01}, LAST}},
    {TENSOR_MXFP4, 0, 0x1p-126F, {{0, 1}, {1, 0x02}, LAST}},
    {TENSOR_MXFP4, 0, 0x1p127F, {{0, 254}, {1, 0x02}, LAST}},
    /* d at 80, scale of minima at 82 */
    {TENSOR_Q2_K, 0, 45.0F, {ONE(80), {0, 0x0f}, {16, 0x03}, LAST}},
    {TENSOR_Q2_K, 17, 2.0F - 5.0F, {ONE(80), ONE(82), {1, 0x52}, {33, 0x01}, LAST}},
    {TENSOR_Q2_K, 127, 6.0F, {ONE(80), {7, 0x02}, {47, 0xc0}, LAST}},
    {TENSOR_Q2_K, 255, 6.0F + 30.0F, {ONE(80), MINUS_TWO(82), {15, 0xf2}, {79, 0xc0}, LAST}},
    /* scales at 96, d at 108; a scale of 0 is -32, a code of 0 is -4 */
    {TENSOR_Q3_K, 0, 128.0F, {ONE(108), LAST}},
    {TENSOR_Q3_K, 0, 3.0F * 31.0F, {ONE(108), {0, 0x01}, {32, 0x03}, {96, 0x0f}, {104, 0x03}, LAST}},
    {TENSOR_Q3_K, 127, -4.0F * -17.0F, {ONE(108), {103, 0x0f}, LAST}},
    {TENSOR_Q3_K, 128, -1.0F * -16.0F, {ONE(108), {64, 0x03}, {104, 0x10}, LAST}},
    {TENSOR_Q3_K, 255, 2.0F * 1.0F, {ONE(108), {31, 0x80}, {95, 0x80}, {103, 0x10}, {107, 0x80}, LAST}},
    /* scales at 4 */
    {TENSOR_Q4_K, 0, 15.0F * 63.0F, {ONE(0), {4, 0x3f}, {16, 0x0f}, LAST}},
    {TENSOR_Q4_K, 32, 15.0F - 63.0F, {ONE(0), ONE(2), {5, 0x01}, {9, 0x3f}, {16, 0xf0}, LAST}},
    {TENSOR_Q4_K, 128, 63.0F, {ONE(0), {4, 0xc0}, {12, 0x0f}, {80, 0x01}, LAST}},
    {TENSOR_Q4_K, 255, -9.0F * 62.0F, {MINUS_TWO(0), {7, 0x40}, {15, 0x0f}, {143, 0x90}, LAST}},
    {TENSOR_Q4_K, 255, -63.0F, {ONE(2), {11, 0xc0}, {15, 0xf0}, LAST}},
    {TENSOR_Q5_K, 0, 31.0F * 63.0F, {ONE(0), {4, 0x3f}, {16, 0x01}, {48, 0x0f}, LAST}},
    {TENSOR_Q5_K, 255, 31.0F * 63.0F, {ONE(0), {7, 0xc0}, {15, 0x0f}, {47, 0x80}, {175, 0xf0}, LAST}},
    {TENSOR_Q5_K, 63, -2.0F * 7.0F, {ONE(2), {9, 0x0e}, {0, 0}, LAST}},
    /* high bits at 128, scales at 192, d at 208; a code of 0 is -32 */
    {TENSOR_Q6_K, 0, -32.0F * 127.0F, {ONE(208), {192, 0x7f}, LAST}},
    {TENSOR_Q6_K, 31, 31.0F * -128.0F, {ONE(208), {31, 0x0f}, {159, 0x03}, {193, 0x80}, LAST}},
    {TENSOR_Q6_K, 64, -31.0F, {ONE(208), {0, 0x10}, {196, 0x01}, LAST}},
    {TENSOR_Q6_K, 128, 16.0F, {ONE(208), {160, 0x03}, {200, 0x01}, LAST}},
    {TENSOR_Q6_K, 255, 31.0F * 2.0F, {ONE(208), {127, 0xf0}, {191, 0xc0}, {207, 0x02}, LAST}},
    /* scales: upper bits at 2, lower at 4; a scale of 0 is -32 */
    {TENSOR_IQ4_XS, 0, -127.0F * -32.0F, {ONE(0), LAST}},
    {TENSOR_IQ4_XS, 31, 113.0F * 31.0F, {ONE(0), {2, 0x03}, {4, 0x0f}, {23, 0xf0}, LAST}},
    {TENSOR_IQ4_XS, 255, 113.0F * 31.0F, {ONE(0), {3, 0xc0}, {7, 0xf0}, {135, 0xf0}, LAST}},
    {TENSOR_IQ4_XS, 128, 1.0F * -16.0F, {ONE(0), {3, 0x01}, {72, 0x08}, LAST}},
    /* digits: 1 = floor(86 * 3 / 256), 2 = floor(171 * 3 / 256); d at 52 */
    {TENSOR_TQ1_0, 0, 0.0F, {ONE(52), {0, 86}, LAST}},
    {TENSOR_TQ1_0, 31, 1.0F, {ONE(52), {31, 171}, LAST}},
    {TENSOR_TQ1_0, 159, 1.0F, {ONE(52), {31, 255}, LAST}},
    {TENSOR_TQ1_0, 239, 1.0F, {ONE(52), {47, 255}, LAST}},
    {TENSOR_TQ1_0, 255, 1.0F, {ONE(52), {51, 255}, LAST}},
    {TENSOR_TQ1_0, 160, -1.0F, {ONE(52), LAST}},
    {TENSOR_TQ2_0, 0, -1.0F, {ONE(64), LAST}},
    {TENSOR_TQ2_0, 127, -4.0F, {MINUS_TWO(64), {31, 0xc0}, LAST}},
    {TENSOR_TQ2_0, 160, 1.0F, {ONE(64), {32, 0x08}, LAST}},
};

static void test_cases(void) {
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        const block_case *this = &cases[c];
        int64_t elements = 0;
        size_t num_bytes = 0;
        const char *name = "";
        uint8_t block[MAX_BYTES] = {0};
        float values[MAX_ELEMENTS];
        CHECK(tensor_type_blocks(this->type, &elements, &num_bytes, &name), "type %d is not supported",
              (int)this->type);
        for (const byte_set *set = this->bytes; set->offset != END; set++) {
            CHECK((size_t)set->offset < num_bytes, "case %zu: byte %d of %zu", c, set->offset, num_bytes);
            block[set->offset] = (uint8_t)set->value;
        }
        tensor_type_dequantize(this->type)(block, elements, values);
        CHECK(values[this->element] == this->expected, "case %zu: element %d of %s: expected %g, found %g", c,
              this->element, name, (double)this->expected, (double)values[this->element]);
    }
}

/* Every 16-bit float, compared with a slow computation. */
static void test_halves(void) {
    for (unsigned bits = 0; bits < 65536; bits++) {
        const uint16_t half = (uint16_t)bits;
        const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
        float expected = (float)ldexp(exponent ? mantissa + 1024 : mantissa, (exponent ? exponent : 1) - 25);
        expected = exponent == 31 ? (mantissa ? NAN : INFINITY) : expected;
        float found, bfloat;
        tensor_type_dequantize(TENSOR_F16)(&half, 1, &found);
        CHECK(isnan(expected) ? isnan(found) : fabsf(found) == expected, "half %04x: %g", bits, (double)found);
        CHECK(!signbit(found) == !(bits >> 15), "half %04x: its sign", bits);
        tensor_type_dequantize(TENSOR_BF16)(&half, 1, &bfloat);
        CHECK(bits_from_float(bfloat) == (uint32_t)bits << 16, "bfloat %04x: %g", bits, (double)bfloat);
    }
}

/* Blocks follow each other without gaps, at any address, and nothing is written past the row. */
static void test_rows(void) {
    for (int number = 0; number < 256; number++) {
        const tensor_type type = (tensor_type)number;
        int64_t elements = 0;
        size_t num_bytes = 0;
        const char *name = NULL;
        if (!tensor_type_blocks(type, &elements, &num_bytes, &name)) {
            CHECK(tensor_type_dequantize(type) == NULL && !tensor_type_is_quantized(type), "type %d", number);
            continue;
        }
        CHECK(name && number < TENSOR_TYPES_END, "type %d", number);
        CHECK(tensor_type_is_quantized(type) == (elements > 1), "%s", name);
        uint8_t rows[1 + 3 * MAX_BYTES];
        float alone[3 * MAX_ELEMENTS], together[3 * MAX_ELEMENTS + 1];
        /* Bytes that are finite in every format. */
        for (size_t i = 0; i < sizeof rows; i++) rows[i] = (uint8_t)(i * 37 % 59);
        for (int b = 0; b < 3; b++) {
            uint8_t block[MAX_BYTES];
            memcpy(block, rows + 1 + (size_t)b * num_bytes, num_bytes);
            tensor_type_dequantize(type)(block, elements, alone + b * elements);
        }
        together[3 * elements] = 12345.0F;
        tensor_type_dequantize(type)(rows + 1, 3 * elements, together);
        CHECK(memcmp(alone, together, (size_t)(3 * elements) * sizeof(float)) == 0, "%s: blocks depend on each other",
              name);
        CHECK(together[3 * elements] == 12345.0F, "%s: it writes past its row", name);
    }
    CHECK(tensor_type_dequantize((tensor_type)-1) == NULL, "type -1");
}

int main(void) {
    test_cases();
    test_halves();
    test_rows();
    return check_failures();
}
