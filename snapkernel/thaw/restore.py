"""restore(): a snapshot becomes a running process.

1. Check everything that can be checked; list every mismatch at once.
2. Start fetching memory; meanwhile make the namespaces and the stub.
3. Drive the stub through the steps of ``rebuild``; set registers; let go.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from snapkernel import arch, faults, procfs
from snapkernel._native import lib
from snapkernel.errors import BatchFailed, CannotRestore
from snapkernel.freeze import tracing
from snapkernel.freeze.agent import Agent, call_site, find_hole
from snapkernel.freeze.batch import Batch
from snapkernel.freeze.checkpoint import Progress, Snapshot
from snapkernel.freeze.layout import SIZE
from snapkernel.freeze.target import Memory, Target
from snapkernel.jupyter.connection import write_connection
from snapkernel.model import Content, Manifest, Process
from snapkernel.portability import check
from snapkernel.portability.files import Arrivals, decide
from snapkernel.resources import (
    descriptors,
    family,
    outer_terminal,
    proc_file,
    sockets,
    terminal,
    vdso,
)
from snapkernel.resources.context import Build, Fill
from snapkernel.resources.file_arrival import Arrival
from snapkernel.runs import Run, common
from snapkernel.store import Fetch, Store
from snapkernel.thaw import rebuild, streams
from snapkernel.thaw.stub import Spawn, Stub, needs_user_namespace

SWITCH = 0.0002
_SMALL = 4 << 20  # bytes that are not worth threads

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
    files: str = "refuse",
    report: int | None = None,
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
        files: what to do where a file of the snapshot is another one here: ``refuse``, ``keep``
            (use the one that is here), ``overwrite`` or ``beside`` (the copy gets its own); or
            ``none``: write no file at all. With ``refuse``, which is the default, only such missing
            files are written as were open or are below a working or temporary directory.
        report: a unix(7) socket of type SOCK_SEQPACKET that gets a wait status, an ``int`` as of
            waitpid(2), whenever the process stops, continues or ends.
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
        files=files,
        report=report,
        progress=progress,
    )
    return held.release()


@dataclass
class Held:
    """Restored processes whose threads have not run yet.

    Attributes:
        targets: of all processes, by pid in their own namespace; the first one first.
        arrival: the files that were written for them.
    """

    stub: Stub
    build: Build
    began: float
    timings: dict[str, float]
    connection_file: Path | None
    targets: dict[int, Target]
    arrival: Arrival

    @property
    def target(self) -> Target:
        """The first process."""
        return self.stub.target

    def destroy(self) -> None:
        """End them instead of letting them run, and take back the files."""
        self.stub.destroy(list(self.targets.values()))
        self.arrival.undo()

    @faults.during("restore")
    def release(self) -> RestoredProcess:
        """Let them run."""
        self.arrival.keep()
        # The first one last: all others end with it, and it with us as long as it is held.
        for process in reversed(self.build.manifest.processes):
            target = self.targets[process.pid]
            target.stop_again = bool(process.stopped)
            target.release()
        self.stub.files.keep()
        faults.reached("the files of the process are its own", may_fail=False)
        return self.process()

    def process(self) -> RestoredProcess:
        """What is known of it now; it does not run yet, or only just."""
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


@faults.during("restore")
def hold(
    snapshot: str | Snapshot,
    *,
    store: Store | str | None = None,
    lazy: bool | None = None,
    connection_file: Path | str | None = None,
    stdio: tuple[int, int, int] | None = None,
    files: str = "refuse",
    report: int | None = None,
    progress: Progress | None = None,
) -> Held:
    """The same as :func:`restore`, short of letting the process run."""
    began = time.perf_counter()
    if lazy:
        raise CannotRestore("lazy restore", "is not there yet", "restore eagerly")
    where = store if isinstance(store, Store) else Store.open(store)
    manifest = where.load(snapshot.id if isinstance(snapshot, Snapshot) else snapshot)
    content = manifest.processes[0].memory.content
    path = None
    if manifest.jupyter is not None:
        path = Path(connection_file or streams.connection_path(manifest))
    with (
        _undisturbed(),
        where.fetch(manifest, content) as fetch,
        streams.opened(manifest, stdio) as inherited,
    ):
        arrivals = decide(manifest, files)
        check.refuse_mismatches(manifest, arrivals)
        thaw = _Thaw(manifest, where, fetch, inherited, arrivals, path, report, progress, began)
        held = thaw.run()
        try:
            if path is not None and manifest.jupyter is not None:
                write_connection(path, manifest.jupyter, held.build.ports, held.stub.files.begin)
                held.connection_file = path
            held.build.notes += outer_terminal.rebuild(manifest, inherited, held.target.pid)
        except BaseException:
            held.destroy()
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


def plan(
    snapshot: str, *, store: Store | str | None = None, files: str = "refuse"
) -> Iterator[str]:
    """The ordered steps of a restore as text, readable like strace's. Nothing is done.

    ``files`` is as of ``restore``; first are the files that would be written on this host.

    Raises:
        CannotRestore: it is of an architecture that this version does not know.
        SnapshotNotFound, DamagedSnapshot, StoreError: the snapshot cannot be read.
    """
    where = store if isinstance(store, Store) else Store.open(store)
    manifest = where.load(snapshot)
    try:
        architecture = arch.load(manifest.host.architecture)
    except KeyError:
        object = f"architecture {manifest.host.architecture}"
        raise CannotRestore(object, "is not known", "upgrade snapkernel") from None
    build = Build(
        manifest,
        manifest.processes[0],
        architecture,
        {number: 100 + number for number in range(3)},
    )
    arrivals = decide(manifest, files)
    build.paths = arrivals.paths
    yield from (f"-- {line}" for line in arrivals.lines())
    before = build.process.pid
    for pid, step in _steps(build)[1]:
        if pid != before:
            yield f"== process {pid}"
            before = pid
        yield from rebuild.lines(step)
    yield "-- unmap the agents, set registers, let all threads go"


def _steps(build: Build) -> tuple[int, list[tuple[int, rebuild.Step]]]:
    """Where the agent will be, and all steps. The stub's own few mappings lie at other ends of the
    address space than the first hole of the image; that they do not overlap is checked when the
    agent is mapped."""
    manifest = build.manifest
    agent = find_hole(rebuild.occupied(manifest), SIZE, build.architecture.task_size)
    rebuild.prepare(build, agent)
    builds = [build, *(build.sibling(process) for process in manifest.processes[1:])]
    steps = rebuild.steps(
        builds,
        agent,
        same_vdso=_same_vdso(manifest),
        own_namespace=needs_user_namespace(),
        identity=_other_identity(manifest),
    )
    return agent, list(steps)


def _same_vdso(manifest: Manifest) -> list[bool]:
    """Whether this kernel's vdso, which we have as well, is the image's, for each process."""
    lines = procfs.text("/proc/self/maps").split("\n")
    areas = procfs.areas("\n".join(line for line in lines if line.endswith("]")))
    with contextlib.closing(Memory(os.getpid())) as memory:
        here = vdso.capture(memory, areas)
    found = [process.memory.vdso for process in manifest.processes]
    return [old is not None and here is not None and vdso.same(old, here) for old in found]


def _other_identity(manifest: Manifest) -> bool:
    here = (os.getresuid(), os.getresgid(), sorted(os.getgroups()))
    return any(
        here != (wanted.uids[:3], wanted.gids[:3], sorted(wanted.groups))
        for wanted in (process.credentials for process in manifest.processes)
    )


class _Thaw:
    """One restore in progress."""

    def __init__(
        self,
        manifest: Manifest,
        store: Store,
        fetch: Fetch,
        inherited: dict[int, int],
        arrivals: Arrivals,
        connection_file: Path | None,
        report: int | None,
        progress: Progress | None,
        began: float,
    ) -> None:
        self.manifest = manifest
        self.store = store
        self._coming = {manifest.processes[0].pid: fetch}
        self._to_send: deque[tuple[int, Content]] = deque()
        self.inherited = inherited
        self.arrivals = arrivals
        self.arrival = Arrival()
        self.connection_file = connection_file
        self.report = report
        self.progress = progress
        self.began = began
        self.timings: dict[str, float] = {}
        self.architecture = arch.native()
        self.agents: dict[int, Agent] = {}
        self.done = 0

    def mark(self, step: str) -> None:
        self.timings[step] = time.perf_counter() - self.began

    def run(self) -> Held:
        """Everything, until only ``release`` is left. The steps are made while the kernel makes the
        namespaces."""
        self.mark("checked")
        first = self.manifest.processes[0]
        spawn = Spawn(
            self.manifest, list(self.inherited.values()), self.report, self.connection_file
        )
        try:
            faults.reached("kernel-init is started")
            build = Build(self.manifest, first, self.architecture, self.inherited)
            build.paths, build.notes = self.arrivals.paths, self.arrivals.notes
            base, steps = _steps(build)
            self.mark("planned")
        except BaseException:
            spawn.abandon()
            raise
        stub = spawn.stopped()
        build.begin_file = stub.files.begin
        self.mark("stub")
        try:
            self.arrival = Arrival(stub.files.begin)
            self.arrival.write(self.arrivals.orders, self._give)
            build.notes += self.arrival.notes
            self.mark("files")
            if not stub.own_proc:
                build.notes.append(proc_file.without_own(self.manifest))
            self._rebuild(stub, build, base, steps)
            for process in self.manifest.processes:
                self._set_registers(process)
            self.mark("registers")
        except BaseException:
            stub.destroy([agent.target for agent in self.agents.values()])
            self.arrival.undo()
            raise
        targets = {pid: agent.target for pid, agent in self.agents.items()}
        return Held(stub, build, self.began, self.timings, None, targets, self.arrival)

    def _give(
        self, content: Content, write: Callable[[list[tuple[int, int]], memoryview], None]
    ) -> None:
        """The bytes of a file."""
        if content.length < _SMALL:
            for offset, data in self.store.read(self.manifest, content):
                write([(offset, len(data))], memoryview(data))
        else:
            with self.store.fetch(self.manifest, content) as fetch:
                fetch.deliver(write)

    def _rebuild(
        self, stub: Stub, build: Build, base: int, steps: Sequence[tuple[int, rebuild.Step]]
    ) -> None:
        areas = procfs.areas(procfs.text(f"/proc/{stub.target.pid}/maps"))
        tracing.set_signal_mask(stub.target.leader, tracing.BLOCK_ALL)
        first = Agent(stub.target, base, live=False)
        first.install(call_site(stub.target.memory, areas))
        self.agents = {build.process.pid: first}
        for pid, step in steps:
            if isinstance(step, rebuild.FillAll) and step.fill.content.length >= _SMALL:
                self._to_send.append((pid, step.fill.content))
        try:
            for pid, step in steps:
                self._do(build, self.agents[pid], pid, step)
        finally:
            for fetch in self._coming.values():
                fetch.close()
        for process in self.manifest.processes:
            agent = self.agents[process.pid]
            agent.remove(self._last_site(process, agent))
        self.mark("rebuilt")

    def _last_site(self, process: Process, agent: Agent) -> int:
        """A system call instruction to unmap the agent by."""
        old, memory = process.memory.vdso, agent.target.memory
        if old is not None:
            text = memory.read(old.text_start, len(old.text))
            at = text.find(self.architecture.system_call_instruction)
            if at >= 0:
                return old.text_start + at
        areas = procfs.areas(procfs.text(f"/proc/{agent.target.pid}/maps"))
        return call_site(memory, [area for area in areas if area.start != agent.base])

    def _do(self, build: Build, agent: Agent, pid: int, step: rebuild.Step) -> None:
        target = agent.target
        faults.reached(type(step).__name__)
        if isinstance(step, Batch):
            if step.calls:
                self._run(build, agent, step, target.leader)
                self.mark(step.title)
        elif isinstance(step, rebuild.OnThread):
            threads = self._process(pid).threads
            self._run(build, agent, step.batch, target.tids[threads.index(step.thread)])
        elif isinstance(step, rebuild.FillAll):
            self._fill_all(pid, target, step)
        elif isinstance(step, Fill):
            self._fill(target, step)
        elif isinstance(step, rebuild.MakeThreads):
            self._make_threads(agent, self._process(pid), step.batch)
        elif isinstance(step, rebuild.Listen):
            self._listen(build, agent, step)
        elif isinstance(step, family.Fork):
            self._fork(agent, step)
        elif isinstance(step, family.End):
            self._end(pid, step)
        elif isinstance(step, sockets.Step | terminal.Fill):
            step.run(build, agent)
        else:
            target.memory.write(step.address, step.data)

    def _process(self, pid: int) -> Process:
        return next(process for process in self.manifest.processes if process.pid == pid)

    def _run(self, build: Build, agent: Agent, batch: Batch, tid: int) -> None:
        """Run a batch, and note what of its optional calls has failed."""
        agent.run(batch, tid)
        build.note_lost(batch)

    def _fill_all(self, pid: int, target: Target, step: rebuild.FillAll) -> None:
        """Private memory; that of the first process is on its way already, and that of the next
        large one is sent for before this one is written."""
        while self._to_send and self._to_send[0][0] in (pid, *self._coming):
            self._to_send.popleft()
        fetch = self._coming.pop(pid, None)
        content = step.fill.content
        if fetch is None and content.length < _SMALL:
            for address, data in self.store.read(self.manifest, content):
                _write(target, [(address, len(data))], memoryview(data), step.there)
            return
        with fetch or self.store.fetch(self.manifest, content) as fetch:
            if self._to_send:
                following, content = self._to_send.popleft()
                self._coming[following] = self.store.fetch(self.manifest, content)
            self._deliver(fetch, target, there=step.there)
        self.mark("fill memory")

    def _fill(self, target: Target, step: Fill) -> None:
        if step.content.length < _SMALL:
            for address, data in self.store.read(self.manifest, step.content):
                target.memory.write(address + step.shift, data)
        else:
            with self.store.fetch(self.manifest, step.content) as fetch:
                self._deliver(fetch, target, step.shift)

    def _deliver(
        self, fetch: Fetch, target: Target, shift: int = 0, there: Sequence[Run] = ()
    ) -> None:
        def write(runs: list[Run], data: memoryview) -> None:
            if shift:
                runs = [(address + shift, length) for address, length in runs]
            _write(target, runs, data, there)
            self.done += len(data)
            if self.progress is not None:
                self.progress("loading memory", self.done, self.manifest.memory_bytes)

        fetch.deliver(write)

    def _make_threads(self, agent: Agent, process: Process, batch: Batch) -> None:
        agent.born.clear()
        agent.run(batch)
        target = agent.target
        for tid, thread in zip(agent.born, process.threads[1:], strict=True):
            tracing.wait(tid)
            inner = procfs.inner_tid(target.pid, tid)
            if inner != thread.tid:
                raise CannotRestore(f"thread {thread.tid}", f"came to life as {inner}")
            target.tids.append(tid)
            target.registers[tid] = target.registers[target.leader]
            tracing.set_signal_mask(tid, tracing.BLOCK_ALL)
        self.mark("make threads")

    def _fork(self, agent: Agent, step: family.Fork) -> None:
        """A child is born with a copy of the agent."""
        agent.born.clear()
        agent.run(step.batch)
        if not agent.born:
            raise CannotRestore(f"process {step.child.pid}", "its birth was not reported")
        (child,) = agent.born
        tracing.wait(child)
        tracing.set_signal_mask(child, tracing.BLOCK_ALL)
        target = Target(child, [child])
        self.agents[step.child.pid] = Agent(target, agent.base, live=False)
        inner = procfs.inner_tid(child, child)
        if inner != step.child.pid:
            raise CannotRestore(f"process {step.child.pid}", f"came to life as {inner}")

    def _end(self, pid: int, step: family.End) -> None:
        """Its parent finds the status when it asks for it."""
        agent = self.agents.pop(pid)
        agent.end(step.zombie.status)

    def _listen(self, build: Build, agent: Agent, step: rebuild.Listen) -> None:
        """The old port; another one when that is taken. A port may be taken between the two."""
        for port in (step.listener.port, 0):
            batch = Batch("listen")
            descriptors.bind(build, batch, step.index, step.listener, port)
            agent.run(batch)
            bound, listening = (call.result for call in batch.calls[-2:])
            if bound == 0 and listening == 0:
                build.ports[step.listener.port] = self._port(build, agent, step)
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

    def _port(self, build: Build, agent: Agent, step: rebuild.Listen) -> int:
        """Which port a listener has got."""
        handle = os.pidfd_open(agent.target.pid)
        try:
            descriptor = lib.sk_pidfd_getfd(handle, build.numbers[step.index])
        finally:
            os.close(handle)
        if descriptor < 0:
            raise CannotRestore(f"port {step.listener.port}", os.strerror(-descriptor))
        with socket.socket(fileno=descriptor) as end:
            port: int = end.getsockname()[1]
            return port

    def _set_registers(self, process: Process) -> None:
        target = self.agents[process.pid].target
        for tid, thread in zip(target.tids, process.threads, strict=True):
            self.architecture.set_vector(tid, thread.vector)
            if len(thread.registers) != len(target.registers[tid]):
                raise CannotRestore(f"thread {thread.tid}", "has registers of another processor")
            tracing.set_registers(tid, thread.registers)
            tracing.set_signal_mask(tid, thread.signal_mask)
            target.registers[tid] = thread.registers
            target.masks[tid] = thread.signal_mask
            faults.reached("a thread has its registers")
        with contextlib.suppress(OSError):
            Path(f"/proc/{target.pid}/oom_score_adj").write_text(str(process.oom_score_adj))


def _write(target: Target, runs: list[Run], data: memoryview, there: Sequence[Run]) -> None:
    """Write bytes; where something is there already, only what differs."""
    if there:
        first = min(address for address, _ in runs)
        end = max(map(sum, runs))
        at = bisect.bisect_right(there, (first, 1 << 64)) - 1
        behind = bisect.bisect_left(there, (end, 0))
        if any(common([(first, end - first)], there[max(at, 0) : behind])):
            target.memory.write_changed(runs, data)
            return
    target.memory.write_runs(runs, data)


__all__ = ["Held", "RestoredProcess", "hold", "plan", "restore"]
