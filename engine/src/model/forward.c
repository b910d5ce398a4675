/* forward.c: the network, from token ids to logits, with the names and in the order of
 * src/llamita/model/llama.py.
 *
 * All workers of the pool run forward_worker together, each on its part of every operation. A
 * barrier separates one worker's writes from another worker's reads. A small pass (decoding) has
 * four barriers per layer, because each worker normalizes the whole residual itself, and five if a
 * worker cannot attend with just the heads that it projected. */
#include "model/forward_pass.h"

/* ------------------------------------------------------------------ adapters */

static float *lora_hidden_of(const forward *f, worker w, const lora_tokens *tokens) {
    const int64_t first = f->is_small ? PASS_TOKENS + (int64_t)w.index * SMALL_PASS_TOKENS : 0;
    return f->lora_hidden + (first + tokens->first_token) * f->lora_floats;
}

/* Computes LoRA's hidden values (A x) for the columns that matrices first .. last read. */
static void apply_lora_down(const forward *f, worker w, int32_t layer_index, layer_matrix first, layer_matrix last,
                            const activations *columns) {
    if (f->num_lora_runs == 0) return;
    const rows tokens = forward_share_tokens(f, w, f->num_tokens);
    for (int32_t i = 0; i < f->num_lora_runs; i++)
        lora_down(f->model->kernels, &f->lora_runs[i], layer_index, first, last, columns, tokens.begin, tokens.end,
                  lora_hidden_of(f, w, &f->lora_runs[i]));
    if (!f->is_small) thread_pool_barrier(w);
}

/* Rows are packed for one product in pieces of this size, which stay in the L2 cache. */
#define PIECE_BYTES ((size_t)128 << 10)

/* out = matrix(columns), for these rows: from the panels, or by packing rows of the file. If that
 * fails, what is in `out` does not matter: the pass fails. */
static void multiply(const forward *f, worker w, const tensor *matrix, const activations *columns, int32_t num_tokens,
                     rows mine, float *out) {
    const kernels *k = f->model->kernels;
    if (f->weights == WEIGHTS_PACKED) {
        matmul(k, matrix, columns, num_tokens, mine.begin, mine.end, out);
        return;
    }
    row_scratch *scratch = &f->thread_buffers[w.index].rows;
    const int64_t num_panels = (int64_t)(PIECE_BYTES / matrix->panel_bytes),
                  step = PANEL_ROWS * (num_panels > 0 ? num_panels : 1);
    for (int64_t row = mine.begin; row < mine.end; row += step) {
        const int64_t end = row + step < mine.end ? row + step : mine.end;
        if (!model_pack_rows(f->model, matrix, row, end, scratch)) return;
        tensor piece = *matrix;
        piece.panels = scratch->panels;
        matmul(k, &piece, columns, num_tokens, 0, end - row, out + row);
    }
}

/* The same plus what the adapters add. */
static void apply(const forward *f, worker w, int32_t layer_index, layer_matrix which, const tensor *matrix,
                  const activations *columns, rows mine, float *out) {
    multiply(f, w, matrix, columns, f->num_tokens, mine, out);
    for (int32_t i = 0; i < f->num_lora_runs; i++)
        lora_up(f->model->kernels, &f->lora_runs[i], layer_index, which, lora_hidden_of(f, w, &f->lora_runs[i]),
                mine.begin, mine.end, out);
}

/* ------------------------------------------------------------------ the network */

/* Normalizes the rows of `in` for the next matrices. In a small pass each worker has its own
 * copy. */
static const activations *normalize(forward *f, worker w, const float *in, int32_t num_tokens, const float *weight,
                                    bool quantized) {
    activations *out = f->is_small ? &f->thread_buffers[w.index].normed : &f->normed;
    const rows tokens = forward_share_tokens(f, w, num_tokens);
    rms_norm(f->model->kernels, in, weight, f->model->info.rms_norm_eps, tokens.begin, tokens.end, out);
    if (quantized) quantize(f->model->kernels, out->values, tokens.begin, tokens.end, out);
    if (!f->is_small) thread_pool_barrier(w);
    return out;
}

/* Adds the bias to these rows of the queries or keys [T, length], normalizes their heads and rotates
 * them: each if the layer does. */
static void finish_heads(const forward *f, const layer *l, const float *bias, const float *norm, rows mine,
                         int64_t length, float *heads) {
    const llamita_model_info *info = &f->model->info;
    const int32_t head_dim = info->head_dim;
    for (int64_t t = 0; t < f->num_tokens; t++, heads += length) {
        if (bias) add_bias(bias, mine.begin, mine.end, heads);
        if (norm) rms_norm_heads(f->model->kernels, norm, info->rms_norm_eps, head_dim, mine.begin, mine.end, heads);
        if (!l->no_rope) rope(f->rope_table + t * head_dim, head_dim, mine.begin, mine.end, heads);
    }
}

/* Computes this worker's rows of query, key and value, and stores key and value. */
static void project(forward *f, worker w, int32_t layer_index, const activations *normed) {
    const layer *layer = &f->model->layers[layer_index];
    rows query, key, value;
    forward_share_projections(f, w, &query, &key, &value);
    apply_lora_down(f, w, layer_index, MATRIX_QUERY, MATRIX_VALUE, normed);
    apply(f, w, layer_index, MATRIX_QUERY, &layer->query, normed, query, f->query);
    apply(f, w, layer_index, MATRIX_KEY, &layer->key, normed, key, f->key);
    apply(f, w, layer_index, MATRIX_VALUE, &layer->value, normed, value, f->value);
    finish_heads(f, layer, layer->query_bias, layer->query_norm, query, layer->query.num_rows, f->query);
    finish_heads(f, layer, layer->key_bias, layer->key_norm, key, layer->key.num_rows, f->key);
    for (int64_t t = 0; layer->value_bias && t < f->num_tokens; t++)
        add_bias(layer->value_bias, value.begin, value.end, f->value + t * layer->value.num_rows);
    forward_store_kv(f, layer_index, key, value);
}

/* residual += matrix(columns), for this worker's rows. */
static void add_product(forward *f, worker w, int32_t layer_index, layer_matrix which, const tensor *matrix,
                        const activations *columns) {
    const rows mine = forward_share_rows(w, matrix->num_rows);
    apply(f, w, layer_index, which, matrix, columns, mine, f->update);
    add(f->update, matrix->num_rows, f->num_tokens, mine.begin, mine.end, f->residual);
}

static bool quantized(const tensor *t) { return panel_is_quantized(t->format); }

/* residual += attention(attention_norm(residual)) */
static void attention_block(forward *f, worker w, int32_t layer_index) {
    const layer *layer = &f->model->layers[layer_index];
    const activations *normed =
        normalize(f, w, f->residual, f->num_tokens, layer->attention_norm,
                  quantized(&layer->query) || quantized(&layer->key) || quantized(&layer->value));
    project(f, w, layer_index, normed);
    if (f->attention_split != BY_KV_HEAD) thread_pool_barrier(w);
    forward_attend(f, w, layer_index);
    thread_pool_barrier(w);
    const activations *heads = forward_gather_heads(f, w, quantized(&layer->attention_output));
    /* LoRA reads floats; a worker's quantized copy has none. */
    apply_lora_down(f, w, layer_index, MATRIX_ATTENTION_OUTPUT, MATRIX_ATTENTION_OUTPUT,
                    f->attention_split == BY_PAGE ? heads : &f->attention_out);
    add_product(f, w, layer_index, MATRIX_ATTENTION_OUTPUT, &layer->attention_output, heads);
    thread_pool_barrier(w);
}

/* residual += ffn_down(silu(ffn_gate(ffn_norm(residual))) * ffn_up(ffn_norm(residual))) */
static void ffn_block(forward *f, worker w, int32_t layer_index) {
    const layer *layer = &f->model->layers[layer_index];
    const kernels *k = f->model->kernels;
    const int64_t length = f->model->info.intermediate_size;
    const activations *normed = normalize(f, w, f->residual, f->num_tokens, layer->ffn_norm,
                                          quantized(&layer->ffn_gate) || quantized(&layer->ffn_up));
    const rows mine = forward_share_rows(w, length);
    apply_lora_down(f, w, layer_index, MATRIX_FFN_GATE, MATRIX_FFN_UP, normed);
    apply(f, w, layer_index, MATRIX_FFN_GATE, &layer->ffn_gate, normed, mine, f->ffn_gate.values);
    apply(f, w, layer_index, MATRIX_FFN_UP, &layer->ffn_up, normed, mine, f->ffn_up);
    swiglu(k, f->ffn_up, length, f->num_tokens, mine.begin, mine.end, f->ffn_gate.values);
    if (quantized(&layer->ffn_down)) quantize_part(k, f->num_tokens, mine.begin, mine.end, &f->ffn_gate);
    thread_pool_barrier(w);
    apply_lora_down(f, w, layer_index, MATRIX_FFN_DOWN, MATRIX_FFN_DOWN, &f->ffn_gate);
    add_product(f, w, layer_index, MATRIX_FFN_DOWN, &layer->ffn_down, &f->ffn_gate);
    thread_pool_barrier(w);
}

/* logits = output(output_norm(residual)), for the tokens whose logits are requested. */
static void output_block(forward *f, worker w) {
    const llamita_model *model = f->model;
    const int64_t hidden = model->info.hidden_size, vocab_size = model->info.vocab_size;
    const float *in = f->last;
    if (f->num_logits == f->num_tokens) {
        in = f->residual;
    } else {
        int64_t begin, end;
        thread_pool_share(w, f->num_logits, 1, &begin, &end);
        for (int64_t i = begin; i < end; i++)
            memcpy(f->last + i * hidden, f->residual + f->logit_tokens[i] * hidden, (size_t)hidden * sizeof(float));
        thread_pool_barrier(w);
    }
    const activations *normed = normalize(f, w, in, f->num_logits, model->output_norm, quantized(&model->output));
    const rows mine = forward_share_rows(w, vocab_size);
    multiply(f, w, &model->output, normed, f->num_logits, mine, f->out);
    for (int32_t i = 0; i < f->num_logits; i++)
        if (!all_finite(f->out + i * vocab_size + mine.begin, mine.end - mine.begin))
            atomic_store(&f->not_finite, true);
}

/* hidden state = output_norm(residual), for the same tokens. */
static void hidden_state_block(forward *f, worker w) {
    const llamita_model *model = f->model;
    const int64_t hidden = model->info.hidden_size;
    int64_t begin, end;
    thread_pool_share(w, f->num_logits, 1, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        activations row = {f->out + i * hidden, NULL, hidden};
        rms_norm(model->kernels, f->residual + f->logit_tokens[i] * hidden, model->output_norm,
                 model->info.rms_norm_eps, 0, 1, &row);
        if (!all_finite(row.values, hidden)) atomic_store(&f->not_finite, true);
    }
}

/* residual = the rows of these tokens in the embedding. */
static void embed_tokens(forward *f, worker w, int64_t begin, int64_t end) {
    const tensor *table = &f->model->token_embedding;
    if (f->weights == WEIGHTS_PACKED) {
        embed(table, f->ids, begin, end, f->residual);
        return;
    }
    for (int64_t t = begin; t < end; t++) {
        const void *row = model_file_rows(f->model, table, f->ids[t], 1, &f->thread_buffers[w.index].rows);
        if (row) tensor_type_dequantize(table->type)(row, table->row_length, f->residual + t * table->row_length);
    }
}

static void forward_worker(void *argument, worker w) {
    forward *f = argument;
    const llamita_model *model = f->model;
    int64_t begin, end;
    thread_pool_share(w, f->num_tokens, 1, &begin, &end);
    embed_tokens(f, w, begin, end);
    rope_fill_table(f->rope.frequency, f->rope.attention_factor, model->info.head_dim, f->positions, begin, end,
                    f->rope_table);
    thread_pool_barrier(w);
    for (int32_t i = 0; i < model->info.num_hidden_layers; i++) {
        attention_block(f, w, i);
        ffn_block(f, w, i);
    }
    if (f->num_logits == 0) return;
    if (f->output_kind == OUTPUT_LOGITS) output_block(f, w);
    else hidden_state_block(f, w);
}

/* ------------------------------------------------------------------ a pass */

bool forward_run(forward *f, int num_threads, weights_state weights, const forward_span *spans, int32_t num_spans,
                 forward_output kind, float *out) {
    forward_plan(f, num_threads, spans, num_spans);
    f->output_kind = kind;
    f->out = out;
    f->weights = weights;
    atomic_store(&f->not_finite, false);
    thread_pool_run(f->pool, num_threads, forward_worker, f);
    return !atomic_load(&f->not_finite);
}
