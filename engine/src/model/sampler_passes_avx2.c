/* sampler_passes_avx2.c: sampler_passes.c compiled once more, for AVX2, which CMakeLists.txt asks for. */
#if defined(__AVX2__)
#define SAMPLER_PASSES sampler_passes_avx2
#define SAMPLER_PASSES_AGAIN
#include "model/sampler_passes.c"
#endif
