/* app.h: what telling a text (main.c) and chatting (chat.c) share: an open model, and the text on its way out. */
#ifndef APP_APP_H
#define APP_APP_H

#include <signal.h>

#include "args.h"

/* Text that goes to stdout in whole characters. Owns its bytes. */
typedef struct {
    char *bytes; /* what has not been written yet */
    size_t num_bytes, capacity;
    bool closed; /* the reader is gone */
} output;

typedef enum { STOP_NONE, STOP_END_TOKEN, STOP_NUM_TOKENS, STOP_CONTEXT, STOP_INTERRUPT, STOP_BROKEN_PIPE } stop_reason;

/* Owns what it points to; the counts and seconds are of the last text or answer. */
typedef struct {
    llamita_model *model;
    llamita_model_info info;
    llamita_session *session;
    llamita_sampler *sampler;
    int32_t *prompt_ids;
    size_t num_prompt_ids;
    double load_seconds, prompt_seconds, decode_seconds;
    int64_t num_generated, num_decode_passes, num_decoded;
    int32_t last_id;
    stop_reason stop;
} app;

extern volatile sig_atomic_t interrupted; /* Ctrl-C was pressed */

/* Ctrl-C ends the text at the next token; a second one ends the program. A reader that went away: write says so.
 * restart: reading and writing go on after Ctrl-C. */
void set_signals(bool restart);

double seconds(void);

/* Adds bytes and writes all that are whole characters. */
void output_write(output *out, const char *bytes, size_t num_bytes);

/* Draws the next token from the session's logits; the sampler remembers it. */
int32_t pick(app *a);

/* Why the text ends before this newly picked token, or STOP_NONE. */
stop_reason stop_before(const app *a, const output *out, int32_t id);

/* Why the text ends after the tokens generated so far, or STOP_NONE. */
stop_reason stop_after(const app *a, const options *o);

/* Answers the prompt and then the lines of stdin; returns the exit code. */
int run_chat(app *a, const options *o, output *out);

#endif
