/* exponential.h: e^x from additions, products and bit moves only, so that it has the same bits on every machine.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2, so e^x = 2^n e^r, and e^r = 1 + r + r^2 q(r), where q is the Chebyshev
 * interpolation of degree 4 of (e^r - 1 - r) / r^2 (error of e^r: 1e-8). Relative error in all: below 2e-7. */
#ifndef LLAMITA_EXPONENTIAL_H
#define LLAMITA_EXPONENTIAL_H

#include <stdint.h>
#include <string.h>

#define EXP_LOWEST (-87.0f) /* below it e^x counts as 0 */
#define EXP_HIGHEST 88.0f   /* above it x counts as this */
#define EXP_LOG2_E 1.44269504f
#define EXP_LN2_HIGH 0.693359375f /* 9 bits: n * this is exact */
#define EXP_LN2_LOW (-2.12194440e-4f)
#define EXP_Q0 0.5f
#define EXP_Q1 0.16666576266f
#define EXP_Q2 0.04166655615f
#define EXP_Q3 0.00836318545f
#define EXP_Q4 0.0013926191f
#define EXP_ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, which then lies in the low bits */

/* NaN stays NaN. No branches: loops over it become vector code. */
static inline float exponential(float x) {
    const float low = x < EXP_LOWEST ? EXP_LOWEST : x;
    const float clamped = low > EXP_HIGHEST ? EXP_HIGHEST : low;
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
    return x < EXP_LOWEST ? 0.0f : result;
}

#endif
