/* args.h: the command line as a struct. Invalid arguments end the program with one line on
 * stderr. */
#ifndef APP_ARGS_H
#define APP_ARGS_H

#include "llamita.h"

enum { EXIT_USAGE = 2, EXIT_INTERRUPTED = 130, EXIT_BROKEN_PIPE = 141 };

/* The strings are borrowed from argv. prompt: NULL if there is none. */
typedef struct {
    const char *model_path, *prompt, *prompt_file, *tokenizer_path, *pre_tokenizer, *mode, *kernels, *system, *kv_type,
        *speculation, *prompt_cache, *rope_scaling, *context_full;
    double rope_scale, rope_freq_base, temperature, top_p, min_p, repetition_penalty, presence_penalty,
        frequency_penalty, typical_p, xtc_probability, xtc_threshold, mirostat_tau, mirostat_eta, dry_multiplier,
        dry_base;
    int64_t dry_allowed_length, dry_window, top_k, repetition_window, num_new_tokens, num_threads, context_tokens,
        yarn_orig_ctx, num_keep;
    uint64_t seed;
    bool seed_given, no_rolling, verbose, escape, shifts;
    bool model_inside;                          /* this program: model_path is its own */
    const char *adapters[LLAMITA_MAX_ADAPTERS]; /* FILE or FILE:SCALE */
    size_t num_adapters;
} options;

options parse_args(int argc, char **argv);

/* The index of text among names, which are separated by spaces. name: the flag, for the error. */
int parse_enum(const char *name, const char *text, const char *names);

/* Prints one line to stderr, with control characters replaced, and exits with EXIT_USAGE. */
_Noreturn void fail(const char *format, ...);

/* Fails with the error's message unless the status is LLAMITA_OK. */
void check(llamita_status status, const llamita_error *error);

#endif
