/* The checkpoint comes while a handler runs: its frame is on the stack, and it returns. */
#include "conformance.h"

static volatile int handled;

static void handle(int signal) {
  ready();
  handled = signal;
}

int main(void) {
  struct sigaction action = {.sa_handler = handle};
  sigset_t now;
  sigaddset(&action.sa_mask, SIGUSR2);
  sigaction(SIGUSR1, &action, NULL);
  volatile double kept = 1.25;
  raise(SIGUSR1);
  expect(handled == SIGUSR1 && kept == 1.25, "handler");
  sigprocmask(SIG_SETMASK, NULL, &now);
  expect(!sigismember(&now, SIGUSR1) && !sigismember(&now, SIGUSR2), "mask after the handler");
  ok();
}
