/* quantise_plain.c: the quantisers for any processor. */
#define QUANTISE_TABLE quantise_plain
#include "quantise_rows.h"
