/* A handler interrupts a read that began before the restore: with SA_RESTART the read goes on,
 * without it, it ends with EINTR. */
#include "conformance.h"

struct reader {
  int ends[2], signal;
  pid_t tid;
  ssize_t result;
  int error;
};

static volatile int handled;

static void handle(int signal) {
  (void)signal;
  __sync_fetch_and_add(&handled, 1);
}

static void *live(void *argument) {
  struct reader *reader = argument;
  char byte;
  reader->tid = (pid_t)syscall(SYS_gettid);
  reader->result = read(reader->ends[0], &byte, 1);
  reader->error = errno;
  return NULL;
}

int main(void) {
  struct reader readers[2] = {{.signal = SIGUSR1}, {.signal = SIGUSR2}};
  pthread_t threads[2];
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, NULL);
  action.sa_flags = 0;
  sigaction(SIGUSR2, &action, NULL);
  for (int i = 0; i < 2; i++) {
    expect(!pipe(readers[i].ends), "pipe");
    pthread_create(&threads[i], NULL, live, &readers[i]);
    while (!*(volatile pid_t *)&readers[i].tid)
      usleep(1000);
    until_blocked(readers[i].tid);
  }
  ready();
  pthread_kill(threads[0], SIGUSR1);
  pthread_kill(threads[1], SIGUSR2);
  pthread_join(threads[1], NULL);
  expect(readers[1].result == -1 && readers[1].error == EINTR, "without SA_RESTART: %zd, %d",
         readers[1].result, readers[1].error);
  while (handled < 2)
    usleep(1000);
  expect(write(readers[0].ends[1], "x", 1) == 1, "write");
  pthread_join(threads[0], NULL);
  expect(readers[0].result == 1, "with SA_RESTART: %zd", readers[0].result);
  ok();
}
