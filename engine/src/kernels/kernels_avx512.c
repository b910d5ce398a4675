/* kernels_avx512.c: the kernels for x86-64 processors with AVX-512 and its VNNI (Intel servers
 * since 2019, AMD since 2022). A vector is two panels side by side. Only products of
 * matrices are here; the other kernels are AVX2's, whose sums have eight lanes in a fixed order.
 * kernels_amx.c builds on this file. */
#include "kernels/kernels_avx512.h"

#include "kernels/inline.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define VECTOR_PANELS 2
#define VECTOR_ROWS (VECTOR_PANELS * PANEL_ROWS)
#define VALUES 1        /* broadcast as they are loaded */
#define FLOAT_STREAMS 0 /* one column is AVX2's */
#define FLOAT_VECTORS 4 /* by six columns: 24 sums of the 32 registers */
#define FLOAT_COLUMNS 6
#define BLOCK_STREAMS 2
#define BLOCK_VECTORS 2 /* by four columns; six are no faster */
#define BLOCK_COLUMNS 4
#define MAX_VECTORS 4
#define BYTES_AHEAD 32768 /* four panels are read at once: 8 columns from memory 145 to 156 GMAC/s */

typedef __m512 floats;
typedef __m512i integers;
typedef __m512i codes;
typedef __m512i quad;
typedef const float *values;
typedef const activation_block *quads;
typedef struct {
    const uint8_t *at[VECTOR_PANELS];
} panels;
typedef struct {
    integers whole;
} products;

INLINE floats all_floats(float value) { return _mm512_set1_ps(value); }
INLINE floats multiply(floats a, floats b) { return _mm512_mul_ps(a, b); }
INLINE floats subtract(floats a, floats b) { return _mm512_sub_ps(a, b); }
INLINE floats multiply_add(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE floats to_floats(integers a) { return _mm512_cvtepi32_ps(a); }
INLINE integers add_integers(integers a, integers b) { return _mm512_add_epi32(a, b); }
INLINE integers multiply_integers(integers a, integers b) { return _mm512_mullo_epi32(a, b); }
INLINE void store_floats(float *out, floats a) { _mm512_storeu_ps(out, a); }
INLINE void store_first(float *out, int64_t n, floats a) { _mm512_mask_storeu_ps(out, (__mmask16)((1u << n) - 1), a); }

INLINE __m256i load_32(const uint8_t *at) { return _mm256_loadu_si256((const void *)at); }
INLINE __m128i load_16(const uint8_t *at) { return _mm_loadu_si128((const void *)at); }
INLINE __m128i load_8(const uint8_t *at) { return _mm_loadl_epi64((const void *)at); }

INLINE codes load_codes(panels p, size_t offset) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(load_32(p.at[0] + offset)), load_32(p.at[1] + offset), 1);
}

INLINE __m256i load_halves(panels p, size_t offset) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(p.at[0] + offset)), load_16(p.at[1] + offset), 1);
}

INLINE floats load_scales(panels p, size_t offset) { return _mm512_cvtph_ps(load_halves(p, offset)); }

INLINE integers widen(panels p, size_t offset, const bool is_signed) {
    const __m128i bytes = _mm_unpacklo_epi64(load_8(p.at[0] + offset), load_8(p.at[1] + offset));
    return is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes);
}

INLINE floats load_weights(panels p, int64_t k, const panel_format format) {
    if (format == PANEL_F32) return _mm512_castsi512_ps(load_codes(p, 32 * (size_t)k));
    if (format == PANEL_I8) return to_floats(widen(p, 8 * (size_t)k, true));
    const __m256i halves = load_halves(p, 16 * (size_t)k);
    if (format == PANEL_F16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

INLINE values load_values(const float *at) { return at; }
INLINE values load_last_value(const float *at) { return at; }
INLINE floats add_product(floats sum, floats weights, values value, const int lane) {
    return _mm512_fmadd_ps(weights, _mm512_set1_ps(value[lane]), sum);
}

INLINE codes mask_codes(codes a, const int mask) { return _mm512_and_si512(a, _mm512_set1_epi8((char)mask)); }
INLINE codes or_codes(codes a, codes b) { return _mm512_or_si512(a, b); }
/* To the left, or to the right if bits < 0. Bits of neighbors move in. */
INLINE codes shift_codes(codes a, const int bits) {
    return bits >= 0 ? _mm512_slli_epi16(a, (unsigned)bits) : _mm512_srli_epi16(a, (unsigned)-bits);
}

/* The product needs unsigned codes, so those of Q8_0 get 128 added, and their sums start 128 times
 * the values' sum lower. */
INLINE quad to_quad(codes code, const panel_format format) {
    return format == PANEL_Q8_0 ? _mm512_xor_si512(code, _mm512_set1_epi8(-128)) : code;
}

INLINE void start_products(products *sum, int32_t start, const activation_block *block, const panel_format format) {
    sum->whole = _mm512_set1_epi32(format == PANEL_Q8_0 ? -16 * block->eight_sums : start);
}

INLINE quads load_quads(const activation_block *block, const int half) {
    (void)half;
    return block;
}

INLINE void multiply_quad(products *sum, quad code, quads block, const int q, const panel_format format) {
    (void)format;
    int32_t four;
    memcpy(&four, block->values + 4 * q, sizeof four);
    sum->whole = _mm512_dpbusd_epi32(sum->whole, code, _mm512_set1_epi32(four));
}

#define OWN_FLOAT_MATMUL
#include "kernels/tiles.h"

#if !defined(KERNELS_AMX)
/* One column waits for memory, which wider vectors read 8 % slower. */
void avx512_matmul_f32(const matmul_job *job) {
    if (job->num_columns == 1) avx2_matmul_f32(job);
    else float_matmul(job, PANEL_F32);
}

void avx512_matmul_f16(const matmul_job *job) {
    if (job->num_columns == 1) avx2_matmul_f16(job);
    else float_matmul(job, PANEL_F16);
}

void avx512_matmul_bf16(const matmul_job *job) {
    if (job->num_columns == 1) avx2_matmul_bf16(job);
    else float_matmul(job, PANEL_BF16);
}

void avx512_matmul_i8(const matmul_job *job) {
    if (job->num_columns == 1) avx2_matmul_i8(job);
    else float_matmul(job, PANEL_I8);
}
#endif

/* The table of the file that is compiled, with its own functions for quantized matrices. */
#define AVX512_KERNELS(its_name)                                                                            \
    {                                                                                                       \
        .name = its_name,                                                                                   \
        .matmul = {avx512_matmul_f32, avx512_matmul_f16, avx512_matmul_bf16, avx512_matmul_i8, matmul_q8_0, \
                   matmul_q4_0, matmul_q4_1, matmul_q5_1, matmul_q4_k, matmul_q5_k, matmul_q6_k},           \
        .quantize = avx2_quantize,                                                                          \
        .to_halves = avx2_to_halves,                                                                        \
        .sum_of_squares = avx2_sum_of_squares,                                                              \
        .maximum = avx2_maximum,                                                                            \
        .exp_and_sum = avx2_exp_and_sum,                                                                    \
        .swiglu = avx2_swiglu,                                                                              \
    }

#if !defined(KERNELS_AMX)
const kernels kernels_avx512 = AVX512_KERNELS("avx512");
#endif
#endif
