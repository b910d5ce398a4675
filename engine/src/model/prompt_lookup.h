/* prompt_lookup.h: the ids so far in, a guess of the next ones out: what followed when the text was last like this
 * (prompt lookup, Saxena 2023). Turns itself off while its guesses cost more time than they save.
 */
#ifndef LLAMITA_PROMPT_LOOKUP_H
#define LLAMITA_PROMPT_LOOKUP_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_DRAFT_TOKENS 7

typedef struct {
    bool always;                /* never turns off */
    int32_t draft_tokens;       /* how many are guessed now */
    double plain_seconds;       /* of a pass of one token, averaged over the last ones; 0: not known yet */
    double draft_seconds;       /* of a pass with guesses */
    double draft_tokens_gained; /* tokens that such a pass gave, itself included */
    int32_t num_measured;       /* passes with guesses since it was turned on */
    int32_t pause;              /* tokens until it is tried again */
    int32_t next_pause;
} prompt_lookup;

void prompt_lookup_init(prompt_lookup *s, bool always);

/* Guesses up to `most` ids (at most MAX_DRAFT_TOKENS) that may follow ids [num_ids]; returns how many. */
int32_t prompt_lookup_guess(prompt_lookup *s, const int32_t *ids, int32_t num_ids, int32_t most, int32_t *guess);

/* A pass of 1 + num_guessed tokens took this long. */
void prompt_lookup_record_pass(prompt_lookup *s, int32_t num_guessed, double seconds);

/* Of the guesses of the last pass this many were right. */
void prompt_lookup_record_hits(prompt_lookup *s, int32_t num_guessed, int32_t num_right);

#endif
