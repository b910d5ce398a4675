/* test_gguf.c: valid GGUF files open with the right contents, and every kind of error is rejected
 * with one line that names it. */
#include <math.h>
#include <time.h>

#include "check.h"
#include "kernels/kernels.h"
#include "model_files.h"

/* ---------------------------------------------------------------- refusals */

static void check_refused_bytes(buffer *file, const char *expected, int line) {
    llamita_error error;
    llamita_model *model = open_bytes(file->bytes, file->num_bytes, NULL, &error);
    CHECK(!model, "case of line %d: opened", line);
    CHECK(strstr(error.message, expected), "case of line %d: expected \"%s\", found \"%s\"", line, expected,
          error.message);
    CHECK(strncmp(error.message, "cannot open ", 12) == 0 && !strchr(error.message, '\n'), "case of line %d: \"%s\"",
          line, error.message);
    CHECK(error.status == LLAMITA_ERROR_FORMAT, "case of line %d: status %d", line, error.status);
    close_bytes(model);
    free_buffer(file);
}

static void check_refused(gguf_draft *d, const char *expected, int line) {
    buffer file = draft_write(d);
    check_refused_bytes(&file, expected, line);
    draft_free(d);
}

/* A valid draft d of an architecture, changed by the statements, must be rejected with this text. */
#define REFUSED_OF(architecture, expected, ...)           \
    do {                                                  \
        gguf_draft d;                                     \
        draft_model(&d, architecture, TENSOR_F32, false); \
        __VA_ARGS__;                                      \
        check_refused(&d, expected, __LINE__);            \
    } while (0)
#define REFUSED(expected, ...) REFUSED_OF("llama", expected, __VA_ARGS__)

static void test_header(void) {
    REFUSED("big-endian", strcpy(d.magic, "FUGG"));
    REFUSED("found another format", strcpy(d.magic, "GGUE"));
    REFUSED("expected 2 or 3, found 0", d.version = 0);
    REFUSED("expected 2 or 3, found 1", d.version = 1);
    REFUSED("expected 2 or 3, found 4", d.version = 4);
    REFUSED("big-endian", d.version = 0x03000000);
    REFUSED("number of tensors: expected at most 65536, found 2147483648", d.tensor_count_error = 0x80000000LL - 21);
    REFUSED("number of tensors: expected at most 65536, found 18446744073709551615", d.tensor_count_error = -22);
    REFUSED("number of keys: expected at most 65536, found 1000000", d.key_count_error = 1000000 - (int64_t)d.num_keys);
    REFUSED("number of keys: expected at most 65536, found 9223372036854775807",
            d.key_count_error = INT64_MAX - (int64_t)d.num_keys);
    REFUSED("tensor 22 of 22 runs past the end of the file",
            d.tensor_count_error = 1); /* weights read as a description */
    REFUSED("tensor output_norm.weight is missing", d.tensor_count_error = -2);
    REFUSED("tensor 1 of 21 runs past the end of the file", d.key_count_error = 1);
    REFUSED("tensor tokenizer.chat_template: expected 1 to 4 dimensions, found 8", d.key_count_error = -1);
}

static void test_keys(void) {
    REFUSED("expected a name of 1 to 65535 bytes, found 0", d.keys[3].name_length = 0);
    REFUSED("the name has a zero byte", d.keys[3].name[2] = '\0', d.keys[3].name_length = 9);
    REFUSED("key general.name occurs twice", strcpy(d.keys[3].name, "general.name"), d.keys[3].name_length = 12);
    REFUSED("expected a type of 0 to 12, found 13", d.keys[3].type = 13);
    REFUSED("expected a type of 0 to 12, found 4294967295", d.keys[3].type = UINT32_MAX);
    REFUSED("expected an array of numbers, booleans or strings, found type 9", draft_array(&d, "x", GGUF_ARRAY, 1));
    REFUSED("expected an array of numbers, booleans or strings, found type 77", draft_array(&d, "x", 77, 1));
    REFUSED("key x: expected at most 16777216 elements, found 18446744073709551615",
            draft_array(&d, "x", GGUF_U8, UINT64_MAX));
    REFUSED("runs past the end of the file", draft_array(&d, "x", GGUF_U64, 1 << 24));
    REFUSED("key x: string", draft_array(&d, "x", GGUF_STRING, 1 << 24));
    REFUSED("runs past the end of the file", put_u64(draft_set(&d, "x", GGUF_STRING), UINT64_MAX));
    REFUSED("runs past the end of the file", put_u64(draft_set(&d, "x", GGUF_STRING), UINT64_MAX - 7));
    REFUSED("key x: expected a boolean of 0 or 1, found 2", draft_bool(&d, "x", 2));
}

static void test_alignment(void) {
    REFUSED("general.alignment: expected a power of two of at least 8, found 0", draft_u32(&d, "general.alignment", 0));
    REFUSED("expected a power of two of at least 8, found 3", draft_u32(&d, "general.alignment", 3));
    REFUSED("expected a power of two of at least 8, found 4", draft_u32(&d, "general.alignment", 4));
    REFUSED("tensor token_embd.weight: expected", draft_u32(&d, "general.alignment", 0x80000000));
    REFUSED("blk.0.attn_norm.weight: expected offset 4096, found 1024", draft_u32(&d, "general.alignment", 4096));
    REFUSED("expected type u32, found string", draft_text(&d, "general.alignment", "32"));
}

static void test_tensor_descriptions(void) {
    REFUSED("expected a name of 1 to 63 bytes, found 0", d.tensors[2].name_length = 0);
    REFUSED("expected a name of 1 to 63 bytes, found 64", d.tensors[2].name_length = 64);
    REFUSED("runs past the end of the file", d.tensors[2].name_length = UINT64_MAX);
    REFUSED("tensor blk.0.attn_q.weight occurs twice", strcpy(d.tensors[3].name, "blk.0.attn_q.weight"));
    REFUSED("expected 1 to 4 dimensions, found 0", d.tensors[2].num_dimensions = 0);
    REFUSED("expected 1 to 4 dimensions, found 5", d.tensors[2].num_dimensions = 5);
    REFUSED("expected dimensions of at least 1, found 0", d.tensors[2].shape[0] = 0);
    REFUSED("expected dimensions of at least 1, found -1", d.tensors[2].shape[1] = UINT64_MAX);
    REFUSED("blk.0.attn_q.weight: expected 18446744073709551615 bytes", d.tensors[2].shape[1] = INT64_MAX);
    REFUSED("blk.0.attn_q.weight: expected 18446744073709551615 bytes", d.tensors[2].shape[0] = 1ULL << 33,
            d.tensors[2].shape[1] = 1ULL << 33);
    REFUSED("type IQ2_XXS is not supported", d.tensors[2].type = 16);
    REFUSED("expected the number of a tensor type, found 4", d.tensors[2].type = 4);
    REFUSED("found 4294967295; the file is damaged or newer", d.tensors[2].type = UINT32_MAX);
    REFUSED("expected a row length that is a multiple of 32 for type Q8_0, found 33", d.tensors[2].type = TENSOR_Q8_0,
            d.tensors[2].shape[0] = 33);
    REFUSED("blk.0.attn_q.weight: expected offset", d.tensors[2].offset_error = 1);
    REFUSED("blk.0.attn_q.weight: expected offset", d.tensors[2].offset_error = 32);
    REFUSED("blk.0.attn_q.weight: expected offset", d.tensors[2].offset_error = -32); /* overlaps the one before */
    REFUSED("blk.0.attn_q.weight: expected offset", d.tensors[2].offset_error = INT64_MAX);
}

static void test_configuration(void) {
    REFUSED("architecture: expected llama, qwen2, qwen3 or smollm3, found qwen2moe",
            draft_text(&d, "general.architecture", "qwen2moe"));
    REFUSED("architecture: expected llama, qwen2, qwen3 or smollm3, found ll?ma",
            draft_text(&d, "general.architecture", "ll\nma"));
    REFUSED("key qwen2.context_length is missing; the file is damaged or not a Qwen2 model",
            draft_text(&d, "general.architecture", "qwen2")); /* keys of "llama." are not its own */
    REFUSED("key general.architecture is missing", draft_remove(&d, "general.architecture"));
    REFUSED("key general.architecture: expected string, found u32", draft_u32(&d, "general.architecture", 1));
    REFUSED("found the first of 3 pieces of a split model; expected a name that ends in -00001-of-00003.gguf",
            draft_u32(&d, "split.count", 3));
    REFUSED("found piece 2 of 3 of a split model; open the first, whose name ends in -00001-of-00003.gguf",
            draft_u32(&d, "split.count", 3), draft_u32(&d, "split.no", 1), draft_remove(&d, "general.architecture"));
    REFUSED("split.no: expected less than split.count 3, found 3", draft_u32(&d, "split.count", 3),
            draft_u32(&d, "split.no", 3));
    REFUSED("split.count: expected 0 to 1000, found 1001", draft_u32(&d, "split.count", 1001));
    REFUSED("key llama.expert_count: expected 0, found 8; mixtures of experts are not supported",
            draft_u32(&d, "llama.expert_count", 8));
    REFUSED("sliding_window: expected 0 or at least the context of 16 tokens, found 15; sliding windows are not",
            draft_u32(&d, "llama.attention.sliding_window", 15));
    REFUSED("key llama.final_logit_softcapping: expected 0, found 30; capped logits are not supported",
            draft_f32(&d, "llama.final_logit_softcapping", 30));
    REFUSED("key llama.rope.scaling.yarn_ext_factor: expected 1, found 0.5",
            draft_f32(&d, "llama.rope.scaling.yarn_ext_factor", 0.5F));
    REFUSED("key llama.attention.causal: expected 1, found 0; models without a causal mask are not supported",
            draft_bool(&d, "llama.attention.causal", 0));
    REFUSED("key llama.attention.scale: expected 0, found 0.5; attention scales are not supported",
            draft_f32(&d, "llama.attention.scale", 0.5F));
    REFUSED("key llama.logit_scale: expected 1, found 0.5; scaled logits are not supported",
            draft_f32(&d, "llama.logit_scale", 0.5F));
    REFUSED("key llama.logit_scale: expected 1, found nan", draft_f32(&d, "llama.logit_scale", NAN));
    REFUSED("key llama.logit_scale: expected a number, found string", draft_text(&d, "llama.logit_scale", "1"));
    REFUSED("key llama.rope.scaling.attn_factor: expected 1 without yarn or longrope, found 2",
            draft_f32(&d, "llama.rope.scaling.attn_factor", 2));
    REFUSED("general.quantization_version: expected 2, found 1", draft_u32(&d, "general.quantization_version", 1),
            draft_retype_tensor(&d, "blk.1.ffn_up.weight", TENSOR_Q4_0));
    REFUSED("key llama.context_length is missing", draft_remove(&d, "llama.context_length"));
    REFUSED("key llama.context_length: expected 1 to 2147483647, found 0", draft_u32(&d, "llama.context_length", 0));
    REFUSED("key llama.context_length: expected 1 to 2147483647, found 4294967295",
            draft_u32(&d, "llama.context_length", UINT32_MAX));
    REFUSED("found 9223372036854775807", put_u64(draft_set(&d, "llama.context_length", GGUF_U64), UINT64_MAX));
    REFUSED("found -1", put_u32(draft_set(&d, "llama.context_length", GGUF_I32), UINT32_MAX));
    REFUSED("key llama.context_length: expected a whole number, found f32", draft_f32(&d, "llama.context_length", 16));
    REFUSED("key llama.block_count: expected a whole number, found array of u32",
            put_u32(draft_array(&d, "llama.block_count", GGUF_U32, 1), 2));
    REFUSED("key llama.embedding_length is missing", draft_remove(&d, "llama.embedding_length"));
    REFUSED("hidden size: expected 1 to 1048576", draft_u32(&d, "llama.embedding_length", 1u << 31 >> 1));
    REFUSED("key llama.feed_forward_length is missing", draft_remove(&d, "llama.feed_forward_length"));
    REFUSED("feed-forward size: expected 1 to", draft_u32(&d, "llama.feed_forward_length", 1 << 30));
    REFUSED("key llama.block_count is missing", draft_remove(&d, "llama.block_count"));
    REFUSED("number of layers: expected 1 to 4096, found 1000000", draft_u32(&d, "llama.block_count", 1000000));
    REFUSED("expected at most the file's", draft_u32(&d, "llama.block_count", 4096));
    REFUSED("tensor blk.2.attn_norm.weight is missing", draft_u32(&d, "llama.block_count", 3));
    REFUSED("tensor blk.1.attn_k.weight: expected no such tensor", draft_u32(&d, "llama.block_count", 1));
}

static void test_heads(void) {
    REFUSED("key llama.attention.head_count is missing", draft_remove(&d, "llama.attention.head_count"));
    REFUSED("head_count: expected 1 to", draft_u32(&d, "llama.attention.head_count", 0));
    REFUSED("expected a divisor of the hidden size 32, found 5", draft_u32(&d, "llama.attention.head_count", 5));
    REFUSED("head_count_kv: expected 1 to", draft_u32(&d, "llama.attention.head_count_kv", 0));
    REFUSED("head_count_kv: expected the same number for every layer, found 2 and 4",
            put_u64(draft_array(&d, "llama.attention.head_count_kv", GGUF_I32, 2), 2 | 4ULL << 32));
    REFUSED("head_count_kv: expected whole numbers, found array of f32",
            put_f32(draft_array(&d, "llama.attention.head_count_kv", GGUF_F32, 1), 2));
    REFUSED("head_count_kv: expected whole numbers, found array of string",
            put_string(draft_array(&d, "llama.attention.head_count_kv", GGUF_STRING, 1), "2"));
    REFUSED("head_count_kv: expected a number per layer, found an empty array",
            draft_array(&d, "llama.attention.head_count_kv", GGUF_I32, 0));
    REFUSED("head_count_kv: expected 1 to 2147483647, found 0",
            put_u64(draft_array(&d, "llama.attention.head_count_kv", GGUF_I32, 2), 0));
    REFUSED("expected a divisor of 4 attention heads, found 3", draft_u32(&d, "llama.attention.head_count_kv", 3));
    REFUSED("expected a divisor of 4 attention heads, found 8", draft_u32(&d, "llama.attention.head_count_kv", 8));
    REFUSED("head size: expected an even number, found 1", draft_u32(&d, "llama.attention.head_count", 32),
            draft_u32(&d, "llama.attention.head_count_kv", 32));
    REFUSED("head size: expected 1 to 16384, found 20000", draft_u32(&d, "llama.attention.key_length", 20000),
            draft_u32(&d, "llama.attention.value_length", 20000));
    REFUSED("value_length: expected the head size 8, found 4", draft_u32(&d, "llama.attention.value_length", 4));
    REFUSED("dimension_count: expected the head size 8, found 4", draft_u32(&d, "llama.rope.dimension_count", 4));
    REFUSED("tensor blk.0.attn_q.weight: expected shape [32, 64], found [32, 32]; the file is damaged or not a Llama",
            draft_u32(&d, "llama.attention.key_length", 16));
}

static void test_numbers(void) {
    const char *epsilon = "llama.attention.layer_norm_rms_epsilon", *theta = "llama.rope.freq_base";
    REFUSED("layer_norm_rms_epsilon is missing", draft_remove(&d, epsilon));
    REFUSED("layer_norm_rms_epsilon: expected 1e-30 to 0.5, found 0", draft_f32(&d, epsilon, 0));
    REFUSED("layer_norm_rms_epsilon: expected 1e-30 to 0.5, found -1", draft_f32(&d, epsilon, -1));
    REFUSED("layer_norm_rms_epsilon: expected 1e-30 to 0.5, found 2", draft_f32(&d, epsilon, 2));
    REFUSED("expected a finite number, found", draft_f32(&d, epsilon, NAN));
    REFUSED("expected f32, found u32", draft_u32(&d, epsilon, 1));
    REFUSED("freq_base: expected 1 to 1e+30, found 0", draft_f32(&d, theta, 0));
    REFUSED("freq_base: expected 1 to 1e+30, found -5", draft_f32(&d, theta, -5));
    REFUSED("freq_base: expected a finite number, found inf", draft_f32(&d, theta, INFINITY));
    const char *type = "llama.rope.scaling.type", *factor = "llama.rope.scaling.factor";
    REFUSED("scaling.type: expected none, linear, yarn or longrope, found dynamic", draft_text(&d, type, "dynamic"));
    REFUSED("scaling.factor: expected 0 to 1e+30, found -2", draft_f32(&d, factor, -2));
    REFUSED("scaling.factor: expected at least 1 for yarn, found 0.5", draft_text(&d, type, "yarn"),
            draft_f32(&d, factor, 0.5F));
    REFUSED("yarn: expected beta_fast above beta_slow and an original context in which some pairs turn that often, "
            "found 0.001, 1 and 1000 tokens",
            draft_text(&d, type, "yarn"), draft_u32(&d, "llama.rope.scaling.original_context_length", 1000),
            draft_f32(&d, "llama.rope.scaling.yarn_beta_fast", 1e-3F));
    REFUSED("yarn_beta_fast: expected 1e-06 to 1e+06, found 0", draft_text(&d, type, "yarn"),
            draft_f32(&d, "llama.rope.scaling.yarn_beta_fast", 0));
    REFUSED("tensor rope_factors_short.weight is missing", draft_text(&d, type, "longrope"));
    REFUSED("tensor rope_factors_long.weight is missing", draft_text(&d, type, "longrope"),
            draft_add_tensor(&d, "rope_factors_short.weight", 0, 4, 0),
            memcpy(draft_find_tensor(&d, "rope_factors_short.weight")->data.bytes, (float[]){1, 1, 1, 1}, 16));
    REFUSED("tensor rope_factors_long.weight: expected no such tensor",
            draft_add_tensor(&d, "rope_factors_long.weight", 0, 4, 0));
    REFUSED("scaling.factor: expected a finite number", draft_f32(&d, "llama.rope.scaling.factor", NAN));
    REFUSED("RoPE angle of pair 0: expected a finite number", draft_f32(&d, "llama.rope.scaling.factor", 1e-45F));
    REFUSED("rope_freqs.weight: expected shape [4], found [8]", draft_add_tensor(&d, "rope_freqs.weight", 0, 8, 0));
    REFUSED("rope_freqs.weight: expected positive numbers, found 0",
            memset(draft_add_tensor(&d, "rope_freqs.weight", 0, 4, 0)->data.bytes, 0, 16));
}

static void set_float(gguf_draft *d, const char *name, size_t index, float value) {
    memcpy(draft_find_tensor(d, name)->data.bytes + 4 * index, &value, sizeof value);
}

static void test_tensors(void) {
    static const char *const matrices[] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                           "ffn_gate", "ffn_up", "ffn_down"};
    for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) {
        char name[DRAFT_NAME_BYTES], missing[DRAFT_NAME_BYTES + 32], shape[DRAFT_NAME_BYTES + 32];
        snprintf(name, sizeof name, "blk.1.%s.weight", matrices[i]);
        snprintf(missing, sizeof missing, "tensor %s is missing", name);
        snprintf(shape, sizeof shape, "tensor %s: expected shape [", name);
        REFUSED(missing, draft_remove_tensor(&d, name));
        REFUSED(shape, draft_find_tensor(&d, name)->shape[1] *= 2, draft_fill_tensor(draft_find_tensor(&d, name)));
        REFUSED(shape, draft_find_tensor(&d, name)->shape[0] *= 2, draft_fill_tensor(draft_find_tensor(&d, name)));
        REFUSED(shape, draft_find_tensor(&d, name)->num_dimensions = 3, draft_find_tensor(&d, name)->shape[2] = 2,
                draft_fill_tensor(draft_find_tensor(&d, name)));
        REFUSED(shape, draft_find_tensor(&d, name)->num_dimensions = 1, draft_fill_tensor(draft_find_tensor(&d, name)));
    }
    static const char *const norms[] = {"blk.0.attn_norm.weight", "blk.1.ffn_norm.weight", "output_norm.weight"};
    for (size_t i = 0; i < sizeof norms / sizeof norms[0]; i++) {
        char missing[DRAFT_NAME_BYTES + 32], finite[DRAFT_NAME_BYTES + 64];
        snprintf(missing, sizeof missing, "tensor %s is missing", norms[i]);
        snprintf(finite, sizeof finite, "tensor %s: expected finite numbers", norms[i]);
        REFUSED(missing, draft_remove_tensor(&d, norms[i]));
        REFUSED(finite, set_float(&d, norms[i], 31, NAN));
        REFUSED(finite, set_float(&d, norms[i], 0, -INFINITY));
        REFUSED("expected type F32, F16 or BF16, found a quantized one",
                draft_retype_tensor(&d, norms[i], TENSOR_Q8_0));
    }
    REFUSED("tensor token_embd.weight is missing", draft_remove_tensor(&d, "token_embd.weight"));
    REFUSED("tensor output.weight: expected shape [32, 8], found [32, 4]",
            draft_find_tensor(&d, "output.weight")->shape[1] = 4,
            draft_fill_tensor(draft_find_tensor(&d, "output.weight")));
    REFUSED("tensor blk.0.attn_q.bias: expected no such tensor in a Llama of 2 layers",
            draft_add_tensor(&d, "blk.0.attn_q.bias", TENSOR_F32, 32, 0));
    REFUSED("tensor token_embd.weight: expected shape [64, 8], found [32, 8]",
            draft_u32(&d, "llama.embedding_length", 64));
    REFUSED("tensor token_embd.weight is missing",
            while (d.num_tensors > 1) draft_remove_tensor(&d, d.tensors[0].name));
    REFUSED("found a tokenizer without tensors", while (d.num_tensors) draft_remove_tensor(&d, d.tensors[0].name));
}

/* ---------------------------------------------------------------- tokenizer keys */

static void test_tokenizer_refusals(void) {
    REFUSED("tokenizer.ggml.model: expected llama or gpt2, found bert", draft_text(&d, "tokenizer.ggml.model", "bert"));
    REFUSED("tokenizer.ggml.model: expected string, found u32", draft_u32(&d, "tokenizer.ggml.model", 1));
    REFUSED("key tokenizer.ggml.tokens is missing", draft_remove(&d, "tokenizer.ggml.tokens"));
    REFUSED("tokens: expected array of string, found array of u32",
            draft_array(&d, "tokenizer.ggml.tokens", GGUF_U32, 0));
    REFUSED("tokens: expected 1 to 1048576 tokens, found 0", draft_array(&d, "tokenizer.ggml.tokens", GGUF_STRING, 0));
    REFUSED("tokenizer in the file: expected the 8 tokens of the model's vocabulary, found 7",
            draft_strings(&d, "tokenizer.ggml.tokens", DRAFT_TOKENS, 7),
            put_zeros(draft_array(&d, "tokenizer.ggml.scores", GGUF_F32, 7), 28),
            draft_remove(&d, "tokenizer.ggml.token_type"));
    REFUSED("key tokenizer.ggml.scores is missing", draft_remove(&d, "tokenizer.ggml.scores"));
    REFUSED("scores: expected 8 elements, one per token, found 7",
            put_zeros(draft_array(&d, "tokenizer.ggml.scores", GGUF_F32, 7), 28));
    REFUSED("scores: expected array of f32, found array of i32",
            put_zeros(draft_array(&d, "tokenizer.ggml.scores", GGUF_I32, 8), 32));
    REFUSED("scores: token 7: expected a finite number",
            put_weights(draft_array(&d, "tokenizer.ggml.scores", GGUF_F32, 8), 7, 1),
            put_f32(&draft_find(&d, "tokenizer.ggml.scores")->value, NAN));
    REFUSED("token_type: expected 8 elements, one per token, found 0",
            draft_array(&d, "tokenizer.ggml.token_type", GGUF_I32, 0));
    REFUSED("token_type: token 0: expected a type of 1 to 6, found 0",
            put_zeros(draft_array(&d, "tokenizer.ggml.token_type", GGUF_I32, 8), 32));
    REFUSED("bos_token_id: expected 0 to 7, found 8", draft_u32(&d, "tokenizer.ggml.bos_token_id", 8));
    REFUSED("eos_token_id: expected 0 to 7, found 4294967294",
            draft_u32(&d, "tokenizer.ggml.eos_token_id", UINT32_MAX - 1));
    REFUSED("eot_token_id: expected 0 to 7, found 9", draft_u32(&d, "tokenizer.ggml.eot_token_id", 9));
    REFUSED("unknown_token_id: expected 0 to 7, found -2",
            put_u32(draft_set(&d, "tokenizer.ggml.unknown_token_id", GGUF_I32), UINT32_MAX - 1));
    REFUSED("add_bos_token: expected bool, found u32", draft_u32(&d, "tokenizer.ggml.add_bos_token", 1));
    REFUSED("llamita.system_prompt: expected string, found bool", draft_bool(&d, "llamita.system_prompt", 1));
    REFUSED("llamita.system_prompt: expected at most 262144 bytes",
            put_u64(draft_set(&d, "llamita.system_prompt", GGUF_STRING), 1 << 20),
            put_zeros(&draft_find(&d, "llamita.system_prompt")->value, 1 << 20));
    REFUSED("chat_template: expected string, found bool", draft_bool(&d, "tokenizer.chat_template", 1));
    REFUSED("chat_template: expected at most", put_u64(draft_set(&d, "tokenizer.chat_template", GGUF_STRING), 3),
            put_bytes(&draft_find(&d, "tokenizer.chat_template")->value, "a\0b", 3));
    REFUSED("chat_template: expected at most 1048576 bytes",
            put_u64(draft_set(&d, "tokenizer.chat_template", GGUF_STRING), 2 << 20),
            put_zeros(&draft_find(&d, "tokenizer.chat_template")->value, 2 << 20));
    REFUSED("key tokenizer.ggml.pre: expected llama-bpe, qwen2, gpt-2, smollm, gpt-4o, tekken, dbrx, default or a name "
            "that llama.cpp has for one of these, found deepseek-v3; if you know",
            draft_byte_level(&d, "deepseek-v3"));
    REFUSED("found none; if you know how the tokenizer splits text, say it with --pre NAME (Llama 3: llama-bpe)",
            draft_byte_level(&d, "gpt-2"), draft_remove(&d, "tokenizer.ggml.pre"));
    REFUSED("key tokenizer.ggml.merges is missing", draft_byte_level(&d, "gpt-2"),
            draft_remove(&d, "tokenizer.ggml.merges"));
    REFUSED("merges: expected array of string, found u32", draft_byte_level(&d, "gpt-2"),
            draft_u32(&d, "tokenizer.ggml.merges", 1));
    REFUSED("bos_token_id: expected an id, because add_bos_token is true", draft_byte_level(&d, "gpt-2"),
            draft_bool(&d, "tokenizer.ggml.add_bos_token", 1));
}

/* ---------------------------------------------------------------- valid files */

static llamita_model *open_draft(gguf_draft *d, int line) {
    buffer file = draft_write(d);
    llamita_error error;
    llamita_model *model = open_bytes(file.bytes, file.num_bytes, NULL, &error);
    CHECK(model, "case of line %d: %s", line, error.message);
    free_buffer(&file);
    draft_free(d);
    return model;
}

static void test_opens(void) {
    static const struct {
        uint32_t type;
        const char *name;
        double bytes_per_weight;
    } types[] = {
        {TENSOR_F32, "F32", 4.0},           {TENSOR_F16, "F16", 2.0},           {TENSOR_BF16, "BF16", 2.0},
        {TENSOR_Q8_0, "Q8_0", 34.0 / 32.0}, {TENSOR_Q4_0, "Q4_0", 18.0 / 32.0}, {TENSOR_Q4_1, "Q4_1", 20.0 / 32.0},
    };
    const int64_t layer_weights = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32, norms = 5 * 32;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        for (int tied = 0; tied < 2; tied++) {
            gguf_draft d;
            draft_llama(&d, types[i].type, tied);
            d.version = 2 + (uint32_t)tied;
            llamita_model *model = open_draft(&d, __LINE__);
            if (!model) continue;
            llamita_model_info info;
            llamita_model_get_info(model, &info);
            const int64_t matrices = 2 * layer_weights + (tied ? 1 : 2) * 8 * 32;
            CHECK(strcmp(info.weight_type, types[i].name) == 0, "%s", info.weight_type);
            CHECK(strcmp(info.format, tied ? "GGUF v3" : "GGUF v2") == 0, "%s", info.format);
            CHECK(info.num_parameters == matrices + norms, "%d", (int)info.num_parameters);
            CHECK(info.weight_bytes == (int64_t)((double)matrices * types[i].bytes_per_weight) + 4 * norms, "%d",
                  (int)info.weight_bytes);
            CHECK(info.decode_bytes ==
                      (int64_t)((2 * layer_weights + 8 * 32 + 32) * types[i].bytes_per_weight) + 4 * norms,
                  "%d", (int)info.decode_bytes);
            CHECK(info.tied_embeddings == (tied == 1) &&
                      (model->output.data == model->token_embedding.data) == (tied == 1),
                  "tied %d", info.tied_embeddings);
            CHECK(info.hidden_size == 32 && info.intermediate_size == 64 && info.num_hidden_layers == 2 &&
                      info.num_attention_heads == 4 && info.num_key_value_heads == 2 && info.head_dim == 8 &&
                      info.vocab_size == 8 && info.context_tokens == 16,
                  "sizes");
            CHECK(info.rope_theta == 10000.0F && info.rms_norm_eps == 1e-5F, "%g %g", info.rope_theta,
                  info.rms_norm_eps);
            CHECK(info.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2, "%d", (int)info.kv_bytes_per_token);
            CHECK(info.has_tokenizer && info.add_bos && info.bos_id == 1 && info.eos_id == 2, "tokenizer");
            CHECK(strcmp(info.name, "a draft") == 0 && strcmp(info.architecture, "llama") == 0, "%s", info.name);
            CHECK(strcmp(llamita_model_chat_template(model), "{{ messages }}") == 0, "template");
            CHECK(model->layers[1].key.num_rows == 16 && model->layers[1].key.row_length == 32, "key");
            CHECK(model->layers[0].ffn_down.row_bytes == (size_t)(64 * types[i].bytes_per_weight), "row bytes");
            CHECK(sum_model(model) != 0, "weights");
            close_bytes(model);
        }
    }
}

static void test_optional_keys(void) {
    gguf_draft d;
    draft_llama(&d, TENSOR_F32, true);
    draft_remove(&d, "llama.rope.freq_base");
    draft_remove(&d, "general.name");
    draft_remove(&d, "general.quantization_version");
    draft_remove(&d, "tokenizer.ggml.model");
    draft_remove(&d, "tokenizer.chat_template");
    /* An integer of another width. */
    put_u64(draft_set(&d, "llama.embedding_length", GGUF_U64), 32);
    draft_u32(&d, "general.alignment", 64);
    d.alignment = 64;
    llamita_model *model = open_draft(&d, __LINE__);
    if (model) {
        CHECK(model->info.rope_theta == 10000.0F, "%g", model->info.rope_theta);
        CHECK(!model->info.has_tokenizer && model->info.bos_id == -1, "tokenizer");
        CHECK(!llamita_model_chat_template(model) && !model->info.name[0], "template or name");
        close_bytes(model);
    }
    draft_llama(&d, TENSOR_F32, true); /* heads larger than hidden size / heads */
    draft_u32(&d, "llama.attention.key_length", 16);
    draft_u32(&d, "llama.attention.value_length", 16);
    draft_u32(&d, "llama.rope.dimension_count", 16);
    for (size_t i = 0; i < d.num_tensors; i++) {
        draft_tensor *t = &d.tensors[i];
        if (strstr(t->name, "attn_") && !strstr(t->name, "norm")) {
            t->shape[strstr(t->name, "output") ? 0 : 1] *= 2;
            draft_fill_tensor(t);
        }
    }
    model = open_draft(&d, __LINE__);
    CHECK(!model || (model->info.head_dim == 16 && model->layers[0].attention_output.row_length == 64), "head size");
    close_bytes(model);
}

/* The row of a file that is packed as this row of heads of 8. */
static int64_t row_in_file(bool two_halves, int64_t row) {
    static const int64_t halves[DRAFT_HEAD_DIM] = {0, 4, 1, 5, 2, 6, 3, 7};
    return two_halves ? row / DRAFT_HEAD_DIM * DRAFT_HEAD_DIM + halves[row % DRAFT_HEAD_DIM] : row;
}

static void check_rows(gguf_draft *d, const char *name, const tensor *t, bool two_halves) {
    const float *stored = (const float *)(const void *)draft_find_tensor(d, name)->data.bytes, *packed = t->panels;
    for (int64_t row = 0; row < t->num_rows; row++)
        for (int64_t k = 0; k < t->row_length; k++)
            CHECK(packed[panel_index((size_t)row, (size_t)k, (size_t)t->row_length)] ==
                      stored[row_in_file(two_halves, row) * t->row_length + k],
                  "%s: row %d", name, (int)row);
}

static void check_vector(gguf_draft *d, const char *name, const float *values, int64_t length, bool two_halves) {
    const draft_tensor *t = draft_find_tensor(d, name);
    CHECK((values != NULL) == (t != NULL), "%s", name);
    for (int64_t i = 0; values && t && i < length; i++)
        CHECK(values[i] == ((const float *)(const void *)t->data.bytes)[row_in_file(two_halves, i)], "%s: number %d",
              name, (int)i);
}

/* Rows of q and k are packed in the order of Llama's, and so are their biases and norms. */
static void test_architectures(void) {
    for (int i = 0; i < NUM_ARCHITECTURES; i++) {
        const char *architecture = all_architectures[i];
        const bool halves = strncmp(architecture, "qwen", 4) == 0;
        gguf_draft d;
        draft_model(&d, architecture, TENSOR_F32, false);
        draft_u32(&d, draft_key_of(architecture, "rope.dimension_count"), DRAFT_HEAD_DIM);
        draft_u32(&d, draft_key_of(i == 0 ? "qwen2" : "llama", "context_length"), 7); /* not its own */
        int64_t num_numbers = 0;
        for (size_t t = 0; t < d.num_tensors; t++) num_numbers += (int64_t)d.tensors[t].data.num_bytes / 4;
        buffer file = draft_write(&d);
        llamita_error error;
        llamita_model *model = open_bytes(file.bytes, file.num_bytes, NULL, &error);
        CHECK(model && !pack_bytes(model, &error), "%s: %s", architecture, error.message);
        free_buffer(&file);
        if (!model) continue;
        const llamita_model_info *info = &model->info;
        CHECK(strcmp(info->architecture, architecture) == 0 && info->context_tokens == DRAFT_CONTEXT, "%s",
              info->architecture);
        CHECK(info->num_parameters == num_numbers && info->weight_bytes == 4 * num_numbers, "%s: %d parameters",
              architecture, (int)info->num_parameters);
        CHECK(info->decode_bytes == 4 * (num_numbers - (DRAFT_VOCAB - 1) * DRAFT_HIDDEN), "%s: %d bytes of a token",
              architecture, (int)info->decode_bytes);
        const layer *l = &model->layers[1];
        check_rows(&d, "blk.1.attn_q.weight", &l->query, halves);
        check_rows(&d, "blk.1.attn_k.weight", &l->key, halves);
        check_rows(&d, "blk.1.attn_v.weight", &l->value, false);
        check_rows(&d, "blk.1.attn_output.weight", &l->attention_output, false);
        check_vector(&d, "blk.1.attn_q.bias", l->query_bias, l->query.num_rows, halves);
        check_vector(&d, "blk.1.attn_k.bias", l->key_bias, l->key.num_rows, halves);
        check_vector(&d, "blk.1.attn_v.bias", l->value_bias, l->value.num_rows, false);
        check_vector(&d, "blk.1.attn_q_norm.weight", l->query_norm, DRAFT_HEAD_DIM, halves);
        check_vector(&d, "blk.1.attn_k_norm.weight", l->key_norm, DRAFT_HEAD_DIM, halves);
        CHECK(!l->no_rope, "%s: layer 2 without RoPE", architecture);
        close_bytes(model);
        draft_free(&d);
    }
}

/* smollm3: every fourth layer is without RoPE. */
static void test_layers_without_rope(void) {
    gguf_draft d;
    draft_model(&d, "smollm3", TENSOR_F32, true);
    draft_u32(&d, "smollm3.block_count", 5);
    const size_t num_tensors = d.num_tensors;
    for (int l = DRAFT_LAYERS; l < 5; l++)
        for (size_t i = 0; i < num_tensors; i++) {
            const draft_tensor t = d.tensors[i];
            char name[DRAFT_NAME_BYTES];
            if (strncmp(t.name, "blk.0.", 6) != 0) continue;
            snprintf(name, sizeof name, "blk.%d.%.64s", l, t.name + 6);
            draft_add_tensor(&d, name, t.type, t.shape[0], t.shape[1]);
        }
    llamita_model *model = open_draft(&d, __LINE__);
    for (int l = 0; model && l < 5; l++) CHECK(model->layers[l].no_rope == (l == 3), "layer %d", l);
    close_bytes(model);
}

static void test_refused_architectures(void) {
    static const char *const biases[] = {"blk.0.attn_q.bias", "blk.1.attn_k.bias", "blk.1.attn_v.bias"};
    static const char *const norms[] = {"blk.0.attn_q_norm.weight", "blk.1.attn_k_norm.weight"};
    for (int i = 0; i < 5; i++) {
        const char *architecture = i < 3 ? "qwen2" : "qwen3", *other = i < 3 ? "qwen3" : "qwen2",
                   *name = i < 3 ? biases[i] : norms[i - 3];
        char missing[128], finite[128], unknown[128], shape[128];
        snprintf(missing, sizeof missing, "tensor %s is missing; the file is damaged or not a Qwen%d model", name,
                 i < 3 ? 2 : 3);
        snprintf(finite, sizeof finite, "tensor %s: expected finite numbers, found nan at position 5", name);
        snprintf(unknown, sizeof unknown, "tensor %s: expected no such tensor in a", name);
        snprintf(shape, sizeof shape, "tensor %s: expected shape [%d], found [4]", name, i == 0 ? 32 : i < 3 ? 16 : 8);
        REFUSED_OF(architecture, missing, draft_remove_tensor(&d, name));
        REFUSED_OF(architecture, finite, set_float(&d, name, 5, NAN));
        REFUSED_OF(architecture, shape, draft_find_tensor(&d, name)->shape[0] = 4,
                   draft_fill_tensor(draft_find_tensor(&d, name)));
        REFUSED_OF(other, unknown, draft_add_tensor(&d, name, TENSOR_F32, 8, 0));
        REFUSED_OF("llama", unknown, draft_add_tensor(&d, name, TENSOR_F32, 8, 0));
        REFUSED_OF("smollm3", unknown, draft_add_tensor(&d, name, TENSOR_F32, 8, 0));
    }
    REFUSED_OF("qwen2", "tensor blk.0.attn_q.bias: expected type F32, F16 or BF16, found a quantized one",
               draft_retype_tensor(&d, "blk.0.attn_q.bias", TENSOR_Q8_0));
    REFUSED_OF("qwen2", "key qwen2.expert_count: expected 0, found 8; mixtures of experts",
               draft_u32(&d, "qwen2.expert_count", 8));
    REFUSED_OF("qwen3", "key qwen3.attention.sliding_window: expected 0 or at least",
               draft_u32(&d, "qwen3.attention.sliding_window", 8));
    REFUSED_OF("smollm3", "key smollm3.block_count: expected at most the file's",
               draft_u32(&d, "smollm3.block_count", 4000));
    REFUSED_OF("smollm3", "tensor blk.0.attn_output.bias: expected no such tensor in a SmolLM3 of 2 layers",
               draft_add_tensor(&d, "blk.0.attn_output.bias", TENSOR_F32, 32, 0));
}

/* Files of other converters, which llama.cpp reads. */
static void test_harmless_variants(void) {
    gguf_draft d;
    draft_llama(&d, TENSOR_F32, true);
    put_u64(draft_array(&d, "llama.attention.head_count_kv", GGUF_I32, 2), 2 | 2ULL << 32);
    draft_u32(&d, "llama.vocab_size", 1000);
    draft_u32(&d, "llama.expert_count", 0);
    draft_u32(&d, "llama.attention.sliding_window", 0);
    draft_bool(&d, "llama.attention.causal", 1);
    draft_f32(&d, "llama.attention.scale", 0);
    draft_f32(&d, "llama.logit_scale", 1);
    draft_u32(&d, "tokenizer.ggml.eos_token_id", UINT32_MAX); /* none, or -1 */
    put_u32(draft_set(&d, "tokenizer.ggml.eot_token_id", GGUF_I32), UINT32_MAX);
    draft_u32(&d, "tokenizer.ggml.padding_token_id", 1000);
    buffer file = draft_write(&d);
    put_zeros(&file, 1000); /* after the last tensor */
    llamita_error error;
    llamita_model *model = open_bytes(file.bytes, file.num_bytes, NULL, &error);
    CHECK(model, "%s", error.message);
    if (model) {
        CHECK(model->info.num_key_value_heads == 2 && model->info.vocab_size == 8, "sizes");
        CHECK(model->info.bos_id == 1 && model->info.eos_id == -1, "eos %d", model->info.eos_id);
        CHECK(tokenizer_ends(model->tokenizer, 2), "</s> ends a text by its name");
        CHECK(sum_model(model) != 0, "weights");
    }
    close_bytes(model);
    free_buffer(&file);
    draft_free(&d);
}

static void test_converted_norms(void) {
    const uint32_t types[] = {TENSOR_F16, TENSOR_BF16};
    for (int i = 0; i < 2; i++) {
        gguf_draft d;
        draft_llama(&d, TENSOR_F32, true);
        draft_retype_tensor(&d, "blk.0.attn_norm.weight", types[i]); /* 0x3C00 each */
        llamita_model *model = open_draft(&d, __LINE__);
        for (int k = 0; model && k < 32; k++) {
            float expected = types[i] == TENSOR_F16 ? 1.0F : 0.0078125F;
            CHECK(model->layers[0].attention_norm[k] == expected, "%g", (double)model->layers[0].attention_norm[k]);
        }
        close_bytes(model);
    }
    REFUSED("expected finite numbers, found inf", draft_retype_tensor(&d, "output_norm.weight", TENSOR_F16),
            draft_find_tensor(&d, "output_norm.weight")->data.bytes[1] = 0x7C);
}

static void check_rope(gguf_draft *d, const float expected[4], int line) {
    llamita_model *model = open_draft(d, line);
    for (int i = 0; model && i < 4; i++) {
        CHECK(model->rope_frequency[i] == expected[i], "case of line %d: pair %d: %.9g, not %.9g", line, i,
              (double)model->rope_frequency[i], (double)expected[i]);
    }
    close_bytes(model);
}

static void test_rope(void) {
    gguf_draft d;
    draft_llama(&d, TENSOR_F32, true);
    check_rope(&d, (const float[]){1.0F, 0.1F, 0.01F, 0.001F}, __LINE__);
    draft_llama(&d, TENSOR_F32, true);
    draft_text(&d, "llama.rope.scaling.type", "linear");
    draft_f32(&d, "llama.rope.scaling.factor", 4.0F);
    check_rope(&d, (const float[]){0.25F, 0.025F, 0.0025F, 0.00025F}, __LINE__);
    draft_llama(&d, TENSOR_F32, true);
    draft_f32(&d, "llama.rope.scale_linear", 4.0F); /* the older key, no type */
    check_rope(&d, (const float[]){0.25F, 0.025F, 0.0025F, 0.00025F}, __LINE__);
    draft_llama(&d, TENSOR_F32, true);
    draft_f32(&d, "llama.rope.scaling.factor", 4.0F); /* no type */
    check_rope(&d, (const float[]){0.25F, 0.025F, 0.0025F, 0.00025F}, __LINE__);
    draft_llama(&d, TENSOR_F32, true);
    draft_text(&d, "llama.rope.scaling.type", "linear");
    draft_f32(&d, "llama.rope.scale_linear", 4.0F); /* the older key alone */
    check_rope(&d, (const float[]){0.25F, 0.025F, 0.0025F, 0.00025F}, __LINE__);
    draft_llama(&d, TENSOR_F32, true);
    draft_f32(&d, "llama.rope.scaling.factor", 0.0F); /* none, whatever the older key says */
    draft_f32(&d, "llama.rope.scale_linear", 4.0F);
    check_rope(&d, (const float[]){1.0F, 0.1F, 0.01F, 0.001F}, __LINE__);
    draft_llama(&d, TENSOR_F32, true);
    draft_text(&d, "llama.rope.scaling.type", "none");
    draft_f32(&d, "llama.rope.scale_linear", 4.0F);
    check_rope(&d, (const float[]){1.0F, 0.1F, 0.01F, 0.001F}, __LINE__);
    draft_llama(&d, TENSOR_F32, true);
    draft_text(&d, "llama.rope.scaling.type", "none");
    draft_f32(&d, "llama.rope.scaling.factor", 4.0F);
    check_rope(&d, (const float[]){1.0F, 0.1F, 0.01F, 0.001F}, __LINE__);
    draft_llama(&d, TENSOR_F32, true);
    draft_tensor *divisors = draft_add_tensor(&d, "rope_freqs.weight", TENSOR_F32, 4, 0);
    memcpy(divisors->data.bytes, (const float[]){1.0F, 2.0F, 4.0F, 8.0F}, 16);
    check_rope(&d, (const float[]){1.0F, 0.05F, 0.0025F, 0.000125F}, __LINE__);
}

static void test_lists(void) {
    llamita_gguf_key_info key = {0};
    llamita_pre_tokenizer_info pre = {0};
    size_t num_keys = 0, num_names = 0;
    bool scale = false, smaug = false;
    for (; llamita_gguf_key(num_keys, &key); num_keys++) {
        CHECK(key.name && key.kind && key.use && key.feature && key.low <= key.high, "key %zu", num_keys);
        scale |= strcmp(key.name, "llama.logit_scale") == 0 && strcmp(key.use, "fixed") == 0 && key.fallback == 1;
    }
    for (; llamita_pre_tokenizer(num_names, &pre); num_names++)
        smaug |= strcmp(pre.name, "smaug-bpe") == 0 && strcmp(pre.written, "dbrx") == 0 && !pre.ignore_merges;
    CHECK(num_keys > 60 && scale && num_names > 20 && smaug, "%zu keys, %zu names", num_keys, num_names);
}

static void test_yarn(void) {
    gguf_draft d;
    draft_llama(&d, TENSOR_F32, true);
    draft_text(&d, "llama.rope.scaling.type", "yarn");
    draft_f32(&d, "llama.rope.scaling.factor", 4.0F);
    draft_u32(&d, "llama.rope.scaling.original_context_length", 1000); /* pairs 0 to 3 are mixed */
    draft_f32(&d, "llama.rope.scaling.attn_factor", 2.0F);
    buffer file = draft_write(&d);
    llamita_error error;
    llamita_model *model = open_bytes(file.bytes, file.num_bytes, NULL, &error);
    CHECK(model && fabsf(model->rope_attention_factor - 2.0F * 1.1386294F) < 1e-6F, "%s", error.message);
    close_bytes(model);
    free_buffer(&file);
    check_rope(&d, (const float[]){1.0F, 0.075F, 0.005F, 0.00025F}, __LINE__);
}

static void test_longrope(void) {
    gguf_draft d;
    draft_llama(&d, TENSOR_F32, true);
    draft_text(&d, "llama.rope.scaling.type", "longrope");
    draft_u32(&d, "llama.rope.scaling.original_context_length", 8);
    draft_f32(&d, "llama.rope.scaling.attn_factor", 1.25F);
    draft_tensor *factors = draft_add_tensor(&d, "rope_factors_short.weight", TENSOR_F32, 4, 0);
    memcpy(factors->data.bytes, (const float[]){1.0F, 2.0F, 4.0F, 8.0F}, 16);
    factors = draft_add_tensor(&d, "rope_factors_long.weight", TENSOR_F32, 4, 0);
    memcpy(factors->data.bytes, (const float[]){2.0F, 4.0F, 8.0F, 16.0F}, 16);
    llamita_model *model = open_draft(&d, __LINE__);
    for (int i = 0; model && i < 4; i++) {
        CHECK(model->rope_frequency[i] == 2.0F * model->rope_long_frequency[i], "pair %d", i);
        CHECK(fabsf(model->rope_frequency[i] * (float)(1 << i) / powf(10.0F, (float)-i) - 1.0F) < 1e-6F, "pair %d", i);
    }
    CHECK(!model || (model->rope_short_context == 8 && model->rope_attention_factor == 1.25F), "longrope");
    close_bytes(model);
}

static void test_byte_level(void) {
    static const struct {
        const char *pre;
        bool add_bos;
    } splits[] = {{"qwen2", false},  {"gpt-2", false},   {"smollm", false},    {"llama-bpe", true},
                  {"llama3", true},  {"llama-v3", true}, {"smaug-bpe", false}, {"dbrx", false},
                  {"gpt-4o", false}, {"tekken", true},   {"default", false}};
    for (size_t i = 0; i < sizeof splits / sizeof splits[0]; i++) {
        gguf_draft d;
        draft_llama(&d, TENSOR_F32, false);
        draft_byte_level(&d, splits[i].pre);
        draft_u32(&d, "tokenizer.ggml.bos_token_id", 258);
        llamita_model *model = open_draft(&d, __LINE__);
        CHECK(!model || (model->info.has_tokenizer && model->info.add_bos == splits[i].add_bos), "%s", splits[i].pre);
        CHECK(!model || (tokenizer_ends(model->tokenizer, 257) && tokenizer_ends(model->tokenizer, 258) &&
                         !tokenizer_ends(model->tokenizer, 256)),
              "%s: end tokens", splits[i].pre);
        close_bytes(model);
    }
}

/* ---------------------------------------------------------------- damage */

static void test_truncated_everywhere(void) {
    gguf_draft d;
    draft_llama(&d, TENSOR_Q4_0, true);
    draft_u32(&d, "general.alignment", 8);
    d.alignment = 8;
    buffer file = draft_write(&d);
    size_t padding =
        (size_t)(padded(d.tensors[d.num_tensors - 1].data.num_bytes, 8) - d.tensors[d.num_tensors - 1].data.num_bytes);
    for (size_t length = 0; length < file.num_bytes - padding; length++) {
        llamita_error error;
        llamita_model *model = open_bytes(file.bytes, length, NULL, &error);
        CHECK(!model, "cut at byte %zu of %zu: opened", length, file.num_bytes);
        CHECK(error.status == LLAMITA_ERROR_FORMAT && error.message[0], "cut at byte %zu: status %d", length,
              error.status);
        close_bytes(model);
    }
    free_buffer(&file);
    draft_free(&d);
}

/* 65,536 keys are looked up fast; a million are rejected at once. */
static void test_many_keys(void) {
    for (uint64_t count = 1000000; count >= 10000; count /= 16) {
        buffer file = {0};
        put_bytes(&file, "GGUF", 4);
        put_u32(&file, 3);
        put_u64(&file, 0);
        put_u64(&file, count);
        for (uint64_t i = 0; i < count; i++) {
            char name[16];
            snprintf(name, sizeof name, "%08x", (unsigned)(i * 2654435761u));
            put_string(&file, name);
            put_u32(&file, GGUF_U8);
            put_u8(&file, 0);
        }
        llamita_error error;
        clock_t start = clock();
        llamita_model *model = open_bytes(file.bytes, file.num_bytes, NULL, &error);
        double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        const char *expected = count > 65536 ? "number of keys" : "key general.architecture is missing";
        CHECK(!model && strstr(error.message, expected), "%s", error.message);
        CHECK(seconds < 1.0, "%u keys took %.2f s", (unsigned)count, seconds);
        close_bytes(model);
        free_buffer(&file);
    }
}

/* A header that never ends costs at most 64 MiB of reading, however long the file is. */
static void test_long_header(void) {
    const uint64_t num_bytes = 1 << 26;
    void *zeros = calloc(1, num_bytes);
    buffer file = {0};
    put_bytes(&file, "GGUF", 4);
    put_u32(&file, 3);
    put_u64(&file, 0);
    put_u64(&file, 1);
    put_string(&file, "x");
    put_u32(&file, GGUF_STRING);
    put_u64(&file, num_bytes);
    put_bytes(&file, zeros, num_bytes);
    free(zeros);
    check_refused_bytes(&file, "key 1 of 1 runs past the maximum header size at byte 67108864", __LINE__);
}

int main(void) {
    test_header();
    test_keys();
    test_alignment();
    test_tensor_descriptions();
    test_configuration();
    test_heads();
    test_numbers();
    test_tensors();
    test_tokenizer_refusals();
    test_opens();
    test_architectures();
    test_layers_without_rope();
    test_refused_architectures();
    test_optional_keys();
    test_harmless_variants();
    test_converted_norms();
    test_rope();
    test_lists();
    test_yarn();
    test_longrope();
    test_byte_level();
    test_truncated_everywhere();
    test_many_keys();
    test_long_header();
    return check_failures();
}
