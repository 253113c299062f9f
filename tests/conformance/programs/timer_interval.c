/* setitimer(2): of real, virtual and profiling time, and the real one's signals keep coming. */
#include <sys/time.h>

#include "conformance.h"

static volatile int alarms;

static void handle(int signal) {
  (void)signal;
  alarms++;
}

int main(void) {
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
  struct itimerval real = {{0, 50000}, {0, 50000}}, virtual = {{7, 0}, {1000, 0}},
                   profile = {{9, 0}, {2000, 0}}, now;
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, &real, NULL);
  setitimer(ITIMER_VIRTUAL, &virtual, NULL);
  setitimer(ITIMER_PROF, &profile, NULL);
  ready();
  getitimer(ITIMER_VIRTUAL, &now);
  expect(now.it_interval.tv_sec == 7 && now.it_value.tv_sec > 900 && now.it_value.tv_sec <= 1000,
         "virtual: %ld s left", (long)now.it_value.tv_sec);
  getitimer(ITIMER_PROF, &now);
  expect(now.it_interval.tv_sec == 9 && now.it_value.tv_sec > 1900 && now.it_value.tv_sec <= 2000,
         "profiling: %ld s left", (long)now.it_value.tv_sec);
  getitimer(ITIMER_REAL, &now);
  expect(now.it_interval.tv_usec == 50000, "interval %ld", (long)now.it_interval.tv_usec);
  int seen = alarms;
  double deadline = seconds() + 30;
  while (alarms < seen + 3 && seconds() < deadline)
    usleep(1000);
  expect(alarms >= seen + 3, "%d alarms after %d", alarms, seen);
  ok();
}
