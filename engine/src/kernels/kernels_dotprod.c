/* kernels_dotprod.c: compiles kernels_neon.c again with the dot product extension. CMakeLists.txt
 * sets the compiler flags. */
#if defined(LLAMITA_HAS_DOTPROD)
#define KERNELS_DOTPROD
#include "kernels/kernels_neon.c"
#endif
