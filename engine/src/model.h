/* model.h: what a model is in memory: data and shapes, no code but the declarations of who fills and frees it.
 *
 * Shape letters, everywhere in engine/: D hidden, H query heads, K kv heads, S head size, F ffn, V vocab, L layers,
 * T tokens of one pass. Names follow Hugging Face (docs/formats.md has the table).
 */
#ifndef LLAMITA_MODEL_H
#define LLAMITA_MODEL_H

#include "llamita.h"
#include "panel.h"

/* A matrix [num_rows][row_length]; row_length is a multiple of its type's block. As the file has it, row-major, aligned
 * to 4 bytes for F32, 2 for all else, and to no more: llama2.c files put the first float at byte 28. And as the kernels
 * read it. */
typedef struct {
    tensor_type type;
    int64_t num_rows, row_length;
    size_t row_bytes;
    const void *data; /* into the mapping, or owned by the model */

    panel_format format;
    size_t panel_bytes;
    const void *panels; /* [ceil(num_rows / 8)] of panel_bytes; NULL before model_pack */
} tensor;

typedef struct {
    const float *attention_norm; /* [D] */
    tensor query;                /* [H*S, D] */
    tensor key, value;           /* [K*S, D] */
    tensor attention_output;     /* [D, H*S] */
    const float *ffn_norm;       /* [D] */
    tensor ffn_gate, ffn_up;     /* [F, D] */
    tensor ffn_down;             /* [D, F] */
} layer;

typedef struct tokenizer tokenizer; /* tokenizer.h */
typedef struct kernels kernels;     /* kernels.h */

struct llamita_model {
    llamita_model_info info;
    const kernels *kernels;

    tensor token_embedding;      /* [V, D] */
    tensor output;               /* [V, D]; the same data as token_embedding when tied */
    const float *output_norm;    /* [D] */
    const float *rope_frequency; /* [S/2] angle per position: theta^(-2i/S), divided by the file's factors if any.
                                    Pairs are (2i, 2i+1): the order of GGUF "llama" and of llama2.c. */
    layer *layers;               /* [L] */

    tokenizer *tokenizer;        /* NULL: ids only */
    char *chat_template;         /* NULL: none */
    bool bos_ends;               /* llama2.c: BOS separates texts */

    void *mapping;               /* the whole file; read-only and private */
    size_t mapping_bytes;
    void *packed;                /* all panels; NULL before model_pack */
    size_t packed_bytes;
    void **owned;                /* what was allocated beside the mapping */
    size_t num_owned;
};

struct reader; /* reader.h */

/* llamita_model_open once the file is mapped: finds the format by content and fills the model but for its tokenizer. On
 * failure the caller clears the half-filled model. kernels: their name, or NULL. */
llamita_status model_fill(llamita_model *model, const char *path, const char *kernels, llamita_error *error);

/* And then its tokenizer, with what info says of it, and its chat template. tokenizer_path: NULL, or the file to take it
 * from. Leaves the weights alone: they may be packed meanwhile. On failure the caller clears the model. */
llamita_status model_fill_tokenizer(llamita_model *model, const char *path, const char *tokenizer_path,
                                    llamita_error *error);

/* Packs every matrix for the kernels, in parallel, into memory of its own (huge pages where there are some): from here
 * on only token_embedding is read from the file. beside(argument), unless NULL, runs once meanwhile, on the calling
 * thread; where packing fails it may not have run. On failure the caller clears the model. */
typedef void model_task(void *argument);
llamita_status model_pack(llamita_model *model, const char *path, model_task *beside, void *argument,
                          llamita_error *error);

/* The matrices of one token's pass through a layer, in the order of use. */
typedef enum {
    MATRIX_QUERY,
    MATRIX_KEY,
    MATRIX_VALUE,
    MATRIX_ATTENTION_OUTPUT,
    MATRIX_FFN_GATE,
    MATRIX_FFN_UP,
    MATRIX_FFN_DOWN,
    MATRICES_PER_LAYER
} layer_matrix;
void model_layer_matrices(layer *l, tensor *matrices[MATRICES_PER_LAYER]);

/* Frees everything but the mapping and the struct itself. */
void model_clear(llamita_model *model);

/* Each fills an empty model from the mapped file (model->mapping) and validates every number in it before use; on
 * failure the caller frees the half-filled model. path is for messages. */
llamita_status gguf_fill_model(llamita_model *model, const char *path, llamita_error *error);
llamita_status llama2c_fill_model(llamita_model *model, const char *path, llamita_error *error);

/* Only the tokenizer and the chat template, from a mapped GGUF: *out becomes NULL if it holds none, and out may be NULL
 * if none is wanted; *chat_template becomes NULL if there is none, else it is the caller's to free. And from a
 * tokenizer.bin of vocab_size entries. */
llamita_status gguf_read_tokenizer(const void *mapping, size_t num_bytes, const char *path, tokenizer **out,
                                   char **chat_template, llamita_error *error);
llamita_status llama2c_read_tokenizer(const void *mapping, size_t num_bytes, const char *path, int32_t vocab_size,
                                      tokenizer **out, llamita_error *error);

/* Zeroed memory that the model frees when it closes; NULL if there is none to be had. 64-byte aligned. */
void *model_allocate(llamita_model *model, size_t num_bytes);

/* Once info holds the file's sizes: do they make a Llama, and one that this engine's numbers can hold? */
llamita_status model_check_shape(const llamita_model *model, const struct reader *from);

/* rope_frequency[S/2] from info.rope_theta; every angle is divided by scale, and by divisors[S/2] unless NULL. */
llamita_status model_fill_rope(llamita_model *model, const struct reader *from, double scale, const float *divisors);

/* Refuses NaN, infinities: name is the tensor's, for the message. */
llamita_status model_check_finite(const struct reader *from, const char *name, const float *values, int64_t length);

#endif
