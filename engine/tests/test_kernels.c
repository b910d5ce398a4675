/* test_kernels.c: every kernel compared with double arithmetic, with its own other tile shapes, and
 * with the scalar kernels. */
#include "random_model.h"

#include "kernels/float_math.h"
#include "platform/platform.h"

#if defined(HAS_AMX_MODEL)
extern const kernels kernels_amx_model; /* amx_model.c */
#endif

static const kernels *tables[7];
static int num_tables;

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

/* Formats that sum a code and its minimum separately lose what cancels between the two. */
static double tolerance(panel_format format) {
    return format == PANEL_Q4_1 || format == PANEL_Q5_1 || format == PANEL_Q4_K || format == PANEL_Q5_K ? 1e-5 : 1e-6;
}

static void check_alone(const kernels *k, const matmul_job *job, panel_format format, const char *type, int64_t row,
                        int64_t column, float found) {
    float alone[PANEL_ROWS];
    matmul_job one = *job;
    one.panels = (const char *)job->panels + (size_t)(row / PANEL_ROWS) * job->panel_bytes;
    one.num_rows = row % PANEL_ROWS + 1;
    one.num_columns = 1;
    one.columns = (const char *)job->columns + (size_t)column * job->column_bytes;
    one.out = alone;
    k->matmul[format](&one);
    CHECK(memcmp(&alone[row % PANEL_ROWS], &found, sizeof found) == 0, "%s %s: %.9g alone, %.9g in %dx%d", k->name,
          type, (double)alone[row % PANEL_ROWS], (double)found, (int)job->num_rows, (int)job->num_columns);
}

/* Compares with exact sums, with the same row and column alone, and bit for bit with scalar. */
static void check_matmul(tensor_type type, int64_t num_rows, int64_t num_columns, int64_t length) {
    const panel_format format = panel_format_of(type);
    const bool quantized = panel_is_quantized(format);
    char *memory, *panel_memory;
    const char *weights = random_rows(type, num_rows, length, 0.1f, &memory);
    void *panels = packed_rows(type, weights, num_rows, length, &panel_memory);
    float *columns = allocate_or_die((size_t)(num_columns * length) * sizeof(float)),
          *row = allocate_or_die((size_t)length * sizeof(float));
    const size_t num_blocks = (size_t)(num_columns * length / 32);
    activation_block *blocks = allocate_or_die((num_blocks + 1) * sizeof *blocks);
    for (int64_t i = 0; i < num_columns * length; i++) columns[i] = random_float() * (i % 5 == 0 ? 10.0f : 1.0f);
    if (quantized) {
        kernels_scalar.quantize(columns, num_columns * length, blocks);
        for (int64_t i = 0; i < num_columns * length; i++)
            columns[i] = blocks[i / 32].scale * (float)blocks[i / 32].values[i % 32];
    }
    const size_t stride = (size_t)num_rows + 3, num_out = (size_t)num_columns * stride;
    float *out = allocate_or_die(num_out * sizeof(float)), *reference = allocate_or_die(num_out * sizeof(float));
    for (int i = 0; i < num_tables; i++) {
        const matmul_job job = {panels,
                                panel_bytes(format, length),
                                num_rows,
                                length,
                                quantized ? (void *)blocks : columns,
                                quantized ? (size_t)length / 32 * sizeof *blocks : (size_t)length * sizeof(float),
                                num_columns,
                                out,
                                stride};
        for (size_t j = 0; j < num_out; j++) out[j] = -77.0f;
        tables[i]->matmul[format](&job);
        for (int64_t r = 0; r < num_rows; r++) {
            dequantize_row(type, weights + (size_t)r * row_bytes_of(type, length), length, row);
            for (int64_t c = 0; c < num_columns; c++) {
                double magnitude;
                const double exact = exact_dot(row, columns + c * length, length, &magnitude);
                const float found = out[(size_t)c * stride + (size_t)r];
                CHECK(fabs((double)found - exact) <= tolerance(format) * magnitude + 1e-12,
                      "%s %s %dx%dx%d at %d,%d: %.9g, exactly %.9g", tables[i]->name, type_name(type), (int)num_rows,
                      (int)num_columns, (int)length, (int)r, (int)c, (double)found, exact);
                check_alone(tables[i], &job, format, type_name(type), r, c, found);
            }
        }
        for (int64_t c = 0; c < num_columns; c++)
            for (size_t j = (size_t)num_rows; j < stride; j++)
                CHECK(out[(size_t)c * stride + j] == -77.0f, "%s wrote past its rows", tables[i]->name);
        if (i == 0) memcpy(reference, out, num_out * sizeof *out);
        CHECK(memcmp(reference, out, num_out * sizeof *out) == 0, "%s %s %dx%dx%d differs from the reference",
              tables[i]->name, type_name(type), (int)num_rows, (int)num_columns, (int)length);
    }
    free(memory), free(panel_memory), free(columns), free(row), free(blocks), free(out), free(reference);
}

static void test_matmul(void) {
    static const int64_t float_lengths[] = {1, 7, 8, 9, 16, 43, 172, 261, 600}, block_lengths[] = {32, 64, 96, 288};
    for (int t = 0; t < NUM_TYPES; t++)
        for (int64_t num_rows = 1; num_rows <= 40; num_rows += num_rows < 10 ? 1 : 7)
            for (int64_t num_columns = 1; num_columns <= 8; num_columns++)
                if (t < NUM_FLOAT_TYPES)
                    for (int i = 0; i < 9; i++) check_matmul(all_types[t], num_rows, num_columns, float_lengths[i]);
                else if (t < NUM_BLOCK_TYPES)
                    for (int i = 0; i < 4; i++) check_matmul(all_types[t], num_rows, num_columns, block_lengths[i]);
                else
                    for (int i = 0; i < 2; i++) check_matmul(all_types[t], num_rows, num_columns, 256 << i);
    for (int t = 0; t < NUM_TYPES; t++)
        for (int64_t num_columns = 9; num_columns <= 40; num_columns += num_columns < 18 ? 1 : 11)
            check_matmul(all_types[t], 37, num_columns, t % 2 == 0 ? 256 : 768);
}

/* Blocks that overflow 16 bits in careless kernels: the largest codes with the largest values. The
 * result is exact, in a column alone and in many of the same. */
static void test_extreme_blocks(void) {
    enum { COLUMNS = 8 };
    static const struct {
        panel_format format;
        int lowest, highest, zero, step; /* of codes; the code of 0; the scale of a block */
    } cases[] = {{PANEL_Q8_0, -128, 127, 0, 1}, {PANEL_Q4_0, 0, 15, 8, 1},  {PANEL_Q4_1, 0, 15, 0, 1},
                 {PANEL_Q5_1, 0, 31, 0, 1},     {PANEL_Q4_K, 0, 15, 0, 63}, {PANEL_Q5_K, 0, 31, 0, 63},
                 {PANEL_Q6_K, 0, 63, 32, 127}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int high = 0; high < 2; high++)
            for (int activation = -127; activation <= 127; activation += 254) {
                const panel_layout layout = panel_layout_of(cases[i].format);
                _Alignas(64) uint8_t panel[512] = {0};
                const uint16_t one = 0x3c00;
                const int code = high ? cases[i].highest : cases[i].lowest;
                memset(panel, cases[i].format == PANEL_Q8_0 ? code : high ? 0xff : 0, layout.code_bytes);
                uint8_t *header = panel + layout.code_bytes, *super = header + layout.header_bytes;
                for (int r = 0; r < PANEL_ROWS; r++) {
                    if (layout.super_bytes > 0) {
                        panel_put_scale(super, r, &one);
                        header[r] = (uint8_t)cases[i].step;
                        if (cases[i].format == PANEL_Q6_K) header[PANEL_ROWS + r] = (uint8_t)cases[i].step;
                    } else {
                        panel_put_scale(header, r, &one);
                    }
                }
                float values[BLOCK_LENGTH], out[COLUMNS * PANEL_ROWS];
                for (int j = 0; j < BLOCK_LENGTH; j++) values[j] = (float)activation;
                activation_block block;
                kernels_scalar.quantize(values, BLOCK_LENGTH, &block);
                const float expected = (float)(32 * (code - cases[i].zero) * activation * cases[i].step);
                for (int t = 0; t < num_tables; t++)
                    for (int columns = 1; columns <= COLUMNS; columns++) {
                        tables[t]->matmul[cases[i].format](&(matmul_job){panel, sizeof panel, PANEL_ROWS, BLOCK_LENGTH,
                                                                         &block, 0, columns, out, PANEL_ROWS});
                        for (int r = 0; r < columns * PANEL_ROWS; r++)
                            CHECK(out[r] == expected, "%s format %d, %d columns: %g, expected %g", tables[t]->name,
                                  cases[i].format, columns, (double)out[r], (double)expected);
                    }
            }
}

/* All rows are {1, a}, in the element or block 0 and the next one. */
static void fill_panel(panel_format format, float a, uint8_t *panel) {
    const float row[2] = {1.0f, a};
    const panel_layout layout = panel_layout_of(format);
    for (int i = 0; i < 2 * PANEL_ROWS; i++) {
        const float value = row[i / PANEL_ROWS];
        const uint16_t half = half_from_float(value), high = (uint16_t)(bits_from_float(value) >> 16);
        const int lane = i % PANEL_ROWS, block = i / PANEL_ROWS;
        uint8_t *codes = panel + (size_t)block * layout.code_bytes,
                *header = panel + 2 * layout.code_bytes + (size_t)block * layout.header_bytes;
        const uint16_t one = 0x3c00;
        switch (format) {
        case PANEL_F32: memcpy(panel + 4 * i, &value, 4); break;
        case PANEL_F16: memcpy(panel + 2 * i, &half, 2); break;
        case PANEL_BF16: memcpy(panel + 2 * i, &high, 2); break;
        case PANEL_I8: panel[i] = (uint8_t)value; break;
        case PANEL_Q8_0:
            codes[4 * lane] = (uint8_t)value;
            panel_put_scale(header, lane, &one);
            break;
        default: panel_put_scale(header + PANEL_SCALES, lane, &half); /* PANEL_Q4_1: the minimum */
        }
    }
}

/* Sums whose double is halfway between two floats though the exact sum is not: kernels without fma
 * must not round twice. */
static void test_halfway_sums(void) {
    enum { COLUMNS = 6 };
    static const struct {
        panel_format format;
        int num_weights;
        float first, step;
    } cases[] = {{PANEL_F32, 2000, 1, 0x1p-23f}, {PANEL_F16, 1024, 1, 0x1p-10f}, {PANEL_BF16, 128, 1, 0x1p-7f},
                 {PANEL_I8, 127, 1, 1},          {PANEL_Q8_0, 127, 1, 1},        {PANEL_Q4_1, 1024, 1, 0x1p-10f}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const panel_format format = cases[i].format;
        int num_halfway = 0;
        for (int m = 0; m < 4 * cases[i].num_weights; m++) {
            const float a = cases[i].first + cases[i].step * (float)(m / 4), sign = m % 2 ? -1.0f : 1.0f,
                        sum = m / 2 % 2 ? sign + sign * 0x1p-23f : sign + sign * 0x1p-22f, b = sign * (0x1p-24f / a);
            const float expected = fmaf(a, b, sum);
            num_halfway += (float)((double)a * (double)b + (double)sum) != expected;
            _Alignas(64) uint8_t panel[1024] = {0};
            float values[8] = {sum, b}, out[COLUMNS * PANEL_ROWS];
            activation_block blocks[2] = {
                {.scale = sum, .scaled_sum = sum, .eight_sums = 8, .sums_of_half = 32, .values = {1}},
                {.scale = b, .scaled_sum = b, .eight_sums = 8, .sums_of_half = 32, .values = {1}}};
            fill_panel(format, a, panel);
            const bool quantized = panel_is_quantized(format);
            for (int j = 0; j < 2 * num_tables; j++) {
                const int t = j / 2, columns = j % 2 ? COLUMNS : 1;
                tables[t]->matmul[format](&(matmul_job){panel, sizeof panel, PANEL_ROWS, quantized ? 64 : 8,
                                                        quantized ? (void *)blocks : values, 0, columns, out,
                                                        PANEL_ROWS});
                for (int r = 0; r < columns * PANEL_ROWS; r++)
                    CHECK(out[r] == expected, "%s format %d: %a * %a + %a = %a, expected %a", tables[t]->name, format,
                          (double)a, (double)b, (double)sum, (double)out[r], (double)expected);
            }
        }
        CHECK(num_halfway > 0, "format %d: no sum is halfway", format);
    }
    /* Below 2^-126 floats have fewer bits. */
    _Alignas(64) float panel[64] = {0};
    const float sum = 4194305 * 0x1p-149f, a = 0x1p-75f + 0x1p-98f, b = 0x1p-75f - 0x1p-98f;
    CHECK((float)((double)a * (double)b + (double)sum) != sum, "this sum is not halfway");
    float values[8] = {sum, b}, out;
    panel[0] = 1;
    panel[PANEL_ROWS] = a;
    for (int t = 0; t < num_tables; t++) {
        tables[t]->matmul[PANEL_F32](
            &(matmul_job){panel, sizeof panel, 1, 8, values, sizeof values, 1, &out, PANEL_ROWS});
        CHECK(out == sum, "%s: a tiny sum is %a", tables[t]->name, (double)out);
    }
}

/* A float of any bits, or one near 1, so that sums cancel or overlap in part. */
static float any_float(void) {
    const uint32_t bits = random_bits() ^ random_bits() << 16;
    return float_from_bits(bits % 8 ? (bits & 0x87ffffffu) | 0x38000000u : bits);
}

static void test_fused_multiply_add(void) {
    for (int i = 0; i < 1000000; i++) {
        const float a = any_float(), b = any_float(), c = i % 2 ? any_float() : -(a * b);
        const float found = fused_multiply_add(a, b, c), expected = fmaf(a, b, c);
        const bool tiny = fabsf(expected) < 0x1p-125f; /* where C libraries err */
        CHECK(tiny || bits_from_float(found) == bits_from_float(expected) || (isnan(found) && isnan(expected)),
              "%a * %a + %a = %a, expected %a", (double)a, (double)b, (double)c, (double)found, (double)expected);
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
            _Alignas(64) uint16_t panel[PANEL_ROWS] = {half};
            tables[i]->matmul[PANEL_F16](&(matmul_job){panel, 16, 1, 1, &one, 4, 1, &product, 1});
            CHECK(product == value, "%s: half %04x: %g", tables[i]->name, (unsigned)half, (double)product);
            uint16_t back;
            tables[i]->to_halves(&value, 1, &back);
            CHECK(back == half, "%s: half %04x comes back as %04x", tables[i]->name, (unsigned)half, (unsigned)back);
        }
    }
}

/* 16-bit infinities, NaN and subnormals, times the largest and smallest values: kernels without an
 * instruction for 16-bit floats scale them in other ways. */
static void test_extreme_halves(void) {
    enum { ROWS = 5 * PANEL_ROWS, LENGTH = 6, COLUMNS = 3, PANEL_HALVES = LENGTH * PANEL_ROWS };
    static const uint16_t weights[] = {0x3c00, 0x7c00, 0xfc00, 0x7e00, 0x7bff, 0xfbff, 0x0001, 0x83ff, 0x8000};
    static const float values[] = {1.0f, 0x1p127f, -0x1p14f, 0x1p15f, 0x1p-149f, -0x1.8p-130f, 0.0f, INFINITY, NAN};
    for (size_t w = 0; w < sizeof weights / sizeof *weights; w++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++)
            for (int columns = 1; columns <= COLUMNS; columns++) {
                _Alignas(64) uint16_t panels[ROWS * LENGTH];
                float column[COLUMNS][LENGTH], expected[COLUMNS][ROWS], found[COLUMNS][ROWS];
                for (int i = 0; i < ROWS * LENGTH; i++) panels[i] = (uint16_t)(0x3800 + 37 * i % 1024);
                for (int c = 0; c < COLUMNS; c++)
                    for (int k = 0; k < LENGTH; k++) column[c][k] = (float)(k + c) / 3.0f;
                panels[2 * PANEL_HALVES + 3 * PANEL_ROWS + 5] = weights[w];
                column[columns - 1][3] = values[v];
                const matmul_job job = {panels,         2 * PANEL_HALVES, ROWS,      LENGTH, column,
                                        sizeof *column, columns,          *expected, ROWS};
                kernels_scalar.matmul[PANEL_F16](&job);
                for (int t = 0; t < num_tables; t++) {
                    matmul_job other = job;
                    other.out = *found;
                    tables[t]->matmul[PANEL_F16](&other);
                    for (int c = 0; c < columns; c++)
                        for (int r = 0; r < ROWS; r++)
                            CHECK(bits_from_float(found[c][r]) == bits_from_float(expected[c][r]) ||
                                      (isnan(found[c][r]) && isnan(expected[c][r])),
                                  "%s half %04x, value %a: %a, expected %a", tables[t]->name, (unsigned)weights[w],
                                  (double)values[v], (double)found[c][r], (double)expected[c][r]);
                }
            }
}

static void test_to_halves(void) {
    enum { COUNT = 1 << 16 };
    static float values[COUNT];
    static uint16_t found[COUNT];
    for (int i = 0; i < COUNT; i++) /* every exponent, ties included */
        values[i] =
            i < 4096 ? ldexpf((float)(2049 + i), -11 - i % 29) : float_from_bits(random_bits() << 1 ^ random_bits());
    for (int i = 0; i < num_tables; i++) {
        tables[i]->to_halves(values, COUNT, found);
        for (int j = 0; j < COUNT; j++) {
            const float back = float_from_half(&found[j]);
            if (isnan(values[j])) {
                CHECK(isnan(back), "%s: NaN becomes %g", tables[i]->name, (double)back);
                continue;
            }
            CHECK(found[j] == half_from_float(values[j]), "%s: %.9g becomes %04x", tables[i]->name, (double)values[j],
                  (unsigned)found[j]);
            const double step =
                fmax(ldexp(1, -24), ldexp(1, ilogb((double)values[j] == 0 ? 1 : (double)values[j]) - 10));
            CHECK(fabs((double)values[j]) >= 65520 ? isinf(back) : fabs((double)back - (double)values[j]) <= step / 2,
                  "%s: %.9g becomes %.9g", tables[i]->name, (double)values[j], (double)back);
        }
    }
}

static void test_quantize(void) {
    enum { LENGTH = 32 * 64 };
    float values[LENGTH];
    activation_block expected[LENGTH / 32], found[LENGTH / 32];
    for (int i = 0; i < LENGTH; i++) values[i] = random_float() * powf(10.0f, (float)(i / 32 - 32));
    for (int i = 0; i < 32; i++)
        values[40 * 32 + i] = i == 0 ? 127.0f : (float)(i - 16) * 0.5f; /* ties: the scale is 1 */
    for (int i = 0; i < 32; i++) values[41 * 32 + i] = 0.0f;
    for (int i = 0; i < 32; i++) values[42 * 32 + i] = -0.0f;
    values[43 * 32 + 5] = NAN;
    values[44 * 32 + 31] = INFINITY;
    values[45 * 32] = -INFINITY;
    kernels_scalar.quantize(values, LENGTH, expected);
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
        tables[i]->quantize(values, LENGTH, found);
        for (int b = 0; b < LENGTH / 32; b++) {
            CHECK(memcmp(found[b].values, expected[b].values, 32) == 0, "%s: block %d", tables[i]->name, b);
            if (b >= 43 && b <= 45) {
                CHECK(isnan(found[b].scale) && isnan(found[b].scaled_sum), "%s hides a value that is not finite",
                      tables[i]->name);
                continue;
            }
            CHECK(memcmp(&found[b], &expected[b], sizeof found[b]) == 0, "%s: sums of block %d", tables[i]->name, b);
            CHECK(found[b].scale == expected[b].scale || isnan(expected[b].scale) == isnan(found[b].scale),
                  "%s: block %d scale", tables[i]->name, b);
        }
    }
}

static void check_vectors(const kernels *k, int length) {
    float values[150] = {0}, up[150], gate[150], out[150] = {0}, reference[150];
    double magnitude, total = 0;
    for (int i = 0; i < length; i++) {
        values[i] = 3.0f * random_float();
        gate[i] = 12.0f * random_float();
        up[i] = random_float();
    }
    float largest = values[0];
    for (int i = 1; i < length; i++) largest = fmaxf(largest, values[i]);
    CHECK(k->maximum(values, length) == largest, "%s maximum of %d", k->name, length);
    const double squares = exact_dot(values, values, length, &magnitude);
    CHECK(fabs((double)k->sum_of_squares(values, length) - squares) <= 1e-6 * squares, "%s sum_of_squares of %d",
          k->name, length);

    for (int i = 0; i < length; i++) out[i] = gate[i];
    memcpy(reference, out, sizeof reference);
    k->swiglu(out, up, length);
    kernels_scalar.swiglu(reference, up, length);
    CHECK(memcmp(out, reference, (size_t)length * sizeof *out) == 0, "%s swiglu of %d differs from the reference",
          k->name, length);
    for (int i = 0; i < length; i++) {
        const double expected = (double)gate[i] / (1.0 + exp(-(double)gate[i])) * (double)up[i];
        CHECK(fabs((double)out[i] - expected) <= 1e-6 * fabs(expected) + 1e-35, "%s swiglu of %g: %g", k->name,
              (double)gate[i], (double)out[i]);
    }
    for (int i = 0; i < length; i++) out[i] = values[i];
    memcpy(reference, out, sizeof reference);
    const float sum = k->exp_and_sum(out, length, largest),
                reference_sum = kernels_scalar.exp_and_sum(reference, length, largest);
    CHECK(memcmp(out, reference, (size_t)length * sizeof *out) == 0 && sum == reference_sum, "%s exp of %d differs",
          k->name, length);
    CHECK(k->sum_of_squares(values, length) == kernels_scalar.sum_of_squares(values, length), "%s squares of %d differ",
          k->name, length);
    for (int i = 0; i < length; i++) {
        /* The difference rounds to float first. */
        const double expected = exp((double)(values[i] - largest));
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
    CHECK(kernels_select("scalar") == &kernels_scalar, "scalar must always be available");
    CHECK(kernels_select("sse9") == NULL && kernels_select("") == NULL, "an unknown name was accepted");
    CHECK(kernels_select(NULL) != NULL && kernels_select("auto") == kernels_select(NULL), "NULL must mean auto");
    CHECK(kernels_select(kernels_name(kernels_select(NULL))) == kernels_select(NULL), "a table's name must select it");
}

int main(void) {
    static const char *const others[] = {"avx2",    "avxvnni", "avx512",  "amx",    "neon",
                                         "dotprod", "i8mm",    "simd128", "relaxed"};
    tables[num_tables++] = &kernels_scalar;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (kernels_select(others[i]) != NULL) tables[num_tables++] = kernels_select(others[i]);
#if defined(HAS_AMX_MODEL)
    if (platform_has_avx512()) tables[num_tables++] = &kernels_amx_model;
#endif
    test_select();
    test_halves();
    test_extreme_halves();
    test_to_halves();
    test_extreme_blocks();
    test_fused_multiply_add();
    test_halfway_sums();
    test_quantize();
    test_vectors();
    test_matmul();
    return check_failures();
}
