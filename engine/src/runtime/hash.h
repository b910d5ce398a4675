/* hash.h: 64-bit hashes: hash_bytes for tables in memory, hash_content for what files hold. Neither
 * resists deliberate collisions. */
#ifndef LLAMITA_HASH_H
#define LLAMITA_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t hash_mix(uint64_t hash) {
    hash = (hash ^ hash >> 32) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 29;
}

static inline uint64_t hash_bytes(const char *bytes, size_t num_bytes) {
    uint64_t hash = num_bytes, part;
    for (; num_bytes >= 8; bytes += 8, num_bytes -= 8) {
        memcpy(&part, bytes, 8);
        hash = hash_mix(hash ^ part);
    }
    part = 0;
    memcpy(&part, bytes, num_bytes);
    return hash_mix(hash ^ part) >> 16; /* the low bits are mixed least */
}

/* Continues the hash of the bytes before these. A change within eight bytes always changes it. */
uint64_t hash_content(uint64_t hash, const void *content, size_t num_bytes);

#endif
