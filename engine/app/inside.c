/* inside.c: the model inside this program, if `llamita export --as program` put one there. */
#include "inside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "system.h"

/* The export writes the model's mode behind the colon: so a program that was cut knows that it had
 * a model. volatile: the compiler must not read it now. */
#define SLOT_NAME "llamita program mode:"
enum { MODE_BYTES = 16, TRAILER_BYTES = 32 };
static const volatile char slot[sizeof SLOT_NAME - 1 + MODE_BYTES] = SLOT_NAME;

static bool ends_with_trailer(const char *path) {
    char end[TRAILER_BYTES] = {0};
    FILE *file = system_open_file(path);
    if (!file) fail("cannot open this program, which has the model inside: %s", path);
    const bool found = fseek(file, -TRAILER_BYTES, SEEK_END) == 0 && fread(end, 1, sizeof end, file) == sizeof end;
    fclose(file);
    return found && memcmp(end, "llamita-program\n", 16) == 0;
}

const char *model_inside(const char **mode) {
    static char name[MODE_BYTES];
    for (int i = 0; i < MODE_BYTES; i++) name[i] = slot[sizeof SLOT_NAME - 1 + (size_t)i];
    name[MODE_BYTES - 1] = 0;
    if (!name[0]) return NULL;
    const char *path = system_program_path();
    if (!path) fail("cannot find the model in this program: the system does not say where the program is");
    if (!ends_with_trailer(path)) fail("the model in this program is cut off; copy or download it again: %s", path);
    *mode = name;
    return path;
}
