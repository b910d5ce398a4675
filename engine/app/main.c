/* main.c: the command-line program: streams generated text to stdout and prints all else to stderr.
 *
 * Flag letters mean what they mean in llama2.c, except that -n counts new tokens, without the
 * prompt. Exit codes: 0 success, 2 user error (explained in one line on stderr), 130 Ctrl-C, 141
 * broken pipe.
 */
#include "app.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ output */

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
        if (!system_is_broken_pipe(errno)) fail("writing the text to stdout: %s", strerror(errno));
        out->closed = true;
    }
    out->num_bytes -= whole;
    memmove(out->bytes, out->bytes + whole, out->num_bytes);
}

/* ------------------------------------------------------------------ opening and closing */

/* text: FILE or FILE:SCALE; the part after the last colon is a scale if it is a number. */
static llamita_adapter_use open_adapter(const app *a, const char *text) {
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
    if (length >= sizeof path)
        fail("--adapter: expected a path of at most %zu bytes, found %zu", sizeof path - 1, length);
    memcpy(path, text, length);
    path[length] = 0;
    check(llamita_adapter_open(a->model, path, &use.adapter, &error), &error);
    return use;
}

/* Closes the adapters once the session holds references to them. */
static void use_adapters(const app *a, const options *o) {
    llamita_adapter_use uses[LLAMITA_MAX_ADAPTERS];
    llamita_error error;
    for (size_t i = 0; i < o->num_adapters; i++) uses[i] = open_adapter(a, o->adapters[i]);
    check(llamita_session_set_adapters(a->session, uses, o->num_adapters, &error), &error);
    for (size_t i = 0; i < o->num_adapters; i++) llamita_adapter_close(uses[i].adapter);
}

static void open_sampler(app *a, const options *o, uint64_t seed) {
    llamita_error error;
    const llamita_sampler_params sampler = {.temperature = (float)o->temperature,
                                            .top_k = (int32_t)o->top_k,
                                            .top_p = (float)o->top_p,
                                            .min_p = (float)o->min_p,
                                            .repetition_penalty = (float)o->repetition_penalty,
                                            .repetition_window = (int32_t)o->repetition_window,
                                            .seed = seed,
                                            .presence_penalty = (float)o->presence_penalty,
                                            .frequency_penalty = (float)o->frequency_penalty,
                                            .typical_p = (float)o->typical_p,
                                            .xtc_probability = (float)o->xtc_probability,
                                            .xtc_threshold = (float)o->xtc_threshold,
                                            .mirostat_tau = (float)o->mirostat_tau,
                                            .mirostat_eta = (float)o->mirostat_eta,
                                            .dry_multiplier = (float)o->dry_multiplier,
                                            .dry_base = (float)o->dry_base,
                                            .dry_allowed_length = (int32_t)o->dry_allowed_length,
                                            .dry_window = (int32_t)o->dry_window,
                                            .model = a->model};
    check(llamita_sampler_open(&sampler, a->info.vocab_size, &a->sampler, &error), &error);
}

static void open_all(app *a, const options *o) {
    const double start = system_seconds();
    llamita_error error;
    llamita_model_params params = {
        .tokenizer_path = o->tokenizer_path, .kernels = o->kernels, .pre_tokenizer = o->pre_tokenizer};
    check(llamita_model_open(o->model_path, &params, &a->model, &error), &error);
    llamita_model_get_info(a->model, &a->info);
    if (!a->info.has_tokenizer && !o->tokenizer_path && strncmp(a->info.format, "llama2.c", 8) == 0) {
        llamita_model_close(a->model);
        a->model = NULL;
        params.tokenizer_path = "tokenizer.bin";
        if (llamita_model_open(o->model_path, &params, &a->model, &error) != LLAMITA_OK)
            fail("%s (a llama2.c model needs a tokenizer: -z FILE)", error.message);
        llamita_model_get_info(a->model, &a->info);
    }
    if (!a->info.has_tokenizer) fail("%s has no tokenizer; pass one with -z FILE", o->model_path);

    const llamita_session_params session = {
        .num_threads = (int32_t)o->num_threads,
        .context_tokens = (int32_t)o->context_tokens,
        .kv_type = (llamita_kv_type)parse_enum("kv", o->kv_type, "f16 f32 q8"),
        .speculation = (llamita_speculation)parse_enum("speculation", o->speculation, "auto off always")};
    check(llamita_session_open(a->model, &session, &a->session, &error), &error);
    use_adapters(a, o);
    open_sampler(a, o, o->seed);
    a->load_seconds = system_seconds() - start;
}

/* ------------------------------------------------------------------ generating */

/* Encodes the prompt, with BOS if the file asks for it or the prompt is empty. */
static void encode_prompt(app *a, const char *prompt, size_t num_bytes) {
    llamita_error error;
    const size_t capacity = 2 * num_bytes + 2;
    const bool add_bos = a->info.add_bos || num_bytes == 0;
    if (num_bytes == 0 && a->info.bos_id < 0)
        fail("-i: expected a prompt, found none; this model has no BOS token to start from");
    a->prompt_ids = malloc(capacity * sizeof *a->prompt_ids);
    if (!a->prompt_ids) fail("out of memory: %zu bytes for the prompt", capacity * sizeof *a->prompt_ids);
    const int flags = add_bos ? LLAMITA_ENCODE_BOS : LLAMITA_ENCODE_PLAIN;
    check(llamita_encode(a->model, prompt, num_bytes, flags, a->prompt_ids, capacity, &a->num_prompt_ids, &error),
          &error);
    const size_t room = (size_t)llamita_session_context_tokens(a->session);
    if (a->num_prompt_ids > room)
        fail("-i: expected at most %zu tokens (the context), found %zu; shorten the prompt", room, a->num_prompt_ids);
}

void load_prompt_cache(const app *a, const options *o) {
    llamita_error error;
    FILE *file = o->prompt_cache ? system_open_file(o->prompt_cache) : NULL;
    if (o->prompt_cache && !file && errno != ENOENT) fail("--prompt-cache: %s: %s", o->prompt_cache, strerror(errno));
    if (!file) return;
    fclose(file);
    check(llamita_session_load(a->session, o->prompt_cache, &error), &error);
}

void save_prompt_cache(const app *a, const options *o, size_t num_cached, size_t num_ids) {
    llamita_error error;
    if (!o->prompt_cache || num_cached >= num_ids - num_ids / 4) return;
    check(llamita_session_save(a->session, o->prompt_cache, &error), &error);
}

size_t keep_common_ids(const app *a, const int32_t *ids, size_t num_ids) {
    llamita_error error;
    const int32_t *held = llamita_session_ids(a->session);
    const size_t num_held = (size_t)llamita_session_position(a->session);
    size_t same = 0;
    while (same < num_held && same + 1 < num_ids && held[same] == ids[same]) same++;
    check(llamita_session_rewind(a->session, (int32_t)same, &error), &error);
    return same;
}

static void write_token(const app *a, output *out, int32_t previous_id, int32_t id) {
    llamita_error error;
    const char *bytes;
    size_t num_bytes;
    check(llamita_token_bytes(a->model, previous_id, id, &bytes, &num_bytes, &error), &error);
    output_write(out, bytes, num_bytes);
}

int32_t pick(app *a) {
    llamita_error error;
    int32_t id;
    check(llamita_sampler_pick(a->sampler, llamita_session_logits(a->session), &id, &error), &error);
    llamita_sampler_accept(a->sampler, id);
    return id;
}

stop_reason stop_before(const app *a, const output *out, int32_t id) {
    if (interrupted) return STOP_INTERRUPT;
    if (out->closed) return STOP_BROKEN_PIPE;
    return llamita_token_ends(a->model, id) ? STOP_END_TOKEN : STOP_NONE;
}

stop_reason stop_after(const app *a, const options *o) {
    if (o->num_new_tokens > 0 && a->num_generated >= o->num_new_tokens) return STOP_NUM_TOKENS;
    const int32_t room = llamita_session_context_tokens(a->session);
    return llamita_session_position(a->session) >= room ? STOP_CONTEXT : STOP_NONE;
}

/* Feeds the prompt and writes it, then generates and writes tokens until there is a reason to
 * stop. */
static void generate(app *a, const options *o, output *out) {
    llamita_error error;
    double start = system_seconds();
    int64_t passes;
    for (size_t i = 0; i < a->num_prompt_ids; i++) llamita_sampler_accept(a->sampler, a->prompt_ids[i]);
    load_prompt_cache(a, o);
    const size_t same = a->num_cached_ids = keep_common_ids(a, a->prompt_ids, a->num_prompt_ids);
    check(llamita_session_feed(a->session, a->prompt_ids + same, a->num_prompt_ids - same, &error), &error);
    int32_t id = pick(a), previous_id = a->prompt_ids[a->num_prompt_ids - 1];
    a->prompt_seconds = system_seconds() - start;
    save_prompt_cache(a, o, same, a->num_prompt_ids);
    for (size_t i = 0; i < a->num_prompt_ids; i++)
        write_token(a, out, i > 0 ? a->prompt_ids[i - 1] : -1, a->prompt_ids[i]);

    start = system_seconds();
    passes = llamita_session_num_passes(a->session);
    while ((a->stop = stop_before(a, out, id)) == STOP_NONE) {
        write_token(a, out, previous_id, id);
        a->num_generated++;
        if ((a->stop = stop_after(a, o)) != STOP_NONE) break;
        check(llamita_session_feed(a->session, &id, 1, &error), &error);
        a->num_decoded++;
        previous_id = id;
        id = pick(a);
    }
    a->decode_seconds = system_seconds() - start;
    a->num_decode_passes = llamita_session_num_passes(a->session) - passes;
    a->last_id = id;
}

static void report(const app *a, const options *o, const output *out) {
    switch (a->stop) {
    case STOP_NONE: break;
    case STOP_END_TOKEN: fprintf(stderr, "stopped at the end token (id %d)", a->last_id); break;
    case STOP_NUM_TOKENS: fprintf(stderr, "stopped after %lld new tokens (-n)", (long long)a->num_generated); break;
    case STOP_CONTEXT:
        fprintf(stderr, "stopped: the context is full (%d tokens)", llamita_session_context_tokens(a->session));
        break;
    case STOP_INTERRUPT: fprintf(stderr, "stopped by Ctrl-C"); break;
    case STOP_BROKEN_PIPE: fprintf(stderr, "stopped: stdout is closed"); break;
    }
    if (out->num_bytes > 0 && !out->closed)
        fprintf(stderr, ", inside a character: its first %zu bytes were not written", out->num_bytes);
    if (!o->seed_given && o->temperature > 0)
        fprintf(stderr, "; -s %llu gives the same text", (unsigned long long)o->seed);
    const size_t num_fed = a->num_prompt_ids - a->num_cached_ids;
    const double prompt_speed = a->prompt_seconds > 0 ? (double)num_fed / a->prompt_seconds : 0;
    const double speed = a->decode_seconds > 0 ? (double)a->num_decoded / a->decode_seconds : 0;
    const double passes = a->decode_seconds > 0 ? (double)a->num_decode_passes / a->decode_seconds : 0;
    fprintf(stderr, "\nprompt %zu tokens", a->num_prompt_ids);
    if (a->num_cached_ids > 0) fprintf(stderr, " (%zu from the cache)", a->num_cached_ids);
    fprintf(stderr,
            ", %.1f tok/s | generated %lld tokens, %.1f tok/s, %.2f GB/s | "
            "load %.1f ms, first token %.1f ms | threads %d\n",
            prompt_speed, (long long)a->num_generated, speed, passes * (double)a->info.decode_bytes * 1e-9,
            a->load_seconds * 1e3, a->prompt_seconds * 1e3, llamita_session_num_threads(a->session));
}

static void close_all(app *a, output *out) {
    llamita_sampler_close(a->sampler);
    llamita_session_close(a->session);
    llamita_model_close(a->model);
    free(a->prompt_ids);
    free(out->bytes);
}

static void generate_text(app *a, const options *o, output *out, const char *prompt, size_t num_bytes) {
    encode_prompt(a, prompt, num_bytes);
    generate(a, o, out);
    if (!out->closed && (putchar('\n') == EOF || fflush(stdout) != 0) && !system_is_broken_pipe(errno))
        fail("writing the text to stdout: %s", strerror(errno));
}

/* Asks how a text begins and continues it, again and again, each time with the next seed. A program
 * with a model inside does so where it is started without a prompt. */
static void generate_texts(app *a, const options *o, output *out) {
    llamita_error error;
    char *line = NULL;
    size_t capacity = 0;
    for (uint64_t seed = o->seed; !out->closed; seed++) {
        fputs("How does the text begin? (" END_OF_INPUT_KEY " ends) > ", stderr);
        system_catch_interrupts(false);
        ptrdiff_t length = system_read_line(&line, &capacity);
        if (length < 0) break;
        while (length > 0 && strchr("\r\n", line[length - 1])) length--;
        system_catch_interrupts(true);
        interrupted = false;
        check(llamita_session_rewind(a->session, 0, &error), &error);
        llamita_sampler_close(a->sampler);
        open_sampler(a, o, seed);
        free(a->prompt_ids);
        a->num_generated = a->num_decoded = 0;
        generate_text(a, o, out, line, (size_t)length);
        out->num_bytes = 0; /* drop an incomplete character */
    }
    fputs("\n", stderr);
    free(line);
}

int main(int argc, char **argv) {
    if (!system_start(&argc, &argv)) fail("out of memory for the arguments");
    const options o = parse_args(argc, argv);
    app a = {0};
    output out = {0};
    system_catch_interrupts(true);
    open_all(&a, &o);
    if (strcmp(o.mode, "chat") == 0) {
        const int code = run_chat(&a, &o, &out);
        close_all(&a, &out);
        return code;
    }
    if (o.model_inside && !o.prompt && !o.prompt_file && system_is_terminal(stdin)) {
        generate_texts(&a, &o, &out);
        close_all(&a, &out);
        return out.closed ? EXIT_BROKEN_PIPE : 0;
    }
    size_t num_bytes;
    char *prompt = read_prompt(&o, true, &num_bytes);
    generate_text(&a, &o, &out, prompt, num_bytes);
    free(prompt);
    report(&a, &o, &out);
    close_all(&a, &out);
    return a.stop == STOP_INTERRUPT ? EXIT_INTERRUPTED : a.stop == STOP_BROKEN_PIPE ? EXIT_BROKEN_PIPE : 0;
}
