/* prompt_lookup.c: guesses the next ids from what followed the same ids earlier in the text. */
#include "model/prompt_lookup.h"

#include <string.h>

#define MAX_MATCH 4
#define MIN_MATCH 2
#define LOOK_BACK 16384 /* ids that are searched, which takes microseconds */
#define FIRST_PAUSE 32
#define MAX_PAUSE 1024
#define TRIAL_PASSES 4 /* before it is evaluated */

void prompt_lookup_init(prompt_lookup *s, bool always) {
    *s = (prompt_lookup){.always = always, .draft_tokens = 3, .next_pause = FIRST_PAUSE};
}

/* The number of ids before i that equal those at the end, up to MAX_MATCH. */
static int32_t match_length(const int32_t *ids, int32_t num_ids, int32_t i) {
    int32_t length = 0;
    while (length < MAX_MATCH && length < i && ids[i - 1 - length] == ids[num_ids - 1 - length]) length++;
    return length;
}

/* The index after the longest match, the latest if there are several; 0 if there is none. */
static int32_t find_match(const int32_t *ids, int32_t num_ids) {
    const int32_t lowest = num_ids > LOOK_BACK ? num_ids - LOOK_BACK : 0;
    int32_t best = 0, best_length = MIN_MATCH - 1;
    for (int32_t i = num_ids - 1; i > lowest && best_length < MAX_MATCH; i--) {
        if (ids[i - 1] != ids[num_ids - 1]) continue;
        const int32_t length = match_length(ids, num_ids, i);
        if (length <= best_length) continue;
        best = i;
        best_length = length;
    }
    return best;
}

int32_t prompt_lookup_guess(prompt_lookup *s, const int32_t *ids, int32_t num_ids, int32_t max_ids, int32_t *guess) {
    if (s->pause > 0) {
        s->pause--;
        return 0;
    }
    if (!s->always && s->plain_seconds == 0.0) return 0; /* nothing to compare with yet */
    const int32_t start = find_match(ids, num_ids);
    if (start == 0) return 0;
    const int32_t wanted = s->draft_tokens < max_ids ? s->draft_tokens : max_ids;
    int32_t count = 0;
    /* Past the end the guess continues with itself: a repeating text is expected to go on
     * repeating. */
    for (; count < wanted; count++)
        guess[count] = start + count < num_ids ? ids[start + count] : guess[start + count - num_ids];
    return count;
}

static double averaged(double average, double value) {
    return average == 0.0 ? value : average + (value - average) / 8;
}

void prompt_lookup_record_pass(prompt_lookup *s, int32_t num_guessed, double seconds) {
    double *average = num_guessed > 0 ? &s->draft_seconds : &s->plain_seconds;
    /* Limits the effect of a pass that another process interrupted. */
    if (*average > 0.0 && seconds > 4 * *average) seconds = 4 * *average;
    *average = averaged(*average, seconds);
}

void prompt_lookup_record_hits(prompt_lookup *s, int32_t num_guessed, int32_t num_right) {
    if (num_right == num_guessed && s->draft_tokens < MAX_DRAFT_TOKENS) s->draft_tokens++;
    else if (num_right < num_guessed / 2 && s->draft_tokens > 1) s->draft_tokens--;
    s->draft_tokens_gained = averaged(s->draft_tokens_gained, 1 + num_right);
    s->num_measured++;
    if (s->always || s->num_measured < TRIAL_PASSES) return;
    if (s->draft_tokens_gained * s->plain_seconds > s->draft_seconds) {
        s->next_pause = FIRST_PAUSE;
        return;
    }
    s->pause = s->next_pause;
    s->next_pause = s->next_pause < MAX_PAUSE ? 2 * s->next_pause : MAX_PAUSE;
    s->num_measured = 0;
    s->draft_tokens = 3;
    s->draft_tokens_gained = s->draft_seconds = 0.0;
}
