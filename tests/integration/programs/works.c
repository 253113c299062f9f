/* Threads that work and rest, with different signal masks. The argument is how many MiB of memory
 * there are beside, which no two pages have in common. */
#include "../../conformance/programs/conformance.h"
#include <stdint.h>
#include <stdlib.h>

static _Atomic long rounds[6];

static void *work(void *count) {
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGRTMIN + (int)((_Atomic long *)count - rounds));
  pthread_sigmask(SIG_BLOCK, &blocked, NULL);
  for (;;) {
    for (volatile int i = 0; i < 1000; i++)
      ;
    usleep(500);
    ++*(_Atomic long *)count;
  }
  return NULL;
}

static void all_go_on(void) {
  for (int i = 0; i < 6; i++)
    for (long before = rounds[i]; rounds[i] == before;)
      usleep(100);
}

static uint64_t *memory;
static size_t words;

static uint64_t following(uint64_t x) { /* Marsaglia, Xorshift RNGs */
  x ^= x << 13;
  x ^= x >> 7;
  return x ^ x << 17;
}

static void have_memory(void) {
  memory = malloc(words * sizeof *memory);
  expect(memory != NULL, "no memory");
  uint64_t x = 88172645463325252;
  for (size_t i = 0; i < words; i++)
    memory[i] = x = following(x);
}

static void verify_memory(void) {
  uint64_t x = 88172645463325252;
  for (size_t i = 0; i < words; i++)
    expect(memory[i] == (x = following(x)), "word %zu of the memory is another", i);
}

int main(int count, char **arguments) {
  if (count > 1)
    words = (size_t)atol(arguments[1]) << 17;
  have_memory();
  pthread_t threads[6];
  for (int i = 0; i < 6; i++)
    pthread_create(&threads[i], NULL, work, (void *)&rounds[i]);
  all_go_on();
  ready();
  all_go_on();
  verify_memory();
  ok();
}
