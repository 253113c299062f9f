/* setitimer(2): a timer that has rung goes on when its signal, blocked for now, is taken. */
#include <sys/time.h>

#include "conformance.h"

static volatile int alarms;

static void handle(int signal) {
  (void)signal;
  alarms++;
}

int main(void) {
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
  struct itimerval every = {{0, 20000}, {0, 20000}}, now;
  sigset_t alarm, pending;
  sigemptyset(&alarm);
  sigaddset(&alarm, SIGALRM);
  sigprocmask(SIG_BLOCK, &alarm, NULL);
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, &every, NULL);
  do
    sigpending(&pending);
  while (!sigismember(&pending, SIGALRM));
  ready();
  getitimer(ITIMER_REAL, &now);
  expect(now.it_interval.tv_usec == 20000, "interval %ld", (long)now.it_interval.tv_usec);
  sigpending(&pending);
  expect(sigismember(&pending, SIGALRM), "the signal is not pending");
  sigprocmask(SIG_UNBLOCK, &alarm, NULL);
  double deadline = seconds() + 30;
  while (alarms < 4 && seconds() < deadline)
    usleep(1000);
  expect(alarms >= 4, "%d alarms", alarms);
  ok();
}
