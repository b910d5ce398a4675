/* float_math.h: bit casts, 16-bit floats, and fma and an exponential with the same bits on every
 * machine. */
#ifndef LLAMITA_FLOAT_MATH_H
#define LLAMITA_FLOAT_MATH_H

#include <stdint.h>
#include <string.h>

static inline float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Converts the 16-bit float at any address, aligned or not. Exact, also for subnormals, infinities
 * and NaN. */
static inline float float_from_half(const void *address) {
    uint16_t half;
    memcpy(&half, address, sizeof half);
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    /* Read as a float, its exponent is 112 too small. The product is exact, also for subnormals. */
    return float_from_bits(sign | bits_from_float(float_from_bits(magnitude << 13) * 0x1p112f));
}

/* Rounds to the nearest 16-bit float, ties to even. Overflow gives infinity; NaN stays NaN. */
static inline uint16_t half_from_float(float value) {
    const uint32_t bits = bits_from_float(value), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x1ffu));
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u; /* 65520 and above */
    /* Subnormal: adding 0.5 aligns 2^-24 with the last bit of the float, and the addition
     * rounds. */
    if (magnitude < 0x38800000u) return sign | (uint16_t)(bits_from_float(float_from_bits(magnitude) + 0.5f) & 0xffffu);
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return sign | (uint16_t)((rounded - 0x38000000u) >> 13);
}

static inline float float_from_bfloat(const void *address) {
    uint16_t high;
    memcpy(&high, address, sizeof high);
    return float_from_bits((uint32_t)high << 16);
}

/* ------------------------------------------------------------------ fma */

/* a * b + c, rounded once. C libraries whose fmaf is wrong (musl's below 2^-126) or slow are many.
 *
 * The product is exact in double. The sum is rounded to odd: if it is not exact, and its last bit is
 * 0, it moves to its neighbor on the other side of the exact sum. With two bits more than a float
 * needs, rounding that to float is right. */
static inline float fused_multiply_add(float a, float b, float c) {
    const double product = (double)a * (double)b, addend = (double)c;
    double sum = product + addend;
    const double from_addend = sum - product;
    const double error = (product - (sum - from_addend)) + (addend - from_addend); /* NaN, of infinities */
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    if ((error < 0 || error > 0) && bits % 2 == 0) {
        bits += (error < 0) == (sum < 0) ? 1 : -UINT64_C(1);
        memcpy(&sum, &bits, sizeof sum);
    }
    return (float)sum;
}

/* ------------------------------------------------------------------ exponential */

/* e^x from additions, multiplications and bit shifts only.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2, so e^x = 2^n e^r, and e^r = 1 + r + r^2 q(r), where q is the
 * Chebyshev interpolation of degree 4 of (e^r - 1 - r) / r^2 (error of e^r: 1e-8). Total relative
 * error: below 2e-7. */
#define EXP_MIN (-87.0f) /* below: e^x is 0 */
#define EXP_MAX 88.0f    /* above: x is clamped */
#define EXP_LOG2_E 1.44269504f
#define EXP_LN2_HIGH 0.693359375f /* 9 bits, so n * this is exact */
#define EXP_LN2_LOW (-2.12194440e-4f)
#define EXP_Q0 0.5f
#define EXP_Q1 0.16666576266f
#define EXP_Q2 0.04166655615f
#define EXP_Q3 0.00836318545f
#define EXP_Q4 0.0013926191f
#define EXP_ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer in the low bits */

/* NaN stays NaN. No branches, so loops over it vectorize. */
static inline float exponential(float x) {
    const float low = x < EXP_MIN ? EXP_MIN : x;
    const float clamped = low > EXP_MAX ? EXP_MAX : low;
    const float shifted = clamped * EXP_LOG2_E + EXP_ROUND;
    const float n = shifted - EXP_ROUND;
    const float r = (clamped - n * EXP_LN2_HIGH) - n * EXP_LN2_LOW;
    const float q = EXP_Q0 + r * (EXP_Q1 + r * (EXP_Q2 + r * (EXP_Q3 + r * EXP_Q4)));
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    const float result = (1.0f + r + r * r * q) * power;
    return x < EXP_MIN ? 0.0f : result;
}

#endif
