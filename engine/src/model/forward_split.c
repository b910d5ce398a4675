/* forward_split.c: lays out the tokens of a pass and splits its rows and attention among the
 * workers. */
#include "model/forward_pass.h"

/* ------------------------------------------------------------------ tokens */

/* Neighboring spans with equal adapter sets are computed together. */
static void add_lora_run(forward *f, const forward_span *span) {
    if (!span->adapters || span->adapters->count == 0) return;
    lora_tokens *last = f->num_lora_runs > 0 ? &f->lora_runs[f->num_lora_runs - 1] : NULL;
    if (last && last->first_token + last->num_tokens == f->num_tokens && lora_sets_equal(last->set, span->adapters))
        last->num_tokens += span->num_tokens;
    else f->lora_runs[f->num_lora_runs++] = (lora_tokens){span->adapters, f->num_tokens, span->num_tokens};
}

static void add_span(forward *f, const forward_span *span) {
    add_lora_run(f, span);
    for (int32_t i = 0; i < span->num_tokens; i++) {
        const int32_t t = f->num_tokens + i;
        f->ids[t] = span->ids[i];
        f->positions[t] = span->first_position + i;
        f->caches[t] = span->cache;
        if (i >= span->num_tokens - span->num_logits) f->logit_tokens[f->num_logits++] = t;
        if (i % TILE_TOKENS == 0)
            f->tiles[f->num_tiles++] = (attention_tile){span->cache, t, 0, span->first_position + i};
        f->tiles[f->num_tiles - 1].num_tokens++;
    }
    f->num_tokens += span->num_tokens;
}

void forward_plan(forward *f, int num_threads, const forward_span *spans, int32_t num_spans) {
    f->num_tokens = f->num_logits = f->num_tiles = f->num_lora_runs = 0;
    for (int32_t i = 0; i < num_spans; i++) add_span(f, &spans[i]);
    bool several_pages = false;
    for (int32_t i = 0; i < f->num_tiles; i++) several_pages |= attention_num_pages(&f->tiles[i]) > 1;
    const llamita_model_info *info = &f->model->info;
    f->is_small = f->num_tokens <= SMALL_PASS_TOKENS;
    f->attention_split = BY_TILE;
    if (f->is_small && info->num_key_value_heads % num_threads == 0 && panel_aligned(info->head_dim))
        f->attention_split = BY_KV_HEAD;
    else if (f->is_small && several_pages) f->attention_split = BY_PAGE;
}

/* ------------------------------------------------------------------ rows */

rows forward_share_rows(worker w, int64_t num_rows) {
    rows mine;
    thread_pool_share(w, num_rows, ROW_UNIT, &mine.begin, &mine.end);
    return mine;
}

rows forward_share_tokens(const forward *f, worker w, int64_t num_tokens) {
    rows mine = {0, num_tokens};
    if (!f->is_small) thread_pool_share(w, num_tokens, 1, &mine.begin, &mine.end);
    return mine;
}

rows rows_within(rows list, int64_t offset, int64_t length) {
    const int64_t begin = list.begin - offset, end = list.end - offset;
    return (rows){begin < 0 ? 0 : begin > length ? length : begin, end < 0 ? 0 : end > length ? length : end};
}

void forward_share_projections(const forward *f, worker w, rows *query, rows *key, rows *value) {
    const llamita_model_info *info = &f->model->info;
    const int64_t head_dim = info->head_dim, num_queries = info->num_attention_heads * head_dim,
                  num_keys = info->num_key_value_heads * head_dim;
    if (f->attention_split == BY_KV_HEAD) {
        int64_t begin, end;
        thread_pool_share(w, info->num_key_value_heads, 1, &begin, &end);
        *key = *value = (rows){begin * head_dim, end * head_dim};
        const int64_t group = num_queries / num_keys;
        *query = (rows){key->begin * group, key->end * group};
        return;
    }
    const int64_t total = num_queries + 2 * num_keys, unit = f->heads_in_parts ? PANEL_ROWS : head_dim;
    rows mine = {0, w.index == 0 ? total : 0}; /* all by one worker if heads end within a panel */
    if (panel_aligned(num_queries) && panel_aligned(num_keys) && panel_aligned(unit))
        thread_pool_share(w, total, unit, &mine.begin, &mine.end);
    *query = rows_within(mine, 0, num_queries);
    *key = rows_within(mine, num_queries, num_keys);
    *value = rows_within(mine, num_queries + num_keys, num_keys);
}
