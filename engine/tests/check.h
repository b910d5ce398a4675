/* check.h: CHECK counts and prints the failures of a test program. A test program ends with `return
 * check_failures();`. */
#ifndef LLAMITA_CHECK_H
#define LLAMITA_CHECK_H

#include <stdio.h>

static int check_num_failures;

/* On failure prints the place, the condition and a printf-style message that says what was found,
 * and goes on. */
#define CHECK(condition, ...)                                               \
    do {                                                                    \
        if (!(condition)) {                                                 \
            check_num_failures++;                                           \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                                   \
            fputc('\n', stderr);                                            \
        }                                                                   \
    } while (0)

static inline int check_failures(void) { return check_num_failures != 0; }

#endif
