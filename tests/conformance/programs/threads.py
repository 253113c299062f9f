"""Threads as Python sees them."""

import os
import queue
import threading

from protocol import PATIENCE, Worker, expect, main, program


def comm(tid: int) -> str:
    with open(f"/proc/self/task/{tid}/comm") as file:
        return file.read().rstrip("\n")


@program
def identities():
    """Ids, names and thread-local values of several threads."""
    local = threading.local()
    gate, answers = threading.Event(), queue.Queue()

    def live(number: int) -> None:
        local.value = number * 111
        with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as file:
            file.write(f"thread-{number}")
        first = threading.get_native_id(), threading.get_ident()
        answers.put(first)
        gate.wait()
        answers.put((number, local.value, (threading.get_native_id(), threading.get_ident())))

    threads = [Worker(lambda n=n: live(n), f"t{n}") for n in range(6)]
    for thread in threads:
        thread.start()
    first = [answers.get(timeout=PATIENCE) for _ in threads]
    yield
    tasks = sorted(int(tid) for tid in os.listdir("/proc/self/task"))
    expect("tasks", tasks, sorted([os.getpid(), *(tid for tid, _ in first)]))
    expect("names", [comm(t.native_id) for t in threads], [f"thread-{n}" for n in range(6)])
    gate.set()
    for _ in threads:
        number, value, now = answers.get(timeout=PATIENCE)
        expect("thread-local value", value, number * 111)
        assert now in first, f"ids {now} are new"
    for thread in threads:
        thread.result()


@program
def new_thread():
    before = Worker(lambda: 1)
    before.start()
    expect("before", before.result(), 1)
    yield
    after = Worker(lambda: threading.get_native_id())
    after.start()
    assert after.result() != os.getpid()


@program
def busy():
    """Threads in the middle of Python code."""
    stop = threading.Event()

    def count(step: int) -> int:
        value = 0
        while not stop.is_set():
            value += step
        return value

    workers = [Worker(lambda s=s: count(s)) for s in (1, 3, 7)]
    for worker in workers:
        worker.start()
    yield
    stop.set()
    for worker, step in zip(workers, (1, 3, 7), strict=True):
        expect(f"remainder by {step}", worker.result() % step, 0)


@program
def held_locks():
    """Locks of all kinds are held, by a thread and by the main thread."""
    lock, recursive, condition = threading.Lock(), threading.RLock(), threading.Condition()
    gate = threading.Event()

    def hold() -> str:
        with recursive, recursive:
            gate.wait()
        return "released"

    lock.acquire()
    holder = Worker(hold, "holder").blocked()

    def notified() -> bool:
        with condition:
            return condition.wait(PATIENCE)

    waiter = Worker(notified, "waiter").blocked()
    yield
    expect("lock is held", lock.acquire(blocking=False), False)
    expect("recursive lock is held", recursive.acquire(blocking=False), False)
    gate.set()
    expect("holder", holder.result(), "released")
    expect("recursive lock", recursive.acquire(timeout=PATIENCE), True)
    with condition:
        condition.notify_all()
    expect("waiter", waiter.result(), True)
    lock.release()
    expect("lock", lock.acquire(blocking=False), True)


@program
def many():
    """Many threads with small stacks."""
    threading.stack_size(256 * 1024)
    gate = threading.Event()
    workers = [Worker(lambda n=n: (gate.wait(), n * n)[1]) for n in range(60)]
    for worker in workers:
        worker.start()
    yield
    gate.set()
    expect("results", [worker.result() for worker in workers], [n * n for n in range(60)])


@program
def pool():
    """A concurrent.futures pool with work that waits."""
    from concurrent.futures import ThreadPoolExecutor

    gate = threading.Event()
    executor = ThreadPoolExecutor(2)
    futures = [executor.submit(lambda n=n: (gate.wait(), n)[1]) for n in range(8)]
    yield
    gate.set()
    expect("results", [future.result(PATIENCE) for future in futures], list(range(8)))


@program
def numpy_threads():
    """The threads of a BLAS library, which wait between two products, still work."""
    from protocol import UnsupportedError

    try:
        import numpy
    except ImportError:
        raise UnsupportedError("numpy is not installed") from None
    rows = numpy.random.default_rng(1).random((300, 300))
    before = rows @ rows
    yield
    expect("product", (rows @ rows).tobytes() == before.tobytes(), True)


if __name__ == "__main__":
    main()
