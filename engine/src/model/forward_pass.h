/* forward_pass.h: the state and buffers of a pass, and how its workers share it. */
#ifndef LLAMITA_FORWARD_PASS_H
#define LLAMITA_FORWARD_PASS_H

#include <stdatomic.h>

#include "model/attention.h"
#include "model/forward.h"
#include "model/model_pack.h"
#include "model/ops.h"

/* Up to here each worker normalizes all tokens itself, which is faster than a barrier. */
#define SMALL_PASS_TOKENS 8

/* How the workers split attention. */
typedef enum {
    BY_TILE,    /* by pairs of a tile and a kv head */
    BY_KV_HEAD, /* each worker attends with the kv heads it projected: saves a barrier */
    BY_PAGE,    /* by pages of the cache, for few tokens with long contexts */
} attention_split;

struct forward {
    const llamita_model *model;
    thread_pool *pool;
    int32_t max_pages; /* per sequence */
    rope_angles rope;
    bool heads_in_parts; /* the rows of one head may be projected by several workers */

    /* This pass. */
    const forward_span *spans;
    int32_t num_spans, num_tokens, num_logits, num_tiles;
    bool is_small; /* at most SMALL_PASS_TOKENS */
    attention_split attention_split;
    forward_output output_kind;
    float *out; /* [num_logits, V or D] */
    atomic_bool not_finite;
    weights_state weights;
    int32_t ids[PASS_TOKENS], positions[PASS_TOKENS];
    int32_t logit_tokens[PASS_TOKENS]; /* [num_logits] */
    kv_cache *caches[PASS_TOKENS];     /* for each token */
    attention_tile tiles[PASS_TOKENS];
    lora_tokens lora_runs[PASS_TOKENS];
    int32_t num_lora_runs;

    /* Memory for PASS_TOKENS tokens. */
    float *residual;            /* [T, D] */
    activations normed;         /* [T, D] */
    float *rope_table;          /* [T, S] cos and sin of each pair */
    float *query, *key, *value; /* [T, H*S], [T, K*S], [T, K*S] */
    activations attention_out;  /* [T, H*S] */
    activations ffn_gate;       /* [T, F] */
    float *ffn_up;              /* [T, F] */
    float *update;              /* [T, D] added to the residual by a block */
    float *last;                /* [T, D] residual rows of the tokens with logits */
    float *partials;            /* [SMALL_PASS_TOKENS, H, max_pages] from attention_page */
    /* From lora_down: [T, lora_floats], then [SMALL_PASS_TOKENS, lora_floats] for each worker. NULL
     * until adapters are used. */
    float *lora_hidden;
    int64_t lora_floats;

    struct thread_buffers {        /* for one worker */
        activations normed;        /* [SMALL_PASS_TOKENS, D] */
        activations attention_out; /* [SMALL_PASS_TOKENS, H*S] */
        float *attention_scratch;
        row_scratch rows; /* until the weights are packed */
    } *thread_buffers;    /* [threads] */
};

/* Rows [begin, end) of a matrix. */
typedef struct {
    int64_t begin, end;
} rows;

/* This worker's even share of a matrix's rows. */
rows forward_share_rows(worker w, int64_t num_rows);

/* This worker's tokens: all of them in a small pass, otherwise an even share. */
rows forward_share_tokens(const forward *f, worker w, int64_t num_tokens);

/* The part of `list` that lies in [offset, offset + length), relative to offset. */
rows rows_within(rows list, int64_t offset, int64_t length);

/* This worker's rows of query, key and value: those of whole kv heads, or an even share of the
 * concatenated rows of all three. */
void forward_share_projections(const forward *f, worker w, rows *query, rows *key, rows *value);

/* Lays out the tokens of a pass and decides how num_threads workers share it. */
void forward_plan(forward *f, int num_threads, const forward_span *spans, int32_t num_spans);

/* Stores these rows of keys, already rotated, and values in the caches. */
void forward_store_kv(const forward *f, int32_t layer_index, rows keys, rows values);

/* This worker's part of attention. BY_PAGE: partial results, which forward_gather_heads merges. */
void forward_attend(forward *f, worker w, int32_t layer_index);

/* Gathers the results of all heads for attention_output. In a small pass each worker has its own
 * copy. */
const activations *forward_gather_heads(forward *f, worker w, bool quantized);

#endif
