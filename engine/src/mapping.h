/* mapping.h: a file as bytes in memory. */
#ifndef LLAMITA_MAPPING_H
#define LLAMITA_MAPPING_H

#include "llamita.h"

typedef struct {
    void *bytes; /* the caller gives them back with munmap */
    size_t num_bytes;
} mapped_file;

/* what: "model", "tokenizer" or "adapter", for messages. Refuses what is no regular file, and empty ones. */
llamita_status mapping_open(const char *what, const char *path, mapped_file *file, llamita_error *error);

#endif
