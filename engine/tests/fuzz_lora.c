/* fuzz_lora.c: reads any bytes as an adapter of a model: each file is rejected with a one-line
 * error, or applied without accessing memory out of bounds.
 *
 * Runs with libFuzzer or standalone, like fuzz_gguf.c. */
#include "check.h"
#include "formats/formats.h"
#include "fuzz.h"
#include "model/lora.h"
#include "model_files.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t num_bytes);

/* The model that every adapter is opened for; never freed. */
static const llamita_model *the_model(void) {
    static llamita_model *model;
    llamita_error error;
    if (!model) {
        gguf_draft d;
        field_list *fields = calloc(1, sizeof *fields);
        draft_llama(&d, TENSOR_F32, false);
        buffer file = draft_write(&d, fields);
        model = open_bytes(file.bytes, file.num_bytes, NULL, &error);
        if (!model || model_pack(model, "draft.bin", NULL, NULL, &error)) abort();
        draft_free(&d);
        free_buffer(&file);
        free(fields);
    }
    return model;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t num_bytes) {
    llamita_error error;
    llamita_adapter *adapter = NULL;
    if (gguf_read_lora(the_model(), bytes, num_bytes, "draft.gguf", &adapter, &error)) {
        fuzz_check_error(&error);
        return 0;
    }
    llamita_session *session = NULL;
    const llamita_adapter_use use = {adapter, 0.1F};
    const int32_t ids[] = {1, 4, 5};
    const llamita_session_params params = {.num_threads = 1};
    CHECK(llamita_session_open(the_model(), &params, &session, &error) == LLAMITA_OK, "%s", error.message);
    CHECK(llamita_session_set_adapters(session, &use, 1, &error) == LLAMITA_OK, "%s", error.message);
    const llamita_status status = llamita_session_feed(session, ids, 3, &error);
    CHECK(status == LLAMITA_OK || status == LLAMITA_ERROR_NUMERIC, "%s", error.message);
    llamita_session_close(session);
    llamita_adapter_close(adapter);
    return 0;
}

#ifdef FUZZ_MAIN
static buffer write_variant(uint32_t variant, field_list *fields) {
    static const uint32_t types[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16, TENSOR_Q8_0};
    gguf_draft d = {.magic = "GGUF", .version = 3, .alignment = 32};
    draft_text(&d, "general.architecture", "llama");
    draft_text(&d, "general.type", "adapter");
    draft_text(&d, "adapter.type", "lora");
    draft_f32(&d, "adapter.lora.alpha", 8.0F);
    for (int l = 0; l < DRAFT_LAYERS; l++) {
        char name[DRAFT_NAME_BYTES];
        snprintf(name, sizeof name, "blk.%d.ffn_down.weight.lora_a", l);
        draft_add_tensor(&d, name, types[variant % 4], DRAFT_FFN, 2);
        snprintf(name, sizeof name, "blk.%d.ffn_down.weight.lora_b", l);
        draft_add_tensor(&d, name, TENSOR_F32, 2, DRAFT_HIDDEN);
    }
    buffer file = draft_write(&d, fields);
    draft_free(&d);
    return file;
}

int main(int argc, char **argv) { return fuzz_main(argc, argv, 5000, 4, write_variant); }
#endif
