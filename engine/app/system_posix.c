/* system_posix.c: what the program asks of the operating system, on POSIX systems and WASI. */
#if !defined(_WIN32)
#include "system.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if !defined(__wasi__)
#include <signal.h>
#endif
#if defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

atomic_bool interrupted;

bool system_start(int *argc, char ***argv) {
    (void)argc, (void)argv;
    return true;
}

#if defined(__wasi__)
void system_catch_interrupts(bool restart) { (void)restart; }
#else
static void on_interrupt(int signal_number) {
    (void)signal_number;
    atomic_store(&interrupted, true);
}

void system_catch_interrupts(bool restart) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = (int)(restart ? SA_RESETHAND | SA_RESTART : SA_RESETHAND);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}
#endif

bool system_is_broken_pipe(int code) { return code == EPIPE; }

bool system_is_terminal(FILE *stream) { return isatty(fileno(stream)); }

bool system_stdin_is_piped(void) {
    struct stat status;
    return fstat(STDIN_FILENO, &status) == 0 && (S_ISFIFO(status.st_mode) || S_ISREG(status.st_mode));
}

bool system_wait_for_stdin(int milliseconds) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    return poll(&input, 1, milliseconds) != 0;
}

char *system_program_path(void) {
    enum { MAX_PATH_BYTES = 1 << 16 };
    char *path = calloc(MAX_PATH_BYTES, 1);
    if (!path) return NULL;
#if defined(__APPLE__)
    uint32_t num_bytes = MAX_PATH_BYTES;
    if (_NSGetExecutablePath(path, &num_bytes) == 0) return path;
#elif !defined(__wasi__)
    if (readlink("/proc/self/exe", path, MAX_PATH_BYTES - 1) > 0) return path;
#endif
    free(path);
    return NULL;
}

FILE *system_open_file(const char *path) { return fopen(path, "rb"); }

bool system_path_exists(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0 || errno != ENOENT;
}

size_t system_folder_length(const char *path) {
    const char *last = strrchr(path, '/');
    return last ? (size_t)(last - path) + 1 : 0;
}

ptrdiff_t system_read_line(char **line, size_t *capacity) { return getline(line, capacity, stdin); }

double system_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

uint64_t system_seed(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed = (uint64_t)now.tv_sec * 1000003u + (uint64_t)now.tv_nsec;
#if !defined(__wasi__)
    seed += (uint64_t)getpid();
#endif
    return seed;
}
#else
typedef int not_this_system; /* C forbids an empty file */
#endif
