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

/* ------------------------------------------------------------------ the text */

void write_text(app *a, const char *bytes, size_t num_bytes) {
    if (a->closed || (fwrite(bytes, 1, num_bytes, stdout) == num_bytes && fflush(stdout) == 0)) return;
    if (!system_is_broken_pipe(errno)) fail("writing the text to stdout: %s", strerror(errno));
    a->closed = true;
}

void begin_text(app *a, const char *prompt, size_t num_bytes) {
    a->prompt = prompt;
    a->num_prompt_bytes = num_bytes;
    a->num_held_bytes = 0;
    a->num_prompt_tokens = 0;
    a->num_shared_tokens = -1;
    a->num_decoded = -1;
    a->num_generated = a->num_passes = 0;
    a->prompt_seconds = a->decode_seconds = 0;
    a->stop = STOP_NONE;
    a->start = system_seconds();
}

/* Fails if there is no folder for this file: its name may be misspelled. */
static void check_folder(const char *file) {
    const size_t length = system_folder_length(file);
    char *folder = calloc(length + 1, 1);
    if (!folder) fail("out of memory: %zu bytes for a name", length + 1);
    memcpy(folder, file, length);
    if (length > 0 && !system_path_exists(folder)) fail("cannot write %s: there is no folder %s", file, folder);
    free(folder);
}

/* Replaces the session's tokens by those of --prompt-cache, if there is such a file. */
static void load_prompt_cache(const app *a, const options *o) {
    llamita_error error;
    if (!o->prompt_cache) return;
    if (!*o->prompt_cache) fail("--prompt-cache: expected a file, found an empty name");
    if (!system_path_exists(o->prompt_cache)) check_folder(o->prompt_cache);
    else check(llamita_session_load(a->session, o->prompt_cache, &error), &error);
}

/* Writes --prompt-cache, when the session holds the first prompt and no more, unless three quarters of
 * it came from there. */
static void save_prompt_cache(app *a) {
    llamita_error error;
    const char *path = a->options->prompt_cache;
    if (path && !a->cache_is_done && a->num_shared_tokens < a->num_prompt_tokens - a->num_prompt_tokens / 4)
        check(llamita_session_save(a->session, path, &error), &error);
    a->cache_is_done = true;
}

/* Why the text ends with this piece, or STOP_NONE. */
static stop_reason stop_at(const app *a, const llamita_piece *piece) {
    if (piece->finish == LLAMITA_FINISH_STOP) return STOP_END_TOKEN;
    if (piece->finish == LLAMITA_FINISH_NONE) return STOP_NONE;
    return a->num_generated == max_new_tokens(a->options) ? STOP_NUM_TOKENS : STOP_CONTEXT;
}

bool take_piece(void *state, const llamita_piece *piece) {
    app *a = state;
    const double now = system_seconds();
    if (a->num_decoded < 0) a->num_prompt_tokens = llamita_session_position(a->session);
    if (a->num_shared_tokens < 0) a->num_shared_tokens = a->num_prompt_tokens;
    if (piece->id >= 0 && ++a->num_decoded == 0) {
        a->prompt_seconds = now - a->start;
        a->num_passes = llamita_session_num_passes(a->session);
        save_prompt_cache(a);
        write_text(a, a->prompt, a->num_prompt_bytes);
        a->start = system_seconds();
    }
    if (interrupted) a->stop = STOP_INTERRUPT;
    if (interrupted || piece->id < 0) return !interrupted;
    if (a->num_decoded > 0) a->decode_seconds = now - a->start;
    a->last_id = piece->id;
    a->num_held_bytes = piece->num_held_bytes;
    if (piece->finish != LLAMITA_FINISH_STOP) a->num_generated++;
    write_text(a, piece->text, piece->num_bytes);
    a->stop = a->closed ? STOP_BROKEN_PIPE : stop_at(a, piece);
    return a->stop == STOP_NONE;
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

llamita_sampler_params sampling_params(const app *a, uint64_t seed) {
    const options *o = a->options;
    return (llamita_sampler_params){.temperature = (float)o->temperature,
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
}

int32_t max_new_tokens(const options *o) { return o->num_new_tokens > 0 ? (int32_t)o->num_new_tokens : -1; }

static void open_all(app *a, const options *o) {
    const double start = system_seconds();
    a->options = o;
    llamita_error error;
    llamita_model_params params = {
        .tokenizer_path = o->tokenizer_path, .kernels = o->kernels, .pre_tokenizer = o->pre_tokenizer};
    params.pack_later = o->prompt && strcmp(o->mode, "chat") != 0; /* it does not wait for a user */
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
        .speculation = (llamita_speculation)parse_enum("speculation", o->speculation, "auto off always"),
        .rope = {o->rope_scaling
                     ? (llamita_rope_scaling)(1 + parse_enum("rope-scaling", o->rope_scaling, "none linear ntk yarn"))
                     : LLAMITA_ROPE_MODEL,
                 (float)o->rope_scale, (float)o->rope_freq_base, (int32_t)o->yarn_orig_ctx},
        .context_full = o->shifts ? LLAMITA_CONTEXT_SHIFT : LLAMITA_CONTEXT_STOP,
        .num_keep = (int32_t)o->num_keep};
    check(llamita_session_open(a->model, &session, &a->session, &error), &error);
    use_adapters(a, o);
    load_prompt_cache(a, o);
    a->load_seconds = system_seconds() - start;
}

/* ------------------------------------------------------------------ generating */

static void generate_text(app *a, uint64_t seed, const char *prompt, size_t num_bytes) {
    llamita_error error;
    const llamita_sampler_params params = sampling_params(a, seed);
    begin_text(a, prompt, num_bytes);
    check(llamita_generate_text(a->session, prompt, num_bytes, &params, max_new_tokens(a->options), take_piece, a,
                                &error),
          &error);
    write_text(a, "\n", 1);
}

static void report(const app *a) {
    const options *o = a->options;
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
    if (a->num_held_bytes > 0 && !a->closed)
        fprintf(stderr, ", inside a character: its first %zu bytes were not written", a->num_held_bytes);
    if (!o->seed_given && o->temperature > 0)
        fprintf(stderr, "; -s %llu gives the same text", (unsigned long long)o->seed);
    const int num_read = a->num_prompt_tokens - a->num_shared_tokens;
    const double prompt_speed = a->prompt_seconds > 0 ? num_read / a->prompt_seconds : 0;
    const double speed = a->decode_seconds > 0 ? (double)a->num_decoded / a->decode_seconds : 0;
    const double num_passes = (double)(llamita_session_num_passes(a->session) - a->num_passes);
    const double passes = a->decode_seconds > 0 ? num_passes / a->decode_seconds : 0;
    fprintf(stderr, "\nprompt %d tokens", a->num_prompt_tokens);
    if (a->num_shared_tokens > 0) fprintf(stderr, " (%d from the cache)", a->num_shared_tokens);
    fprintf(stderr,
            ", %.1f tok/s | generated %lld tokens, %.1f tok/s, %.2f GB/s | "
            "load %.1f ms, first token %.1f ms | threads %d\n",
            prompt_speed, (long long)a->num_generated, speed, passes * (double)a->info.decode_bytes * 1e-9,
            a->load_seconds * 1e3, a->prompt_seconds * 1e3, llamita_session_num_threads(a->session));
}

static void close_all(app *a) {
    llamita_session_close(a->session);
    llamita_model_close(a->model);
}

/* Asks how a text begins and continues it, again and again, each time with the next seed. A program
 * with a model inside does so where it is started without a prompt. */
static void generate_texts(app *a) {
    char *line = NULL;
    size_t capacity = 0;
    for (uint64_t seed = a->options->seed; !a->closed; seed++) {
        fputs("How does the text begin? (" END_OF_INPUT_KEY " ends) > ", stderr);
        system_catch_interrupts(false);
        ptrdiff_t length = system_read_line(&line, &capacity);
        if (length < 0) break;
        while (length > 0 && strchr("\r\n", line[length - 1])) length--;
        system_catch_interrupts(true);
        interrupted = false;
        generate_text(a, seed, line, (size_t)length);
    }
    fputs("\n", stderr);
    free(line);
}

int main(int argc, char **argv) {
    if (!system_start(&argc, &argv)) fail("out of memory for the arguments");
    const options o = parse_args(argc, argv);
    app a = {0};
    system_catch_interrupts(true);
    open_all(&a, &o);
    if (strcmp(o.mode, "chat") == 0) {
        const int code = run_chat(&a);
        close_all(&a);
        return code;
    }
    if (o.model_inside && !o.prompt && !o.prompt_file && system_is_terminal(stdin)) {
        generate_texts(&a);
        close_all(&a);
        return a.closed ? EXIT_BROKEN_PIPE : 0;
    }
    size_t num_bytes;
    char *prompt = read_prompt(&o, true, &num_bytes);
    generate_text(&a, o.seed, prompt, num_bytes);
    free(prompt);
    report(&a);
    close_all(&a);
    return a.stop == STOP_INTERRUPT ? EXIT_INTERRUPTED : a.stop == STOP_BROKEN_PIPE ? EXIT_BROKEN_PIPE : 0;
}
