/* suffix_array.h: sorts all suffixes of an array of numbers. */
#ifndef LLAMITA_SUFFIX_ARRAY_H
#define LLAMITA_SUFFIX_ARRAY_H

#include <stdbool.h>
#include <stdint.h>

/* Writes to suffixes[num] where the suffixes of symbols[num] start, in their order. Symbols are
 * below num_symbols; the last is 0, and no other is. num: 1 to 2^31. Linear in num whatever repeats
 * (SA-IS: Nong, Zhang and Chan, 2009). Allocates num / 4 + 8 * num_symbols bytes, or 4 * num if that
 * is more. False: out of memory. */
bool suffix_array_build(const uint32_t *symbols, uint32_t *suffixes, uint32_t num, uint32_t num_symbols);

#endif
