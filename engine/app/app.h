/* app.h: shared by texts (main.c) and chat (chat.c): the open model and the text that it generates. */
#ifndef APP_APP_H
#define APP_APP_H

#include "args.h"
#include "system.h"

typedef enum { STOP_NONE, STOP_END_TOKEN, STOP_NUM_TOKENS, STOP_CONTEXT, STOP_INTERRUPT, STOP_BROKEN_PIPE } stop_reason;

/* Owns the model and the session. */
typedef struct {
    const options *options;
    llamita_model *model;
    llamita_model_info info;
    llamita_session *session;
    double load_seconds;
    bool closed;        /* stdout is a broken pipe */
    bool cache_is_done; /* --prompt-cache has been written, or need not be */

    /* The last text or answer. */
    const char *prompt; /* written before its first token */
    size_t num_prompt_bytes, num_held_bytes;
    double start, prompt_seconds, decode_seconds;
    int32_t num_prompt_tokens, num_shared_tokens; /* shared: those that the session held before */
    int64_t num_generated, num_decoded;
    int64_t num_passes; /* of the session, at the first token */
    int32_t last_id;
    stop_reason stop;
} app;

/* The sampling options. */
llamita_sampler_params sampling_params(const app *a, uint64_t seed);

/* The limit of -n for llamita_generate. */
int32_t max_new_tokens(const options *o);

/* Writes text to stdout. */
void write_text(app *a, const char *bytes, size_t num_bytes);

/* Before llamita_generate. prompt: what to write before the text. */
void begin_text(app *a, const char *prompt, size_t num_bytes);

/* Counts and writes a piece; state is the app. False: the text ends, for the reason in stop. A piece
 * that comes after an interrupt is not written. */
bool take_piece(void *state, const llamita_piece *piece);

/* The number of leading bytes that are UTF-8 characters. */
size_t utf8_bytes(const char *bytes, size_t num_bytes);

/* Of a name, a byte and its offset. */
#define NOT_UTF8 "%s: expected UTF-8 text, found byte 0x%02x at offset %zu; convert it with iconv"

/* The prompt, which the caller frees: of the options, else with may_be_piped what stdin holds if it
 * is a pipe or a file, else empty. It may contain zero bytes. */
char *read_prompt(const options *o, bool may_be_piped, size_t *num_bytes);

/* Answers the prompt, then each line of stdin. Returns the exit code. */
int run_chat(app *a);

#endif
