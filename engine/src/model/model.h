/* model.h: a model in memory: its data and shapes, and the functions that fill and free it.
 *
 * Shape letters, everywhere in engine/: D hidden, H query heads, K kv heads, S head size, F ffn,
 * V vocab, L layers, T tokens of one pass. Names follow Hugging Face (docs/formats.md has the
 * table). */
#ifndef LLAMITA_MODEL_H
#define LLAMITA_MODEL_H

#include "kernels/panel.h"
#include "llamita.h"
#include "model/rope.h"
#include "platform/platform.h"

/* A matrix [num_rows][row_length]; row_length is a multiple of its type's block. `data` is as
 * stored in the file, row-major, aligned to 4 bytes for F32, 2 for all others, and to no more:
 * llama2.c files put the first float at byte 28. `panels` is what the kernels read. */
typedef struct {
    tensor_type type;
    int64_t num_rows, row_length;
    size_t row_bytes;
    const void *data; /* in the mapping: use model_read; or in memory that the model owns */
    /* S if the file keeps pair i of a head in rows i and i + S/2 (Qwen), which are packed as rows 2i
     * and 2i + 1; else 0. */
    int32_t two_halves;

    panel_format format;
    size_t panel_bytes;
    const void *panels; /* [ceil(num_rows / 8)] in model->packed; NULL before model_pack */
} tensor;

/* Bytes of a matrix's panels, including padding up to the next matrix. */
static inline uint64_t tensor_packed_bytes(const tensor *t) {
    const uint64_t bytes = (uint64_t)panel_count(t->num_rows) * t->panel_bytes;
    return (bytes + PANEL_ALIGNMENT - 1) / PANEL_ALIGNMENT * PANEL_ALIGNMENT;
}

typedef struct {
    const float *attention_norm; /* [D] */
    tensor query;                /* [H*S, D] */
    tensor key, value;           /* [K*S, D] */
    tensor attention_output;     /* [D, H*S] */
    const float *ffn_norm;       /* [D] */
    tensor ffn_gate, ffn_up;     /* [F, D] */
    tensor ffn_down;             /* [D, F] */

    /* Only in some architectures; otherwise NULL and false. Rows of queries and keys are in the
     * order of the panels. */
    const float *query_bias;            /* [H*S] */
    const float *key_bias, *value_bias; /* [K*S] */
    const float *query_norm, *key_norm; /* [S] of every head, before RoPE */
    bool no_rope;
} layer;

typedef struct tokenizer tokenizer; /* tokenizer.h */
typedef struct kernels kernels;     /* kernels.h */
typedef struct late_pack late_pack; /* model_pack.c */

struct llamita_model {
    llamita_model_info info;
    const kernels *kernels;

    tensor token_embedding;   /* [V, D] */
    tensor output;            /* [V, D]; the same data as token_embedding when tied */
    const float *output_norm; /* [D] */
    rope_scaling rope;        /* what the file says; the next four fields follow from it */
    /* [S/2] angle per position: theta^(-2i/S), scaled. Pairs are (2i, 2i+1), as in llama2.c and in
     * GGUF files of most architectures. */
    const float *rope_frequency;
    /* longrope: the angles of sessions with room for more than rope_short_context tokens; else NULL.
     * A session has one set of angles, because keys in its cache cannot be turned again. */
    const float *rope_long_frequency;
    int32_t rope_short_context;
    float rope_attention_factor; /* multiplies cos and sin: of yarn and longrope; else 1 */
    layer *layers;               /* [L] */

    tokenizer *tokenizer; /* NULL if the file has none */
    char *chat_template;  /* NULL if the file has none */
    char *system_prompt;  /* NULL if the file has none */
    bool bos_ends;        /* llama2.c: BOS separates texts */

    void *mapping; /* the whole file, read-only; NULL once the model is open */
    size_t mapping_bytes;
    platform_file *file;   /* of the mapping; NULL: the mapping is memory */
    platform_file *pieces; /* of a GGUF in several files: those after the first, until the model is open */
    int32_t num_pieces;
    void *packed; /* all panels, then the rows of token_embedding; NULL before model_pack */
    size_t packed_bytes;
    late_pack *late; /* of model_pack_later; else NULL */
    void **owned;    /* memory from model_allocate */
    size_t num_owned;
};

/* The matrices of a layer, in the order of use. */
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

/* The row of a file that is packed as this one; two_halves as in tensor. */
static inline int64_t model_stored_row(int32_t two_halves, int64_t row) {
    if (two_halves == 0) return row;
    const int64_t in_head = row % two_halves;
    return row - in_head + in_head / 2 + in_head % 2 * (two_halves / 2);
}

/* Fills the totals over the weights in info, and the name of their most common type. */
void model_describe(llamita_model *model);

/* Frees everything but the mapping and the struct itself. */
void model_clear(llamita_model *model);

void model_close_pieces(llamita_model *model);

/* Copies bytes at this place of the mapping, or of other memory. False: they are not in the file any
 * more. */
bool model_read(const llamita_model *model, const void *data, size_t num_bytes, void *to);

/* True if these bytes are in the file or one of its pieces, and so must be copied to outlive it. */
bool model_is_in_file(const llamita_model *model, const void *data);

/* True if these bytes are in memory, not in a mapping of a file that may change. */
bool model_is_in_memory(const llamita_model *model, const void *data, size_t num_bytes);

/* Returns zeroed, 64-byte aligned memory that model_clear frees, or NULL if out of memory. */
void *model_allocate(llamita_model *model, size_t num_bytes);

#endif
