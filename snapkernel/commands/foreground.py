"""A restored process in the foreground: what happens to the command happens to it, and the reverse.

The process is in a session of its own, so that the terminal's signals reach the command alone. They
are handed on to its process group, as a terminal would do. When the process stops, ends, or dies,
kernel-init reports it, and the command does the same, for the shell to see.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import sys
from types import FrameType
from typing import TYPE_CHECKING

from snapkernel import procfs
from snapkernel.errors import TargetError

if TYPE_CHECKING:
    from snapkernel import RestoredProcess

ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
TELLING = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
STOPPING = (signal.SIGTSTP, signal.SIGCONT)
TO_ONE = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What no terminal sends."""

_STATUS = struct.Struct("=i")


class Foreground:
    """This command in place of the process.

    Before there is one, a signal that means to end something ends the restore; others wait.

    Attributes:
        report: a socket for ``hold`` and ``snapkernel.restore``.
    """

    def __init__(self) -> None:
        self._pid = 0
        self._pidfd = -1
        self._waiting: list[int] = []
        self._asked_to_stop = False
        self._continued = False
        self._reports, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.report = self._theirs.fileno()
        self._handle(*ENDING, *TELLING)

    def _handle(self, *numbers: int) -> None:
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:  # As nohup(1) leaves SIGHUP.
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._pid:
            self._send(number)
        elif number in ENDING:
            raise SystemExit(128 + number)
        else:
            self._waiting.append(number)

    def begin(self, pid: int) -> None:
        """Hand signals on to this process from now on, which has not run yet: none is lost."""
        self._theirs.close()
        self._pidfd = os.pidfd_open(pid)
        self._pid = pid
        self._handle(*STOPPING)
        for number in self._waiting:
            self._send(number)

    def _send(self, number: int) -> None:
        self._continued |= number == signal.SIGCONT
        with contextlib.suppress(ProcessLookupError):  # It has just ended.
            if number in TO_ONE:
                signal.pidfd_send_signal(self._pidfd, number)
                return
            stops = number == signal.SIGTSTP and _stops(self._pid)
            signal.pidfd_send_signal(self._pidfd, 0)  # The pid is still this process's.
            os.killpg(os.getpgid(self._pid), number)
            if stops:
                # In a session without job control the kernel drops a SIGTSTP that nobody handles.
                signal.pidfd_send_signal(self._pidfd, signal.SIGSTOP)
            self._asked_to_stop |= number == signal.SIGTSTP

    def follow(self, process: RestoredProcess) -> int:
        """Do what the process does, until it ends: its exit status. Its death is ours."""
        with self._reports:
            while message := self._reports.recv(_STATUS.size):
                (status,) = _STATUS.unpack(message)
                if os.WIFSTOPPED(status):
                    self._stop()
                elif os.WIFSIGNALED(status):
                    process.wait()
                    _die(os.WTERMSIG(status))
        return process.wait()

    def _stop(self) -> None:
        """Stop until a shell continues us, which continues the process. Where there is no shell
        that could, the kernel does not stop us, and Ctrl-Z must not stop the process either."""
        asked, self._asked_to_stop, self._continued = self._asked_to_stop, False, False
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        if asked and not self._continued:
            self._send(signal.SIGCONT)


def _stops(pid: int) -> bool:
    """SIGTSTP would stop this process, which neither handles nor ignores nor blocks it."""
    try:
        status = procfs.status(pid)
    except TargetError:
        return False
    masks = (int(status[name], 16) for name in ("SigCgt", "SigIgn", "SigBlk"))
    return not any(mask >> signal.SIGTSTP - 1 & 1 for mask in masks)


def _die(number: int) -> None:
    """Die by a signal, without a second core dump."""
    sys.stdout.flush()
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # SIGKILL needs no preparation.
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
