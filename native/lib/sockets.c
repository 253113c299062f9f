#include "sockets.h"

#include <errno.h>
#include <sys/socket.h>

long sk_getsockopt(int fd, int level, int option, void *value, uint32_t *length) {
  return getsockopt(fd, level, option, value, length) ? -errno : 0;
}
