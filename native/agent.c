/* The agent: executes a batch of system calls inside another process.
 *
 * It is compiled without a C library into a flat position-independent blob. A driver copies it
 * into a frozen process, points the stack and the first argument somewhere into the agent's own
 * mapping, and lets one thread run. All knowledge of what to ask stays outside.
 *
 * It ends by sending its thread a signal that nothing in the process handles. The driver is told of
 * it and takes it away. Without a driver the kernel drops it, and the agent returns: the stack that
 * it was given leads the thread back to where it was stopped. */
#include "agent.h"

#include <asm/unistd.h>

#include "syscall.h"

static inline long call(long number, long a, long b, long c) {
  return arch_syscall(number, a, b, c, 0, 0, 0);
}

__attribute__((section(".text.entry"), used)) void agent(struct agent_batch *batch) {
  for (struct agent_element *element = batch->element; element->number != AGENT_END; element++) {
    for (int i = 0; i < 6; i++)
      if (element->flags & AGENT_LOAD(i))
        element->argument[i] = (uint64_t)(int64_t)*(int32_t *)(uintptr_t)element->argument[i];
    long result =
        arch_syscall((long)element->number, (long)element->argument[0], (long)element->argument[1],
                     (long)element->argument[2], (long)element->argument[3],
                     (long)element->argument[4], (long)element->argument[5]);
    if (result == 0 && (element->flags & AGENT_CHILD_ENDS))
      call(__NR_exit_group, 0, 0, 0);
    element->result = result;
    element->flags |= AGENT_DONE;
    if (element->store)
      *(int32_t *)(uintptr_t)element->store = (int32_t)result;
    if ((element->flags & AGENT_STOP_ON_ERROR) && result < 0 && result >= -4095)
      break;
  }
  batch->ended = 1;
  call(__NR_tgkill, call(__NR_getpid, 0, 0, 0), call(__NR_gettid, 0, 0, 0), (long)batch->signal);
}
