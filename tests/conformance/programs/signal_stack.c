/* A handler runs on the alternate stack of each thread (sigaltstack(2)). */
#include "conformance.h"

static char stacks[2][65536];
static volatile int on_stack[2];
static pthread_barrier_t prepared, go;
static __thread int self;

static void handle(int signal, siginfo_t *info, void *context) {
  char here;
  (void)signal, (void)info, (void)context;
  on_stack[self] = &here >= stacks[self] && &here < stacks[self] + sizeof stacks[self];
}

static void prepare(int number) {
  stack_t stack = {.ss_sp = stacks[number], .ss_size = sizeof stacks[number]};
  self = number;
  sigaltstack(&stack, NULL);
}

static void *live(void *argument) {
  prepare(1);
  pthread_barrier_wait(&prepared);
  pthread_barrier_wait(&go);
  raise(SIGUSR1);
  return argument;
}

int main(void) {
  pthread_t thread;
  struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigaction(SIGUSR1, &action, NULL);
  pthread_barrier_init(&prepared, NULL, 2);
  pthread_barrier_init(&go, NULL, 2);
  prepare(0);
  pthread_create(&thread, NULL, live, NULL);
  pthread_barrier_wait(&prepared);
  ready();
  raise(SIGUSR1);
  pthread_barrier_wait(&go);
  pthread_join(thread, NULL);
  expect(on_stack[0] && on_stack[1], "on its stack: %d %d", on_stack[0], on_stack[1]);
  ok();
}
