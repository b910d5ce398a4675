/* test_platform.c: files that change while they are read, paths in UTF-8, forked processes, and
 * what the processor says about itself. */
#include "platform/platform.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <process.h>
#define process_id _getpid
#elif !defined(__wasm__)
#define POSIX
#include <sys/wait.h>
#include <unistd.h>
#define process_id getpid
#else
#define process_id() 0
#endif

#include "api/model_load.h"
#include "formats/gguf.h"
#include "model/model_pack.h"
#include "random_model.h"

static llamita_error error;

/* ------------------------------------------------------------------ files */

/* A llama2.c model (version 0, tied) of which 22 MB are beyond the part that is copied at once. */
enum { HIDDEN = 256, FFN = 352, LAYERS = 2, HEADS = 4, VOCAB = 20000, CONTEXT = 16 };

static char model_path[128];

static void write_model(void) {
    const int32_t header[7] = {HIDDEN, FFN, LAYERS, HEADS, HEADS, VOCAB, CONTEXT};
    const size_t layer = 2 * HIDDEN + 4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN;
    const size_t count = VOCAB * HIDDEN + LAYERS * layer + HIDDEN + CONTEXT * (HIDDEN / HEADS);
    float *weights = allocate_or_die(count * sizeof *weights);
    random_state = 1;
    for (size_t i = 0; i < count; i++) weights[i] = 0.1f * (float)(random_below(2001) - 1000) / 1000.0f;
    snprintf(model_path, sizeof model_path, "llamita_test_platform_%d.bin", (int)process_id());
    FILE *out = fopen(model_path, "wb");
    REQUIRE(out && fwrite(header, sizeof header, 1, out) == 1 &&
                fwrite(weights, sizeof *weights, count, out) == count && fclose(out) == 0,
            "%s cannot be written", model_path);
    free(weights);
}

static const int32_t ids[] = {1, 19999, 7, 3000, 12};
enum { NUM_IDS = sizeof ids / sizeof ids[0] };

static void check_logits(const llamita_model *model, const float *expected, const char *when) {
    llamita_session *session = open_session(model, 1);
    REQUIRE(llamita_session_feed(session, ids, NUM_IDS, &error) == LLAMITA_OK, "%s: %s", when, error.message);
    CHECK(memcmp(llamita_session_logits(session), expected, VOCAB * sizeof *expected) == 0, "%s: other logits", when);
    llamita_session_close(session);
}

/* A model behind a program, 22 MB of it beyond the part that is copied at once, has the same logits. */
static void check_inside_program(const float *expected) {
    enum { PROGRAM_BYTES = 5 << 20 };
    static const char path[] = "llamita_test_platform_program";
    FILE *in = fopen(model_path, "rb"), *out = fopen(path, "wb");
    unsigned char *program = allocate_or_die(PROGRAM_BYTES), trailer[32] = "llamita-program\n";
    uint64_t num_bytes = 0;
    memset(program, 'p', PROGRAM_BYTES);
    REQUIRE(in && out && fwrite(program, 1, PROGRAM_BYTES, out) == PROGRAM_BYTES, "%s cannot be written", path);
    for (size_t count = 1; count > 0; num_bytes += count) {
        count = fread(program, 1, PROGRAM_BYTES, in);
        REQUIRE(fwrite(program, 1, count, out) == count, "%s cannot be written", path);
    }
    for (int i = 0; i < 8; i++) {
        trailer[16 + i] = (unsigned char)((uint64_t)PROGRAM_BYTES >> 8 * i);
        trailer[24 + i] = (unsigned char)(num_bytes >> 8 * i);
    }
    REQUIRE(fwrite(trailer, 1, sizeof trailer, out) == sizeof trailer && fclose(out) == 0, "%s: write failed", path);
    fclose(in);
    free(program);
    llamita_model *model = NULL;
    REQUIRE(llamita_model_open(path, NULL, &model, &error) == LLAMITA_OK, "%s", error.message);
    check_logits(model, expected, "inside a program");
    llamita_model_close(model);
    CHECK(remove(path) == 0, "%s cannot be removed", path);
}

typedef struct {
    const llamita_model *model;
    const float *expected;
    int num_threads;
} pass_job;

static void run_passes(void *argument) {
    const pass_job *job = argument;
    llamita_session *session = open_session(job->model, job->num_threads);
    llamita_error failure = {0};
    for (int pass = 0; pass < 2; pass++) {
        CHECK(llamita_session_feed(session, ids, NUM_IDS, &failure) == LLAMITA_OK, "%s", failure.message);
        CHECK(memcmp(llamita_session_logits(session), job->expected, VOCAB * sizeof *job->expected) == 0,
              "pass %d: other logits", pass);
        CHECK(llamita_session_rewind(session, 0, &failure) == LLAMITA_OK, "%s", failure.message);
    }
    llamita_session_close(session);
}

/* Sessions of several threads begin at once. */
static void check_packed_beside(const llamita_model *model, const float *expected) {
    enum { NUM_JOBS = 3 };
    platform_thread threads[NUM_JOBS];
    pass_job jobs[NUM_JOBS];
    for (int i = 0; i < NUM_JOBS; i++) {
        jobs[i] = (pass_job){model, expected, 1 + i % 2};
        if (!platform_thread_start(&threads[i], run_passes, &jobs[i])) {
            CHECK(i == 0, "thread %d does not start", i); /* WASI has none */
            return;
        }
    }
    for (int i = 0; i < NUM_JOBS; i++) platform_thread_join(&threads[i]);
}

/* A model that its passes pack: the first reads rows of the file, the second packs, and the third
 * reads panels. The session that comes second has three threads. */
static void check_packed_later(const float *expected) {
    const llamita_model_params params = {.pack_later = true};
    llamita_model *model = NULL;
    for (int first_threads = 1; first_threads <= 2; first_threads++) {
        REQUIRE(llamita_model_open(model_path, &params, &model, &error) == LLAMITA_OK, "%s", error.message);
        llamita_session *session = open_session(model, first_threads);
        for (int pass = 0; pass < 3; pass++) {
            const bool packed = model->output.panels;
            CHECK(packed == (pass > 1), "pass %d begins with panels: %d", pass, packed);
            CHECK(llamita_session_feed(session, ids, NUM_IDS, &error) == LLAMITA_OK, "%s", error.message);
            CHECK(memcmp(llamita_session_logits(session), expected, VOCAB * sizeof *expected) == 0,
                  "pass %d: other logits", pass);
            CHECK(llamita_session_rewind(session, 0, &error) == LLAMITA_OK, "%s", error.message);
        }
        llamita_session_close(session);
        check_logits(model, expected, "packed by a pass");
        llamita_model_close(model);
    }
    REQUIRE(llamita_model_open(model_path, &params, &model, &error) == LLAMITA_OK, "%s", error.message);
    llamita_model_close(model); /* before it is packed */
    REQUIRE(llamita_model_open(model_path, &params, &model, &error) == LLAMITA_OK, "%s", error.message);
    check_packed_beside(model, expected);
    llamita_model_close(model);
}

/* Once it is open, a model does not need its file. */
static void test_file_cut_after_opening(void) {
    llamita_model *model = NULL;
    write_model();
    REQUIRE(llamita_model_open(model_path, NULL, &model, &error) == LLAMITA_OK, "%s", error.message);
    llamita_session *session = open_session(model, 1);
    REQUIRE(llamita_session_feed(session, ids, NUM_IDS, &error) == LLAMITA_OK, "%s", error.message);
    float *expected = allocate_or_die(VOCAB * sizeof *expected);
    memcpy(expected, llamita_session_logits(session), VOCAB * sizeof *expected);
    llamita_session_close(session);
    check_inside_program(expected);
    check_packed_later(expected);

    FILE *out = fopen(model_path, "wb"); /* cuts it to nothing */
    REQUIRE(out && fclose(out) == 0, "%s cannot be cut", model_path);
    check_logits(model, expected, "after the file was cut");
    CHECK(remove(model_path) == 0, "%s cannot be removed while the model is open", model_path);
    check_logits(model, expected, "after the file was removed");
    llamita_model_close(model);
    free(expected);
}

#if defined(POSIX) /* Windows does not let anybody cut a mapped file, and WASI copies all of it */
static void cut_to(long num_bytes) { REQUIRE(truncate(model_path, num_bytes) == 0, "cannot cut %s", model_path); }

static void check_cut(const llamita_model *model, llamita_status status) {
    CHECK(status == LLAMITA_ERROR_IO && strstr(error.message, "the file was cut while it was read"), "%d %s", status,
          error.message);
    CHECK(!model->packed || model->file, "the model looks open");
}

/* Opens the model, cutting the file to num_bytes after fill_first or before. */
static void check_cut_while_opening(long num_bytes, bool fill_first) {
    platform_file file;
    char reason[PLATFORM_REASON_BYTES];
    write_model();
    REQUIRE(platform_file_open(model_path, false, &file, reason), "%s", reason);
    CHECK(file.num_private_bytes < (size_t)num_bytes, "all of the file was copied");
    llamita_model *model = allocate_or_die(sizeof *model);
    model->mapping = file.bytes;
    model->mapping_bytes = file.num_bytes;
    model->file = &file;
    if (!fill_first) cut_to(num_bytes);
    llamita_status status = model_fill(model, model_path, NULL, &error);
    if (fill_first) {
        CHECK(status == LLAMITA_OK, "%s", error.message);
        cut_to(num_bytes);
        status = model_pack(model, model_path, NULL, NULL, &error);
    }
    check_cut(model, status);
    model_clear(model);
    platform_file_close(&file);
    free(model);
    remove(model_path);
}

/* A file that is cut before the first pass, or before the one that packs. */
static void check_cut_before_pass(int pass) {
    const llamita_model_params params = {.pack_later = true};
    llamita_model *model = NULL;
    write_model();
    REQUIRE(llamita_model_open(model_path, &params, &model, &error) == LLAMITA_OK, "%s", error.message);
    llamita_session *session = open_session(model, 2), *other = open_session(model, 1);
    for (int i = 0; i < pass; i++) REQUIRE(!llamita_session_feed(session, ids, 1, &error), "%s", error.message);
    cut_to(2000000);
    for (int i = 0; i < 2; i++) {
        const llamita_status status = llamita_session_feed(i ? other : session, ids, NUM_IDS, &error);
        CHECK(status == LLAMITA_ERROR_IO && strstr(error.message, "the file was cut while it was read"), "%d %s",
              status, error.message);
    }
    CHECK(llamita_session_position(session) == pass, "%d tokens are in use", llamita_session_position(session));
    CHECK(llamita_session_save(session, "unused", &error) != LLAMITA_OK, "saved");
    llamita_session_close(session);
    llamita_session_close(other);
    llamita_model_close(model);
    remove(model_path);
}

static void test_file_cut_while_opening(void) {
    check_cut_while_opening(20000000, true);
    check_cut_while_opening(20000000, false);
    check_cut_before_pass(0);
    check_cut_before_pass(1);
}

/* What was kept of a file stays when it is cut; what was not can no longer be kept. offset: the
 * contents begin there. */
static void check_kept(size_t offset) {
    enum { FILE_BYTES = 8 << 20 };
    static const char path[] = "llamita_test_platform_kept";
    unsigned char *bytes = allocate_or_die(FILE_BYTES);
    char reason[PLATFORM_REASON_BYTES];
    platform_file file;
    for (size_t i = 0; i < FILE_BYTES; i++) bytes[i] = (unsigned char)(i * 7 + (i >> 12));
    FILE *out = fopen(path, "wb");
    REQUIRE(out && fwrite(bytes, 1, FILE_BYTES, out) == FILE_BYTES && fclose(out) == 0, "%s cannot be written", path);
    REQUIRE(platform_file_open(path, false, &file, reason), "%s", reason);
    if (offset > 0) platform_file_narrow(&file, offset, FILE_BYTES - offset - 100);
    CHECK(platform_file_keep(&file, 1) && file.num_private_bytes < 2 << 20, "%zu bytes", file.num_private_bytes);
    CHECK(platform_file_keep(&file, 2500001), "cannot keep a part");
    CHECK(memcmp(file.bytes, bytes + offset, file.num_bytes) == 0, "other contents");
    const size_t kept = file.num_private_bytes;
    CHECK(kept >= 2500001 && kept < 5 << 20, "%zu bytes", kept);
    REQUIRE(truncate(path, (long)(offset + kept + 200000)) == 0, "cannot cut %s", path);
    CHECK(platform_file_keep(&file, kept) && !platform_file_keep(&file, kept + 300000), "keeping bytes that are cut");
    REQUIRE(truncate(path, 0) == 0, "cannot cut %s", path);
    CHECK(memcmp(file.bytes, bytes + offset, kept / 4096 * 4096 - 4096) == 0, "other contents after the file was cut");
    platform_file_close(&file);
    remove(path);
    free(bytes);
}

/* Metadata of 3 MB: what is read of it is kept, and what was cut before is an error. */
static void check_long_metadata(bool cut) {
    enum { TEXT_BYTES = 3 << 20 };
    static const char path[] = "llamita_test_platform_metadata";
    const uint64_t no_tensors = 0, one = 1, key_bytes = 1, text_bytes = TEXT_BYTES;
    const uint32_t version = 3, type = GGUF_STRING;
    char *text = allocate_or_die(TEXT_BYTES), reason[PLATFORM_REASON_BYTES];
    memset(text, 't', TEXT_BYTES);
    FILE *out = fopen(path, "wb");
    REQUIRE(out && fwrite("GGUF", 4, 1, out) && fwrite(&version, 4, 1, out) && fwrite(&no_tensors, 8, 1, out) &&
                fwrite(&one, 8, 1, out) && fwrite(&key_bytes, 8, 1, out) && fwrite("k", 1, 1, out) &&
                fwrite(&type, 4, 1, out) && fwrite(&text_bytes, 8, 1, out) && fwrite(text, TEXT_BYTES, 1, out) &&
                fclose(out) == 0,
            "%s cannot be written", path);
    platform_file file;
    REQUIRE(platform_file_open(path, false, &file, reason), "%s", reason);
    if (cut) REQUIRE(truncate(path, 2000000) == 0, "cannot cut %s", path);
    const reader from = {file.bytes, file.num_bytes, 0, "model", path, &error, &file};
    gguf_file parsed;
    const llamita_status status = gguf_parse(&parsed, &from);
    CHECK(status == (cut ? LLAMITA_ERROR_FORMAT : LLAMITA_OK), "%d %s", status, error.message);
    CHECK(cut || file.num_private_bytes == file.num_bytes, "%zu bytes are kept", file.num_private_bytes);
    gguf_free(&parsed);
    platform_file_close(&file);
    remove(path);
    free(text);
}

static void test_file_kept(void) {
    check_long_metadata(false);
    check_long_metadata(true);
    check_kept(0);
    check_kept(100003); /* in the first copy */
    check_kept(3000001);
}
#else
static void test_file_kept(void) {}
static void test_file_cut_while_opening(void) {}
#endif

/* "llamita test 小诗 é.bin" */
#define TEST_NAME "llamita test \xe5\xb0\x8f\xe8\xaf\x97 \xc3\xa9.bin"
#define TEST_NAME_WIDE L"llamita test \u5c0f\u8bd7 \u00e9.bin"

static void test_paths(void) {
    platform_file file;
    char reason[PLATFORM_REASON_BYTES], copy[5] = "";
#if defined(_WIN32)
    FILE *out = _wfopen(TEST_NAME_WIDE, L"wb");
#else
    FILE *out = fopen(TEST_NAME, "wb");
#endif
    REQUIRE(out && fputs("hello", out) >= 0 && fclose(out) == 0, "a file with this name cannot be written");
    REQUIRE(platform_file_open(TEST_NAME, false, &file, reason), "%s", reason);
    CHECK(file.num_bytes == 5 && memcmp(file.bytes, "hello", 5) == 0, "other contents");
    CHECK(platform_file_read(&file, 1, copy, 4) && memcmp(copy, "ello", 4) == 0, "read %s", copy);
    platform_file_close(&file);
#if defined(_WIN32)
    CHECK(_wremove(TEST_NAME_WIDE) == 0, "the file is still open");
#else
    CHECK(remove(TEST_NAME) == 0, "the file is still open");
#endif
    CHECK(!platform_file_open(TEST_NAME, false, &file, reason) && strstr(reason, "No such file"), "%s", reason);
    CHECK(!platform_file_open(".", true, &file, reason) && strstr(reason, "found a directory"), "%s", reason);
    CHECK(!platform_file_open("\xff.bin", true, &file, reason) && reason[0], "%s", reason);
}

/* ------------------------------------------------------------------ processes */

/* The child of a fork may hang in a sanitizer's own allocator, whose locks another thread held.
 * GCC 12's AddressSanitizer did on a busy machine. */
#if defined(__has_feature)
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#if defined(POSIX) && !SANITIZED
/* Returns the number of the step that failed; 0: none. */
static int run_child(const llamita_model *model, llamita_session *several, llamita_session *alone,
                     const float *expected) {
    const int32_t id = 5;
    const size_t num_bytes = 75 * sizeof *expected;
    if (llamita_session_feed(several, &id, 1, &error) != LLAMITA_ERROR_ARGUMENT) return 1;
    if (!strstr(error.message, "opened before this process was forked")) return 2;
    if (llamita_session_position(several) != 0) return 3;
    llamita_session_close(several);
    if (llamita_session_feed(alone, &id, 1, &error) != LLAMITA_OK) return 4;
    if (memcmp(llamita_session_logits(alone), expected, num_bytes) != 0) return 5;
    llamita_session_close(alone);
    llamita_session *own = open_session(model, 3);
    if (llamita_session_feed(own, &id, 1, &error) != LLAMITA_OK) return 6;
    if (memcmp(llamita_session_logits(own), expected, num_bytes) != 0) return 7;
    llamita_session_close(own);
    return 0;
}

/* The threads of a session stay in the parent: in the child it can only be closed. */
static void test_fork(void) {
    enum { ROUNDS = 20 };
    llamita_model *model = random_model(&small_shape, TENSOR_Q8_0, NULL, 1);
    const int32_t id = 5;
    float expected[75];
    llamita_session *first = open_session(model, 3);
    REQUIRE(llamita_session_feed(first, &id, 1, &error) == LLAMITA_OK, "%s", error.message);
    memcpy(expected, llamita_session_logits(first), sizeof expected);
    llamita_session_close(first);
    for (int round = 0; round < ROUNDS; round++) { /* threads just started, awake, and asleep */
        llamita_session *several = open_session(model, 3), *alone = open_session(model, 1);
        if (round % 2) usleep(5000);
        const pid_t child = fork();
        REQUIRE(child >= 0, "cannot fork");
        if (child == 0) {
            alarm(30); /* ends a child that hangs */
            _exit(run_child(model, several, alone, expected));
        }
        REQUIRE(llamita_session_feed(several, &id, 1, &error) == LLAMITA_OK, "%s", error.message);
        CHECK(memcmp(llamita_session_logits(several), expected, sizeof expected) == 0, "the parent's logits changed");
        int status = 0;
        REQUIRE(waitpid(child, &status, 0) == child, "cannot wait");
        REQUIRE(WIFEXITED(status), "the child ended by signal %d", WTERMSIG(status));
        CHECK(WEXITSTATUS(status) == 0, "step %d failed in the child", WEXITSTATUS(status));
        llamita_session_close(several);
        llamita_session_close(alone);
    }
    free_random_model(model);
}
#else
static void test_fork(void) {}
#endif

/* ------------------------------------------------------------------ the processor */

#if defined(__linux__) && defined(__x86_64__)
static bool system_lists(const char *flags, const char *flag) {
    const size_t length = strlen(flag);
    for (const char *at = flags; (at = strstr(at, flag)) != NULL; at += length)
        if (at[-1] == ' ' && (at[length] == ' ' || at[length] == '\n')) return true;
    return false;
}

/* Linux lists what the processor has and the system allows. */
static void test_processor(void) {
    char line[8192];
    FILE *file = fopen("/proc/cpuinfo", "r");
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) found = strncmp(line, "flags", 5) == 0;
    if (file) fclose(file);
    if (!found) return;
    const bool avx2 = system_lists(line, "avx2") && system_lists(line, "fma") && system_lists(line, "f16c");
    CHECK(platform_has_avx2() == avx2, "AVX2: %d, the system says %d", platform_has_avx2(), avx2);
    if (system_lists(line, "avx_vnni")) CHECK(platform_has_avxvnni(), "AVX-VNNI is not found");
    static const char *const sets[] = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"};
    bool avx512 = avx2;
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) avx512 = avx512 && system_lists(line, sets[i]);
    CHECK(platform_has_avx512() == avx512, "AVX-512: %d, the system says %d", platform_has_avx512(), avx512);
    if (!system_lists(line, "amx_tile") || !system_lists(line, "amx_int8"))
        CHECK(!platform_request_amx(), "AMX is found where the system lists none");
}
#else
static void test_processor(void) {}
#endif

static void test_clock_and_memory(void) {
    const double start = platform_seconds();
    CHECK(platform_seconds() >= start, "the clock goes back");
    CHECK(platform_num_processors() >= 1, "%d processors", platform_num_processors());
    static const size_t sizes[] = {1, 4096, 4097, PLATFORM_HUGE_PAGE_BYTES + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        unsigned char *pages = platform_pages_alloc(sizes[i]);
        REQUIRE(pages && (uintptr_t)pages % 64 == 0, "%zu bytes", sizes[i]);
        CHECK(pages[0] == 0 && pages[sizes[i] - 1] == 0, "the memory is not zeroed");
        pages[0] = pages[sizes[i] - 1] = 1;
        platform_pages_protect(pages, sizes[i]);
        platform_pages_free(pages, sizes[i]);
    }
    CHECK(platform_pages_alloc(SIZE_MAX - 100) == NULL, "more memory than there is");
}

int main(void) {
    test_file_cut_after_opening();
    test_file_cut_while_opening();
    test_file_kept();
    test_paths();
    test_fork();
    test_processor();
    test_clock_and_memory();
    return check_failures();
}
