"""The canary: a small process that holds a bit of everything. ``canary.py`` runs it.

Run as ``canary_program.py FILE``. It answers each line on standard input with one line of JSON:
what it holds. Each answer moves everything one step on, so that two copies that agree on several
answers hold the same state.
"""

import hashlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator

HOUR = 3600


def count() -> Iterator[int]:
    yield from range(1, 1_000_000)


def work(orders: "queue.Queue[int]", results: "queue.Queue[int]") -> None:
    total = 0
    while True:
        total += orders.get()
        results.put(total)


def main() -> None:
    memory = bytearray(os.urandom(1 << 20)) * 4
    numbers = count()
    orders: queue.Queue[int] = queue.Queue()
    results: queue.Queue[int] = queue.Queue()
    thread = threading.Thread(target=work, args=(orders, results), daemon=True)
    thread.start()
    reader, writer = os.pipe()
    os.write(writer, bytes(range(100)))
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, HOUR)
    with open(sys.argv[1], "rb") as file:
        print("ready", flush=True)
        for _line in sys.stdin:
            number = next(numbers)
            orders.put(number)
            answer = {
                "generator": number,
                "thread": results.get(),
                "thread id": thread.native_id,
                "pid": os.getpid(),
                "memory": hashlib.sha256(memory).hexdigest(),
                "file": os.read(file.fileno(), 5).hex(),
                "pipe": os.read(reader, 3).hex(),
                "timer": 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= HOUR,
            }
            memory[number] ^= 1
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
