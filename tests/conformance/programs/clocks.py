"""Time goes on from where it stood."""

import time

from protocol import UnsupportedError, expect, main, program, restored

MONOTONIC = [
    clock
    for name in ("CLOCK_MONOTONIC", "CLOCK_MONOTONIC_RAW", "CLOCK_BOOTTIME")
    if (clock := getattr(time, name, None)) is not None
]


@program
def never_backward():
    before = {clock: time.clock_gettime_ns(clock) for clock in MONOTONIC}
    yield
    for clock, value in before.items():
        now = time.clock_gettime_ns(clock)
        assert now >= value, f"clock {clock} went back from {value} to {now}"


@program
def dead_time():
    """Prints how much further the real clock went than the monotonic ones, in ns."""
    real = time.clock_gettime_ns(time.CLOCK_REALTIME)
    before = {clock: time.clock_gettime_ns(clock) for clock in MONOTONIC}
    yield
    passed = time.clock_gettime_ns(time.CLOCK_REALTIME) - real
    for clock, value in before.items():
        print(f"not seen by clock {clock}: {passed - (time.clock_gettime_ns(clock) - value)}")


@program
def processor_time():
    """Starts anew in a restored copy: it is a new process to the kernel."""
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    before = time.process_time()
    yield
    if not restored():
        assert time.process_time() >= before
    first = time.process_time()
    while time.process_time() == first:
        pass


@program
def sleeps():
    """Sleeping works after a restore, by duration and until a deadline."""
    before = time.monotonic()
    yield
    middle = time.monotonic()
    time.sleep(0.02)
    after = time.monotonic()
    assert before <= middle <= after - 0.02, (before, middle, after)


@program
def many_readings():
    """The clock is read through the vdso, and agrees with the kernel."""
    from protocol import call

    if not hasattr(time, "clock_gettime_ns"):
        raise UnsupportedError("clock_gettime")
    yield
    last = 0
    for _ in range(20_000):
        now = time.monotonic_ns()
        assert now >= last, "the clock went back"
        last = now
    with open("/proc/uptime") as uptime:
        float(uptime.read().split()[0])
    expect("getpid", call("getpid") > 0, True)


if __name__ == "__main__":
    main()
