/* fuzz_gguf.c: reads any bytes as a GGUF model with its tokenizer: each file is rejected with a
 * one-line error, or opens and runs. */
#include "fuzz.h"

static void use(const uint8_t *bytes, size_t num_bytes) {
    llamita_error error;
    llamita_model *model = open_bytes(bytes, num_bytes, NULL, &error);
    if (model) fuzz_use_model(model);
    else fuzz_check_error(&error);
    close_bytes(model);
}

static buffer write_variant(uint64_t variant) {
    static const uint32_t types[] = {TENSOR_F32,  TENSOR_F16,  TENSOR_BF16, TENSOR_Q8_0,   TENSOR_Q4_0,
                                     TENSOR_Q4_1, TENSOR_Q5_0, TENSOR_Q5_1, TENSOR_IQ4_NL, TENSOR_MXFP4};
    gguf_draft *d = malloc(sizeof *d);
    if (!d) abort();
    draft_model(d, all_architectures[variant >> 5 & 3], types[(variant >> 8) % 10], variant & 1);
    d->version = 2 + (variant >> 1 & 1);
    if (variant & 4) draft_byte_level(d, variant & 8 ? "qwen2" : "llama-bpe");
    if (variant & 16) {
        draft_u32(d, "general.alignment", 8);
        d->alignment = 8;
        memcpy(draft_add_tensor(d, "rope_freqs.weight", TENSOR_F32, 4, 0)->data.bytes, (const float[]){1, 2, 4, 8}, 16);
    }
    buffer file = draft_write(d);
    draft_free(d);
    free(d);
    return file;
}

FUZZ_TARGET(use, write_variant, mutate_gguf, 1500)
