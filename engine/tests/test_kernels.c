/* test_kernels.c: every kernel against double arithmetic, against its own other tile shapes, and against the oracle. */
#include "random_model.h"

#include "exponential.h"

static const kernels *tables[2];
static int num_tables;

static matmul_kernel *kernel_of(const kernels *k, tensor_type type) {
    switch (type) {
    case TENSOR_F16: return k->matmul_f16;
    case TENSOR_BF16: return k->matmul_bf16;
    case TENSOR_Q8_0: return k->matmul_q8_0;
    case TENSOR_Q4_0: return k->matmul_q4_0;
    case TENSOR_Q4_1: return k->matmul_q4_1;
    default: return k->matmul_f32;
    }
}

static bool is_quantised(tensor_type type) { return type == TENSOR_Q8_0 || type == TENSOR_Q4_0 || type == TENSOR_Q4_1; }

/* The exact sum of products, and the sum of their magnitudes, which bounds the rounding error. */
static double exact_dot(const float *a, const float *b, int64_t length, double *magnitude) {
    double sum = 0;
    *magnitude = 0;
    for (int64_t k = 0; k < length; k++) {
        sum += (double)a[k] * (double)b[k];
        *magnitude += fabs((double)a[k] * (double)b[k]);
    }
    return sum;
}

static void check_matmul(tensor_type type, int64_t num_rows, int64_t num_columns, int64_t length) {
    const bool quantised = is_quantised(type);
    char *memory;
    const char *weights = random_rows(type, num_rows, length, 0.1f, &memory);
    float *columns = allocate_or_die((size_t)(num_columns * length) * sizeof(float)),
          *row = allocate_or_die((size_t)length * sizeof(float));
    const size_t num_blocks = (size_t)(num_columns * length / 32);
    activation_block *blocks = allocate_or_die((num_blocks + 1) * sizeof *blocks);
    for (int64_t i = 0; i < num_columns * length; i++) columns[i] = random_float() * (i % 5 == 0 ? 10.0f : 1.0f);
    if (quantised) {
        kernels_scalar.quantise(columns, num_columns * length, blocks);
        for (int64_t i = 0; i < num_columns * length; i++)
            columns[i] = blocks[i / 32].scale * (float)blocks[i / 32].values[i % 32];
    }
    const size_t stride = (size_t)num_rows + 3;
    float *out = allocate_or_die((size_t)num_columns * stride * sizeof(float));
    for (int i = 0; i < num_tables; i++) {
        const matmul_job job = {weights,
                                row_bytes_of(type, length),
                                num_rows,
                                length,
                                quantised ? (void *)blocks : columns,
                                quantised ? (size_t)length / 32 * sizeof *blocks : (size_t)length * sizeof(float),
                                num_columns,
                                out,
                                stride};
        for (size_t j = 0; j < (size_t)num_columns * stride; j++) out[j] = -77.0f;
        kernel_of(tables[i], type)(&job);
        for (int64_t r = 0; r < num_rows; r++) {
            dequantise_row(type, weights + (size_t)r * job.row_bytes, length, row);
            for (int64_t c = 0; c < num_columns; c++) {
                double magnitude;
                const double exact = exact_dot(row, columns + c * length, length, &magnitude);
                const float found = out[(size_t)c * stride + (size_t)r];
                CHECK(fabs((double)found - exact) <= 1e-6 * magnitude + 1e-12,
                      "%s %s %dx%dx%d at %d,%d: %.9g, exactly %.9g", tables[i]->name, type_name(type), (int)num_rows,
                      (int)num_columns, (int)length, (int)r, (int)c, (double)found, exact);
                float alone;
                matmul_job one = job;
                one.weights = weights + (size_t)r * job.row_bytes;
                one.num_rows = one.num_columns = 1;
                one.columns = (const char *)job.columns + (size_t)c * job.column_bytes;
                one.out = &alone;
                kernel_of(tables[i], type)(&one);
                CHECK(memcmp(&alone, &found, sizeof found) == 0, "%s %s: %.9g alone, %.9g in %dx%d", tables[i]->name,
                      type_name(type), (double)alone, (double)found, (int)num_rows, (int)num_columns);
            }
        }
        for (int64_t c = 0; c < num_columns; c++)
            for (size_t j = (size_t)num_rows; j < stride; j++)
                CHECK(out[(size_t)c * stride + j] == -77.0f, "%s wrote beyond its rows", tables[i]->name);
    }
    free(memory), free(columns), free(row), free(blocks), free(out);
}

static void test_matmul(void) {
    static const int64_t float_lengths[] = {1, 7, 8, 9, 16, 43, 172, 261, 600}, block_lengths[] = {32, 64, 96, 288};
    for (int t = 0; t < NUM_TYPES; t++)
        for (int64_t num_rows = 1; num_rows <= 21; num_rows += num_rows < 10 ? 1 : 5)
            for (int64_t num_columns = 1; num_columns <= 7; num_columns++) {
                const bool quantised = is_quantised(all_types[t]);
                for (int i = 0; i < (quantised ? 4 : 9); i++)
                    check_matmul(all_types[t], num_rows, num_columns, quantised ? block_lengths[i] : float_lengths[i]);
            }
    check_matmul(TENSOR_F32, 13, 40, 64);
    check_matmul(TENSOR_Q8_0, 13, 40, 64);
}

/* Blocks that leave 16 bits in sloppy kernels: -128 and -127 everywhere; nibbles 15 and 0. The result is exact. */
static void test_extreme_blocks(void) {
    uint8_t q8_0[34] = {0x00, 0x3c}, q4_0[18] = {0x00, 0x3c}, q4_1[20] = {0x00, 0x3c, 0x00, 0x00}; /* scale 1 */
    for (int weight = -128; weight <= 127; weight += 255)
        for (int activation = -127; activation <= 127; activation += 254) {
            activation_block block = {.scale = 1.0f};
            memset(q8_0 + 2, weight, 32);
            memset(q4_0 + 2, weight < 0 ? 0x00 : 0xff, 16);
            memset(q4_1 + 4, weight < 0 ? 0x00 : 0xff, 16);
            memset(block.values, activation, 32);
            for (int i = 0; i < num_tables; i++) {
                float out[3];
                tables[i]->matmul_q8_0(&(matmul_job){q8_0, 34, 1, 32, &block, sizeof block, 1, &out[0], 1});
                tables[i]->matmul_q4_0(&(matmul_job){q4_0, 18, 1, 32, &block, sizeof block, 1, &out[1], 1});
                tables[i]->matmul_q4_1(&(matmul_job){q4_1, 20, 1, 32, &block, sizeof block, 1, &out[2], 1});
                CHECK(out[0] == (float)(32 * weight * activation), "%s: %g", tables[i]->name, (double)out[0]);
                CHECK(out[1] == (float)(32 * (weight < 0 ? -8 : 7) * activation), "%s: %g", tables[i]->name,
                      (double)out[1]);
                CHECK(out[2] == (float)(32 * (weight < 0 ? 0 : 15) * activation), "%s: %g", tables[i]->name,
                      (double)out[2]);
            }
        }
}

static void test_halves(void) {
    for (uint32_t bits = 0; bits < 65536; bits++) {
        const uint16_t half = (uint16_t)bits;
        const int exponent = half >> 10 & 31, fraction = half & 1023;
        const double sign = half & 0x8000 ? -1.0 : 1.0;
        const float value = float_from_half(&half);
        if (exponent == 31) {
            CHECK(fraction ? isnan(value) : value == sign * INFINITY, "half %04x: %g", (unsigned)half, (double)value);
            continue;
        }
        const double expected = sign * (exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24));
        CHECK((double)value == expected, "half %04x: %g, expected %g", (unsigned)half, (double)value, expected);
        float one = 1.0f, product;
        for (int i = 0; i < num_tables; i++) {
            tables[i]->matmul_f16(&(matmul_job){&half, 2, 1, 1, &one, 4, 1, &product, 1});
            CHECK(product == value, "%s: half %04x: %g", tables[i]->name, (unsigned)half, (double)product);
        }
    }
}

static void test_quantise(void) {
    enum { LENGTH = 32 * 64 };
    float values[LENGTH];
    activation_block expected[LENGTH / 32], found[LENGTH / 32];
    for (int i = 0; i < LENGTH; i++) values[i] = random_float() * powf(10.0f, (float)(i / 32 - 32));
    for (int i = 0; i < 32; i++) values[40 * 32 + i] = (float)(i - 16) * 0.5f; /* ties */
    for (int i = 0; i < 32; i++) values[41 * 32 + i] = 0.0f;
    for (int i = 0; i < 32; i++) values[42 * 32 + i] = -0.0f;
    values[43 * 32 + 5] = NAN;
    values[44 * 32 + 31] = INFINITY;
    values[45 * 32] = -INFINITY;
    kernels_scalar.quantise(values, LENGTH, expected);
    for (int b = 0; b < LENGTH / 32; b++) {
        if (b >= 43 && b <= 45) {
            CHECK(isnan(expected[b].scale), "block %d hides a value that is not finite", b);
            continue;
        }
        for (int i = 0; i < 32; i++) {
            const float error = fabsf(expected[b].scale * (float)expected[b].values[i] - values[32 * b + i]);
            CHECK(expected[b].values[i] >= -127 && error <= expected[b].scale * 0.5001f + 1e-30f, "block %d value %d",
                  b, i);
        }
    }
    for (int i = 0; i < num_tables; i++) {
        memset(found, 0x55, sizeof found);
        tables[i]->quantise(values, LENGTH, found);
        for (int b = 0; b < LENGTH / 32; b++) {
            CHECK(memcmp(found[b].values, expected[b].values, 32) == 0, "%s: block %d", tables[i]->name, b);
            CHECK(found[b].scale == expected[b].scale || isnan(expected[b].scale) == isnan(found[b].scale),
                  "%s: block %d scale", tables[i]->name, b);
        }
    }
}

static void check_vectors(const kernels *k, int length) {
    float values[150] = {0}, up[150], gate[150], out[150] = {0}, rows[4 * 150];
    double magnitude, total = 0;
    for (int i = 0; i < length; i++) {
        values[i] = 3.0f * random_float();
        gate[i] = 12.0f * random_float();
        up[i] = random_float();
    }
    for (int i = 0; i < 4 * length; i++) rows[i] = random_float();
    float largest = values[0];
    for (int i = 1; i < length; i++) largest = fmaxf(largest, values[i]);
    CHECK(k->maximum(values, length) == largest, "%s maximum of %d", k->name, length);
    const double squares = exact_dot(values, values, length, &magnitude);
    CHECK(fabs((double)k->sum_of_squares(values, length) - squares) <= 1e-6 * squares, "%s sum_of_squares of %d",
          k->name, length);

    k->add_weighted_rows(rows, values, length < 4 ? length : 4, length, out);
    for (int i = 0; i < length; i++) {
        double expected = 0;
        for (int n = 0; n < (length < 4 ? length : 4); n++)
            expected += (double)values[n] * (double)rows[n * length + i];
        CHECK(fabs((double)out[i] - expected) < 1e-5, "%s add_weighted_rows of %d at %d", k->name, length, i);
    }
    for (int i = 0; i < length; i++) out[i] = gate[i];
    k->swiglu(out, up, length);
    for (int i = 0; i < length; i++) {
        const double expected = (double)gate[i] / (1.0 + exp(-(double)gate[i])) * (double)up[i];
        CHECK(fabs((double)out[i] - expected) <= 1e-6 * fabs(expected) + 1e-35, "%s swiglu of %g: %g", k->name,
              (double)gate[i], (double)out[i]);
    }
    for (int i = 0; i < length; i++) out[i] = values[i];
    const float sum = k->exp_and_sum(out, length, largest);
    for (int i = 0; i < length; i++) {
        const double expected = exp((double)(values[i] - largest)); /* the difference rounds to float first */
        CHECK(fabs((double)out[i] - expected) <= 3e-7 * expected, "%s exp: %g, expected %g", k->name, (double)out[i],
              expected);
        total += (double)out[i];
    }
    CHECK(fabs((double)sum - total) <= 1e-6 * total, "%s sum of exp", k->name);
}

static void test_vectors(void) {
    for (int i = 0; i < num_tables; i++) {
        for (int length = 1; length < 150; length++) check_vectors(tables[i], length);
        float extremes[9] = {-INFINITY, -1000.0f, -88.0f, 0.0f, NAN, -1e-30f, -20.0f, -50.0f, -86.9f};
        tables[i]->exp_and_sum(extremes, 9, 0.0f);
        CHECK(extremes[0] == 0.0f && extremes[1] == 0.0f && extremes[3] == 1.0f && isnan(extremes[4]),
              "%s: exp at the ends", tables[i]->name);
        float gates[9] = {1e30f, -1e30f, NAN, INFINITY, 0.0f, 100.0f, -100.0f, 88.0f, -88.0f},
              ones[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
        tables[i]->swiglu(gates, ones, 9);
        CHECK(gates[0] == 1e30f && fabsf(gates[1]) < 1e-7f && isnan(gates[2]) && gates[3] == INFINITY &&
                  gates[4] == 0.0f && gates[5] == 100.0f,
              "%s: swiglu at the ends", tables[i]->name);
    }
    double worst = 0;
    for (double x = -86.9; x <= 87.9; x += 0.00137)
        worst = fmax(worst, fabs((double)exponential((float)x) / exp((double)(float)x) - 1.0));
    CHECK(worst < 2e-7, "exponential is off by %g", worst);
    CHECK(exponential(0.0f) == 1.0f && isnan(exponential(NAN)) && exponential(-INFINITY) == 0.0f,
          "exponential at the ends");
}

static void test_select(void) {
    CHECK(kernels_select("scalar") == &kernels_scalar, "scalar is always there");
    CHECK(kernels_select("sse9") == NULL && kernels_select("") == NULL, "unknown names are refused");
    CHECK(kernels_select(NULL) != NULL && kernels_select("auto") == kernels_select(NULL), "NULL is auto");
    CHECK(kernels_select(kernels_name(kernels_select(NULL))) == kernels_select(NULL), "the name selects it");
}

int main(void) {
    tables[num_tables++] = &kernels_scalar;
    if (kernels_select("avx2") != NULL) tables[num_tables++] = kernels_select("avx2");
    test_select();
    test_halves();
    test_extreme_blocks();
    test_quantise();
    test_vectors();
    test_matmul();
    return check_failures();
}
