/* model.h: what a model is in memory: data and shapes, no code but the declarations of who fills and frees it.
 *
 * Shape letters, everywhere in engine/: D hidden, H query heads, K kv heads, S head size, F ffn, V vocab, L layers,
 * T tokens of one pass. Names follow Hugging Face (docs/formats.md has the table).
 */
#ifndef LLAMITA_MODEL_H
#define LLAMITA_MODEL_H

#include "kernels/panel.h"
#include "llamita.h"

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

    tokenizer *tokenizer; /* NULL: ids only */
    char *chat_template;  /* NULL: none */
    bool bos_ends;        /* llama2.c: BOS separates texts */

    void *mapping; /* the whole file; read-only and private */
    size_t mapping_bytes;
    void *packed; /* all panels; NULL before model_pack */
    size_t packed_bytes;
    void **owned; /* what was allocated beside the mapping */
    size_t num_owned;
};

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

/* Fills the sums over the weights in info, and the name of their most common type. */
void model_describe(llamita_model *model);

/* Frees everything but the mapping and the struct itself. */
void model_clear(llamita_model *model);

/* Zeroed memory that the model frees when it closes; NULL if there is none to be had. 64-byte aligned. */
void *model_allocate(llamita_model *model, size_t num_bytes);

#endif
