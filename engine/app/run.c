/* run.c: turns a model file and a prompt, or a person's side of a chat, into text, as it comes; the text on stdout,
 * everything else on stderr.
 *
 * The letters and meanings are llama2.c's, with one exception: -n counts new tokens, without the prompt's.
 * Exit codes: 0 done, 2 something that a person can mend (one line on stderr says what), 130 Ctrl-C, 141 nobody reads.
 */
#include "llamita.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_MENDABLE = 2, EXIT_INTERRUPTED = 130, EXIT_UNREAD = 141 };

/* One line, whatever strange bytes the arguments hold, then exit code 2. */
_Noreturn static void fail(const char *format, ...) {
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    for (char *c = message; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    fprintf(stderr, "run: %s\n", message);
    exit(EXIT_MENDABLE);
}

static void check(llamita_status status, const llamita_error *error) {
    if (status != LLAMITA_OK) fail("%s", error->message);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ------------------------------------------------------------------ flags */

typedef struct {
    const char *model_path, *prompt, *tokenizer_path, *mode, *kernels, *system, *kv_type, *speculation;
    double temperature, top_p, min_p, repetition_penalty;
    int64_t top_k, repetition_window, num_new_tokens, num_threads, context_tokens;
    uint64_t seed;
    bool seed_given, rolling, verbose;
    const char *adapters[LLAMITA_MAX_ADAPTERS]; /* FILE or FILE:SCALE */
    size_t num_adapters;
} options;

typedef enum { FLAG_TEXT, FLAG_REAL, FLAG_WHOLE, FLAG_SEED, FLAG_SWITCH, FLAG_ADAPTER } flag_kind;

typedef struct {
    char letter; /* 0: none */
    const char *name, *value;
    flag_kind kind;
    size_t offset; /* of its field in options */
    double smallest, largest;
    const char *help;
} flag;

#define FIELD(name) offsetof(options, name)
static const flag FLAGS[] = {
    {'t', "temperature", "T", FLAG_REAL, FIELD(temperature), 0, 1000,
     "0: always the most probable token; above 1: bolder (1.0; in a chat 0.6)"},
    {'p', "top-p", "P", FLAG_REAL, FIELD(top_p), 0, 1,
     "pick from the smallest set with this share of the probability; 0 or 1: off (0.9)"},
    {'k', "top-k", "K", FLAG_WHOLE, FIELD(top_k), 0, INT32_MAX,
     "pick from the K most probable tokens; 0: off (0)"},
    {0, "min-p", "P", FLAG_REAL, FIELD(min_p), 0, 1,
     "pick from those with this share of the best one's probability; 0: off (0)"},
    {0, "repetition-penalty", "R", FLAG_REAL, FIELD(repetition_penalty), 0.01, 100,
     "above 1: avoid recent tokens (1.0)"},
    {0, "repetition-window", "N", FLAG_WHOLE, FIELD(repetition_window), 0, INT32_MAX,
     "how many tokens are recent (64)"},
    {'s', "seed", "S", FLAG_SEED, FIELD(seed), 0, 0,
     "the same seed tells the same text (from the clock)"},
    {'n', "num-tokens", "N", FLAG_WHOLE, FIELD(num_new_tokens), 0, INT32_MAX,
     "how many new tokens, the prompt's not counted; 0: to the context's end (256; in a chat 512 an answer)"},
    {'i', "prompt", "TEXT", FLAG_TEXT, FIELD(prompt), 0, 0,
     "how the text begins (empty); in a chat: the first question"},
    {'z', "tokenizer", "FILE", FLAG_TEXT, FIELD(tokenizer_path), 0, 0,
     "tokenizer.bin or a GGUF to take it from (the GGUF model's own; for llama2.c models tokenizer.bin)"},
    {0, "adapter", "FILE[:SCALE]", FLAG_ADAPTER, 0, 0, 0,
     "a GGUF adapter of the model's; several times for several, which act together (none)"},
    {'m', "mode", "MODE", FLAG_TEXT, FIELD(mode), 0, 0,
     "generate, or chat: the prompt is the first question, the others are lines on stdin (generate)"},
    {'y', "system", "TEXT", FLAG_TEXT, FIELD(system), 0, 0,
     "in a chat: how the assistant is to be (as the model's template says)"},
    {0, "rolling", "", FLAG_SWITCH, FIELD(rolling), 0, 0,
     "in a chat: forget the oldest questions and answers when the context is full, instead of ending"},
    {'v', "verbose", "", FLAG_SWITCH, FIELD(verbose), 0, 0,
     "in a chat: tell the speed after each answer, also where stderr is no terminal"},
    {'j', "threads", "N", FLAG_WHOLE, FIELD(num_threads), 0, 1024,
     "0: chosen by the model's size and the machine (0)"},
    {'c', "context", "N", FLAG_WHOLE, FIELD(context_tokens), 0, INT32_MAX,
     "keep room for this many tokens; 0: the model's context (0)"},
    {0, "kv", "TYPE", FLAG_TEXT, FIELD(kv_type), 0, 0,
     "how keys and values are kept: f16, f32 or q8 (f16)"},
    {0, "speculation", "WHEN", FLAG_TEXT, FIELD(speculation), 0, 0,
     "computing along what repetitions make probable, with the same text: auto, off or always (auto)"},
    {0, "kernels", "NAME", FLAG_TEXT, FIELD(kernels), 0, 0,
     "auto, scalar, avx2, avxvnni, neon, dotprod (auto)"},
};
enum { NUM_FLAGS = sizeof FLAGS / sizeof *FLAGS };

_Noreturn static void help(void) {
    printf("usage: run MODEL [flags]\n\n"
           "Tells a text with a GGUF or llama2.c model: the text on stdout, the speed on stderr.\n"
           "Or chats (-m chat): Ctrl-C stops an answer, Ctrl-D ends the chat.\n\n");
    for (int i = 0; i < NUM_FLAGS; i++) {
        char words[64];
        snprintf(words, sizeof words, "--%s%s%s", FLAGS[i].name, *FLAGS[i].value ? " " : "", FLAGS[i].value);
        if (FLAGS[i].letter) printf("  -%c, %-25s %s\n", FLAGS[i].letter, words, FLAGS[i].help);
        else printf("      %-25s %s\n", words, FLAGS[i].help);
    }
    printf("  -h, %-25s %s\n", "--help", "this");
    printf("  -V, %-25s %s\n\n", "--version", "llamita's version, and the kernels for this processor");
    printf("Speeds: prompt tokens per second, BOS included; then new tokens per second, and the weights read for them\n"
           "in GB/s; time to open the model; time from the prompt to the first new token.\n");
    exit(fflush(stdout) == 0 ? 0 : EXIT_MENDABLE);
}

static size_t smallest_of(size_t a, size_t b) { return a < b ? a : b; }

/* How many letters must be put in, taken out or changed to make one word the other (Levenshtein). */
static size_t edit_distance(const char *a, const char *b) {
    size_t row[64], length = strlen(b);
    if (length >= 64) return SIZE_MAX;
    for (size_t j = 0; j <= length; j++) row[j] = j;
    for (size_t i = 1; *a; i++, a++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= length; j++) {
            const size_t changed = diagonal + (*a != b[j - 1]);
            diagonal = row[j];
            row[j] = smallest_of(changed, smallest_of(row[j], row[j - 1]) + 1);
        }
    }
    return row[length];
}

/* word: as it was typed. Names the nearest flag if one is near. */
_Noreturn static void fail_unknown_flag(const char *word) {
    const char *name = word + strspn(word, "-");
    const flag *nearest = NULL;
    size_t least = 4; /* further than three letters away is no help */
    for (int i = 0; i < NUM_FLAGS; i++) {
        const size_t typed = strlen(name), distance = edit_distance(name, FLAGS[i].name);
        const bool begins = typed >= 3 && strncmp(FLAGS[i].name, name, typed) == 0;
        if (begins || (distance < least && distance < typed)) {
            least = begins ? 0 : distance;
            nearest = &FLAGS[i];
        }
    }
    if (nearest) fail("unknown flag %s; perhaps you meant --%s (run -h lists them all)", word, nearest->name);
    for (int i = 0; i < NUM_FLAGS; i++)
        if (name[0] && FLAGS[i].letter && (name[0] | 0x20) == FLAGS[i].letter)
            fail("unknown flag %s; perhaps you meant -%c (run -h lists them all)", word, FLAGS[i].letter);
    fail("unknown flag %s; run -h lists them all", word);
}

/* The flag that the word names; *value is what follows '=' in the word, or NULL. */
static const flag *find_flag(const char *word, const char **value) {
    *value = NULL;
    for (int i = 0; i < NUM_FLAGS; i++) {
        const size_t length = strlen(FLAGS[i].name);
        if (FLAGS[i].letter && word[1] == FLAGS[i].letter && word[2] == 0) return &FLAGS[i];
        if (word[1] != '-' || strncmp(word + 2, FLAGS[i].name, length) != 0) continue;
        if (word[2 + length] == '=') *value = word + 2 + length + 1;
        if (word[2 + length] == 0 || *value) return &FLAGS[i];
    }
    fail_unknown_flag(word);
}

/* Sets the flag's field from the text: all of it must be a number of the right kind and range. */
static void set_field(options *o, const flag *f, const char *word, const char *text) {
    void *field = (char *)o + f->offset;
    char *end = NULL;
    errno = 0;
    if (f->kind == FLAG_TEXT) {
        memcpy(field, &text, sizeof text);
    } else if (f->kind == FLAG_ADAPTER) {
        if (o->num_adapters == LLAMITA_MAX_ADAPTERS) fail("%s: expected at most %d of them", word, LLAMITA_MAX_ADAPTERS);
        o->adapters[o->num_adapters++] = text;
    } else if (f->kind == FLAG_REAL) {
        const double value = strtod(text, &end);
        if (!*text || *end || text[strspn(text, "0123456789.eE+-")] || !(value >= f->smallest && value <= f->largest))
            fail("%s: expected a number from %g to %g, found '%s'", word, f->smallest, f->largest, text);
        memcpy(field, &value, sizeof value);
    } else if (f->kind == FLAG_WHOLE) {
        const int64_t value = strtoll(text, &end, 10);
        if (!*text || *end || errno || text[strspn(text, "0123456789+-")] || value < f->smallest || value > f->largest)
            fail("%s: expected a whole number from %.0f to %.0f, found '%s'", word, f->smallest, f->largest, text);
        memcpy(field, &value, sizeof value);
    } else {
        const unsigned long long value = strtoull(text, &end, 10);
        if (!*text || errno || text[strspn(text, "0123456789")] || value > UINT64_MAX)
            fail("%s: expected a whole number from 0 to %llu, found '%s'", word, (unsigned long long)UINT64_MAX, text);
        o->seed = value;
        o->seed_given = true;
    }
}

/* Which of the names, separated by spaces, the text is. */
static int choose(const char *name, const char *text, const char *names) {
    const size_t length = strlen(text);
    int index = 0;
    for (const char *at = names; *at && length > 0; at += strcspn(at, " "), at += *at == ' ', index++)
        if (strcspn(at, " ") == length && memcmp(at, text, length) == 0) return index;
    fail("--%s: expected one of %s, found '%s'", name, names, text);
}

static options parse(int num_words, char **words) {
    options o = {.prompt = "", .mode = "generate", .kv_type = "f16", .speculation = "auto", .temperature = -1, .top_p = 0.9, .repetition_penalty = 1.0,
                 .repetition_window = 64, .num_new_tokens = -1};
    for (int i = 1; i < num_words; i++) {
        const char *word = words[i], *value;
        if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0) help();
        if (strcmp(word, "-V") == 0 || strcmp(word, "--version") == 0) {
            printf("llamita %s (%s kernels)\n", llamita_version(), llamita_kernels());
            exit(0);
        }
        if (word[0] != '-' || word[1] == 0) {
            if (o.model_path) fail("one model at a time: found %s and %s (a prompt follows -i)", o.model_path, word);
            o.model_path = word;
            continue;
        }
        const flag *f = find_flag(word, &value);
        if (f->kind == FLAG_SWITCH) {
            if (value) fail("%s: it takes no value, found '%s'", word, value);
            *(bool *)((char *)&o + f->offset) = true;
            continue;
        }
        if (!value && i + 1 == num_words) fail("%s: expected a value after it; run -h says which", word);
        set_field(&o, f, word, value ? value : words[++i]);
    }
    if (!o.model_path) fail("which model? usage: run MODEL [flags]; run -h lists them");
    const bool chats = strcmp(o.mode, "chat") == 0;
    if (!chats && strcmp(o.mode, "generate") != 0) fail("-m: expected generate or chat, found '%s'", o.mode);
    if (!chats && (o.system || o.rolling)) fail("%s: only in a chat (-m chat)", o.system ? "--system" : "--rolling");
    if (o.temperature < 0) o.temperature = chats ? 0.6 : 1;
    if (o.num_new_tokens < 0) o.num_new_tokens = chats ? 512 : 256;
    if (o.top_p == 0) o.top_p = 1; /* llama2.c: 0 is off, too */
    if (!o.seed_given) o.seed = (uint64_t)time(NULL) * 1000003u + (uint64_t)getpid();
    return o;
}

/* ------------------------------------------------------------------ the text, on its way out */

typedef struct {
    char *bytes; /* what has not been written yet */
    size_t num_bytes, capacity;
    bool closed; /* the reader is gone */
} output;

/* Adds bytes and writes all that are whole characters. */
static void output_write(output *out, const char *bytes, size_t num_bytes) {
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

typedef enum { STOP_NONE, STOP_END_TOKEN, STOP_NUM_TOKENS, STOP_CONTEXT, STOP_INTERRUPT, STOP_UNREAD } stop_reason;

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
} run;

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

/* Ctrl-C ends the text at the next token; a second one ends the program. A reader that went away: write says so.
 * restart: reading and writing go on after Ctrl-C. */
static void set_signals(bool restart) {
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

static int32_t pick(run *r) {
    llamita_error error;
    int32_t id;
    check(llamita_sampler_pick(r->sampler, llamita_session_logits(r->session), &id, &error), &error);
    llamita_sampler_accept(r->sampler, id);
    return id;
}

/* Why the text ends before this newly picked token, or STOP_NONE. */
static stop_reason stop_before(const run *r, const output *out, int32_t id) {
    if (interrupted) return STOP_INTERRUPT;
    if (out->closed) return STOP_UNREAD;
    return llamita_token_ends(r->model, id) ? STOP_END_TOKEN : STOP_NONE;
}

/* Why the text ends after the tokens generated so far, or STOP_NONE. */
static stop_reason stop_after(const run *r, const options *o) {
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

/* ------------------------------------------------------------------ a chat */

enum { FEED_TOKENS = 128, ROLLING_SHARE = 4 };

/* A conversation, and what of it the session holds: ids from the first on. */
typedef struct {
    run *r;
    const options *o;
    llamita_message *messages; /* contents and ids are owned */
    size_t num_messages;
    int32_t *held, *ids, *answer; /* [context] each: in the session; of the whole conversation; generated last */
    size_t num_held, num_ids, num_fed, num_answer, room;
    char *said; /* the bytes of the answer */
    size_t said_bytes, said_capacity;
    bool on_terminal;
} chat;

static void *allocate(size_t num_bytes) {
    void *memory = calloc(num_bytes > 0 ? num_bytes : 1, 1);
    if (!memory) fail("out of memory: %zu bytes for the chat", num_bytes);
    return memory;
}

/* A line on stderr that is not the text: dim on a terminal. */
static void tell(const char *format, ...) {
    const bool dim = isatty(STDERR_FILENO);
    va_list arguments;
    va_start(arguments, format);
    if (dim) fputs("\033[2m", stderr);
    vfprintf(stderr, format, arguments);
    fputs(dim ? "\033[0m\n" : "\n", stderr);
    va_end(arguments);
}

static void chat_say(chat *c, const char *role, const char *content, size_t num_bytes, size_t num_ids) {
    llamita_message *grown = realloc(c->messages, (c->num_messages + 1) * sizeof *grown);
    if (!grown) fail("out of memory: %zu messages", c->num_messages + 1);
    char *text = allocate(num_bytes);
    int32_t *ids = num_ids > 0 ? allocate(num_ids * sizeof *ids) : NULL;
    if (num_bytes > 0) memcpy(text, content, num_bytes);
    if (ids) memcpy(ids, c->answer, num_ids * sizeof *ids);
    c->messages = grown;
    c->messages[c->num_messages++] = (llamita_message){role, text, num_bytes, ids, num_ids};
}

static void chat_forget(chat *c, size_t first, size_t count) {
    for (size_t i = first; i < first + count; i++) {
        free((void *)c->messages[i].content);
        free((void *)c->messages[i].ids);
    }
    c->num_messages -= count;
    memmove(c->messages + first, c->messages + first + count, (c->num_messages - first) * sizeof *c->messages);
}

/* The ids of the whole conversation; false if the context cannot hold them (num_ids says how many there are). */
static bool chat_encode(chat *c) {
    llamita_error error;
    size_t num_ids = 0;
    const llamita_status status =
        llamita_chat_encode(c->r->model, c->messages, c->num_messages, c->ids, c->room, &num_ids, &error);
    if (status != LLAMITA_OK && num_ids <= c->room) fail("%s", error.message);
    c->num_ids = num_ids;
    return num_ids < c->room;
}

/* Makes the conversation fit, or takes the question back and says so. */
static bool chat_fit(chat *c) {
    const size_t first = c->o->system ? 1 : 0, share = c->room / ROLLING_SHARE;
    const size_t wanted = (size_t)c->o->num_new_tokens, reserved = wanted > 0 && wanted < share ? wanted : share;
    size_t num_forgotten = 0;
    bool fits = chat_encode(c);
    while (c->o->rolling && (!fits || c->num_ids > c->room - reserved) && c->num_messages > first + 1) {
        chat_forget(c, first, 2);
        num_forgotten++;
        fits = chat_encode(c);
    }
    if (num_forgotten > 0)
        tell("the context is full: the %zu oldest %s forgotten", num_forgotten, num_forgotten == 1 ? "turn was" : "turns were");
    if (fits) return true;
    const bool alone = c->num_messages == first + 1;
    chat_forget(c, c->num_messages - 1, 1);
    static const char *const line = "the context is full: it holds %zu tokens, %s %zu; %s";
    const char *much = alone ? "the question alone has" : "with this question the chat has";
    const char *remedy = alone ? "shorten it" : "begin anew, or use --rolling";
    if (!c->on_terminal) fail(line, c->room, much, c->num_ids, remedy);
    tell(line, c->room, much, c->num_ids, remedy);
    return false;
}

static void chat_feed(chat *c, const int32_t *ids, size_t num_ids) {
    llamita_error error;
    check(llamita_session_feed(c->r->session, ids, num_ids, &error), &error);
    memcpy(c->held + c->num_held, ids, num_ids * sizeof *ids);
    c->num_held += num_ids;
}

/* Brings the session from what it holds to the conversation; false if Ctrl-C ended that. */
static bool chat_read(chat *c) {
    llamita_error error;
    size_t same = 0;
    while (same < c->num_held && same + 1 < c->num_ids && c->held[same] == c->ids[same]) same++;
    check(llamita_session_rewind(c->r->session, (int32_t)same, &error), &error);
    c->num_held = same;
    c->num_fed = 0;
    while (c->num_held < c->num_ids) {
        if (interrupted) return false;
        const size_t count = smallest_of(FEED_TOKENS, c->num_ids - c->num_held);
        for (size_t i = 0; i < count; i++) llamita_sampler_accept(c->r->sampler, c->ids[c->num_held + i]);
        chat_feed(c, c->ids + c->num_held, count);
        c->num_fed += count;
    }
    return true;
}

/* Takes a new token into the answer, and writes what it adds. */
static void chat_add(chat *c, output *out, int32_t previous_id, int32_t id) {
    llamita_error error;
    const char *bytes;
    size_t num_bytes;
    check(llamita_token_bytes(c->r->model, previous_id, id, &bytes, &num_bytes, &error), &error);
    if (c->said_bytes + num_bytes > c->said_capacity) {
        c->said_capacity = 2 * (c->said_bytes + num_bytes);
        c->said = realloc(c->said, c->said_capacity);
        if (!c->said) fail("out of memory: %zu bytes for the answer", c->said_capacity);
    }
    if (num_bytes > 0) memcpy(c->said + c->said_bytes, bytes, num_bytes);
    c->said_bytes += num_bytes;
    c->answer[c->num_answer++] = id;
    output_write(out, bytes, num_bytes);
}

static void chat_report(const chat *c) {
    const run *r = c->r;
    if (r->stop == STOP_NUM_TOKENS) tell("stopped after %zu tokens (-n)", c->num_answer);
    if (r->stop == STOP_CONTEXT) tell("stopped: the context is full");
    if (r->stop == STOP_INTERRUPT && c->num_answer == 0)
        tell("stopped before the answer began: the question is forgotten");
    if (!c->o->verbose && !isatty(STDERR_FILENO)) return;
    const double read_speed = r->prompt_seconds > 0 ? (double)c->num_fed / r->prompt_seconds : 0;
    const double speed = r->decode_seconds > 0 ? (double)r->num_decoded / r->decode_seconds : 0;
    tell("read %zu tokens, %.1f tok/s | generated %zu tokens, %.1f tok/s | context %zu of %zu", c->num_fed, read_speed,
         c->num_answer, speed, c->num_ids + c->num_answer, c->room);
}

/* Answers the last message; an answer that was stopped stays as far as it went. */
static void chat_answer(chat *c, output *out) {
    run *r = c->r;
    int32_t previous_id = c->ids[c->num_ids - 1], id = -1;
    double start = seconds();
    c->num_answer = c->said_bytes = 0;
    r->num_generated = r->num_decoded = 0;
    r->stop = STOP_INTERRUPT;
    if (chat_read(c)) id = pick(r);
    r->prompt_seconds = seconds() - start;
    start = seconds();
    while (id >= 0 && (r->stop = stop_before(r, out, id)) == STOP_NONE) {
        chat_add(c, out, previous_id, id);
        r->num_generated++;
        if ((r->stop = stop_after(r, c->o)) != STOP_NONE) break;
        chat_feed(c, &id, 1);
        r->num_decoded++;
        previous_id = id;
        id = pick(r);
    }
    r->decode_seconds = seconds() - start;
    out->num_bytes = 0; /* the beginning of a character that never came */
    if (!out->closed) output_write(out, "\n", 1);
    if (c->num_answer > 0 || r->stop == STOP_END_TOKEN) chat_say(c, "assistant", c->said, c->said_bytes, c->num_answer);
    else chat_forget(c, c->num_messages - 1, 1);
    chat_report(c);
}

/* The next line of stdin, without its end, into *line; its length, or -1 at the end. */
static ssize_t read_question(const chat *c, char **line, size_t *capacity) {
    for (;;) {
        set_signals(false);
        interrupted = 0;
        if (c->on_terminal) fputs("> ", stderr);
        ssize_t length = getline(line, capacity, stdin);
        if (length < 0 && c->on_terminal && interrupted) {
            clearerr(stdin);
            tell("\nCtrl-D ends the chat.");
            continue;
        }
        if (length < 0 && ferror(stdin) && !interrupted) fail("reading stdin: %s", strerror(errno));
        while (length > 0 && strchr("\r\n", (*line)[length - 1])) length--;
        return length;
    }
}

static int run_chat(run *r, const options *o, output *out) {
    chat c = {.r = r, .o = o, .on_terminal = isatty(STDIN_FILENO)};
    c.room = (size_t)llamita_session_context_tokens(r->session);
    c.held = allocate(c.room * sizeof *c.held);
    c.ids = allocate(c.room * sizeof *c.ids);
    c.answer = allocate(c.room * sizeof *c.answer);
    chat_say(&c, "user", "", 0, 0);
    chat_encode(&c); /* a template that cannot be used is told at once */
    chat_forget(&c, 0, 1);
    if (o->system) chat_say(&c, "system", o->system, strlen(o->system), 0);
    if (c.on_terminal) tell("Ctrl-C stops an answer, Ctrl-D ends the chat.");
    char *line = NULL;
    size_t capacity = 0;
    const char *question = o->prompt;
    ssize_t length = (ssize_t)strlen(question);
    while (length >= 0 && !out->closed) {
        if (length > 0 && question[strspn(question, " \t")]) {
            chat_say(&c, "user", question, (size_t)length, 0);
            set_signals(true);
            interrupted = 0;
            if (chat_fit(&c)) chat_answer(&c, out);
            if (interrupted && !c.on_terminal) break;
        }
        length = read_question(&c, &line, &capacity);
        question = line;
    }
    if (c.on_terminal) fputs("\n", stderr);
    chat_forget(&c, 0, c.num_messages);
    free(c.messages);
    free(c.held);
    free(c.ids);
    free(c.answer);
    free(c.said);
    free(line);
    return out->closed ? EXIT_UNREAD : interrupted && !c.on_terminal ? EXIT_INTERRUPTED : 0;
}

static void close_all(run *r, output *out) {
    llamita_sampler_close(r->sampler);
    llamita_session_close(r->session);
    llamita_model_close(r->model);
    free(r->prompt_ids);
    free(out->bytes);
}

int main(int num_words, char **words) {
    const options o = parse(num_words, words);
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
