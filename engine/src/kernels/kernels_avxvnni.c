/* kernels_avxvnni.c: kernels_avx2.c once more for processors with AVX-VNNI (Intel since 2021, AMD since 2024), which
 * CMakeLists.txt asks for: one instruction sums four products of bytes. */
#if defined(__AVXVNNI__)
#define KERNELS_AVXVNNI
#include "kernels/kernels_avx2.c"
#endif
