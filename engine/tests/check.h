/* check.h: counts and prints what a test program finds wrong; the program ends with `return check_failures();`. */
#ifndef LLAMITA_CHECK_H
#define LLAMITA_CHECK_H

#include <stdio.h>

static int check_num_failures;

/* Prints where and what, and goes on. The message is printf's, and says what was found. */
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
