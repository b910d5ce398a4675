/* chat.c: turns questions, the prompt and then lines of stdin, into answers on stdout; the session keeps what was said. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app.h"

enum { FEED_TOKENS = 128, ROLLING_SHARE = 4 };

/* A conversation, and what of it the session holds: ids from the first on. */
typedef struct {
    app *app;
    const options *o;
    llamita_message *messages; /* contents and ids are owned */
    size_t num_messages;
    int32_t *held, *ids, *answer; /* [context] each: in the session; of the whole conversation; generated last */
    size_t num_held, num_ids, num_fed, num_answer, room;
    char *said; /* the bytes of the answer */
    size_t said_bytes, said_capacity;
    bool on_terminal;
} chat;

static void *allocate(size_t num_bytes) {
    void *memory = calloc(num_bytes > 0 ? num_bytes : 1, 1);
    if (!memory) fail("out of memory: %zu bytes for the chat", num_bytes);
    return memory;
}

/* A line on stderr that is not the text: dim on a terminal. */
static void note(const char *format, ...) {
    const bool dim = isatty(STDERR_FILENO);
    va_list arguments;
    va_start(arguments, format);
    if (dim) fputs("\033[2m", stderr);
    vfprintf(stderr, format, arguments);
    fputs(dim ? "\033[0m\n" : "\n", stderr);
    va_end(arguments);
}

static void chat_say(chat *c, const char *role, const char *content, size_t num_bytes, size_t num_ids) {
    llamita_message *grown = realloc(c->messages, (c->num_messages + 1) * sizeof *grown);
    if (!grown) fail("out of memory: %zu messages", c->num_messages + 1);
    char *text = allocate(num_bytes);
    int32_t *ids = num_ids > 0 ? allocate(num_ids * sizeof *ids) : NULL;
    if (num_bytes > 0) memcpy(text, content, num_bytes);
    if (ids) memcpy(ids, c->answer, num_ids * sizeof *ids);
    c->messages = grown;
    c->messages[c->num_messages++] = (llamita_message){role, text, num_bytes, ids, num_ids};
}

static void chat_forget(chat *c, size_t first, size_t count) {
    for (size_t i = first; i < first + count; i++) {
        free((void *)c->messages[i].content);
        free((void *)c->messages[i].ids);
    }
    c->num_messages -= count;
    memmove(c->messages + first, c->messages + first + count, (c->num_messages - first) * sizeof *c->messages);
}

/* The ids of the whole conversation; false if the context cannot hold them (num_ids says how many there are). */
static bool chat_encode(chat *c) {
    llamita_error error;
    size_t num_ids = 0;
    const llamita_status status =
        llamita_chat_encode(c->app->model, c->messages, c->num_messages, c->ids, c->room, &num_ids, &error);
    if (status != LLAMITA_OK && num_ids <= c->room) fail("%s", error.message);
    c->num_ids = num_ids;
    return num_ids < c->room;
}

/* Makes the conversation fit, or takes the question back and says so. */
static bool chat_fit(chat *c) {
    const size_t first = c->o->system ? 1 : 0, share = c->room / ROLLING_SHARE;
    const size_t wanted = (size_t)c->o->num_new_tokens, reserved = wanted > 0 && wanted < share ? wanted : share;
    size_t num_forgotten = 0;
    bool fits = chat_encode(c);
    while (c->o->rolling && (!fits || c->num_ids > c->room - reserved) && c->num_messages > first + 1) {
        chat_forget(c, first, 2);
        num_forgotten++;
        fits = chat_encode(c);
    }
    if (num_forgotten > 0)
        note("the context is full: the %zu oldest %s forgotten", num_forgotten,
             num_forgotten == 1 ? "turn was" : "turns were");
    if (fits) return true;
    const bool alone = c->num_messages == first + 1;
    chat_forget(c, c->num_messages - 1, 1);
    static const char *const line = "the context is full: it holds %zu tokens, %s %zu; %s";
    const char *much = alone ? "the question alone has" : "with this question the chat has";
    const char *remedy = alone ? "shorten it" : "begin anew, or use --rolling";
    if (!c->on_terminal) fail(line, c->room, much, c->num_ids, remedy);
    note(line, c->room, much, c->num_ids, remedy);
    return false;
}

static void chat_feed(chat *c, const int32_t *ids, size_t num_ids) {
    llamita_error error;
    check(llamita_session_feed(c->app->session, ids, num_ids, &error), &error);
    memcpy(c->held + c->num_held, ids, num_ids * sizeof *ids);
    c->num_held += num_ids;
}

/* Brings the session from what it holds to the conversation; false if Ctrl-C ended that. */
static bool chat_read(chat *c) {
    llamita_error error;
    size_t same = 0;
    while (same < c->num_held && same + 1 < c->num_ids && c->held[same] == c->ids[same]) same++;
    check(llamita_session_rewind(c->app->session, (int32_t)same, &error), &error);
    c->num_held = same;
    c->num_fed = 0;
    while (c->num_held < c->num_ids) {
        if (interrupted) return false;
        const size_t left = c->num_ids - c->num_held, count = left < FEED_TOKENS ? left : FEED_TOKENS;
        for (size_t i = 0; i < count; i++) llamita_sampler_accept(c->app->sampler, c->ids[c->num_held + i]);
        chat_feed(c, c->ids + c->num_held, count);
        c->num_fed += count;
    }
    return true;
}

/* Takes a new token into the answer, and writes what it adds. */
static void chat_add(chat *c, output *out, int32_t previous_id, int32_t id) {
    llamita_error error;
    const char *bytes;
    size_t num_bytes;
    check(llamita_token_bytes(c->app->model, previous_id, id, &bytes, &num_bytes, &error), &error);
    if (c->said_bytes + num_bytes > c->said_capacity) {
        c->said_capacity = 2 * (c->said_bytes + num_bytes);
        c->said = realloc(c->said, c->said_capacity);
        if (!c->said) fail("out of memory: %zu bytes for the answer", c->said_capacity);
    }
    if (num_bytes > 0) memcpy(c->said + c->said_bytes, bytes, num_bytes);
    c->said_bytes += num_bytes;
    c->answer[c->num_answer++] = id;
    output_write(out, bytes, num_bytes);
}

static void chat_report(const chat *c) {
    const app *a = c->app;
    if (a->stop == STOP_NUM_TOKENS) note("stopped after %zu tokens (-n)", c->num_answer);
    if (a->stop == STOP_CONTEXT) note("stopped: the context is full");
    if (a->stop == STOP_INTERRUPT && c->num_answer == 0)
        note("stopped before the answer began: the question is forgotten");
    if (!c->o->verbose && !isatty(STDERR_FILENO)) return;
    const double read_speed = a->prompt_seconds > 0 ? (double)c->num_fed / a->prompt_seconds : 0;
    const double speed = a->decode_seconds > 0 ? (double)a->num_decoded / a->decode_seconds : 0;
    note("read %zu tokens, %.1f tok/s | generated %zu tokens, %.1f tok/s | context %zu of %zu", c->num_fed, read_speed,
         c->num_answer, speed, c->num_ids + c->num_answer, c->room);
}

/* Answers the last message; an answer that was stopped stays as far as it went. */
static void chat_answer(chat *c, output *out) {
    app *a = c->app;
    int32_t previous_id = c->ids[c->num_ids - 1], id = -1;
    double start = seconds();
    c->num_answer = c->said_bytes = 0;
    a->num_generated = a->num_decoded = 0;
    a->stop = STOP_INTERRUPT;
    if (chat_read(c)) id = pick(a);
    a->prompt_seconds = seconds() - start;
    start = seconds();
    while (id >= 0 && (a->stop = stop_before(a, out, id)) == STOP_NONE) {
        chat_add(c, out, previous_id, id);
        a->num_generated++;
        if ((a->stop = stop_after(a, c->o)) != STOP_NONE) break;
        chat_feed(c, &id, 1);
        a->num_decoded++;
        previous_id = id;
        id = pick(a);
    }
    a->decode_seconds = seconds() - start;
    out->num_bytes = 0; /* the beginning of a character that never came */
    if (!out->closed) output_write(out, "\n", 1);
    if (c->num_answer > 0 || a->stop == STOP_END_TOKEN) chat_say(c, "assistant", c->said, c->said_bytes, c->num_answer);
    else chat_forget(c, c->num_messages - 1, 1);
    chat_report(c);
}

/* The next line of stdin, without its end, into *line; its length, or -1 at the end. */
static ssize_t read_question(const chat *c, char **line, size_t *capacity) {
    for (;;) {
        set_signals(false);
        interrupted = 0;
        if (c->on_terminal) fputs("> ", stderr);
        ssize_t length = getline(line, capacity, stdin);
        if (length < 0 && c->on_terminal && interrupted) {
            clearerr(stdin);
            note("\nCtrl-D ends the chat.");
            continue;
        }
        if (length < 0 && ferror(stdin) && !interrupted) fail("reading stdin: %s", strerror(errno));
        while (length > 0 && strchr("\r\n", (*line)[length - 1])) length--;
        return length;
    }
}

int run_chat(app *a, const options *o, output *out) {
    chat c = {.app = a, .o = o, .on_terminal = isatty(STDIN_FILENO)};
    c.room = (size_t)llamita_session_context_tokens(a->session);
    c.held = allocate(c.room * sizeof *c.held);
    c.ids = allocate(c.room * sizeof *c.ids);
    c.answer = allocate(c.room * sizeof *c.answer);
    chat_say(&c, "user", "", 0, 0);
    chat_encode(&c); /* a template that cannot be used is told at once */
    chat_forget(&c, 0, 1);
    if (o->system) chat_say(&c, "system", o->system, strlen(o->system), 0);
    if (c.on_terminal) note("Ctrl-C stops an answer, Ctrl-D ends the chat.");
    char *line = NULL;
    size_t capacity = 0;
    const char *question = o->prompt;
    ssize_t length = (ssize_t)strlen(question);
    while (length >= 0 && !out->closed) {
        if (length > 0 && question[strspn(question, " \t")]) {
            chat_say(&c, "user", question, (size_t)length, 0);
            set_signals(true);
            interrupted = 0;
            if (chat_fit(&c)) chat_answer(&c, out);
            if (interrupted && !c.on_terminal) break;
        }
        length = read_question(&c, &line, &capacity);
        question = line;
    }
    if (c.on_terminal) fputs("\n", stderr);
    chat_forget(&c, 0, c.num_messages);
    free(c.messages);
    free(c.held);
    free(c.ids);
    free(c.answer);
    free(c.said);
    free(line);
    return out->closed ? EXIT_BROKEN_PIPE : interrupted && !c.on_terminal ? EXIT_INTERRUPTED : 0;
}
