/* llama2c_tokenizer.c: reads llama2.c's tokenizer.bin.
 *
 * Format: karpathy/llama2.c tokenizer.py at 350e04f; docs/formats.md describes the bytes.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "formats/reader.h"

/* Constants of llama2.c; the file does not store them. */
enum { BOS_ID = 1, EOS_ID = 2, UNKNOWN_ID = 0, NUM_SPECIAL_IDS = 3 };

/* Whether a piece stands for a byte, such as <0x0A>. */
static bool is_byte_token(byte_slice piece) {
    unsigned char byte;
    return byte_piece_value(piece, &byte);
}

/* Takes the next entry: float32 score, int32 length, bytes. */
static llamita_status take_entry(reader *from, uint32_t max_length, int64_t id, float *score, byte_slice *piece) {
    uint32_t bits, length;
    const unsigned char *bytes;
    if (!reader_u32(from, &bits) || !reader_u32(from, &length)) {
        return reader_error(from, "token %" PRId64 ": the file ends at byte %zu, inside the entry; it is incomplete",
                            id, from->num_bytes);
    }
    *score = read_f32(from->bytes + from->position - 8);
    if (!isfinite(*score)) {
        return reader_error(from,
                            "token %" PRId64 ": expected a finite score, found %f; the file is damaged or not a "
                            "llama2.c tokenizer.bin",
                            id, (double)*score);
    }
    if (length > max_length) {
        return reader_error(from,
                            "token %" PRId64 ": expected at most max_token_length = %" PRIu32 " bytes, found %" PRIu32
                            "; the file is damaged or not a llama2.c tokenizer.bin",
                            id, max_length, length);
    }
    if (!reader_bytes(from, length, &bytes)) {
        return reader_error(from,
                            "token %" PRId64 ": expected %" PRIu32 " bytes, found the end of the file; it is "
                            "incomplete",
                            id, length);
    }
    *piece = (byte_slice){(const char *)bytes, length};
    return LLAMITA_OK;
}

/* Checks all entries. The file does not store their number: they must fill it. */
static llamita_status check_entries(reader from, int32_t vocab_size) {
    uint32_t max_length, longest = 0;
    int64_t count = 0;
    if (!reader_u32(&from, &max_length)) {
        return reader_error(&from, "expected a llama2.c tokenizer.bin, found a file of %zu bytes; it is incomplete",
                            from.num_bytes);
    }
    if (max_length > from.num_bytes) {
        return reader_error(&from,
                            "max_token_length: expected less than the file's %zu bytes, found %" PRIu32
                            "; the file is damaged or not a llama2.c tokenizer.bin",
                            from.num_bytes, max_length);
    }
    for (; from.position < from.num_bytes; count++) {
        float score;
        byte_slice piece;
        llamita_status status = take_entry(&from, max_length, count, &score, &piece);
        if (status) return status;
        longest = piece.num_bytes > longest ? (uint32_t)piece.num_bytes : longest;
    }
    if (longest != max_length) {
        return reader_error(&from,
                            "max_token_length: expected the longest token's %" PRIu32 " bytes, found %" PRIu32
                            "; the file is incomplete or damaged",
                            longest, max_length);
    }
    if (count != vocab_size) {
        return reader_error(&from,
                            "expected the %d tokens of the model's vocabulary, found %" PRId64
                            "; use the tokenizer that the model was trained with",
                            vocab_size, count);
    }
    if (count < NUM_SPECIAL_IDS) {
        return reader_error(&from,
                            "expected at least %d tokens (unknown, BOS and EOS), found %" PRId64 "; the file is "
                            "damaged",
                            NUM_SPECIAL_IDS, count);
    }
    return LLAMITA_OK;
}

/* Writes the piece to `to` as GGUF spells it: U+2581 for a space; BOS and EOS without the newlines
 * that llama2.c puts around them. *piece becomes the new text; returns its end. */
static char *normalize_piece(byte_slice *piece, int32_t id, char *to) {
    byte_slice from = *piece;
    if ((id == BOS_ID || id == EOS_ID) && from.num_bytes > 2 && from.bytes[0] == '\n' &&
        from.bytes[from.num_bytes - 1] == '\n') {
        from = (byte_slice){from.bytes + 1, from.num_bytes - 2};
    }
    char *end = to;
    for (size_t i = 0; i < from.num_bytes; i++) {
        if (from.bytes[i] == ' ') {
            memcpy(end, "\xE2\x96\x81", 3);
            end += 3;
        } else {
            *end++ = from.bytes[i];
        }
    }
    *piece = (byte_slice){to, (size_t)(end - to)};
    return end;
}

llamita_status llama2c_read_tokenizer(const void *mapping, size_t num_bytes, const char *path, int32_t vocab_size,
                                      tokenizer **out, llamita_error *error) {
    reader from = {mapping, num_bytes, 0, "tokenizer", path, error, NULL};
    llamita_status status = check_entries(from, vocab_size);
    if (status) return status;
    const size_t count = (size_t)vocab_size;
    byte_slice *pieces = malloc(count * sizeof *pieces);
    float *scores = malloc(count * sizeof *scores);
    int32_t *types = malloc(count * sizeof *types);
    char *text = malloc(saturating_multiply(num_bytes, 3) > SIZE_MAX ? SIZE_MAX : 3 * num_bytes);
    if (!pieces || !scores || !types || !text) status = reader_memory_error(&from, saturating_multiply(num_bytes, 3));
    char *end = text;
    uint32_t max_length = 0;
    reader_u32(&from, &max_length);
    for (int32_t id = 0; !status && id < vocab_size; id++) {
        status = take_entry(&from, max_length, id, &scores[id], &pieces[id]);
        types[id] = id == UNKNOWN_ID               ? TOKEN_UNKNOWN
                    : id == BOS_ID || id == EOS_ID ? TOKEN_CONTROL
                    : is_byte_token(pieces[id])    ? TOKEN_BYTE
                                                   : TOKEN_NORMAL;
        end = status ? end : normalize_piece(&pieces[id], id, end);
    }
    if (!status) {
        tokenizer_source source = {.kind = TOKENIZER_SENTENCEPIECE,
                                   .vocab_size = vocab_size,
                                   .pieces = pieces,
                                   .scores = scores,
                                   .types = types,
                                   .bos_id = BOS_ID,
                                   .eos_id = EOS_ID,
                                   .unknown_id = UNKNOWN_ID,
                                   .add_bos = true,
                                   .add_space_prefix = true};
        status = tokenizer_create(&source, path, out, error);
    }
    free(pieces);
    free(scores);
    free(types);
    free(text);
    return status;
}
