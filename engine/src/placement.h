/* placement.h: where the calling thread runs, and how it leaves a processor that others of its team are on. */
#ifndef LLAMITA_PLACEMENT_H
#define LLAMITA_PLACEMENT_H

#include <stdbool.h>

/* The number of the processor that the calling thread runs on; -1 where the system does not tell. */
int placement_here(void);

/* Moves the calling thread to a processor that is none of these (numbers; negative ones are skipped) and that it is allowed
 * to use; where it may run later stays as it was. False: there is none, or the system does not let it. */
bool placement_leave(const int *taken, int num_taken);

#endif
