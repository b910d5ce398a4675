/* test_out_of_memory.c: every allocation, mapping and start of a thread fails in turn. The call that
 * needed it must end in a one-line error that leaves everything as it was, so that the same call
 * works the next time with the same results; or do without. Nothing may leak.
 *
 * Linked with --wrap (CMakeLists.txt), so that the engine's calls of malloc come to __wrap_malloc. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "random_model.h"

#include "model_files.h"

/* ------------------------------------------------------------------ failing on demand */

static atomic_long num_calls, num_live; /* allocations tried; allocations not freed */
static atomic_llong mapped_bytes;       /* of mappings, in whole pages */
static long fail_at = -1;               /* the number of the call that fails; -1: none */
static bool keeps_failing;              /* so do all calls after it */

void *__real_malloc(size_t num_bytes);
void *__real_calloc(size_t count, size_t num_bytes);
void *__real_realloc(void *memory, size_t num_bytes);
void *__real_aligned_alloc(size_t alignment, size_t num_bytes);
void *__real_mmap(void *at, size_t num_bytes, int protection, int flags, int file, off_t offset);
int __real_munmap(void *at, size_t num_bytes);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *with, void *(*run)(void *), void *argument);
void __real_free(void *memory);

void *__wrap_malloc(size_t num_bytes);
void *__wrap_calloc(size_t count, size_t num_bytes);
void *__wrap_realloc(void *memory, size_t num_bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t num_bytes);
void *__wrap_mmap(void *at, size_t num_bytes, int protection, int flags, int file, off_t offset);
void *__wrap_mmap64(void *at, size_t num_bytes, int protection, int flags, int file, off_t offset);
int __wrap_munmap(void *at, size_t num_bytes);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *with, void *(*run)(void *), void *argument);
void __wrap_free(void *memory);

static bool fails(void) {
    const long call = atomic_fetch_add(&num_calls, 1);
    const bool failing = fail_at >= 0 && (call == fail_at || (keeps_failing && call > fail_at));
    if (failing) errno = ENOMEM;
    return failing;
}

static void *counted(void *memory) {
    if (memory) atomic_fetch_add(&num_live, 1);
    return memory;
}

void *__wrap_malloc(size_t num_bytes) { return fails() ? NULL : counted(__real_malloc(num_bytes)); }

void *__wrap_calloc(size_t count, size_t num_bytes) {
    return fails() ? NULL : counted(__real_calloc(count, num_bytes));
}

void *__wrap_aligned_alloc(size_t alignment, size_t num_bytes) {
    return fails() ? NULL : counted(__real_aligned_alloc(alignment, num_bytes));
}

void *__wrap_realloc(void *memory, size_t num_bytes) {
    if (fails()) return NULL;
    void *moved = __real_realloc(memory, num_bytes);
    return memory ? moved : counted(moved);
}

void __wrap_free(void *memory) {
    if (memory) atomic_fetch_sub(&num_live, 1);
    __real_free(memory);
}

static long long whole_pages(size_t num_bytes) {
    const long page = sysconf(_SC_PAGESIZE);
    return ((long long)num_bytes + page - 1) / page * page;
}

void *__wrap_mmap(void *at, size_t num_bytes, int protection, int flags, int file, off_t offset) {
    void *mapped = fails() ? MAP_FAILED : __real_mmap(at, num_bytes, protection, flags, file, offset);
    const bool is_new = mapped != MAP_FAILED && !(flags & MAP_FIXED); /* MAP_FIXED replaces a mapping */
    if (is_new) atomic_fetch_add(&mapped_bytes, whole_pages(num_bytes));
    return mapped;
}

/* The name of mmap with _FILE_OFFSET_BITS=64. */
void *__wrap_mmap64(void *at, size_t num_bytes, int protection, int flags, int file, off_t offset) {
    return __wrap_mmap(at, num_bytes, protection, flags, file, offset);
}

int __wrap_munmap(void *at, size_t num_bytes) {
    atomic_fetch_sub(&mapped_bytes, whole_pages(num_bytes));
    return __real_munmap(at, num_bytes);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *with, void *(*run)(void *), void *argument) {
    return fails() ? EAGAIN : __real_pthread_create(thread, with, run, argument);
}

/* ------------------------------------------------------------------ scenarios */

static char model_path[32], byte_level_path[32], llama2c_path[32], tokenizer_path[32], adapter_path[32],
    session_path[32];
static llamita_error error;
static int num_errors; /* of this scenario */

/* FNV-1a of all results. */
static uint64_t results;

static void note_results(const void *bytes, size_t num_bytes) {
    for (size_t i = 0; i < num_bytes; i++) results = (results ^ ((const uint8_t *)bytes)[i]) * 0x100000001B3u;
}

static bool out_of_memory(llamita_status status) {
    if (!status) return false;
    num_errors++;
    const bool expected = status == LLAMITA_ERROR_MEMORY || (status == LLAMITA_ERROR_IO && fail_at >= 0);
    CHECK(expected && error.status == status, "allocation %ld: status %d: %s", fail_at, status, error.message);
    CHECK(strncmp(error.message, "cannot ", 7) == 0 && !strchr(error.message, '\n'), "allocation %ld: \"%s\"", fail_at,
          error.message);
    error = (llamita_error){0};
    return true;
}

/* Calls; once more if it failed because an allocation did; gives up if that keeps failing. */
#define TRY(call)                                                                           \
    do {                                                                                    \
        if (!out_of_memory(call)) break;                                                    \
        if (keeps_failing) goto end;                                                        \
        const llamita_status again = (call);                                                \
        CHECK(!again, "%s after allocation %ld failed: %s", #call, fail_at, error.message); \
        if (again) goto end;                                                                \
    } while (0)

/* The ids are noted from the session: a text that fails in the middle comes again. */
static bool take_piece(void *state, const llamita_piece *piece) {
    (void)state;
    return piece != NULL;
}

static void run_model(const char *path, const char *tokenizer, const char *adapter_file) {
    const llamita_model_params params = {.tokenizer_path = tokenizer};
    const llamita_session_params session_params = {.num_threads = 2,
                                                   .num_sequences = 2,
                                                   .kv_type = LLAMITA_KV_Q8,
                                                   .speculation = LLAMITA_SPECULATION_ALWAYS,
                                                   .rope = {.scale = 2},
                                                   .context_full = LLAMITA_CONTEXT_SHIFT};
    const llamita_sampler_params sampling = {
        .temperature = 0.8F, .top_p = 0.9F, .top_k = 5, .repetition_penalty = 1.2F, .repetition_window = 8, .seed = 3};
    const llamita_text_segment segments[] = {{.text = "ab ", .num_bytes = 3, .trusted = true},
                                             {.text = "ab a", .num_bytes = 4}};
    llamita_model *model = NULL;
    llamita_session *session = NULL;
    llamita_sampler *sampler = NULL;
    llamita_adapter *adapter = NULL;
    float *logits = NULL;
    int32_t ids[64];
    size_t num_ids = 0;
    double nats[4];
    TRY(llamita_model_open(path, &params, &model, &error));
    TRY(llamita_encode(model, "ab a b", 6, LLAMITA_ENCODE_BOS | LLAMITA_ENCODE_SPECIAL, ids, 64, &num_ids, &error));
    note_results(ids, num_ids * sizeof *ids);
    TRY(llamita_encode_segments(model, segments, 2, ids, 64, &num_ids, &error));
    note_results(ids, num_ids * sizeof *ids);
    TRY(llamita_session_open(model, &session_params, &session, &error));
    if (adapter_file) {
        TRY(llamita_adapter_open(model, adapter_file, &adapter, &error));
        const llamita_adapter_use use = {adapter, 0.5F};
        TRY(llamita_session_set_adapters(session, &use, 1, &error));
        TRY(llamita_sequence_set_adapters(session, 1, &use, 1, &error));
    }
    TRY(llamita_session_feed(session, ids, 3, &error));
    note_results(llamita_session_logits(session), (size_t)model->info.vocab_size * sizeof(float));
    TRY(llamita_sampler_open(&sampling, model->info.vocab_size, &sampler, &error));
    for (int i = 0; i < 3; i++) {
        int32_t id;
        TRY(llamita_sampler_pick(sampler, llamita_session_logits(session), &id, &error));
        llamita_sampler_accept(sampler, id);
        note_results(&id, sizeof id);
        TRY(llamita_session_feed(session, &id, 1, &error));
    }
    if (adapter_file) {
        TRY(llamita_session_save(session, session_path, &error));
        TRY(llamita_session_load(session, session_path, &error));
    }
    note_results(llamita_session_ids(session), (size_t)llamita_session_position(session) * sizeof *ids);
    TRY(llamita_sequence_share(session, 0, 1, 2, &error));
    const llamita_chunk chunks[] = {{1, ids, 2, 1}, {0, ids, 1, 1}};
    logits = __real_calloc(2 * (size_t)model->info.vocab_size, sizeof *logits);
    TRY(llamita_decode(session, chunks, 2, logits, &error));
    note_results(logits, 2 * (size_t)model->info.vocab_size * sizeof *logits);
    TRY(llamita_session_rewind(session, 1, &error));
    TRY(llamita_session_score(session, ids, 3, nats, &error));
    note_results(nats, 2 * sizeof *nats);
    TRY(llamita_generate_text(session, "ab a", 4, &sampling, 0, take_piece, NULL, &error));
    TRY(llamita_generate_text(session, "ab a", 4, &sampling, 25, take_piece, NULL, &error)); /* fills the context */
    note_results(llamita_session_ids(session), (size_t)llamita_session_position(session) * sizeof *ids);
end:
    __real_free(logits);
    llamita_sampler_close(sampler);
    llamita_session_close(session);
    llamita_adapter_close(adapter);
    llamita_model_close(model);
}

static void run_sentencepiece(void) { run_model(model_path, NULL, adapter_path); }
static void run_byte_level(void) { run_model(byte_level_path, NULL, NULL); }
static void run_llama2c(void) { run_model(llama2c_path, tokenizer_path, NULL); }
static void run_other_tokenizer(void) { run_model(llama2c_path, model_path, NULL); }

static void run_documents(void) {
    const char text[] = "ab ab a bb\nab 12 ab";
    const uint64_t ends[] = {4, 9, sizeof text - 1};
    uint64_t token_ends[3];
    int32_t ids[64];
    static buffer file; /* the tokenizer's */
    if (!file.bytes) {
        FILE *from = fopen(byte_level_path, "rb");
        unsigned char chunk[512];
        for (size_t n; from && (n = fread(chunk, 1, sizeof chunk, from)) > 0;) put_bytes(&file, chunk, n);
        if (from) fclose(from);
    }
    llamita_tokenizer *tokenizer = NULL;
    TRY(llamita_tokenizer_open(file.bytes, file.num_bytes, "a draft", &tokenizer, &error));
    TRY(llamita_tokenizer_encode(tokenizer, text, ends, 3, 258, ids, 64, token_ends, &error));
    note_results(ids, (size_t)token_ends[2] * sizeof *ids);
end:
    llamita_tokenizer_close(tokenizer);
}

static void run_text_index(void) {
    enum { NUM = 600, BLOCKS = NUM / 2, ENTRIES = (BLOCKS + 31) / 32 };
    uint16_t ids[NUM];
    uint32_t suffixes[BLOCKS + 1], entry_tokens[ENTRIES];
    uint16_t entry_offsets[ENTRIES];
    for (int i = 0; i < NUM; i++) ids[i] = (uint16_t)(i * i % 5 % 3);
    ids[NUM - 2] = 0;
    ids[NUM - 1] = 3;
    const void *parts[] = {ids};
    const uint64_t num_tokens[] = {NUM};
    const uint32_t token_ends[] = {2, 4, 6, 8};
    const llamita_indexed_text text = {parts, num_tokens, 1, 2, 4, 3, "ababcdef", token_ends};
    llamita_text_index *index = NULL;
    llamita_text_place place;
    uint64_t num_found;
    bool is_complete;
    TRY(llamita_text_index_build(&text, BLOCKS, suffixes, entry_tokens, entry_offsets, &error));
    TRY(llamita_text_index_open(&text, BLOCKS, suffixes, entry_tokens, entry_offsets, &index, &error));
    TRY(llamita_text_index_find(index, "abab", 4, &place, 1, &num_found, &is_complete, &error));
    note_results(suffixes, BLOCKS * sizeof *suffixes);
    note_results(&num_found, sizeof num_found);
end:
    llamita_text_index_close(index);
}

static void run_bpe_trainer(void) {
    const char text[] = "the llama and the other llama saw the llamas; aaaa aaaa abab abab";
    const uint64_t ends[] = {20, sizeof text - 1};
    int32_t merges[40][4];
    size_t num_merges = 0;
    llamita_bpe_trainer *trainer = NULL;
    TRY(llamita_bpe_trainer_open(&trainer, LLAMITA_BPE_WORDS, &error));
    for (int i = 0; i < 2; i++) {
        if (!out_of_memory(llamita_bpe_trainer_add(trainer, text, ends, 2, &error))) continue;
        if (keeps_failing) goto end;
        llamita_bpe_trainer_close(trainer); /* part of the text may be counted */
        trainer = NULL;
        TRY(llamita_bpe_trainer_open(&trainer, LLAMITA_BPE_WORDS, &error));
        i = -1;
    }
    TRY(llamita_bpe_trainer_train(trainer, 290, 2, merges[0], 40, &num_merges, &error));
    note_results(merges, num_merges * sizeof *merges);
end:
    llamita_bpe_trainer_close(trainer);
}

static void run_chat(void) {
    llamita_model *model = NULL;
    int32_t ids[256];
    size_t num_ids = 0;
    const llamita_message messages[] = {{.role = "system", .content = "ab", .num_bytes = 2},
                                        {.role = "user", .content = "ab a", .num_bytes = 4}};
    TRY(llamita_model_open(byte_level_path, NULL, &model, &error));
    TRY(llamita_chat_encode(model, messages, 2, ids, 256, &num_ids, &error));
    note_results(ids, num_ids * sizeof *ids);
end:
    llamita_model_close(model);
}

/* Two requests, one after the other; one that ends in an error is submitted again. */
static void run_scheduler(void) {
    enum { NUM_NEW = 4 };
    const llamita_scheduler_params params = {.num_threads = 1, .num_parallel = 2, .num_cached = 1};
    static const int32_t prompt[] = {1, 4, 5, 6, 7, 4, 5, 6, 7, 4};
    const llamita_logit_bias bias = {5, 1.0F};
    llamita_model *model = NULL;
    llamita_scheduler *scheduler = NULL;
    int32_t new_ids[NUM_NEW];
    TRY(llamita_model_open(model_path, NULL, &model, &error));
    TRY(llamita_scheduler_open(model, &params, &scheduler, &error));
    for (int i = 0; i < 2; i++) {
        const llamita_request request = {
            .ids = prompt,
            .num_tokens = sizeof prompt / sizeof *prompt,
            .max_new_tokens = NUM_NEW,
            .sampling = {.temperature = 0.8F, .top_p = 1, .repetition_penalty = 1, .seed = 3},
            .biases = &bias,
            .num_biases = 1,
            .num_top_logprobs = 2,
            .score_prompt = i == 0};
        uint64_t number = 0;
        size_t num_new = 0, num_events = 0;
        TRY(llamita_scheduler_submit(scheduler, &request, &number, &error));
        for (bool ended = false; !ended;) {
            TRY(llamita_scheduler_step(scheduler, &error));
            const llamita_event *events = llamita_scheduler_events(scheduler, &num_events);
            for (size_t e = 0; e < num_events && !ended; e++) {
                if (events[e].kind == LLAMITA_EVENT_TOKEN) new_ids[num_new++] = events[e].id;
                ended = events[e].kind == LLAMITA_EVENT_END;
                if (!ended || events[e].finish != LLAMITA_FINISH_ERROR) continue;
                num_errors++;
                CHECK(events[e].status == LLAMITA_ERROR_MEMORY, "status %d", events[e].status);
                if (keeps_failing) goto end;
                num_new = 0;
                ended = false;
                TRY(llamita_scheduler_submit(scheduler, &request, &number, &error));
                break;
            }
        }
        note_results(new_ids, num_new * sizeof *new_ids);
    }
end:
    llamita_scheduler_close(scheduler);
    llamita_model_close(model);
}

static void run_once(void (*scenario)(void), long failing, bool keeps) {
    fail_at = failing;
    keeps_failing = keeps;
    atomic_store(&num_calls, 0);
    num_errors = 0;
    results = 0xCBF29CE484222325u;
    scenario();
    fail_at = -1;
}

static void check_scenario(const char *name, void (*scenario)(void)) {
    run_once(scenario, -1, false); /* what is made once is made here */
    run_once(scenario, -1, false);
    const long total = atomic_load(&num_calls), live = atomic_load(&num_live);
    const long long mapped = atomic_load(&mapped_bytes);
    const uint64_t expected = results;
    long num_reported = 0;
    CHECK(num_errors == 0 && total > 0, "%s: %d errors, %ld allocations", name, num_errors, total);
    for (int keeps = 0; keeps < 2; keeps++) {
        for (long n = 0; n < total && !check_num_failures; n++) {
            run_once(scenario, n, keeps);
            num_reported += num_errors > 0;
            CHECK(atomic_load(&num_live) == live && atomic_load(&mapped_bytes) == mapped,
                  "%s: %ld allocations and %lld mapped bytes leaked", name, atomic_load(&num_live) - live,
                  atomic_load(&mapped_bytes) - mapped);
            CHECK(keeps || results == expected, "%s: other results", name);
            CHECK(!check_num_failures, "%s: allocation %ld of %ld failed%s", name, n, total,
                  keeps ? ", and all after it" : "");
        }
    }
    CHECK(num_reported > total, "%s: only %ld of %ld failures were reported", name, num_reported, 2 * total);
    fprintf(stderr, "%s: %ld allocations, %ld of %ld failures reported\n", name, total, num_reported, 2 * total);
}

/* ------------------------------------------------------------------ files */

static void write_file(char path[32], buffer file) {
    strcpy(path, "/tmp/llamita-test-XXXXXX");
    const int descriptor = mkstemp(path);
    REQUIRE(descriptor >= 0 && write(descriptor, file.bytes, file.num_bytes) == (ssize_t)file.num_bytes, "%s", path);
    close(descriptor);
    free_buffer(&file);
}

static void write_files(void) {
    static gguf_draft d;
    draft_llama(&d, TENSOR_Q8_0, false);
    write_file(model_path, draft_write(&d));
    draft_free(&d);
    draft_model(&d, "qwen2", TENSOR_Q8_0, false); /* whose rows are put in order */
    draft_text(&d, "tokenizer.chat_template",
               "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
               "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
               "{% endif %}");
    draft_byte_level(&d, "qwen2");
    draft_u32(&d, "tokenizer.ggml.bos_token_id", 258);
    write_file(byte_level_path, draft_write(&d));
    draft_free(&d);
    write_file(session_path, (buffer){0});
    write_file(llama2c_path, llama2c_write(2, LLAMA2C_SIZES, false, 16));
    write_file(tokenizer_path, llama2c_write_tokenizer());
    d = (gguf_draft){.magic = "GGUF", .version = 3, .alignment = 32};
    draft_text(&d, "general.architecture", "llama");
    draft_text(&d, "general.type", "adapter");
    draft_text(&d, "adapter.type", "lora");
    draft_f32(&d, "adapter.lora.alpha", 8.0F);
    draft_add_tensor(&d, "blk.1.ffn_down.weight.lora_a", TENSOR_F16, DRAFT_FFN, 2);
    draft_add_tensor(&d, "blk.1.ffn_down.weight.lora_b", TENSOR_F32, 2, DRAFT_HIDDEN);
    write_file(adapter_path, draft_write(&d));
    draft_free(&d);
}

int main(void) {
    const char *const paths[] = {model_path, byte_level_path, llama2c_path, tokenizer_path, adapter_path, session_path};
    write_files();
    check_scenario("SentencePiece and an adapter", run_sentencepiece);
    check_scenario("byte-level BPE", run_byte_level);
    check_scenario("llama2.c", run_llama2c);
    check_scenario("a tokenizer of another file", run_other_tokenizer);
    check_scenario("documents", run_documents);
    check_scenario("a chat", run_chat);
    check_scenario("a scheduler", run_scheduler);
    check_scenario("training BPE", run_bpe_trainer);
    check_scenario("a text index", run_text_index);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) unlink(paths[i]);
    return check_failures();
}
