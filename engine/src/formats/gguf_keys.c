/* gguf_keys.c: reads keys of a GGUF by their description in gguf_keys.h. */
#include "formats/gguf_keys.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "llamita.h"

typedef enum { IS_REQUIRED, IS_OPTIONAL, IS_FIXED, IS_IGNORED } key_use;

typedef enum {
    IS_TEXT,
    IS_WHOLE,
    IS_LAYERS,
    IS_REAL,
    IS_NUMBER,
    IS_FLAG,
    IS_TOKEN,
    IS_TEXTS,
    IS_WHOLES,
    IS_REALS
} key_kind;

static const char *const KIND_NAMES[] = {"text", "whole", "layers", "real",   "number",
                                         "flag", "token", "texts",  "wholes", "reals"};
static const char *const USE_NAMES[] = {"required", "optional", "fixed", "ignored"};

static const struct {
    const char *name;
    key_kind kind;
    key_use use;
    double low, high, fallback;
    const char *feature;
} KEYS[] = {
#define ROW(identifier, key, kind, use, low, high, fallback, feature) \
    {key, IS_##kind, IS_##use, (double)(low), (double)(high), (double)(fallback), feature},
    GGUF_KEYS(ROW)
#undef ROW
};

key_name gguf_key_name(const gguf_file *file, gguf_key key) {
    static const char prefix[] = "llama.";
    key_name name;
    const bool is_prefixed = strncmp(KEYS[key].name, prefix, strlen(prefix)) == 0;
    snprintf(name.text, sizeof name.text, "%s%s", is_prefixed ? file->architecture->name : "",
             KEYS[key].name + (is_prefixed ? strlen(prefix) - 1 : 0));
    return name;
}

llamita_status gguf_key_integer(const gguf_file *file, gguf_key key, int64_t *value, bool *found) {
    const key_name name = gguf_key_name(file, key);
    bool exists = true;
    bool *optional = KEYS[key].use == IS_REQUIRED ? NULL : &exists;
    const int64_t low = (int64_t)KEYS[key].low, high = (int64_t)KEYS[key].high;
    *value = (int64_t)KEYS[key].fallback;
    if (found) *found = gguf_find(file, name.text);
    return KEYS[key].kind == IS_LAYERS ? gguf_layer_integer(file, name.text, low, high, value, optional)
                                       : gguf_integer(file, name.text, low, high, value, optional);
}

llamita_status gguf_key_real(const gguf_file *file, gguf_key key, double *value, bool *found) {
    const key_name name = gguf_key_name(file, key);
    bool exists = true;
    double number = KEYS[key].fallback;
    llamita_status status = gguf_real(file, name.text, &number, KEYS[key].use == IS_REQUIRED ? NULL : &exists);
    if (found) *found = exists;
    /* In float: a bound of 1e-6 accepts the float nearest to it. */
    if (!status && exists && ((float)number < (float)KEYS[key].low || (float)number > (float)KEYS[key].high)) {
        return reader_error(&file->from, "key %s: expected %g to %g, found %g; the file is damaged", name.text,
                            KEYS[key].low, KEYS[key].high, number);
    }
    *value = number;
    return status;
}

llamita_status gguf_key_text(const gguf_file *file, gguf_key key, byte_slice *value, bool *found) {
    bool exists = true;
    llamita_status status =
        gguf_string(file, gguf_key_name(file, key).text, value, KEYS[key].use == IS_REQUIRED ? NULL : &exists);
    if (found) *found = exists;
    return status;
}

llamita_status gguf_check_fixed_keys(const gguf_file *file) {
    for (int key = 0; key < NUM_GGUF_KEYS; key++) {
        bool found;
        double value = KEYS[key].fallback;
        if (KEYS[key].use != IS_FIXED) continue;
        const key_name name = gguf_key_name(file, (gguf_key)key);
        llamita_status status = gguf_number(file, name.text, &value, &found);
        if (status) return status;
        if (value != KEYS[key].fallback) {
            return reader_error(&file->from, "key %s: expected %g, found %g; %s are not supported", name.text,
                                KEYS[key].fallback, value, KEYS[key].feature);
        }
    }
    return LLAMITA_OK;
}

bool llamita_gguf_key(size_t index, llamita_gguf_key_info *info) {
    if (index >= NUM_GGUF_KEYS) return false;
    *info = (llamita_gguf_key_info){
        KEYS[index].name, KIND_NAMES[KEYS[index].kind], USE_NAMES[KEYS[index].use], KEYS[index].low,
        KEYS[index].high, KEYS[index].fallback,         KEYS[index].feature};
    return true;
}
