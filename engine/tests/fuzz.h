/* fuzz.h: corrupts valid files at random, and uses every file that still opens. */
#ifndef LLAMITA_FUZZ_H
#define LLAMITA_FUZZ_H

#include <math.h>

#include "check.h"
#include "model_files.h"

/* Encodes a text, and decodes every token. */
static inline void fuzz_use_tokenizer(const tokenizer *t) {
    static const char text[] = "ab a<|im_end|>b\xE2\x96\x81 \xFF\n 'll 12";
    int32_t ids[sizeof text + 2];
    size_t num_tokens = 0;
    llamita_error error;
    for (int flags = 0; flags < 4; flags++) {
        llamita_status status =
            tokenizer_encode(t, text, sizeof text - 1, flags, ids, sizeof text + 2, &num_tokens, &error);
        CHECK(status == LLAMITA_OK || status == LLAMITA_ERROR_FORMAT || status == LLAMITA_ERROR_ARGUMENT, "status %d",
              status);
        for (size_t i = 0; !status && i < num_tokens; i++)
            CHECK(ids[i] >= 0 && ids[i] < tokenizer_vocab_size(t), "id %d", ids[i]);
    }
    for (int32_t id = 0; id < tokenizer_vocab_size(t); id++) {
        const char *bytes;
        size_t num_bytes;
        CHECK(tokenizer_decode(t, -1, id, &bytes, &num_bytes, &error) == LLAMITA_OK, "%s", error.message);
        CHECK(tokenizer_text(t, id), "token %d has no text", id);
    }
}

/* Checks what an open model guarantees: weights inside the file, finite norms and angles, a
 * tokenizer of the model's vocabulary size. */
static inline void fuzz_use_model(const llamita_model *model) {
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
    }
}

static inline void fuzz_check_error(const llamita_error *error) {
    CHECK(error->status == LLAMITA_ERROR_FORMAT || error->status == LLAMITA_ERROR_MEMORY, "status %d", error->status);
    CHECK(strncmp(error->message, "cannot ", 7) == 0 && !strchr(error->message, '\n'), "\"%s\"", error->message);
}

#ifdef FUZZ_MAIN
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t num_bytes);

/* SplitMix64 (Steele, Lea and Flood 2014). */
static inline uint64_t fuzz_random(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static inline uint64_t fuzz_number(uint64_t *state) {
    static const uint64_t numbers[] = {0,
                                       1,
                                       2,
                                       3,
                                       7,
                                       8,
                                       9,
                                       31,
                                       32,
                                       33,
                                       63,
                                       64,
                                       255,
                                       256,
                                       65535,
                                       65536,
                                       1 << 20,
                                       1 << 24,
                                       0x7FFFFFFF,
                                       0x80000000,
                                       0xFFFFFFFF,
                                       1ULL << 32,
                                       1ULL << 33,
                                       INT64_MAX,
                                       1ULL << 63,
                                       UINT64_MAX - 31,
                                       UINT64_MAX - 7,
                                       UINT64_MAX,
                                       0x7FC00000,
                                       0x7F800000};
    return numbers[fuzz_random(state) % (sizeof numbers / sizeof numbers[0])];
}

/* Makes one change: to a number of the header, to a number or byte anywhere, or cuts the file, or
 * removes, duplicates or moves a piece. */
static inline void fuzz_change(buffer *file, const field_list *fields, uint64_t *state) {
    const uint64_t kind = fuzz_random(state) % 16;
    size_t at = (size_t)(fuzz_random(state) % file->num_bytes);
    size_t width = (size_t)1 << fuzz_random(state) % 4;
    if (kind < 8) at = fields->at[fuzz_random(state) % fields->count];
    width = width < file->num_bytes - at ? width : file->num_bytes - at;
    if (kind < 6 || kind == 8) {
        uint64_t number = fuzz_number(state);
        memcpy(file->bytes + at, &number, width);
    } else if (kind < 8) { /* slightly more or less */
        file->bytes[at] = (uint8_t)(file->bytes[at] + fuzz_random(state) % 5 - 2);
    } else if (kind < 11) {
        file->bytes[at] = (uint8_t)fuzz_random(state);
    } else if (kind == 11) {
        file->num_bytes = at ? at : 1;
    } else if (kind == 12) { /* remove */
        memmove(file->bytes + at, file->bytes + at + width, file->num_bytes - at - width);
        file->num_bytes -= width < file->num_bytes ? width : 0;
    } else if (kind == 13) { /* duplicate */
        put_zeros(file, width);
        memmove(file->bytes + at + width, file->bytes + at, file->num_bytes - at - width);
    } else { /* copy from another place */
        size_t from = (size_t)(fuzz_random(state) % file->num_bytes), length = (size_t)(fuzz_random(state) % 64);
        size_t last = from > at ? from : at;
        length = length < file->num_bytes - last ? length : file->num_bytes - last;
        memmove(file->bytes + at, file->bytes + from, length);
    }
}

typedef buffer fuzz_writer(uint32_t variant, field_list *fields);

static inline int fuzz_main(int argc, char **argv, unsigned long num_files, uint32_t num_variants, fuzz_writer *write) {
    uint64_t state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    num_files = argc > 1 ? strtoul(argv[1], NULL, 10) : num_files;
    for (unsigned long i = 0; i < num_files && !check_num_failures; i++) {
        static field_list fields;
        fields.count = 0;
        const uint64_t seed = state; /* of this file only */
        buffer file = write((uint32_t)(fuzz_random(&state) % num_variants), &fields);
        for (uint64_t n = fuzz_random(&state) % 4; n > 0 && file.num_bytes; n--) {
            size_t before = file.num_bytes;
            fuzz_change(&file, &fields, &state);
            /* After a cut the other fields may be past the end. */
            fields.count = file.num_bytes < before ? 1 : fields.count;
            fields.at[0] = fields.count == 1 ? 0 : fields.at[0];
        }
        LLVMFuzzerTestOneInput(file.bytes, file.num_bytes);
        CHECK(!check_num_failures, "reproduce with: %s 1 %llu", argv[0], (unsigned long long)seed);
        free_buffer(&file);
    }
    return check_failures();
}
#endif

#endif
