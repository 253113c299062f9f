/* Rounding mode and exception flags of floating point, different in each thread. */
#include <fenv.h>

#include "conformance.h"

static const int modes[] = {FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO, FE_TONEAREST};
static pthread_barrier_t prepared, go;
static volatile int wrong;

static void *live(void *argument) {
  long number = (long)argument;
  fesetround(modes[number]);
  feclearexcept(FE_ALL_EXCEPT);
  feraiseexcept(FE_DIVBYZERO);
  pthread_barrier_wait(&prepared);
  pthread_barrier_wait(&go);
  if (fegetround() != modes[number])
    wrong |= 1 << number;
  if (fetestexcept(FE_ALL_EXCEPT) != FE_DIVBYZERO)
    wrong |= 16 << number;
  return NULL;
}

int main(void) {
  pthread_t threads[4];
  pthread_barrier_init(&prepared, NULL, 5);
  pthread_barrier_init(&go, NULL, 5);
  for (long i = 0; i < 4; i++)
    pthread_create(&threads[i], NULL, live, (void *)i);
  pthread_barrier_wait(&prepared);
  ready();
  pthread_barrier_wait(&go);
  for (int i = 0; i < 4; i++)
    pthread_join(threads[i], NULL);
  expect(!wrong, "threads 0x%x", wrong);
  ok();
}
