/* fuzz_lora.c: reads any bytes as an adapter of a model: each file is rejected with a one-line
 * error, or applied, with the same logits from all kernels. */
#include "formats/formats.h"
#include "fuzz.h"
#include "model/lora.h"

/* The models that every adapter is opened for, one of each architecture; never freed. */
static llamita_model *model_of(int architecture) {
    static llamita_model *models[NUM_ARCHITECTURES];
    llamita_model **model = &models[architecture];
    llamita_error error;
    if (!*model) {
        gguf_draft *d = malloc(sizeof *d);
        if (!d) abort();
        draft_model(d, all_architectures[architecture], TENSOR_F32, false);
        buffer file = draft_write(d);
        *model = open_bytes(file.bytes, file.num_bytes, NULL, &error);
        if (!*model || pack_bytes(*model, &error)) abort();
        draft_free(d);
        free(d);
        free_buffer(&file);
    }
    return *model;
}

static void use_with(llamita_model *model, const uint8_t *bytes, size_t num_bytes) {
    llamita_error error;
    llamita_adapter *adapter = NULL;
    if (gguf_read_lora(model, bytes, num_bytes, "draft.gguf", &adapter, &error)) {
        fuzz_check_error(&error);
        return;
    }
    llamita_adapter_info info;
    llamita_adapter_get_info(adapter, &info);
    CHECK(info.rank > 0 && info.num_parameters > 0, "rank %d", info.rank);
    const llamita_adapter_use adapter_use = {adapter, 0.1F};
    float slow[DRAFT_VOCAB], fast[DRAFT_VOCAB];
    for (int kv_type = LLAMITA_KV_F16; kv_type <= LLAMITA_KV_Q8; kv_type++) {
        model->kernels = kernels_select("scalar");
        const bool finite = fuzz_use_session(model, (llamita_kv_type)kv_type, &adapter_use, slow);
        model->kernels = kernels_select(NULL);
        const bool also = fuzz_use_session(model, (llamita_kv_type)kv_type, &adapter_use, fast);
        CHECK(finite == also && (!finite || memcmp(slow, fast, sizeof slow) == 0), "KV type %d: other logits with %s",
              kv_type, kernels_name(model->kernels));
    }
    llamita_adapter_close(adapter);
}

static void use(const uint8_t *bytes, size_t num_bytes) {
    for (int i = 0; i < NUM_ARCHITECTURES; i++) use_with(model_of(i), bytes, num_bytes);
}

static buffer write_variant(uint64_t variant) {
    static const uint32_t types[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16, TENSOR_Q8_0};
    gguf_draft *d = malloc(sizeof *d);
    if (!d) abort();
    *d = (gguf_draft){.magic = "GGUF", .version = 3, .alignment = 32};
    draft_text(d, "general.architecture", all_architectures[variant >> 2 & 3]);
    draft_text(d, "general.type", "adapter");
    draft_text(d, "adapter.type", "lora");
    draft_f32(d, "adapter.lora.alpha", 8.0F);
    for (int l = 0; l < DRAFT_LAYERS; l++) {
        char name[DRAFT_NAME_BYTES];
        snprintf(name, sizeof name, "blk.%d.ffn_down.weight.lora_a", l);
        draft_add_tensor(d, name, types[variant % 4], DRAFT_FFN, 2);
        snprintf(name, sizeof name, "blk.%d.ffn_down.weight.lora_b", l);
        draft_add_tensor(d, name, TENSOR_F32, 2, DRAFT_HIDDEN);
        if (variant & 16) continue;
        snprintf(name, sizeof name, "blk.%d.attn_k.weight.lora_a", l);
        draft_add_tensor(d, name, TENSOR_F32, DRAFT_HIDDEN, 2);
        snprintf(name, sizeof name, "blk.%d.attn_k.weight.lora_b", l);
        draft_add_tensor(d, name, types[variant % 3], 2, DRAFT_KV_HEADS * DRAFT_HEAD_DIM);
    }
    buffer file = draft_write(d);
    draft_free(d);
    free(d);
    return file;
}

FUZZ_TARGET(use, write_variant, mutate_gguf, 2000)
