/* Blocked signals are pending, with their values, to the process and to one thread. */
#include "conformance.h"

static pthread_barrier_t prepared, go;
static volatile int thread_value, thread_count;

static const struct timespec at_once;

static void *live(void *argument) {
  sigset_t set;
  siginfo_t info;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 2);
  pthread_barrier_wait(&prepared);
  pthread_barrier_wait(&go);
  while (sigtimedwait(&set, &info, &at_once) == SIGRTMIN + 2) {
    thread_value = thread_value * 10 + info.si_value.sival_int;
    thread_count++;
  }
  return argument;
}

int main(void) {
  pthread_t thread;
  sigset_t set, seen;
  siginfo_t info;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGRTMIN + 1);
  sigaddset(&set, SIGRTMIN + 2);
  sigprocmask(SIG_BLOCK, &set, NULL);
  pthread_barrier_init(&prepared, NULL, 2);
  pthread_barrier_init(&go, NULL, 2);
  pthread_create(&thread, NULL, live, NULL);
  pthread_barrier_wait(&prepared);
  for (int i = 1; i <= 3; i++) {
    sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 100 + i});
    pthread_sigqueue(thread, SIGRTMIN + 2, (union sigval){.sival_int = i});
  }
  kill(getpid(), SIGUSR1);
  ready();
  sigpending(&seen);
  expect(sigismember(&seen, SIGUSR1) && sigismember(&seen, SIGRTMIN + 1), "pending");
  expect(!sigismember(&seen, SIGRTMIN + 2), "the thread's signal is pending here");
  for (int i = 1; i <= 3; i++) {
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    expect(sigtimedwait(&set, &info, &at_once) == SIGRTMIN + 1, "queued signal %d", i);
    expect(info.si_value.sival_int == 100 + i, "value %d", info.si_value.sival_int);
    expect(info.si_code == SI_QUEUE && info.si_pid == getpid(), "code %d, pid %d", info.si_code,
           info.si_pid);
  }
  expect(sigtimedwait(&set, &info, &at_once) == -1 && errno == EAGAIN, "a fourth signal");
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  expect(sigtimedwait(&set, &info, &at_once) == SIGUSR1, "SIGUSR1");
  expect(info.si_code == SI_USER && info.si_uid == getuid(), "SIGUSR1: code %d", info.si_code);
  pthread_barrier_wait(&go);
  pthread_join(thread, NULL);
  expect(thread_count == 3 && thread_value == 123, "thread: %d signals, %d", thread_count,
         thread_value);
  ok();
}
