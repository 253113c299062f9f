#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

long sk_born(int descriptor, int64_t *nanoseconds) {
  struct statx found;
  if (statx(descriptor, "", AT_EMPTY_PATH, STATX_BTIME, &found) < 0) {
    return -errno;
  }
  *nanoseconds = 0;
  if (found.stx_mask & STATX_BTIME) {
    *nanoseconds = found.stx_btime.tv_sec * 1000000000 + found.stx_btime.tv_nsec;
  }
  return 0;
}
