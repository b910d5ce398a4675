/* chat_template.h: recognizes known chat templates (ChatML, Llama 2, Llama 3, Zephyr) without
 * executing Jinja. */
#ifndef LLAMITA_CHAT_TEMPLATE_H
#define LLAMITA_CHAT_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>

#define CHAT_EOS '\x02' /* in the strings below: the text of the EOS token */

/* How a turn is rendered. llama2 is special: its system prompt is part of the first user turn, and
 * the last three fields are NULL. */
typedef struct {
    const char *family; /* "chatml", "llama2", "llama3", "zephyr" */
    bool begins_with_bos, trims_contents;
    const char *before_role, *after_role, *after_content;
} chat_format;

#define MAX_DEFAULT_SYSTEM_BYTES 1024

/* The format of a template that renders [system] user (assistant user)* and the start of the next
 * answer exactly as described; NULL if it may render anything else, or *no_memory.
 * *has_default_system: the template has a default system prompt, which is copied to
 * default_system. */
const chat_format *chat_template_recognize(const char *template_text, char default_system[MAX_DEFAULT_SYSTEM_BYTES],
                                           bool *has_default_system, bool *no_memory);

/* The template in a canonical spelling, independent of white space, quotes and equivalent
 * expressions: literal text unchanged, expressions as {{a.b}}, statements as {%if a=='b'%}. The
 * caller frees it. NULL: the template cannot be parsed, or *no_memory. */
char *chat_template_canonical(const char *template_text, bool *no_memory);

#endif
