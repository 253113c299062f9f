/* sched_getcpu(3) reads the area that each thread registered with rseq(2). */
#include <sched.h>

#include "conformance.h"

static pthread_barrier_t prepared, go;
static volatile int wrong;

static void *live(void *argument) {
  cpu_set_t all, one;
  sched_getaffinity(0, sizeof all, &all);
  pthread_barrier_wait(&prepared);
  pthread_barrier_wait(&go);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &all))
      continue;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    unsigned now;
    if (sched_setaffinity(0, sizeof one, &one) || syscall(SYS_getcpu, &now, NULL, NULL) ||
        now != (unsigned)cpu || sched_getcpu() != cpu)
      wrong = cpu + 1;
  }
  return argument;
}

int main(void) {
  pthread_t threads[2];
  pthread_barrier_init(&prepared, NULL, 3);
  pthread_barrier_init(&go, NULL, 3);
  for (int i = 0; i < 2; i++)
    pthread_create(&threads[i], NULL, live, NULL);
  pthread_barrier_wait(&prepared);
  ready();
  pthread_barrier_wait(&go);
  for (int i = 0; i < 2; i++)
    pthread_join(threads[i], NULL);
  expect(!wrong, "on cpu %d", wrong - 1);
  ok();
}
