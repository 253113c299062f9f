"""What a Python programmer has in hand that no pickle can hold."""

import asyncio
import random
import threading
import time

from protocol import PATIENCE, Worker, expect, main, program


@program
def generator():
    def squares():
        try:
            for number in range(1000):
                yield number * number
        finally:
            closed.append(True)

    closed = []
    running = squares()
    first = [next(running) for _ in range(10)]
    yield
    expect("first", first[-1], 81)
    expect("next", [next(running) for _ in range(3)], [100, 121, 144])
    running.close()
    expect("closed", closed, [True])


@program
def coroutine_timers():
    """An asyncio loop in a thread with timers and tasks in flight."""
    results = []
    loop = asyncio.new_event_loop()

    async def after(seconds: float, value: str) -> str:
        await asyncio.sleep(seconds)
        results.append(value)
        return value

    async def work() -> list[str]:
        return await asyncio.gather(*(after(0.3 * n, f"timer {n}") for n in range(5)))

    worker = Worker(lambda: loop.run_until_complete(work()), "asyncio").blocked()
    yield
    expected = [f"timer {n}" for n in range(5)]
    expect("result", worker.result(), expected)
    expect("order", results, expected)
    expect("new work", loop.run_until_complete(after(0.01, "new")), "new")
    loop.close()


@program
def loop_of_main_thread():
    """asyncio callbacks from another thread: the loop's wake-up socket pair works."""
    loop = asyncio.new_event_loop()
    runner = Worker(loop.run_forever, "loop").blocked()
    yield

    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    expect("answer", asyncio.run_coroutine_threadsafe(answer(), loop).result(PATIENCE), 42)
    loop.call_soon_threadsafe(loop.stop)
    runner.result()


@program
def database_in_memory():
    import sqlite3

    connection = sqlite3.connect(":memory:")
    connection.execute("create table numbers (n integer, square integer)")
    rows = [(n, n * n) for n in range(5000)]
    connection.executemany("insert into numbers values (?, ?)", rows)
    connection.commit()
    connection.execute("delete from numbers where n < 10")
    cursor = connection.execute("select n, square from numbers order by n")
    expect("first row", cursor.fetchone(), (10, 100))
    yield
    expect("next row", cursor.fetchone(), (11, 121))
    expect("in transaction", connection.in_transaction, True)
    cursor.close()
    connection.rollback()
    total = connection.execute("select count(*), sum(square) from numbers").fetchone()
    expect("after rollback", total, (5000, sum(n * n for n in range(5000))))


@program
def database_on_disk():
    """An open transaction in a file, side by side with nobody."""
    import sqlite3

    connection = sqlite3.connect("data.sqlite")
    connection.execute("create table if not exists t (n integer)")
    connection.executemany("insert into t values (?)", [(n,) for n in range(100)])
    connection.commit()
    yield
    expect("count", connection.execute("select count(*) from t").fetchone()[0] >= 100, True)


@program
def random_state():
    """The deterministic generators go on; those of the operating system do not repeat."""
    generator = random.Random(1234)
    [generator.random() for _ in range(100)]
    expected = random.Random(1234)
    [expected.random() for _ in range(100)]
    yield
    expect("seeded", [generator.random() for _ in range(9)], [expected.random() for _ in range(9)])
    assert random.SystemRandom().random() != random.SystemRandom().random()


@program
def closures_and_modules():
    """Functions made at run time, lambdas, open handles in closures, a module made by hand."""
    import types

    module = types.ModuleType("made_by_hand")
    exec("counter = 0\ndef count():\n global counter\n counter += 1\n return counter", vars(module))
    [module.count() for _ in range(5)]
    adders = [lambda x, n=n: x + n for n in range(3)]
    yield
    expect("count", module.count(), 6)
    expect("adders", [add(10) for add in adders], [10, 11, 12])


@program
def context_managers():
    """Inside a with-block, an except-clause and a recursion at once."""
    left = []

    class Manager:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            left.append("left")

    def deep(level: int):
        if level:
            yield from deep(level - 1)
            return
        with Manager():
            try:
                raise KeyError("kept")
            except KeyError as error:
                yield
                expect("exception", error.args, ("kept",))

    yield from deep(50)
    expect("left", left, ["left"])


@program
def periodic_thread():
    """A thread that ticks goes on ticking."""
    ticks, stop = [], threading.Event()

    def tick() -> None:
        while not stop.wait(0.02):
            ticks.append(time.monotonic())

    worker = Worker(tick, "ticker").blocked()
    yield
    seen = len(ticks)
    deadline = time.monotonic() + PATIENCE
    while len(ticks) < seen + 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(ticks) >= seen + 3, "the thread does not tick"
    expect("in order", ticks, sorted(ticks))
    stop.set()
    worker.result()


@program
def memory_objects():
    """Objects of many kinds and sizes, compared with equal ones made anew."""

    def make():
        text = {n: str(n) * (n % 50) for n in range(2000)}
        nested = [[(n, {n, n + 1}, frozenset(range(n % 7)))] * 3 for n in range(500)]
        return text, nested, bytearray(range(256)) * 100, 3**5000, complex(1, -2), "äöü€" * 99

    kept = make()
    yield
    expect("objects", kept == make(), True)


if __name__ == "__main__":
    main()
