/* The one data structure that a driver and the agent share. */
#ifndef SNAPKERNEL_AGENT_H
#define SNAPKERNEL_AGENT_H

#include <stdint.h>

/* One system call of a batch. All fields are 64 bits wide on every architecture, in its own byte
 * order. */
struct agent_element {
  uint64_t number;      /* system call number, or AGENT_END */
  uint64_t argument[6]; /* what the call gets */
  int64_t result;       /* what the kernel answered */
  uint64_t flags;       /* AGENT_* */
  uint64_t store;       /* address of an int32_t that receives the result, or 0 */
};

/* A batch ends with an element whose `number` is AGENT_END. */
struct agent_batch {
  uint64_t signal; /* what the agent sends its thread at the end */
  uint64_t ended;  /* set by the agent before it does that */
  struct agent_element element[];
};

#define AGENT_END UINT64_MAX
#define AGENT_STOP_ON_ERROR 1ULL          /* end the batch when this call fails */
#define AGENT_DONE 2ULL                   /* set by the agent: the call was made */
#define AGENT_CHILD_ENDS 4ULL             /* a process that sees the result 0 ends at once */
#define AGENT_LOAD(i) (1ULL << (8 + (i))) /* argument i is the address of an int32_t: load it */

#endif
