"""Pseudo-terminals (pty(7)) whose master is in one of the processes.

A terminal whose master is elsewhere is a stream to the world outside (``stream``). Nearly all of
what it has is asked of the master: settings, window, modes; what waits in it is a matter of its
own (``terminal_queue``). A slave without a master was hung up, and comes back hung up.

Numbers are given out from 0 in every instance of devpts, and the restored process has one of its
own at ``/dev/pts`` (``native/kernel_init.c``; Documentation/filesystems/devpts.rst): opening
masters until the wanted numbers have come up gives it the old ones.
"""

from __future__ import annotations

import os
import select
import stat
import struct
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from snapkernel import procfs
from snapkernel._native import lib
from snapkernel.errors import CannotRestore, TargetError
from snapkernel.freeze.agent import Agent
from snapkernel.freeze.batch import AT_FDCWD, Batch, Cell
from snapkernel.model import MOST_TERMINALS, Terminal, TerminalEnd
from snapkernel.resources import terminal_queue
from snapkernel.resources.context import Build, Capture
from snapkernel.resources.open_file import OpenFile, Table
from snapkernel.resources.terminal_queue import ask, number

RECORDS = (TerminalEnd,)
FOLDER = "/dev/pts"
_MASTER, _OWN = os.makedev(5, 2), os.makedev(5, 0)
MASTERS = ("/dev/ptmx", "/dev/pts/ptmx")
_SLAVE_MAJORS = range(136, 144)
_REMEDY = "close it before the snapshot"


@dataclass
class TerminalEnds:
    """A terminal while it is looked at.

    Attributes:
        place: instance of devpts, and number.
        master: description of the master, ``None`` when the terminal was hung up.
        slaves: descriptions of the slave.
    """

    place: tuple[int, int]
    master: OpenFile | None = None
    slaves: list[OpenFile] = field(default_factory=list)

    @property
    def slave(self) -> int | None:
        """A descriptor of the slave."""
        return self.slaves[0].descriptor if self.slaves else None


def is_master(file: OpenFile) -> bool:
    """The controlling side of a pseudo-terminal (pts(4))."""
    return stat.S_ISCHR(file.status.st_mode) and file.status.st_rdev == _MASTER


def has_master(file: OpenFile, table: Table) -> bool:
    """The other side of this terminal is in the process as well."""
    return any(_place(other) == _place(file) for other in table.files if is_master(other))


def recognises(file: OpenFile) -> bool:
    """Either side; also as /dev/tty."""
    device = file.status.st_rdev
    return stat.S_ISCHR(file.status.st_mode) and (
        device in (_MASTER, _OWN) or os.major(device) in _SLAVE_MAJORS
    )


def _place(file: OpenFile) -> tuple[int, int]:
    """Instance of devpts, and number. /dev/ptmx leads to the instance beside it."""
    device = file.status.st_rdev
    if os.major(device) in _SLAVE_MAJORS:
        return file.status.st_dev, os.minor(device)
    instance = os.stat(f"/proc/{file.pid}/root{FOLDER}").st_dev
    return instance, os.minor(number(ask(file.descriptor, "TIOCGDEV")) & 0xFFFFFFFF)


def capture(capture: Capture, file: OpenFile, table: Table) -> TerminalEnd | None:
    """A side; the terminal itself with the first side of it that is seen."""
    hung_up = not os.isatty(file.descriptor)
    if is_master(file) and file.link not in MASTERS:
        capture.refuse(file.subject, "was not opened as /dev/ptmx", _REMEDY)
        return None
    if hung_up and file.status.st_rdev == _OWN:
        capture.refuse(file.subject, "is a terminal that was hung up", _REMEDY)
        return None
    if file.status.st_rdev == _OWN:
        capture.report(file.subject, "replaced", f"comes back as {FOLDER}/{_place(file)[1]}")
    else:
        capture.saved(file.subject)
    return TerminalEnd(
        flags=file.flags,
        terminal=_terminal(capture, file, table),
        master=is_master(file),
        path=file.link if is_master(file) else "",
        exclusive=not hung_up and bool(number(ask(file.descriptor, "TIOCGEXCL"))),
    )


def _terminal(capture: Capture, file: OpenFile, table: Table) -> int:
    """Index of the terminal that this is a side of."""
    place = _place(file)
    for index, known in enumerate(capture.terminal_ends):
        if known.place == place:
            return index
    ends = TerminalEnds(place)
    for other in filter(recognises, table.files):
        if is_master(other):
            if _place(other) == place:
                ends.master = other
        elif _place(other) == place:
            ends.slaves.append(other)
    if place[1] >= MOST_TERMINALS:
        capture.refuse(file.subject, f"has a number of {MOST_TERMINALS} or more", _REMEDY)
        return 0
    capture.terminal_ends.append(ends)
    if ends.master is None:
        capture.terminals.append(Terminal(number=_free_number(capture, table, place[1])))
    else:
        capture.terminals.append(_look(capture, ends, ends.master, table))
    return len(capture.terminals) - 1


def _free_number(capture: Capture, table: Table, wanted: int) -> int:
    """The number of a terminal that was hung up, or another where that one belongs to a living
    terminal as well."""
    taken = {_place(file)[1] for file in table.files if is_master(file)}
    taken |= {terminal.number for terminal in capture.terminals}
    while wanted in taken:
        wanted += 1
    return wanted


def _look(capture: Capture, ends: TerminalEnds, master: OpenFile, table: Table) -> Terminal:
    """All that the master tells."""
    descriptor = master.descriptor
    obstacle = terminal_queue.obstacle(descriptor, ends.slave)
    if obstacle is not None:
        capture.refuse(master.subject, f"this terminal {obstacle[0]}", obstacle[1])
    opened = bool(ends.slaves) or bool(terminal_queue.events(descriptor, 0) & select.POLLHUP)
    if not opened:
        _refuse_outside(capture, ends, master, table)
        capture.report(
            master.subject, "replaced", "nobody has opened it yet: what was typed ahead is lost"
        )
    return Terminal(
        number=ends.place[1],
        settings=ask(descriptor, "TCGETS2", terminal_queue.SETTINGS),
        window=ask(descriptor, "TIOCGWINSZ", 8),
        packets=bool(number(ask(descriptor, "TIOCGPKT"))),
        locked=bool(number(ask(descriptor, "TIOCGPTLCK"))),
        opened=opened,
        foreground=_inner(number(ask(descriptor, "TIOCGPGRP"))),
    )


def _refuse_outside(capture: Capture, ends: TerminalEnds, master: OpenFile, table: Table) -> None:
    """The slave must not be open in a process outside, which would lose its terminal."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError, TargetError):
            if int(name) not in table.pids and _holds(name, ends.place):
                capture.refuse(
                    master.subject,
                    f"process {name} ({procfs.status(int(name))['Name']}) works in this terminal",
                    "end that process before the snapshot",
                )


def _holds(pid: str, place: tuple[int, int]) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except PermissionError:
        return int(procfs.stat(int(pid))[7 - 3]) == os.makedev(_SLAVE_MAJORS[0], place[1])
    for name in names:
        with suppress(OSError):
            if not os.readlink(f"{folder}/{name}").startswith(FOLDER):
                continue
            status = os.stat(f"{folder}/{name}")
            if (status.st_dev, status.st_rdev) == (
                place[0],
                os.makedev(_SLAVE_MAJORS[0], place[1]),
            ):
                return True
    return False


def _inner(group: int) -> int:
    """The id of a process group as its members see it; 0 when there is none."""
    try:
        return procfs.innermost(procfs.status(group)["NSpid"]) if group > 0 else 0
    except TargetError:
        return 0  # its leader has ended


def capture_controlling(capture: Capture, pid: int, pids: Container[int]) -> int | None:
    """The controlling terminal of a process (credentials(7)), by index, where its master and the
    leader of its session are among the processes ``pids``."""
    fields = procfs.stat(pid)
    session, device = int(fields[6 - 3]), int(fields[7 - 3])
    if not device:
        return None
    for index, ends in enumerate(capture.terminal_ends):
        same = device & 0xFFFFFFFF == os.makedev(_SLAVE_MAJORS[0], ends.place[1])
        if ends.master is None or not same or session not in pids:
            continue
        with suppress(OSError):  # ENOTTY: nobody's controlling terminal
            if number(ask(ends.master.descriptor, "TIOCGSID")) == session:
                return index
    reason = "is outside; a restored process has none, and cannot open /dev/tty"
    if not any(finding.reason == reason for finding in capture.findings):
        capture.report("controlling terminal", "replaced", reason)
    return None


def save(capture: Capture) -> None:
    """Copy what waits in the terminals of a frozen process."""
    for index, ends in enumerate(capture.terminal_ends):
        if ends.master is None or not capture.terminals[index].opened:
            continue
        master = ends.master.descriptor
        with terminal_queue.opened_slave(master, ends.slave) as slave:
            queue = terminal_queue.copy(master, slave)
        capture.terminals[index] = msgspec.structs.replace(
            capture.terminals[index],
            typed=tuple(queue.typed),
            unfinished=queue.unfinished,
            printed=queue.printed,
            stopped=queue.stopped,
        )


# --- rebuild -----------------------------------------------------------------------------------


def create(build: Build, batch: Batch, record: TerminalEnd, index: int) -> None:
    """All terminals at once: their numbers depend on one another."""
    if index in build.numbers:
        return
    ends: dict[int, dict[int, TerminalEnd]] = {}
    for other, end in enumerate(build.manifest.descriptions):
        if isinstance(end, TerminalEnd):
            ends.setdefault(end.terminal, {})[other] = end
    used = {build.manifest.terminals[terminal].number: terminal for terminal in ends}
    fresh: dict[int, Cell] = {}
    for wanted in range(max(used) + 1):
        cell = fresh[wanted] = Cell(f"ptmx{wanted}")
        flags, path = os.O_RDWR, MASTERS[0]
        for end in ends.get(used.get(wanted, -1), {}).values():
            if end.master:
                flags, path = end.flags, end.path
        opening = (AT_FDCWD, os.fsencode(path) + b"\0", flags | os.O_NOCTTY)
        batch.call("openat", *opening, store=cell, note=f"pseudo-terminal {wanted}")
    for spare in fresh.keys() - used.keys():
        batch.call("close", fresh[spare])
    masters = {used[wanted]: build.move(batch, fresh[wanted]) for wanted in sorted(used)}
    for terminal, master in masters.items():
        _create_one(build, batch, build.manifest.terminals[terminal], master, ends[terminal])


def _create_one(
    build: Build, batch: Batch, terminal: Terminal, master: Cell, ends: dict[int, TerminalEnd]
) -> None:
    requests, note = build.architecture.terminal_requests, f"{FOLDER}/{terminal.number}"

    def tell(where: Cell, name: str, value: int | bytes) -> None:
        data = value if isinstance(value, bytes) else struct.pack("=i", value)
        batch.call("ioctl", where, requests[name], data, note=f"{note}: {name}")

    def slave(flags: int) -> Cell:
        fresh = Cell("slave")  # unlike openat(2), this adds no O_LARGEFILE
        how = flags | os.O_NOCTTY
        batch.call("ioctl", master, requests["TIOCGPTPEER"], how, store=fresh, note=note)
        return fresh

    tell(master, "TIOCSPTLCK", 0)
    away: dict[int, Cell] = {}
    for index, end in ends.items():
        if end.master:
            away[index] = master
            continue
        away[index] = build.move(batch, slave(end.flags))
    if terminal.opened and all(end.master for end in ends.values()):
        batch.call("close", slave(os.O_RDWR))
    if terminal.settings:
        tell(master, "TCSETS2", terminal.settings)
        tell(master, "TIOCSWINSZ", terminal.window)
    if terminal.packets:
        tell(master, "TIOCPKT", 1)
    if terminal.locked:
        tell(master, "TIOCSPTLCK", 1)
    for index, end in ends.items():
        if end.exclusive:
            batch.call("ioctl", away[index], requests["TIOCEXCL"], note=f"{note}: TIOCEXCL")
    for index in ends:
        build.place(batch, away[index], index)
    if not any(end.master for end in ends.values()):
        batch.call("close", master, note="hang up")


def take(build: Build) -> Batch:
    """The terminal becomes that of the session which the process leads, and which nobody else is
    in yet."""
    batch = Batch("take the controlling terminal")
    index = build.process.terminal
    if index is not None:
        note = f"controlling terminal {FOLDER}/{build.manifest.terminals[index].number}"
        request = build.architecture.terminal_requests["TIOCSCTTY"]
        batch.call("ioctl", _master(build, index), request, 0, note=note)
    return batch


def give_up(build: Build) -> Batch:
    """Who has no controlling terminal in a session that has one has given it up (TIOCNOTTY)."""
    batch = Batch("give up the controlling terminal")
    process = build.process
    leaders = {p.pid: p for p in build.manifest.processes if p.pid == p.sid}
    leader = leaders.get(process.sid, process)
    if process.terminal is None and leader.terminal is not None:
        own = Cell("tty")
        batch.call("openat", AT_FDCWD, b"/dev/tty\0", os.O_RDWR | os.O_NOCTTY, store=own)
        batch.call("ioctl", own, build.architecture.terminal_requests["TIOCNOTTY"])
        batch.call("close", own)
    return batch


def give_foreground(build: Build) -> Batch:
    """The leader of the session says which group is in the foreground; all groups are there."""
    batch = Batch("set the foreground process group")
    process = build.process
    if process.terminal is None or process.pid != process.sid:
        return batch
    terminal = build.manifest.terminals[process.terminal]
    if terminal.foreground:
        request = build.architecture.terminal_requests["TIOCSPGRP"]
        group, what = struct.pack("=i", terminal.foreground), f"{FOLDER}/{terminal.number}"
        master = _master(build, process.terminal)
        batch.call("ioctl", master, request, group, optional=f"foreground of {what}")
    return batch


def _master(build: Build, terminal: int) -> int:
    """Descriptor number of the master, which every process has until it has its own numbers."""
    for index, end in enumerate(build.manifest.descriptions):
        if isinstance(end, TerminalEnd) and end.master and end.terminal == terminal:
            return build.numbers[index]
    raise CannotRestore(f"terminal {build.manifest.terminals[terminal].number}", "has no master")


@dataclass(frozen=True)
class Fill:
    """What waited in a terminal is to wait in it again."""

    index: int
    terminal: Terminal

    @property
    def queue(self) -> terminal_queue.Queue:
        """What waits."""
        terminal = self.terminal
        return terminal_queue.Queue(
            list(terminal.typed), terminal.unfinished, terminal.printed, terminal.stopped
        )

    def run(self, build: Build, agent: Agent) -> None:
        """Raises CannotRestore."""
        pid = agent.target.pid
        with (
            _borrowed(pid, _master(build, self.index)) as master,
            _slave(build, self.index, pid, master) as slave,
        ):
            terminal_queue.fill(master, slave, self.queue)

    def lines(self) -> Iterator[str]:
        """The step in words."""
        queue = self.queue
        typed = sum(map(len, queue.typed)) + len(queue.unfinished)
        where = f"{FOLDER}/{self.terminal.number}"
        yield f"-- type {typed} bytes and print {len(queue.printed)} bytes in {where}"


def steps(build: Build) -> Iterator[Fill]:
    """After all descriptions were made."""
    for index, terminal in enumerate(build.manifest.terminals):
        fill = Fill(index, terminal)
        if fill.queue != terminal_queue.Queue():
            yield fill


@contextmanager
def _slave(build: Build, terminal: int, pid: int, master: int) -> Iterator[int]:
    for index, end in enumerate(build.manifest.descriptions):
        if isinstance(end, TerminalEnd) and not end.master and end.terminal == terminal:
            with (
                _borrowed(pid, build.numbers[index]) as held,
                terminal_queue.opened_slave(master, held) as slave,
            ):
                yield slave
            return
    with terminal_queue.opened_slave(master) as slave:
        yield slave


@contextmanager
def _borrowed(pid: int, held: int) -> Iterator[int]:
    """A descriptor of the process as one of ours."""
    handle = os.pidfd_open(pid)
    try:
        descriptor = lib.sk_pidfd_getfd(handle, held)
    finally:
        os.close(handle)
    if descriptor < 0:
        raise CannotRestore(f"terminal (fd {held})", os.strerror(-descriptor))
    try:
        yield descriptor
    finally:
        os.close(descriptor)
