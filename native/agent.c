/* The agent: executes a batch of system calls inside another process.
 *
 * It is compiled without a C library into a flat position-independent blob. A driver copies it
 * into a frozen process, points the stack and the first argument somewhere into the agent's own
 * mapping, and lets one thread run. All knowledge of what to ask stays outside. */
#include "agent.h"
#include "syscall.h"

__attribute__((section(".text.entry"), used)) void agent(struct agent_element *element) {
  for (; element->number != AGENT_END; element++) {
    for (int i = 0; i < 6; i++)
      if (element->flags & AGENT_LOAD(i))
        element->argument[i] = (uint64_t)(int64_t)*(int32_t *)(uintptr_t)element->argument[i];
    long result =
        arch_syscall((long)element->number, (long)element->argument[0], (long)element->argument[1],
                     (long)element->argument[2], (long)element->argument[3],
                     (long)element->argument[4], (long)element->argument[5]);
    element->result = result;
    element->flags |= AGENT_DONE;
    if (element->store)
      *(int32_t *)(uintptr_t)element->store = (int32_t)result;
    if ((element->flags & AGENT_STOP_ON_ERROR) && result < 0 && result >= -4095)
      break;
  }
  arch_trap();
}
