/* placement.c: the processors that a team's threads are on in, a thread on another one out. */
#if defined(__linux__)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getcpu, sched_setaffinity */
#endif
#include <sched.h>
#endif
#include "placement.h"

#if defined(__linux__)
int placement_here(void) { return sched_getcpu(); }

/* The system moves a thread at once when it may no longer be where it is, and leaves it there when it may again. */
bool placement_leave(const int *taken, int num_taken) {
    cpu_set_t allowed, wanted;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return false;
    wanted = allowed;
    for (int i = 0; i < num_taken; i++)
        if (taken[i] >= 0 && taken[i] < CPU_SETSIZE) CPU_CLR((size_t)taken[i], &wanted);
    if (CPU_COUNT(&wanted) == 0 || sched_setaffinity(0, sizeof wanted, &wanted) != 0) return false;
    return sched_setaffinity(0, sizeof allowed, &allowed) == 0;
}
#else
int placement_here(void) { return -1; }
bool placement_leave(const int *taken, int num_taken) {
    (void)taken, (void)num_taken;
    return false;
}
#endif
