/* run.c: turns a model file and a prompt, or a person's side of a chat, into text, as it comes; the text on stdout,
 * everything else on stderr.
 *
 * The letters and meanings are llama2.c's, with one exception: -n counts new tokens, without the prompt's.
 * Exit codes: 0 done, 2 something that a person can mend (one line on stderr says what), 130 Ctrl-C, 141 nobody reads.
 */
#include "run.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ------------------------------------------------------------------ the text, on its way out */

void output_write(output *out, const char *bytes, size_t num_bytes) {
    if (out->num_bytes + num_bytes > out->capacity) {
        out->capacity = 2 * (out->num_bytes + num_bytes);
        out->bytes = realloc(out->bytes, out->capacity);
        if (!out->bytes) fail("out of memory: %zu bytes for the text", out->capacity);
    }
    if (num_bytes > 0) memcpy(out->bytes + out->num_bytes, bytes, num_bytes);
    out->num_bytes += num_bytes;
    const size_t whole = llamita_utf8_complete(out->bytes, out->num_bytes);
    if (whole == 0 || out->closed) return;
    if (fwrite(out->bytes, 1, whole, stdout) != whole || fflush(stdout) != 0) {
        if (errno != EPIPE) fail("writing the text to stdout: %s", strerror(errno));
        out->closed = true;
    }
    out->num_bytes -= whole;
    memmove(out->bytes, out->bytes + whole, out->num_bytes);
}

/* ------------------------------------------------------------------ the run */

volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

void set_signals(bool restart) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = (int)(restart ? SA_RESETHAND | SA_RESTART : SA_RESETHAND);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* FILE or FILE:SCALE: what follows the last colon is a scale if it is a number. */
static llamita_adapter_use open_adapter(const run *r, const char *text) {
    llamita_adapter_use use = {NULL, 1.0f};
    llamita_error error;
    char path[4096];
    const char *colon = strrchr(text, ':');
    char *end = NULL;
    size_t length = strlen(text);
    if (colon && colon > text && colon[1] && colon[1 + strspn(colon + 1, "0123456789.eE+-")] == 0) {
        const double scale = strtod(colon + 1, &end);
        if (*end == 0) {
            use.scale = (float)scale;
            length = (size_t)(colon - text);
        }
    }
    if (length >= sizeof path) fail("--adapter: expected a path of at most %zu bytes, found %zu", sizeof path - 1, length);
    memcpy(path, text, length);
    path[length] = 0;
    check(llamita_adapter_open(r->model, path, &use.adapter, &error), &error);
    return use;
}

/* From here on the session holds them. */
static void use_adapters(const run *r, const options *o) {
    llamita_adapter_use uses[LLAMITA_MAX_ADAPTERS];
    llamita_error error;
    for (size_t i = 0; i < o->num_adapters; i++) uses[i] = open_adapter(r, o->adapters[i]);
    check(llamita_session_set_adapters(r->session, uses, o->num_adapters, &error), &error);
    for (size_t i = 0; i < o->num_adapters; i++) llamita_adapter_close(uses[i].adapter);
}

static void open_all(run *r, const options *o) {
    const double start = seconds();
    llamita_error error;
    llamita_model_params params = {.tokenizer_path = o->tokenizer_path, .kernels = o->kernels};
    check(llamita_model_open(o->model_path, &params, &r->model, &error), &error);
    llamita_model_get_info(r->model, &r->info);
    if (!r->info.has_tokenizer && !o->tokenizer_path && strncmp(r->info.format, "llama2.c", 8) == 0) {
        llamita_model_close(r->model);
        r->model = NULL;
        params.tokenizer_path = "tokenizer.bin";
        if (llamita_model_open(o->model_path, &params, &r->model, &error) != LLAMITA_OK)
            fail("%s (a llama2.c model needs its tokenizer: -z FILE)", error.message);
        llamita_model_get_info(r->model, &r->info);
    }
    if (!r->info.has_tokenizer) fail("%s holds no tokenizer; give one with -z FILE", o->model_path);

    const llamita_session_params session = {
        .num_threads = (int32_t)o->num_threads, .context_tokens = (int32_t)o->context_tokens,
        .kv_type = (llamita_kv_type)choose("kv", o->kv_type, "f16 f32 q8"),
        .speculation = (llamita_speculation)choose("speculation", o->speculation, "auto off always")};
    check(llamita_session_open(r->model, &session, &r->session, &error), &error);
    use_adapters(r, o);
    const llamita_sampler_params sampler = {
        .temperature = (float)o->temperature, .top_k = (int32_t)o->top_k, .top_p = (float)o->top_p,
        .min_p = (float)o->min_p, .repetition_penalty = (float)o->repetition_penalty,
        .repetition_window = (int32_t)o->repetition_window, .seed = o->seed};
    check(llamita_sampler_open(&sampler, r->info.vocab_size, &r->sampler, &error), &error);
    r->load_seconds = seconds() - start;
}

/* The prompt's ids. A text begins with BOS where the file says so; and an empty one must begin with something. */
static void encode_prompt(run *r, const char *prompt) {
    llamita_error error;
    const size_t num_bytes = strlen(prompt), capacity = 2 * num_bytes + 2;
    const bool add_bos = r->info.add_bos || num_bytes == 0;
    if (num_bytes == 0 && r->info.bos_id < 0) fail("-i: this model has no token to begin with; give a prompt");
    r->prompt_ids = malloc(capacity * sizeof *r->prompt_ids);
    if (!r->prompt_ids) fail("out of memory: %zu bytes for the prompt", capacity * sizeof *r->prompt_ids);
    const int flags = add_bos ? LLAMITA_ENCODE_BOS : LLAMITA_ENCODE_PLAIN;
    check(llamita_encode(r->model, prompt, num_bytes, flags, r->prompt_ids, capacity, &r->num_prompt_ids, &error),
          &error);
    const size_t room = (size_t)llamita_session_context_tokens(r->session);
    if (r->num_prompt_ids > room)
        fail("-i: expected at most %zu tokens (the context), found %zu; shorten the prompt", room, r->num_prompt_ids);
}

static void write_token(const run *r, output *out, int32_t previous_id, int32_t id) {
    llamita_error error;
    const char *bytes;
    size_t num_bytes;
    check(llamita_token_bytes(r->model, previous_id, id, &bytes, &num_bytes, &error), &error);
    output_write(out, bytes, num_bytes);
}

int32_t pick(run *r) {
    llamita_error error;
    int32_t id;
    check(llamita_sampler_pick(r->sampler, llamita_session_logits(r->session), &id, &error), &error);
    llamita_sampler_accept(r->sampler, id);
    return id;
}

stop_reason stop_before(const run *r, const output *out, int32_t id) {
    if (interrupted) return STOP_INTERRUPT;
    if (out->closed) return STOP_UNREAD;
    return llamita_token_ends(r->model, id) ? STOP_END_TOKEN : STOP_NONE;
}

stop_reason stop_after(const run *r, const options *o) {
    if (o->num_new_tokens > 0 && r->num_generated >= o->num_new_tokens) return STOP_NUM_TOKENS;
    const int32_t room = llamita_session_context_tokens(r->session);
    return llamita_session_position(r->session) >= room ? STOP_CONTEXT : STOP_NONE;
}

/* Reads the prompt, writes it, and then token after token until there is a reason to stop. */
static void generate(run *r, const options *o, output *out) {
    llamita_error error;
    double start = seconds();
    int64_t passes;
    for (size_t i = 0; i < r->num_prompt_ids; i++) llamita_sampler_accept(r->sampler, r->prompt_ids[i]);
    check(llamita_session_feed(r->session, r->prompt_ids, r->num_prompt_ids, &error), &error);
    int32_t id = pick(r), previous_id = r->prompt_ids[r->num_prompt_ids - 1];
    r->prompt_seconds = seconds() - start;
    for (size_t i = 0; i < r->num_prompt_ids; i++)
        write_token(r, out, i > 0 ? r->prompt_ids[i - 1] : -1, r->prompt_ids[i]);

    start = seconds();
    passes = llamita_session_num_passes(r->session);
    while ((r->stop = stop_before(r, out, id)) == STOP_NONE) {
        write_token(r, out, previous_id, id);
        r->num_generated++;
        if ((r->stop = stop_after(r, o)) != STOP_NONE) break;
        check(llamita_session_feed(r->session, &id, 1, &error), &error);
        r->num_decoded++;
        previous_id = id;
        id = pick(r);
    }
    r->decode_seconds = seconds() - start;
    r->num_decode_passes = llamita_session_num_passes(r->session) - passes;
    r->last_id = id;
}

static void report(const run *r, const options *o, const output *out) {
    switch (r->stop) {
    case STOP_NONE: break;
    case STOP_END_TOKEN: fprintf(stderr, "stopped at the end token (id %d)", r->last_id); break;
    case STOP_NUM_TOKENS: fprintf(stderr, "stopped after %lld new tokens (-n)", (long long)r->num_generated); break;
    case STOP_CONTEXT:
        fprintf(stderr, "stopped at the context's end (%d tokens)", llamita_session_context_tokens(r->session));
        break;
    case STOP_INTERRUPT: fprintf(stderr, "stopped by Ctrl-C"); break;
    case STOP_UNREAD: fprintf(stderr, "stopped because nobody reads the text"); break;
    }
    if (out->num_bytes > 0 && !out->closed)
        fprintf(stderr, ", inside a character whose first %zu bytes were not written", out->num_bytes);
    if (!o->seed_given && o->temperature > 0) fprintf(stderr, "; -s %llu tells it again", (unsigned long long)o->seed);
    const double prompt_speed = r->prompt_seconds > 0 ? (double)r->num_prompt_ids / r->prompt_seconds : 0;
    const double speed = r->decode_seconds > 0 ? (double)r->num_decoded / r->decode_seconds : 0;
    const double passes = r->decode_seconds > 0 ? (double)r->num_decode_passes / r->decode_seconds : 0;
    fprintf(stderr,
            "\nprompt %zu tokens, %.1f tok/s | generated %lld tokens, %.1f tok/s, %.2f GB/s | "
            "load %.1f ms, first token %.1f ms | threads %d\n",
            r->num_prompt_ids, prompt_speed, (long long)r->num_generated, speed,
            passes * (double)r->info.decode_bytes * 1e-9, r->load_seconds * 1e3, r->prompt_seconds * 1e3,
            llamita_session_num_threads(r->session));
}

static void close_all(run *r, output *out) {
    llamita_sampler_close(r->sampler);
    llamita_session_close(r->session);
    llamita_model_close(r->model);
    free(r->prompt_ids);
    free(out->bytes);
}

int main(int num_words, char **words) {
    const options o = parse_flags(num_words, words);
    run r = {0};
    output out = {0};
    set_signals(true);
    open_all(&r, &o);
    if (strcmp(o.mode, "chat") == 0) {
        const int code = run_chat(&r, &o, &out);
        close_all(&r, &out);
        return code;
    }
    encode_prompt(&r, o.prompt);
    generate(&r, &o, &out);
    if (!out.closed && (putchar('\n') == EOF || fflush(stdout) != 0) && errno != EPIPE)
        fail("writing the text to stdout: %s", strerror(errno));
    report(&r, &o, &out);
    close_all(&r, &out);
    return r.stop == STOP_INTERRUPT ? EXIT_INTERRUPTED : r.stop == STOP_UNREAD ? EXIT_UNREAD : 0;
}
