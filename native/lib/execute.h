#include <stddef.h>
#include <stdint.h>

/* How a borrowed thread is let run, and what came of it. */
struct sk_execution {
  int system_call;       /* in: stop at the exit of one system call; else at the agent's trap */
  int put_back;          /* in: afterwards give the thread `before` and `mask` again */
  uint64_t block;        /* in: signals blocked meanwhile */
  uint64_t mask;         /* in: the thread's own mask */
  const uint8_t *run;    /* in: registers to run with */
  const uint8_t *before; /* in: the thread's own registers */
  size_t size;           /* in: of both */
  uint8_t *after;        /* out: registers at the stop */
  int status;            /* out: wait status of the stop */
  int stopped;           /* out: a SIGSTOP arrived, which cannot be blocked */
  int *born;             /* out: children that were reported */
  int births;            /* out: how many */
  int room;              /* in: for how many there is room */
};

/* Let a stopped thread run until it has done what it was sent for. One call, so that no signal
 * that the caller gets can come in between: whatever happens, the thread has its own registers
 * and mask again. Returns 0, or -errno; -EPROTO for a stop that should not be. */
long sk_execute(int tid, struct sk_execution *execution);
