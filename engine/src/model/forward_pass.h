/* forward_pass.h: the state and the memory of a pass, and how its workers share it. */
#ifndef LLAMITA_FORWARD_PASS_H
#define LLAMITA_FORWARD_PASS_H

#include <stdatomic.h>

#include "model/attention.h"
#include "model/forward.h"
#include "model/ops.h"

#define SMALL_PASS_TOKENS 8 /* up to here each worker norms all tokens itself: that is faster than a barrier */

/* How workers share attention. */
typedef enum {
    BY_TILE,    /* pairs of a tile and a kv head */
    BY_KV_HEAD, /* each worker the kv heads that it has projected itself: no barrier in between */
    BY_PAGE,    /* pages of the cache: few tokens with long contexts */
} attention_split;

struct forward {
    const llamita_model *model;
    thread_pool *pool;
    int32_t max_pages;  /* of a sequence */
    bool keys_in_parts; /* workers may share the rows of one kv head */

    /* This pass. */
    const forward_span *spans;
    int32_t num_spans, num_tokens, num_logits, num_tiles;
    bool is_small; /* at most SMALL_PASS_TOKENS */
    attention_split attention_split;
    float *logits; /* [num_logits, V] */
    atomic_bool damaged;
    int32_t ids[PASS_TOKENS], positions[PASS_TOKENS];
    int32_t logit_tokens[PASS_TOKENS]; /* [num_logits] */
    kv_cache *caches[PASS_TOKENS];     /* of each token */
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
    float *update;              /* [T, D] what a block adds to the residual */
    float *last;                /* [T, D] the rows of the residual that logits are wanted of */
    float *partials;            /* [SMALL_PASS_TOKENS, H, max_pages] of what attention_page writes */
    float *lora_hidden; /* [T, lora_floats] of what lora_down writes, then [SMALL_PASS_TOKENS, lora_floats] of each
                   worker; NULL: no adapters so far */
    int64_t lora_floats;

    struct thread_buffers {        /* of one worker */
        activations normed;        /* [SMALL_PASS_TOKENS, D] */
        activations attention_out; /* [SMALL_PASS_TOKENS, H*S] */
        float *attention_scratch;
    } *thread_buffers; /* [threads] */
};

/* Rows [begin, end) of a matrix. */
typedef struct {
    int64_t begin, end;
} rows;

/* An even part of the rows of a matrix. */
rows forward_share_rows(worker w, int64_t num_rows);

/* This worker's tokens: all of them in a small pass, else an even part. */
rows forward_share_tokens(const forward *f, worker w, int64_t num_tokens);

/* The part of `list` that lies in [offset, offset + length), relative to offset. */
rows rows_within(rows list, int64_t offset, int64_t length);

/* This worker's rows of query, key and value: those of whole kv heads, or else an even part of the list of all. */
void forward_share_projections(const forward *f, worker w, rows *query, rows *key, rows *value);

/* Lays out the tokens of a pass, and decides how num_threads workers share it. */
void forward_plan(forward *f, int num_threads, const forward_span *spans, int32_t num_spans);

/* Rotates the keys and stores these rows of keys and values in the caches. */
void forward_store_kv(const forward *f, int32_t layer_index, rows keys, rows values);

/* This worker's part of attention. BY_PAGE: partial results, which forward_gather_heads merges. */
void forward_attend(forward *f, worker w, int32_t layer_index);

/* The heads' results, as attention_output reads them; a small pass has a copy for each worker. */
const activations *forward_gather_heads(forward *f, worker w, bool quantized);

#endif
