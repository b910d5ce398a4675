/* reader.h: reads little-endian numbers and byte ranges from a mapped file with bounds checks. */
#ifndef LLAMITA_READER_H
#define LLAMITA_READER_H

#include "llamita.h"
#include "platform/platform.h"
#include "tokenizer/tokenizer.h"

/* A position in a mapped file. Owns nothing. */
typedef struct reader {
    const unsigned char *bytes;
    size_t num_bytes;
    size_t position;  /* <= num_bytes */
    const char *what; /* "model", "tokenizer" or "adapter", for messages */
    const char *path; /* for messages */
    llamita_error *error;
    platform_file *file; /* keeps what is read; NULL: the bytes are in memory */
} reader;

/* Sets "cannot open <what> <path>: <message>" and returns LLAMITA_ERROR_FORMAT. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
llamita_status reader_error(const reader *from, const char *format, ...);

/* Sets "cannot open <what> <path>: out of memory ..." and returns LLAMITA_ERROR_MEMORY. */
llamita_status reader_memory_error(const reader *from, uint64_t num_bytes);

/* Read a value and advance. False: not enough bytes are left, or the file was cut; the position does
 * not change. */
bool reader_u32(reader *from, uint32_t *value);
bool reader_u64(reader *from, uint64_t *value);
bool reader_bytes(reader *from, uint64_t num_bytes, const unsigned char **bytes);

/* Little-endian numbers at any address, aligned or not. */
uint32_t read_u32(const unsigned char *bytes);
uint64_t read_u64(const unsigned char *bytes);
float read_f32(const unsigned char *bytes);
double read_f64(const unsigned char *bytes);

/* UINT64_MAX on overflow: larger than any file, so that one comparison catches it. */
uint64_t saturating_add(uint64_t a, uint64_t b);
uint64_t saturating_multiply(uint64_t a, uint64_t b);

/* The arguments of "%.*s" for a name from a file, limited to 64 bytes. */
#define SHOWN_LENGTH(slice) ((slice).num_bytes < 64 ? (int)(slice).num_bytes : 64)
#define SHOWN(slice) SHOWN_LENGTH(slice), ((slice).bytes)

#endif
