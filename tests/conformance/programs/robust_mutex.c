/* A thread ends with a robust mutex that it locked before (get_robust_list(2)). */
#include "conformance.h"

static pthread_mutex_t mutex;
static pthread_barrier_t locked, go;

static void *live(void *argument) {
  pthread_mutex_lock(&mutex);
  pthread_barrier_wait(&locked);
  pthread_barrier_wait(&go);
  return argument; /* without unlocking it */
}

int main(void) {
  pthread_t thread;
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&mutex, &attributes);
  pthread_barrier_init(&locked, NULL, 2);
  pthread_barrier_init(&go, NULL, 2);
  pthread_create(&thread, NULL, live, NULL);
  pthread_barrier_wait(&locked);
  ready();
  expect(pthread_mutex_trylock(&mutex) == EBUSY, "the mutex is free");
  pthread_barrier_wait(&go);
  pthread_join(thread, NULL);
  int result = pthread_mutex_lock(&mutex);
  expect(result == EOWNERDEAD, "lock gives %d", result);
  ok();
}
