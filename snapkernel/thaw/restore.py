"""restore(): a snapshot becomes a running process.

1. Check everything that can be checked; list every mismatch at once.
2. Start fetching memory; meanwhile make the namespaces and the stub.
3. Drive the stub through the steps of ``rebuild``; set registers; let go.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from snapkernel import arch, procfs
from snapkernel._native import lib
from snapkernel.errors import BatchFailed, CannotRestore
from snapkernel.freeze import tracing
from snapkernel.freeze.agent import SIZE, Agent, call_site, find_hole
from snapkernel.freeze.batch import Batch
from snapkernel.freeze.checkpoint import Progress, Snapshot
from snapkernel.freeze.target import Memory, Target
from snapkernel.jupyter.connection import write_connection
from snapkernel.model import Content, Manifest, Note
from snapkernel.portability import check
from snapkernel.resources import descriptors, vdso
from snapkernel.resources.context import Build, Fill
from snapkernel.store import Fetch, Store
from snapkernel.thaw import rebuild, streams
from snapkernel.thaw.stub import Spawn, Stub, needs_user_namespace

SWITCH = 0.0002

with contextlib.suppress(KeyError):  # a machine that is not supported is refused by `hold`
    arch.native()  # loaded with this module, not when somebody waits for a process


@dataclass
class RestoredProcess:
    """A process that was restored, and its kernel-init.

    Attributes:
        pid: on this host.
        init_pid: pid 1 of its namespace, on this host.
        mode: ``eager``: all memory was there before it ran.
        ports: new by old listening port.
        connection_file: written for a Jupyter kernel.
        running_s: seconds from the call until it ran.
        timings: seconds from the call to the end of each step.
        notes: what is not as it was.
    """

    pid: int
    init_pid: int
    mode: str
    ports: dict[int, int]
    connection_file: Path | None
    running_s: float
    timings: dict[str, float]
    notes: tuple[str, ...]
    _parent: subprocess.Popen[bytes] = field(repr=False)

    def poll(self) -> int | None:
        """Its exit status (128 + n for signal n), or ``None`` while it runs."""
        return self._parent.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends, at most ``timeout`` seconds.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        return self._parent.wait(timeout)

    def send_signal(self, number: int) -> None:
        """Send it a signal.

        Raises:
            ProcessLookupError: it has ended.
        """
        if self.poll() is not None:
            raise ProcessLookupError(errno.ESRCH, "the process has ended")
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and everything in its namespace, and wait until that is done."""
        with contextlib.suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)
        self._parent.wait()


def restore(
    snapshot: str | Snapshot,
    *,
    store: Store | str | None = None,
    lazy: bool | None = None,
    connection_file: Path | str | None = None,
    stdio: tuple[int, int, int] | None = None,
    progress: Progress | None = None,
) -> RestoredProcess:
    """Bring a snapshot back to life. The same one may be restored many times, side by side.

    Args:
        snapshot: id, unambiguous beginning of one, or name; or what ``checkpoint`` returned.
        store: where from; see ``Store.open``.
        lazy: not yet; memory is always there before the process runs.
        connection_file: where to write a Jupyter kernel's connection file; by default a new one
            in Jupyter's runtime directory.
        stdio: descriptors that become the standard streams; by default /dev/null and a log file.
        progress: is told how far it is.

    Raises:
        CannotRestore: this host differs from what the snapshot needs.
        SnapshotNotFound, DamagedSnapshot, StoreError: it cannot be read.
        UnsupportedHost: the kernel forbids what a restore needs.
    """
    held = hold(
        snapshot,
        store=store,
        lazy=lazy,
        connection_file=connection_file,
        stdio=stdio,
        progress=progress,
    )
    return held.release()


@dataclass
class Held:
    """A restored process whose threads have not run yet."""

    stub: Stub
    build: Build
    began: float
    timings: dict[str, float]
    connection_file: Path | None

    @property
    def target(self) -> Target:
        """The stopped process."""
        return self.stub.target

    def release(self) -> RestoredProcess:
        """Let it run."""
        self.target.stop_again = bool(self.build.process.stopped)
        self.target.release()
        self.timings["running"] = time.perf_counter() - self.began
        notes = (*self.build.manifest.notes, *self.build.notes)
        return RestoredProcess(
            pid=self.target.pid,
            init_pid=self.stub.init_pid,
            mode="eager",
            ports=self.build.ports,
            connection_file=self.connection_file,
            running_s=self.timings["running"],
            timings=self.timings,
            notes=tuple(f"{n.object}: {n.status}: {n.reason}" for n in notes),
            _parent=self.stub.parent,
        )


def hold(
    snapshot: str | Snapshot,
    *,
    store: Store | str | None = None,
    lazy: bool | None = None,
    connection_file: Path | str | None = None,
    stdio: tuple[int, int, int] | None = None,
    progress: Progress | None = None,
) -> Held:
    """The same as :func:`restore`, short of letting the process run."""
    began = time.perf_counter()
    if lazy:
        raise CannotRestore("lazy restore", "is not there yet", "restore eagerly")
    where = store if isinstance(store, Store) else Store.open(store)
    manifest = where.load(snapshot.id if isinstance(snapshot, Snapshot) else snapshot)
    content = manifest.processes[0].memory.content
    with (
        _undisturbed(),
        where.fetch(manifest, content) as fetch,
        streams.opened(manifest, stdio) as inherited,
    ):
        check.refuse_mismatches(manifest)
        thaw = _Thaw(manifest, where, fetch, inherited, progress, began)
        held = thaw.run()
    try:
        if manifest.jupyter is not None:
            path = Path(connection_file or streams.connection_path(manifest))
            write_connection(path, manifest.jupyter, held.build.ports)
            held.connection_file = path
    except BaseException:
        held.stub.destroy()
        raise
    return held


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection, and no long wait of the threads that decode for the one that builds:
    the interpreter switches between threads more often than every 5 ms."""
    before, collecting = sys.getswitchinterval(), gc.isenabled()
    sys.setswitchinterval(SWITCH)
    gc.disable()
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        if collecting:
            gc.enable()


def plan(snapshot: str, *, store: Store | str | None = None) -> Iterator[str]:
    """The ordered steps of a restore as text, readable like strace's. Nothing is done.

    Raises:
        SnapshotNotFound, DamagedSnapshot, StoreError: the snapshot cannot be read.
    """
    where = store if isinstance(store, Store) else Store.open(store)
    manifest = where.load(snapshot)
    architecture = arch.load(manifest.host.architecture)
    process = manifest.processes[0]
    build = Build(manifest, process, architecture, {number: 100 + number for number in range(3)})
    for step in _steps(build)[1]:
        yield from rebuild.lines(step)
    yield "-- unmap the agent, set registers, let all threads go"


def _steps(build: Build) -> tuple[int, list[rebuild.Step]]:
    """Where the agent will be, and all steps. The stub's own few mappings lie at other ends of the
    address space than the first hole of the image; that they do not overlap is checked when the
    agent is mapped."""
    agent = find_hole(rebuild.occupied(build), SIZE, build.architecture.task_size)
    rebuild.prepare(build, agent)
    return agent, list(
        rebuild.steps(
            build,
            agent,
            same_vdso=_same_vdso(build.manifest),
            own_namespace=needs_user_namespace(),
            identity=_other_identity(build.manifest),
        )
    )


def _same_vdso(manifest: Manifest) -> bool:
    """This kernel's vdso, which we have as well, is the image's."""
    old = manifest.processes[0].memory.vdso
    lines = procfs.text("/proc/self/maps").split("\n")
    areas = procfs.areas("\n".join(line for line in lines if line.endswith("]")))
    with contextlib.closing(Memory(os.getpid())) as memory:
        here = vdso.capture(memory, areas)
    return old is not None and here is not None and vdso.same(old, here)


def _other_identity(manifest: Manifest) -> bool:
    wanted = manifest.processes[0].credentials
    here = (os.getresuid(), os.getresgid(), sorted(os.getgroups()))
    return here != (wanted.uids[:3], wanted.gids[:3], sorted(wanted.groups))


class _Thaw:
    """One restore in progress."""

    def __init__(
        self,
        manifest: Manifest,
        store: Store,
        fetch: Fetch,
        inherited: dict[int, int],
        progress: Progress | None,
        began: float,
    ) -> None:
        self.manifest = manifest
        self.process = manifest.processes[0]
        self.store = store
        self.fetch = fetch
        self.inherited = inherited
        self.progress = progress
        self.began = began
        self.timings: dict[str, float] = {}
        self.architecture = arch.native()

    def mark(self, step: str) -> None:
        self.timings[step] = time.perf_counter() - self.began

    def run(self) -> Held:
        """Everything, until only ``release`` is left. The steps are made while the kernel makes the
        namespaces."""
        self.mark("checked")
        streams, ipc = list(self.inherited.values()), self.manifest.ipc is not None
        spawn = Spawn(self.process, self.manifest.clocks, streams, ipc=ipc)
        try:
            build = Build(self.manifest, self.process, self.architecture, self.inherited)
            base, steps = _steps(build)
            self.mark("planned")
        except BaseException:
            spawn.abandon()
            raise
        stub = spawn.stopped()
        self.mark("stub")
        try:
            self._rebuild(stub, build, base, steps)
            self._set_registers(stub.target)
            self._outside(stub.target)
        except BaseException:
            stub.destroy()
            raise
        return Held(stub, build, self.began, self.timings, None)

    def _rebuild(self, stub: Stub, build: Build, base: int, steps: Sequence[rebuild.Step]) -> None:
        self.target = stub.target
        tracing.set_signal_mask(self.target.leader, tracing.BLOCK_ALL)
        areas = procfs.areas(procfs.text(f"/proc/{self.target.pid}/maps"))
        self.agent = Agent(self.target, base, live=False)
        self.agent.install(call_site(self.target.memory, areas))
        for step in steps:
            self._do(build, step)
        self._read_ports(build)
        self.agent.ignores_trap = (
            self.process.actions.get(signal.SIGTRAP) == self.agent.trap_action()
        )
        self.agent.remove(self._last_site())
        self.mark("rebuilt")

    def _last_site(self) -> int:
        """A system call instruction to unmap the agent by."""
        old = self.process.memory.vdso
        if old is not None:
            text = self.target.memory.read(old.text_start, len(old.text))
            at = text.find(self.architecture.system_call_instruction)
            if at >= 0:
                return old.text_start + at
        areas = procfs.areas(procfs.text(f"/proc/{self.target.pid}/maps"))
        return call_site(
            self.target.memory, [area for area in areas if area.start != self.agent.base]
        )

    def _do(self, build: Build, step: rebuild.Step) -> None:
        if isinstance(step, Batch):
            if step.calls:
                self._run(build, step, self.target.leader)
                self.mark(step.title)
        elif isinstance(step, rebuild.OnThread):
            index = self.process.threads.index(step.thread)
            self._run(build, step.batch, self.target.tids[index])
        elif isinstance(step, rebuild.FillAll):
            self._fill_all(step.fill.content)
        elif isinstance(step, Fill):
            for address, data in self.store.read(self.manifest, step.content):
                self.target.memory.write(address + step.shift, data)
        elif isinstance(step, rebuild.MakeThreads):
            self._make_threads(step.batch)
        elif isinstance(step, rebuild.Listen):
            self._listen(build, step)
        else:
            self.target.memory.write(step.address, step.data)

    def _run(self, build: Build, batch: Batch, tid: int) -> None:
        """Run a batch, and note what of its optional calls has failed."""
        self.agent.run(batch, tid)
        for call in batch.calls:
            if call.optional and call.result is not None and -4096 < call.result < 0:
                reason = os.strerror(-call.result)
                build.notes.append(Note(object=call.optional, status="lost", reason=reason))

    def _fill_all(self, content: Content) -> None:
        total, done = content.length, 0
        memory = self.target.memory

        def write(runs: list[tuple[int, int]], data: memoryview) -> None:
            nonlocal done
            memory.write_runs(runs, data)
            done += len(data)
            if self.progress is not None:
                self.progress("loading memory", done, total)

        self.fetch.deliver(write)
        self.mark("fill memory")

    def _make_threads(self, batch: Batch) -> None:
        self.agent.born.clear()
        self.agent.run(batch)
        born = self.agent.born
        for tid, thread in zip(born, self.process.threads[1:], strict=True):
            tracing.wait(tid)
            inner = procfs.inner_tid(self.target.pid, tid)
            if inner != thread.tid:
                raise CannotRestore(f"thread {thread.tid}", f"came to life as {inner}")
            self.target.tids.append(tid)
            self.target.registers[tid] = self.target.registers[self.target.leader]
            tracing.set_signal_mask(tid, tracing.BLOCK_ALL)
        self.mark("make threads")

    def _listen(self, build: Build, step: rebuild.Listen) -> None:
        """The old port; another one when that is taken. A port may be taken between the two."""
        for port in (step.listener.port, 0):
            batch = Batch("listen")
            descriptors.bind(build, batch, step.index, step.listener, port)
            self.agent.run(batch)
            bound, listening = (call.result for call in batch.calls[-2:])
            if bound == 0 and listening == 0:
                return
            failure = -(bound or listening or 0)
            if failure != errno.EADDRINUSE:
                break
        raise BatchFailed(
            f"listening on {step.listener.address} port {step.listener.port}",
            os.strerror(failure),
            failure,
            "give this host that address" if failure == errno.EADDRNOTAVAIL else "",
        )

    def _read_ports(self, build: Build) -> None:
        """Which ports the listeners have got."""
        numbers = {entry.description: entry.number for entry in self.process.descriptors}
        handle = os.pidfd_open(self.target.pid)
        try:
            for index, listener in descriptors.listeners(build):
                descriptor = lib.sk_pidfd_getfd(handle, numbers[index])
                if descriptor < 0:
                    raise CannotRestore(f"port {listener.port}", os.strerror(-descriptor))
                with socket.socket(fileno=descriptor) as end:
                    build.ports[listener.port] = end.getsockname()[1]
        finally:
            os.close(handle)

    def _set_registers(self, target: Target) -> None:
        for tid, thread in zip(target.tids, self.process.threads, strict=True):
            self.architecture.set_vector(tid, thread.vector)
            tracing.set_registers(tid, thread.registers)
            tracing.set_signal_mask(tid, thread.signal_mask)
            target.registers[tid] = thread.registers
            target.masks[tid] = thread.signal_mask
        self.mark("registers")

    def _outside(self, target: Target) -> None:
        """What is set from outside."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{target.pid}/oom_score_adj").write_text(str(self.process.oom_score_adj))


__all__ = ["Held", "RestoredProcess", "hold", "plan", "restore"]
