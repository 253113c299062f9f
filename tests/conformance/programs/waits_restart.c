/* Waits that the kernel restarts after a stop (signal(7)) end by themselves and never with EINTR.
 */
#include <linux/futex.h>
#include <poll.h>
#include <sys/select.h>

#include "conformance.h"

#define TIME_NS 1200000000L

static const struct timespec duration = {TIME_NS / 1000000000, TIME_NS % 1000000000};
static int ends[2];

static long wait_nanosleep(void) { return nanosleep(&duration, NULL); }
static long wait_clock(void) {
  struct timespec end;
  clock_gettime(CLOCK_MONOTONIC, &end);
  end.tv_sec += 1;
  return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL);
}
static long wait_poll(void) {
  struct pollfd item = {.fd = ends[0], .events = POLLIN};
  return poll(&item, 1, TIME_NS / 1000000);
}
static long wait_select(void) {
  struct timeval rest = {1, 200000};
  fd_set set;
  FD_ZERO(&set);
  FD_SET(ends[0], &set);
  return select(ends[0] + 1, &set, NULL, NULL, &rest);
}
static long wait_ppoll(void) {
  struct pollfd item = {.fd = ends[0], .events = POLLIN};
  sigset_t mask;
  sigfillset(&mask);
  return ppoll(&item, 1, &duration, &mask);
}
static long wait_futex(void) {
  static int word = 7;
  long result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, &duration);
  return result == -1 && errno == ETIMEDOUT ? 0 : -1;
}
static long wait_condition(void) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
  struct timespec end;
  clock_gettime(CLOCK_REALTIME, &end);
  end.tv_sec += 1;
  pthread_mutex_lock(&mutex);
  int result = pthread_cond_timedwait(&condition, &mutex, &end);
  pthread_mutex_unlock(&mutex);
  return result == ETIMEDOUT ? 0 : result;
}

static struct wait {
  const char *name;
  long (*call)(void);
  pid_t tid;
  long result;
  int error;
  double elapsed;
} waits[] = {
    {.name = "nanosleep", .call = wait_nanosleep},
    {.name = "clock_nanosleep", .call = wait_clock},
    {.name = "poll", .call = wait_poll},
    {.name = "select", .call = wait_select},
    {.name = "ppoll", .call = wait_ppoll},
    {.name = "futex", .call = wait_futex},
    {.name = "pthread_cond_timedwait", .call = wait_condition},
};
#define COUNT ((int)(sizeof waits / sizeof *waits))

static void *live(void *argument) {
  struct wait *wait = argument;
  wait->tid = (pid_t)syscall(SYS_gettid);
  double start = seconds();
  wait->result = wait->call();
  wait->error = errno;
  wait->elapsed = seconds() - start;
  return NULL;
}

int main(void) {
  pthread_t threads[COUNT];
  expect(!pipe(ends), "pipe");
  for (int i = 0; i < COUNT; i++) {
    pthread_create(&threads[i], NULL, live, &waits[i]);
    while (!*(volatile pid_t *)&waits[i].tid)
      usleep(100);
    until_blocked(waits[i].tid);
  }
  ready();
  for (int i = 0; i < COUNT; i++) {
    pthread_join(threads[i], NULL);
    expect(waits[i].result == 0, "%s: %ld, errno %d", waits[i].name, waits[i].result,
           waits[i].error);
    /* the condition waits for the real clock, which a restored copy sees jump */
    expect(waits[i].elapsed >= .99 || waits[i].call == wait_condition, "%s ended after %f s",
           waits[i].name, waits[i].elapsed);
  }
  ok();
}
