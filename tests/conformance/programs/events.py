"""Descriptors that report events: eventfd, epoll, timerfd, signalfd, inotify."""

import ctypes
import fcntl
import os
import select
import signal
import struct

from protocol import call, expect, main, program, restored

CLOCK_MONOTONIC = 1
IN_ATTRIB, IN_CLOSE_NOWRITE, IN_CREATE, IN_DELETE = 0x4, 0x10, 0x100, 0x200
IN_ALL_EVENTS, IN_DONT_FOLLOW, IN_EXCL_UNLINK = 0xFFF, 0x2000000, 0x4000000
IN_ISDIR, IN_ONESHOT = 0x40000000, 0x80000000
TFD_NONBLOCK = os.O_NONBLOCK


def timer_create() -> int:
    return call("timerfd_create", CLOCK_MONOTONIC, os.O_CLOEXEC)


def timer_set(fd: int, first: float, interval: float) -> None:
    parts = (int(interval), int(interval % 1 * 1e9), int(first), int(first % 1 * 1e9))
    setting = ctypes.create_string_buffer(struct.pack("qqqq", *parts))
    call("timerfd_settime", fd, 0, ctypes.addressof(setting), 0)


def timer_get(fd: int) -> tuple[float, float]:
    """Seconds until the timer expires, and the interval."""
    setting = ctypes.create_string_buffer(32)
    call("timerfd_gettime", fd, ctypes.addressof(setting))
    interval, interval_ns, value, value_ns = struct.unpack("qqqq", setting.raw)
    return value + value_ns / 1e9, interval + interval_ns / 1e9


def ready_in(poller: select.epoll, seconds: float = 0) -> list[tuple[int, int]]:
    return sorted(poller.poll(seconds))


@program
def event_counter():
    fd = call("eventfd", 41, os.O_NONBLOCK)
    os.write(fd, struct.pack("Q", 1))
    yield
    expect("count", struct.unpack("Q", os.read(fd, 8))[0], 42)
    try:
        os.read(fd, 8)
    except BlockingIOError:
        return
    raise AssertionError("the counter was not reset")


@program
def event_semaphore():
    """EFD_SEMAPHORE gives one at a time."""
    fd = call("eventfd", 3, 1 | os.O_NONBLOCK)
    yield
    expect("counts", [os.read(fd, 8) for _ in range(3)], [struct.pack("Q", 1)] * 3)
    try:
        os.read(fd, 8)
    except BlockingIOError:
        return
    raise AssertionError("a fourth unit")


@program
def event_at_limit():
    """The largest count, at which a write would block."""
    fd = call("eventfd", 0, os.O_NONBLOCK)
    os.write(fd, struct.pack("Q", (1 << 64) - 2))
    yield
    expect("count", struct.unpack("Q", os.read(fd, 8))[0], (1 << 64) - 2)


@program
def epoll_registrations():
    reader, writer = os.pipe()
    event = call("eventfd", 0, 0)
    poller = select.epoll()
    poller.register(reader, select.EPOLLIN)
    poller.register(event, select.EPOLLIN)
    os.write(writer, b"x")
    yield
    expect("ready", ready_in(poller), [(reader, select.EPOLLIN)])
    os.write(event, struct.pack("Q", 1))
    both = sorted([(reader, select.EPOLLIN), (event, select.EPOLLIN)])
    expect("both ready", ready_in(poller), both)
    poller.modify(reader, 0)
    poller.unregister(event)
    expect("none", ready_in(poller), [])


@program
def epoll_nested():
    reader, writer = os.pipe()
    inner, outer = select.epoll(), select.epoll()
    inner.register(reader, select.EPOLLIN)
    outer.register(inner.fileno(), select.EPOLLIN)
    yield
    expect("nothing", ready_in(outer), [])
    os.write(writer, b"x")
    expect("outer", ready_in(outer), [(inner.fileno(), select.EPOLLIN)])
    expect("inner", ready_in(inner), [(reader, select.EPOLLIN)])


@program
def epoll_edge_triggered():
    reader, writer = os.pipe()
    poller = select.epoll()
    poller.register(reader, select.EPOLLIN | select.EPOLLET)
    yield
    os.write(writer, b"x")
    expect("first edge", ready_in(poller), [(reader, select.EPOLLIN)])
    expect("no new edge", ready_in(poller), [])
    os.write(writer, b"y")
    expect("second edge", ready_in(poller), [(reader, select.EPOLLIN)])


@program
def epoll_one_shot_used_up():
    """A registration that has reported once stays silent until it is armed again."""
    reader, writer = os.pipe()
    poller = select.epoll()
    poller.register(reader, select.EPOLLIN | select.EPOLLONESHOT)
    os.write(writer, b"x")
    expect("first", ready_in(poller), [(reader, select.EPOLLIN)])
    yield
    expect("used up", ready_in(poller), [])
    poller.modify(reader, select.EPOLLIN | select.EPOLLONESHOT)
    expect("armed again", ready_in(poller), [(reader, select.EPOLLIN)])


@program
def epoll_of_closed_number():
    """The registered number was closed, but a duplicate keeps the description alive (epoll(7))."""
    reader, writer = os.pipe()
    poller = select.epoll()
    poller.register(reader, select.EPOLLIN)
    twin = os.dup(reader)
    os.close(reader)
    os.write(writer, b"x")
    yield
    expect("still reported", ready_in(poller), [(reader, select.EPOLLIN)])
    expect("through the twin", os.read(twin, 1), b"x")


@program
def epoll_user_data():
    """The 64 bits of data that epoll_ctl(2) was given, which are not the descriptor's number."""
    reader, writer = os.pipe()
    poller = call("epoll_create1", 0)
    packed = struct.pack("<IQ", select.EPOLLIN, 0x1234567890ABCDEF)
    if os.uname().machine != "x86_64":  # struct epoll_event is packed there only
        packed = struct.pack("<IxxxxQ", select.EPOLLIN, 0x1234567890ABCDEF)
    event = ctypes.create_string_buffer(packed)
    call("epoll_ctl", poller, 1, reader, ctypes.addressof(event))
    yield
    os.write(writer, b"x")
    found = ctypes.create_string_buffer(len(packed))
    expect("events", call("epoll_wait", poller, ctypes.addressof(found), 1, 0), 1)
    expect("event", found.raw, packed)


@program
def timer_armed():
    fd = timer_create()
    timer_set(fd, 1000, 250)
    yield
    value, interval = timer_get(fd)
    assert 500 < value <= 1000, f"{value} s left of 1000"
    expect("interval", interval, 250)
    expect("expired", select.select([fd], [], [], 0)[0], [])


@program
def timer_ends():
    fd = timer_create()
    timer_set(fd, 0.7, 0)
    yield
    expect("expired", select.select([fd], [], [], 30)[0], [fd])
    expect("ticks", struct.unpack("Q", os.read(fd, 8))[0], 1)
    expect("disarmed", timer_get(fd), (0, 0))


@program
def timer_periodic():
    fd = timer_create()
    timer_set(fd, 0.05, 0.05)
    yield
    for _ in range(3):
        expect("expires", select.select([fd], [], [], 30)[0], [fd])
        assert struct.unpack("Q", os.read(fd, 8))[0] >= 1
    expect("interval", timer_get(fd)[1], 0.05)


@program
def timer_expired():
    """It had expired and nobody had read it."""
    fd = timer_create()
    timer_set(fd, 0.001, 0)
    expect("expired", select.select([fd], [], [], 30)[0], [fd])
    yield
    expect("still expired", select.select([fd], [], [], 0)[0], [fd])
    expect("ticks", struct.unpack("Q", os.read(fd, 8))[0], 1)


@program
def timer_disarmed():
    fd = timer_create()
    yield
    expect("setting", timer_get(fd), (0, 0))
    timer_set(fd, 0.01, 0)
    expect("can be set", select.select([fd], [], [], 30)[0], [fd])


@program
def signal_descriptor():
    """A signal is pending and the descriptor shows it."""
    mask = {signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, mask)
    bits = ctypes.create_string_buffer(128)
    call("sigemptyset", ctypes.addressof(bits))
    for number in mask:
        call("sigaddset", ctypes.addressof(bits), number)
    fd = call("signalfd", -1, ctypes.addressof(bits), os.O_NONBLOCK)
    poller = select.epoll()
    poller.register(fd, select.EPOLLIN)
    os.kill(os.getpid(), signal.SIGUSR1)
    yield
    expect("reported", ready_in(poller), [(fd, select.EPOLLIN)])
    expect("signal", struct.unpack_from("I", os.read(fd, 128))[0], signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR2)
    expect("next signal", struct.unpack_from("I", os.read(fd, 128))[0], signal.SIGUSR2)


def inotify_events(fd: int, seconds: float = 0) -> list[tuple[int, int, str]]:
    """Watch, mask and name of each event that waits or comes within some seconds."""
    found = []
    while select.select([fd], [], [], seconds)[0]:
        data, at = os.read(fd, 65536), 0
        while at < len(data):
            watch, mask, _, length = struct.unpack_from("iIII", data, at)
            name = data[at + 16 : at + 16 + length].rstrip(b"\0").decode()
            found.append((watch, mask, name))
            at += 16 + length
        seconds = 0
    return found


@program
def inotify_watches():
    """Watches keep their numbers, with gaps between them, and nothing is told that we did not do:
    opening, reading and closing are watched as well."""
    os.makedirs("place/folder/inner")
    os.chdir("place")  # the snapshot itself is stored beside it
    os.symlink("folder", "link")
    open("file", "w").close()
    fd = call("inotify_init1", os.O_CLOEXEC)
    read = os.open("file", os.O_RDONLY)

    def watch(path: str, mask: int) -> int:
        return call("inotify_add_watch", fd, path.encode(), mask)

    here = watch(".", IN_CREATE | IN_EXCL_UNLINK)
    for _ in range(40):
        call("inotify_rm_watch", fd, watch("folder", IN_CREATE))
    file = watch("file", IN_ALL_EVENTS)
    inner = watch("folder/inner", IN_CREATE | IN_DELETE | IN_ONESHOT)
    call("inotify_rm_watch", fd, watch("folder", IN_CREATE))
    link = watch("link", IN_ATTRIB | IN_DONT_FOLLOW)
    expect("numbers", (here, file, inner, link), (1, 42, 43, 45))
    inotify_events(fd)

    def watches() -> list[str]:
        with open(f"/proc/self/fdinfo/{fd}") as info:
            return sorted(line for line in info if line.startswith("inotify"))

    before, flags = watches(), fcntl.fcntl(fd, fcntl.F_GETFL)
    yield
    if not restored() and os.path.exists("folder/inner/made-by-copy"):
        return  # the copy has told the original, too
    expect("events", inotify_events(fd), [])
    expect("watches", watches(), before)
    expect("flags", fcntl.fcntl(fd, fcntl.F_GETFL), flags)
    name = "made-by-copy" if restored() else "made"
    os.mkdir(f"folder/inner/{name}")
    expect("made below", inotify_events(fd, 30)[0], (inner, IN_CREATE | IN_ISDIR, name))
    os.mkdir(name)
    expect("made here", inotify_events(fd, 30), [(here, IN_CREATE | IN_ISDIR, name)])
    os.utime("link", follow_symlinks=False)
    expect("touched", inotify_events(fd, 30), [(link, IN_ATTRIB, "")])
    os.close(read)
    expect("closed", inotify_events(fd, 30), [(file, IN_CLOSE_NOWRITE, "")])


if __name__ == "__main__":
    main()
