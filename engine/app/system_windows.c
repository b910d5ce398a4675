/* system_windows.c: what the program asks of the operating system, on Windows. */
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include "system.h"

#include <errno.h>
#include <fcntl.h>
#include <io.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <windows.h>

#include <shellapi.h>

#if !defined(ENABLE_VIRTUAL_TERMINAL_PROCESSING)
#define ENABLE_VIRTUAL_TERMINAL_PROCESSING 0x0004
#endif

atomic_bool interrupted;

/* ------------------------------------------------------------------ UTF-8 */

static UINT output_code_page; /* of the console before the program started; 0: no console */

static void restore_console(void) { SetConsoleOutputCP(output_code_page); }

/* The console keeps its code page after the program has ended. */
static void set_console(void) {
    output_code_page = GetConsoleOutputCP();
    if (output_code_page && SetConsoleOutputCP(CP_UTF8)) atexit(restore_console);
    const HANDLE console = GetStdHandle(STD_ERROR_HANDLE);
    DWORD mode;
    if (GetConsoleMode(console, &mode)) SetConsoleMode(console, mode | ENABLE_VIRTUAL_TERMINAL_PROCESSING);
}

/* The first num_units units as UTF-8, which the caller frees. NULL: out of memory. */
static char *to_utf8(const wchar_t *wide, int num_units, int *num_bytes) {
    *num_bytes = WideCharToMultiByte(CP_UTF8, 0, wide, num_units, NULL, 0, NULL, NULL);
    char *text = malloc((size_t)*num_bytes + 1);
    if (!text) return NULL;
    WideCharToMultiByte(CP_UTF8, 0, wide, num_units, text, *num_bytes, NULL, NULL);
    text[*num_bytes] = '\0';
    return text;
}

/* main's own arguments are in the code page of the system, which lacks most characters. */
static bool read_arguments(int *argc, char ***argv) {
    int count = 0, num_bytes;
    wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), &count);
    char **arguments = wide ? calloc((size_t)count + 1, sizeof *arguments) : NULL;
    if (!arguments) return false;
    for (int i = 0; i < count; i++) {
        arguments[i] = to_utf8(wide[i], (int)wcslen(wide[i]), &num_bytes);
        if (!arguments[i]) return false;
    }
    LocalFree(wide);
    *argc = count;
    *argv = arguments; /* until the program ends */
    return true;
}

/* Binary: a line ends with one byte, as everywhere else. */
bool system_start(int *argc, char ***argv) {
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
    _setmode(_fileno(stderr), _O_BINARY);
    set_console();
    return read_arguments(argc, argv);
}

/* ------------------------------------------------------------------ Ctrl-C */

/* Windows calls it in a thread of its own. FALSE: the system ends the program. */
static BOOL WINAPI on_interrupt(DWORD event) {
    if (event != CTRL_C_EVENT && event != CTRL_BREAK_EVENT) return FALSE;
    return !atomic_exchange(&interrupted, true);
}

void system_catch_interrupts(bool restart) {
    static bool caught;
    (void)restart; /* reading the console always ends */
    if (!caught) SetConsoleCtrlHandler(on_interrupt, TRUE);
    caught = true;
}

/* The C library has no name for the pipe's error and says EINVAL. */
bool system_is_broken_pipe(int code) { return code == EPIPE || code == EINVAL; }

/* ------------------------------------------------------------------ input */

bool system_is_terminal(FILE *stream) {
    DWORD mode;
    const HANDLE handle = GetStdHandle(stream == stdin ? STD_INPUT_HANDLE : STD_ERROR_HANDLE);
    if (!GetConsoleMode(handle, &mode)) return false;
    return stream == stdin || (mode & ENABLE_VIRTUAL_TERMINAL_PROCESSING) != 0;
}

static bool append(char **line, size_t *capacity, size_t *length, const char *bytes, size_t num_bytes) {
    if (*length + num_bytes + 1 > *capacity) {
        const size_t wanted = 2 * (*length + num_bytes + 1);
        char *grown = realloc(*line, wanted);
        if (!grown) return false;
        *line = grown;
        *capacity = wanted;
    }
    memcpy(*line + *length, bytes, num_bytes);
    *length += num_bytes;
    (*line)[*length] = '\0';
    return true;
}

/* As UTF-16, because reading UTF-8 from a console turns most characters into NUL. */
static ptrdiff_t read_console_line(char **line, size_t *capacity) {
    size_t length = 0;
    while (length == 0 || (*line)[length - 1] != '\n') {
        wchar_t wide[2048];
        DWORD count = 0;
        int num_bytes;
        SetLastError(0);
        if (!ReadConsoleW(GetStdHandle(STD_INPUT_HANDLE), wide, sizeof wide / sizeof *wide, &count, NULL)) return -1;
        if (count == 0) {
            if (GetLastError() == ERROR_OPERATION_ABORTED) atomic_store(&interrupted, true);
            return -1;
        }
        if (length == 0 && wide[0] == L'\x1A') return -1; /* Ctrl-Z */
        char *text = to_utf8(wide, (int)count, &num_bytes);
        const bool stored = text && append(line, capacity, &length, text, (size_t)num_bytes);
        free(text);
        if (!stored) return -1;
    }
    return (ptrdiff_t)length;
}

bool system_stdin_is_piped(void) {
    const DWORD type = GetFileType(GetStdHandle(STD_INPUT_HANDLE));
    return type == FILE_TYPE_PIPE || type == FILE_TYPE_DISK;
}

bool system_wait_for_stdin(int milliseconds) {
    (void)milliseconds; /* a pipe cannot be waited for */
    return true;
}

char *system_program_path(void) {
    enum { MAX_UNITS = 1 << 15 }; /* the longest path of the system */
    wchar_t *wide = malloc(MAX_UNITS * sizeof *wide);
    const DWORD count = wide ? GetModuleFileNameW(NULL, wide, MAX_UNITS) : 0;
    int num_bytes;
    char *path = count > 0 && count < MAX_UNITS ? to_utf8(wide, (int)count, &num_bytes) : NULL;
    free(wide);
    return path;
}

/* The caller frees it. NULL: see errno. */
static wchar_t *to_wide(const char *path) {
    const int num_units = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, NULL, 0);
    wchar_t *wide = num_units > 0 ? malloc((size_t)num_units * sizeof *wide) : NULL;
    if (wide) MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, num_units);
    else errno = num_units > 0 ? ENOMEM : ENOENT;
    return wide;
}

FILE *system_open_file(const char *path) {
    wchar_t *wide = to_wide(path);
    FILE *file = wide ? _wfopen(wide, L"rb") : NULL;
    free(wide);
    return file;
}

bool system_path_exists(const char *path) {
    wchar_t *wide = to_wide(path);
    const bool exists = !wide || GetFileAttributesW(wide) != INVALID_FILE_ATTRIBUTES ||
                        (GetLastError() != ERROR_FILE_NOT_FOUND && GetLastError() != ERROR_PATH_NOT_FOUND);
    free(wide);
    return exists;
}

size_t system_folder_length(const char *path) {
    size_t length = 0;
    for (size_t i = 0; path[i]; i++)
        if (strchr("/\\:", path[i])) length = i + 1;
    return length;
}

ptrdiff_t system_read_line(char **line, size_t *capacity) {
    if (system_is_terminal(stdin)) return read_console_line(line, capacity);
    size_t length = 0;
    for (int c = getchar(); c != EOF; c = getchar()) {
        const char byte = (char)c;
        if (!append(line, capacity, &length, &byte, 1)) return -1;
        if (byte == '\n') break;
    }
    return length > 0 && !ferror(stdin) ? (ptrdiff_t)length : -1;
}

/* ------------------------------------------------------------------ clock */

double system_seconds(void) {
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart / (double)per_second.QuadPart;
}

uint64_t system_seed(void) {
    LARGE_INTEGER ticks;
    QueryPerformanceCounter(&ticks);
    return (uint64_t)time(NULL) * 1000003u + (uint64_t)ticks.QuadPart + GetCurrentProcessId();
}
#else
typedef int not_this_system; /* C forbids an empty file */
#endif
