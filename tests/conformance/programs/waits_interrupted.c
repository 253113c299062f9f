/* Waits that a stop would end with EINTR (signal(7), "Interruption of system calls and library
 * functions by stop signals") are not disturbed by a checkpoint either: the user sent no signal. */
#include <sys/epoll.h>

#include "conformance.h"

static int ends[2], poller;

static long wait_epoll(void) {
  struct epoll_event event;
  return epoll_wait(poller, &event, 1, 1200);
}
static long wait_epoll_without_timeout(void) {
  struct epoll_event event;
  long result = epoll_wait(poller, &event, 1, -1);
  return result == 1 ? 0 : -1;
}
static long wait_signal(void) {
  static const struct timespec duration = {1, 200000000};
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  long result = sigtimedwait(&set, NULL, &duration);
  return result == -1 && errno == EAGAIN ? 0 : -1;
}

static struct wait {
  const char *name;
  long (*call)(void);
  pid_t tid;
  long result;
  int error;
} waits[] = {
    {.name = "epoll_wait", .call = wait_epoll},
    {.name = "sigtimedwait", .call = wait_signal},
    {.name = "epoll_wait without timeout", .call = wait_epoll_without_timeout},
};

static void *live(void *argument) {
  struct wait *wait = argument;
  wait->tid = (pid_t)syscall(SYS_gettid);
  wait->result = wait->call();
  wait->error = errno;
  return NULL;
}

int main(void) {
  pthread_t threads[3];
  struct epoll_event event = {.events = EPOLLIN};
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigprocmask(SIG_BLOCK, &set, NULL);
  poller = epoll_create1(0);
  expect(!pipe(ends) && !epoll_ctl(poller, EPOLL_CTL_ADD, ends[0], &event), "setup");
  for (int i = 0; i < 3; i++) {
    pthread_create(&threads[i], NULL, live, &waits[i]);
    while (!*(volatile pid_t *)&waits[i].tid)
      usleep(100);
    until_blocked(waits[i].tid);
  }
  ready();
  for (int i = 0; i < 3; i++) {
    if (i == 2)
      expect(write(ends[1], "x", 1) == 1, "write");
    pthread_join(threads[i], NULL);
    expect(waits[i].result == 0, "%s: %ld, errno %d", waits[i].name, waits[i].result,
           waits[i].error);
  }
  ok();
}
