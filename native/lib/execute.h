#include <stddef.h>
#include <stdint.h>

/* How a borrowed thread is let run, and what came of it. */
struct sk_execution {
  int system_call;       /* in: stop at the exit of one system call; else at `end` */
  int end;               /* in: the signal by which the agent says that it is done */
  int until_birth;       /* in: stop as soon as a child was born */
  int go_on;             /* in: from where the thread is; else with the registers `run` */
  int blocks;            /* in: signals are to be blocked, after it has got its registers */
  int put_back;          /* in: when it is done, give the thread `mask` and `before` again */
  int fault;             /* in: the instant at which to kill ourselves, from 1; 0 for never */
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
 * that the caller gets can come in between. Returns 0, or -errno; -EPROTO for a stop that should
 * not be. The instants for `fault`: registers set, signals blocked, running, stopped. */
long sk_execute(int tid, struct sk_execution *execution);
