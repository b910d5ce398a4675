/* chat_template.c: recognizes known Jinja chat templates by their canonical spelling.
 *
 * Nothing in a template is executed. It is split into text, expressions and statements by Jinja's
 * rules, with the settings of transformers (trim_blocks and lstrip_blocks), and written in a
 * canonical spelling: {{ 'a' + x['b'] | trim }} and a{{ x.b.strip() }} give the same. The result
 * must equal one of the spellings below exactly; else the template is unknown. A format is never
 * guessed. The same templates are in src/llamita/tokenizer/chat_templates.py.
 */
#include "tokenizer/chat_template.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ known templates */

#define ANY_TEXT "\x01" /* in a spelling: the default system prompt */

static const chat_format CHATML = {"chatml", false, false, "<|im_start|>", "\n", "<|im_end|>\n"};
static const chat_format ZEPHYR = {"zephyr", false, false, "<|", "|>\n", "\x02\n"};
static const chat_format LLAMA3 = {"llama3", true, true, "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"};
static const chat_format LLAMA2 = {"llama2", true, true, NULL, NULL, NULL};

#define FOR_MESSAGES "{%for message in messages%}"
#define DEFAULT_NO_PROMPT "{%if not add_generation_prompt is defined%}{%set add_generation_prompt=false%}{%endif%}"
#define IF_PROMPT(text) "{%if add_generation_prompt%}" text "{%endif%}"

#define CHATML_DEFAULT \
    "{%if loop.first and messages[0].role!='system'%}<|im_start|>system\n" ANY_TEXT "<|im_end|>\n{%endif%}"
#define CHATML_TURN "<|im_start|>{{message.role}}\n{{message.content}}<|im_end|>\n{%endfor%}"
#define CHATML_TURN_QWEN                                                                                            \
    "<|im_start|>{{message.role}}\n{{message.content}}{%if(loop.last and add_generation_prompt) or not loop.last%}" \
    "<|im_end|>\n{%endif%}{%endfor%}{%if add_generation_prompt and messages[-1].role!='assistant'%}"                \
    "<|im_start|>assistant\n{%endif%}"
#define CHATML_PROMPT IF_PROMPT("<|im_start|>assistant\n")

#define ZEPHYR_ROLE(role) "message.role=='" role "'%}<|" role "|>\n{{message.content}}{{eos_token}}\n"

#define LLAMA3_ROLE "<|start_header_id|>{{message.role}}<|end_header_id|>\n\n"
#define LLAMA3_NEXT "<|start_header_id|>assistant<|end_header_id|>\n\n"
#define LLAMA3_SET                                                                                                    \
    "{%set loop_messages=messages%}{%for message in loop_messages%}{%set content='<|start_header_id|>'+message.role+" \
    "'<|end_header_id|>\\n\\n'+message.content.strip()+'<|eot_id|>'%}{%if loop.index0==0%}"                           \
    "{%set content=bos_token+content%}{%endif%}{{content}}{%endfor%}"

#define LLAMA2_LOOP(system, else_system)                                                                            \
    "{%if messages[0].role=='system'%}{%set loop_messages=messages[1:]%}{%set system_message=messages[0].content%}" \
    "{%else%}{%set loop_messages=messages%}{%set system_message=false%}{%endif%}{%for message in loop_messages%}"   \
    "{%if(message.role=='user')!=(loop.index0%2==0)%}"                                                              \
    "{{raise_exception('Conversation roles must alternate user/assistant/user/assistant/...')}}{%endif%}"           \
    "{%if loop.index0==0 and system_message!=false%}{%set content='<<SYS>>\\n'+system_message+"                     \
    "'\\n<</SYS>>\\n\\n'+message.content%}{%else%}{%set content=message.content%}{%endif%}"                         \
    "{%if message.role=='user'%}{{bos_token}}[INST] {{content.strip()}} [/INST]" system                             \
    "{%elif message.role=='assistant'%} {{content.strip()}} {{eos_token}}{%endif%}{%endfor%}" else_system

/* Templates of published models and of this project. */
static const struct {
    const chat_format *format;
    const char *spelling;
} KNOWN[] = {
    {&CHATML, FOR_MESSAGES CHATML_DEFAULT CHATML_TURN CHATML_PROMPT}, /* SmolLM2 */
    {&CHATML, FOR_MESSAGES CHATML_TURN CHATML_PROMPT},                /* most ChatML, ours */
    {&CHATML, DEFAULT_NO_PROMPT FOR_MESSAGES CHATML_TURN CHATML_PROMPT},
    {&CHATML, DEFAULT_NO_PROMPT FOR_MESSAGES CHATML_DEFAULT CHATML_TURN CHATML_PROMPT},
    {&CHATML, FOR_MESSAGES CHATML_DEFAULT CHATML_TURN_QWEN}, /* Qwen 1.5, Qwen 2 */
    {&CHATML, FOR_MESSAGES CHATML_TURN_QWEN},
    {&ZEPHYR,
     FOR_MESSAGES "{%if " ZEPHYR_ROLE("user") "{%elif " ZEPHYR_ROLE("system") "{%elif " ZEPHYR_ROLE("assistant") /* */
     "{%endif%}{%if loop.last and add_generation_prompt%}<|assistant|>\n{%endif%}{%endfor%}"},
    {&ZEPHYR,
     FOR_MESSAGES "<|{{message.role}}|>\n{{message.content}}{{eos_token}}\n{%endfor%}" IF_PROMPT("<|assistant|>\n")},
    {&LLAMA3, LLAMA3_SET IF_PROMPT(LLAMA3_NEXT)},
    {&LLAMA3, LLAMA3_SET LLAMA3_NEXT},
    {&LLAMA3, DEFAULT_NO_PROMPT LLAMA3_SET "{%if add_generation_prompt%}" LLAMA3_NEXT "{%else%}{{eos_token}}{%endif%}"},
    {&LLAMA3,
     "{{bos_token}}" FOR_MESSAGES LLAMA3_ROLE "{{message.content.strip()}}<|eot_id|>{%endfor%}" IF_PROMPT(LLAMA3_NEXT)},
    {&LLAMA2, LLAMA2_LOOP("", "")},
    {&LLAMA2, LLAMA2_LOOP("{%elif message.role=='system'%}<<SYS>>\n{{content.strip()}}\n<</SYS>>\n\n", "")},
    {&LLAMA2, /* this project's */
     "{%if messages and messages[0].role=='system'%}{%set system='<<SYS>>\\n'+messages[0].content+"
     "'\\n<</SYS>>\\n\\n'%}{%set turns=messages[1:]%}{%else%}{%set system=''%}{%set turns=messages%}{%endif%}"
     "{%for turn in turns%}{%if turn.role!=('user' if loop.index0%2==0 else 'assistant')%}"
     "{{raise_exception('roles must alternate: user, assistant, user, assistant, \xE2\x80\xA6')}}"
     "{%elif turn.role=='user'%}{{bos_token}}[INST] {{((system if loop.first else '')+turn.content).strip()}} [/INST]"
     "{%else%} {{turn.content.strip()}} {{eos_token}}{%endif%}{%endfor%}"},
};

/* ------------------------------------------------------------------ text and strings */

typedef struct {
    const char *at;  /* position in the template */
    const char *end; /* as in Jinja, before one final newline */
    char *out;       /* the canonical spelling */
    size_t length, capacity;
    bool line_starts;       /* the line before `at` is empty or white space */
    bool failed, no_memory; /* no_memory: the cause of failed */
} canonicalizer;

static bool is_white(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_word(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c); }

static void put(canonicalizer *s, const char *bytes, size_t num_bytes) {
    if (s->length + num_bytes >= s->capacity) {
        s->failed = true;
        return;
    }
    memcpy(s->out + s->length, bytes, num_bytes);
    s->length += num_bytes;
}

static void put_text(canonicalizer *s, const char *text) { put(s, text, strlen(text)); }

/* Writes literal text, with braces escaped so that they cannot be mistaken for an expression. */
static void put_literal(canonicalizer *s, const char *bytes, size_t num_bytes) {
    for (size_t i = 0; i < num_bytes; i++) {
        const char c = bytes[i];
        if ((unsigned char)c < 0x20 && c != '\n' && c != '\t') s->failed = true;
        if (c == '{' || c == '}' || c == '\\') put(s, "\\", 1);
        put(s, &c, 1);
    }
}

/* Rewrites a string as '...' with \n, \t, \\ and \' escaped. s->at is after the opening quote. */
static void put_string(canonicalizer *s, char quote) {
    put(s, "'", 1);
    while (s->at < s->end && *s->at != quote) {
        char c = *s->at++;
        if (c == '\\') {
            c = s->at < s->end ? *s->at++ : 0;
            if (c == 'n') c = '\n';
            else if (c == 't') c = '\t';
            else if (c != '\\' && c != '\'' && c != '"') s->failed = true;
        }
        if (c == '\n') put(s, "\\n", 2);
        else if (c == '\t') put(s, "\\t", 2);
        else if ((unsigned char)c < 0x20) s->failed = true;
        else {
            if (c == '\\' || c == '\'') put(s, "\\", 1);
            put(s, &c, 1);
        }
    }
    if (s->at == s->end) s->failed = true;
    else s->at++;
    put(s, "'", 1);
}

static void skip_white(canonicalizer *s) {
    while (s->at < s->end && is_white(*s->at)) s->at++;
    if (s->at < s->end && (unsigned char)*s->at >= 0x80) s->failed = true; /* maybe white space */
}

static bool follows(const canonicalizer *s, const char *text) {
    return (size_t)(s->end - s->at) >= strlen(text) && memcmp(s->at, text, strlen(text)) == 0;
}

/* Rewrites x['name'] as x.name. s->at is after the bracket. False: it is another subscript. */
static bool put_subscript(canonicalizer *s) {
    const char *name = s->at;
    while (name < s->end && is_white(*name)) name++;
    const char quote = name < s->end ? *name++ : 0;
    if ((quote != '\'' && quote != '"') || name == s->end || !is_word(*name) || is_digit(*name)) return false;
    const char *after = name;
    while (after < s->end && is_word(*after)) after++;
    if (after == s->end || *after != quote) return false;
    const char *bracket = after + 1;
    while (bracket < s->end && is_white(*bracket)) bracket++;
    if (bracket == s->end || *bracket != ']') return false;
    put(s, ".", 1);
    put(s, name, (size_t)(after - name));
    s->at = bracket + 1;
    return true;
}

/* Rewrites x|trim as x.strip(). s->at is after the bar. False: it is another filter. */
static bool put_filter(canonicalizer *s) {
    const char *name = s->at;
    while (name < s->end && is_white(*name)) name++;
    if (s->end - name < 5 || memcmp(name, "trim", 4) != 0 || is_word(name[4])) return false;
    for (name += 4; name < s->end && is_white(*name);) name++;
    if (name < s->end && *name == '(') return false;
    put_text(s, ".strip()");
    s->at = name;
    return true;
}

/* ------------------------------------------------------------------ expressions and statements */

enum { MAX_SUMMANDS = 32 };

/* Where a sum a + b + c can be split, outside of all brackets. */
typedef struct {
    size_t offsets[MAX_SUMMANDS + 1]; /* of each + in the output */
    int num_offsets, depth;
    bool whole; /* do not split: there are other operators outside of brackets */
} split_points;

static void put_word(canonicalizer *s, split_points *c, size_t start) {
    const char *word = s->at;
    while (s->at < s->end && is_word(*s->at)) s->at++;
    const size_t length = (size_t)(s->at - word);
    if (s->length > start && (is_word(s->out[s->length - 1]) || strchr(")]'", s->out[s->length - 1]))) put(s, " ", 1);
    static const char *const operators[] = {"if", "else", "and", "or", "not", "in", "is"};
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
        if (c->depth == 0 && strlen(operators[i]) == length && memcmp(operators[i], word, length) == 0) c->whole = true;
    put(s, word, length);
}

static void put_operator(canonicalizer *s, split_points *c) {
    const char sign = *s->at++;
    if (sign == '[' && put_subscript(s)) return;
    if (sign == '|' && put_filter(s)) return;
    if (sign == '(' || sign == '[') c->depth++;
    else if (sign == ')' || sign == ']') c->depth--;
    else if ((sign == '+' || sign == '~') && c->depth == 0)
        if (c->num_offsets == MAX_SUMMANDS) s->failed = true;
        else c->offsets[c->num_offsets++] = s->length;
    else if (c->depth == 0 && sign != '.') c->whole = true;
    if (!strchr("()[].,:+~-*/%<>=!|", sign) || c->depth < 0) s->failed = true;
    put(s, &sign, 1);
}

/* Writes the canonical spelling of a tag up to its closing mark, "%}" or "}}", and moves s->at
 * after the mark. Returns the - or + before the mark, else a space. */
static char put_tag(canonicalizer *s, const char *mark, split_points *c) {
    const size_t start = s->length;
    *c = (split_points){0};
    while (!s->failed) {
        while (s->at < s->end && is_white(*s->at)) s->at++;
        if (s->at == s->end) break;
        const char first = *s->at;
        if ((c->depth == 0 || *mark == '%') && follows(s, mark)) {
            s->at += 2;
            return ' ';
        }
        if ((first == '-' || first == '+') && s->end - s->at >= 3 && s->at[1] == mark[0] && s->at[2] == mark[1]) {
            s->at += 3;
            return first;
        }
        if (first == '\'' || first == '"') {
            if (s->length > start && (is_word(s->out[s->length - 1]))) put(s, " ", 1);
            s->at++;
            put_string(s, first);
        } else if (is_word(first)) {
            put_word(s, c, start);
        } else {
            put_operator(s, c);
        }
    }
    s->failed = true; /* the tag is never closed */
    return ' ';
}

/* Writes a summand of an expression: a string literal as text, all else as {{...}}. */
static void put_summand(canonicalizer *s, const char *bytes, size_t num_bytes) {
    bool is_string = num_bytes >= 2 && bytes[0] == '\'';
    for (size_t i = 1; is_string && i < num_bytes; i++)
        if (bytes[i] == '\\') i++;
        else if (bytes[i] == '\'') is_string = i == num_bytes - 1;
    if (!is_string) {
        put_text(s, "{{");
        put(s, bytes, num_bytes);
        put_text(s, "}}");
        return;
    }
    for (size_t i = 1; i < num_bytes - 1; i++) {
        char c = bytes[i];
        if (c == '\\') {
            c = bytes[++i];
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
        }
        put_literal(s, &c, 1);
    }
}

/* Rewrites {{ a + 'b' }} as {{a}}b. Returns as put_tag. */
static char put_expression(canonicalizer *s) {
    const size_t start = s->length;
    split_points c;
    const char closing = put_tag(s, "}}", &c);
    if (s->failed) return closing;
    const size_t length = s->length - start;
    char *expression = malloc(length + 1);
    if (!expression) {
        s->failed = s->no_memory = true;
        return closing;
    }
    memcpy(expression, s->out + start, length);
    s->length = start;
    if (c.whole) c.num_offsets = 0;
    size_t from = 0;
    for (int i = 0; i <= c.num_offsets; i++) {
        const size_t to = i < c.num_offsets ? c.offsets[i] - start : length;
        put_summand(s, expression + from, to - from);
        from = to + 1;
    }
    free(expression);
    return closing;
}

/* ------------------------------------------------------------------ template */

/* Writes the text up to the next tag, without the white space that the tag strips (by a dash, or by
 * lstrip_blocks). A byte from 0x80 on may be Unicode white space, which is not supported. */
static void put_raw(canonicalizer *s) {
    const char *text = s->at, *tag = text;
    while (tag < s->end && !(tag[0] == '{' && tag + 1 < s->end && strchr("{%#", tag[1]))) tag++;
    size_t length = (size_t)(tag - text);
    const char dash = s->end - tag >= 3 ? tag[2] : 0;
    if (tag < s->end && dash == '-') {
        while (length > 0 && is_white(text[length - 1])) length--;
        if (length > 0 && (unsigned char)text[length - 1] >= 0x80) s->failed = true;
    } else if (tag < s->end && tag[1] != '{' && dash != '+') {
        size_t line = length;
        while (line > 0 && is_white(text[line - 1]) && text[line - 1] != '\n') line--;
        if ((line > 0 && text[line - 1] == '\n') || (line == 0 && s->line_starts)) length = line;
    }
    put_literal(s, text, length);
    s->at = tag;
}

/* Skips the white space that the tag strips after it: by a dash, or by trim_blocks. */
static void skip_after(canonicalizer *s, char closing, bool is_expression) {
    const char *before = s->at;
    if (closing == '-') skip_white(s);
    else if (!is_expression && closing != '+' && s->at < s->end && *s->at == '\n') s->at++;
    s->line_starts = s->at > before && s->at[-1] == '\n';
}

static void skip_comment(canonicalizer *s) {
    while (s->at < s->end && !follows(s, "#}")) s->at++;
    if (s->at == s->end) {
        s->failed = true;
        return;
    }
    const char closing = s->at[-1];
    s->at += 2;
    skip_after(s, closing, false);
}

static void canonicalize(canonicalizer *s) {
    s->line_starts = true;
    while (s->at < s->end && !s->failed) {
        put_raw(s);
        if (s->at == s->end) break;
        const char kind = s->at[1];
        s->at += 2;
        if (kind == '#') {
            skip_comment(s);
            continue;
        }
        if (s->at < s->end && (*s->at == '-' || *s->at == '+')) s->at++;
        if (kind == '{') {
            skip_after(s, put_expression(s), true);
        } else {
            split_points c;
            put_text(s, "{%");
            const size_t start = s->length;
            const char closing = put_tag(s, "%}", &c);
            if (s->length - start == 3 && memcmp(s->out + start, "raw", 3) == 0) s->failed = true;
            put_text(s, "%}");
            skip_after(s, closing, false);
        }
    }
}

char *chat_template_canonical(const char *template_text, bool *no_memory) {
    const size_t num_bytes = strlen(template_text);
    canonicalizer s = {.at = template_text, .end = template_text + num_bytes, .capacity = 4 * num_bytes + 16};
    if (num_bytes > 0 && s.end[-1] == '\n') s.end--;
    *no_memory = false;
    if (num_bytes > ((size_t)1 << 16) || strchr(template_text, '\r')) return NULL;
    s.out = malloc(s.capacity);
    *no_memory = !s.out;
    if (!s.out) return NULL;
    canonicalize(&s);
    *no_memory = s.no_memory;
    if (s.failed) {
        free(s.out);
        return NULL;
    }
    s.out[s.length] = 0;
    return s.out;
}

/* True if canonical equals spelling, where ANY_TEXT (at most one) matches plain text:
 * *text[*num_bytes]. */
static bool matches(const char *canonical, const char *spelling, const char **text, size_t *num_bytes) {
    const char *any = strstr(spelling, ANY_TEXT);
    *text = NULL;
    if (!any) return strcmp(canonical, spelling) == 0;
    const size_t length = strlen(canonical), before = (size_t)(any - spelling), after = strlen(any + 1);
    if (length < before + after || memcmp(canonical, spelling, before) != 0) return false;
    if (memcmp(canonical + length - after, any + 1, after) != 0) return false;
    *text = canonical + before;
    *num_bytes = length - before - after;
    for (size_t i = 0; i < *num_bytes; i++)
        if (strchr("{}\\<>", (*text)[i])) return false;
    return *num_bytes < MAX_DEFAULT_SYSTEM_BYTES;
}

const chat_format *chat_template_recognize(const char *template_text, char default_system[MAX_DEFAULT_SYSTEM_BYTES],
                                           bool *has_default_system, bool *no_memory) {
    char *canonical = chat_template_canonical(template_text, no_memory);
    const chat_format *format = NULL;
    for (size_t i = 0; canonical && !format && i < sizeof KNOWN / sizeof *KNOWN; i++) {
        const char *text;
        size_t num_bytes = 0;
        if (!matches(canonical, KNOWN[i].spelling, &text, &num_bytes)) continue;
        format = KNOWN[i].format;
        *has_default_system = text;
        if (text) memcpy(default_system, text, num_bytes);
        default_system[num_bytes] = 0;
    }
    free(canonical);
    return format;
}
