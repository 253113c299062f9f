/* A process that notices when something was done to it. Its threads compute in vector registers,
 * sleep, wait for each other and get signals all the time. Every line `check` on standard input has
 * it verify all of that, and print `ok` or what is wrong; `go` ends it. */
#include "../../conformance/programs/conformance.h"
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>
#include <sys/wait.h>

typedef double vector __attribute__((vector_size(64)));
enum { WORKERS = 2, LOOPS = WORKERS + 3 };

static _Atomic long rounds[LOOPS], rings, wrong;
static vector first;
static char alternate[65536];
static struct action {
  void *handler;
  unsigned long flags, mask; /* the kernel's 64 signals */
} actions[65];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static int turn;

static void compute(vector *result) {
  vector x = {.11, .22, .33, .44, .55, .66, .77, .88}, y = x / 3, sum = {0};
  for (int i = 0; i < 20000; i++) {
    x = 3.99 * x * (1.0 - x);
    y = 3.97 * y * (1.0 - y);
    sum += x * y;
  }
  *result = sum + x - y;
}

static void *work(void *count) {
  vector result;
  for (;; ++*(_Atomic long *)count) {
    compute(&result);
    wrong += memcmp(&result, &first, sizeof result) != 0;
    usleep(1000);
  }
  return NULL;
}

/* A relative sleep is neither cut short nor interrupted: all handlers run in the main thread. */
static void *rest(void *count) {
  stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate}, now;
  sigaltstack(&stack, NULL);
  for (;; ++*(_Atomic long *)count) {
    double began = seconds();
    struct timespec time = {0, 3000000};
    wrong += nanosleep(&time, NULL) != 0 || seconds() - began < 0.003;
    wrong += sigaltstack(NULL, &now) || now.ss_sp != alternate || now.ss_flags;
  }
  return NULL;
}

static void *take_turns(void *count) {
  int mine = (int)((_Atomic long *)count - rounds) - WORKERS - 1;
  for (;; ++*(_Atomic long *)count) {
    pthread_mutex_lock(&lock);
    while (turn != mine)
      pthread_cond_wait(&turned, &lock);
    turn = !mine;
    pthread_cond_signal(&turned);
    pthread_mutex_unlock(&lock);
    usleep(300);
  }
  return NULL;
}

static void ring(int signal) {
  (void)signal;
  rings++;
}

static void remember(struct action found[65]) {
  memset(found, 0, sizeof actions);
  for (int signal = 1; signal < 65; signal++) {
    struct sigaction action = {0};
    sigaction(signal, NULL, &action);
    found[signal].handler = (void *)action.sa_handler;
    found[signal].flags = (unsigned)action.sa_flags;
    memcpy(&found[signal].mask, &action.sa_mask, sizeof found[signal].mask);
  }
}

static void all_go_on(void) {
  for (int i = 0; i < LOOPS; i++)
    for (long before = rounds[i], tries = 0; rounds[i] < before + 2; tries++) {
      expect(tries < 100000, "thread %d stands still", i);
      usleep(100);
    }
}

static void verify(const sigset_t *mask) {
  struct action now[65];
  sigset_t blocked;
  all_go_on();
  for (long before = rings, tries = 0; rings == before; tries++) {
    expect(tries < 100000, "the timer rings no more");
    usleep(100);
  }
  expect(wrong == 0, "%ld rounds differ", (long)wrong);
  remember(now);
  expect(!memcmp(now, actions, sizeof now), "signal actions are others");
  pthread_sigmask(SIG_SETMASK, NULL, &blocked);
  expect(!memcmp(&blocked, mask, 8), "the signal mask is another");
  expect(waitpid(-1, NULL, __WALL | WNOHANG) == -1 && errno == ECHILD, "there is a child");
}

int main(void) {
  sigset_t all, mask;
  pthread_t thread;
  compute(&first);
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, NULL);
  for (int i = 0; i < LOOPS; i++)
    pthread_create(&thread, NULL,
                   i < WORKERS    ? work
                   : i == WORKERS ? rest
                                  : take_turns,
                   (void *)&rounds[i]);
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR2);
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  struct sigaction action = {.sa_handler = ring, .sa_flags = SA_RESTART};
  sigaction(SIGALRM, &action, NULL);
  signal(SIGTRAP, SIG_IGN);
  remember(actions);
  struct itimerval often = {{0, 5000}, {0, 5000}};
  setitimer(ITIMER_REAL, &often, NULL);
  all_go_on();
  say("ready\n");
  for (char line[16];;) {
    ssize_t length = read(0, line, sizeof line);
    expect(length > 0, "standard input gave %zd (errno %d)", length, errno);
    verify(&mask);
    say("ok\n");
    if (!memcmp(line, "go\n", 3))
      _exit(0);
  }
}
