/* mmap_file.h: maps a file into memory. */
#ifndef LLAMITA_MMAP_FILE_H
#define LLAMITA_MMAP_FILE_H

#include "llamita.h"

typedef struct {
    void *bytes; /* the caller releases them with munmap */
    size_t num_bytes;
} mmap_file;

/* Maps a regular, non-empty file read-only. what: "model", "tokenizer" or "adapter", for
 * messages. */
llamita_status mmap_file_open(const char *what, const char *path, mmap_file *file, llamita_error *error);

#endif
