/* kernels_avxvnni.c: compiles kernels_avx2.c again for AVX-VNNI (Intel since 2021, AMD since 2024),
 * where one instruction sums four products of bytes. CMakeLists.txt sets the compiler flags. */
#if defined(LLAMITA_HAS_AVXVNNI)
#define KERNELS_AVXVNNI
#include "kernels/kernels_avx2.c"
#endif
