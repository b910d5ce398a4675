/* test_chat_template.c: equivalent spellings of templates, recognition of known ones, and arbitrary
 * bytes. */
#include "tokenizer/chat_template.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

static bool no_memory;

static const char *const SMOLLM2 =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe "
    "kind.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

static void check_spelling(const char *template_text, const char *expected) {
    char *found = chat_template_canonical(template_text, &no_memory);
    if (!expected) CHECK(!found, "%s: found %s", template_text, found);
    else
        CHECK(found && strcmp(found, expected) == 0, "%s: expected %s, found %s", template_text, expected,
              found ? found : "nothing");
    free(found);
}

/* The expected texts follow Jinja's rules with trim_blocks and lstrip_blocks. */
static void test_spellings(void) {
    check_spelling("a {{ x }} b\n", "a {{x}} b");
    check_spelling("a {{- x['b'][\"c\"] -}} \n b", "a{{x.b.c}}b");
    check_spelling("{{ 'a\\n' + x|trim + \"b'\" ~ y }}", "a\n{{x.strip()}}b'{{y}}");
    check_spelling("{{ 'a' if x else 'b' + 'c' }}", "{{'a' if x else 'b'+'c'}}");
    check_spelling("{{ f(x + 'a') + 'b' }}", "{{f(x+'a')}}b");
    check_spelling("  {% if x %}\n  a\n  {% endif %}\nb", "{%if x%}  a\n{%endif%}b");
    check_spelling("x  {% if x %}\n\na{%+ endif +%}\nb", "x  {%if x%}\na{%endif%}\nb");
    check_spelling("a {#- no {{ x }} -#} b\n {# no #}\nc", "ab\nc");
    check_spelling("a\n  {%- set x = messages[ 1 : ] %}\n{{ '{' }}{", "a{%set x=messages[1:]%}\\{\\{");
    check_spelling("{{ x[ y ] }}{{ x['a b'] }}{{ x|trim(1) }}{{ trim }}", "{{x[y]}}{{x['a b']}}{{x|trim(1)}}{{trim}}");
    const char *const broken[] = {
        "{{ x",    "{% if", "{{ 'x }}",       "{{ x) }}",    "{{ 'a\\x' }}",       "{# a", "{% raw %}{% endraw %}",
        "{{ ( }}", "a\r\n", "{{ {'a': 1} }}", "{{ x ? y }}", "{{ x -}} \xC2\xA0y", "{{",   "{%-"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) check_spelling(broken[i], NULL);
}

static void test_recognition(void) {
    char system[MAX_DEFAULT_SYSTEM_BYTES];
    bool has_system;
    const chat_format *format = chat_template_recognize(SMOLLM2, system, &has_system, &no_memory);
    CHECK(format && strcmp(format->family, "chatml") == 0, "SmolLM2's template is not recognized");
    CHECK(has_system && strcmp(system, "Be kind.") == 0, "found %s", system);
    const char *const others[] = {"", "{{ messages }}", "<|im_start|>", "{% for message in messages %}<|im_start|>"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        CHECK(chat_template_recognize(others[i], system, &has_system, &no_memory) == NULL, "%s", others[i]);
    /* Without any one of its bytes, except white space, it must not be recognized. */
    const size_t length = strlen(SMOLLM2);
    char *changed = malloc(length + 1);
    int num_known = 0;
    for (size_t i = 0; changed && i < length; i++) {
        memcpy(changed, SMOLLM2, i);
        strcpy(changed + i, SMOLLM2 + i + 1);
        format = chat_template_recognize(changed, system, &has_system, &no_memory);
        if (!format) continue;
        num_known++;
        CHECK(strchr(" Bekind.", SMOLLM2[i]) != NULL, "still recognized without byte %zu, '%c'", i, SMOLLM2[i]);
    }
    CHECK(num_known >= 8, "found %d", num_known);
    free(changed);
}

/* Pieces of templates in any order: no memory errors (ASan and UBSan check this). */
static void test_any_bytes(void) {
    static const char *const pieces[] = {"{{", "}}", "{%", "%}",       "{#", "#}", "-", "+",     "'",     "\"",
                                         "\\", "\n", " ",  "(",        ")",  "[",  "]", "['a']", "|trim", "|",
                                         "if", "x",  "~",  "\xC3\xA9", "{",  "}",  "0", "raw"};
    uint64_t state = 7;
    for (int round = 0; round < 100000; round++) {
        char text[256];
        size_t length = 0;
        for (int i = 0; i < 24; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            const char *piece = pieces[(state >> 33) % (sizeof pieces / sizeof *pieces)];
            memcpy(text + length, piece, strlen(piece));
            length += strlen(piece);
        }
        text[length] = 0;
        char *spelled = chat_template_canonical(text, &no_memory);
        CHECK(!spelled || strlen(spelled) <= 4 * length + 16, "%s: too long", text);
        free(spelled);
    }
}

int main(void) {
    test_spellings();
    test_recognition();
    test_any_bytes();
    return check_failures();
}
