/* clock_gettime through the vdso lies between two readings through the kernel: both see the same
 * time namespace. */
#include "conformance.h"

static long long now(int raw, clockid_t clock) {
  struct timespec time;
  if (raw)
    syscall(SYS_clock_gettime, clock, &time);
  else
    clock_gettime(clock, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(void) {
  static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME,
                                     CLOCK_MONOTONIC_RAW};
  ready();
  for (int i = 0; i < 4; i++) {
    for (int n = 0; n < 1000; n++) {
      long long first = now(1, clocks[i]), middle = now(0, clocks[i]), last = now(1, clocks[i]);
      expect(first <= middle && middle <= last, "clock %d: %lld %lld %lld", (int)clocks[i], first,
             middle, last);
    }
  }
  ok();
}
