/* The stub: the process that a restore drives into the shape of the image. It is seized before
 * its first instruction, so it has nothing to do; it has no C library, hence no restartable
 * sequences, no robust list and no thread-local storage to undo. */
#include <asm/unistd.h>

#include "syscall.h"

void _start(void) {
  for (;;)
    arch_syscall(__NR_ppoll, 0, 0, 0, 0, 0, 0);
}
