/* All signal actions, with flags and masks, and the signal mask of two threads. */
#include "conformance.h"

static pthread_barrier_t prepared, go;
static sigset_t other_mask;

static void handle(int signal) { (void)signal; }
static void inform(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)info, (void)context;
}

static void *live(void *argument) {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGTERM);
  sigaddset(&mask, SIGRTMIN + 5);
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  pthread_barrier_wait(&prepared);
  pthread_barrier_wait(&go);
  pthread_sigmask(SIG_SETMASK, NULL, &other_mask);
  return argument;
}

/* The kernel's own structure, whatever it looks like on this architecture. */
struct action {
  char bytes[64];
};

static void read_all(struct action *actions) {
  for (int n = 1; n <= 64; n++)
    syscall(SYS_rt_sigaction, n, NULL, &actions[n], 8);
}

int main(void) {
  static struct action before[65], after[65];
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
  sigset_t mask, now;
  pthread_t thread;
  sigaddset(&action.sa_mask, SIGINT);
  sigaddset(&action.sa_mask, SIGRTMAX);
  sigaction(SIGUSR1, &action, NULL);
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  action.sa_sigaction = inform;
  sigaction(SIGUSR2, &action, NULL);
  sigaction(SIGRTMIN + 3, &action, NULL);
  action.sa_flags = SA_RESETHAND;
  action.sa_handler = handle;
  sigaction(SIGALRM, &action, NULL);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGCHLD, SIG_IGN);
  sigemptyset(&mask);
  sigaddset(&mask, SIGHUP);
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  pthread_barrier_init(&prepared, NULL, 2);
  pthread_barrier_init(&go, NULL, 2);
  pthread_create(&thread, NULL, live, NULL);
  pthread_barrier_wait(&prepared);
  read_all(before);
  ready();
  read_all(after);
  for (int n = 1; n <= 64; n++)
    expect(!memcmp(&before[n], &after[n], sizeof before[n]), "action of signal %d", n);
  pthread_sigmask(SIG_SETMASK, NULL, &now);
  for (int n = 1; n <= 64; n++)
    expect(sigismember(&now, n) == (n == SIGHUP), "mask: signal %d", n);
  pthread_barrier_wait(&go);
  pthread_join(thread, NULL);
  for (int n = 1; n <= 64; n++)
    expect(sigismember(&other_mask, n) == (n == SIGTERM || n == SIGRTMIN + 5),
           "mask of the thread: signal %d", n);
  ok();
}
