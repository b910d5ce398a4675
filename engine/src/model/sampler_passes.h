/* sampler_passes.h: the sampler's loops over a whole vocabulary, for the instruction set at hand: all of the same bits.
 *
 * Values come in chunks: CHUNK_ROWS rows of CHUNK_LANES. What is summed or compared is so by lanes (columns), and the
 * lanes of a chunk are then joined in one fixed order. */
#ifndef LLAMITA_SAMPLER_PASSES_H
#define LLAMITA_SAMPLER_PASSES_H

#include <stdbool.h>
#include <stdint.h>

enum { CHUNK_LANES = 16, CHUNK_ROWS = 16, CHUNK = CHUNK_LANES * CHUNK_ROWS };

typedef struct {
    /* column_largest[num_chunks][CHUNK_LANES]: the largest of each column. False if a value is not finite. */
    bool (*survey)(const float *values, int32_t num_chunks, float *column_largest);

    /* weights = 2^((values - largest) * scale), 0 below 2^-126; masses[num_chunks]: the sum of each chunk. No value is
     * above the largest. */
    void (*weigh)(const float *values, int32_t num_chunks, float largest, float scale, float *weights, double *masses);

    /* masses[num_chunks]: the sum of the weights in each chunk that are at least this one. */
    void (*weigh_upper)(const float *weights, int32_t num_chunks, float least, double *masses);

    /* column_bits[num_chunks][CHUNK_LANES]: bit r is set where low <= values[row r] < high; masses[num_chunks]: the sum
     * of the values in each chunk that are at least low. */
    void (*mark)(const float *values, int32_t num_chunks, float low, float high, uint32_t *column_bits, double *masses);
} sampler_passes;

extern const sampler_passes sampler_passes_portable, sampler_passes_avx2;

/* The fastest that this processor can run. */
const sampler_passes *sampler_passes_select(void);

#endif
