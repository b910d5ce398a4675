/* sampler_passes.c: the sampler's loops in plain C, shaped so that compilers make vector code of them.
 *
 * sampler_passes_avx2.c is this file again, compiled for AVX2. Compilers may neither fuse nor reorder what is rounded
 * here (CMakeLists.txt), so both give the same bits. */
#include "model/sampler_passes.h"

#include <string.h>

#ifndef SAMPLER_PASSES
#define SAMPLER_PASSES sampler_passes_portable
#endif

static bool survey(const float *restrict values, int32_t num_chunks, float *restrict column_largest) {
    float damage[CHUNK_LANES] = {0}; /* 0 times a finite number is 0, and times any other is not */
    for (int32_t c = 0; c < num_chunks; c++, values += CHUNK, column_largest += CHUNK_LANES)
        for (int j = 0; j < CHUNK_LANES; j++) {
            float largest = values[j], zero = values[j] * 0.0f;
            for (int row = 1; row < CHUNK_ROWS; row++) {
                const float value = values[row * CHUNK_LANES + j];
                largest = value > largest ? value : largest;
                zero += value * 0.0f;
            }
            column_largest[j] = largest;
            damage[j] += zero;
        }
    float sum = 0;
    for (int j = 0; j < CHUNK_LANES; j++) sum += damage[j];
    return sum == 0.0f;
}

static double join(const float *lane) {
    double sum[4];
    for (int j = 0; j < 4; j++)
        sum[j] = ((double)lane[j] + (double)lane[j + 4]) + ((double)lane[j + 8] + (double)lane[j + 12]);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* 2^(4 y) for y <= 0. With 4 y = n + 4 f, |4 f| <= 1/2, it is 2^n (2^f)^4, and 2^f is 1 + f q(f), where q is the
 * Chebyshev interpolation of degree 2 of (2^f - 1) / f. Relative error: below 3e-6, what two neighbouring floats of the
 * size of a logit differ by. Adding ROUND rounds to quarters, whose number then lies, with the exponent's bias, in the
 * low bits; lowest is -127 / 4, where that is the exponent of 0. */
static inline float power_of_16(float y, float lowest) {
    static const float ROUND = 3145728.0f + 31.75f; /* 1.5 * 2^21, and 127 quarters */
    const float clamped = y > lowest ? y : lowest, shifted = clamped + ROUND, f = clamped - (shifted - ROUND);
    const float root = 1.0f + f * (0.693147182f + f * (0.240339234f + f * 0.0555197373f)), square = root * root;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return square * square * power;
}

static void weigh(const float *restrict values, int32_t num_chunks, float largest, float scale, float *restrict weights,
                  double *restrict masses) {
    const float quarter = scale * 0.25f;
    volatile const float known_at_run_time = -31.75f; /* else the clamp becomes two instructions */
    const float lowest = known_at_run_time;
    for (int32_t c = 0; c < num_chunks; c++, values += CHUNK, weights += CHUNK) {
        float mass[CHUNK_LANES] = {0};
        for (int row = 0; row < CHUNK; row += 2 * CHUNK_LANES)
            for (int j = 0; j < CHUNK_LANES; j++) {
                const float first = power_of_16((values[row + j] - largest) * quarter, lowest);
                const float second = power_of_16((values[row + CHUNK_LANES + j] - largest) * quarter, lowest);
                weights[row + j] = first;
                weights[row + CHUNK_LANES + j] = second;
                mass[j] += first + second;
            }
        masses[c] = join(mass);
    }
}

static void weigh_upper(const float *restrict weights, int32_t num_chunks, float least, double *restrict masses) {
    for (int32_t c = 0; c < num_chunks; c++, weights += CHUNK) {
        float lane[CHUNK_LANES];
        for (int j = 0; j < CHUNK_LANES; j++) {
            float mass = 0;
            for (int row = 0; row < CHUNK_ROWS; row++) {
                const float weight = weights[row * CHUNK_LANES + j];
                mass += weight >= least ? weight : 0.0f;
            }
            lane[j] = mass;
        }
        masses[c] = join(lane);
    }
}

static void mark(const float *restrict values, int32_t num_chunks, float low, float high,
                 uint32_t *restrict column_bits, double *restrict masses) {
    for (int32_t c = 0; c < num_chunks; c++, values += CHUNK, column_bits += CHUNK_LANES) {
        float lane[CHUNK_LANES];
        for (int j = 0; j < CHUNK_LANES; j++) {
            uint32_t bits = 0;
            float mass = 0;
            for (int row = 0; row < CHUNK_ROWS; row++) {
                const float value = values[row * CHUNK_LANES + j];
                bits |= (uint32_t)((value >= low) & (value < high)) << row;
                mass += value >= low ? value : 0.0f;
            }
            column_bits[j] = bits;
            lane[j] = mass;
        }
        masses[c] = join(lane);
    }
}

const sampler_passes SAMPLER_PASSES = {survey, weigh, weigh_upper, mark};

#if !defined(SAMPLER_PASSES_AGAIN)
const sampler_passes *sampler_passes_select(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) return &sampler_passes_avx2;
#endif
    return &sampler_passes_portable;
}
#endif
