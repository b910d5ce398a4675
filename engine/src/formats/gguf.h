/* gguf.h: parses and validates GGUF files; finds their keys and tensors by name. */
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

/* A key and its value. All pointers point into the mapped file, unaligned. */
typedef struct {
    byte_slice key;
    gguf_type type;
    gguf_type element_type;    /* arrays: never GGUF_ARRAY */
    uint64_t count;            /* elements of an array, or bytes of a string */
    const unsigned char *data; /* the number, the bytes of the string, or the first element */
} gguf_entry;

enum { GGUF_MAX_DIMENSIONS = 4, GGUF_MAX_PIECES = 1000, GGUF_SHAPE_BYTES = 96 };

typedef struct {
    byte_slice name;
    uint32_t type;                      /* a valid tensor_type once the file is parsed */
    int64_t shape[GGUF_MAX_DIMENSIONS]; /* [row length, rows, 1, 1] */
    int num_dimensions;
    uint64_t offset, num_bytes;
    const unsigned char *data; /* [num_bytes], in the mapped file */
    bool used;                 /* for the readers, to find tensors that they do not know */
} gguf_tensor;

/* An architecture that the engine runs: a Llama, or one with another property. */
typedef struct {
    const char *name;         /* of general.architecture; its keys begin with it */
    const char *model;        /* in messages */
    bool attention_bias;      /* biases of q, k and v */
    bool use_qk_norm;         /* norms of the heads of q and k, before RoPE */
    bool two_halves;          /* pair i of a head of q or k is rows i and i + S/2, not 2i and 2i + 1 */
    int32_t no_rope_interval; /* every n-th layer is without RoPE; 0: none */
} gguf_architecture;

typedef struct {
    reader from;
    size_t file_bytes; /* from.num_bytes may be less: it is capped at the maximum header size */
    uint32_t version;
    gguf_entry *entries; /* sorted by key, unique; owned */
    size_t num_entries;
    gguf_tensor *tensors; /* sorted by name, unique; owned */
    size_t num_tensors;
    const gguf_architecture *architecture; /* that of the file; of one that is unknown, Llama's */
} gguf_file;

/* Checks every count, length, type and offset of the file. Call gguf_free afterwards, also on
 * failure. */
llamita_status gguf_parse(gguf_file *file, const reader *from);
void gguf_free(gguf_file *file);

/* Sorts the tensors by name, for gguf_find_tensor; two of one name are an error. */
llamita_status gguf_sort_tensors(gguf_file *file);

/* If the file is the first piece of a split model: maps the others, which the model then owns, and
 * adds their tensors to the file's. A missing, wrong or renamed piece is an error that names it. */
llamita_status gguf_take_pieces(llamita_model *model, gguf_file *file);

/* "[rows, columns]" for messages. */
void gguf_print_shape(char text[GGUF_SHAPE_BYTES], const int64_t *shape, int num_dimensions);

const gguf_entry *gguf_find(const gguf_file *file, const char *key);
gguf_tensor *gguf_find_tensor(const gguf_file *file, const char *name);

/* Typed values. A missing key is an error if found is NULL; else *found becomes false and *value is
 * left unchanged. */
llamita_status gguf_integer(const gguf_file *file, const char *key, int64_t low, int64_t high, int64_t *value,
                            bool *found);
/* A number, or an array with the same number for every layer. */
llamita_status gguf_layer_integer(const gguf_file *file, const char *key, int64_t low, int64_t high, int64_t *value,
                                  bool *found);
/* A number of any type; a boolean counts as 0 or 1. */
llamita_status gguf_number(const gguf_file *file, const char *key, double *value, bool *found);
llamita_status gguf_real(const gguf_file *file, const char *key, double *value, bool *found);
llamita_status gguf_bool(const gguf_file *file, const char *key, bool *value, bool *found);
llamita_status gguf_string(const gguf_file *file, const char *key, byte_slice *value, bool *found);
/* A copy of a text without zero bytes, for the caller to free; unchanged if the key is missing. */
llamita_status gguf_copy_text(const gguf_file *file, const char *key, size_t max_bytes, char **copy);

/* The array, which must exist and have this element type. */
llamita_status gguf_array(const gguf_file *file, const char *key, gguf_type element_type, const gguf_entry **array);

/* The elements of an array of strings, in memory that the caller frees. They point into the
 * file. */
llamita_status gguf_strings(const gguf_file *file, const gguf_entry *array, byte_slice **strings);

/* The NAME of each matrix of a layer in "blk.N.NAME.weight". */
extern const char *const gguf_matrix_names[MATRICES_PER_LAYER];

bool slice_is(byte_slice slice, const char *text);

#endif
