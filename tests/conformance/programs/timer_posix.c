/* timer_create(2): several timers with gaps between their ids, signals with values, to the process
 * and to one thread, running and stopped. */
#include "conformance.h"

#define COUNT 6

static pthread_barrier_t prepared;
static volatile pid_t tid;
static volatile int values[COUNT], tids[COUNT];

static void handle(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)context;
  values[info->si_value.sival_int]++;
  tids[info->si_value.sival_int] = (int)syscall(SYS_gettid);
}

static void *live(void *argument) {
  tid = (pid_t)syscall(SYS_gettid);
  pthread_barrier_wait(&prepared);
  for (;;)
    pause();
  return argument;
}

static int make(int clock, int notify, int value) {
  struct sigevent event = {.sigev_notify = notify, .sigev_signo = SIGRTMIN + 1};
  int timer = -1;
  event.sigev_value.sival_int = value;
  if (notify == SIGEV_THREAD_ID)
    event._sigev_un._tid = tid;
  /* The kernel's own ids: the C library's are pointers. */
  expect(!syscall(SYS_timer_create, clock, &event, &timer), "timer_create %d", value);
  return timer;
}

static void set(int timer, double first, double interval) {
  struct itimerspec setting = {
      {(time_t)interval, (long)((interval - (time_t)interval) * 1e9)},
      {(time_t)first, (long)((first - (time_t)first) * 1e9)},
  };
  expect(!syscall(SYS_timer_settime, timer, 0, &setting, NULL), "timer_settime");
}

static double left(int timer, double *interval) {
  struct itimerspec setting;
  expect(!syscall(SYS_timer_gettime, timer, &setting), "timer %d is gone", timer);
  *interval = setting.it_interval.tv_sec + setting.it_interval.tv_nsec / 1e9;
  return setting.it_value.tv_sec + setting.it_value.tv_nsec / 1e9;
}

int main(void) {
  struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_RESTART};
  pthread_t thread;
  int timers[COUNT], gone[3];
  double interval, rest;
  sigaction(SIGRTMIN + 1, &action, NULL);
  pthread_barrier_init(&prepared, NULL, 2);
  pthread_create(&thread, NULL, live, NULL);
  pthread_barrier_wait(&prepared);
  gone[0] = make(CLOCK_MONOTONIC, SIGEV_NONE, 0);
  timers[0] = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, 0);
  gone[1] = make(CLOCK_MONOTONIC, SIGEV_NONE, 0);
  timers[1] = make(CLOCK_REALTIME, SIGEV_THREAD_ID, 1);
  timers[2] = make(CLOCK_BOOTTIME, SIGEV_SIGNAL, 2);
  gone[2] = make(CLOCK_MONOTONIC, SIGEV_NONE, 0);
  timers[3] = make(CLOCK_MONOTONIC, SIGEV_NONE, 3);
  timers[4] = make(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, 4);
  timers[5] = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, 5);
  for (int i = 0; i < 3; i++)
    syscall(SYS_timer_delete, gone[i]);
  set(timers[0], .05, .05);
  set(timers[1], .05, .05);
  set(timers[2], 1000, 100);
  set(timers[3], 500, 0);
  set(timers[4], 4000, 0);
  ready();
  rest = left(timers[2], &interval);
  expect(rest > 900 && rest <= 1000 && interval == 100, "timer 2: %f s left", rest);
  rest = left(timers[3], &interval);
  expect(rest > 400 && rest <= 500 && interval == 0, "timer 3: %f s left", rest);
  rest = left(timers[4], &interval);
  expect(rest > 3900 && rest <= 4000, "timer 4: %f s left", rest);
  rest = left(timers[5], &interval);
  expect(rest == 0, "timer 5 runs");
  int seen[2] = {values[0], values[1]};
  double deadline = seconds() + 30;
  while ((values[0] < seen[0] + 3 || values[1] < seen[1] + 3) && seconds() < deadline)
    usleep(1000);
  expect(values[0] >= seen[0] + 3 && values[1] >= seen[1] + 3, "expired %d and %d times",
         values[0] - seen[0], values[1] - seen[1]);
  expect(tids[1] == tid, "timer 1 reached thread %d", tids[1]);
  expect(values[2] + values[3] + values[4] + values[5] == 0, "another timer expired");
  set(timers[5], .01, 0);
  while (!values[5] && seconds() < deadline)
    usleep(1000);
  expect(values[5] == 1, "timer 5 does not expire");
  ok();
}
