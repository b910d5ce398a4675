/* test_gguf_split.c: a GGUF in pieces opens as one model, and a piece that is missing, renamed or of
 * another model is named. */
#include <stdio.h>
#include <unistd.h>

#include "check.h"
#include "formats/file.h"
#include "model_files.h"

enum { NUM_PIECES = 3, PATH_BYTES = 512 };

static char folder[256];

static void piece_path(char path[PATH_BYTES], const char *name, int index) {
    snprintf(path, PATH_BYTES, "%s/%s-%05d-of-%05d.gguf", folder, name, index + 1, NUM_PIECES);
}

static void write_piece(const char *path, gguf_draft *d) {
    buffer bytes = draft_write(d);
    FILE *out = fopen(path, "wb");
    if (!out || fwrite(bytes.bytes, 1, bytes.num_bytes, out) != bytes.num_bytes || fclose(out) != 0) abort();
    free_buffer(&bytes);
    draft_free(d);
}

static void split_keys(gguf_draft *d, uint16_t index, uint16_t count, uint32_t num_tensors) {
    put_bytes(draft_set(d, "split.no", GGUF_U16), &index, sizeof index);
    put_bytes(draft_set(d, "split.count", GGUF_U16), &count, sizeof count);
    put_u32(draft_set(d, "split.tensors.count", GGUF_I32), num_tensors);
}

/* The piece of a draft Llama that has every third tensor, as gguf-split writes its keys. */
static void draft_piece(gguf_draft *d, int index) {
    draft_llama(d, TENSOR_F32, false);
    const uint32_t num_tensors = (uint32_t)d->num_tensors;
    for (int i = (int)num_tensors - 1; i >= 0; i--)
        if (i % NUM_PIECES != index) draft_remove_tensor(d, d->tensors[i].name);
    while (index > 0 && d->num_keys > 0) draft_remove(d, d->keys[0].name);
    split_keys(d, (uint16_t)index, NUM_PIECES, num_tensors);
}

static void write_pieces(const char *name) {
    for (int i = 0; i < NUM_PIECES; i++) {
        gguf_draft d;
        char path[PATH_BYTES];
        draft_piece(&d, i);
        piece_path(path, name, i);
        write_piece(path, &d);
    }
}

/* The model before its weights are packed; the caller closes *file. */
static llamita_model *open_unpacked(const char *path, platform_file *file) {
    llamita_error error = {0};
    llamita_model *model = calloc(1, sizeof *model);
    if (!model || file_open("model", path, false, file, &error)) abort();
    model->mapping = file->bytes;
    model->mapping_bytes = file->num_bytes;
    model->file = file;
    CHECK(model_fill(model, path, "scalar", &error) == LLAMITA_OK, "%s", error.message);
    return model;
}

static void test_opens_as_one(void) {
    char path[PATH_BYTES];
    llamita_error error = {0};
    llamita_model *model = NULL;
    gguf_draft d;
    draft_llama(&d, TENSOR_F32, false);
    buffer whole = draft_write(&d);
    llamita_model *expected = open_bytes(whole.bytes, whole.num_bytes, NULL, &error);
    write_pieces("model");
    piece_path(path, "model", 0);
    CHECK(llamita_model_open(path, NULL, &model, &error) == LLAMITA_OK, "%s", error.message);
    if (model && expected) {
        CHECK(model->num_pieces == 0, "%d pieces are still open", (int)model->num_pieces);
        CHECK(model->info.weight_bytes == expected->info.weight_bytes, "%d bytes", (int)model->info.weight_bytes);
        CHECK(model->info.has_tokenizer, "tokenizer");
    }
    llamita_model_close(model);
    platform_file file;
    model = open_unpacked(path, &file);
    CHECK(model->num_pieces == NUM_PIECES - 1, "%d pieces", (int)model->num_pieces);
    CHECK(expected && sum_model(model) == sum_model(expected), "weights");
    llamita_model_close(model);
    platform_file_close(&file);
    close_bytes(expected);
    free_buffer(&whole);
    draft_free(&d);
}

static void check_fails(const char *path, const char *expected, llamita_status status) {
    llamita_model *model = NULL;
    llamita_error error = {0};
    CHECK(llamita_model_open(path, NULL, &model, &error) == status, "%s: status %d", path, error.status);
    CHECK(!model && strstr(error.message, expected), "expected \"%s\", found \"%s\"", expected, error.message);
}

/* Replaces piece 2 by the draft, checks the error and restores the piece. */
static void check_piece_fails(gguf_draft *d, const char *expected) {
    char first[PATH_BYTES], second[PATH_BYTES];
    piece_path(first, "model", 0);
    piece_path(second, "model", 1);
    write_piece(second, d);
    check_fails(first, expected, LLAMITA_ERROR_FORMAT);
    write_pieces("model");
}

static void test_wrong_pieces(void) {
    char first[PATH_BYTES], second[PATH_BYTES], other[PATH_BYTES];
    gguf_draft d;
    piece_path(first, "model", 0);
    piece_path(second, "model", 1);
    piece_path(other, "other", 1);
    check_fails(second, "found piece 2 of 3 of a split model; open the first, whose name ends in -00001-of-00003.gguf",
                LLAMITA_ERROR_FORMAT);
    draft_piece(&d, 2);
    check_piece_fails(&d, "expected piece 2 of 3 with 21 tensors in all, found piece 3 of 3 with 21; it belongs to");
    draft_piece(&d, 1);
    split_keys(&d, 1, 4, 21);
    check_piece_fails(&d, "found piece 2 of 4 with 21");
    draft_piece(&d, 1);
    split_keys(&d, 1, NUM_PIECES, 30);
    check_piece_fails(&d, "found piece 2 of 3 with 30");
    draft_piece(&d, 1);
    draft_remove_tensor(&d, d.tensors[0].name);
    check_piece_fails(&d, "split.tensors.count: expected the 20 tensors of all 3 pieces, found 21");
    draft_piece(&d, 2);
    split_keys(&d, 1, NUM_PIECES, 21);
    check_piece_fails(&d, "occurs twice");
    draft_llama(&d, TENSOR_F32, false); /* a whole model */
    check_piece_fails(&d, "found piece 1 of 0 with 0; it belongs to another model");
    CHECK(rename(second, other) == 0, "rename");
    check_fails(first, "-00002-of-00003.gguf: No such file", LLAMITA_ERROR_IO);
    CHECK(rename(other, second) == 0, "rename");
}

int main(void) {
    strcpy(folder, "/tmp/llamita_split_XXXXXX");
    if (!mkdtemp(folder)) abort();
    test_opens_as_one();
    test_wrong_pieces();
    for (int i = 0; i < NUM_PIECES; i++) {
        char path[PATH_BYTES];
        piece_path(path, "model", i);
        unlink(path);
    }
    rmdir(folder);
    return check_failures();
}
