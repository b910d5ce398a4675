/* gguf.h: a GGUF file taken apart and checked: its keys and its tensors, by name. */
#ifndef LLAMITA_GGUF_H
#define LLAMITA_GGUF_H

#include "formats/reader.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"

typedef enum {
    GGUF_U8 = 0,
    GGUF_I8 = 1,
    GGUF_U16 = 2,
    GGUF_I16 = 3,
    GGUF_U32 = 4,
    GGUF_I32 = 5,
    GGUF_F32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
    GGUF_U64 = 10,
    GGUF_I64 = 11,
    GGUF_F64 = 12,
} gguf_type;

/* A key and its value. All data lies inside the file, at any address. */
typedef struct {
    byte_slice key;
    gguf_type type;
    gguf_type element_type;    /* arrays: never GGUF_ARRAY */
    uint64_t count;            /* arrays: elements; strings: bytes */
    const unsigned char *data; /* the number, the string's bytes, or the first element */
} gguf_entry;

enum { GGUF_MAX_DIMENSIONS = 4 };

typedef struct {
    byte_slice name;
    uint32_t type;                      /* a tensor_type once the file is parsed */
    int64_t shape[GGUF_MAX_DIMENSIONS]; /* [row length, rows, 1, 1] */
    int num_dimensions;
    uint64_t offset, num_bytes;
    const unsigned char *data; /* num_bytes of them, inside the file */
    bool used;
} gguf_tensor;

typedef struct {
    reader from;
    size_t file_bytes; /* from.num_bytes is less in a long file: the most that a header may take */
    uint32_t version;
    gguf_entry *entries; /* sorted by key, each once */
    size_t num_entries;
    gguf_tensor *tensors; /* sorted by name, each once */
    size_t num_tensors;
} gguf_file;

/* Checks every count, length, type and offset of the file; gguf_free releases what it allocated, also after a failure.
 */
llamita_status gguf_parse(gguf_file *file, const reader *from);
void gguf_free(gguf_file *file);

const gguf_entry *gguf_find(const gguf_file *file, const char *key);
gguf_tensor *gguf_find_tensor(const gguf_file *file, const char *name);

/* Typed values. A missing key is an error if found is NULL; else it sets *found and leaves *value alone. */
llamita_status gguf_integer(const gguf_file *file, const char *key, int64_t low, int64_t high, int64_t *value,
                            bool *found);
llamita_status gguf_real(const gguf_file *file, const char *key, double *value, bool *found);
llamita_status gguf_bool(const gguf_file *file, const char *key, bool *value, bool *found);
llamita_status gguf_string(const gguf_file *file, const char *key, byte_slice *value, bool *found);

/* The array of that element type; its missing is an error. */
llamita_status gguf_array(const gguf_file *file, const char *key, gguf_type element_type, const gguf_entry **array);

/* The elements of an array of strings, as new memory for the caller to free. */
llamita_status gguf_strings(const gguf_file *file, const gguf_entry *array, byte_slice **strings);

/* What a layer's matrices are called in "blk.N.NAME.weight". */
extern const char *const gguf_matrix_names[MATRICES_PER_LAYER];

bool slice_is(byte_slice slice, const char *text);

#endif
