/* test_prompt_cache.c: a session goes on from its file with the same bits as without, and a file that is
 * not exactly what was written for this model, these adapters and this KV type is refused. */
#include <stdio.h>

#include "random_model.h"

enum { NUM_IDS = 150, MAX_FILE_BYTES = 1 << 20 };

static const char path[] = "test_prompt_cache.session", other_path[] = "test_prompt_cache.other";
static llamita_error error;
static int32_t ids[NUM_IDS];

static size_t read_file(const char *name, char *bytes) {
    FILE *file = fopen(name, "rb");
    REQUIRE(file, "%s", name);
    const size_t num_bytes = fread(bytes, 1, MAX_FILE_BYTES, file);
    fclose(file);
    return num_bytes;
}

static void write_file(const char *name, const char *bytes, size_t num_bytes) {
    FILE *file = fopen(name, "wb");
    REQUIRE(file && fwrite(bytes, 1, num_bytes, file) == num_bytes && fclose(file) == 0, "%s", name);
}

/* Changes one byte of the file. */
static void write_byte(size_t offset, char byte) {
    FILE *file = fopen(path, "r+b");
    REQUIRE(file && fseek(file, (long)offset, SEEK_SET) == 0 && fputc((unsigned char)byte, file) != EOF &&
                fclose(file) == 0,
            "%s", path);
}

static void feed(llamita_session *session, int32_t first, int32_t count) {
    REQUIRE(llamita_session_feed(session, ids + first, (size_t)count, &error) == LLAMITA_OK, "%s", error.message);
}

static void save(llamita_session *session) {
    REQUIRE(llamita_session_save(session, path, &error) == LLAMITA_OK, "%s", error.message);
}

/* Loads the file, which must fail with this status and a line that holds the words and the name. */
static void refuse(llamita_session *session, llamita_status expected, const char *words) {
    const int32_t position = llamita_session_position(session);
    const float *logits = llamita_session_logits(session);
    error = (llamita_error){0};
    const llamita_status status = llamita_session_load(session, path, &error);
    CHECK(status == expected && error.status == expected, "status %d, expected %d: %s", status, expected,
          error.message);
    CHECK(strstr(error.message, words) && strstr(error.message, path) && !strchr(error.message, '\n'), "\"%s\": %s",
          words, error.message);
    CHECK(llamita_session_position(session) == position && llamita_session_logits(session) == logits,
          "a refused file changed the session: position %d", llamita_session_position(session));
}

/* Saves num_saved tokens, loads them in another session with other kernels and threads, rewinds that to
 * num_kept, and feeds the rest. */
static void test_same_bits(const char *architecture, llamita_kv_type kv_type, int32_t num_saved, int32_t num_kept) {
    const model_shape shape = shape_of(&small_shape, architecture);
    llamita_model *model = random_model(&shape, TENSOR_Q8_0, NULL, 3),
                  *scalar = random_model(&shape, TENSOR_Q8_0, "scalar", 3);
    llamita_session *whole = open_session_with(model, (llamita_session_params){.kv_type = kv_type}),
                    *saved = open_session_with(model, (llamita_session_params){.kv_type = kv_type, .num_threads = 2}),
                    *loaded = open_session_with(scalar, (llamita_session_params){.kv_type = kv_type});
    feed(whole, 0, NUM_IDS);
    feed(saved, 0, num_saved);
    save(saved);
    feed(loaded, 40, 30); /* forgotten */
    REQUIRE(llamita_session_load(loaded, path, &error) == LLAMITA_OK, "%s", error.message);
    CHECK(llamita_session_position(loaded) == num_saved && !llamita_session_logits(loaded), "position %d, expected %d",
          llamita_session_position(loaded), num_saved);
    CHECK(memcmp(llamita_session_ids(loaded), ids, (size_t)num_saved * sizeof *ids) == 0, "other ids");
    REQUIRE(llamita_session_rewind(loaded, num_kept, &error) == LLAMITA_OK, "%s", error.message);
    feed(loaded, num_kept, NUM_IDS - num_kept);
    CHECK(memcmp(llamita_session_logits(loaded), llamita_session_logits(whole), 75 * sizeof(float)) == 0,
          "%s, KV type %d, %d of %d saved tokens: other logits", architecture, kv_type, num_kept, num_saved);
    llamita_session_close(whole);
    llamita_session_close(saved);
    llamita_session_close(loaded);
    free_random_model(model);
    free_random_model(scalar);
}

/* The file depends on nothing but the tokens: not on memory beside them, nor on later tokens. */
static void test_same_file(llamita_kv_type kv_type) {
    static char first[MAX_FILE_BYTES], second[MAX_FILE_BYTES];
    llamita_model *model = random_model(&small_shape, TENSOR_F32, NULL, 3);
    for (int round = 0; round < 2; round++) {
        llamita_session *session =
            open_session_with(model, (llamita_session_params){.kv_type = kv_type, .num_sequences = 2});
        if (round == 1) { /* shared from another sequence, after tokens that are forgotten */
            const llamita_chunk chunk = {1, ids, 149, 0};
            feed(session, 7, 143);
            REQUIRE(llamita_decode(session, &chunk, 1, NULL, &error) == LLAMITA_OK &&
                        llamita_sequence_share(session, 1, 0, 133, &error) == LLAMITA_OK,
                    "%s", error.message);
        } else {
            feed(session, 0, 133);
        }
        save(session);
        llamita_session_close(session);
        if (round == 0) read_file(path, first);
    }
    const size_t num_bytes = read_file(path, second);
    CHECK(num_bytes > 133 && memcmp(first, second, num_bytes) == 0, "KV type %d: files of %zu bytes differ", kv_type,
          num_bytes);
    free_random_model(model);
}

static void test_other_origin(void) {
    llamita_model *model = random_model(&small_shape, TENSOR_F32, NULL, 3),
                  *other = random_model(&small_shape, TENSOR_F32, NULL, 4);
    llamita_session *session = open_session(model, 1);
    feed(session, 0, 20);
    save(session);

    llamita_session *wrong = open_session(other, 1);
    refuse(wrong, LLAMITA_ERROR_FORMAT, "of this model");
    llamita_session_close(wrong);
    static const llamita_kv_type types[] = {LLAMITA_KV_F32, LLAMITA_KV_Q8};
    for (int i = 0; i < 2; i++) {
        wrong = open_session_with(model, (llamita_session_params){.kv_type = types[i]});
        refuse(wrong, LLAMITA_ERROR_FORMAT, i ? "in q8, found f16" : "in f32, found f16");
        llamita_session_close(wrong);
    }
    wrong = open_session_with(model, (llamita_session_params){.context_tokens = 19});
    refuse(wrong, LLAMITA_ERROR_CONTEXT, "at most 19 tokens (the context), found 20");
    llamita_session_close(wrong);
    static const llamita_rope_params ropes[] = {
        {.scale = 2}, {.scaling = LLAMITA_ROPE_YARN, .scale = 4}, {.freq_base = 20000}};
    for (int i = 0; i < 3; i++) {
        wrong = open_session_with(model, (llamita_session_params){.rope = ropes[i]});
        refuse(wrong, LLAMITA_ERROR_FORMAT, "RoPE");
        llamita_session_close(wrong);
    }
    model->layers[1].query.panels = other->layers[1].query.panels; /* one matrix only */
    wrong = open_session(model, 1);
    refuse(wrong, LLAMITA_ERROR_FORMAT, "of this model");
    llamita_session_close(wrong);

    llamita_session *empty = open_session(other, 1);
    CHECK(llamita_session_save(empty, path, &error) == LLAMITA_ERROR_ARGUMENT && strstr(error.message, "found none"),
          "%s", error.message);
    feed(empty, 0, 3);
    CHECK(llamita_session_save(empty, "no/such/folder/file", &error) == LLAMITA_ERROR_IO &&
              strstr(error.message, "cannot save no/such/folder/file: "),
          "%s", error.message);
    CHECK(llamita_session_load(empty, "no-such-file", &error) == LLAMITA_ERROR_IO &&
              strstr(error.message, "cannot load no-such-file: "),
          "%s", error.message);
    llamita_session_close(empty);
    llamita_session_close(session);
    free_random_model(model);
    free_random_model(other);
}

static void test_adapters(void) {
    llamita_model *model = random_model(&small_shape, TENSOR_F32, NULL, 3);
    llamita_adapter *first = random_adapter(model, 4, 9), *second = random_adapter(model, 4, 10);
    const llamita_adapter_use uses[][2] = {
        {{first, 0.5f}, {second, 1.0f}}, {{first, 0.25f}, {second, 1.0f}}, {{second, 1.0f}, {first, 0.5f}}};
    llamita_session *session = open_session(model, 1), *other = open_session(model, 1);
    REQUIRE(llamita_session_set_adapters(session, uses[0], 2, &error) == LLAMITA_OK, "%s", error.message);
    feed(session, 0, 9);
    save(session);
    refuse(other, LLAMITA_ERROR_FORMAT, "adapters");
    for (int i = 1; i < 3; i++) {
        REQUIRE(llamita_session_set_adapters(other, uses[i], 2, &error) == LLAMITA_OK, "%s", error.message);
        refuse(other, LLAMITA_ERROR_FORMAT, "adapters");
    }
    REQUIRE(llamita_session_set_adapters(other, uses[0], 1, &error) == LLAMITA_OK, "%s", error.message);
    refuse(other, LLAMITA_ERROR_FORMAT, "adapters");
    REQUIRE(llamita_session_set_adapters(other, uses[0], 2, &error) == LLAMITA_OK, "%s", error.message);
    REQUIRE(llamita_session_load(other, path, &error) == LLAMITA_OK, "%s", error.message);
    feed(session, 9, 4);
    feed(other, 9, 4);
    CHECK(memcmp(llamita_session_logits(session), llamita_session_logits(other), 75 * sizeof(float)) == 0,
          "other logits with adapters");
    llamita_session_close(session);
    llamita_session_close(other);
    free_random_model(model);
}

/* Every truncation, every flipped byte, bytes too many, and other files. */
static void test_damage(void) {
    static char bytes[MAX_FILE_BYTES];
    llamita_model *model = random_model(&small_shape, TENSOR_F32, NULL, 3);
    llamita_session *session = open_session_with(model, (llamita_session_params){.kv_type = LLAMITA_KV_Q8});
    feed(session, 0, 2);
    save(session);
    const size_t num_bytes = read_file(path, bytes);
    REQUIRE(num_bytes > 500 && num_bytes < MAX_FILE_BYTES, "%zu bytes", num_bytes);
    for (size_t n = 0; n < num_bytes; n++) {
        write_file(path, bytes, n);
        refuse(session, LLAMITA_ERROR_FORMAT, n == 0 ? "is empty" : n < 8 ? "another kind" : "cut short");
    }
    write_file(path, bytes, num_bytes);
    for (size_t n = 0; n < num_bytes; n++) {
        write_byte(n, (char)(bytes[n] ^ (char)(1 << n % 8)));
        refuse(session, LLAMITA_ERROR_FORMAT, n < 8 ? "another kind" : n < 16 ? "expected version 1" : "damaged");
        write_byte(n, bytes[n]);
    }
    write_file(path, bytes, num_bytes + 1);
    refuse(session, LLAMITA_ERROR_FORMAT, "damaged");
    bytes[8] = 2;
    write_file(path, bytes, num_bytes);
    refuse(session, LLAMITA_ERROR_FORMAT, "expected version 1 of the prompt cache, found 2");
    write_file(path, "GGUF and the rest of a model file, longer than a header", 56);
    refuse(session, LLAMITA_ERROR_FORMAT, "another kind of file");
    llamita_session_close(session);
    free_random_model(model);
}

/* A save over a file replaces it, and leaves nothing beside it where it fails. */
static void test_replacing(void) {
    llamita_model *model = random_model(&small_shape, TENSOR_F32, NULL, 3);
    llamita_session *session = open_session(model, 1);
    feed(session, 0, 3);
    write_file(path, "old", 3);
    save(session);
    REQUIRE(llamita_session_load(session, path, &error) == LLAMITA_OK, "%s", error.message);
    write_file(other_path, "in the way", 10);
    char inside[64];
    snprintf(inside, sizeof inside, "%s/file", other_path);
    CHECK(llamita_session_save(session, inside, &error) == LLAMITA_ERROR_IO, "a file as a folder");
    remove(other_path);
    llamita_session_close(session);
    free_random_model(model);
}

int main(void) {
    random_state = 5;
    for (int i = 0; i < NUM_IDS; i++) ids[i] = random_below(75);
    static const char *const architectures[] = {"llama", "qwen2", "qwen3", "smollm3"};
    for (int i = 0; i < 4; i++)
        for (int type = LLAMITA_KV_F16; type <= LLAMITA_KV_Q8; type++)
            test_same_bits(architectures[i], (llamita_kv_type)type, 137, 137);
    for (int kept = 1; kept < 130; kept += 9) test_same_bits("llama", LLAMITA_KV_F16, 1 + kept, kept);
    for (int type = LLAMITA_KV_F16; type <= LLAMITA_KV_Q8; type++) test_same_file((llamita_kv_type)type);
    test_other_origin();
    test_adapters();
    test_damage();
    test_replacing();
    remove(path);
    return check_failures();
}
