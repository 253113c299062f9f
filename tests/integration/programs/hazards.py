"""Programs whose state is easily lost in a checkpoint. The protocol is that of the conformance
programs."""

import ctypes
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import sys
import termios
import threading
import tty
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance" / "programs"))

from protocol import UnsupportedError, Worker, call, expect, main, program

PR_SET_NAME = 15
IN_CREATE = 0x100
NAMES = (b"\xff\xfemain", b"caf\xe9 \xc3")


@program
def many_descriptors():
    """Three thousand, of several kinds; there is room for as many again."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3100:
        raise UnsupportedError(f"only {hard} descriptors (RLIMIT_NOFILE)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pipes = [os.pipe() for _ in range(1000)]
    counters = [os.eventfd(number) for number in range(500)]
    copies = [os.dup(pipes[0][1]) for _ in range(500)]
    yield
    for number, (reader, writer) in enumerate(pipes):
        os.write(writer, b"%d" % number)
        expect(f"pipe {number}", os.read(reader, 100), b"%d" % number)
    for number, counter in enumerate(counters[1:], 1):
        expect(f"counter {number}", os.eventfd_read(counter), number)
    for number, copy in enumerate(copies):
        os.write(copy, b"x")
        expect(f"copy {number}", os.read(pipes[0][0], 100), b"x")


@program
def few_descriptors_allowed():
    """The hard limit is too low for anything that needs each descriptor twice."""
    descriptors = [os.eventfd(number) for number in range(1, 601)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    yield
    expect("limit", resource.getrlimit(resource.RLIMIT_NOFILE), (1024, 1024))
    for number, descriptor in enumerate(descriptors, 1):
        expect(f"counter {number}", os.eventfd_read(descriptor), number)


@program
def receive_timeout():
    """recv(2) with SO_RCVTIMEO does not begin again after a stop, see signal(7)."""

    def receiver(seconds: int) -> tuple[socket.socket, Worker]:
        here, there = socket.socketpair()
        timeout = struct.pack("@qq", seconds, 0)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        buffer = bytearray(16)

        def receive() -> tuple[int, int]:
            try:
                return call("recv", here.fileno(), address(buffer), 16, 0), 0
            except OSError as error:
                return -1, error.errno or 0

        return there, Worker(receive).blocked()

    _silent, in_vain = receiver(2)
    peer, in_time = receiver(30)
    yield
    peer.sendall(b"hello")
    expect("received", in_time.result(), (5, 0))
    expect("when nothing comes", in_vain.result(), (-1, errno.EAGAIN))


def address(buffer: bytearray) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@program
def ignored_trap():
    """The kernel resets an ignored SIGTRAP that it forces upon a process."""
    signal.signal(signal.SIGTRAP, signal.SIG_IGN)
    yield
    status = Path("/proc/self/status").read_text()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    expect("SIGTRAP is ignored", bool(ignored >> signal.SIGTRAP - 1 & 1), True)
    os.kill(os.getpid(), signal.SIGTRAP)


@program
def pipe_both_ways():
    """One descriptor for both ends of a pipe (proc(5), /proc/PID/fd)."""
    reader, writer = os.pipe()
    both = os.open(f"/proc/self/fd/{reader}", os.O_RDWR)
    os.close(reader)
    os.close(writer)
    os.write(both, b"queued")
    yield
    expect("access mode", fcntl.fcntl(both, fcntl.F_GETFL) & os.O_ACCMODE, os.O_RDWR)
    expect("queued", os.read(both, 100), b"queued")
    os.write(both, b"more")
    expect("written and read", os.read(both, 100), b"more")


@program
def one_processor():
    """As after ``taskset -c 0``."""
    allowed = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(0, allowed)
    go = threading.Event()
    worker = Worker(lambda: go.wait() and os.sched_getaffinity(0)).blocked()
    yield
    go.set()
    expect("processors", os.sched_getaffinity(0), allowed)
    expect("processors of the thread", worker.result(), allowed)


@program
def names_of_bytes():
    """Names of threads are bytes, not text."""
    named, go = threading.Event(), threading.Event()

    def look() -> bytes:
        call("prctl", PR_SET_NAME, NAMES[1], 0, 0, 0)
        named.set()
        go.wait()
        return Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_bytes()

    call("prctl", PR_SET_NAME, NAMES[0], 0, 0, 0)
    worker = Worker(look)
    worker.start()
    named.wait()
    yield
    go.set()
    expect("main", Path("/proc/self/comm").read_bytes(), NAMES[0] + b"\n")
    expect("thread", worker.result(), NAMES[1] + b"\n")


@program
def watch_with_a_high_number():
    """As of a program that has watched and forgotten thousands of files (inotify(7))."""
    os.makedirs("place/inner")
    fd = call("inotify_init1", os.O_NONBLOCK)
    for number in range(1, 9000):
        expect("number", call("inotify_add_watch", fd, b"place", IN_CREATE), number)
        call("inotify_rm_watch", fd, number)
        if number % 1000 == 0:
            os.read(fd, 1 << 20)
    os.read(fd, 1 << 20)
    expect("last number", call("inotify_add_watch", fd, b"place/inner", IN_CREATE), 9000)
    yield
    name = f"made-by-{os.stat('/proc/self/ns/pid').st_ino}"
    Path("place/inner", name).touch()
    seen = os.read(fd, 1 << 20)
    while seen and not seen[16:].startswith(name.encode()):
        # The copy beside us may have made a file as well, and nothing else has happened.
        watch, mask, _, length = struct.unpack_from("iIII", seen)
        expect("event", (watch, mask, seen[16:24]), (9000, IN_CREATE, b"made-by-"))
        seen = seen[16 + length :]
    expect("event", struct.unpack_from("iI", seen), (9000, IN_CREATE))


@program
def terminal_of_another():
    master, slave = os.openpty()
    print("terminal", os.ttyname(slave), flush=True)
    os.close(slave)
    yield
    expect("it is closed again", select.select([master], [], [], 0)[0], [master])


@program
def terminal_news():
    """Packet mode tells of a change before it gives data."""
    master, slave = os.openpty()
    fcntl.ioctl(master, termios.TIOCPKT, struct.pack("i", 1))
    termios.tcflush(slave, termios.TCIFLUSH)
    yield
    expect("news", os.read(master, 100), bytes([termios.TIOCPKT_FLUSHREAD]))


@program
def terminal_full():
    master, slave = os.openpty()
    tty.setraw(slave)
    typed = bytes(range(256)) * 17
    os.write(master, typed)
    yield
    found = b""
    while len(found) < len(typed):
        found += os.read(slave, 10_000)
    expect("typed", found == typed, True)


@program
def queue_with_notification():
    """mq_notify(3): what it would be told cannot be read."""
    name = b"/snapkernel-%d" % os.getpid()
    queue = call("mq_open", name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, None)
    call("mq_unlink", name)
    told = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: told.set())
    # struct sigevent: value, signal, SIGEV_SIGNAL
    call("mq_notify", queue, struct.pack("@Pii", 0, signal.SIGUSR1, 0).ljust(64, b"\0"))
    yield
    expect("told too early", told.is_set(), False)
    call("mq_send", queue, b"hello", 5, 0)
    expect("told", told.wait(30), True)


@program
def segment_and_semaphores():
    """Of System V; what a copy of the process does with them is not seen here."""
    key = 0x51000000 | os.getpid()
    segment = call("shmget", key, 8192, 0o1600)
    place = call("shmat", segment, 0, 0)
    semaphores = call("semget", key, 2, 0o1600)
    call("semctl", semaphores, 0, 16, 3)  # SETVAL
    call("semctl", semaphores, 1, 16, 4)
    ctypes.memset(place, 7, 8192)
    yield
    expect("content", ctypes.string_at(place, 8192), bytes([7]) * 8192)
    expect("values", [call("semctl", semaphores, i, 12) for i in (0, 1)], [3, 4])
    ctypes.memset(place, 8, 8192)
    call("semctl", semaphores, 0, 16, 5)
    status = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    (own,) = (line.split() for line in status if int(line.split()[1]) == segment)
    expect("attachments", own[6], "1")


@program
def idle():
    yield


if __name__ == "__main__":
    main()
