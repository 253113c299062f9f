"""What no process can be. A manifest that says such a thing was made, or damaged, by somebody.

``snapkernel.model`` refuses wrong types and references that lead nowhere. What passes here as well
describes something that a kernel can be asked for in a bounded number of system calls, and asking
for it changes nothing outside of the restored process: no file is truncated or written, no path
leads through another process, no option is set that concerns others. Only the names of unix sockets
make files, as they must, where there is none but a socket that nobody has, and files that travel
are written where there are none: of these see ``portability.files``.

It says nothing of what the process will do when it runs: a snapshot is a program, and a restore
runs it with the rights of whoever restores it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Iterator, Sequence

from snapkernel import arch
from snapkernel.arch import Architecture
from snapkernel.model import (
    RUN,
    AnyDescription,
    CarriedFile,
    CharacterDevice,
    ClosedSocket,
    Content,
    Epoll,
    FileLock,
    InetSocket,
    Manifest,
    Mapping,
    MemoryPolicy,
    MessageQueue,
    ObjectFile,
    PendingSignal,
    PipeEnd,
    PosixTimer,
    Process,
    RegularFile,
    Segment,
    SemaphoreSet,
    SharedMemory,
    Stream,
    TcpListener,
    Terminal,
    TerminalEnd,
    Thread,
    TimerDescriptor,
    UnixDatagram,
    UnixListener,
    UnixMessage,
    UnixQueue,
    UnixSocket,
)
from snapkernel.resources import file_choice, socket_options, terminal, terminal_queue, unix_queue

MOST = 1 << 20
"""Entries of a table: the default of fs.nr_open, and more than the largest of other limits."""
HIGHEST_DESCRIPTOR = 1 << 24
"""The kernel's table of descriptors grows to the highest: 128 MiB for this one."""
LAST_SIGNAL = 64
SIGINFO_SIZE = 128
TIMER_SIZE = 32
"""``struct itimerval`` and ``struct itimerspec``."""

_MOST_TEXT = 4096
"""PATH_MAX."""
_MOST_VDSO = 1 << 20
_MOST_AUXV = 4096
_MOST_VECTOR = 1 << 16
_MOST_FILE = (1 << 63) - 1
_LARGEST_PAGE = 1 << 16
_MOST_MODE = 0o7777
_MOST_NAME = 108
_MOST_NAME_OF_ATTRIBUTE = 255
"""XATTR_NAME_MAX."""
_MOST_RIGHTS_OF_FILE = 0o777
"""A file that gives whoever runs it the rights of its owner is not made for a restore."""
_MOST_RIGHTS = 253
"""SCM_MAX_FD (<net/scm.h>)."""
_PAGES = frozenset({1 << 12, 1 << 14, 1 << 16})
_LIMITS = range(16)
_NOTIFY = frozenset({0, 1, 2, 4})
_MAKING = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOCTTY | (os.O_TMPFILE & ~os.O_DIRECTORY)
"""What open(2) does to a file, and forgets: F_GETFL never shows it."""
_SOCKETS = frozenset({socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET})
_INTERNET = frozenset({socket.AF_INET, socket.AF_INET6})
_WITH_DESCRIPTOR = frozenset({"memfd", "deleted-file", "dev-shm"})
_OBJECTS = _WITH_DESCRIPTOR | {"anonymous", "system-v"}
_MOST_QUEUE_NAME = 255
"""NAME_MAX."""
_LEADS_ELSEWHERE = re.compile(
    r"/proc/(thread-)?self(/.*)?|/proc/\d+(/task/\d+)?/(root|cwd|exe|(fd|map_files|ns)/.).*", re.S
)
"""Links of proc(5) that lead into a process. The kernel names what they lead to instead."""


def check(manifest: Manifest) -> None:
    """Raise ValueError when the manifest describes what cannot be."""
    _tables(manifest)
    try:
        architecture = arch.load(manifest.host.architecture)
    except KeyError:
        architecture = None  # the restore is refused for that, and tells so
    page = manifest.host.page_size
    if page not in _PAGES:
        raise ValueError(f"no architecture has pages of {page} bytes")
    for file in manifest.files:
        _path("a mapped file", file.path)
    if len(manifest.host.boot_id) > _MOST_TEXT:
        raise ValueError("its host has an impossible boot id")
    _carried(manifest.carried)
    for record in manifest.shared_memory:
        _shared_memory(record)
    _shared_folders(manifest)
    _ipc(manifest)
    for pipe in manifest.pipes:
        if pipe.size >= 1 << 31 or sum(map(len, pipe.data)) > pipe.size:
            raise ValueError("more is in a pipe than fits in it")
    _terminals(manifest)
    for index, description in enumerate(manifest.descriptions):
        try:
            _description(manifest, index, description)
        except ValueError as error:
            raise ValueError(f"description {index}: {error}") from error
    for process in manifest.processes:
        try:
            _process(process, architecture, page)
        except ValueError as error:
            raise ValueError(f"process {process.pid}: {error}") from error
    _used(manifest)


def _tables(manifest: Manifest) -> None:
    """No table has more entries than a host has objects: each costs system calls to make."""
    tables: list[Sequence[object]] = [
        manifest.processes,
        manifest.descriptions,
        manifest.pipes,
        manifest.terminals,
        manifest.shared_memory,
        manifest.files,
        manifest.carried,
        manifest.packs,
        manifest.notes,
    ]
    for process in manifest.processes:
        tables += [
            process.memory.mappings,
            process.threads,
            process.descriptors,
            process.timers,
            process.pending,
            process.arguments,
            process.credentials.groups,
        ]
    if any(len(table) > MOST for table in tables):
        raise ValueError(f"one of its tables has more than {MOST} entries")
    packets = sum(len(pipe.data) for pipe in manifest.pipes)
    targets = sum(len(d.targets) for d in manifest.descriptions if isinstance(d, Epoll))
    waiting = [n for d in manifest.descriptions if isinstance(d, UnixListener) for n in d.pending]
    if len(set(waiting)) != len(waiting):
        raise ValueError("a connection waits to be accepted twice")
    messages = sum(len(q) for q in map(_queue, manifest.descriptions))
    if max(packets, targets, messages) > MOST:
        raise ValueError(f"its descriptions have more than {MOST} parts")


def _queue(record: AnyDescription) -> UnixQueue:
    return record.queue if isinstance(record, UnixSocket | UnixDatagram) else ()


def _used(manifest: Manifest) -> None:
    """Every description is in the table of some process, or on its way to one, or it could not have
    been saved."""
    used: set[int] = set()
    for record in manifest.descriptions:
        for message in _queue(record):
            used.update(message.rights if isinstance(message, UnixMessage) else ())
    for process in manifest.processes:
        used.update(descriptor.description for descriptor in process.descriptors)
    for index in range(len(manifest.descriptions)):
        if index not in used:
            raise ValueError(f"description {index}: no descriptor refers to it")


# --- text --------------------------------------------------------------------------------------


def _text(what: str, text: str) -> None:
    if "\0" in text or len(text) > _MOST_TEXT:
        raise ValueError(f"{what}: {text[:80]!r} is not a name")


def _path(what: str, path: str) -> None:
    """An absolute path as the kernel tells it (d_path of fs/d_path.c)."""
    _text(what, path)
    if not path.startswith("/") or {"..", "."} & set(path.split("/")):
        raise ValueError(f"{what}: {path[:80]!r} is not a path from the root directory")
    if _LEADS_ELSEWHERE.fullmatch(path):
        raise ValueError(f"{what}: {path[:80]!r} leads into a process")


# --- files -------------------------------------------------------------------------------------


def _carried(files: Sequence[CarriedFile]) -> None:
    """What is written for a restore: plain files and links, each in a place of its own. Where they
    may be written is for ``portability.files`` to decide, which looks at the host."""
    paths = {file.path for file in files}
    if len(paths) != len(files):
        raise ValueError("two files travel to the same path")
    for file in files:
        what = f"file {file.path[:80]!r}"
        _path(what, file.path)
        if (
            file.path != os.path.normpath(file.path)
            or file.path.startswith("//")
            or not file.path[1:]
        ):
            raise ValueError(f"{what}: is not the name of a file")
        if file_choice.is_of_kernel(file.path):
            raise ValueError(f"{what}: the kernel has no such files")
        above = file.path
        while (above := os.path.dirname(above)) != "/":
            if above in paths:
                raise ValueError(f"{what}: is below another file")
        _carried_file(what, file)


def _carried_file(what: str, file: CarriedFile) -> None:
    _text(what, file.target)
    if file.mode > _MOST_RIGHTS_OF_FILE or max(file.owner) >= 1 << 32:
        raise ValueError(f"{what}: has a mode or owner that does not travel")
    if abs(file.mtime_ns) > _MOST_FILE or abs(file.born_ns) > _MOST_FILE:
        raise ValueError(f"{what}: has an impossible time")
    if file.size > _MOST_FILE - _LARGEST_PAGE or (file.target and file.size):
        raise ValueError(f"{what}: has an impossible size")
    if max((sum(run) for run in file.content.iter_runs()), default=0) > file.size:
        raise ValueError(f"{what}: has content behind its end")
    total = 0
    for name, value in file.attributes.items():
        _text(what, name)
        if not name.startswith("user.") or len(name.encode()) > _MOST_NAME_OF_ATTRIBUTE:
            raise ValueError(f"{what}: the attribute {name[:80]!r} does not travel")
        total += len(name.encode()) + len(value)
    if total > file_choice.MOST_ATTRIBUTES or (file.target and total):
        raise ValueError(f"{what}: has more attributes than a file can have")


# --- memory ------------------------------------------------------------------------------------


def _shared_memory(record: SharedMemory) -> None:
    what = f"{record.kind[:80]!r} {record.name[:80]!r}"
    if record.kind not in _OBJECTS:
        raise ValueError(f"{what}: is no kind of shared memory")
    if record.kind == "dev-shm":
        _private_path(what, record.name, record.owner)
    elif record.kind == "deleted-file":
        _path(what, record.name)
    else:
        _text(what, record.name)
    if record.mode > 0o7777 or record.size > _MOST_FILE - _LARGEST_PAGE:
        raise ValueError(f"{what}: has an impossible mode or size")
    end = max((address + length for address, length in record.content.iter_runs()), default=0)
    if end > -(-record.size // _LARGEST_PAGE) * _LARGEST_PAGE:
        raise ValueError(f"{what}: has content behind its end")


def _private_path(what: str, name: str, owner: tuple[int, int]) -> None:
    """Of what a restored process has in file systems of its own."""
    _path(what, name)
    if "" in name.split("/")[1:]:
        raise ValueError(f"{what}: is not a name")
    if max(owner) >= 1 << 32:
        raise ValueError(f"{what}: has an impossible owner")


def _shared_folders(manifest: Manifest) -> None:
    """What is not in such a file system would be made in the host's."""
    folders = [folder.path for folder in manifest.shared_folders]
    places = [folder.path for folder in manifest.shared_folders if folder.place]
    for folder in manifest.shared_folders:
        _private_path(f"folder {folder.path[:80]!r}", folder.path, folder.owner)
    files = [record.name for record in manifest.shared_memory if record.kind == "dev-shm"]
    if len({*files, *folders}) != len(files) + len(folders) or len(folders) > MOST:
        raise ValueError("a name in a private folder is there twice, or there are too many")
    for name in (*files, *folders):
        if name not in places and os.path.dirname(name) not in folders:
            raise ValueError(f"{name[:80]!r} is in no folder of the snapshot")


def _ipc(manifest: Manifest) -> None:
    """What is made outside of a namespace of its own would be everybody's."""
    ipc = manifest.ipc
    segments = [record.segment for record in manifest.shared_memory if record.segment is not None]
    if ipc is None:
        if segments:
            raise ValueError("it has System V memory and no IPC namespace")
        return
    named = [queue.name for queue in ipc.posix_queues if not queue.unlinked]
    for records in (segments, ipc.semaphores, ipc.message_queues, named):
        unique = {record if isinstance(record, str) else record.id for record in records}
        if len(unique) != len(records) or len(records) > MOST:
            raise ValueError("an IPC object is there twice, or there are too many")
    for queue in ipc.posix_queues:
        _text("a message queue", queue.name)
        if "/" in queue.name or not 0 < len(os.fsencode(queue.name)) <= _MOST_QUEUE_NAME:
            raise ValueError(f"a message queue cannot be called {queue.name[:80]!r}")
    system_v: list[Segment | SemaphoreSet | MessageQueue] = [*segments, *ipc.semaphores]
    owned = [one.permissions for one in (*system_v, *ipc.message_queues)]
    ids = [i for permissions in owned for i in (permissions.uid, permissions.gid)]
    ids += [i for queue in ipc.posix_queues for i in (queue.uid, queue.gid)]
    if max(ids, default=0) >= 1 << 32:
        raise ValueError("an IPC object has an impossible owner")
    parts = sum(len(queue.messages) for queue in ipc.posix_queues)
    parts += sum(len(queue.messages) for queue in ipc.message_queues)
    if parts + sum(len(record.values) for record in ipc.semaphores) > MOST:
        raise ValueError("there are too many messages or semaphores")


def _memory(process: Process, page: int) -> None:
    memory = process.memory
    vdso = memory.vdso
    for mapping in memory.mappings:
        where = f"mapping at {mapping.start:#x}"
        if mapping.start % page or mapping.end % page or mapping.offset % page:
            raise ValueError(f"{where} is not of whole pages")
        if mapping.offset + mapping.end - mapping.start > _MOST_FILE:
            raise ValueError(f"{where} is behind the end of any file")
        if mapping.file is not None and mapping.object is not None:
            raise ValueError(f"{where} is of two files")
        if vdso is not None and mapping.start < vdso.end and vdso.start < mapping.end:
            raise ValueError(f"{where} overlaps the vdso")
        _text(where, mapping.name)
        _policy(mapping.policy)
    if vdso is not None and len(vdso.text) > _MOST_VDSO:
        raise ValueError("its vdso is too large")
    if len(memory.auxv) > _MOST_AUXV:
        raise ValueError("its auxiliary vector is too large")
    if len(memory.guards) % RUN.size:
        raise ValueError("its table of guards is truncated")
    if len(memory.inherited) % RUN.size:
        raise ValueError("its table of inherited memory is truncated")
    _inside("private memory", memory.content, _private(memory.mappings))
    _inside("guards", Content(runs=memory.guards), _spans(memory.mappings))
    _inside("inherited memory", Content(runs=memory.inherited), _private(memory.mappings))


def _private(mappings: Iterable[Mapping]) -> Iterator[tuple[int, int]]:
    """What is written to any other mapping goes to a file or to somebody else's memory."""
    return _spans(mapping for mapping in mappings if not mapping.shared)


def _spans(mappings: Iterable[Mapping]) -> Iterator[tuple[int, int]]:
    """Start and end of mappings, joined where they touch; ascending."""
    start = end = 0
    for mapping in mappings:
        if mapping.start != end:
            if end:
                yield start, end
            start = mapping.start
        end = mapping.end
    if end:
        yield start, end


def _inside(what: str, content: Content, spans: Iterator[tuple[int, int]]) -> None:
    """Every run, which ascend, is within one span."""
    start = end = before = 0
    for address, length in content.iter_runs():
        if address < before or not length:
            raise ValueError(f"{what}: the run at {address:#x} is empty or overlaps another")
        before = address + length
        while end < address + length:
            start, end = next(spans, (0, 1 << 65))
        if address < start or end > 1 << 64:
            raise ValueError(f"{what}: {address:#x} is in no mapping of its own")


# --- descriptions ------------------------------------------------------------------------------


def _description(manifest: Manifest, index: int, record: AnyDescription) -> None:
    if record.flags >= 1 << 32 or record.flags & _MAKING:
        raise ValueError(f"flags {record.flags:#o} are of no open file")
    match record:
        case RegularFile(file=file):
            _path("file", file.path)
            _locks(record.locks)
        case ObjectFile(object=number):
            kind = manifest.shared_memory[number].kind
            if kind not in _WITH_DESCRIPTOR:
                raise ValueError(f"nothing can have {kind} memory open")
            _locks(record.locks)
        case CharacterDevice(path=path):
            _path("device", path)
        case PipeEnd(writable=writable):
            mode = record.flags & os.O_ACCMODE
            if mode == os.O_ACCMODE or writable != (mode != os.O_RDONLY):
                raise ValueError("is no end of a pipe")
        case Stream(settings=settings):
            if len(settings) not in (0, terminal_queue.SETTINGS):
                raise ValueError("has settings of no terminal")
        case TerminalEnd(master=True, path=path):
            if path not in terminal.MASTERS:
                raise ValueError(f"{path[:80]!r} is no master of a terminal")
        case UnixSocket(peer=peer):
            _unix(record, record.type)
            _pair(manifest, index, record, peer)
        case UnixListener():
            _unix(record, record.type)
            _pending(manifest, record)
        case UnixDatagram(peer=peer):
            _unix(record, socket.SOCK_DGRAM)
            other = None if peer is None else manifest.descriptions[peer]
            if peer is not None and (
                not isinstance(other, UnixDatagram) or (other.name is None and other.peer != index)
            ):
                raise ValueError(f"description {peer} cannot be connected to")
        case InetSocket(family=family, type=kind):
            _socket(family, kind, record.options)
            if kind not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                raise ValueError(f"internet sockets of type {kind} are not saved")
            groups = [group for group, _ in record.memberships]
            peer_address = [record.peer[0]] if record.peer is not None else []
            if len(groups) > MOST:
                raise ValueError("is a member of too many groups")
            for address in (record.address, *groups, *peer_address):
                _internet_address(family, address)
        case ClosedSocket(family=family, type=kind):
            _socket(family, kind, record.options)
        case TcpListener(family=family, address=address):
            _socket(family, socket.SOCK_STREAM, record.options)
            _internet_address(family, address)
        case TimerDescriptor():
            if record.clock > LAST_SIGNAL or record.settime_flags > 3:
                raise ValueError("is no timer")


def _terminals(manifest: Manifest) -> None:
    """Each has a number and at most one master of its own, and controls at most one session."""
    masters = [d.terminal for d in manifest.descriptions if isinstance(d, TerminalEnd) and d.master]
    ends = {d.terminal for d in manifest.descriptions if isinstance(d, TerminalEnd)}
    numbers = {record.number for record in manifest.terminals}
    if len(numbers) != len(manifest.terminals) or len(set(masters)) != len(masters):
        raise ValueError("two terminals have the same number, or one has two masters")
    if len(ends) != len(manifest.terminals):
        raise ValueError("a terminal is open nowhere")
    for record in manifest.terminals:
        try:
            _terminal(record)
        except ValueError as error:
            raise ValueError(f"terminal {record.number}: {error}") from error
    sessions = {(p.terminal, p.sid) for p in manifest.processes if p.terminal is not None}
    controlling = {number for number, _ in sessions}
    if not len(controlling) == len(sessions) == len({session for _, session in sessions}):
        raise ValueError("a terminal controls two sessions, or two terminals one")
    if not controlling <= set(masters):
        raise ValueError("a terminal that was hung up controls a session")


def _terminal(record: Terminal) -> None:
    if len(record.settings) not in (0, terminal_queue.SETTINGS) or len(record.window) != 8:
        raise ValueError("has settings of another size than on Linux")
    typed = sum(map(len, record.typed)) + len(record.unfinished)
    if max(typed, len(record.typed)) > terminal_queue.HOLDS:
        raise ValueError("more was typed than it holds")
    if len(record.printed) > terminal_queue.MOST_PRINTED:
        raise ValueError("more was printed than it holds")


def _locks(locks: Sequence[FileLock]) -> None:
    if len(locks) > MOST:
        raise ValueError("has too many locks")
    for lock in locks:
        if lock.end is not None and not lock.start <= lock.end < _MOST_FILE:
            raise ValueError("has a lock of no bytes")


def _socket(family: int, kind: int, options: Sequence[tuple[int, int, bytes]]) -> None:
    if family not in _INTERNET | {socket.AF_UNIX} or kind not in _SOCKETS:
        raise ValueError(f"sockets of family {family} and type {kind} are not saved")
    for level, option, value in options:
        if not socket_options.is_known(level, option) or len(value) > socket_options.LONGEST:
            raise ValueError(f"socket option {option} of level {level} is not saved")


def _unix(record: UnixSocket | UnixListener | UnixDatagram, kind: int) -> None:
    _socket(socket.AF_UNIX, kind, record.options)
    if record.shutdown > 3:
        raise ValueError("is shut down in an unknown way")
    if record.name is not None:
        if record.name.mode > _MOST_MODE or max(record.name.owner) >= 1 << 32:
            raise ValueError("its file has a mode or owner that no file has")
        if record.name.directory:
            _path("directory", record.name.directory)
    if isinstance(record, UnixListener):
        if record.backlog >= 1 << 31:
            raise ValueError("has an impossible backlog")
        return
    if len(record.peer_name) > _MOST_NAME:
        raise ValueError("its peer has an impossible name")
    for message in record.queue:
        if isinstance(message, UnixMessage) and (
            len(message.rights) > _MOST_RIGHTS or len(message.sender) > _MOST_NAME
        ):
            raise ValueError("has an impossible message")
        data = message.data if isinstance(message, UnixMessage) else message
        if len(data) > unix_queue.LONGEST and (
            kind != socket.SOCK_STREAM or isinstance(message, UnixMessage)
        ):
            raise ValueError("has a message that is too long")


def _pair(manifest: Manifest, index: int, record: UnixSocket, peer: int | None) -> None:
    """Each end of a pair is the other end's."""
    if peer is None:
        return
    other = manifest.descriptions[peer]
    if peer == index or not isinstance(other, UnixSocket) or other.peer != index:
        raise ValueError(f"description {peer} is not the other end of it")
    if other.type != record.type:
        raise ValueError("is of another type than its other end")
    if other.accepted and record.accepted:
        raise ValueError("both ends of a connection were accepted")


def _pending(manifest: Manifest, record: UnixListener) -> None:
    """Sockets that wait to be accepted are connected to nobody yet."""
    for number in record.pending:
        client = manifest.descriptions[number]
        if not isinstance(client, UnixSocket) or client.type != record.type:
            raise ValueError(f"description {number} cannot wait to be accepted")
        if client.accepted or client.peer is not None or client.queue:
            raise ValueError(f"description {number} was accepted already")


def _internet_address(family: int, address: str) -> None:
    try:
        if family not in _INTERNET:
            raise OSError
        socket.inet_pton(family, address.partition("%")[0])
    except (OSError, ValueError):
        raise ValueError(f"{address[:80]!r} is no address of family {family}") from None


# --- processes ---------------------------------------------------------------------------------


def _process(process: Process, architecture: Architecture | None, page: int) -> None:
    if process.pid < 2:
        raise ValueError("is the first process of a namespace, or none")
    _path("executable", process.executable)
    _path("working directory", process.working_directory)
    _memory(process, page)
    _numbers(entry.number for entry in process.descriptors)
    _settings(process)
    _signals(process.pending)
    tids = {thread.tid for thread in process.threads}
    if len(tids) != len(process.threads) or min(tids) < 2:
        raise ValueError("two threads have the same id, or one has none")
    for thread in process.threads:
        try:
            _thread(thread, architecture)
        except ValueError as error:
            raise ValueError(f"thread {thread.tid}: {error}") from error
    if len({timer.id for timer in process.timers}) != len(process.timers):
        raise ValueError("two timers have the same id")
    for timer in process.timers:
        _timer(timer)
    if architecture is not None:
        sizes = {len(action) for action in process.actions.values()}
        if not sizes <= {architecture.sigaction_size}:
            raise ValueError("a signal action has another size than on its architecture")


def _numbers(numbers: Iterable[int]) -> None:
    before = -1
    for number in numbers:
        if not before < number < HIGHEST_DESCRIPTOR:
            raise ValueError(f"descriptor {number} is there twice, or beyond any table")
        before = number


def _settings(process: Process) -> None:
    ids = [*process.credentials.uids, *process.credentials.gids, *process.credentials.groups]
    if max(ids) >= 1 << 32:
        raise ValueError("an id of a user or group has more than 32 bits")
    if not set(process.limits) <= set(_LIMITS):
        raise ValueError("has a resource limit that Linux does not know")
    if any(not -1 <= value < 1 << 64 for pair in process.limits.values() for value in pair):
        raise ValueError("a resource limit is negative")
    if len(process.interval_timers) not in (0, 3) or any(
        len(setting) != TIMER_SIZE for setting in process.interval_timers
    ):
        raise ValueError("has other interval timers than Linux")
    if not set(process.actions) <= set(range(1, LAST_SIGNAL + 1)):
        raise ValueError("has an action for an unknown signal")
    if process.stopped > LAST_SIGNAL or process.umask > 0o7777 or process.dumpable > 2:
        raise ValueError("has impossible settings")
    if any(number >= 1 << 31 for pair in process.attributes.speculation.items() for number in pair):
        raise ValueError("has a setting of speculation that Linux does not know")
    if not -1000 <= process.oom_score_adj <= 1000:
        raise ValueError(f"oom_score_adj {process.oom_score_adj} is not from -1000 to 1000")


def _signals(pending: Sequence[PendingSignal]) -> None:
    for entry in pending:
        if entry.signal > LAST_SIGNAL or len(entry.info) != SIGINFO_SIZE:
            raise ValueError(f"pending signal {entry.signal} is none of Linux")


def _thread(thread: Thread, architecture: Architecture | None) -> None:
    _signals(thread.pending)
    if len(thread.pending) > MOST or len(thread.name) > 15:
        raise ValueError("its name is too long, or more signals are queued than can be")
    if sum(map(len, thread.vector.values())) > _MOST_VECTOR:
        raise ValueError("has more vector state than any processor")
    if thread.rseq is not None:
        rseq = thread.rseq
        if max(rseq.size, rseq.signature, rseq.flags) >= 1 << 32:
            raise ValueError("its rseq registration is none")
    scheduling = thread.scheduling
    if scheduling.policy > 7 or scheduling.priority > 99 or thread.parent_death_signal > 64:
        raise ValueError("has impossible settings")
    if len(scheduling.processors) > MOST:
        raise ValueError("may run on more processors than there are")
    if len(scheduling.deadline) not in (0, 3) or len(scheduling.utilization) not in (0, 2):
        raise ValueError("has more or fewer deadlines or clamps than Linux")
    _policy(scheduling.memory)
    if architecture is not None and len(thread.alternate_stack) != architecture.stack_size:
        raise ValueError("its alternate signal stack has another size than on its architecture")


def _policy(policy: MemoryPolicy | None) -> None:
    if policy is not None and (policy.mode >= 1 << 16 or len(policy.nodes) > MOST):
        raise ValueError("its NUMA policy is none of Linux")


def _timer(timer: PosixTimer) -> None:
    if timer.id >= 1 << 31 or timer.signal > LAST_SIGNAL or timer.notify not in _NOTIFY:
        raise ValueError(f"timer {timer.id} is none of Linux")
    if timer.thread > 1 << 22 or len(timer.setting) != TIMER_SIZE:
        raise ValueError(f"timer {timer.id} is of no thread, or has another setting")
