"""Python's multiprocessing, in all its ways to start processes, and what they share by name."""

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path

from protocol import PATIENCE, expect, main, program, restored

SHM = Path("/dev/shm")
# Temporary folders in the test's own, which is made what /tmp is.
os.chmod(".", 0o1700)
tempfile.tempdir = os.getcwd()
# Names that the tests can remove when they have stopped a program (support.leftovers).
_PREFIX = f"snapkernel-{os.getpid()}"
if multiprocessing.parent_process() is None:
    multiprocessing.current_process()._config["semprefix"] = f"/{_PREFIX}"


def square(number: int) -> int:
    return number * number


def count_up(counter, lock, start, done) -> None:
    """Wait for the word, then count, ten times."""
    done.put("ready")
    start.wait(PATIENCE)
    for _ in range(10):
        with lock, counter.get_lock():
            counter.value += 1
    done.put(counter.value)


def _workers(method: str):
    """Two processes that share a value, a lock, an event and a queue."""
    context = multiprocessing.get_context(method)
    counter, lock, start, done = (
        context.Value("i", 100),
        context.Lock(),
        context.Event(),
        context.Queue(),
    )
    workers = [
        context.Process(target=count_up, args=(counter, lock, start, done)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        expect("worker", done.get(timeout=PATIENCE), "ready")
    lock.acquire()
    yield
    expect("lock", lock.acquire(block=False), False)
    lock.release()
    start.set()
    expect("counted", max(done.get(timeout=PATIENCE) for _ in workers), 120)
    for worker in workers:
        worker.join(PATIENCE)
        expect("status", worker.exitcode, 0)
    later = context.Process(target=count_up, args=(counter, lock, start, done))
    later.start()
    expect("a later one", [done.get(timeout=PATIENCE) for _ in range(2)], ["ready", 130])
    later.join(PATIENCE)


@program
def fork():
    yield from _workers("fork")


@program
def spawn():
    """Semaphores keep their names in /dev/shm, for processes that are started later."""
    yield from _workers("spawn")


@program
def forkserver():
    """Processes are started by a server that listens at a socket in a temporary folder."""
    yield from _workers("forkserver")


def _pool(method: str):
    with multiprocessing.get_context(method).Pool(2) as pool:
        expect("before", pool.map(square, range(10)), [n * n for n in range(10)])
        pending = pool.map_async(square, range(1000), chunksize=1)
        yield
        expect("under way", pending.get(PATIENCE), [n * n for n in range(1000)])
        expect("after", pool.map(square, range(100)), [n * n for n in range(100)])


@program
def pool_spawn():
    yield from _pool("spawn")


@program
def pool_forkserver():
    yield from _pool("forkserver")


@program
def executor():
    """concurrent.futures.ProcessPoolExecutor."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        expect("before", list(pool.map(square, range(5))), [n * n for n in range(5)])
        yield
        expect("after", list(pool.map(square, range(100))), [n * n for n in range(100)])


@program
def condition():
    """Condition, barrier and bounded semaphore between processes that were spawned."""
    context = multiprocessing.get_context("spawn")
    condition, barrier, limit = (
        context.Condition(),
        context.Barrier(2),
        context.BoundedSemaphore(2),
    )
    done = context.Queue()
    worker = context.Process(target=_meet, args=(condition, barrier, limit, done))
    limit.acquire()
    worker.start()
    expect("worker", done.get(timeout=PATIENCE), "ready")
    yield
    expect("limit", limit.acquire(block=False), False)
    with condition:
        condition.notify_all()
    barrier.wait(PATIENCE)
    expect("met", done.get(timeout=PATIENCE), "met")
    limit.release()
    worker.join(PATIENCE)
    try:
        limit.release()
        limit.release()
    except ValueError:
        return
    raise AssertionError("the semaphore has lost its bound")


def _meet(condition, barrier, limit, done) -> None:
    with limit, condition:
        done.put("ready")
        condition.wait(PATIENCE)
        barrier.wait(PATIENCE)
        done.put("met")


@program
def manager():
    """A server process holds the objects; everybody connects to its socket."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        found, queue = manager.dict(), manager.Queue()
        found["before"] = os.getpid()
        queue.put("waits")
        yield
        expect("dict", dict(found), {"before": os.getpid()})
        found[f"after {restored()}"] = 1
        expect("length", len(found), 2)
        expect("queue", queue.get(timeout=PATIENCE), "waits")
        # A new thread makes a connection of its own.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            expect("another process", pool.apply(_put, (queue,)), "put")
        expect("from it", queue.get(timeout=PATIENCE), "from another process")
        expect("of nobody else", queue.qsize(), 0)


def _put(queue) -> str:
    queue.put("from another process")
    return "put"


@program
def named_memory():
    """multiprocessing.shared_memory: what a copy writes, its original does not see."""
    memory = shared_memory.SharedMemory(_PREFIX, create=True, size=100_000)
    memory.buf[:7] = b"content"
    yield
    expect("content", bytes(memory.buf[:7]), b"content")
    memory.buf[:7] = b"changed"
    other = shared_memory.SharedMemory(memory.name)
    expect("by its name", bytes(other.buf[:7]), b"changed")
    other.close()
    memory.close()
    memory.unlink()
    expect("unlinked", (SHM / memory.name).exists(), False)


@program
def named_memory_of_two():
    """Attached by a process that was spawned, which writes into it."""
    context = multiprocessing.get_context("spawn")
    memory = shared_memory.SharedMemory(_PREFIX, create=True, size=5000)
    try:
        start, done = context.Event(), context.Event()
        worker = context.Process(target=_write, args=(memory.name, start, done))
        worker.start()
        memory.buf[:5] = b"start"
        yield
        expect("too early", bytes(memory.buf[:5]), b"start")
        start.set()
        expect("done", done.wait(PATIENCE), True)
        expect("written", bytes(memory.buf[4000:4005]), b"child")
        worker.join(PATIENCE)
    finally:
        memory.close()
        memory.unlink()


def _write(name: str, start, done) -> None:
    memory = shared_memory.SharedMemory(name)
    start.wait(PATIENCE)
    memory.buf[4000:4005] = b"child"
    memory.close()
    done.set()


@program
def files_in_dev_shm():
    """In a folder, open and not mapped, of a mode of its own; one that nobody has open, in a folder
    with our pid in its name."""
    folder = SHM / _PREFIX
    folder.mkdir(0o710)
    try:
        (folder / "closed").write_text("kept")
        with open(folder / "open", "w+b", buffering=0) as file:
            os.fchmod(file.fileno(), 0o640)
            file.write(b"0123456789")
            file.seek(5)
            yield
            expect("read on", file.read(), b"56789")
            expect("modes", (mode(folder), mode(file.name)), (0o710, 0o640))
            file.write(b"more")
            expect("by its name", (folder / "open").read_bytes(), b"0123456789more")
            expect("not open", (folder / "closed").read_text(), "kept")
    finally:
        for name in ("open", "closed"):
            (folder / name).unlink()
        folder.rmdir()


@program
def host_files_in_dev_shm():
    """A file that is not ours is there beside our own, and is the host's."""
    host = SHM / f"snapkernel-host-{os.getpid():x}"
    host.write_text("of the host")
    try:
        with open(SHM / _PREFIX, "w+") as own:
            own.write("own")
            own.flush()
            yield
            expect("own", (SHM / _PREFIX).read_text(), "own")
            if not restored() or host.exists():
                expect("of the host", host.read_text(), "of the host")
    finally:
        (SHM / _PREFIX).unlink()
        if not restored():
            host.unlink()


def mode(path) -> int:
    return os.stat(path).st_mode & 0o777


if __name__ == "__main__":
    main()
