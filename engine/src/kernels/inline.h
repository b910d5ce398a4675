/* inline.h: attributes and pragmas for the compilers of all kernels. */
#ifndef LLAMITA_INLINE_H
#define LLAMITA_INLINE_H

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#endif
