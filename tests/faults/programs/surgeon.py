"""Checkpoints and restores one after the other, each in a child that may fail or be killed.

A line of JSON on standard input says what to do, a line on standard output what became of it. The
children are forked from a process that has everything loaded, so that each takes no longer than its
work does.
"""

import json
import os
import signal
import sys
import time
import traceback

from snapkernel import faults
from snapkernel.errors import SnapkernelError
from snapkernel.freeze.checkpoint import checkpoint_here
from snapkernel.thaw.restore import restore


def do(order: dict[str, object]) -> int:
    """0: it was done; 1: it has failed as it should; 2: otherwise."""
    try:
        if (name := order["fault"]) is not None:
            faults.arm(str(name))
        if order["verb"] == "checkpoint":
            pid, store = int(str(order["pid"])), str(order["store"])
            checkpoint_here(pid, store=store, name="taken", stop=bool(order["stop"]))
        else:
            null = os.open(os.devnull, os.O_RDWR)
            restored = restore(
                "good",
                store=str(order["store"]),
                stdio=(null, null, null),
                connection_file=str(order["connection_file"]),
            )
            restored.kill()
        return 0
    except faults.InjectedFault:
        return 1
    except SnapkernelError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except BaseException:
        traceback.print_exc()
        return 2


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        reader, writer = os.pipe()
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os.dup2(writer, 2)
            os._exit(do(order))
        os.close(writer)
        if order["delay"] is not None:
            time.sleep(order["delay"])  # anywhere in between: there is no event to wait for
            os.kill(child, signal.SIGKILL)
        with open(reader) as pipe:
            text = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seconds = time.monotonic() - began
        print(json.dumps({"status": status, "text": text, "seconds": seconds}), flush=True)


main()
