/* Threads start and join other threads all the time. */
#include "../../conformance/programs/conformance.h"

static volatile int failed;
static _Atomic long joined[4];

static void *nothing(void *argument) { return argument; }

static void *start_and_join(void *count) {
  for (;;) {
    pthread_t thread;
    int error = pthread_create(&thread, NULL, nothing, NULL);
    if (!error)
      error = pthread_join(thread, NULL);
    if (error)
      failed = error;
    ++*(_Atomic long *)count;
  }
  return NULL;
}

int main(void) {
  pthread_t threads[4];
  for (int i = 0; i < 4; i++)
    pthread_create(&threads[i], NULL, start_and_join, (void *)&joined[i]);
  ready();
  expect(!failed, "a thread could not be started or joined: %s", strerror(failed));
  for (int i = 0; i < 4; i++)
    for (long before = joined[i]; joined[i] == before;)
      usleep(100);
  ok();
}
