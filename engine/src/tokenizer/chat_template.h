/* chat_template.h: a Jinja chat template, as text, to the format that it stands for, if it is one of those known here. */
#ifndef LLAMITA_CHAT_TEMPLATE_H
#define LLAMITA_CHAT_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>

#define CHAT_EOS '\x02' /* in the strings below: the text of the EOS token */

/* How a turn is written. llama2 stands apart: there a system prompt is segment of the user's first turn. */
typedef struct {
    const char *family; /* "chatml", "llama2", "llama3", "zephyr" */
    bool begins_with_bos, trims_contents;
    const char *before_role, *after_role, *after_content;
} chat_format;

#define MAX_DEFAULT_SYSTEM_BYTES 1024

/* The format of a template that writes [system] user (assistant user)* and the beginning of the next answer exactly as
 * the format says; NULL if it may write anything else. default_system becomes what the template puts in the place of a
 * missing system prompt; *has_default_system: whether it does so. */
const chat_format *chat_template_recognize(const char *template_text, char default_system[MAX_DEFAULT_SYSTEM_BYTES],
                                           bool *has_default_system);

/* The template in a spelling that does not depend on white space, quotes or ways of saying the same: what it writes,
 * as it is; expressions as {{a.b}}; statements as {%if a=='b'%}. Malloc'ed; NULL: cannot be read, or no memory. */
char *chat_template_canonical(const char *template_text);

#endif
