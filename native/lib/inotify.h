/* inotify(7), to recognise what somebody else watches, and open_by_handle_at(2). Results are as in
 * ptrace.h: negative error numbers, never errno. */

#ifndef SNAPKERNEL_INOTIFY_H
#define SNAPKERNEL_INOTIFY_H

#include <stdint.h>

/* A new instance. */
long sk_inotify(void);

/* Watch a file; the number of the watch. */
long sk_inotify_add(int instance, const char *path, uint32_t mask);

/* Forget a watch. */
long sk_inotify_remove(int instance, int watch);

/* Open what a handle of fdinfo names, with O_PATH; needs CAP_DAC_READ_SEARCH. `mount` is any
 * descriptor of its file system. */
long sk_open_by_handle(int mount, int type, const uint8_t *handle, uint32_t length);

#endif
