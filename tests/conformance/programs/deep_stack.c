/* The stack grows after the restore: 6 MiB of frames, more than it had. */
#include "conformance.h"

static long descend(int depth) {
  volatile char frame[4096];
  frame[0] = (char)depth;
  frame[4095] = (char)(depth >> 8);
  long below = depth ? descend(depth - 1) : 0;
  return below + (unsigned char)frame[0] + ((long)(unsigned char)frame[4095] << 8);
}

int main(void) {
  long expected = 0;
  for (int i = 0; i <= 1500; i++)
    expected += i;
  expect(descend(10) == 55, "before");
  ready();
  long found = descend(1500);
  expect(found == expected, "sum %ld, expected %ld", found, expected);
  ok();
}
