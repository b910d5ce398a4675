/* kernels_dotprod.c: kernels_neon.c once more, with the dot product extension, which CMakeLists.txt asks for. */
#if defined(__aarch64__)
#define KERNELS_DOTPROD
#include "kernels/kernels_neon.c"
#endif
