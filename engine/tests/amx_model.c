/* amx_model.c: kernels_amx.c with AMX's tile instructions in C, as Intel's manual describes them (SDM,
 * volume 2): a table for test_kernels on processors with AVX-512. It stops at what a processor would
 * fault on. CMakeLists.txt sets the compiler flags. */
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUIRE(condition, ...)           \
    do {                                  \
        if (!(condition)) {               \
            fprintf(stderr, __VA_ARGS__); \
            fputc('\n', stderr);          \
            abort();                      \
        }                                 \
    } while (0)

static _Thread_local struct {
    bool configured;
    uint16_t bytes_per_row[8];
    uint8_t rows[8];
    uint8_t data[8][16][64];
} tiles;

static inline void model_loadconfig(const void *memory) {
    const uint8_t *config = memory;
    REQUIRE(config[0] == 1 && config[1] == 0, "palette %d, start row %d", config[0], config[1]);
    memset(&tiles, 0, sizeof tiles);
    tiles.configured = true;
    memcpy(tiles.bytes_per_row, config + 16, sizeof tiles.bytes_per_row);
    memcpy(tiles.rows, config + 48, sizeof tiles.rows);
    for (int i = 2; i < 64; i++)
        REQUIRE(config[i] == 0 || (i >= 16 && i < 32) || (i >= 48 && i < 56), "byte %d is reserved", i);
    for (int t = 0; t < 8; t++)
        REQUIRE(tiles.rows[t] <= 16 && tiles.bytes_per_row[t] <= 64 &&
                    (tiles.rows[t] > 0) == (tiles.bytes_per_row[t] > 0),
                "tile %d is %d rows of %d bytes", t, tiles.rows[t], tiles.bytes_per_row[t]);
}

static inline void model_release(void) { memset(&tiles, 0, sizeof tiles); }

static inline void model_require(int t) {
    REQUIRE(tiles.configured && tiles.rows[t] > 0, "tile %d is used without a shape", t);
}

static inline void model_zero(int t) {
    model_require(t);
    memset(tiles.data[t], 0, sizeof tiles.data[t]);
}

static inline void model_load(int t, const void *base, size_t stride) {
    model_zero(t);
    for (size_t row = 0; row < tiles.rows[t]; row++)
        memcpy(tiles.data[t][row], (const char *)base + row * stride, tiles.bytes_per_row[t]);
}

static inline void model_store(int t, void *base, size_t stride) {
    model_require(t);
    for (size_t row = 0; row < tiles.rows[t]; row++)
        memcpy((char *)base + row * stride, tiles.data[t][row], tiles.bytes_per_row[t]);
}

/* TDPBSSD: sums[m][n] += the products of bytes 4k .. 4k + 3 of row m of a, and bytes 4n .. 4n + 3 of
 * row k of b, over all k. */
static inline void model_multiply(int sums, int a, int b) {
    model_require(sums), model_require(a), model_require(b);
    REQUIRE(tiles.rows[sums] == tiles.rows[a] && tiles.bytes_per_row[sums] == tiles.bytes_per_row[b] &&
                tiles.bytes_per_row[a] == 4 * tiles.rows[b],
            "the shapes of tiles %d, %d and %d do not fit", sums, a, b);
    for (int m = 0; m < tiles.rows[sums]; m++)
        for (int n = 0; n < tiles.bytes_per_row[sums] / 4; n++) {
            int32_t sum;
            memcpy(&sum, &tiles.data[sums][m][4 * n], sizeof sum);
            for (int k = 0; k < tiles.rows[b]; k++)
                for (int i = 0; i < 4; i++)
                    sum += (int8_t)tiles.data[a][m][4 * k + i] * (int8_t)tiles.data[b][k][4 * n + i];
            memcpy(&tiles.data[sums][m][4 * n], &sum, sizeof sum);
        }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#define _tile_loadconfig model_loadconfig
#define _tile_release model_release
#define _tile_zero model_zero
#define _tile_loadd model_load
#define _tile_stored model_store
#define _tile_dpbssd model_multiply

#define LLAMITA_HAS_AMX
#define kernels_amx kernels_amx_model
extern const struct kernels kernels_amx_model;
#include "kernels/kernels_amx.c"
