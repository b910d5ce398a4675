/* windows.c: the platform layer on Windows. */
#if defined(_WIN32)
#if !defined(_WIN32_WINNT)
#define _WIN32_WINNT 0x0601 /* Windows 7: SRW locks, condition variables */
#endif
#define WIN32_LEAN_AND_MEAN
#include "platform/platform.h"

#include <limits.h>
#include <malloc.h>
#include <process.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

/* ------------------------------------------------------------------ files */

static bool fail_with(DWORD code, char *reason) {
    switch (code) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND:
    case ERROR_INVALID_NAME: snprintf(reason, PLATFORM_REASON_BYTES, "No such file or directory"); break;
    case ERROR_ACCESS_DENIED:
    case ERROR_SHARING_VIOLATION: snprintf(reason, PLATFORM_REASON_BYTES, "Permission denied"); break;
    case ERROR_NOT_ENOUGH_MEMORY: snprintf(reason, PLATFORM_REASON_BYTES, "out of memory"); break;
    default: snprintf(reason, PLATFORM_REASON_BYTES, "Windows error %lu", (unsigned long)code);
    }
    return false;
}

static bool fail_because(const char *found, char *reason) {
    snprintf(reason, PLATFORM_REASON_BYTES, "%s", found);
    return false;
}

/* The caller frees it. NULL: out of memory, or not UTF-8. */
static wchar_t *to_wide(const char *text) {
    const int length = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, NULL, 0);
    wchar_t *wide = length > 0 ? malloc((size_t)length * sizeof *wide) : NULL;
    if (wide) MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, wide, length);
    return wide;
}

static bool map(platform_file *file, HANDLE handle, char *reason) {
    LARGE_INTEGER size;
    if (GetFileType(handle) != FILE_TYPE_DISK)
        return fail_because("expected a regular file, found a device or a pipe", reason);
    if (!GetFileSizeEx(handle, &size)) return fail_with(GetLastError(), reason);
    if ((uint64_t)size.QuadPart > SIZE_MAX) return fail_because("the file is larger than the address space", reason);
    file->num_bytes = (size_t)size.QuadPart;
    if (file->num_bytes == 0) return true;
    const HANDLE mapping = CreateFileMappingW(handle, NULL, PAGE_READONLY, 0, 0, NULL);
    if (!mapping) return fail_with(GetLastError(), reason);
    file->bytes = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
    const DWORD code = GetLastError();
    CloseHandle(mapping);
    return file->bytes || fail_with(code, reason);
}

bool platform_file_open(const char *path, bool whole, platform_file *file, char *reason) {
    (void)whole;
    *file = (platform_file){.handle = (intptr_t)INVALID_HANDLE_VALUE};
    wchar_t *wide = to_wide(path);
    if (!wide) return fail_because("expected a path in UTF-8", reason);
    const DWORD attributes = GetFileAttributesW(wide);
    if (attributes != INVALID_FILE_ATTRIBUTES && (attributes & FILE_ATTRIBUTE_DIRECTORY)) {
        free(wide);
        return fail_because("expected a file, found a directory", reason);
    }
    /* Without FILE_SHARE_WRITE nobody can overwrite what was checked. */
    const HANDLE handle = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, NULL, OPEN_EXISTING,
                                      FILE_ATTRIBUTE_NORMAL, NULL);
    const DWORD code = GetLastError();
    free(wide);
    if (handle == INVALID_HANDLE_VALUE) return fail_with(code, reason);
    file->handle = (intptr_t)handle;
    if (map(file, handle, reason)) return true;
    platform_file_close(file);
    return false;
}

void platform_file_close(platform_file *file) {
    if (file->bytes) UnmapViewOfFile((char *)file->bytes - file->before);
    if ((HANDLE)file->handle != INVALID_HANDLE_VALUE) CloseHandle((HANDLE)file->handle);
    *file = (platform_file){.handle = (intptr_t)INVALID_HANDLE_VALUE};
}

/* Nobody can cut or overwrite an open file here. */
bool platform_file_keep(platform_file *file, size_t num_bytes) {
    (void)file, (void)num_bytes;
    return true;
}

bool platform_file_read(const platform_file *file, size_t offset, void *to, size_t num_bytes) {
    offset += file->before;
    for (char *at = to; num_bytes > 0;) {
        OVERLAPPED position = {0};
        const DWORD wanted = num_bytes < INT_MAX ? (DWORD)num_bytes : INT_MAX;
        DWORD count = 0;
        position.Offset = (DWORD)offset;
        position.OffsetHigh = (DWORD)((uint64_t)offset >> 32);
        if (!ReadFile((HANDLE)file->handle, at, wanted, &count, &position) || count == 0) return false;
        at += count;
        offset += count;
        num_bytes -= count;
    }
    return true;
}

/* The partial file has the number of the process and a counter in its name. */
bool platform_new_file_open(const char *path, platform_new_file *file, char *reason) {
    static LONG counter;
    const size_t length = strlen(path), partial_bytes = length + 32;
    HANDLE handle = INVALID_HANDLE_VALUE;
    file->path = malloc(length + 1);
    file->partial_path = malloc(partial_bytes);
    wchar_t *wide = NULL;
    if (file->path && file->partial_path) {
        memcpy(file->path, path, length + 1);
        snprintf(file->partial_path, partial_bytes, "%s.%lu-%ld", path, (unsigned long)GetCurrentProcessId(),
                 (long)InterlockedIncrement(&counter));
        wide = to_wide(file->partial_path);
    }
    if (wide) handle = CreateFileW(wide, GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, FILE_ATTRIBUTE_NORMAL, NULL);
    const DWORD code = wide ? GetLastError() : ERROR_NOT_ENOUGH_MEMORY;
    free(wide);
    file->handle = (intptr_t)handle;
    if (handle != INVALID_HANDLE_VALUE) return true;
    free(file->path);
    free(file->partial_path);
    return fail_with(code, reason);
}

bool platform_new_file_write(platform_new_file *file, const void *bytes, size_t num_bytes, char *reason) {
    for (const char *at = bytes; num_bytes > 0;) {
        DWORD count = 0;
        if (!WriteFile((HANDLE)file->handle, at, num_bytes < INT_MAX ? (DWORD)num_bytes : INT_MAX, &count, NULL))
            return fail_with(GetLastError(), reason);
        at += count;
        num_bytes -= count;
    }
    return true;
}

bool platform_new_file_close(platform_new_file *file, bool complete, char *reason) {
    wchar_t *to = to_wide(file->path), *from = to_wide(file->partial_path);
    CloseHandle((HANDLE)file->handle);
    const bool placed = complete && to && from && MoveFileExW(from, to, MOVEFILE_REPLACE_EXISTING);
    if (complete && !placed) fail_with(GetLastError(), reason);
    if (!placed && from) DeleteFileW(from);
    free(to);
    free(from);
    free(file->path);
    free(file->partial_path);
    return placed || !complete;
}

/* ------------------------------------------------------------------ memory */

void *platform_aligned_alloc(size_t alignment, size_t num_bytes) { return _aligned_malloc(num_bytes, alignment); }
void platform_aligned_free(void *memory) { _aligned_free(memory); }

/* Large pages need a privilege that users do not have. */
void *platform_pages_alloc(size_t num_bytes) {
    return VirtualAlloc(NULL, num_bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

void platform_pages_free(void *memory, size_t num_bytes) {
    (void)num_bytes;
    VirtualFree(memory, 0, MEM_RELEASE);
}

void platform_pages_protect(void *memory, size_t num_bytes) {
    DWORD before;
    VirtualProtect(memory, num_bytes, PAGE_READONLY, &before);
}

/* ------------------------------------------------------------------ threads */

static unsigned __stdcall run_thread(void *argument) {
    platform_thread *thread = argument;
    thread->function(thread->argument);
    return 0;
}

bool platform_thread_start(platform_thread *thread, platform_thread_function *function, void *argument) {
    thread->function = function;
    thread->argument = argument;
    thread->handle = (HANDLE)_beginthreadex(NULL, 0, run_thread, thread, 0, NULL);
    return thread->handle;
}

void platform_thread_join(platform_thread *thread) {
    WaitForSingleObject(thread->handle, INFINITE);
    CloseHandle(thread->handle);
}

_Static_assert(sizeof(platform_mutex) == sizeof(SRWLOCK) && sizeof(platform_condition) == sizeof(CONDITION_VARIABLE),
               "platform.h declares both as a pointer");

void platform_mutex_init(platform_mutex *mutex) { InitializeSRWLock((SRWLOCK *)mutex); }
void platform_mutex_destroy(platform_mutex *mutex) { (void)mutex; }
void platform_mutex_lock(platform_mutex *mutex) { AcquireSRWLockExclusive((SRWLOCK *)mutex); }
void platform_mutex_unlock(platform_mutex *mutex) { ReleaseSRWLockExclusive((SRWLOCK *)mutex); }

void platform_condition_init(platform_condition *condition) {
    InitializeConditionVariable((CONDITION_VARIABLE *)condition);
}
void platform_condition_destroy(platform_condition *condition) { (void)condition; }
void platform_condition_wait(platform_condition *condition, platform_mutex *mutex) {
    SleepConditionVariableSRW((CONDITION_VARIABLE *)condition, (SRWLOCK *)mutex, INFINITE, 0);
}
void platform_condition_wake_all(platform_condition *condition) {
    WakeAllConditionVariable((CONDITION_VARIABLE *)condition);
}

unsigned platform_fork_generation(void) { return 0; }

/* ------------------------------------------------------------------ clock and processors */

double platform_seconds(void) {
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart / (double)per_second.QuadPart;
}

int platform_num_processors(void) {
    DWORD_PTR own, all;
    int count = 0;
    if (GetProcessAffinityMask(GetCurrentProcess(), &own, &all))
        for (; own; own &= own - 1) count++;
    return count > 0 ? count : 1;
}

int platform_current_processor(void) { return -1; }
bool platform_leave_processors(const int *taken, int num_taken) {
    (void)taken, (void)num_taken;
    return false;
}

/* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE and PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE of newer headers.
 * A Windows that does not know a number says no. */
enum { DOT_PRODUCT_AVAILABLE = 43, I8MM_AVAILABLE = 66 };
bool platform_has_arm_dot_product(void) { return IsProcessorFeaturePresent(DOT_PRODUCT_AVAILABLE); }
bool platform_has_arm_i8mm(void) { return IsProcessorFeaturePresent(I8MM_AVAILABLE); }
#else
typedef int not_this_platform; /* C forbids an empty file */
#endif
