"""The freezer: a process of its own that takes one snapshot.

ptrace(2) stops are reported to whichever thread of the tracer's process waits first, so a process
that also waits for children of its own could swallow one and leave the target frozen for ever; and
an exception out of a signal handler could come between two steps that belong together. So a small
process does it, in a session of its own, with signals blocked, and nothing else to do. Caller and
freezer speak over two pipes; when the caller is gone, the freezer gives up at its next message and
the target goes on.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from typing import IO, Any, BinaryIO

from snapkernel import seccomp
from snapkernel.errors import SnapkernelError, StoreError, TargetError
from snapkernel.freeze.capture import refuse, survey
from snapkernel.freeze.checkpoint import Progress, Snapshot, checkpoint_here, rehearse

_BLOCKED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGTSTP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def run(
    pid: int,
    url: str | None,
    name: str,
    stop: bool,
    files: Sequence[str],
    progress: Progress | None,
) -> Snapshot:
    """Have a freezer take a snapshot, and return it or raise what it raised.

    Raises:
        SnapkernelError: the freezer's own error, or that it ended without a word.
    """
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import snapkernel.freeze.freezer as f; f.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answered = True
    try:
        pickle.dump((pid, url, name, stop, tuple(files)), process.stdin)
        process.stdin.flush()
        while True:
            kind, *content = _answer(process.stdout)
            if kind == "progress":
                if progress is not None:
                    progress(*content)
            elif kind == "error":
                raise content[0]
            else:
                snapshot: Snapshot = content[0]
                return snapshot
    except (EOFError, BrokenPipeError):
        raise SnapkernelError(
            "freezer", f"ended without an answer (status {process.wait()})", "try again"
        ) from None
    except SnapkernelError:
        raise
    except BaseException:
        answered = False  # interrupted: it gives up at its next message; we do not wait for that
        raise
    finally:
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        if answered:
            process.wait()


def _answer(pipe: IO[bytes]) -> tuple[Any, ...]:
    """One message of the freezer.

    Raises:
        EOFError: there is none any more.
        SnapkernelError: it is none of the messages that a freezer sends.
    """
    try:
        message: object = pickle.load(pipe)
    except (EOFError, OSError):
        raise
    except Exception as error:
        reason = f"its answer cannot be understood: {type(error).__name__}: {error!a}"
        raise SnapkernelError("freezer", reason, "try again") from None
    match message:
        case ("progress", str(), int(), int()) | ("snapshot", Snapshot()) | ("error", Exception()):
            return tuple(message)
    raise SnapkernelError("freezer", "its answer is of an unknown kind", "try again")


def main() -> None:
    """Take the snapshot that the caller asks for on standard input; answer on standard output."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    answer = sys.stdout.buffer

    def tell(title: str, done: int, total: int) -> None:
        _send(answer, ("progress", title, done, total))

    pid, url, name, stop, files = pickle.load(sys.stdin.buffer)
    with contextlib.suppress(OSError, ValueError):
        # We need each descriptor of the target, and one for each file that travels.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(OSError):
        os.nice(-10)  # the target waits for us; only a privileged user may ask for it
    try:
        _rehearse(pid)
        message: tuple[str, object] = (
            "snapshot",
            checkpoint_here(pid, store=url, name=name, stop=stop, files=files, progress=tell),
        )
    except SnapkernelError as error:
        message = ("error", error)
    except BrokenPipeError:
        return
    except OSError as error:
        message = ("error", StoreError(f"checkpoint of process {pid}", str(error)))
    except Exception as error:
        traceback.print_exc()
        reason = f"failed in an unforeseen way: {type(error).__name__}: {error!a}"
        message = ("error", SnapkernelError(f"checkpoint of process {pid}", reason, "report it"))
    with contextlib.suppress(BrokenPipeError):
        _send(answer, message)


def _rehearse(pid: int) -> None:
    """Practise on a child of ours. Under a seccomp filter, which target and child have from the
    same container, the child is the one to be caught by it.

    Raises:
        TargetError: the filter does not let us work.
    """
    try:
        rehearse()
    except (SnapkernelError, OSError) as error:
        if seccomp.is_filtered():
            refuse(pid, survey(pid).findings)
            reason = f"the container's seccomp filter forbids what a checkpoint does: {error}"
            raise TargetError(f"process {pid}", reason, seccomp.REMEDY) from None


def _send(pipe: BinaryIO, message: object) -> None:
    pickle.dump(message, pipe)
    pipe.flush()
