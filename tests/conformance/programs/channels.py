"""Pipes, FIFOs and unix socket pairs with what is queued in them."""

import array
import fcntl
import os
import select
import socket

from protocol import call, expect, main, pattern, program

F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032
SPLICE_F_NONBLOCK = 2


@program
def pipe_with_data():
    reader, writer = os.pipe()
    os.write(writer, b"queued ")
    os.write(writer, b"twice")
    yield
    expect("queued", os.read(reader, 100), b"queued twice")
    os.write(writer, b"more")
    expect("more", os.read(reader, 100), b"more")
    os.close(writer)
    expect("end", os.read(reader, 100), b"")


@program
def pipe_enlarged():
    """More than the 64 KiB of a pipe as it is made."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 1 << 19)
    data = pattern(400_000)
    expect("written", os.write(writer, data), len(data))
    yield
    expect("size", fcntl.fcntl(reader, F_GETPIPE_SZ), 1 << 19)
    found = b""
    while len(found) < len(data):
        found += os.read(reader, 1 << 20)
    expect("content", found == data, True)


@program
def pipe_partly_read():
    """The queue starts in the middle of a page."""
    reader, writer = os.pipe()
    os.write(writer, pattern(30_000))
    os.read(reader, 5_001)
    yield
    expect("content", os.read(reader, 65536) == pattern(30_000)[5_001:], True)


@program
def pipe_without_writer():
    reader, writer = os.pipe()
    os.write(writer, b"last words")
    os.close(writer)
    yield
    expect("queued", os.read(reader, 100), b"last words")
    expect("end", os.read(reader, 100), b"")


@program
def pipe_without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    yield
    try:
        os.write(writer, b"x")
    except BrokenPipeError:
        return
    raise AssertionError("a pipe without a reader took a byte")


@program
def pipe_nonblocking():
    """O_NONBLOCK of one end only, and both ends duplicated."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    os.set_blocking(writer, True)
    twin = os.dup(writer)
    yield
    expect("blocking", (os.get_blocking(reader), os.get_blocking(writer)), (False, True))
    try:
        os.read(reader, 1)
    except BlockingIOError:
        pass
    else:
        raise AssertionError("the empty pipe gave something")
    os.write(twin, b"twin")
    expect("through the twin", os.read(reader, 10), b"twin")


@program
def pipe_packets():
    """O_DIRECT: each write is read alone (pipe(2))."""
    reader, writer = os.pipe2(os.O_DIRECT)
    for packet in (b"one", b"two", pattern(4096), b"four"):
        os.write(writer, packet)
    yield
    os.set_blocking(reader, False)
    packets = [os.read(reader, 10_000) for _ in range(4)]
    expect("packets", packets, [b"one", b"two", pattern(4096), b"four"])
    assert fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_DIRECT, "O_DIRECT is gone"


@program
def fifo_both_ends():
    """A FIFO whose ends are both ours, as two descriptions, and with a third for both ways."""
    os.mkfifo("fifo")
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("fifo", os.O_WRONLY)
    both = os.open("fifo", os.O_RDWR | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETFL, 0)
    descriptors = (reader, writer, both)
    flags = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in descriptors]
    yield
    expect("flags", [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in descriptors], flags)
    os.write(writer, b"through ")
    os.write(both, b"the FIFO")
    expect("read", os.read(reader, 100), b"through the FIFO")
    other = os.open("fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.write(other, b"by name")
    expect("written by name", os.read(both, 100), b"by name")


@program
def fifo_with_data():
    """What waits is looked at without being taken: a copy beside its original shares the FIFO."""
    os.mkfifo("fifo")
    both = os.open("fifo", os.O_RDWR)
    reader = os.open("fifo", os.O_RDONLY)
    size = fcntl.fcntl(both, F_SETPIPE_SZ, 1 << 18)
    os.write(both, pattern(150_000))
    yield
    expect("size", fcntl.fcntl(both, F_GETPIPE_SZ), size)
    out, into = os.pipe()
    fcntl.fcntl(into, F_SETPIPE_SZ, size)
    expect("waits", call("tee", reader, into, size, SPLICE_F_NONBLOCK), 150_000)
    found = b""
    while len(found) < 150_000:
        found += os.read(out, 150_000)
    expect("content", found == pattern(150_000), True)


@program
def fifo_packets():
    """Packet mode (pipe(2), O_DIRECT), which a FIFO can be switched to."""
    os.mkfifo("fifo")
    both = os.open("fifo", os.O_RDWR | os.O_NONBLOCK)
    fcntl.fcntl(both, fcntl.F_SETFL, os.O_DIRECT | os.O_NONBLOCK)
    yield
    os.write(both, b"one")
    os.write(both, b"two")
    expect("packets", [os.read(both, 100), os.read(both, 100)], [b"one", b"two"])


@program
def fifo_without_writer():
    """Readers of two FIFOs: one waits for its first writer, one has had its last."""
    os.mkfifo("waits")
    os.mkfifo("hung up")
    waits = os.open("waits", os.O_RDONLY | os.O_NONBLOCK)
    hung_up = os.open("hung up", os.O_RDONLY | os.O_NONBLOCK)
    os.close(os.open("hung up", os.O_WRONLY))
    poll = select.poll()
    poll.register(waits, select.POLLIN)
    poll.register(hung_up, select.POLLIN)
    expect("before", poll.poll(0), [(hung_up, select.POLLHUP)])
    yield
    expect("events", poll.poll(0), [(hung_up, select.POLLHUP)])
    expect("end of file", [os.read(waits, 10), os.read(hung_up, 10)], [b"", b""])


@program
def fifo_without_reader():
    os.mkfifo("fifo")
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("fifo", os.O_WRONLY)
    os.close(reader)
    yield
    try:
        os.write(writer, b"x")
    except BrokenPipeError:
        pass
    else:
        raise AssertionError("there is a reader")
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    os.write(writer, b"x")
    expect("read", os.read(reader, 10), b"x")


@program
def pair_stream():
    left, right = socket.socketpair()
    left.sendall(pattern(50_000))
    right.sendall(b"back")
    yield
    found = b""
    while len(found) < 50_000:
        found += right.recv(65536)
    expect("right", found == pattern(50_000), True)
    expect("left", left.recv(100), b"back")
    left.sendall(b"on")
    expect("goes on", right.recv(100), b"on")


def _messages(kind: int):
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    sent = [b"first", b"second one", pattern(3000), b"4"]
    for message in sent:
        left.send(message)
    right.send(b"back")
    yield
    expect("messages", [right.recv(10_000) for _ in sent], sent)
    expect("left", left.recv(100), b"back")
    right.setblocking(False)
    expect("queue is empty", select.select([right], [], [], 0)[0], [])
    left.send(b"more")
    expect("goes on", right.recv(100), b"more")


@program
def pair_datagram():
    yield from _messages(socket.SOCK_DGRAM)


@program
def pair_seqpacket():
    yield from _messages(socket.SOCK_SEQPACKET)


@program
def pair_empty_datagram():
    """A message of no bytes is a message."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.send(b"")
    left.send(b"next")
    yield
    right.setblocking(False)
    expect("messages", [right.recv(10), right.recv(10)], [b"", b"next"])


@program
def pair_shut_down():
    left, right = socket.socketpair()
    left.sendall(b"before")
    left.shutdown(socket.SHUT_WR)
    yield
    expect("queued", right.recv(100), b"before")
    expect("end", right.recv(100), b"")
    right.sendall(b"the other way")
    expect("other way", left.recv(100), b"the other way")
    try:
        left.send(b"x")
    except BrokenPipeError:
        return
    raise AssertionError("sending after shutdown works")


@program
def pair_one_end_closed():
    left, right = socket.socketpair()
    left.sendall(b"last words")
    left.close()
    yield
    expect("queued", right.recv(100), b"last words")
    expect("end", right.recv(100), b"")
    try:
        right.send(b"x")
    except BrokenPipeError:
        return
    raise AssertionError("the closed end took a byte")


@program
def pair_full():
    """A queue that holds all it can, and options."""
    left, right = socket.socketpair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    size = left.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    left.setblocking(False)
    sent = 0
    try:
        while True:
            sent += left.send(pattern(10_000))
    except BlockingIOError:
        pass
    yield
    expect("send buffer", left.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), size)
    expect("left blocks", left.getblocking(), False)
    found = b""
    while len(found) < sent:
        found += right.recv(1 << 20)
    expect("content", found == (pattern(10_000) * (sent // 10_000 + 1))[:sent], True)
    right.setblocking(False)
    try:
        extra = right.recv(10)
    except BlockingIOError:
        return
    raise AssertionError(f"{extra!r} came after the end")


@program
def pair_duplicated():
    """One socket under two numbers, and its options."""
    left, right = socket.socketpair()
    twin = left.dup()
    right.settimeout(7)
    right.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    yield
    left.send(b"a")
    twin.send(b"b")
    expect("received", right.recv(1) + right.recv(1), b"ab")
    expect("pass credentials", right.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED), 1)


@program
def pair_passes_descriptors():
    """SCM_RIGHTS works after the restore."""
    left, right = socket.socketpair()
    yield
    reader, writer = os.pipe()
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))
    left.sendmsg([b"take"], [rights])
    _, ancillary, _, _ = right.recvmsg(10, socket.CMSG_SPACE(4))
    received = array.array("i", ancillary[0][2])[0]
    os.write(received, b"through")
    expect("through the passed end", os.read(reader, 10), b"through")


if __name__ == "__main__":
    main()
