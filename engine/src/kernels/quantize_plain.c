/* quantize_plain.c: the quantizers compiled for any processor. */
#define QUANTIZE_TABLE quantize_plain
#include "kernels/quantize_rows.h"
