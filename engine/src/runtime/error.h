/* error.h: how the engine reports errors. */
#ifndef LLAMITA_ERROR_H
#define LLAMITA_ERROR_H

#include <stdarg.h>

#include "llamita.h"

/* Formats the message into error (unless NULL) and returns status, so that callers can write:
 * return error_set(error, LLAMITA_..., "..."). The message is one line, cut at a UTF-8 character
 * boundary if it is too long, with control characters of foreign strings replaced by '?'. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
llamita_status error_set(llamita_error *error, llamita_status status, const char *format, ...);

/* The same from a va_list. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 0)))
#endif
llamita_status error_set_list(llamita_error *error, llamita_status status, const char *format, va_list arguments);

/* Returns path, or a pointer to its end if it is so long that it would push the reason out of the
 * message. */
const char *error_path(const char *path);

/* Copies foreign bytes as one clean line of UTF-8 into line[capacity], NUL-terminated and cut at a
 * character boundary; control characters and bytes that are not UTF-8 become '?'. */
void error_clean_line(char *line, size_t capacity, const char *bytes, size_t num_bytes);

#endif
