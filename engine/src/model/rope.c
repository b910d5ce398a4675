/* rope.c: the angles of RoPE scalings. */
#include "model/rope.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>

/* The pair that turns this often within the original context (arXiv 2309.00071, section 3.2). */
static double pair_of_turns(const rope_scaling *scaling, int32_t head_dim, double turns) {
    const double two_pi = 6.283185307179586;
    return head_dim * log(scaling->original_context / (turns * two_pi)) / (2.0 * log(scaling->base));
}

/* yarn keeps the angles of pairs up to *low, divides those from *high on by the factor, and mixes
 * the pairs between. */
static bool yarn_range(const rope_scaling *scaling, int32_t head_dim, double *low, double *high,
                       char reason[ROPE_REASON_BYTES]) {
    *low = fmax(0.0, floor(pair_of_turns(scaling, head_dim, scaling->beta_fast)));
    *high = fmin(head_dim - 1.0, ceil(pair_of_turns(scaling, head_dim, scaling->beta_slow)));
    if (*low <= *high) return true;
    snprintf(reason, ROPE_REASON_BYTES,
             "yarn: expected beta_fast above beta_slow and an original context in which some pairs turn that often, "
             "found %g, %g and %g tokens",
             scaling->beta_fast, scaling->beta_slow, scaling->original_context);
    return false;
}

/* The base for which the slowest pair turns as with linear scaling, while the fastest turns as before.
 * With one pair there is nothing to change. */
static double ntk_base(const rope_scaling *scaling, int32_t head_dim) {
    if (head_dim == 2) return scaling->base;
    return scaling->base * pow(scaling->factor, (double)head_dim / (head_dim - 2));
}

/* RoFormer (arXiv 2104.09864, section 3.2.2): the angle of pair i per position is theta^(-2i/S).
 * Computed in double and rounded once. */
bool rope_fill_frequency(const rope_scaling *scaling, int32_t head_dim, float *frequency,
                         char reason[ROPE_REASON_BYTES]) {
    const bool is_yarn = scaling->type == ROPE_YARN, is_ntk = scaling->type == ROPE_NTK;
    const double base = is_ntk ? ntk_base(scaling, head_dim) : scaling->base, factor = is_ntk ? 1.0 : scaling->factor;
    double low = 0.0, high = 0.0;
    if (is_yarn && !yarn_range(scaling, head_dim, &low, &high, reason)) return false;
    for (int32_t i = 0; i < head_dim / 2; i++) {
        const double plain = pow(base, -2.0 * i / head_dim);
        const double slow = is_yarn ? fmin(1.0, fmax(0.0, (i - low) / fmax(0.001, high - low))) : 1.0;
        const double angle = slow == 1.0 ? plain / factor : plain / factor * slow + plain * (1.0 - slow);
        frequency[i] = (float)(scaling->divisors ? angle / (double)scaling->divisors[i] : angle);
        if (!isfinite(frequency[i])) {
            snprintf(reason, ROPE_REASON_BYTES, "RoPE angle of pair %d: expected a finite number, found %f", i,
                     (double)frequency[i]);
            return false;
        }
    }
    return true;
}

/* yarn's recommendation (arXiv 2309.00071, section 3.4), multiplied as in llama.cpp. */
float rope_attention_factor(const rope_scaling *scaling) {
    return (float)(scaling->attention_factor * (scaling->type == ROPE_YARN ? 1.0 + 0.1 * log(scaling->factor) : 1.0));
}
