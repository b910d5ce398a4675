/* hash.c: the hash of what files hold. Inlined into each of its callers it took 10 KB. */
#include "runtime/hash.h"

/* Each step maps a lane's values to values one to one. Four lanes, because a multiplication takes
 * several cycles. */
uint64_t hash_content(uint64_t hash, const void *content, size_t num_bytes) {
    enum { LANES_OF_HASH = 4, STEP_BYTES = 8 * LANES_OF_HASH };
    const unsigned char *bytes = (const unsigned char *)content;
    uint64_t lanes[LANES_OF_HASH] = {1, 2, 3, 4};
    hash = hash_mix(hash ^ num_bytes);
    while (num_bytes > 0) {
        uint64_t words[LANES_OF_HASH] = {0};
        const size_t count = num_bytes < STEP_BYTES ? num_bytes : STEP_BYTES;
        if (count == STEP_BYTES) memcpy(words, bytes, STEP_BYTES);
        else memcpy(words, bytes, count);
        for (int i = 0; i < LANES_OF_HASH; i++) {
            lanes[i] = (lanes[i] ^ words[i]) * 0x9E3779B97F4A7C15u;
            lanes[i] ^= lanes[i] >> 32;
        }
        bytes += count;
        num_bytes -= count;
    }
    for (int i = 0; i < LANES_OF_HASH; i++) hash = hash_mix(hash ^ lanes[i]);
    return hash;
}
