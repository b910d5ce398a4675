/* kernels_interleave.h: eight rows of four-byte numbers to one row of eights. */
#ifndef LLAMITA_KERNELS_INTERLEAVE_H
#define LLAMITA_KERNELS_INTERLEAVE_H

#include <string.h>

#include "panel.h"

#if defined(__SSE2__) /* every x86-64 has it: nothing is chosen at run time */
#include <emmintrin.h>

/* Four numbers of four rows, across. Not past the caches: memory that the system has just cleared is in them still. */
static inline void put_four_quads(const uint8_t *const rows[4], size_t offset, uint8_t *out) {
    const __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(rows[0] + offset));
    const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(rows[1] + offset));
    const __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(rows[2] + offset));
    const __m128i d = _mm_loadu_si128((const __m128i *)(const void *)(rows[3] + offset));
    const __m128i ab0 = _mm_unpacklo_epi32(a, b), cd0 = _mm_unpacklo_epi32(c, d);
    const __m128i ab2 = _mm_unpackhi_epi32(a, b), cd2 = _mm_unpackhi_epi32(c, d);
    _mm_storeu_si128((__m128i *)(void *)out, _mm_unpacklo_epi64(ab0, cd0));
    _mm_storeu_si128((__m128i *)(void *)(out + 32), _mm_unpackhi_epi64(ab0, cd0));
    _mm_storeu_si128((__m128i *)(void *)(out + 64), _mm_unpacklo_epi64(ab2, cd2));
    _mm_storeu_si128((__m128i *)(void *)(out + 96), _mm_unpackhi_epi64(ab2, cd2));
}
#endif

/* Interleaves numbers of four bytes: number q of row r, which begins at its byte offset, goes to out[q][r]. */
static inline void put_quads(const uint8_t *const rows[PANEL_ROWS], size_t offset, size_t num_quads, uint8_t *out) {
    size_t q = 0;
#if defined(__SSE2__)
    for (; q + 4 <= num_quads; q += 4) {
        put_four_quads(rows, offset + 4 * q, out + 32 * q);
        put_four_quads(rows + 4, offset + 4 * q, out + 32 * q + 16);
    }
#endif
    for (; q < num_quads; q++)
        for (int r = 0; r < PANEL_ROWS; r++) memcpy(out + 32 * q + 4 * r, rows[r] + offset + 4 * q, 4);
}

#endif
