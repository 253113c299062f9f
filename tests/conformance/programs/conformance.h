/* The protocol of protocol.py, for programs in C.
 *
 * main() prepares, calls ready(), verifies with expect() and ends with ok(). */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* All of them give one write(2) and leave at once: no thread may hold the end up. */
static inline void say(const char *text) {
  if (write(1, text, strlen(text)) < 0)
    _exit(2);
}

#define skip(why)                                                                                  \
  do {                                                                                             \
    say("skip: " why "\n");                                                                        \
    _exit(0);                                                                                      \
  } while (0)

#define expect(condition, ...)                                                                     \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      char text_[512];                                                                             \
      int n_ = snprintf(text_, 256, "failed: line %d: ", __LINE__);                                \
      snprintf(text_ + n_, 250, __VA_ARGS__);                                                      \
      strcat(text_, "\n");                                                                         \
      say(text_);                                                                                  \
      _exit(1);                                                                                    \
    }                                                                                              \
  } while (0)

static inline void wait_for_go(void) {
  char line[16];
  ssize_t n = read(0, line, sizeof line);
  expect(n == 3 && !memcmp(line, "go\n", 3), "standard input gave %zd bytes (errno %d)", n,
         n < 0 ? errno : 0);
}

static inline void ready(void) {
  say("ready\n");
  wait_for_go();
}

static inline void ok(void) {
  say("ok\n");
  _exit(0);
}

static inline double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + now.tv_nsec / 1e9;
}

/* Returns when the thread waits in the kernel. */
static inline void until_blocked(pid_t tid) {
  char path[64], text[512];
  snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
  for (int i = 0; i < 30000; i++) {
    FILE *file = fopen(path, "r");
    size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file)
      fclose(file);
    text[n] = 0;
    char *end = strrchr(text, ')');
    if (end && end[2] == 'S')
      return;
    usleep(1000);
  }
  expect(0, "thread %d does not block", tid);
}
