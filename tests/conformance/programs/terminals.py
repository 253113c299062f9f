"""Pseudo-terminals of the process itself: settings, what waits in them, who controls whom."""

import contextlib
import errno
import fcntl
import os
import select
import signal
import struct
import termios
import time
import tty

from protocol import PATIENCE, Worker, expect, main, program

TIOCGPKT, TIOCSPTLCK, TIOCGPTLCK, TIOCGEXCL = 0x80045438, 0x40045431, 0x80045439, 0x80045440
TCGETS2, TCSETS2, BOTHER = 0x802C542A, 0x402C542B, 0o010000
IUTF8 = 0o040000
IFLAG, OFLAG, CFLAG, LFLAG, CC = 0, 1, 2, 3, 6


def change(descriptor, part, bits, on):
    attributes = termios.tcgetattr(descriptor)
    attributes[part] = attributes[part] | bits if on else attributes[part] & ~bits
    termios.tcsetattr(descriptor, termios.TCSANOW, attributes)


def quiet():
    """A terminal without echo."""
    master, slave = os.openpty()
    change(slave, LFLAG, termios.ECHO, False)
    return master, slave


def flag(descriptor, request):
    return struct.unpack("i", fcntl.ioctl(descriptor, request, bytes(4)))[0]


def ready(descriptor, events=select.POLLIN, patience=0):
    poll = select.poll()
    poll.register(descriptor, events)
    return dict(poll.poll(patience)).get(descriptor, 0)


def read_all(descriptor, length):
    found = b""
    while len(found) < length:
        expect(f"more after {len(found)} bytes", ready(descriptor, patience=5000) & 1, 1)
        found += os.read(descriptor, length - len(found))
    return found


@program
def terminal_pair():
    """Both sides, with settings and a size of their own; it goes on as a terminal does."""
    master, slave = os.openpty()
    change(slave, IFLAG, IUTF8 | termios.IXANY, True)
    change(slave, OFLAG, termios.ONLCR, False)
    attributes = termios.tcgetattr(slave)
    attributes[CC][termios.VERASE] = b"#"
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    size = struct.pack("4H", 41, 137, 1000, 700)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    before = termios.tcgetattr(slave)
    name, status = os.ttyname(slave), os.fstat(slave)
    yield
    expect("settings", termios.tcgetattr(slave), before)
    expect("size", fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(8)), size)
    expect("name", os.ttyname(slave), name)
    expect("device", (os.fstat(slave).st_rdev, os.stat(name).st_rdev), (status.st_rdev,) * 2)
    expect("nothing waits", (ready(master), ready(slave)), (0, 0))
    os.write(master, b"ab#c\n")
    expect("typed", os.read(slave, 100), b"ac\n")
    expect("echo", read_all(master, 7), b"ab\b \bc\n")
    os.write(slave, b"printed\n")
    expect("printed", read_all(master, 8), b"printed\n")


@program
def terminal_speed():
    """A speed that has no name (BOTHER)."""
    _master, slave = os.openpty()
    settings = bytearray(fcntl.ioctl(slave, TCGETS2, bytes(44)))
    struct.pack_into("I", settings, 8, struct.unpack_from("I", settings, 8)[0] & ~0o010017 | BOTHER)
    struct.pack_into("II", settings, 36, 12345, 12345)
    fcntl.ioctl(slave, TCSETS2, bytes(settings))
    before = fcntl.ioctl(slave, TCGETS2, bytes(44))
    expect("set", struct.unpack_from("II", before, 36), (12345, 12345))
    yield
    expect("settings", fcntl.ioctl(slave, TCGETS2, bytes(44)), before)


@program
def terminal_numbers():
    """The second and the fourth of four: numbers do not begin at 0."""
    pairs = [os.openpty() for _ in range(4)]
    names = [os.ttyname(slave) for _, slave in pairs]
    for unused in (0, 2):
        os.close(pairs[unused][0])
        os.close(pairs[unused][1])
    yield
    for used in (1, 3):
        master, slave = pairs[used]
        expect("name", os.ttyname(slave), names[used])
        again = os.open(names[used], os.O_RDWR | os.O_NOCTTY)
        os.write(again, b"again")
        expect("by its name", os.read(master, 100), b"again")
    master, slave = os.openpty()
    expect("a new one", os.ttyname(slave) in names[1::2], False)


@program
def terminal_lines_waiting():
    """Lines, ends of file, and the beginning of a line wait for the reader."""
    master, slave = quiet()
    os.write(master, b"first\nsecond line\n\nno end\x04\x04quoted \x16\x04\x16\x03\x16\x11\nbegun")
    yield
    lines = [os.read(slave, 100) for _ in range(6)]
    expect(
        "lines",
        lines,
        [b"first\n", b"second line\n", b"\n", b"no end", b"", b"quoted \x04\x03\x11\n"],
    )
    expect("the beginning is no line", ready(slave), 0)
    os.write(master, b" and ended\n")
    expect("the last line", os.read(slave, 100), b"begun and ended\n")
    os.write(master, b"wrong\x15right\n")
    expect("editing goes on", os.read(slave, 100), b"right\n")


@program
def terminal_erase_across():
    """What was typed before can still be erased after."""
    master, slave = quiet()
    os.write(master, b"wrong")
    yield
    os.write(master, b"\x7f\x7f\x7f\x7f\x7fright\n")
    expect("line", os.read(slave, 100), b"right\n")


@program
def terminal_bytes_waiting():
    """Every byte there is, in both directions of a raw terminal."""
    master, slave = os.openpty()
    tty.setraw(slave)
    everything = bytes(range(256)) * 12
    os.write(master, everything)
    os.write(slave, everything[::-1])
    yield
    expect("typed", read_all(slave, len(everything)) == everything, True)
    expect("printed", read_all(master, len(everything)) == everything[::-1], True)
    expect("no more", (ready(master), ready(slave)), (0, 0))


@program
def terminal_much_printed():
    """More than the kernel holds for the reader at once."""
    master, slave = os.openpty()
    text = b"".join(b"line %d\n" % number for number in range(700))
    expect("written", os.write(slave, text), len(text))
    yield
    wanted = text.replace(b"\n", b"\r\n")
    expect("printed", read_all(master, len(wanted)) == wanted, True)


@program
def terminal_full():
    """A program prints as long as the kernel takes it; nobody has read yet."""
    master, slave = os.openpty()
    os.set_blocking(slave, False)
    text = b""
    while ready(slave, select.POLLOUT):
        line = b"%d %s\n" % (len(text), b"." * (len(text) % 100))
        with contextlib.suppress(BlockingIOError):
            text += line[: os.write(slave, line)]
    yield
    wanted = text.replace(b"\n", b"\r\n")
    expect("printed", read_all(master, len(wanted)) == wanted, True)
    os.write(slave, b"more")
    expect("more", os.read(master, 100), b"more")


@program
def terminal_stopped():
    """By Ctrl-S, with output before; Ctrl-Q starts it."""
    master, slave = quiet()
    os.write(slave, b"before")
    os.write(master, b"typed\nand\x13")
    until_stopped(slave)
    writer = Worker(lambda: os.write(slave, b" and after")).blocked()
    yield
    expect("before", os.read(master, 100), b"before")
    expect("stopped", ready(master), 0)
    os.write(master, b"\x11")
    expect("after", read_all(master, 10), b" and after")
    expect("written", writer.result(), 10)
    os.write(master, b" more\n")
    expect("typed", os.read(slave, 100), b"typed\n")
    expect("typed", os.read(slave, 100), b"and more\n")


@program
def terminal_stopped_by_call():
    """By tcflow(3), which Ctrl-Q does not start."""
    master, slave = quiet()
    os.write(slave, b"before")
    termios.tcflow(slave, termios.TCOOFF)
    yield
    expect("before", os.read(master, 100), b"before")
    os.write(master, b"\x11typed\n")
    expect("typed", os.read(slave, 100), b"typed\n")
    expect("stopped", ready(slave, select.POLLOUT), 0)
    termios.tcflow(slave, termios.TCOON)
    expect("started", ready(slave, select.POLLOUT), select.POLLOUT)


def until_stopped(slave):
    deadline = time.monotonic() + PATIENCE
    while ready(slave, select.POLLOUT):
        expect("in time", time.monotonic() < deadline, True)


@program
def terminal_minimum():
    """VMIN: three bytes are not enough, five are."""
    master, slave = os.openpty()
    tty.setraw(slave)
    attributes = termios.tcgetattr(slave)
    attributes[CC][termios.VMIN] = 5
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    os.write(master, b"abc")
    yield
    expect("not enough", ready(slave), 0)
    os.write(master, b"de")
    expect("enough", os.read(slave, 100), b"abcde")


@program
def terminal_echo_waiting():
    """The echo of what was typed waits once, not twice."""
    master, slave = os.openpty()
    os.write(master, b"typed\n")
    ready(slave)
    yield
    expect("typed", os.read(slave, 100), b"typed\n")
    expect("echo", read_all(master, 7), b"typed\r\n")
    expect("no more", ready(master), 0)


@program
def terminal_packets():
    """Packet mode with output waiting, a lock, and a slave that is exclusive."""
    master, slave = quiet()
    fcntl.ioctl(master, termios.TIOCPKT, struct.pack("i", 1))
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 1))
    fcntl.ioctl(slave, termios.TIOCEXCL)
    os.write(slave, b"printed")
    os.write(master, b"typed\n")
    yield
    expect("packet mode", flag(master, TIOCGPKT), 1)
    expect("lock", flag(master, TIOCGPTLCK), 1)
    expect("exclusive", flag(slave, TIOCGEXCL), 1)
    expect("no news", ready(master, select.POLLPRI | select.POLLIN), select.POLLIN)
    expect("printed", os.read(master, 100), b"\0printed")
    expect("typed", os.read(slave, 100), b"typed\n")
    termios.tcflush(slave, termios.TCIFLUSH)
    expect("news", os.read(master, 100), bytes([termios.TIOCPKT_FLUSHREAD]))


@program
def terminal_closed():
    """The slave is closed: what it has printed can be read, then there is an end. It may come
    back."""
    master, slave = os.openpty()
    name = os.ttyname(slave)
    os.write(slave, b"last words")
    os.close(slave)
    yield
    expect("hung up", ready(master) & select.POLLHUP, select.POLLHUP)
    expect("last words", os.read(master, 100), b"last words")
    try:
        os.read(master, 100)
    except OSError as error:
        expect("end", error.errno, errno.EIO)
    else:
        raise AssertionError("the master gave something after the end")
    slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
    os.write(slave, b"back")
    expect("back", os.read(master, 100), b"back")


@program
def terminal_never_opened():
    """A master alone, still locked: that is no end."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    yield
    expect("no end", ready(master), 0)
    expect("lock", flag(master, TIOCGPTLCK), 1)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    number = flag(master, 0x80045430)
    slave = os.open(f"/dev/pts/{number}", os.O_RDWR | os.O_NOCTTY)
    os.write(slave, b"opened")
    expect("opened", os.read(master, 100), b"opened")


@program
def terminal_hung_up():
    """The master is gone: reading gives the end, writing fails."""
    master, slave = os.openpty()
    os.close(master)
    yield
    expect("end", os.read(slave, 100), b"")
    expect("hung up", ready(slave) & select.POLLHUP, select.POLLHUP)
    try:
        os.write(slave, b"x")
    except OSError as error:
        expect("error", error.errno, errno.EIO)
    else:
        raise AssertionError("a terminal without a master took a byte")


@program
def terminal_descriptions():
    """A reader, a writer that does not block, a duplicate, and one that is closed on exec."""
    master, slave = quiet()
    name = os.ttyname(slave)
    reader = os.open(name, os.O_RDONLY | os.O_NOCTTY)
    writer = os.open(name, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    twin = os.dup(writer)
    os.set_inheritable(twin, True)
    os.close(slave)
    yield
    modes = [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE for fd in (master, reader, writer)]
    expect("modes", modes, [os.O_RDWR, os.O_RDONLY, os.O_WRONLY])
    blocking = [os.get_blocking(fd) for fd in (reader, writer, twin)]
    expect("blocking", blocking, [True, False, False])
    os.set_blocking(twin, True)
    expect("one description", os.get_blocking(writer), True)
    expect("inheritable", [os.get_inheritable(fd) for fd in (writer, twin)], [False, True])
    os.write(master, b"typed\n")
    expect("typed", os.read(reader, 100), b"typed\n")
    os.close(twin)
    os.close(writer)
    os.close(reader)
    expect("all closed", ready(master) & select.POLLHUP, select.POLLHUP)


@program
def terminal_blocked_reader():
    """A thread waits for a line; an epoll watches the master."""
    master, slave = quiet()
    watch = select.epoll()
    watch.register(master, select.EPOLLIN)
    reader = Worker(lambda: os.read(slave, 100)).blocked()
    yield
    os.write(master, b"a line\n")
    expect("line", reader.result(), b"a line\n")
    os.write(slave, b"x")
    expect("watched", watch.poll(5), [(master, select.EPOLLIN)])


@program
def terminal_controlling():
    """The process leads the terminal's session: it is /dev/tty, and Ctrl-C is a signal."""
    master, slave = quiet()
    expect("leader", os.getsid(0), os.getpid())
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    expect("foreground", os.tcgetpgrp(slave), os.getpgrp())
    caught = []
    for number in (signal.SIGINT, signal.SIGWINCH):
        signal.signal(number, lambda number, _: caught.append(number))
    yield
    expect("foreground", os.tcgetpgrp(slave), os.getpgrp())
    own = os.open("/dev/tty", os.O_RDWR)
    os.write(own, b"hello")
    expect("/dev/tty", os.read(master, 100), b"hello")
    os.write(master, b"\x03")
    ready(slave)
    expect("Ctrl-C", caught, [signal.SIGINT])
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 10, 20, 0, 0))
    expect("window", caught, [signal.SIGINT, signal.SIGWINCH])
    signal.signal(signal.SIGHUP, lambda number, _: caught.append(number))
    os.close(master)
    expect("hang up", caught[2:], [signal.SIGHUP])


if __name__ == "__main__":
    main()
