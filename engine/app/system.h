/* system.h: what the program asks of the operating system. Each system has one file:
 * system_posix.c (also for WASI), system_windows.c. */
#ifndef APP_SYSTEM_H
#define APP_SYSTEM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#if defined(_WIN32)
#define END_OF_INPUT_KEY "Ctrl-Z"
#else
#define END_OF_INPUT_KEY "Ctrl-D"
#endif

/* Call it first. Makes the arguments, the console and all output UTF-8. False: out of memory. */
bool system_start(int *argc, char ***argv);

extern atomic_bool interrupted; /* Ctrl-C was pressed */

/* From now on Ctrl-C sets interrupted, a second one ends the program, and writing to a closed pipe
 * is an error. restart: reading goes on after Ctrl-C. */
void system_catch_interrupts(bool restart);

/* True if a failed write to stdout with this errno means that its reader is gone. */
bool system_is_broken_pipe(int code);

/* stream: stdin or stderr. For stderr, true means that it shows colors, too. */
bool system_is_terminal(FILE *stream);

/* Whether stdin is a pipe or a file, and not a terminal or the null device. */
bool system_stdin_is_piped(void);

/* Waits until there is something to read on stdin, or its end, but no longer than this. False:
 * nothing yet. Systems that cannot wait return true. */
bool system_wait_for_stdin(int milliseconds);

/* The path of this program in UTF-8, which the caller frees. NULL: the system does not say. */
char *system_program_path(void);

/* Opens a file for reading bytes; path is UTF-8. NULL: see errno. */
FILE *system_open_file(const char *path);

/* False: there is nothing at this path. True for a link to nothing, and where the system does not say.
 * Opens nothing: that would block at a pipe. */
bool system_path_exists(const char *path);

/* The bytes of a path that name its folder, with the separator; 0 if there are none. */
size_t system_folder_length(const char *path);

/* Reads a line of stdin with its line end into *line, which grows and which the caller frees.
 * Returns its length, or -1 at the end of stdin, after an error and after Ctrl-C. */
ptrdiff_t system_read_line(char **line, size_t *capacity);

/* Seconds of a monotonic clock. */
double system_seconds(void);

/* Another number in every run. */
uint64_t system_seed(void);

#endif
