"""A thread waits in the kernel; the wait ends as it would have."""

import os
import queue
import select
import signal
import socket
import subprocess
import threading
import time

from protocol import PATIENCE, Worker, expect, main, pattern, program

SHORT = 1.2
"""Seconds: longer than a checkpoint and a restore usually take, short enough to be waited for."""


def ended(worker: Worker, value: object = None) -> None:
    """The wait gave `value` and did not end before its time."""
    expect(worker.name, worker.result(), value)
    assert worker.elapsed >= SHORT - 0.001, f"{worker.name} ended after {worker.elapsed} s"


@program
def sleep():
    worker = Worker(lambda: time.sleep(SHORT), "time.sleep").blocked()
    yield
    ended(worker)


@program
def select_timeout():
    reader, _writer = os.pipe()
    worker = Worker(lambda: select.select([reader], [], [], SHORT), "select").blocked()
    yield
    ended(worker, ([], [], []))


@program
def select_event():
    reader, writer = os.pipe()
    worker = Worker(lambda: select.select([reader], [], []), "select").blocked()
    yield
    os.write(writer, b"x")
    expect("select", worker.result(), ([reader], [], []))


@program
def poll_timeout():
    reader, _writer = os.pipe()
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    worker = Worker(lambda: poller.poll(SHORT * 1000), "poll").blocked()
    yield
    ended(worker, [])


@program
def poll_event():
    reader, writer = os.pipe()
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    worker = Worker(poller.poll, "poll").blocked()
    yield
    os.write(writer, b"x")
    expect("poll", worker.result(), [(reader, select.POLLIN)])


@program
def epoll_timeout():
    reader, _writer = os.pipe()
    poller = select.epoll()
    poller.register(reader, select.EPOLLIN)
    worker = Worker(lambda: poller.poll(SHORT), "epoll_wait").blocked()
    yield
    ended(worker, [])


@program
def epoll_event():
    reader, writer = os.pipe()
    poller = select.epoll()
    poller.register(reader, select.EPOLLIN)
    worker = Worker(poller.poll, "epoll_wait").blocked()
    yield
    os.write(writer, b"x")
    expect("epoll_wait", worker.result(), [(reader, select.EPOLLIN)])


@program
def read_of_pipe():
    reader, writer = os.pipe()
    worker = Worker(lambda: os.read(reader, 100), "read").blocked()
    yield
    os.write(writer, b"at last")
    expect("read", worker.result(), b"at last")


@program
def write_to_full_pipe():
    """The part that did not fit is written once there is room, and only once."""
    reader, writer = os.pipe()
    data = pattern(200_000)
    worker = Worker(lambda: os.write(writer, data), "write").blocked()
    yield
    found = b""
    deadline = time.monotonic() + PATIENCE
    while worker.is_alive() or select.select([reader], [], [], 0)[0]:
        assert time.monotonic() < deadline, f"it hangs after {len(found)} bytes"
        if select.select([reader], [], [], 0.05)[0]:
            found += os.read(reader, 1 << 20)
    written = worker.result()
    # pipe(7): a write that is interrupted may have written a part, and says how much
    expect("content", found[:written] == data[:written], True)
    expect("length", len(found), written)


@program
def receive_from_pair():
    left, right = socket.socketpair()
    worker = Worker(lambda: right.recv(100), "recv").blocked()
    yield
    left.sendall(b"at last")
    expect("recv", worker.result(), b"at last")


@program
def event_descriptor():
    fd = os.eventfd(0) if hasattr(os, "eventfd") else _eventfd()
    worker = Worker(lambda: os.read(fd, 8), "read").blocked()
    yield
    os.write(fd, (5).to_bytes(8, "little"))
    expect("read", int.from_bytes(worker.result(), "little"), 5)


def _eventfd() -> int:
    from protocol import call

    return call("eventfd", 0, 0)


@program
def lock():
    held = threading.Lock()
    held.acquire()
    worker = Worker(held.acquire, "acquire").blocked()
    yield
    assert worker.is_alive(), "the lock was given away"
    held.release()
    expect("acquire", worker.result(), True)


@program
def lock_timeout():
    held = threading.Lock()
    held.acquire()
    worker = Worker(lambda: held.acquire(timeout=SHORT), "acquire").blocked()
    yield
    ended(worker, False)


@program
def event_timeout():
    worker = Worker(lambda: threading.Event().wait(SHORT), "Event.wait").blocked()
    yield
    ended(worker, False)


@program
def queue_item():
    items = queue.Queue()
    worker = Worker(lambda: items.get(timeout=PATIENCE), "Queue.get").blocked()
    yield
    items.put("item")
    expect("Queue.get", worker.result(), "item")


@program
def signal_wait():
    """sigwait(3) of a signal that comes after the restore."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    worker = Worker(lambda: signal.sigwait({signal.SIGUSR1}), "sigwait").blocked()
    yield
    os.kill(os.getpid(), signal.SIGUSR1)
    expect("sigwait", worker.result(), signal.SIGUSR1)


@program
def signal_wait_timeout():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    wait = Worker(lambda: signal.sigtimedwait({signal.SIGUSR1}, SHORT), "sigtimedwait").blocked()
    yield
    ended(wait)


@program
def pause():
    """The main thread gets a signal while another one waits; the handler runs here."""
    handled = []
    signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
    reader, writer = os.pipe()
    worker = Worker(lambda: os.read(reader, 1), "read").blocked()
    yield
    os.kill(os.getpid(), signal.SIGUSR1)
    expect("handled", handled, [1])
    os.write(writer, b"x")
    expect("read", worker.result(), b"x")


@program
def subprocess_later():
    """A thread that waits first and starts a process then."""
    gate = threading.Event()

    def action() -> bytes:
        gate.wait()
        return subprocess.check_output(["echo", "started"])

    worker = Worker(action, "subprocess").blocked()
    yield
    gate.set()
    expect("output", worker.result(), b"started\n")


if __name__ == "__main__":
    main()
