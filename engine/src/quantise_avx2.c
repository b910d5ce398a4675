/* quantise_avx2.c: the quantisers once more, compiled for AVX2. */
#if defined(__x86_64__)
#define QUANTISE_TABLE quantise_avx2
#include "quantise_rows.h"
#endif
