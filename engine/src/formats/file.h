/* file.h: opens a file that the caller named. */
#ifndef LLAMITA_FILE_H
#define LLAMITA_FILE_H

#include "llamita.h"
#include "platform/platform.h"

/* Opens a non-empty regular file. what: for messages, "model", "tokenizer" or "adapter". whole: copy
 * all of it, so that nobody can change it. The caller closes it with platform_file_close. */
llamita_status file_open(const char *what, const char *path, bool whole, platform_file *file, llamita_error *error);

#endif
