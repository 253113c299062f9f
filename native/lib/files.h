/* What Python's os module does not tell of files. Results are as in ptrace.h: negative error
 * numbers, never errno. */

#ifndef SNAPKERNEL_FILES_H
#define SNAPKERNEL_FILES_H

#include <stdint.h>

/* When an open file was made, in nanoseconds since 1970 (statx(2), Linux 4.11); 0 where its file
 * system does not know. */
long sk_born(int descriptor, int64_t *nanoseconds);

#endif
