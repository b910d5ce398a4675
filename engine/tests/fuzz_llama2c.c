/* fuzz_llama2c.c: reads any bytes as a llama2.c model and as a tokenizer.bin: each file is rejected
 * with a one-line error, or opens and runs. */
#include "formats/formats.h"
#include "fuzz.h"

static void use(const uint8_t *bytes, size_t num_bytes) {
    llamita_error error;
    llamita_model *model = open_bytes(bytes, num_bytes, NULL, &error);
    if (model) fuzz_use_model(model);
    else fuzz_check_error(&error);
    close_bytes(model);
    tokenizer *t = NULL;
    error = (llamita_error){0};
    if (llama2c_read_tokenizer(bytes, num_bytes, "draft.bin", DRAFT_VOCAB, &t, &error)) {
        fuzz_check_error(&error);
    } else {
        fuzz_use_tokenizer(t);
        tokenizer_free(t);
    }
}

/* Model files of all versions and of several shapes, and tokenizer.bin. */
static buffer write_variant(uint64_t variant) {
    if (variant % 4 == 3) return llama2c_write_tokenizer();
    llama2c_sizes sizes = LLAMA2C_SIZES;
    if (variant & 64) sizes.n_kv_heads = 1;
    if (variant & 128) sizes.n_layers = 1;
    if (variant & 256) sizes.max_seq_len = 1;
    if (variant & 512) sizes.n_heads = sizes.n_kv_heads = 16;
    return llama2c_write((int)(variant % 4), sizes, variant & 16, variant & 32 ? 16 : 32);
}

/* The numbers of a header start at byte 0 (version 0) or 8; the lengths of a tokenizer.bin follow
 * one another. */
static void mutate(buffer *file, uint64_t *state) {
    const size_t num_fields = 11, field = random_up_to(state, num_fields) * 4 + (random_u64(state) % 8 == 0);
    size_t at = 4;
    if (random_u64(state) % 2 == 0 || file->num_bytes < 64) {
        mutate_bytes(file, state);
        return;
    }
    if (file->num_bytes < 512 && random_u64(state) % 2) { /* the score and the length of a token */
        for (uint64_t n = random_u64(state) % DRAFT_VOCAB; n > 0 && file->num_bytes - at >= 8; n--) {
            const uint64_t length = read_u32(file->bytes + at + 4);
            if (length > file->num_bytes - at - 8) break;
            at += 8 + (size_t)length;
        }
        at = file->num_bytes - at >= 8 ? at : 0;
    } else {
        at = field;
    }
    const uint32_t bits = random_u64(state) % 2 ? random_float_bits(state) : (uint32_t)(random_u64(state) % 70);
    memcpy(file->bytes + at + (random_u64(state) % 2 ? 4 : 0), &bits, sizeof bits);
}

FUZZ_TARGET(use, write_variant, mutate, 3000)
