/* error.h: how the engine's files report what went wrong. */
#ifndef LLAMITA_ERROR_H
#define LLAMITA_ERROR_H

#include "llamita.h"

/* Writes the message (printf style, one line, cut at the buffer's end on a UTF-8 border, control characters of foreign
 * strings replaced by '?') and returns status, so that callers can say: return error_set(error, LLAMITA_..., "..."). */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
llamita_status error_set(llamita_error *error, llamita_status status, const char *format, ...);

#endif
