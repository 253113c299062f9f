#define _GNU_SOURCE
#include "ptrace.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static long checked(long result) { return result < 0 ? -(long)errno : result; }

static long request(long what, int tid, const void *address, const void *data) {
  return checked(syscall(SYS_ptrace, what, tid, address, data));
}

long sk_ptrace(long what, int tid, uint64_t address, uint64_t data) {
  return request(what, tid, (void *)(uintptr_t)address, (void *)(uintptr_t)data);
}

long sk_get_regset(int tid, int note, uint8_t *buffer, size_t size) {
  struct iovec area = {buffer, size};
  long result = request(PTRACE_GETREGSET, tid, (void *)(uintptr_t)note, &area);
  return result < 0 ? result : (long)area.iov_len;
}

long sk_set_regset(int tid, int note, const uint8_t *buffer, size_t size) {
  struct iovec area = {(void *)buffer, size};
  return request(PTRACE_SETREGSET, tid, (void *)(uintptr_t)note, &area);
}

long sk_get_signal_mask(int tid, uint64_t *mask) {
  return request(PTRACE_GETSIGMASK, tid, (void *)sizeof *mask, mask);
}

long sk_set_signal_mask(int tid, uint64_t mask) {
  return request(PTRACE_SETSIGMASK, tid, (void *)sizeof mask, &mask);
}

long sk_peek_signals(int tid, int shared, uint64_t offset, uint8_t *infos, int count) {
  struct ptrace_peeksiginfo_args arguments = {
      .off = offset, .flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0, .nr = count};
  return request(PTRACE_PEEKSIGINFO, tid, &arguments, infos);
}

long sk_get_rseq(int tid, uint64_t configuration[4]) {
  struct ptrace_rseq_configuration answer = {0};
  long result = request(PTRACE_GET_RSEQ_CONFIGURATION, tid, (void *)sizeof answer, &answer);
  configuration[0] = answer.rseq_abi_pointer;
  configuration[1] = answer.rseq_abi_size;
  configuration[2] = answer.signature;
  configuration[3] = answer.flags;
  return result < 0 ? result : 0;
}

long sk_event_message(int tid, uint64_t *message) {
  unsigned long word = 0;
  long result = request(PTRACE_GETEVENTMSG, tid, NULL, &word);
  *message = word;
  return result;
}

long sk_wait(int tid, int nohang, int *status) {
  for (;;) {
    long result = checked(waitpid(tid, status, __WALL | (nohang ? WNOHANG : 0)));
    if (result != -EINTR)
      return result;
  }
}

long sk_look(int tid, int *status) {
  for (;;) {
    siginfo_t info = {0};
    /* Not through the C library: it knows no __WALL here. */
    long result = checked(
        syscall(SYS_waitid, P_PID, tid, &info, WEXITED | WSTOPPED | WNOWAIT | __WALL, NULL));
    if (result == -EINTR)
      continue;
    if (result < 0 || info.si_code != CLD_TRAPPED)
      return result;
    *status =
        info.si_status << 8 | 0x7f; /* as waitpid(2) tells it: the event is above the signal */
    return tid;
  }
}

long sk_robust_list(int tid, uint64_t head_and_length[2]) {
  void *head = NULL;
  size_t length = 0;
  long result = checked(syscall(SYS_get_robust_list, tid, &head, &length));
  head_and_length[0] = (uintptr_t)head;
  head_and_length[1] = length;
  return result;
}

long sk_kcmp_file(int pid1, int fd1, int pid2, int fd2) {
  return checked(syscall(SYS_kcmp, pid1, pid2, KCMP_FILE, (long)fd1, (long)fd2));
}

long sk_kcmp_epoll(int pid1, int fd, int pid2, int epoll_fd, int target, int offset) {
  struct kcmp_epoll_slot slot = {
      .efd = (uint32_t)epoll_fd, .tfd = (uint32_t)target, .toff = (uint32_t)offset};
  return checked(syscall(SYS_kcmp, pid1, pid2, KCMP_EPOLL_TFD, (long)fd, &slot));
}

long sk_pidfd_getfd(int pidfd, int fd) { return checked(syscall(SYS_pidfd_getfd, pidfd, fd, 0)); }

long sk_queue_attributes(int fd, int64_t attributes[3]) {
  long found[8]; /* struct mq_attr: flags, most, size, now, four reserved */
  long result = checked(syscall(SYS_mq_getsetattr, fd, NULL, found));
  for (int i = 0; !result && i < 3; i++)
    attributes[i] = found[i + 1];
  return result;
}

long sk_tee(int from, int to, size_t length) {
  return checked(tee(from, to, length, SPLICE_F_NONBLOCK));
}

long sk_prctl(int option, uint64_t argument) {
  return checked(syscall(SYS_prctl, option, argument, 0, 0, 0));
}
