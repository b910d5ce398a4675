/* app.h: shared by text generation (main.c) and chat (chat.c): the open model and text output. */
#ifndef APP_APP_H
#define APP_APP_H

#include "args.h"
#include "system.h"

/* Writes text to stdout in complete UTF-8 characters. Owns its bytes. */
typedef struct {
    char *bytes; /* not written yet */
    size_t num_bytes, capacity;
    bool closed; /* stdout is a broken pipe */
} output;

typedef enum { STOP_NONE, STOP_END_TOKEN, STOP_NUM_TOKENS, STOP_CONTEXT, STOP_INTERRUPT, STOP_BROKEN_PIPE } stop_reason;

/* Owns everything it points to. Counts and seconds are those of the last text or answer. */
typedef struct {
    llamita_model *model;
    llamita_model_info info;
    llamita_session *session;
    llamita_sampler *sampler;
    int32_t *prompt_ids;
    size_t num_prompt_ids, num_cached_ids; /* of the prompt: all, and those of --prompt-cache */
    double load_seconds, prompt_seconds, decode_seconds;
    int64_t num_generated, num_decode_passes, num_decoded;
    int32_t last_id;
    stop_reason stop;
} app;

/* Appends bytes and writes all complete characters. */
void output_write(output *out, const char *bytes, size_t num_bytes);

/* Samples the next token from the session's logits and records it in the sampler. */
int32_t pick(app *a);

/* The reason to stop before this newly picked token, or STOP_NONE. */
stop_reason stop_before(const app *a, const output *out, int32_t id);

/* The reason to stop after the tokens generated so far, or STOP_NONE. */
stop_reason stop_after(const app *a, const options *o);

/* The number of leading bytes that are UTF-8 characters. */
size_t utf8_bytes(const char *bytes, size_t num_bytes);

/* Of a name, a byte and its offset. */
#define NOT_UTF8 "%s: expected UTF-8 text, found byte 0x%02x at offset %zu; convert it with iconv"

/* The prompt, which the caller frees: of the options, else with may_be_piped what stdin holds if it
 * is a pipe or a file, else empty. It may contain zero bytes. */
char *read_prompt(const options *o, bool may_be_piped, size_t *num_bytes);

/* Replaces the session's tokens by those of --prompt-cache, if there is such a file. */
void load_prompt_cache(const app *a, const options *o);

/* Writes --prompt-cache, now that the session holds a prompt of num_ids tokens, if fewer than three
 * quarters of them were in it. */
void save_prompt_cache(const app *a, const options *o, size_t num_cached, size_t num_ids);

/* Rewinds the session to the tokens that it has in common with a prompt, without the last one, whose
 * logits are needed. Returns their number. */
size_t keep_common_ids(const app *a, const int32_t *ids, size_t num_ids);

/* Answers the prompt, then each line of stdin. Returns the exit code. */
int run_chat(app *a, const options *o, output *out);

#endif
