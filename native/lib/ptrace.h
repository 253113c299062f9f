#include <stddef.h>
#include <stdint.h>

/* Thin wrappers of ptrace(2), wait4(2) and relatives: they return the result, or -errno. */

long sk_ptrace(long request, int tid, uint64_t address, uint64_t data);

/* GETREGSET/SETREGSET (elf note type) into or from a buffer. Get returns the regset's size. */
long sk_get_regset(int tid, int note, uint8_t *buffer, size_t size);
long sk_set_regset(int tid, int note, const uint8_t *buffer, size_t size);

/* PTRACE_GETSIGMASK and PTRACE_SETSIGMASK (Linux 3.11). */
long sk_get_signal_mask(int tid, uint64_t *mask);
long sk_set_signal_mask(int tid, uint64_t mask);

/* PTRACE_PEEKSIGINFO (Linux 3.10): `shared` picks the queue of the process. Fills up to `count`
 * siginfo_t of 128 bytes each, from queue position `offset`; returns how many. */
long sk_peek_signals(int tid, int shared, uint64_t offset, uint8_t *infos, int count);

/* PTRACE_GET_RSEQ_CONFIGURATION (Linux 5.13): address, size, signature, flags. */
long sk_get_rseq(int tid, uint64_t configuration[4]);

/* PTRACE_GETEVENTMSG. */
long sk_event_message(int tid, uint64_t *message);

/* waitpid(tid, status, __WALL | (nohang ? WNOHANG : 0)), restarted on EINTR. */
long sk_wait(int tid, int nohang, int *status);

/* The status of a trap as sk_wait would tell it, which stays to be waited for: tid, or 0 for
 * another change of state. */
long sk_look(int tid, int *status);

/* get_robust_list(2) of another thread. */
long sk_robust_list(int tid, uint64_t head_and_length[2]);

/* kcmp(2) of two descriptors, each of a process: 0 when they share a description. */
long sk_kcmp_file(int pid1, int fd1, int pid2, int fd2);

/* kcmp(2) KCMP_EPOLL_TFD (Linux 4.13): 0 when descriptor `fd` of pid1 is what epoll `epoll_fd` of
 * pid2 watches as the `offset`-th registration of the number `target`. */
long sk_kcmp_epoll(int pid1, int fd, int pid2, int epoll_fd, int target, int offset);

/* pidfd_getfd(2) (Linux 5.6). */
long sk_pidfd_getfd(int pidfd, int fd);

/* mq_getattr(3): most messages, bytes of the longest one, messages now. */
long sk_queue_attributes(int fd, int64_t attributes[3]);

/* tee(2), without blocking. */
long sk_tee(int from, int to, size_t length);

/* prctl(2) with one argument, on this process. */
long sk_prctl(int option, uint64_t argument);
