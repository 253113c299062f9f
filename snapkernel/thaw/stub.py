"""The empty process that a restore starts from, in namespaces of its own.

``kernel-init`` (``native/kernel_init.c``) makes the namespaces and the process; it is seized while
it waits, so that it stops at the end of its execve(2), before its first instruction. With
``PTRACE_O_EXITKILL`` it dies with us, and its namespace with it: nothing half-built stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snapkernel import faults, procfs
from snapkernel._native import ffi, lib
from snapkernel.errors import CannotRestore
from snapkernel.freeze import tracing
from snapkernel.freeze.agent import LIBEXEC
from snapkernel.freeze.target import Target
from snapkernel.jupyter.connection import restored_with
from snapkernel.model import Manifest
from snapkernel.resources import private_folder
from snapkernel.thaw import namespaces

_OPTIONS = (
    tracing.O_TRACESYSGOOD
    | tracing.O_TRACECLONE
    | tracing.O_TRACEFORK
    | tracing.O_TRACEEXEC
    | tracing.O_EXITKILL
)
_CREDENTIALS = struct.Struct("=3i")
_SECOND = 1_000_000_000
CAP_SYS_ADMIN = 21


@dataclass
class Stub:
    """The stopped empty process.

    Attributes:
        target: it.
        parent: the kernel-init on our side; it ends with the status of the process.
        init_pid: pid 1 of the namespace, on this host.
        user_namespace: it has a user namespace of its own.
        files: what was made for it on this host.
        own_proc: it has a ``/proc`` of its own, which shows its process ids.
    """

    target: Target
    parent: subprocess.Popen[bytes]
    init_pid: int
    user_namespace: bool
    files: Files
    own_proc: bool

    def destroy(self, others: Sequence[Target] = ()) -> None:
        """End everything in the namespace; ``others`` were made from the stub. The namespace's end
        waits for all of them, and who is traced waits for us."""
        targets = {target.pid: target for target in (self.target, *others)}
        for pid in (*targets, self.init_pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for target in targets.values():
            target.kill()
        self.parent.wait()
        self.files.close()


class Files:
    """Names of files that are of use only if the process comes to run. The kernel-init, which knows
    them by a pipe, removes them if that never happens, whatever becomes of us."""

    def __init__(self) -> None:
        self.theirs, self._ours = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def begin(self, path: str | bytes | Path) -> None:
        """A file of that name is about to be made."""
        with contextlib.suppress(BlockingIOError):  # more than fit in; they would stay
            os.write(self._ours, os.fsencode(os.path.abspath(path)) + b"\0")

    def keep(self) -> None:
        """The process runs."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._ours, b"\0")
        self.close()

    def close(self) -> None:
        """Nothing more will be made."""
        for descriptor in (self.theirs, self._ours):
            if descriptor >= 0:
                os.close(descriptor)
        self.theirs = self._ours = -1


def needs_user_namespace() -> bool:
    """We lack CAP_SYS_ADMIN, without which only a new user namespace lets us make the others."""
    return not int(procfs.status(os.getpid())["CapEff"], 16) >> CAP_SYS_ADMIN & 1


def has_time_namespaces() -> bool:
    """time_namespaces(7), Linux 5.6 with CONFIG_TIME_NS."""
    return os.path.exists("/proc/self/ns/time_for_children")


class Spawn:
    """A stub that is being made: there is time for other things until it is needed."""

    def __init__(
        self,
        manifest: Manifest,
        streams: Sequence[int],
        report: int | None,
        connection_file: Path | None = None,
    ) -> None:
        """Start kernel-init, for the first process of a snapshot; the socket ``report`` is told
        what becomes of it, and the environment says where its connection file will be."""
        told = [] if report is None else [report]
        self._own = needs_user_namespace()
        self._files = Files()
        private_folder.make_missing(manifest)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._parent = subprocess.Popen(
                _command(manifest, theirs.fileno(), self._files.theirs, streams, self._own, report),
                pass_fds=(theirs.fileno(), self._files.theirs, *streams, *told),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=restored_with(connection_file),
                start_new_session=True,
            )

    def abandon(self) -> None:
        """End what was started: everything there waits for a word on the control socket."""
        self._control.close()
        self._parent.kill()
        self._parent.wait()
        self._files.close()

    def stopped(self) -> Stub:
        """Wait for the stub, and stop it before its first instruction.

        Raises:
            UnsupportedHost: the kernel does not let us make its namespaces.
        """
        pid = 0
        try:
            word, init = _expect(self._control, b"init", b"init without /proc")
            faults.reached("the namespaces are there")
            _, pid = _expect(self._control, b"stub")
            faults.reached("the stub is born")
            tracing.request(tracing.SEIZE, pid, 0, _OPTIONS)
            faults.reached("the stub is seized")
            self._control.send(b"x")
            faults.reached("the stub may go on")
            _run_to_end_of_exec(pid)
            faults.reached("the stub is empty")
            own_proc = word == b"init"
            return Stub(Target(pid, [pid]), self._parent, init, self._own, self._files, own_proc)
        except BaseException:
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                lib.sk_wait(pid, 0, ffi.new("int *"))
            self.abandon()
            raise
        finally:
            self._control.close()


def _command(
    manifest: Manifest,
    control: int,
    files: int,
    streams: Sequence[int],
    own: bool,
    report: int | None,
) -> list[str]:
    process, clocks = manifest.processes[0], manifest.clocks
    command = [str(LIBEXEC / "kernel-init"), "--control", str(control), "--files", str(files)]
    for name in ("pid", "ppid", "sid", "pgid"):
        command += [f"--{name}", str(getattr(process, name))]
    credentials = process.credentials
    if own:
        command += ["--uid-map", f"{credentials.uids[0]} {os.geteuid()}"]
        command += ["--gid-map", f"{credentials.gids[0]} {os.getegid()}"]
    command += ["--bounding", f"{credentials.capabilities[3]:x}"]
    if has_time_namespaces():
        command += ["--monotonic", _offset(clocks.monotonic_ns, time.CLOCK_MONOTONIC, "monotonic")]
        command += ["--boottime", _offset(clocks.boottime_ns, time.CLOCK_BOOTTIME, "boottime")]
    command += ["--ipc"] if manifest.ipc is not None else []
    command += private_folder.arguments(manifest)
    command += ["--terminals"] if manifest.terminals else []
    command += [] if report is None else ["--report", str(report)]
    for stream in sorted(set(streams)):
        command += ["--keep", str(stream)]
    return [*command, str(LIBEXEC / "stub")]


def _offset(wanted: int, clock: int, name: str) -> str:
    """Seconds and nanoseconds, the latter never negative, to add to the host's clock."""
    from snapkernel.freeze.capture import _offsets

    host = time.clock_gettime_ns(clock) - _offsets(os.getpid()).get(name, 0)
    seconds, nanoseconds = divmod(wanted - host, _SECOND)
    return f"{seconds} {nanoseconds}"


def _expect(control: socket.socket, *words: bytes) -> tuple[bytes, int]:
    """Wait for one of these messages; it, and the pid of its sender, translated by the kernel.

    Raises:
        UnsupportedHost: another one came, or none.
    """
    message, ancillary, _, _ = control.recvmsg(512, socket.CMSG_SPACE(_CREDENTIALS.size))
    for level, kind, data in ancillary:
        if message in words and (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return message, int(_CREDENTIALS.unpack(data)[0])
    text = message.decode(errors="replace").removeprefix("error ")
    raise namespaces.forbidden(text or "kernel-init: it ended")


def _run_to_end_of_exec(pid: int) -> None:
    """At PTRACE_EVENT_EXEC the task is still inside execve: go on to its exit."""
    while (status := tracing.wait(pid)) >> 16 != tracing.EVENT_EXEC:
        tracing.request(tracing.CONT, pid)
    tracing.request(tracing.SYSCALL, pid)
    status = tracing.wait(pid)
    if os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
        raise CannotRestore("stub", f"stopped unexpectedly (status {status:#x})")
