#define _GNU_SOURCE
#include "execute.h"

#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "ptrace.h"

enum { PRSTATUS = 1 };

/* An instant at which we may be killed: tests have it happen (snapkernel/faults.py). */
static void instant(struct sk_execution *x) {
  if (x->fault && --x->fault == 0)
    raise(SIGKILL);
}

static long run(int tid, struct sk_execution *x) {
  long how = x->system_call ? PTRACE_SYSCALL : PTRACE_CONT;
  int wanted = x->system_call ? (SIGTRAP | 0x80) : x->end, left = x->system_call ? 2 : 1;
  while (left) {
    long result = sk_ptrace(how, tid, 0, 0);
    if (result < 0)
      return result;
    instant(x);
    if ((result = sk_wait(tid, 0, &x->status)) < 0)
      return result;
    instant(x);
    if (!WIFSTOPPED(x->status))
      return -ESRCH;
    int event = x->status >> 16, number = WSTOPSIG(x->status);
    if (event == 0 && number == wanted) {
      left--;
    } else if (event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK ||
               event == PTRACE_EVENT_CLONE) {
      uint64_t child = 0;
      if ((result = sk_event_message(tid, &child)) < 0)
        return result;
      if (x->births == x->room)
        return -EPROTO;
      x->born[x->births++] = (int)child;
      if (x->until_birth)
        return 0;
    } else if (event == 0 && number == SIGSTOP) {
      x->stopped = 1; /* taken away here; the caller sends it again at the end */
    } else if (event != PTRACE_EVENT_STOP) { /* a group stop, or an interrupt that came late */
      return -EPROTO;
    }
  }
  return sk_get_regset(tid, PRSTATUS, x->after, x->size);
}

/* Registers before the mask, and back in the other order: a thread that has its own registers has
 * its own mask, whenever we are killed. */
long sk_execute(int tid, struct sk_execution *x) {
  long result = x->go_on ? 0 : sk_set_regset(tid, PRSTATUS, x->run, x->size);
  if (result < 0)
    return result;
  instant(x);
  if (x->blocks && (result = sk_set_signal_mask(tid, x->block)) >= 0)
    instant(x);
  if (result >= 0)
    result = run(tid, x);
  if (x->put_back && !(x->until_birth && x->births)) {
    long mask = sk_set_signal_mask(tid, x->mask);
    long back = sk_set_regset(tid, PRSTATUS, x->before, x->size);
    if (result >= 0)
      result = back < 0 ? back : mask;
  }
  return result < 0 ? result : 0;
}
