#include <stdint.h>

/* getsockopt(2) of an option whose answer depends on what the buffer holds, or whose length does
 * not count bytes. */
long sk_getsockopt(int fd, int level, int option, void *value, uint32_t *length);
