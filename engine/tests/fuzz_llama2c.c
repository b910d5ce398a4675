/* fuzz_llama2c.c: reads any bytes as a llama2.c model and as a tokenizer.bin: each file is rejected
 * with a one-line error, or opens and is usable.
 *
 * For libFuzzer: clang -fsanitize=fuzzer,address,undefined. With -DFUZZ_MAIN it is a standalone
 * program that corrupts valid files at random, mostly the numbers in their headers: fuzz_llama2c
 * [number of files] [seed]. */
#include "check.h"
#include "formats/formats.h"
#include "fuzz.h"
#include "model_files.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t num_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t num_bytes) {
    llamita_error error;
    llamita_model *model = open_bytes(bytes, num_bytes, NULL, &error);
    if (model) {
        fuzz_use_model(model);
        close_bytes(model);
    } else {
        fuzz_check_error(&error);
    }
    tokenizer *t = NULL;
    error = (llamita_error){0};
    if (llama2c_read_tokenizer(bytes, num_bytes, "draft.bin", DRAFT_VOCAB, &t, &error)) {
        fuzz_check_error(&error);
    } else {
        fuzz_use_tokenizer(t);
        tokenizer_free(t);
    }
    return 0;
}

#ifdef FUZZ_MAIN
static buffer write_variant(uint32_t variant, field_list *fields) {
    if (variant % 4 == 3) {
        buffer tokenizer_file = llama2c_write_tokenizer();
        /* max_token_length, then scores and lengths */
        for (size_t at = 0; at + 8 <= tokenizer_file.num_bytes;) {
            fields->at[fields->count++] = at;
            at += at == 0 ? 8 : 8 + read_u32(tokenizer_file.bytes + at);
        }
        return tokenizer_file;
    }
    const int version = (int)(variant % 4);
    for (int i = 0; i < 9; i++) fields->at[fields->count++] = (size_t)i * 4;
    fields->at[fields->count++] = 36;
    fields->at[fields->count++] = 37;
    return llama2c_write(version, LLAMA2C_SIZES, variant & 4, variant & 8 ? 16 : 32);
}

int main(int argc, char **argv) { return fuzz_main(argc, argv, 10000, 16, write_variant); }
#endif
