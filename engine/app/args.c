/* args.c: parses the command line. */
#include "args.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "inside.h"
#include "system.h"

_Noreturn void fail(const char *format, ...) {
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    for (char *c = message; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    fprintf(stderr, "run: %s\n", message);
    exit(EXIT_USAGE);
}

void check(llamita_status status, const llamita_error *error) {
    if (status != LLAMITA_OK) fail("%s", error->message);
}

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
     "sampling temperature: 0 is greedy, higher is more random (1.0; chat: 0.6)"},
    {'p', "top-p", "P", FLAG_REAL, FIELD(top_p), 0, 1,
     "sample from the smallest set with this total probability; 0 or 1: off (0.9)"},
    {'k', "top-k", "K", FLAG_WHOLE, FIELD(top_k), 0, INT32_MAX, "sample from the K most probable tokens; 0: off (0)"},
    {0, "min-p", "P", FLAG_REAL, FIELD(min_p), 0, 1,
     "sample from tokens with at least P times the top probability; 0: off (0)"},
    {0, "repetition-penalty", "R", FLAG_REAL, FIELD(repetition_penalty), 0.01, 100,
     "penalize recent tokens by this factor; 1: off (1.0)"},
    {0, "repetition-window", "N", FLAG_WHOLE, FIELD(repetition_window), 0, 1 << 24,
     "number of recent tokens that are penalized (64)"},
    {0, "presence-penalty", "X", FLAG_REAL, FIELD(presence_penalty), -1e6, 1e6,
     "subtract this from the logit of each recent token (0)"},
    {0, "frequency-penalty", "X", FLAG_REAL, FIELD(frequency_penalty), -1e6, 1e6,
     "subtract this from the logit of a recent token for each time that it comes (0)"},
    {0, "typical-p", "P", FLAG_REAL, FIELD(typical_p), 0, 1,
     "sample from P of the probability, of tokens whose surprise is nearest to the entropy; 1: off (1)"},
    {0, "xtc-probability", "P", FLAG_REAL, FIELD(xtc_probability), 0, 1,
     "XTC: how often to drop the most probable tokens, all but one; 0: off (0)"},
    {0, "xtc-threshold", "P", FLAG_REAL, FIELD(xtc_threshold), 0, 1,
     "XTC: the probability that counts; above 0.5 nothing is dropped (0.1)"},
    {0, "mirostat-tau", "BITS", FLAG_REAL, FIELD(mirostat_tau), 0, 100,
     "Mirostat 2.0: surprise to come near, instead of top-k, typical-p, top-p, min-p, XTC; 0: off (0)"},
    {0, "mirostat-eta", "RATE", FLAG_REAL, FIELD(mirostat_eta), 0, 1, "Mirostat: how fast it adapts (0.1)"},
    {0, "dry-multiplier", "X", FLAG_REAL, FIELD(dry_multiplier), 0, 1e6,
     "DRY: penalize tokens that continue a repetition of n tokens by X base^(n - allowed); 0: off (0)"},
    {0, "dry-base", "X", FLAG_REAL, FIELD(dry_base), 1, 1e6, "DRY: growth of the penalty with each token (1.75)"},
    {0, "dry-allowed-length", "N", FLAG_WHOLE, FIELD(dry_allowed_length), 1, 1 << 24,
     "DRY: shortest repetition that is penalized (2)"},
    {0, "dry-window", "N", FLAG_WHOLE, FIELD(dry_window), 1, 1 << 24,
     "DRY: number of last tokens that are searched for repetitions (4096)"},
    {'s', "seed", "S", FLAG_SEED, FIELD(seed), 0, 0, "random seed; the same seed gives the same text (random)"},
    {'n', "max-new-tokens", "N", FLAG_WHOLE, FIELD(num_new_tokens), 0, INT32_MAX,
     "maximum number of new tokens; 0: no limit but a full context (256; chat: 512)"},
    {'i', "prompt", "TEXT", FLAG_TEXT, FIELD(prompt), 0, 0,
     "text to continue, - for stdin (what is piped in); chat: the first question"},
    {'f', "prompt-file", "FILE", FLAG_TEXT, FIELD(prompt_file), 0, 0, "read the prompt from this file; - is stdin"},
    {'e', "escape", "", FLAG_SWITCH, FIELD(escape), 0, 0,
     "replace \\n, \\r, \\t, \\', \\\", \\\\ and \\xHH in the prompt"},
    {'z', "tokenizer", "FILE", FLAG_TEXT, FIELD(tokenizer_path), 0, 0,
     "tokenizer.bin, or a GGUF with a tokenizer (the model's; llama2.c: tokenizer.bin)"},
    {0, "pre", "NAME", FLAG_TEXT, FIELD(pre_tokenizer), 0, 0,
     "how a byte-level tokenizer splits text, as tokenizer.ggml.pre, for a GGUF without it (the file's)"},
    {0, "adapter", "FILE[:SCALE]", FLAG_ADAPTER, 0, 0, 0,
     "apply a GGUF LoRA adapter; repeat to combine several (none)"},
    {'m', "mode", "MODE", FLAG_TEXT, FIELD(mode), 0, 0,
     "generate, or chat: answer the prompt, then each line of stdin (generate)"},
    {'y', "system", "TEXT", FLAG_TEXT, FIELD(system), 0, 0, "chat: system prompt (the model's)"},
    {0, "no-rolling", "", FLAG_SWITCH, FIELD(no_rolling), 0, 0,
     "chat: stop when the context is full, instead of forgetting the oldest turns"},
    {'v', "verbose", "", FLAG_SWITCH, FIELD(verbose), 0, 0,
     "chat: print the speed after each answer even if stderr is not a terminal"},
    {'j', "threads", "N", FLAG_WHOLE, FIELD(num_threads), 0, 1024,
     "number of threads; 0: chosen by model size and machine (0)"},
    {'c', "context", "N", FLAG_WHOLE, FIELD(context_tokens), 0, INT32_MAX,
     "context size in tokens; 0: the model's context (0)"},
    {0, "context-full", "HOW", FLAG_TEXT, FIELD(context_full), 0, 0,
     "a full context: stop, or shift: drop the older half of what is not kept and go on (stop; not in a chat)"},
    {0, "keep", "N", FLAG_WHOLE, FIELD(num_keep), -1, INT32_MAX,
     "shift: tokens of the prompt that are never dropped, besides BOS; -1: all (0)"},
    {0, "rope-scaling", "TYPE", FLAG_TEXT, FIELD(rope_scaling), 0, 0,
     "RoPE beyond the trained context: none, linear, ntk or yarn (the model's)"},
    {0, "rope-scale", "N", FLAG_REAL, FIELD(rope_scale), 1, 1e4,
     "how many times the trained context -c may be (the model's)"},
    {0, "rope-freq-base", "X", FLAG_REAL, FIELD(rope_freq_base), 1, 1e30, "RoPE base (the model's)"},
    {0, "yarn-orig-ctx", "N", FLAG_WHOLE, FIELD(yarn_orig_ctx), 1, 1 << 24,
     "yarn: trained context in tokens (the model's)"},
    {0, "kv", "TYPE", FLAG_TEXT, FIELD(kv_type), 0, 0, "KV-cache type: f16, f32 or q8 (f16)"},
    {0, "speculation", "WHEN", FLAG_TEXT, FIELD(speculation), 0, 0,
     "speculative decoding, which never changes the text: auto, off or always (auto)"},
    {0, "prompt-cache", "FILE", FLAG_TEXT, FIELD(prompt_cache), 0, 0,
     "keep the computed prompt in this file, and do not compute again what a prompt shares with it (none)"},
    {0, "kernels", "NAME", FLAG_TEXT, FIELD(kernels), 0, 0,
     "CPU kernels: auto, scalar, avx2, avxvnni, avx512, amx, neon, dotprod or i8mm (auto)"},
};
enum { NUM_FLAGS = sizeof FLAGS / sizeof *FLAGS };

_Noreturn static void help(bool inside) {
    printf("usage: %s [PROMPT] [flags]\n\n"
           "Generates text with %s: text on stdout, statistics on stderr.\n"
           "With -m chat, answers questions: Ctrl-C stops an answer, " END_OF_INPUT_KEY
           " ends the chat, /help lists commands.\n\n",
           inside ? "PROGRAM" : "run MODEL", inside ? "the model in this program" : "a GGUF or llama2.c model");
    for (int i = 0; i < NUM_FLAGS; i++) {
        char usage[64];
        snprintf(usage, sizeof usage, "--%s%s%s", FLAGS[i].name, *FLAGS[i].value ? " " : "", FLAGS[i].value);
        if (FLAGS[i].letter) printf("  -%c, %-25s %s\n", FLAGS[i].letter, usage, FLAGS[i].help);
        else printf("      %-25s %s\n", usage, FLAGS[i].help);
    }
    printf("  -h, %-25s %s\n", "--help", "print this help");
    printf("  -V, %-25s %s\n\n", "--version", "print the version and the kernels for this processor");
    printf("Defaults are in parentheses. Statistics: prompt tokens per second (BOS included); new tokens per\n"
           "second and GB of weights read per second; time to open the model; time to the first new token.\n");
    exit(fflush(stdout) == 0 ? 0 : EXIT_USAGE);
}

static size_t smallest_of(size_t a, size_t b) { return a < b ? a : b; }

/* The Levenshtein distance: insertions, deletions and substitutions that turn a into b. */
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

/* word: as typed. Suggests the closest flag within three edits. */
_Noreturn static void fail_unknown_flag(const char *word) {
    const char *name = word + strspn(word, "-");
    const flag *nearest = NULL;
    size_t nearest_distance = 4;
    for (int i = 0; i < NUM_FLAGS; i++) {
        const size_t typed = strlen(name), distance = edit_distance(name, FLAGS[i].name);
        const bool begins = typed >= 3 && strncmp(FLAGS[i].name, name, typed) == 0;
        if (begins || (distance < nearest_distance && distance < typed)) {
            nearest_distance = begins ? 0 : distance;
            nearest = &FLAGS[i];
        }
    }
    if (nearest) fail("unknown flag %s; perhaps you meant --%s (run -h lists all flags)", word, nearest->name);
    for (int i = 0; i < NUM_FLAGS; i++)
        if (name[0] && FLAGS[i].letter && (name[0] | 0x20) == FLAGS[i].letter)
            fail("unknown flag %s; perhaps you meant -%c (run -h lists all flags)", word, FLAGS[i].letter);
    fail("unknown flag %s; run -h lists all flags", word);
}

/* The flag named by word; *value: the text after '=', or NULL. */
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

/* Parses text as a value of the flag, all of it and within range, and stores it in the field. */
static void set_field(options *o, const flag *f, const char *word, const char *text) {
    void *field = (char *)o + f->offset;
    char *end = NULL;
    errno = 0;
    if (f->kind == FLAG_TEXT) {
        memcpy(field, &text, sizeof text);
    } else if (f->kind == FLAG_ADAPTER) {
        if (o->num_adapters == LLAMITA_MAX_ADAPTERS)
            fail("%s: expected at most %d adapters, found more", word, LLAMITA_MAX_ADAPTERS);
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

int parse_enum(const char *name, const char *text, const char *names) {
    const size_t length = strlen(text);
    int index = 0;
    for (const char *at = names; *at && length > 0; at += strcspn(at, " "), at += *at == ' ', index++)
        if (strcspn(at, " ") == length && memcmp(at, text, length) == 0) return index;
    fail("--%s: expected one of %s, found '%s'", name, names, text);
}

options parse_args(int argc, char **argv) {
    options o = {.mode = "generate",
                 .kv_type = "f16",
                 .speculation = "auto",
                 .temperature = -1,
                 .top_p = 0.9,
                 .repetition_penalty = 1.0,
                 .repetition_window = 64,
                 .typical_p = 1,
                 .xtc_threshold = 0.1,
                 .mirostat_eta = 0.1,
                 .dry_base = 1.75,
                 .dry_allowed_length = 2,
                 .dry_window = 4096,
                 .num_new_tokens = -1,
                 .num_keep = -2};
    o.model_path = model_inside(&o.mode);
    o.model_inside = o.model_path != NULL;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i], *value;
        if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0) help(o.model_inside);
        if (strcmp(word, "-V") == 0 || strcmp(word, "--version") == 0) {
            printf("llamita %s (%s kernels)\n", llamita_version(), llamita_kernels());
            exit(0);
        }
        if (word[0] != '-' || word[1] == 0) {
            if (o.model_path && o.prompt)
                fail("expected %s one prompt, found more: %s", o.model_inside ? "at most" : "one model and", word);
            *(o.model_path ? &o.prompt : &o.model_path) = word;
            continue;
        }
        const flag *f = find_flag(word, &value);
        if (f->kind == FLAG_SWITCH) {
            if (value) fail("%s: expected no value, found '%s'", word, value);
            *(bool *)((char *)&o + f->offset) = true;
            continue;
        }
        if (!value && i + 1 == argc) fail("%s: expected a value, found none; run -h lists all flags", word);
        set_field(&o, f, word, value ? value : argv[++i]);
    }
    if (!o.model_path) fail("expected a model file; usage: run MODEL [flags] (run -h lists all flags)");
    const bool chats = strcmp(o.mode, "chat") == 0;
    if (!chats && strcmp(o.mode, "generate") != 0) fail("-m: expected generate or chat, found '%s'", o.mode);
    if (!chats && (o.system || o.no_rolling))
        fail("%s: only in a chat (-m chat)", o.system ? "--system" : "--no-rolling");
    if (o.context_full && chats)
        fail("--context-full: not in a chat, which forgets its oldest turns (see --no-rolling)");
    o.shifts = o.context_full && parse_enum("context-full", o.context_full, "stop shift") == 1;
    if (o.num_keep != -2 && !o.shifts) fail("--keep: only with --context-full shift");
    if (o.num_keep == -2) o.num_keep = 0;
    if (o.prompt && o.prompt_file) fail("expected one prompt, found a text and --prompt-file; give one of them");
    if (o.temperature < 0) o.temperature = chats ? 0.6 : 1;
    if (o.num_new_tokens < 0) o.num_new_tokens = chats ? 512 : 256;
    if (o.top_p == 0) o.top_p = 1; /* as in llama2.c, 0 is off */
    if (!o.seed_given) o.seed = system_seed();
    return o;
}
