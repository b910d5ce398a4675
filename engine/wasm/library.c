/* library.c: functions for JavaScript that fill and read the structs of llamita.h. */
#include "wasm/library.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

llamita_model *host_open_model(const char *path, const char *tokenizer_path, const char *kernels,
                               llamita_error *error) {
    const llamita_model_params params = {.tokenizer_path = tokenizer_path, .kernels = kernels};
    llamita_model *model = NULL;
    return llamita_model_open(path, &params, &model, error) == LLAMITA_OK ? model : NULL;
}

llamita_session *host_open_session(const llamita_model *model, int32_t context_tokens, int32_t kv_type,
                                   llamita_error *error) {
    const llamita_session_params params = {
        .num_threads = 1, .context_tokens = context_tokens, .kv_type = (llamita_kv_type)kv_type};
    llamita_session *session = NULL;
    return llamita_session_open(model, &params, &session, error) == LLAMITA_OK ? session : NULL;
}

llamita_sampler *host_open_sampler(const llamita_model *model, float temperature, int32_t top_k, float top_p,
                                   float min_p, float repetition_penalty, int32_t repetition_window, uint64_t seed,
                                   llamita_error *error) {
    const llamita_sampler_params params = {.temperature = temperature,
                                           .top_k = top_k,
                                           .top_p = top_p,
                                           .min_p = min_p,
                                           .repetition_penalty = repetition_penalty,
                                           .repetition_window = repetition_window,
                                           .seed = seed};
    llamita_model_info info;
    llamita_sampler *sampler = NULL;
    llamita_model_get_info(model, &info);
    return llamita_sampler_open(&params, info.vocab_size, &sampler, error) == LLAMITA_OK ? sampler : NULL;
}

/* Writes text as a JSON string; returns what follows it. to has room for 6 bytes for each of text. */
static char *write_json_text(char *to, const char *text) {
    *to++ = '"';
    for (; *text; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c < 0x20 || c == '"' || c == '\\') to += sprintf(to, "\\u%04x", c);
        else *to++ = (char)c;
    }
    *to++ = '"';
    return to;
}

char *host_describe_model(const llamita_model *model) {
    llamita_model_info info;
    llamita_model_get_info(model, &info);
    const char *template = llamita_model_chat_template(model), *system = llamita_model_system_prompt(model);
    const struct {
        const char *name, *text;
    } texts[] = {
        {"architecture", info.architecture}, {"format", info.format},   {"name", info.name},
        {"weightType", info.weight_type},    {"kernels", info.kernels}, {"chatFamily", llamita_chat_family(model)},
        {"chatTemplate", template},          {"systemPrompt", system}};
    enum { NUM_TEXTS = sizeof texts / sizeof *texts };
    size_t capacity = 1024;
    for (int i = 0; i < NUM_TEXTS; i++) capacity += 32 + (texts[i].text ? 6 * strlen(texts[i].text) : 0);
    char *json = malloc(capacity), *end = json;
    if (!json) return NULL;
    *end++ = '{';
    for (int i = 0; i < NUM_TEXTS; i++) {
        end += sprintf(end, "\"%s\":", texts[i].name);
        end = texts[i].text ? write_json_text(end, texts[i].text) : end + sprintf(end, "null");
        *end++ = ',';
    }
    sprintf(end,
            "\"numParameters\":%lld,\"weightBytes\":%lld,\"contextTokens\":%d,\"vocabSize\":%d,\"hiddenSize\":%d,"
            "\"numLayers\":%d,\"numHeads\":%d,\"numKeyValueHeads\":%d,\"hasTokenizer\":%s,\"addBos\":%s,"
            "\"bosId\":%d,\"eosId\":%d}",
            (long long)info.num_parameters, (long long)info.weight_bytes, (int)info.context_tokens,
            (int)info.vocab_size, (int)info.hidden_size, (int)info.num_hidden_layers, (int)info.num_attention_heads,
            (int)info.num_key_value_heads, info.has_tokenizer ? "true" : "false", info.add_bos ? "true" : "false",
            (int)info.bos_id, (int)info.eos_id);
    return json;
}
