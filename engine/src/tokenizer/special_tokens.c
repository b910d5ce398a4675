/* special_tokens.c: finds special tokens, which are matched as whole strings before any merging. */
#include "tokenizer/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *bytes;
    size_t num_bytes;
    int32_t id;
} sorted_token;

static int compare_tokens(const void *a, const void *b) {
    const sorted_token *x = a, *y = b;
    size_t common = x->num_bytes < y->num_bytes ? x->num_bytes : y->num_bytes;
    int order = memcmp(x->bytes, y->bytes, common);
    if (order != 0) return order;
    return (x->num_bytes > y->num_bytes) - (x->num_bytes < y->num_bytes);
}

static void index_first_bytes(special_tokens *special, const sorted_token *sorted) {
    int32_t at = 0;
    for (int byte = 0; byte < 256; byte++) {
        special->first_byte[byte] = at;
        while (at < special->num_ids && (unsigned char)sorted[at].bytes[0] == byte) at++;
    }
    special->first_byte[256] = at;
}

llamita_status special_tokens_build(special_tokens *special, const tokenizer *t, unsigned type_mask,
                                    const tokenizer_source *source, const char *path, llamita_error *error) {
    int32_t num = 0;
    for (int32_t id = 0; id < t->vocab_size; id++) num += (type_mask >> t->types[id] & 1) != 0;
    if (num == 0) return LLAMITA_OK;
    sorted_token *sorted = malloc((size_t)num * sizeof *sorted);
    special->ids = malloc((size_t)num * sizeof *special->ids);
    if (!sorted || !special->ids) {
        free(sorted);
        return table_error(error, path, true);
    }
    num = 0;
    for (int32_t id = 0; id < t->vocab_size; id++) {
        if ((type_mask >> t->types[id] & 1) == 0) continue;
        sorted[num].bytes = symbol_bytes(&t->symbols, id, &sorted[num].num_bytes);
        sorted[num].id = id;
        num += sorted[num].num_bytes > 0; /* skip empty tokens: they would match everywhere */
    }
    qsort(sorted, (size_t)num, sizeof *sorted, compare_tokens);
    special->num_ids = num;
    llamita_status status = LLAMITA_OK;
    for (int32_t i = 0; i < num && status == LLAMITA_OK; i++) {
        special->ids[i] = sorted[i].id;
        if (i > 0 && compare_tokens(&sorted[i - 1], &sorted[i]) == 0) {
            status = token_error(error, source, path, sorted[i].id,
                                 "expected unique special tokens, found the same text twice; export the model again");
        }
    }
    index_first_bytes(special, sorted);
    free(sorted);
    return status;
}

/* Narrows [low, high), where all tokens have the same first depth bytes, to those with this byte at
 * depth. */
static void narrow(const special_tokens *special, const tokenizer *t, size_t depth, unsigned char byte, int32_t *low,
                   int32_t *high) {
    for (int edge = 0; edge < 2; edge++) { /* the lower bound, then the upper bound of byte */
        int32_t from = *low, to = *high;
        while (from < to) {
            int32_t middle = from + (to - from) / 2;
            size_t length;
            const char *bytes = symbol_bytes(&t->symbols, special->ids[middle], &length);
            int found = length > depth ? (unsigned char)bytes[depth] : -1;
            if (found < byte + edge) from = middle + 1;
            else to = middle;
        }
        if (edge == 0) *low = from;
        else *high = from;
    }
}

int32_t special_tokens_match(const special_tokens *special, const tokenizer *t, const char *text, size_t num_bytes,
                             size_t *matched_bytes) {
    unsigned char first = (unsigned char)text[0];
    int32_t low = special->first_byte[first], high = special->first_byte[first + 1], best = -1;
    for (size_t depth = 1; low < high; depth++) {
        size_t length;
        const char *bytes = symbol_bytes(&t->symbols, special->ids[low], &length);
        if (high - low == 1) { /* one left: compare it directly */
            if (length > num_bytes || memcmp(bytes, text, length) != 0) break;
            *matched_bytes = length;
            return special->ids[low];
        }
        if (length == depth) {
            best = special->ids[low];
            *matched_bytes = length;
        }
        if (depth == num_bytes) break;
        narrow(special, t, depth, (unsigned char)text[depth], &low, &high);
    }
    return best;
}
