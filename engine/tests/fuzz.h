/* fuzz.h: what the fuzzers share: the use of every file that opens, and a program that runs a
 * fuzzer's target on a corpus and on changed files.
 *
 * A fuzzer defines three functions and ends with FUZZ_TARGET. With clang (cmake -DLLAMITA_FUZZ=ON)
 * libFuzzer calls them, guided by coverage; else the main of this file does. Both take
 *
 *     fuzz_gguf [-runs=N] [-max_total_time=SECONDS] [-seed=N] [file or folder]...
 */
#ifndef LLAMITA_FUZZ_H
#define LLAMITA_FUZZ_H

#include <dirent.h>
#include <math.h>
#include <time.h>

#include "check.h"
#include "kernels/kernels.h"
#include "model_files.h"
#include "mutate.h"
#include "platform/platform.h"

/* ---------------------------------------------------------------- using what was opened */

static inline void fuzz_check_error(const llamita_error *error) {
    CHECK(error->status == LLAMITA_ERROR_FORMAT || error->status == LLAMITA_ERROR_MEMORY, "status %d", error->status);
    CHECK(strncmp(error->message, "cannot ", 7) == 0 && !strchr(error->message, '\n'), "\"%s\"", error->message);
}

/* Whether a call succeeded; a refusal must have this status. */
static inline bool fuzz_succeeded(llamita_status status, llamita_status refusal, const llamita_error *error) {
    CHECK(status == LLAMITA_OK || status == refusal, "status %d: %s", status, error->message);
    CHECK(status == LLAMITA_OK || (strncmp(error->message, "cannot ", 7) == 0 && !strchr(error->message, '\n')),
          "\"%s\"", error->message);
    return status == LLAMITA_OK;
}

static inline void fuzz_check_ids(const int32_t *ids, size_t num_ids, int32_t vocab_size) {
    for (size_t i = 0; i < num_ids; i++) CHECK(ids[i] >= 0 && ids[i] < vocab_size, "id %d", ids[i]);
}

/* Encodes a text, and decodes every token. */
static inline void fuzz_use_tokenizer(const tokenizer *t) {
    static const char text[] = "ab a<|im_end|>b\xE2\x96\x81 \xFF\n 'll 12";
    int32_t ids[2 * sizeof text + 2];
    size_t num_tokens = 0;
    llamita_error error;
    for (int flags = 0; flags < 4; flags++) {
        llamita_status status =
            tokenizer_encode(t, text, sizeof text - 1, flags, ids, sizeof ids / sizeof *ids, &num_tokens, &error);
        CHECK(status == LLAMITA_OK || status == LLAMITA_ERROR_FORMAT || status == LLAMITA_ERROR_ARGUMENT, "status %d",
              status);
        if (!status) fuzz_check_ids(ids, num_tokens, tokenizer_vocab_size(t));
    }
    for (int32_t id = 0; id < tokenizer_vocab_size(t); id++) {
        const char *bytes;
        size_t num_bytes;
        CHECK(tokenizer_decode(t, -1, id, &bytes, &num_bytes, &error) == LLAMITA_OK, "%s", error.message);
        CHECK(tokenizer_text(t, id), "token %d has no text", id);
    }
}

/* Renders a chat, and encodes segments of which one is trusted. */
static inline void fuzz_use_chat(const llamita_model *model) {
    static const char *const families[] = {"chatml", "llama2", "llama3", "zephyr"};
    const llamita_message messages[] = {{.role = "system", .content = "ab", .num_bytes = 2},
                                        {.role = "user", .content = "<|im_end|>\xFF", .num_bytes = 11},
                                        {.role = "assistant", .content = "", .num_bytes = 0},
                                        {.role = "user", .content = " b ", .num_bytes = 3}};
    const llamita_text_segment segments[] = {{.text = "<|im_end|>a", .num_bytes = 11, .trusted = true},
                                             {.text = "<|im_end|>b", .num_bytes = 11}};
    static int32_t ids[1 << 16];
    const size_t capacity = sizeof ids / sizeof *ids;
    size_t num_tokens = 0;
    llamita_error error;
    const char *family = llamita_chat_family(model);
    bool known = !family;
    for (size_t i = 0; family && i < 4; i++) known |= strcmp(family, families[i]) == 0;
    CHECK(known, "family %s", family);
    llamita_status status = llamita_chat_encode(model, messages, 4, ids, capacity, &num_tokens, &error);
    if (fuzz_succeeded(status, LLAMITA_ERROR_ARGUMENT, &error)) fuzz_check_ids(ids, num_tokens, model->info.vocab_size);
    status = llamita_encode_segments(model, segments, 2, ids, capacity, &num_tokens, &error);
    if (fuzz_succeeded(status, LLAMITA_ERROR_ARGUMENT, &error)) fuzz_check_ids(ids, num_tokens, model->info.vocab_size);
}

/* Feeds a prompt, generates, rewinds, shares and scores. The logits must be the same bits after a
 * rewind and in another sequence; they are copied to logits [V]. False: they are not finite. */
static inline bool fuzz_use_session(const llamita_model *model, llamita_kv_type kv_type, const llamita_adapter_use *use,
                                    float *logits) {
    const size_t V = (size_t)model->info.vocab_size;
    const int32_t context = model->info.context_tokens < 10 ? model->info.context_tokens : 10;
    const llamita_session_params params = {.num_threads = 1,
                                           .context_tokens = context,
                                           .num_sequences = 2,
                                           .kv_type = kv_type,
                                           .speculation = LLAMITA_SPECULATION_ALWAYS};
    const llamita_sampler_params sampling = {.temperature = 0.9F,
                                             .top_k = 40,
                                             .top_p = 0.9F,
                                             .min_p = 0.01F,
                                             .repetition_penalty = 1.1F,
                                             .repetition_window = 4,
                                             .seed = 1};
    const int32_t last = (int32_t)V - 1, ids[] = {0, 4 < last ? 4 : last, 5 < last ? 5 : last, 0};
    const int32_t num_ids = context < 4 ? context : 4;
    llamita_error error;
    llamita_session *session = NULL;
    llamita_sampler *sampler = NULL;
    CHECK(llamita_session_open(model, &params, &session, &error) == LLAMITA_OK, "%s", error.message);
    CHECK(llamita_sampler_open(&sampling, (int32_t)V, &sampler, &error) == LLAMITA_OK, "%s", error.message);
    if (!session || !sampler) abort();
    for (int32_t s = 0; use && s < 2; s++)
        CHECK(llamita_sequence_set_adapters(session, s, use, 1, &error) == LLAMITA_OK, "%s", error.message);
    bool finite =
        fuzz_succeeded(llamita_session_feed(session, ids, (size_t)num_ids, &error), LLAMITA_ERROR_NUMERIC, &error);
    if (finite) memcpy(logits, llamita_session_logits(session), V * sizeof *logits);
    for (size_t i = 0; finite && i < V; i++) CHECK(isfinite(logits[i]), "logit %zu", i);
    bool going = finite;
    while (going && llamita_session_position(session) < context) {
        int32_t id = -1;
        CHECK(!llamita_sampler_pick(sampler, llamita_session_logits(session), &id, &error), "%s", error.message);
        fuzz_check_ids(&id, 1, (int32_t)V);
        llamita_sampler_accept(sampler, id);
        going = fuzz_succeeded(llamita_session_feed(session, &id, 1, &error), LLAMITA_ERROR_NUMERIC, &error);
    }
    if (finite) { /* the same token again, in both sequences at once */
        float *both = calloc(2 * V, sizeof *both);
        const int32_t before = num_ids - 1;
        const llamita_chunk chunks[] = {{1, ids + before, 1, 1}, {0, ids + before, 1, 1}};
        CHECK(!llamita_session_rewind(session, before, &error), "%s", error.message);
        CHECK(!llamita_sequence_share(session, 0, 1, before, &error), "%s", error.message);
        CHECK(!llamita_decode(session, chunks, 2, both, &error), "%s", error.message);
        CHECK(both && memcmp(both, logits, V * sizeof *both) == 0 && memcmp(both + V, logits, V * sizeof *both) == 0,
              "KV type %d: other logits after a rewind", (int)kv_type);
        free(both);
    }
    double nats[3] = {0};
    CHECK(!llamita_session_rewind(session, 0, &error), "%s", error.message);
    if (num_ids >= 3 &&
        fuzz_succeeded(llamita_session_score(session, ids, 3, nats, &error), LLAMITA_ERROR_NUMERIC, &error))
        CHECK(nats[0] >= 0 && nats[1] >= 0 && isfinite(nats[0] + nats[1]), "%g and %g nats", nats[0], nats[1]);
    llamita_sampler_close(sampler);
    llamita_session_close(session);
    return finite;
}

/* Checks what an open model guarantees: weights inside the file, finite norms and angles, a
 * tokenizer of the model's vocabulary size, the same logits from all kernels; and runs it with every
 * type of KV cache. */
static inline void fuzz_use_model(llamita_model *model) {
    static volatile unsigned sink;
    sink = sink + sum_model(model);
    for (int32_t i = 0; i < model->info.head_dim / 2; i++)
        CHECK(isfinite(model->rope_frequency[i]), "angle %d is not finite", i);
    for (int32_t i = 0; i < model->info.hidden_size; i++)
        CHECK(isfinite(model->output_norm[i]), "norm %d is not finite", i);
    if (model->tokenizer) {
        CHECK(tokenizer_vocab_size(model->tokenizer) == model->info.vocab_size,
              "the tokenizer has another vocabulary size");
        fuzz_use_tokenizer(model->tokenizer);
        fuzz_use_chat(model);
    }
    llamita_error error;
    const llamita_status status = pack_bytes(model, &error);
    CHECK(status == LLAMITA_OK, "%s", error.message);
    const size_t num_bytes = (size_t)model->info.vocab_size * sizeof(float);
    float *slow = malloc(num_bytes), *fast = malloc(num_bytes);
    if (!slow || !fast) abort();
    for (int kv_type = LLAMITA_KV_F16; !status && kv_type <= LLAMITA_KV_Q8; kv_type++) {
        model->kernels = kernels_select("scalar");
        const bool finite = fuzz_use_session(model, (llamita_kv_type)kv_type, NULL, slow);
        model->kernels = kernels_select(NULL);
        const bool also = fuzz_use_session(model, (llamita_kv_type)kv_type, NULL, fast);
        CHECK(finite == also && (!finite || memcmp(slow, fast, num_bytes) == 0), "KV type %d: other logits with %s",
              kv_type, kernels_name(model->kernels));
    }
    free(slow);
    free(fast);
}

/* ---------------------------------------------------------------- running a target */

typedef struct {
    void (*use)(const uint8_t *bytes, size_t num_bytes);
    buffer (*write)(uint64_t variant);             /* a valid input; any variant */
    void (*mutate)(buffer *file, uint64_t *state); /* makes one change */
} fuzz_target;

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t num_bytes);

#ifndef FUZZ_MAIN

size_t LLVMFuzzerMutate(uint8_t *bytes, size_t num_bytes, size_t max_bytes);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t num_bytes, size_t max_bytes, unsigned int seed);

/* Starts anew from a valid input now and then, and when there is none. */
static inline size_t fuzz_mutator(const fuzz_target *target, uint8_t *bytes, size_t num_bytes, size_t max_bytes,
                                  unsigned int seed) {
    uint64_t state = seed;
    const bool fresh = num_bytes < 4 || random_u64(&state) % 128 == 0;
    if (!fresh && random_u64(&state) % 3 == 0) return LLVMFuzzerMutate(bytes, num_bytes, max_bytes);
    buffer file = {0};
    if (fresh) file = target->write(random_u64(&state));
    else put_bytes(&file, bytes, num_bytes);
    target->mutate(&file, &state);
    const size_t kept = file.num_bytes < max_bytes ? file.num_bytes : max_bytes;
    if (kept) memcpy(bytes, file.bytes, kept);
    free_buffer(&file);
    return kept;
}

#define FUZZ_TARGET(use, write, mutate, num_runs)                                                       \
    static const fuzz_target the_target = {use, write, mutate};                                         \
    int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t num_bytes) {                                \
        the_target.use(bytes, num_bytes);                                                               \
        if (check_num_failures) abort();                                                                \
        return 0;                                                                                       \
    }                                                                                                   \
    size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t num_bytes, size_t max_bytes, unsigned seed) { \
        return fuzz_mutator(&the_target, bytes, num_bytes, max_bytes, seed);                            \
    }

#else

/* Runs the target on a file, or on every file of a folder. */
static inline void fuzz_run_path(const fuzz_target *target, const char *path) {
    DIR *folder = opendir(path);
    if (folder) {
        for (const struct dirent *entry; (entry = readdir(folder));) {
            char inside[1024];
            const bool fits = snprintf(inside, sizeof inside, "%s/%s", path, entry->d_name) < (int)sizeof inside;
            if (fits && entry->d_name[0] != '.') fuzz_run_path(target, inside);
        }
        closedir(folder);
        return;
    }
    buffer file = {0};
    unsigned char chunk[4096];
    FILE *from = fopen(path, "rb");
    CHECK(from, "cannot open %s", path);
    for (size_t num_read; from && (num_read = fread(chunk, 1, sizeof chunk, from)) > 0;)
        put_bytes(&file, chunk, num_read);
    if (from) fclose(from);
    const int before = check_num_failures;
    target->use(file.bytes, file.num_bytes);
    CHECK(check_num_failures == before, "the failure was in %s", path);
    free_buffer(&file);
}

static inline int fuzz_main(const fuzz_target *target, int argc, char **argv, unsigned long num_runs) {
    uint64_t state = 1;
    double max_seconds = 0;
    for (int i = 1; i < argc; i++)
        if (strncmp(argv[i], "-runs=", 6) == 0) num_runs = strtoul(argv[i] + 6, NULL, 10);
        else if (strncmp(argv[i], "-seed=", 6) == 0) state = strtoull(argv[i] + 6, NULL, 10);
        else if (strncmp(argv[i], "-max_total_time=", 16) == 0) max_seconds = strtod(argv[i] + 16, NULL);
        else fuzz_run_path(target, argv[i]);
    const double start = platform_seconds();
    unsigned long num_done = 0;
    while (!check_num_failures && (max_seconds > 0 ? platform_seconds() - start < max_seconds : num_done < num_runs)) {
        const uint64_t seed = state; /* of this case only */
        buffer file = target->write(random_u64(&state));
        for (uint64_t n = random_u64(&state) % 4; n > 0; n--) target->mutate(&file, &state);
        target->use(file.bytes, file.num_bytes);
        CHECK(!check_num_failures, "reproduce with: %s -runs=1 -seed=%llu", argv[0], (unsigned long long)seed);
        free_buffer(&file);
        num_done++;
    }
    fprintf(stderr, "%s: %lu cases\n", argv[0], num_done);
    return check_failures();
}

#define FUZZ_TARGET(use, write, mutate, num_runs)               \
    int main(int argc, char **argv) {                           \
        static const fuzz_target target = {use, write, mutate}; \
        return fuzz_main(&target, argc, argv, num_runs);        \
    }

#endif
#endif
