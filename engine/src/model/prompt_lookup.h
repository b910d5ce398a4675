/* prompt_lookup.h: speculative decoding by prompt lookup (Saxena 2023): guesses the next ids from
 * what followed the same ids earlier in the text. Turns itself off while its guesses cost more time
 * than they save. */
#ifndef LLAMITA_PROMPT_LOOKUP_H
#define LLAMITA_PROMPT_LOOKUP_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_DRAFT_TOKENS 7

typedef struct {
    bool always;                /* never turns off */
    int32_t draft_tokens;       /* ids per guess at the moment */
    double plain_seconds;       /* of a pass of one token, moving average; 0: not known yet */
    double draft_seconds;       /* of a pass with guesses, moving average */
    double draft_tokens_gained; /* tokens that such a pass yields, including the one it is fed */
    int32_t num_measured;       /* passes with guesses since it was turned on */
    int32_t pause;              /* tokens until the next try */
    int32_t next_pause;
} prompt_lookup;

void prompt_lookup_init(prompt_lookup *s, bool always);

/* Guesses up to max_ids (at max_ids MAX_DRAFT_TOKENS) ids that may follow ids [num_ids]; returns
 * the number of ids it wrote to `guess`. */
int32_t prompt_lookup_guess(prompt_lookup *s, const int32_t *ids, int32_t num_ids, int32_t max_ids, int32_t *guess);

/* Records the time of a pass of 1 + num_guessed tokens. */
void prompt_lookup_record_pass(prompt_lookup *s, int32_t num_guessed, double seconds);

/* Records that num_right of the last pass's num_guessed guesses were right. */
void prompt_lookup_record_hits(prompt_lookup *s, int32_t num_guessed, int32_t num_right);

#endif
