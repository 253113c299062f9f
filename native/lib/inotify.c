#define _GNU_SOURCE
#include "inotify.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/inotify.h>

static long checked(long result) { return result < 0 ? -errno : result; }

long sk_inotify(void) { return checked(inotify_init1(IN_CLOEXEC | IN_NONBLOCK)); }

long sk_inotify_add(int instance, const char *path, uint32_t mask) {
  return checked(inotify_add_watch(instance, path, mask));
}

long sk_inotify_remove(int instance, int watch) {
  return checked(inotify_rm_watch(instance, watch));
}

long sk_open_by_handle(int mount, int type, const uint8_t *handle, uint32_t length) {
  union {
    struct file_handle head;
    char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
  } whole;
  if (length > MAX_HANDLE_SZ) {
    return -EINVAL;
  }
  whole.head.handle_bytes = length;
  whole.head.handle_type = type;
  memcpy(whole.head.f_handle, handle, length);
  return checked(open_by_handle_at(mount, &whole.head, O_PATH | O_CLOEXEC));
}
