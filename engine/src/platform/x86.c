/* x86.c: asks an x86 processor what it can run. Not by __builtin_cpu_supports: clang 14 does not
 * know f16c there, and under musl it always says no. */
#include "platform/platform.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static bool has_bit(unsigned word, int bit) { return (word >> bit & 1) != 0; }

/* True if the system saves these registers (bits of XCR0) when it switches threads. */
enum { YMM_STATE = 0x06, ZMM_STATE = 0xe6, TILE_STATE = 0x60000 };
static bool saves_registers(unsigned state) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & state) == state;
}

bool platform_has_avx2(void) {
    unsigned a, b, c, d;
    enum { FMA = 12, OSXSAVE = 27, AVX = 28, F16C = 29, AVX2 = 5 };
    if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
    if (!has_bit(c, OSXSAVE) || !has_bit(c, AVX) || !has_bit(c, FMA) || !has_bit(c, F16C)) return false;
    return saves_registers(YMM_STATE) && __get_cpuid_count(7, 0, &a, &b, &c, &d) && has_bit(b, AVX2);
}

bool platform_has_avxvnni(void) {
    unsigned a, b, c, d;
    enum { AVX_VNNI = 4 };
    return platform_has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && has_bit(a, AVX_VNNI);
}

bool platform_has_avx512(void) {
    unsigned a, b, c, d;
    enum { F = 16, DQ = 17, BW = 30, VL = 31, VNNI = 11 };
    if (!platform_has_avx2() || !saves_registers(ZMM_STATE) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    return has_bit(b, F) && has_bit(b, DQ) && has_bit(b, BW) && has_bit(b, VL) && has_bit(c, VNNI);
}
#else
bool platform_has_avx2(void) { return false; }
bool platform_has_avxvnni(void) { return false; }
bool platform_has_avx512(void) { return false; }
#endif

#if defined(__x86_64__) && defined(__linux__)
/* Linux gives tiles only to processes that ask (since 5.16): Documentation/arch/x86/xstate.rst. */
bool platform_request_amx(void) {
    unsigned a, b, c, d;
    enum { AMX_TILE = 24, AMX_INT8 = 25, ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILE_DATA = 18 };
    if (!platform_has_avx2() || !saves_registers(TILE_STATE) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    return has_bit(d, AMX_TILE) && has_bit(d, AMX_INT8) &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) == 0;
}
#else
bool platform_request_amx(void) { return false; }
#endif
