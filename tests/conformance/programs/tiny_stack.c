/* A function waits on a stack of its own, with data close below: nobody may leave anything there,
 * although a signal handler could have its stack there. */
#include "conformance.h"
#include <ucontext.h>

enum { DATA = 65536, STACK = 1024 };

static unsigned char memory[DATA + STACK] __attribute__((aligned(64)));
static ucontext_t before, inside;
static long length;
static char line[16];

static void wait_here(void) { length = syscall(SYS_read, 0, line, sizeof line); }

int main(void) {
  for (int i = 0; i < DATA; i++)
    memory[i] = (unsigned char)(i * 7 + i / 256);
  syscall(SYS_getpid); /* its address is looked up here, on a larger stack */
  getcontext(&inside);
  inside.uc_stack.ss_sp = memory + DATA;
  inside.uc_stack.ss_size = STACK;
  inside.uc_link = &before;
  makecontext(&inside, wait_here, 0);
  say("ready\n");
  swapcontext(&before, &inside);
  expect(length == 3 && !memcmp(line, "go\n", 3), "standard input gave %ld bytes", length);
  for (int i = 0; i < DATA; i++)
    expect(memory[i] == (unsigned char)(i * 7 + i / 256), "byte %d below the stack is %#x",
           DATA - i, memory[i]);
  ok();
}
