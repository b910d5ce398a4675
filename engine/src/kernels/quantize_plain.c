/* quantize_plain.c: the quantizers for any processor. */
#define QUANTIZE_TABLE quantize_plain
#include "kernels/quantize_rows.h"
