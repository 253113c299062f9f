/* A debugger: traces the process named on its command line until its standard input ends. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <unistd.h>

int main(int count, char **arguments) {
  char byte;
  if (count != 2 || ptrace(PTRACE_SEIZE, atoi(arguments[1]), 0, 0)) {
    perror("ptrace");
    return 1;
  }
  if (write(1, "ready\n", 6) != 6)
    return 2;
  while (read(0, &byte, 1) > 0) {
  }
  return 0;
}
