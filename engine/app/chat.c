/* chat.c: interactive chat: answers the prompt, then each line of stdin. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"

enum { ROLLING_SHARE = 4 };

typedef struct {
    app *app;
    const options *o;
    llamita_sampler *sampler;
    const char *system;        /* NULL: the chat template's */
    llamita_message *messages; /* owns contents and ids */
    size_t num_messages;
    int32_t *ids;        /* [context_tokens] of the whole conversation */
    int32_t *answer_ids; /* [context_tokens] of the last answer */
    size_t num_ids, num_answer_ids, context_tokens;
    char *answer_text;
    size_t answer_bytes, answer_capacity;
    bool on_terminal, has_system, has_forgotten;
} chat;

static void *allocate(size_t num_bytes) {
    void *memory = calloc(num_bytes > 0 ? num_bytes : 1, 1);
    if (!memory) fail("out of memory: %zu bytes for the chat", num_bytes);
    return memory;
}

/* Prints a line to stderr, dim if it is a terminal. */
static void print_note(const char *format, ...) {
    const bool dim = system_is_terminal(stderr);
    va_list arguments;
    va_start(arguments, format);
    if (dim) fputs("\033[2m", stderr);
    vfprintf(stderr, format, arguments);
    fputs(dim ? "\033[0m\n" : "\n", stderr);
    va_end(arguments);
}

static void chat_add_message(chat *c, const char *role, const char *content, size_t num_bytes, size_t num_ids) {
    llamita_message *grown = realloc(c->messages, (c->num_messages + 1) * sizeof *grown);
    if (!grown) fail("out of memory: %zu messages", c->num_messages + 1);
    char *text = allocate(num_bytes);
    int32_t *ids = num_ids > 0 ? allocate(num_ids * sizeof *ids) : NULL;
    if (num_bytes > 0) memcpy(text, content, num_bytes);
    if (ids) memcpy(ids, c->answer_ids, num_ids * sizeof *ids);
    c->messages = grown;
    c->messages[c->num_messages++] = (llamita_message){role, text, num_bytes, ids, num_ids};
}

static void chat_remove_messages(chat *c, size_t first, size_t count) {
    for (size_t i = first; i < first + count; i++) {
        free((void *)c->messages[i].content);
        free((void *)c->messages[i].ids);
    }
    c->num_messages -= count;
    memmove(c->messages + first, c->messages + first + count, (c->num_messages - first) * sizeof *c->messages);
}

/* Encodes the conversation. False: it does not fit into the context; num_ids is set in either
 * case. */
static bool encode_messages(chat *c, const llamita_message *messages, size_t count) {
    llamita_error error;
    size_t num_ids = 0;
    const llamita_status status =
        llamita_chat_encode(c->app->model, messages, count, c->ids, c->context_tokens, &num_ids, &error);
    if (status != LLAMITA_OK && num_ids <= c->context_tokens) fail("%s", error.message);
    c->num_ids = num_ids;
    return num_ids < c->context_tokens;
}

static bool chat_encode(chat *c) { return encode_messages(c, c->messages, c->num_messages); }

/* As chat_encode, for the system prompt and the last message alone. */
static bool question_fits(chat *c) {
    llamita_message alone[2];
    size_t count = 0;
    if (c->has_system) alone[count++] = c->messages[0];
    alone[count++] = c->messages[c->num_messages - 1];
    return encode_messages(c, alone, count);
}

/* Makes the conversation fit into the context by forgetting its oldest turns, unless --no-rolling.
 * False: it does not fit; the question is removed. */
static bool chat_fit(chat *c) {
    const size_t first = c->has_system ? 1 : 0, share = c->context_tokens / ROLLING_SHARE;
    const size_t wanted = (size_t)c->o->num_new_tokens, reserved = wanted > 0 && wanted < share ? wanted : share;
    bool fits = chat_encode(c);
    bool alone = c->num_messages == first + 1;
    bool rolls = !c->o->no_rolling && (!fits || c->num_ids > c->context_tokens - reserved);
    if (rolls && !fits && !question_fits(c)) {
        rolls = false; /* and nothing is forgotten for it */
        alone = true;
    } else if (rolls) {
        fits = chat_encode(c);
    }
    /* Down to half, because what stays must be computed again: not at every question from now on. */
    while (rolls && c->num_ids > c->context_tokens / 2 && c->num_messages > first + 1) {
        chat_remove_messages(c, first, 2);
        if (!c->has_forgotten)
            print_note("the context is full: from here on, the oldest turns are forgotten (/reset begins anew)");
        c->has_forgotten = true;
        fits = chat_encode(c);
    }
    if (fits) return true;
    chat_remove_messages(c, c->num_messages - 1, 1);
    static const char *const line = "the context is full: it holds %zu tokens, %s has %zu; %s";
    const char *what = alone ? "the question alone" : "the chat with this question";
    const char *remedy = alone ? "shorten the question" : "start a new chat, or leave out --no-rolling";
    if (!c->on_terminal) fail(line, c->context_tokens, what, c->num_ids, remedy);
    print_note(line, c->context_tokens, what, c->num_ids, remedy);
    return false;
}

/* Writes a piece and appends it to the answer; of an unfinished character, what there is. */
static bool chat_take_piece(void *state, const llamita_piece *piece) {
    chat *c = state;
    const size_t num_bytes = piece->num_bytes + piece->num_held_bytes, num_held = c->app->num_held_bytes;
    const bool goes_on = take_piece(c->app, piece);
    if (piece->id < 0 || piece->finish == LLAMITA_FINISH_STOP || c->app->stop == STOP_INTERRUPT) return goes_on;
    c->answer_bytes -= num_held;
    if (c->answer_bytes + num_bytes > c->answer_capacity) {
        c->answer_capacity = 2 * (c->answer_bytes + num_bytes);
        c->answer_text = realloc(c->answer_text, c->answer_capacity);
        if (!c->answer_text) fail("out of memory: %zu bytes for the answer", c->answer_capacity);
    }
    if (num_bytes > 0) memcpy(c->answer_text + c->answer_bytes, piece->text, num_bytes);
    c->answer_bytes += num_bytes;
    c->answer_ids[c->num_answer_ids++] = piece->id;
    return goes_on;
}

static void chat_report(const chat *c) {
    const app *a = c->app;
    if (a->stop == STOP_NUM_TOKENS) print_note("stopped after %zu tokens (-n)", c->num_answer_ids);
    if (a->stop == STOP_CONTEXT) print_note("stopped: the context is full");
    if (a->stop == STOP_INTERRUPT && c->num_answer_ids == 0)
        print_note("stopped before the answer: the question was removed from the chat");
    if (!c->o->verbose && !system_is_terminal(stderr)) return;
    const int num_read = a->num_prompt_tokens - a->num_shared_tokens;
    const double read_speed = a->prompt_seconds > 0 ? num_read / a->prompt_seconds : 0;
    const double speed = a->decode_seconds > 0 ? (double)a->num_decoded / a->decode_seconds : 0;
    print_note("read %d tokens, %.1f tok/s | generated %zu tokens, %.1f tok/s | context %zu of %zu", num_read,
               read_speed, c->num_answer_ids, speed, c->num_ids + c->num_answer_ids, c->context_tokens);
}

/* Answers the last message. An interrupted answer is kept; without any token the question is
 * removed. */
static void chat_answer(chat *c) {
    app *a = c->app;
    llamita_error error;
    c->num_answer_ids = c->answer_bytes = 0;
    begin_text(a, "", 0);
    check(
        llamita_generate(a->session, c->sampler, c->ids, c->num_ids, max_new_tokens(c->o), chat_take_piece, c, &error),
        &error);
    write_text(a, "\n", 1);
    if (c->num_answer_ids > 0 || a->stop == STOP_END_TOKEN)
        chat_add_message(c, "assistant", c->answer_text, c->answer_bytes, c->num_answer_ids);
    else chat_remove_messages(c, c->num_messages - 1, 1);
    chat_report(c);
}

/* Reads a line of stdin into *line, which the caller frees, without its line end. Returns its
 * length, or -1 at the end of stdin. */
static ptrdiff_t read_question(const chat *c, char **line, size_t *capacity) {
    for (;;) {
        system_catch_interrupts(false);
        interrupted = 0;
        if (c->on_terminal) fputs("> ", stderr);
        ptrdiff_t length = system_read_line(line, capacity);
        if (length < 0 && c->on_terminal && interrupted) {
            clearerr(stdin);
            print_note("\n" END_OF_INPUT_KEY " ends the chat.");
            continue;
        }
        if (length < 0 && ferror(stdin) && !interrupted) fail("reading stdin: %s", strerror(errno));
        while (length > 0 && strchr("\r\n", (*line)[length - 1])) length--;
        while (length >= 3 && memcmp(*line, "\xef\xbb\xbf", 3) == 0) { /* a BOM, as Notepad writes it */
            length -= 3;
            memmove(*line, *line + 3, (size_t)length);
        }
        if (length >= 0) (*line)[length] = '\0';
        return length;
    }
}

/* Forgets all messages; the system prompt stays, or becomes this one. */
static void chat_reset(chat *c, const char *system) {
    const size_t kept = c->has_system && !system ? 1 : 0;
    chat_remove_messages(c, kept, c->num_messages - kept);
    if (system) chat_add_message(c, "system", system, strlen(system), 0);
    c->has_system = c->has_system || system;
}

/* Whether line is this command; *argument: what follows it, NULL if nothing does. */
static bool is_command(char *line, const char *name, char **argument) {
    const size_t length = strlen(name);
    if (strncmp(line, name, length) != 0 || (line[length] && !strchr(" \t", line[length]))) return false;
    *argument = line + length + strspn(line + length, " \t");
    if (!**argument) *argument = NULL;
    return true;
}

/* Does what a line that begins with / says. False: it ends the chat. */
static bool chat_command(chat *c, char *line) {
    char *argument;
    if (is_command(line, "/exit", &argument)) return false;
    if (is_command(line, "/help", &argument)) {
        print_note("/help         list these commands\n"
                   "/reset        forget the conversation; the system prompt stays\n"
                   "/system TEXT  set the system prompt, and forget the conversation\n"
                   "/exit         end the chat, as " END_OF_INPUT_KEY " does\n"
                   "//TEXT        send the message /TEXT");
    } else if (is_command(line, "/reset", &argument)) {
        chat_reset(c, NULL);
        print_note("the conversation is forgotten; the system prompt stays");
    } else if (is_command(line, "/system", &argument) && argument) {
        chat_reset(c, argument);
        print_note("the system prompt is set; the conversation is forgotten");
    } else if (is_command(line, "/system", &argument)) {
        print_note("/system: expected the text of the system prompt after it, found nothing");
    } else {
        print_note("unknown command %.*s; /help lists the commands; write // to begin a message with /",
                   (int)strcspn(line, " \t"), line);
    }
    return true;
}

int run_chat(app *a) {
    llamita_error error;
    const options *o = a->options;
    const llamita_sampler_params params = sampling_params(o, o->seed);
    chat c = {.app = a, .o = o, .on_terminal = system_is_terminal(stdin)};
    check(llamita_sampler_open(&params, a->info.vocab_size, &c.sampler, &error), &error);
    c.context_tokens = (size_t)llamita_session_context_tokens(a->session);
    c.ids = allocate(c.context_tokens * sizeof *c.ids);
    c.answer_ids = allocate(c.context_tokens * sizeof *c.answer_ids);
    chat_add_message(&c, "user", "", 0, 0);
    chat_encode(&c); /* fails now, not at the first question, if the chat template is unusable */
    chat_remove_messages(&c, 0, 1);
    const char *system = o->system ? o->system : llamita_model_system_prompt(a->model);
    if (system) chat_reset(&c, system);
    if (c.on_terminal) print_note("Ctrl-C stops an answer, " END_OF_INPUT_KEY " ends the chat, /help lists commands.");
    char *line = NULL;
    size_t capacity = 0, prompt_bytes;
    char *prompt = read_prompt(o, false, &prompt_bytes);
    const char *question = prompt;
    ptrdiff_t length = (ptrdiff_t)prompt_bytes;
    while (length >= 0 && !a->closed) {
        const bool typed = c.on_terminal && question == line && length > 0 && *question == '/';
        if (typed && question[1] != '/') {
            line[length] = 0;
            if (!chat_command(&c, line)) break;
            length = 0;
        } else if (typed) {
            question++;
            length--;
        }
        const size_t valid = length > 0 ? utf8_bytes(question, (size_t)length) : 0;
        if (length > 0 && valid < (size_t)length) {
            if (!c.on_terminal) fail(NOT_UTF8, "the question", (unsigned char)question[valid], valid);
            print_note(NOT_UTF8, "the question", (unsigned char)question[valid], valid);
        } else if (length > 0 && question[strspn(question, " \t")]) {
            chat_add_message(&c, "user", question, (size_t)length, 0);
            system_catch_interrupts(true);
            interrupted = 0;
            if (chat_fit(&c)) chat_answer(&c);
            if (interrupted && !c.on_terminal) break;
        }
        length = read_question(&c, &line, &capacity);
        question = line;
    }
    if (c.on_terminal) fputs("\n", stderr);
    chat_remove_messages(&c, 0, c.num_messages);
    free(c.messages);
    llamita_sampler_close(c.sampler);
    free(c.ids);
    free(c.answer_ids);
    free(c.answer_text);
    free(prompt);
    free(line);
    return a->closed ? EXIT_BROKEN_PIPE : interrupted && !c.on_terminal ? EXIT_INTERRUPTED : 0;
}
