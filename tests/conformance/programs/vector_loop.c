/* A thread computes in vector registers; every round must give the same bits as the first. */
#include "conformance.h"

typedef double vector __attribute__((vector_size(64)));

static volatile int stop;
static volatile long rounds, wrong;

static void compute(vector *result) {
  vector x = {.11, .22, .33, .44, .55, .66, .77, .88}, y = x / 3, sum = {0};
  for (int i = 0; i < 200000; i++) {
    x = 3.99 * x * (1.0 - x);
    y = 3.97 * y * (1.0 - y);
    sum += x * y;
  }
  *result = sum + x - y;
}

static void *loop(void *first) {
  vector result;
  while (!stop) {
    compute(&result);
    if (memcmp(&result, first, sizeof result))
      wrong++;
    rounds++;
  }
  return NULL;
}

int main(void) {
  static vector first;
  pthread_t threads[2];
  compute(&first);
  for (int i = 0; i < 2; i++)
    pthread_create(&threads[i], NULL, loop, &first);
  ready();
  long seen = rounds;
  while (rounds < seen + 4)
    usleep(1000);
  stop = 1;
  for (int i = 0; i < 2; i++)
    pthread_join(threads[i], NULL);
  expect(wrong == 0, "%ld of %ld rounds differ", wrong, rounds);
  ok();
}
