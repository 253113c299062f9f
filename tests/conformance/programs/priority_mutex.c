/* A mutex with priority inheritance: its futex holds the owner's tid, which the kernel looks up. */
#include "conformance.h"

static pthread_mutex_t mutex;
static pid_t waiter;

static void *wait_for_it(void *argument) {
  waiter = (pid_t)syscall(SYS_gettid);
  expect(!pthread_mutex_lock(&mutex), "lock");
  pthread_mutex_unlock(&mutex);
  return argument;
}

int main(void) {
  pthread_t thread;
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  if (pthread_mutex_init(&mutex, &attributes) || pthread_mutex_lock(&mutex))
    skip("priority inheritance");
  pthread_create(&thread, NULL, wait_for_it, NULL);
  while (!*(volatile pid_t *)&waiter)
    usleep(1000);
  until_blocked(waiter);
  ready();
  expect(!pthread_mutex_unlock(&mutex), "unlock");
  pthread_join(thread, NULL);
  ok();
}
