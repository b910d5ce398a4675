/* rope.h: RoPE scalings, of a file or of a session: the angles that they give. */
#ifndef LLAMITA_ROPE_H
#define LLAMITA_ROPE_H

#include <stdbool.h>
#include <stdint.h>

/* In the order of llamita_rope_scaling; longrope comes from files only. */
typedef enum { ROPE_NONE = 1, ROPE_LINEAR, ROPE_NTK, ROPE_YARN, ROPE_LONGROPE } rope_type;

typedef struct {
    rope_type type;
    double base;             /* theta */
    double factor;           /* linear: divides every angle; yarn: those that turn slowly; ntk: raises the base */
    double attention_factor; /* multiplies cos and sin, beside what yarn recommends */
    double original_context, beta_fast, beta_slow; /* yarn */
    const float *divisors;                         /* [S/2] divide the angles too; NULL: none */
} rope_scaling;

/* What a session computes with. */
typedef struct {
    const float *frequency; /* [S/2] the angle of each pair at position 1 */
    float attention_factor; /* multiplies cos and sin */
} rope_angles;

enum { ROPE_REASON_BYTES = 256 };

/* Computes frequency[S/2]. False: the scaling gives none; reason: expected X, found Y. */
bool rope_fill_frequency(const rope_scaling *scaling, int32_t head_dim, float *frequency,
                         char reason[ROPE_REASON_BYTES]);

float rope_attention_factor(const rope_scaling *scaling);

#endif
