/* array.h: growing arrays. */
#ifndef LLAMITA_ARRAY_H
#define LLAMITA_ARRAY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Grows the array whose pointer is stored at array_address to at least num_needed elements of this
 * size. The capacity at least doubles. Returns false if out of memory; the array is unchanged. The
 * caller owns the array and frees it with free(). */
static inline bool array_reserve(void *array_address, size_t *capacity, size_t num_needed, size_t element_bytes) {
    if (num_needed <= *capacity) return true;
    const size_t doubled = *capacity * 2 + 16, wanted = num_needed > doubled ? num_needed : doubled;
    if (wanted > SIZE_MAX / element_bytes) return false;
    void *array;
    memcpy(&array, array_address, sizeof array); /* the pointer has another type there */
    array = realloc(array, wanted * element_bytes);
    if (!array) return false;
    memcpy(array_address, &array, sizeof array);
    *capacity = wanted;
    return true;
}

/* ARRAY_RESERVE(&items, &capacity, n): the same, with the elements' own size. */
#define ARRAY_RESERVE(array, capacity, num_needed) array_reserve((array), (capacity), (num_needed), sizeof **(array))

#endif
