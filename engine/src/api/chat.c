/* chat.c: the chat API of llamita.h: renders messages to text segments with the model's chat
 * template. */
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "runtime/error.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/segments.h"
#include "tokenizer/unicode.h"

/* ------------------------------------------------------------------ trimming */

/* White space as Python's str.strip() defines it: Unicode's, and the ASCII separators U+001C to
 * U+001F. */
static bool is_space(const char *text, size_t num_bytes, size_t *length) {
    uint32_t code_point;
    *length = utf8_decode(text, num_bytes, &code_point);
    return unicode_classify(code_point) == UNICODE_SPACE || (code_point >= 0x1C && code_point <= 0x1F);
}

static byte_slice strip_start(byte_slice text) {
    for (size_t length; text.num_bytes > 0 && is_space(text.bytes, text.num_bytes, &length);) {
        text.bytes += length;
        text.num_bytes -= length;
    }
    return text;
}

static byte_slice strip_end(byte_slice text) {
    while (text.num_bytes > 0) {
        size_t back = 1, length;
        while (back < text.num_bytes && back < 4 && ((unsigned char)text.bytes[text.num_bytes - back] & 0xC0) == 0x80)
            back++;
        if (!is_space(text.bytes + text.num_bytes - back, back, &length) || length != back) break;
        text.num_bytes -= back;
    }
    return text;
}

/* ------------------------------------------------------------------ messages to segments */

typedef struct {
    const llamita_model *model;
    const chat_format *format;
    llamita_text_segment *segments;
    size_t num_segments;
} writer;

enum { MAX_SEGMENTS_PER_MESSAGE = 8 };

/* Appends text as it is; empty text adds no segment. */
static void write_segment(writer *w, byte_slice text, bool trusted) {
    if (text.num_bytes > 0)
        w->segments[w->num_segments++] = (llamita_text_segment){text.bytes, text.num_bytes, trusted, NULL, 0};
}

/* Text of the template; a leading CHAT_EOS becomes the text of the EOS token. */
static void write_template(writer *w, const char *text) {
    const llamita_model *model = w->model;
    if (*text == CHAT_EOS) {
        const char *eos = llamita_token_text(model, model->info.eos_id);
        if (eos) write_segment(w, (byte_slice){eos, strlen(eos)}, true);
        text++;
    }
    write_segment(w, (byte_slice){text, strlen(text)}, true);
}

static void write_bos(writer *w) {
    const char *bos = llamita_token_text(w->model, w->model->info.bos_id);
    if (bos) write_segment(w, (byte_slice){bos, strlen(bos)}, true);
}

static void write_content(writer *w, const llamita_message *message, byte_slice content) {
    const bool generated = message->ids && message->num_ids > 0;
    if (generated)
        w->segments[w->num_segments++] =
            (llamita_text_segment){content.bytes, content.num_bytes, false, message->ids, message->num_ids};
    else write_segment(w, content, false);
}

static byte_slice message_content(const llamita_message *message) {
    return (byte_slice){message->content, message->num_bytes};
}

/* chatml, llama3, zephyr: every turn has the same form. */
static void write_turn(writer *w, const llamita_message *message) {
    const chat_format *format = w->format;
    byte_slice content = message_content(message);
    if (format->trims_contents) content = strip_end(strip_start(content));
    write_template(w, format->before_role);
    write_template(w, message->role);
    write_template(w, format->after_role);
    write_content(w, message, content);
    write_template(w, format->after_content);
}

/* llama2: the user's turn. A system prompt belongs to the first one and is trimmed with it. */
static void write_llama2_user(writer *w, const llamita_message *system, const llamita_message *message) {
    byte_slice content = strip_end(message_content(message));
    if (!system) content = strip_start(content);
    write_bos(w);
    write_template(w, "[INST] ");
    if (system) {
        write_template(w, "<<SYS>>\n");
        write_segment(w, message_content(system), false);
        write_template(w, content.num_bytes > 0 ? "\n<</SYS>>\n\n" : "\n<</SYS>>");
    }
    write_segment(w, content, false);
    write_template(w, " [/INST]");
}

static void write_llama2(writer *w, const llamita_message *messages, size_t num_messages) {
    const llamita_message *system = strcmp(messages[0].role, "system") == 0 ? messages : NULL;
    for (size_t i = system ? 1 : 0; i < num_messages; i++) {
        if (strcmp(messages[i].role, "user") == 0) {
            write_llama2_user(w, i == 1 ? system : NULL, &messages[i]);
            continue;
        }
        write_template(w, " ");
        write_content(w, &messages[i], strip_end(strip_start(message_content(&messages[i]))));
        write_template(w, " ");
        write_template(w, (const char[]){CHAT_EOS, 0});
    }
}

static void write_turns(writer *w, const llamita_message *messages, size_t num_messages, const char *default_system) {
    if (w->format->begins_with_bos) write_bos(w);
    if (default_system && strcmp(messages[0].role, "system") != 0) {
        const llamita_message system = {"system", default_system, strlen(default_system), NULL, 0};
        write_turn(w, &system);
        w->segments[w->num_segments - 2].trusted = true; /* it is part of the template */
    }
    for (size_t i = 0; i < num_messages; i++) write_turn(w, &messages[i]);
    write_template(w, w->format->before_role);
    write_template(w, "assistant");
    write_template(w, w->format->after_role);
}

/* ------------------------------------------------------------------ the public functions */

/* Every known template requires [system] user (assistant user)*. */
static llamita_status check_roles(const llamita_message *messages, size_t num_messages, llamita_error *error) {
    const size_t first = num_messages > 0 && strcmp(messages[0].role, "system") == 0 ? 1 : 0;
    for (size_t i = first; i < num_messages; i++) {
        const char *expected = (i - first) % 2 == 0 ? "user" : "assistant";
        if (strcmp(messages[i].role, expected) != 0)
            return error_set(error, LLAMITA_ERROR_ARGUMENT,
                             "cannot encode the chat: message %zu: expected role %s, found %s; user and assistant "
                             "must alternate, after at most one system message",
                             i, expected, messages[i].role);
    }
    if ((num_messages - first) % 2 == 0)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot encode the chat: expected the last message from the user, found %s",
                         num_messages > first ? "one from the assistant" : "none");
    return LLAMITA_OK;
}

const char *llamita_chat_family(const llamita_model *model) {
    char default_system[MAX_DEFAULT_SYSTEM_BYTES];
    bool has_default_system, no_memory;
    if (!model->chat_template) return NULL;
    const chat_format *format =
        chat_template_recognize(model->chat_template, default_system, &has_default_system, &no_memory);
    return format ? format->family : NULL;
}

llamita_status llamita_encode_segments(const llamita_model *model, const llamita_text_segment *segments,
                                       size_t num_segments, int32_t *ids, size_t capacity, size_t *num_tokens,
                                       llamita_error *error) {
    if (!model->tokenizer)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot encode the text: the model has no tokenizer; open it with a tokenizer_path");
    for (size_t i = 0; i < num_segments; i++)
        for (size_t k = 0; segments[i].ids && k < segments[i].num_ids; k++)
            if (segments[i].ids[k] < 0 || segments[i].ids[k] >= model->info.vocab_size)
                return error_set(error, LLAMITA_ERROR_ARGUMENT,
                                 "cannot encode the text: segment %zu, id %zu: expected 0 to %d, found %d", i, k,
                                 (int)model->info.vocab_size - 1, (int)segments[i].ids[k]);
    return tokenizer_encode_segments(model->tokenizer, segments, num_segments, ids, capacity, num_tokens, error);
}

llamita_status llamita_chat_encode(const llamita_model *model, const llamita_message *messages, size_t num_messages,
                                   int32_t *ids, size_t capacity, size_t *num_tokens, llamita_error *error) {
    if (!model->chat_template)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot encode the chat: the model has no chat template: it was not trained to chat; "
                         "generate text instead");
    char default_system[MAX_DEFAULT_SYSTEM_BYTES];
    bool has_default_system = false, no_memory = false;
    const chat_format *format =
        chat_template_recognize(model->chat_template, default_system, &has_default_system, &no_memory);
    if (no_memory)
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot encode the chat: out of memory for its template");
    if (!format)
        return error_set(error, LLAMITA_ERROR_ARGUMENT,
                         "cannot encode the chat: chat template: expected ChatML, Llama 2, Llama 3 or Zephyr in a "
                         "known spelling, found another; use `llamita chat`, which renders any template");
    llamita_status status = check_roles(messages, num_messages, error);
    if (status != LLAMITA_OK) return status;
    writer w = {.model = model, .format = format};
    w.segments = calloc(num_messages + 3, MAX_SEGMENTS_PER_MESSAGE * sizeof *w.segments);
    if (!w.segments)
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot encode the chat: out of memory for %zu messages",
                         num_messages);
    if (!format->before_role) write_llama2(&w, messages, num_messages);
    else write_turns(&w, messages, num_messages, has_default_system ? default_system : NULL);
    status = llamita_encode_segments(model, w.segments, w.num_segments, ids, capacity, num_tokens, error);
    free(w.segments);
    return status;
}
