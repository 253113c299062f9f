/* pthread_join(3) of a thread that was there before: the kernel clears its tid (set_tid_address).
 */
#include "conformance.h"

static pthread_barrier_t go;

static void *live(void *argument) {
  pthread_barrier_wait(&go);
  return (char *)argument + 1;
}

int main(void) {
  pthread_t threads[5];
  pthread_barrier_init(&go, NULL, 6);
  for (long i = 0; i < 5; i++)
    pthread_create(&threads[i], NULL, live, (void *)i);
  ready();
  pthread_barrier_wait(&go);
  for (long i = 0; i < 5; i++) {
    void *result;
    expect(!pthread_join(threads[i], &result), "join");
    expect((long)result == i + 1, "thread %ld returned %ld", i, (long)result);
  }
  ok();
}
