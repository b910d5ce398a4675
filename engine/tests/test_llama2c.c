/* test_llama2c.c: valid llama2.c model files and tokenizer.bin files open with the right contents;
 * wrong ones are rejected with a one-line error. */
#include <math.h>

#if !defined(_WIN32) && !defined(__wasm__)
#define POSIX
#include <sys/stat.h>
#endif

#include "check.h"
#include "formats/formats.h"
#include "model_files.h"

static void put_at(buffer *file, size_t position, const void *bytes, size_t num_bytes) {
    memcpy(file->bytes + position, bytes, num_bytes);
}

static void put_i32_at(buffer *file, size_t position, int32_t value) { put_at(file, position, &value, 4); }

/* ---------------------------------------------------------------- model files: refusals */

static void check_refused(buffer *file, const char *expected, int line) {
    llamita_error error;
    llamita_model *model = open_bytes(file->bytes, file->num_bytes, NULL, &error);
    CHECK(!model, "case of line %d: opened", line);
    CHECK(strstr(error.message, expected), "case of line %d: expected \"%s\", found \"%s\"", line, expected,
          error.message);
    CHECK(strncmp(error.message, "cannot open model draft.bin: ", 29) == 0, "case of line %d: \"%s\"", line,
          error.message);
    CHECK(error.status == LLAMITA_ERROR_FORMAT, "case of line %d: status %d", line, error.status);
    close_bytes(model);
    free_buffer(file);
}

/* A valid file of this version, changed by the statements, must be rejected with this text. */
#define REFUSED(version, expected, ...)                                \
    do {                                                               \
        buffer file = llama2c_write(version, LLAMA2C_SIZES, true, 32); \
        __VA_ARGS__;                                                   \
        check_refused(&file, expected, __LINE__);                      \
    } while (0)

enum { DIM, HIDDEN_DIM, N_LAYERS, N_HEADS, N_KV_HEADS, VOCAB_SIZE, MAX_SEQ_LEN };

static size_t field(int version, int index) { return (size_t)(version ? 8 : 0) + 4 * (size_t)index; }

static void test_v0_refusals(void) {
    const char *foreign = "expected a GGUF or llama2.c model file, found another format";
    for (int index = DIM; index <= MAX_SEQ_LEN; index++) {
        REFUSED(0, foreign, put_i32_at(&file, field(0, index), 0));
        REFUSED(0, index == VOCAB_SIZE ? "bytes that the header implies" : foreign,
                put_i32_at(&file, field(0, index), -8));
        REFUSED(0, foreign, put_i32_at(&file, field(0, index), INT32_MIN));
        REFUSED(0, index == DIM || index == N_HEADS ? foreign : "bytes that the header implies",
                put_i32_at(&file, field(0, index), INT32_MAX));
        REFUSED(0, index == N_HEADS ? foreign : "bytes that the header implies",
                put_i32_at(&file, field(0, index), 48));
    }
    REFUSED(0, "expected the 18446744073709551615 bytes that the header implies",
            for (int i = HIDDEN_DIM; i <= MAX_SEQ_LEN; i++)
                put_i32_at(&file, field(0, i), i == N_HEADS ? 4 : INT32_MAX));
    REFUSED(0,
            "bytes that the header implies (dim 32, hidden_dim 64, layers 2, heads 4, kv heads 2, vocabulary 8, "
            "context 16)",
            put_u8(&file, 0));
    REFUSED(0, foreign, put_i32_at(&file, field(0, N_HEADS), 5));
    REFUSED(0, "expected a divisor of 4 attention heads, found 3", file.num_bytes += 4 * 2 * 2 * 8 * 32,
            file.bytes = realloc(file.bytes, file.num_bytes), memset(file.bytes + file.num_bytes - 4096, 0, 4096),
            put_i32_at(&file, field(0, N_KV_HEADS), 3));
    REFUSED(0, "tensor blk.0.attn_norm.weight: expected finite numbers, found nan",
            put_at(&file, 28 + 4 * 8 * 32 + 4 * 3, &(float){NAN}, 4));
    REFUSED(0, "tensor blk.1.attn_norm.weight: expected finite numbers, found inf at position 31",
            put_at(&file, 28 + 4 * (8 * 32 + 63), &(float){INFINITY}, 4));
    REFUSED(0, "found a PyTorch checkpoint", put_at(&file, 0, "PK\x03\x04", 4));
    REFUSED(0, "found safetensors", put_at(&file, 0, "\x20\0\0\0\0\0\0\0{\"a", 11));
    REFUSED(0, "Git LFS pointer", put_at(&file, 0, "version https://git-lfs.github.com/spec/v1", 42));
    REFUSED(0, "from before GGUF", put_at(&file, 0, "tjgg", 4));
    REFUSED(0, "expected a header of 28 bytes, found a file of 0", file.num_bytes = 0);
    REFUSED(0, foreign, put_at(&file, 0, "Once upon a time there was a little girl", 40));
}

static void test_new_refusals(void) {
    for (int version = 1; version <= 2; version++) {
        REFUSED(version, "llama2.c version: expected 1 or 2, found 0", put_i32_at(&file, 4, 0));
        REFUSED(version, "llama2.c version: expected 1 or 2, found 3", put_i32_at(&file, 4, 3));
        REFUSED(version, "llama2.c version: expected 1 or 2, found -1", put_i32_at(&file, 4, -1));
        REFUSED(version, "header: dim: expected at least 1, found 0", put_i32_at(&file, field(version, DIM), 0));
        REFUSED(version, "header: vocab_size: expected at least 1, found -8",
                put_i32_at(&file, field(version, VOCAB_SIZE), -8));
        REFUSED(version, "header: max_seq_len: expected at least 1, found -2147483648",
                put_i32_at(&file, field(version, MAX_SEQ_LEN), INT32_MIN));
        REFUSED(version, "header: n_heads: expected a divisor of dim 32, found 5",
                put_i32_at(&file, field(version, N_HEADS), 5));
        REFUSED(version, "head size: expected an even number, found 1", put_i32_at(&file, field(version, N_HEADS), 32),
                put_i32_at(&file, field(version, N_KV_HEADS), 16));
        REFUSED(version, "bytes that the header implies", put_i32_at(&file, field(version, N_LAYERS), INT32_MAX));
        REFUSED(version, "shared classifier: expected 0 or 1, found 2", file.bytes[36] = 2);
        REFUSED(version, "bytes that the header implies", file.bytes[36] = 0);
        REFUSED(version, "tensor output_norm.weight: expected finite numbers",
                put_at(&file, 256 + 4 * 4 * 32, &(float){NAN}, 4));
        REFUSED(version, "tensor blk.1.ffn_norm.weight: expected finite numbers",
                put_at(&file, 256 + 4 * 3 * 32, &(float){-INFINITY}, 4));
    }
    REFUSED(2, "header: group size: expected at least 1, found 0", put_i32_at(&file, 37, 0));
    REFUSED(2, "header: group size: expected at least 1, found -64", put_i32_at(&file, 37, -64));
    REFUSED(2, "header: group size: expected a divisor of the 256 weights of token_embd, found 48",
            put_i32_at(&file, 37, 48));
    REFUSED(2, "bytes that the header implies", put_i32_at(&file, 37, 16));
    /* rows * row length beyond 64 bits, in a header that no check of sizes has seen */
    REFUSED(2, "group size: expected a divisor of the 18446744073709551615 weights of attn_k, found 2",
            put_i32_at(&file, 37, 2), put_i32_at(&file, field(2, DIM), INT32_MAX - 1),
            put_i32_at(&file, field(2, N_HEADS), 1), put_i32_at(&file, field(2, N_KV_HEADS), INT32_MAX));
    REFUSED(2, "bytes that the header implies", put_i32_at(&file, 37, 1),
            put_i32_at(&file, field(2, DIM), INT32_MAX - 1), put_i32_at(&file, field(2, N_HEADS), 1),
            put_i32_at(&file, field(2, N_KV_HEADS), INT32_MAX));
    REFUSED(2, "tensor token_embd.weight: expected finite scales, found inf at group 1",
            put_at(&file, 256 + 4 * 5 * 32 + 8 * 32 + 4, &(float){INFINITY}, 4));
}

static void test_truncated_everywhere(void) {
    for (int version = 0; version <= 2; version++) {
        buffer file = llama2c_write(version, (llama2c_sizes){8, 8, 1, 2, 1, 4, 4}, version == 1, 8);
        for (size_t length = 0; length < file.num_bytes; length++) {
            llamita_error error;
            llamita_model *model = open_bytes(file.bytes, length, NULL, &error);
            CHECK(!model, "version %d cut at byte %zu of %zu: opened", version, length, file.num_bytes);
            CHECK(error.status == LLAMITA_ERROR_FORMAT && error.message[0], "status %d", error.status);
            close_bytes(model);
        }
        free_buffer(&file);
    }
}

/* ---------------------------------------------------------------- model files: valid */

static void check_floats(const char *what, const void *found, const void *expected, size_t count, int line) {
    CHECK(memcmp(found, expected, count * sizeof(float)) == 0, "case of line %d: %s differs", line, what);
}

static void test_opens(void) {
    for (int version = 0; version <= 2; version++) {
        for (int shared = 0; shared < 2; shared++) {
            buffer file = llama2c_write(version, LLAMA2C_SIZES, shared, 32);
            llamita_error error;
            llamita_model *model = open_bytes(file.bytes, file.num_bytes, NULL, &error);
            CHECK(model, "version %d: %s", version, error.message);
            if (model) {
                const llamita_model_info *info = &model->info;
                CHECK(info->hidden_size == 32 && info->intermediate_size == 64 && info->num_hidden_layers == 2 &&
                          info->num_attention_heads == 4 && info->num_key_value_heads == 2 && info->head_dim == 8 &&
                          info->vocab_size == 8 && info->context_tokens == 16,
                      "sizes");
                CHECK(info->tied_embeddings == (shared == 1), "tied %d", info->tied_embeddings);
                CHECK((model->output.data == model->token_embedding.data) == (shared == 1), "output");
                CHECK(info->format[10] == '0' + version, "%s", info->format);
                CHECK(strcmp(info->weight_type, version == 2 ? "int8" : "F32") == 0, "%s", info->weight_type);
                CHECK(info->rope_theta == 10000.0F && info->rms_norm_eps == 1e-5F && model->bos_ends, "constants");
                CHECK(!info->has_tokenizer && info->bos_id == -1, "tokenizer");
                CHECK(sum_model(model) != 0, "weights");
            }
            close_bytes(model);
            free_buffer(&file);
        }
    }
}

/* The parts are where llama2.c's exporter puts them: w2 before w3 in both orders, norms first in
 * versions 1 and 2. */
static void test_order(void) {
    enum { D = 32, F = 64, KV = 16, V = 8, T = 16, S = 8 };
    buffer v0 = llama2c_write(0, LLAMA2C_SIZES, false, 0), v1 = llama2c_write(1, LLAMA2C_SIZES, false, 0);
    llamita_error error;
    llamita_model *m0 = open_bytes(v0.bytes, v0.num_bytes, NULL, &error);
    llamita_model *m1 = open_bytes(v1.bytes, v1.num_bytes, NULL, &error);
    CHECK(m0 && m1, "%s", error.message);
    if (m0 && m1) {
        const float *f = (const float *)(const void *)(v0.bytes + 28);
        const size_t attention = V * D + 2 * D, ffn = attention + 2 * (2 * D * D + 2 * KV * D);
        check_floats("v0 embedding", m0->token_embedding.data, f, V * D, __LINE__);
        check_floats("v0 attention norm", m0->layers[1].attention_norm, f + V * D + D, D, __LINE__);
        check_floats("v0 query", m0->layers[1].query.data, f + attention + D * D, D * D, __LINE__);
        check_floats("v0 value", m0->layers[1].value.data, f + attention + 2 * D * D + 3 * KV * D, KV * D, __LINE__);
        check_floats("v0 ffn norm", m0->layers[1].ffn_norm, f + ffn + D, D, __LINE__);
        check_floats("v0 gate", m0->layers[0].ffn_gate.data, f + ffn + 2 * D, F * D, __LINE__);
        check_floats("v0 down", m0->layers[1].ffn_down.data, f + ffn + 2 * D + 3 * F * D, F * D, __LINE__);
        check_floats("v0 up", m0->layers[1].ffn_up.data, f + ffn + 2 * D + 5 * F * D, F * D, __LINE__);
        check_floats("v0 norm", m0->output_norm, f + ffn + 2 * D + 6 * F * D, D, __LINE__);
        check_floats("v0 output", m0->output.data, f + ffn + 3 * D + 6 * F * D + T * S, V * D, __LINE__);
        f = (const float *)(const void *)(v1.bytes + 256);
        check_floats("v1 attention norm", m1->layers[1].attention_norm, f + D, D, __LINE__);
        check_floats("v1 ffn norm", m1->layers[1].ffn_norm, f + 3 * D, D, __LINE__);
        check_floats("v1 norm", m1->output_norm, f + 4 * D, D, __LINE__);
        check_floats("v1 embedding", m1->token_embedding.data, f + 5 * D, V * D, __LINE__);
        f += 5 * D + V * D;
        check_floats("v1 key", m1->layers[0].key.data, f + 2 * D * D, KV * D, __LINE__);
        f += 2 * (2 * D * D + 2 * KV * D);
        check_floats("v1 gate", m1->layers[0].ffn_gate.data, f, F * D, __LINE__);
        check_floats("v1 down", m1->layers[0].ffn_down.data, f + 2 * F * D, F * D, __LINE__);
        check_floats("v1 up", m1->layers[1].ffn_up.data, f + 5 * F * D, F * D, __LINE__);
        check_floats("v1 output", m1->output.data, f + 6 * F * D, V * D, __LINE__);
    }
    close_bytes(m0);
    close_bytes(m1);
    free_buffer(&v0);
    free_buffer(&v1);
}

/* Version 2: groups run over the flattened tensor, so a group may cross rows: those of 64 and 128
 * do. */
static void test_groups(void) {
    const uint32_t group_sizes[] = {4, 32, 64, 128};
    for (size_t g = 0; g < sizeof group_sizes / sizeof group_sizes[0]; g++) {
        const uint32_t group = group_sizes[g];
        buffer file = llama2c_write(2, LLAMA2C_SIZES, true, group);
        llamita_error error;
        llamita_model *model = open_bytes(file.bytes, file.num_bytes, NULL, &error);
        CHECK(model, "%s", error.message);
        if (model) {
            const unsigned char *values = file.bytes + 256 + 4 * 5 * 32, *scales = values + 8 * 32;
            const float *weights = model->token_embedding.data;
            for (uint32_t i = 0; i < 8 * 32; i++) {
                float expected = (float)(int8_t)values[i] * read_f32(scales + 4 * (i / group));
                CHECK(weights[i] == expected, "group %u: weight %u: %g, not %g", group, i, (double)weights[i],
                      (double)expected);
            }
            CHECK(model->info.weight_bytes ==
                      4 * 5 * 32 + (8 * 32 + 2 * 9216) + 4 * (8 * 32 + 2 * 9216) / (int64_t)group,
                  "%d", (int)model->info.weight_bytes);
        }
        close_bytes(model);
        free_buffer(&file);
    }
}

/* ---------------------------------------------------------------- tokenizer.bin */

static llamita_status read_copy(const buffer *file, int32_t vocab_size, tokenizer **out, llamita_error *error) {
    void *copy = malloc(file->num_bytes ? file->num_bytes : 1); /* exact size: see open_bytes */
    if (!copy) abort();
    if (file->num_bytes) memcpy(copy, file->bytes, file->num_bytes);
    *error = (llamita_error){0};
    llamita_status status = llama2c_read_tokenizer(copy, file->num_bytes, "draft.bin", vocab_size, out, error);
    free(copy);
    return status;
}

static void check_tokenizer_refused(buffer *file, int32_t vocab_size, const char *expected, int line) {
    tokenizer *t = NULL;
    llamita_error error;
    llamita_status status = read_copy(file, vocab_size, &t, &error);
    CHECK(status == LLAMITA_ERROR_FORMAT && !t, "case of line %d: status %d", line, status);
    CHECK(strstr(error.message, expected), "case of line %d: expected \"%s\", found \"%s\"", line, expected,
          error.message);
    CHECK(strncmp(error.message, "cannot open tokenizer draft.bin: ", 33) == 0, "case of line %d: \"%s\"", line,
          error.message);
    tokenizer_free(t);
    free_buffer(file);
}

#define TOKENIZER_REFUSED(vocab_size, expected, ...)                    \
    do {                                                                \
        buffer file = llama2c_write_tokenizer();                        \
        __VA_ARGS__;                                                    \
        check_tokenizer_refused(&file, vocab_size, expected, __LINE__); \
    } while (0)

static void test_tokenizer_refusals(void) {
    /* Offsets within the 8 entries. */
    const size_t first_length = 8, last_score = 4 + 8 * 8 + 5 + 5 + 6 + 1 + 1 + 1 + 2 - 8;
    TOKENIZER_REFUSED(8, "expected a llama2.c tokenizer.bin, found a file of 3 bytes", file.num_bytes = 3);
    TOKENIZER_REFUSED(8, "max_token_length: expected less than the file's", put_i32_at(&file, 0, -1));
    TOKENIZER_REFUSED(8, "max_token_length: expected less than the file's", put_i32_at(&file, 0, 1000));
    TOKENIZER_REFUSED(8, "max_token_length: expected the longest token's 6 bytes, found 7", put_i32_at(&file, 0, 7));
    TOKENIZER_REFUSED(8, "token 2: expected at most max_token_length = 5 bytes, found 6", put_i32_at(&file, 0, 5));
    TOKENIZER_REFUSED(8, "token 0: expected at most max_token_length = 0 bytes, found 5", put_i32_at(&file, 0, 0));
    TOKENIZER_REFUSED(8, "token 0: expected at most max_token_length = 6 bytes, found 4294967295",
                      put_i32_at(&file, first_length, -1));
    TOKENIZER_REFUSED(8, "token 7: expected 6 bytes, found the end of the file", put_i32_at(&file, last_score + 4, 6));
    TOKENIZER_REFUSED(8, "token 7: the file ends at byte", file.num_bytes -= 3);
    TOKENIZER_REFUSED(8, "token 0: expected a finite score, found nan", put_at(&file, 4, &(float){NAN}, 4));
    TOKENIZER_REFUSED(8, "token 7: expected a finite score, found inf",
                      put_at(&file, last_score, &(float){INFINITY}, 4));
    TOKENIZER_REFUSED(9, "expected the 9 tokens of the model's vocabulary, found 8", );
    TOKENIZER_REFUSED(7, "expected the 7 tokens of the model's vocabulary, found 8", );
    TOKENIZER_REFUSED(2, "expected at least 3 tokens", put_i32_at(&file, 0, 5), file.num_bytes = 4 + 13 + 13);
    buffer whole = llama2c_write_tokenizer();
    for (size_t length = 0; length < whole.num_bytes; length++) {
        buffer file = {0};
        put_bytes(&file, whole.bytes, length);
        check_tokenizer_refused(&file, 8, "", (int)length);
    }
    free_buffer(&whole);
}

static void test_tokenizer(void) {
    static const char *const expected[] = {
        "<unk>", "<s>", "</s>", "\xE2\x96\x81", "a", "b", "\342\226\201a" /* octal: \x81a would be one escape */, "ab"};
    buffer file = llama2c_write_tokenizer();
    tokenizer *t = NULL;
    llamita_error error;
    CHECK(read_copy(&file, 8, &t, &error) == LLAMITA_OK, "%s", error.message);
    for (int32_t id = 0; t && id < 8; id++) {
        CHECK(strcmp(tokenizer_text(t, id), expected[id]) == 0, "token %d: %s", id, tokenizer_text(t, id));
        CHECK(tokenizer_ends(t, id) == (id == 2), "token %d ends", id);
    }
    CHECK(!t || (tokenizer_bos(t) == 1 && tokenizer_eos(t) == 2 && tokenizer_add_bos(t)), "special ids");
    tokenizer_free(t);
    free_buffer(&file);
}

/* Byte tokens have exactly two hexadecimal digits; "<0x4>" and "<0x-1>" are ordinary text. */
static void test_byte_tokens(void) {
    static const char *const pieces[] = {"<unk>",  "\n<s>\n", "\n</s>\n", "<0x41>",
                                         "<0x-1>", "<0x4>",   "<0xZZ>",   "<0x0a>"};
    static const char *const bytes[] = {"A", "<0x-1>", "<0x4>", "<0xZZ>", "\n"};
    buffer file = {0};
    put_u32(&file, 6);
    for (int i = 0; i < 8; i++) {
        put_f32(&file, (float)-i);
        put_u32(&file, (uint32_t)strlen(pieces[i]));
        put_bytes(&file, pieces[i], strlen(pieces[i]));
    }
    tokenizer *t = NULL;
    llamita_error error;
    CHECK(read_copy(&file, 8, &t, &error) == LLAMITA_OK, "%s", error.message);
    for (int32_t id = 3; t && id < 8; id++) {
        const char *text = NULL;
        size_t length = 0;
        CHECK(tokenizer_decode(t, 5, id, &text, &length, &error) == LLAMITA_OK, "%s", error.message);
        CHECK(length == strlen(bytes[id - 3]) && memcmp(text, bytes[id - 3], length) == 0, "token %d: %.*s", id,
              (int)length, text);
    }
    tokenizer_free(t);
    free_buffer(&file);
}

/* ---------------------------------------------------------------- files on disk */

static void write_file(const char *path, const buffer *file) {
    FILE *out = fopen(path, "wb");
    if (!out || fwrite(file->bytes, 1, file->num_bytes, out) != file->num_bytes || fclose(out) != 0) abort();
}

static void check_open_fails(const char *path, const char *tokenizer_path, const char *kernels, llamita_status status,
                             const char *expected) {
    const llamita_model_params params = {.tokenizer_path = tokenizer_path, .kernels = kernels};
    llamita_model *model = NULL;
    llamita_error error = {0};
    CHECK(llamita_model_open(path, &params, &model, &error) == status, "%s: status %d", path, error.status);
    CHECK(!model && strstr(error.message, expected), "%s: expected \"%s\", found \"%s\"", path, expected,
          error.message);
    CHECK(llamita_model_open(path, &params, &model, NULL) == status, "%s: with a NULL error", path);
}

static void test_files(void) {
    /* In the current directory: Windows and WASI have no /tmp. */
    static const char *const model_path = "test_llama2c_model.bin",
                             *const tokenizer_path = "test_llama2c_tokenizer.bin",
                             *const empty_path = "test_llama2c_empty.bin";
    buffer file = llama2c_write(0, LLAMA2C_SIZES, true, 0), tokenizer_file = llama2c_write_tokenizer(), nothing = {0};
    put_u8(&nothing, 0);
    nothing.num_bytes = 0;
    write_file(model_path, &file);
    write_file(tokenizer_path, &tokenizer_file);
    write_file(empty_path, &nothing);
    const llamita_model_params params = {.tokenizer_path = tokenizer_path};
    llamita_model *model = NULL;
    llamita_error error = {0};
    CHECK(llamita_model_open(model_path, &params, &model, &error) == LLAMITA_OK, "%s", error.message);
    CHECK(!model || (model->info.has_tokenizer && model->info.bos_id == 1 && model->info.eos_id == 2), "tokenizer");
    llamita_model_close(model);
    CHECK(llamita_model_open(model_path, NULL, &model, &error) == LLAMITA_OK, "%s", error.message);
    CHECK(!model->info.has_tokenizer, "has a tokenizer without a tokenizer file");
    llamita_model_close(model);
    llamita_model_close(NULL);
    check_open_fails("/nowhere/model.bin", NULL, NULL, LLAMITA_ERROR_IO,
                     "cannot open model /nowhere/model.bin: No such file");
    check_open_fails(".", NULL, NULL, LLAMITA_ERROR_IO, "expected a file, found a directory");
#if defined(POSIX)
    static const char *const pipe_path = "test_llama2c_pipe";
    remove(pipe_path); /* of a test that was killed */
    if (mkfifo(pipe_path, 0600) != 0) abort();
    check_open_fails(pipe_path, NULL, NULL, LLAMITA_ERROR_IO, "expected a regular file");
    remove(pipe_path);
#endif
    check_open_fails(empty_path, NULL, NULL, LLAMITA_ERROR_FORMAT, "the file is empty");
    check_open_fails(model_path, NULL, "mmx", LLAMITA_ERROR_ARGUMENT,
                     "kernels: expected auto, scalar or, where the processor supports them, avx2");
    check_open_fails(model_path, "/nowhere/t.bin", NULL, LLAMITA_ERROR_IO,
                     "cannot open tokenizer /nowhere/t.bin: No such");
    check_open_fails(model_path, empty_path, NULL, LLAMITA_ERROR_FORMAT, "cannot open tokenizer");
    check_open_fails(model_path, model_path, NULL, LLAMITA_ERROR_FORMAT, "not a llama2.c tokenizer.bin");
    remove(model_path);
    remove(tokenizer_path);
    remove(empty_path);
    free_buffer(&file);
    free_buffer(&tokenizer_file);
    free_buffer(&nothing);
}

int main(void) {
    test_v0_refusals();
    test_new_refusals();
    test_truncated_everywhere();
    test_opens();
    test_order();
    test_groups();
    test_tokenizer_refusals();
    test_tokenizer();
    test_byte_tokens();
    test_files();
    return check_failures();
}
