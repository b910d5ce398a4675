/* segments.c: encodes text segments: control tokens in trusted segments only, generated ids
 * unchanged.
 *
 * The segments form one text. Between control tokens and generated ids it is encoded across segment
 * boundaries, so that a text without untrusted control tokens gives the same ids as
 * llamita_encode.
 */
#include "tokenizer/segments.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/array.h"
#include "tokenizer/tokenizer_internal.h"

/* The ids of a generated segment. Borrowed. */
typedef struct {
    size_t start; /* of its text */
    const int32_t *ids;
    size_t num_ids;
} generated;

typedef struct {
    const tokenizer *t;
    char *text;
    bool *trusted; /* [num_bytes] */
    size_t num_bytes;
    generated *spans; /* in text order */
    size_t num_spans;
    int32_t *ids;
    size_t num_ids, capacity;
    bool follows_generated; /* the last ids were generated: do not add a space prefix */
    llamita_error *error;
} joiner;

static llamita_status no_memory(const joiner *j) {
    return error_set(j->error, LLAMITA_ERROR_MEMORY, "cannot encode the text: out of memory; split the text");
}

static llamita_status reserve(joiner *j, size_t num_more) {
    return ARRAY_RESERVE(&j->ids, &j->capacity, j->num_ids + num_more) ? LLAMITA_OK : no_memory(j);
}

/* ------------------------------------------------------------------ joining segments */

static llamita_status join(joiner *j, const llamita_text_segment *segments, size_t num_segments) {
    size_t num_bytes = 0, num_spans = 0;
    for (size_t i = 0; i < num_segments; i++) {
        if (segments[i].num_bytes > ((size_t)1 << 30) - num_bytes)
            return error_set(j->error, LLAMITA_ERROR_ARGUMENT,
                             "cannot encode the text: expected at most %zu bytes, found more; split the text",
                             (size_t)1 << 30);
        num_bytes += segments[i].num_bytes;
        num_spans += segments[i].ids && segments[i].num_ids > 0;
    }
    j->text = malloc(num_bytes + 1);
    j->trusted = calloc(num_bytes + 1, sizeof *j->trusted);
    j->spans = calloc(num_spans + 1, sizeof *j->spans);
    if (!j->text || !j->trusted || !j->spans) return no_memory(j);
    for (size_t i = 0; i < num_segments; i++) {
        const llamita_text_segment *segment = &segments[i];
        if (segment->ids && segment->num_ids > 0)
            j->spans[j->num_spans++] = (generated){j->num_bytes, segment->ids, segment->num_ids};
        if (segment->num_bytes > 0) memcpy(j->text + j->num_bytes, segment->text, segment->num_bytes);
        for (size_t k = 0; k < segment->num_bytes; k++) j->trusted[j->num_bytes + k] = segment->trusted;
        j->num_bytes += segment->num_bytes;
    }
    return LLAMITA_OK;
}

/* ------------------------------------------------------------------ encoding text */

static llamita_status push_plain(joiner *j, size_t start, size_t end) {
    if (start == end) return LLAMITA_OK;
    llamita_status status = reserve(j, 2 * (end - start) + 2);
    if (status != LLAMITA_OK) return status;
    tokenizer t = *j->t; /* a shallow copy that differs in one flag */
    t.add_space_prefix = t.add_space_prefix && !j->follows_generated;
    size_t num_ids;
    status = tokenizer_encode(&t, j->text + start, end - start, LLAMITA_ENCODE_PLAIN, j->ids + j->num_ids,
                              j->capacity - j->num_ids, &num_ids, j->error);
    if (status != LLAMITA_OK) return status;
    j->num_ids += num_ids;
    j->follows_generated = false;
    return LLAMITA_OK;
}

/* The special token at text[at], or -1: a user-defined token that ends by `end`, or a control token
 * that ends by trusted_end. */
static int32_t match(const joiner *j, size_t at, size_t end, size_t trusted_end, size_t *num_bytes) {
    const tokenizer *t = j->t;
    size_t user_bytes = 0, any_bytes = 0;
    int32_t user = -1, any = -1;
    if (t->user.num_ids > 0) user = special_tokens_match(&t->user, t, j->text + at, end - at, &user_bytes);
    if (trusted_end > at && t->all.num_ids > 0)
        any = special_tokens_match(&t->all, t, j->text + at, trusted_end - at, &any_bytes);
    const bool longer = any >= 0 && (user < 0 || any_bytes > user_bytes);
    *num_bytes = longer ? any_bytes : user_bytes;
    return longer ? any : user;
}

/* Encodes text[start .. end), which has no generated ids. */
static llamita_status push_text(joiner *j, size_t start, size_t end) {
    llamita_status status = LLAMITA_OK;
    size_t plain = start, trusted_end = start, num_bytes;
    for (size_t at = start; at < end && status == LLAMITA_OK;) {
        if (trusted_end < at) trusted_end = at;
        while (trusted_end < end && j->trusted[trusted_end]) trusted_end++;
        const int32_t id = match(j, at, end, trusted_end, &num_bytes);
        at += id >= 0 ? num_bytes : 1;
        if (id < 0 || j->t->types[id] == TOKEN_USER) continue; /* push_plain finds these itself */
        status = push_plain(j, plain, at - num_bytes);
        if (status == LLAMITA_OK) status = reserve(j, 1);
        if (status != LLAMITA_OK) break;
        j->ids[j->num_ids++] = id;
        j->follows_generated = false;
        plain = at;
    }
    return status == LLAMITA_OK ? push_plain(j, plain, end) : status;
}

/* ------------------------------------------------------------------ generated ids */

/* The number of ids of the span that decode, after `previous`, to the text at `at`; *end: the end
 * of their text. */
static size_t matching_ids(const joiner *j, const generated *span, int32_t previous, size_t at, size_t *end) {
    size_t count = 0;
    for (; count < span->num_ids; count++) {
        const char *bytes;
        size_t num_bytes;
        if (tokenizer_decode(j->t, previous, span->ids[count], &bytes, &num_bytes, NULL) != LLAMITA_OK) break;
        if (num_bytes > j->num_bytes - at || memcmp(j->text + at, bytes, num_bytes) != 0) break;
        at += num_bytes;
        previous = span->ids[count];
    }
    *end = at;
    return count;
}

/* How far before a span its ids are searched for: templates write one or two characters. */
enum { MAX_WHITE_SPACE_BEFORE = 64 };

/* Encodes the text from start up to the span, then appends the ids of the span that match the text.
 * *end: the end of their text. White space at the start of the ids may be before the span, because
 * templates write it themselves. */
static llamita_status push_generated(joiner *j, size_t start, const generated *span, size_t *end) {
    size_t best_count = 0, first = span->start;
    const int32_t ordinary = span->ids[0]; /* not BOS, which drops a leading space */
    for (size_t from = first;; from--) {
        size_t to;
        const size_t count = matching_ids(j, span, ordinary, from, &to);
        if (count > best_count && to >= span->start) {
            best_count = count;
            first = from;
        }
        if (from == start || span->start - from == MAX_WHITE_SPACE_BEFORE) break;
        if (j->text[from - 1] != ' ' && j->text[from - 1] != '\n') break;
    }
    *end = span->start;
    llamita_status status = push_text(j, start, best_count > 0 ? first : span->start);
    if (status != LLAMITA_OK || best_count == 0) return status;
    const int32_t previous = j->num_ids > 0 ? j->ids[j->num_ids - 1] : -1;
    best_count = matching_ids(j, span, previous, first, end);
    if (best_count == 0 || *end < span->start) { /* no leading space here */
        *end = first;
        return LLAMITA_OK;
    }
    status = reserve(j, best_count);
    if (status != LLAMITA_OK) return status;
    memcpy(j->ids + j->num_ids, span->ids, best_count * sizeof *span->ids);
    j->num_ids += best_count;
    j->follows_generated = true;
    return LLAMITA_OK;
}

llamita_status tokenizer_encode_segments(const tokenizer *t, const llamita_text_segment *segments, size_t num_segments,
                                         int32_t *ids, size_t capacity, size_t *num_tokens, llamita_error *error) {
    joiner j = {.t = t, .error = error};
    llamita_status status = join(&j, segments, num_segments);
    size_t at = 0;
    for (size_t i = 0; i < j.num_spans && status == LLAMITA_OK; i++)
        if (j.spans[i].start >= at) status = push_generated(&j, at, &j.spans[i], &at);
    if (status == LLAMITA_OK) status = push_text(&j, at, j.num_bytes);
    if (status == LLAMITA_OK) {
        *num_tokens = j.num_ids;
        if (j.num_ids > capacity)
            status = error_set(error, LLAMITA_ERROR_ARGUMENT,
                               "cannot encode the text: expected room for %zu tokens, found %zu; use a larger buffer",
                               j.num_ids, capacity);
        else if (j.num_ids > 0) memcpy(ids, j.ids, j.num_ids * sizeof *ids);
    }
    free(j.text);
    free(j.trusted);
    free(j.spans);
    free(j.ids);
    return status;
}
