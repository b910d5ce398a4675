/* gguf_split.c: reads a GGUF that llama.cpp's gguf-split cut into pieces.
 *
 * The pieces are called NAME-00001-of-00003.gguf and so on. The first has all keys; each has the
 * keys split.no (from 0), split.count and split.tensors.count (of all pieces), and its own tensors.
 */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/file.h"
#include "formats/gguf_keys.h"
#include "runtime/error.h"

enum { SUFFIX_BYTES = sizeof "-00001-of-00003.gguf" };

typedef struct {
    int64_t index, count, num_tensors;
} split_keys;

static llamita_status read_split(const gguf_file *file, split_keys *split) {
    llamita_status status = gguf_key_integer(file, KEY_SPLIT_COUNT, &split->count, NULL);
    status = status ? status : gguf_key_integer(file, KEY_SPLIT_NO, &split->index, NULL);
    return status ? status : gguf_key_integer(file, KEY_SPLIT_TENSORS, &split->num_tensors, NULL);
}

/* The end of a piece's name. */
static void piece_suffix(char suffix[SUFFIX_BYTES], int64_t index, int64_t count) {
    const unsigned limit = 100000; /* five digits; counts are below GGUF_MAX_PIECES */
    snprintf(suffix, SUFFIX_BYTES, "-%05u-of-%05u.gguf", (unsigned)(index + 1) % limit, (unsigned)count % limit);
}

/* Checks that the file is the first piece and is called so. */
static llamita_status check_first(const gguf_file *file, const split_keys *split) {
    char own[SUFFIX_BYTES], first[SUFFIX_BYTES];
    const char *path = file->from.path;
    const size_t length = strlen(path);
    piece_suffix(own, split->index, split->count);
    piece_suffix(first, 0, split->count);
    const bool is_named = length > SUFFIX_BYTES - 1 && strcmp(path + length - (SUFFIX_BYTES - 1), own) == 0;
    if (split->index >= split->count) {
        return reader_error(&file->from,
                            "key split.no: expected less than split.count %" PRId64 ", found %" PRId64 "; the file is "
                            "damaged",
                            split->count, split->index);
    }
    if (split->index > 0) {
        return reader_error(&file->from,
                            "found piece %" PRId64 " of %" PRId64
                            " of a split model; open the first, whose name ends in "
                            "%s",
                            split->index + 1, split->count, first);
    }
    if (!is_named) {
        return reader_error(&file->from,
                            "found the first of %" PRId64 " pieces of a split model; expected a name that ends in %s, "
                            "to find the others; rename them, or merge them with llama-gguf-split --merge",
                            split->count, first);
    }
    return LLAMITA_OK;
}

/* Appends the tensors of a piece. */
static llamita_status append_tensors(gguf_file *file, const gguf_file *piece) {
    const size_t total = file->num_tensors + piece->num_tensors;
    gguf_tensor *tensors = realloc(file->tensors, (total + 1) * sizeof *tensors);
    if (!tensors) return reader_memory_error(&file->from, (total + 1) * sizeof *tensors);
    memcpy(tensors + file->num_tensors, piece->tensors, piece->num_tensors * sizeof *tensors);
    file->tensors = tensors;
    file->num_tensors = total;
    return LLAMITA_OK;
}

static llamita_status check_piece(const gguf_file *piece, const split_keys *split, int64_t index) {
    split_keys found;
    llamita_status status = read_split(piece, &found);
    if (!status && (found.index != index || found.count != split->count || found.num_tensors != split->num_tensors)) {
        return reader_error(&piece->from,
                            "expected piece %" PRId64 " of %" PRId64 " with %" PRId64 " tensors in all, found piece "
                            "%" PRId64 " of %" PRId64 " with %" PRId64 "; it belongs to another model",
                            index + 1, split->count, split->num_tensors, found.index + 1, found.count,
                            found.num_tensors);
    }
    return status;
}

/* Opens and parses the piece of this index. The model owns the file. */
static llamita_status take_piece(llamita_model *model, gguf_file *file, const split_keys *split, int64_t index) {
    const size_t length = strlen(file->from.path), prefix = length - (SUFFIX_BYTES - 1);
    char *path = malloc(length + 1);
    if (!path) return reader_memory_error(&file->from, length + 1);
    memcpy(path, file->from.path, prefix);
    piece_suffix(path + prefix, index, split->count);
    platform_file opened;
    llamita_status status = file_open("model", path, false, &opened, file->from.error);
    if (!status) {
        model->pieces[model->num_pieces++] = opened;
        platform_file *held = &model->pieces[model->num_pieces - 1];
        const reader from = {held->bytes, held->num_bytes, 0, file->from.what, path, file->from.error, held};
        gguf_file piece;
        status = gguf_parse(&piece, &from);
        status = status ? status : check_piece(&piece, split, index);
        status = status ? status : append_tensors(file, &piece);
        gguf_free(&piece);
    }
    free(path);
    return status;
}

llamita_status gguf_take_pieces(llamita_model *model, gguf_file *file) {
    split_keys split;
    llamita_status status = read_split(file, &split);
    if (status || split.count <= 1) return status;
    status = check_first(file, &split);
    if (status) return status;
    const size_t num_bytes = (size_t)split.count * sizeof *model->pieces;
    model->pieces = model_allocate(model, num_bytes);
    if (!model->pieces) return reader_memory_error(&file->from, num_bytes);
    for (int64_t i = 1; !status && i < split.count; i++) status = take_piece(model, file, &split, i);
    if (!status && split.num_tensors != (int64_t)file->num_tensors) {
        return reader_error(&file->from,
                            "key split.tensors.count: expected the %zu tensors of all %" PRId64
                            " pieces, found %" PRId64 "; a piece belongs to another model",
                            file->num_tensors, split.count, split.num_tensors);
    }
    return status ? status : gguf_sort_tensors(file);
}
