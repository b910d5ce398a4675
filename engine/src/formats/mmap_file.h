/* mmap_file.h: a file as bytes in memory. */
#ifndef LLAMITA_MMAP_FILE_H
#define LLAMITA_MMAP_FILE_H

#include "llamita.h"

typedef struct {
    void *bytes; /* the caller gives them back with munmap */
    size_t num_bytes;
} mmap_file;

/* what: "model", "tokenizer" or "adapter", for messages. Refuses what is no regular file, and empty ones. */
llamita_status mmap_file_open(const char *what, const char *path, mmap_file *file, llamita_error *error);

#endif
