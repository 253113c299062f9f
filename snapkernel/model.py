"""The manifest: every record of a snapshot, typed, frozen and versioned.

A manifest is encoded as MessagePack and read back through these types, so wrong types, missing
fields and unknown fields are refused when a store, which is untrusted input, is read.
``docs/format.md`` is the normative text. Addresses and sizes are in bytes. Kernel structures that
are only ever handed back to the same kernel interface on the same architecture (``siginfo_t``,
``struct sigaction``, ``stack_t``, ``struct itimerval``) are kept as the bytes the kernel gave.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import msgspec

SCHEMA = 1
"""Version of the manifest's schema. A newer one is refused, an older one is converted."""

RUN = struct.Struct("<QQ")
"""One run of bytes in ``Content.runs``: address, length."""

CHUNK = struct.Struct("<32sIIIIB")
"""One chunk in ``Content.chunks``: BLAKE3 of its bytes, index into ``Manifest.packs``, offset in
that pack, stored length, length, codec."""

ADDRESSES = 1 << 64
"""Addresses that there can be."""

_FEWEST_REGISTERS = 16 * 8
"""Bytes: no 64-bit architecture has fewer registers than sixteen."""

SIGCHLD = 17
"""What a parent is sent when a child ends, on every architecture here (signal(7))."""

Natural = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""A number below 2**63: msgspec cannot check larger ones against a bound."""

Word = int
"""An unsigned number of 64 bits; ``Record.WORDS`` names the fields, to be checked."""

Pid = Annotated[int, msgspec.Meta(ge=0, le=1 << 22)]
DescriptorNumber = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class Record(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Base of all records.

    Attributes:
        WORDS: the fields that are ``Word``.
    """

    WORDS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in self.WORDS:
            value = getattr(self, name)
            for word in value if isinstance(value, tuple) else (value,):
                if not 0 <= word < 1 << 64:
                    raise ValueError(f"{name} {word} is not a word of 64 bits")


class Content(Record, frozen=True, kw_only=True):
    """Bytes at addresses (of an address space, or offsets of a file), kept in chunks.

    Attributes:
        runs: packed ``RUN`` entries, ascending and disjoint. What no run covers is zero.
        chunks: packed ``CHUNK`` entries. Their bytes, one after the other, are the bytes of the
            runs, one after the other.
    """

    runs: bytes = b""
    chunks: bytes = b""

    def __post_init__(self) -> None:
        if len(self.runs) % RUN.size or len(self.chunks) % CHUNK.size:
            raise ValueError("content tables are truncated")

    @property
    def length(self) -> int:
        """Bytes in all runs."""
        return sum(length for _, length in RUN.iter_unpack(self.runs))

    def iter_runs(self) -> Iterator[tuple[int, int]]:
        """Yield ``(address, length)``."""
        return RUN.iter_unpack(self.runs)

    def iter_chunks(self) -> Iterator[tuple[bytes, int, int, int, int, int]]:
        """Yield ``(id, pack, offset, stored, length, codec)``."""
        return CHUNK.iter_unpack(self.chunks)


# --- memory ------------------------------------------------------------------------------------


class FileIdentity(Record, frozen=True, kw_only=True):
    """A file that is not in the snapshot but must be the same on restore.

    Attributes:
        path: as the process saw it.
        size: bytes.
        mtime_ns: time of the last modification.
        build_id: hexadecimal GNU build id of an ELF file, else empty.
    """

    path: str
    size: Natural
    mtime_ns: int
    build_id: str = ""


class CarriedFile(Record, frozen=True, kw_only=True):
    """A file, or symbolic link, that travels with the snapshot.

    Attributes:
        path: as the process saw it.
        size: bytes.
        mode: permission bits, without those that give whoever runs it other rights.
        owner: user and group.
        mtime_ns: time of the last modification.
        device: number of its file system; with ``inode`` and ``born_ns`` it tells, on the host of
            ``Host.boot_id``, whether a file is this very one.
        inode: number.
        born_ns: when it was made; 0 when its file system does not know.
        attributes: extended attributes of the user (xattr(7)), with their whole names.
        target: of a symbolic link, else empty.
        common: others on its host use it as well: a history or setting of the user, or a log that
            the process was started with. Where a host has one, that is used.
        content: its bytes.
    """

    WORDS = ("device", "inode")

    path: str
    size: Natural
    mode: Natural
    owner: tuple[Natural, Natural]
    mtime_ns: int
    device: Word = 0
    inode: Word = 0
    born_ns: int = 0
    attributes: dict[str, bytes] = {}
    target: str = ""
    common: bool = False
    content: Content = Content()


class Permissions(Record, frozen=True, kw_only=True):
    """Who may use a System V object (sysvipc(7), ``struct ipc_perm``), as the process saw it."""

    key: Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
    uid: Natural
    gid: Natural
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o777)]


class Segment(Record, frozen=True, kw_only=True):
    """What a System V shared memory segment (shmget(2)) has beyond its content.

    Attributes:
        id: as shmget(2) returned it.
        permissions: key, owner and mode.
        removed: it goes with its last attachment (shmctl(2), IPC_RMID).
        locked: SHM_LOCK.
    """

    id: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    permissions: Permissions
    removed: bool = False
    locked: bool = False


class SharedFolder(Record, frozen=True, kw_only=True):
    """A folder that a restored process has for itself.

    Attributes:
        path: from the root directory.
        place: it is where a file system in memory is mounted; else it is in such.
        mode: permission bits.
        owner: user and group, as the process saw them.
    """

    path: str
    place: bool = False
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)]
    owner: tuple[Natural, Natural]


class SharedMemory(Record, frozen=True, kw_only=True):
    """An object that is nowhere but in memory, and that mappings and descriptors refer to: shared
    anonymous memory, a memfd, a deleted file, a System V segment, or a file in ``/dev/shm``.

    Attributes:
        kind: ``anonymous``, ``memfd``, ``deleted-file``, ``system-v`` or ``dev-shm``.
        name: of the memfd, or path of the file.
        size: bytes.
        seals: ``F_GET_SEALS`` of a memfd.
        mode: permission bits of a file or memfd.
        owner: user and group of a file in ``/dev/shm``, as the process saw them.
        linkable: a deleted file that never had a name (O_TMPFILE), and may be given one.
        content: its bytes.
        segment: of a System V segment.
    """

    kind: str
    name: str = ""
    size: Natural
    seals: Natural = 0
    mode: Natural = 0
    owner: tuple[Natural, Natural] = (0, 0)
    linkable: bool = False
    content: Content = Content()
    segment: Segment | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.kind == "system-v") != (self.segment is not None):
            raise ValueError(f"shared memory {self.name} of kind {self.kind}: segment or none")


class MemoryPolicy(Record, frozen=True, kw_only=True):
    """Where memory is taken from (set_mempolicy(2)).

    Attributes:
        mode: ``MPOL_*`` with ``MPOL_F_*`` flags.
        nodes: numbers of NUMA nodes.
    """

    mode: Natural
    nodes: tuple[Natural, ...] = ()


class Mapping(Record, frozen=True, kw_only=True):
    """One virtual memory area (vma), as in ``/proc/PID/smaps`` (proc(5)).

    Attributes:
        start: first address.
        end: address after the last.
        protection: ``PROT_*`` bits.
        shared: ``MAP_SHARED``.
        offset: into the file or shared object.
        flags: the two-letter VmFlags that describe how it was made.
        file: index into ``Manifest.files``.
        object: index into ``Manifest.shared_memory``.
        name: ``[heap]``, ``[stack]``, or what ``PR_SET_VMA_ANON_NAME`` gave.
        policy: of mbind(2), if it has one of its own.
    """

    start: Natural
    end: Natural
    protection: Annotated[int, msgspec.Meta(ge=0, le=7)]
    shared: bool = False
    offset: Natural = 0
    flags: tuple[str, ...] = ()
    file: Natural | None = None
    object: Natural | None = None
    name: str = ""
    policy: MemoryPolicy | None = None


class MemoryLayout(Record, frozen=True, kw_only=True):
    """``struct prctl_mm_map`` (prctl(2), PR_SET_MM_MAP) without the pointers."""

    start_code: Natural
    end_code: Natural
    start_data: Natural
    end_data: Natural
    start_brk: Natural
    brk: Natural
    start_stack: Natural
    arg_start: Natural
    arg_end: Natural
    env_start: Natural
    env_end: Natural


class Vdso(Record, frozen=True, kw_only=True):
    """The kernel's mappings: the code that the kernel lends to every process, and its data.

    Attributes:
        start: first address of the block (data pages and text).
        end: address after it.
        text_start: first address of the text.
        text: the text.
        parts: ``(name, start, end)`` of every mapping of the block.
    """

    start: Natural
    end: Natural
    text_start: Natural
    text: bytes
    parts: tuple[tuple[str, Natural, Natural], ...]


FutureLocks = Literal["no", "at once", "on fault"]


class AddressSpace(Record, frozen=True, kw_only=True):
    """The memory of a process.

    Attributes:
        mappings: ascending, without the kernel's own.
        layout: what ``/proc/PID/stat`` shows.
        auxv: ``/proc/PID/auxv``.
        vdso: the kernel's mappings.
        content: private pages that differ from their file or from zero.
        guards: packed ``RUN`` entries of ``MADV_GUARD_INSTALL`` pages (Linux 6.13).
        inherited: packed ``RUN`` entries of what is mapped as it is in the parent, and may be kept
            when this process is forked.
    """

    mappings: tuple[Mapping, ...]
    layout: MemoryLayout
    auxv: bytes
    vdso: Vdso | None = None
    content: Content = Content()
    guards: bytes = b""
    inherited: bytes = b""


# --- threads and signals -----------------------------------------------------------------------


class PendingSignal(Record, frozen=True, kw_only=True):
    """A queued signal with its ``siginfo_t`` (ptrace(2), PTRACE_PEEKSIGINFO)."""

    signal: Annotated[int, msgspec.Meta(ge=1, le=128)]
    info: bytes


class RestartableSequence(Record, frozen=True, kw_only=True):
    """A thread's rseq(2) registration."""

    WORDS = ("address",)

    address: Word
    size: Natural
    signature: Natural
    flags: Natural = 0


class Scheduling(Record, frozen=True, kw_only=True):
    """When and where a thread runs, as sched_getattr(2) and its like tell.

    Attributes:
        policy: ``SCHED_*``.
        nice: -20 to 19, also while another policy makes it meaningless.
        priority: of SCHED_FIFO and SCHED_RR.
        processors: the thread may run on these.
        flags: ``SCHED_FLAG_*``: reset on fork, and those of SCHED_DEADLINE.
        deadline: of SCHED_DEADLINE: runtime, deadline and period in nanoseconds; else empty.
        utilization: least and most, 0 to 1024 (uclamp), or empty where the policy's defaults hold.
        io_priority: class and data of ioprio_get(2), 0 when none was set.
        timer_slack_ns: ``PR_GET_TIMERSLACK``; ``None`` is the process's.
        memory: policy of set_mempolicy(2), if any.
    """

    WORDS = ("deadline",)

    policy: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 0
    nice: Annotated[int, msgspec.Meta(ge=-20, le=19)] = 0
    priority: Annotated[int, msgspec.Meta(ge=0, le=99)] = 0
    processors: tuple[Natural, ...] = ()
    flags: Annotated[int, msgspec.Meta(ge=0, le=7)] = 0
    deadline: tuple[Word, ...] = ()
    utilization: tuple[Annotated[int, msgspec.Meta(ge=0, le=1024)], ...] = ()
    io_priority: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)] = 0
    timer_slack_ns: Natural | None = None
    memory: MemoryPolicy | None = None


class Thread(Record, frozen=True, kw_only=True):
    """One thread.

    Attributes:
        tid: as the process saw it.
        name: ``comm``, which need not be text.
        registers: the general registers, as the regset's bytes.
        vector: floating point and vector state, one entry per component of the architecture.
        system_call: number of the interrupted system call, ``None`` outside of one.
        signal_mask: blocked signals, bit ``n - 1`` for signal ``n``.
        pending: signals queued to this thread.
        robust_list: ``(head, length)`` of get_robust_list(2).
        clear_child_tid: address given to set_tid_address(2).
        rseq: registration, if any.
        alternate_stack: ``stack_t`` of sigaltstack(2).
        parent_death_signal: ``PR_GET_PDEATHSIG``.
        scheduling: sched(7).
    """

    WORDS = (
        "signal_mask",
        "robust_list",
        "clear_child_tid",
    )

    tid: Pid
    name: bytes
    registers: bytes
    vector: dict[str, bytes]
    system_call: int | None = None
    signal_mask: Word
    pending: tuple[PendingSignal, ...] = ()
    robust_list: tuple[Word, Word] = (0, 0)
    clear_child_tid: Word = 0
    rseq: RestartableSequence | None = None
    alternate_stack: bytes = b""
    parent_death_signal: Natural = 0
    scheduling: Scheduling = Scheduling()


class PosixTimer(Record, frozen=True, kw_only=True):
    """A timer of timer_create(2), as in ``/proc/PID/timers`` (Linux 3.10).

    Attributes:
        id: as the process knows it.
        clock: clock id.
        signal: signal number.
        value: ``sigev_value``.
        notify: ``SIGEV_*``.
        thread: tid for ``SIGEV_THREAD_ID``.
        setting: ``struct itimerspec``: interval and remaining time.
        overrun: timer_getoverrun(2).
    """

    WORDS = ("value",)

    id: Natural
    clock: int
    signal: Natural
    value: Word
    notify: Natural
    thread: Natural = 0
    setting: bytes
    overrun: Natural = 0


# --- descriptors -------------------------------------------------------------------------------


OwnerKind = Literal["thread", "process", "group"]


class FileOwner(Record, frozen=True, kw_only=True):
    """Who is told, by a signal, that a file is ready (fcntl(2), F_SETOWN_EX).

    Attributes:
        kind: what ``id`` is: a tid, a pid or the number of a process group.
        id: as the process sees it; 0 is nobody.
        signal: ``F_SETSIG``; 0 is SIGIO.
    """

    kind: OwnerKind = "process"
    id: Pid = 0
    signal: Annotated[int, msgspec.Meta(ge=0, le=127)] = 0


class Description(Record, frozen=True, kw_only=True, tag_field="kind"):
    """Base of open file descriptions (open(2)).

    Attributes:
        flags: file status flags, without ``O_CLOEXEC``.
        owner: who is told when it is ready.
    """

    flags: Natural = 0
    owner: FileOwner | None = None


LockKind = Literal["flock", "posix", "ofd", "lease"]


class FileLock(Record, frozen=True, kw_only=True):
    """A lock on a file.

    Attributes:
        kind: ``flock`` (flock(2), the whole file), ``posix`` (fcntl(2), F_SETLK, of the process),
            ``ofd`` (F_OFD_SETLK, of the description) or ``lease`` (F_SETLEASE, the whole file).
        write: exclusive, not shared.
        start: first byte.
        end: last byte; ``None`` is the end of the file, wherever that is.
        owner: pid of the process that has a ``posix`` lock.
    """

    kind: LockKind
    write: bool
    start: Natural = 0
    end: Natural | None = None
    owner: Natural = 0


class RegularFile(Description, frozen=True, kw_only=True, tag="file"):
    """A file or directory that is opened again by its path.

    Attributes:
        position: file offset; of a directory, a place that only its file system understands.
        file: what it was.
        directory: it is a directory.
        inode: of a directory, to which the position belongs.
        locks: taken through this description.
    """

    WORDS = ("inode",)

    position: Natural = 0
    file: FileIdentity
    directory: bool = False
    inode: Word = 0
    locks: tuple[FileLock, ...] = ()


class ObjectFile(Description, frozen=True, kw_only=True, tag="object"):
    """An open memfd or deleted file; ``object`` is an index into ``Manifest.shared_memory``,
    ``locks`` as in ``RegularFile``."""

    position: Natural = 0
    object: Natural
    locks: tuple[FileLock, ...] = ()


class CharacterDevice(Description, frozen=True, kw_only=True, tag="device"):
    """A device without state, opened again by its path."""

    path: str
    device: Natural


class PathDescriptor(Description, frozen=True, kw_only=True, tag="path"):
    """A place in the file system that was not opened: O_PATH (open(2))."""

    path: str


class PipeEnd(Description, frozen=True, kw_only=True, tag="pipe"):
    """One end of ``Manifest.pipes[pipe]``."""

    pipe: Natural
    writable: bool


class FifoEnd(Description, frozen=True, kw_only=True, tag="fifo"):
    """One end of a FIFO (fifo(7)).

    Attributes:
        pipe: index into ``Manifest.pipes``.
        path: where it stands.
        unwritten: it is read from, and its first writer has not come yet.
    """

    pipe: Natural
    path: str
    unwritten: bool = False


class Stream(Description, frozen=True, kw_only=True, tag="stream"):
    """A standard stream whose other end is outside; the restorer gives a new one.

    Attributes:
        stream: 0 input, 1 output, 2 error.
        was: what it was, for the reader.
        settings: of a terminal: ``struct termios2`` (``TCGETS2``).
    """

    stream: Annotated[int, msgspec.Meta(ge=0, le=2)]
    was: str
    settings: bytes = b""


class TerminalEnd(Description, frozen=True, kw_only=True, tag="terminal"):
    """One side of ``Manifest.terminals[terminal]``.

    Attributes:
        master: the controlling side; else a description of ``/dev/pts/N``.
        path: by which the master was opened.
        exclusive: ``TIOCEXCL`` of this side.
    """

    terminal: Natural
    master: bool = False
    path: str = ""
    exclusive: bool = False


class PidDescriptor(Description, frozen=True, kw_only=True, tag="pidfd"):
    """pidfd_open(2) of ``pid``, a process of the snapshot."""

    pid: Pid


class EventDescriptor(Description, frozen=True, kw_only=True, tag="eventfd"):
    """eventfd(2)."""

    WORDS = ("count",)

    count: Word
    semaphore: bool = False


class EpollTarget(Record, frozen=True, kw_only=True):
    """One registration of epoll_ctl(2): ``descriptor`` as it was when added; ``description`` is
    the index of what is watched."""

    WORDS = ("data",)

    descriptor: DescriptorNumber
    description: Natural
    events: Natural
    data: Word


class Epoll(Description, frozen=True, kw_only=True, tag="epoll"):
    """epoll(7)."""

    targets: tuple[EpollTarget, ...] = ()


class TimerDescriptor(Description, frozen=True, kw_only=True, tag="timerfd"):
    """timerfd_create(2). Times in nanoseconds, relative; ``value`` 0 when disarmed."""

    clock: Natural
    ticks: Natural = 0
    settime_flags: Natural = 0
    value: Natural = 0
    interval: Natural = 0


MOST_WATCHES = 1 << 16
"""The highest number of an inotify watch that is restored, by counting up to it."""


class InotifyWatch(Record, frozen=True, kw_only=True):
    """What inotify_add_watch(2) was told.

    Attributes:
        number: of the watch, from 1 on.
        path: of the file or directory.
        mask: ``IN_*`` bits.
    """

    number: Annotated[int, msgspec.Meta(ge=1, le=MOST_WATCHES)]
    path: str
    mask: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class Inotify(Description, frozen=True, kw_only=True, tag="inotify"):
    """inotify(7), without waiting events."""

    watches: tuple[InotifyWatch, ...] = ()


class SignalDescriptor(Description, frozen=True, kw_only=True, tag="signalfd"):
    """signalfd(2)."""

    WORDS = ("mask",)

    mask: Word


class UnixName(Record, frozen=True, kw_only=True):
    """What a unix(7) socket is bound to.

    Attributes:
        name: ``sun_path`` without the zero byte at its end; an abstract name begins with one.
        file: a path that led to the socket; else the name is abstract, or its file is gone.
        mode: permission bits of the file.
        owner: user and group of the file.
        directory: the working directory, when the path is relative.
        private: its file is in a temporary folder of ``Manifest.shared_folders``.
    """

    name: Annotated[bytes, msgspec.Meta(min_length=1, max_length=108)]
    file: bool = False
    mode: Natural = 0
    owner: tuple[Natural, Natural] = (0, 0)
    directory: str = ""
    private: bool = False

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        if self.name[0] and 0 in self.name:
            raise ValueError(f"{self.name!r} cannot be the name of a socket")
        if "\0" in self.directory:
            raise ValueError(f"{self.directory!r} cannot be a directory")


class UnixMessage(Record, frozen=True, kw_only=True):
    """A message in the queue of a unix socket, with what came along.

    Attributes:
        data: its bytes.
        rights: indices of the descriptions on their way in it (SCM_RIGHTS).
        sender: name of the datagram socket that it came from.
    """

    data: bytes
    rights: tuple[Natural, ...] = ()
    sender: bytes = b""


UnixQueue = tuple[bytes | UnixMessage, ...]
"""Messages in order; one that is nothing but bytes is these."""


class UnixSocket(Description, frozen=True, kw_only=True, tag="unix"):
    """A stream or seqpacket socket that is connected, was, or can be.

    Attributes:
        type: ``SOCK_*``.
        connected: it has been, though its peer may be gone.
        peer: index of the description of the other end, ``None`` when it is closed.
        name: what it is bound to.
        accepted: it came from accept(2), and has its name from the listener.
        peer_name: name of a peer that is closed.
        reset: the peer was closed with something unread: the next read says ECONNRESET.
        queue: what is to be read from it. Of a stream, a ``UnixMessage`` ends where descriptors
            that came with it end.
        shutdown: bit 0 no more reading, bit 1 no more writing.
        options: ``(level, option, value)``.
    """

    type: Natural
    connected: bool = True
    peer: Natural | None = None
    name: UnixName | None = None
    accepted: bool = False
    peer_name: bytes = b""
    reset: bool = False
    queue: UnixQueue = ()
    shutdown: Natural = 0
    options: tuple[tuple[int, int, bytes], ...] = ()


class UnixListener(Description, frozen=True, kw_only=True, tag="unix-listener"):
    """A stream or seqpacket socket that listens.

    Attributes:
        pending: indices of the sockets of the snapshot that have connected and were not accepted.
    """

    type: Natural
    name: UnixName
    backlog: Natural
    pending: tuple[Natural, ...] = ()
    shutdown: Natural = 0
    options: tuple[tuple[int, int, bytes], ...] = ()


class UnixDatagram(Description, frozen=True, kw_only=True, tag="unix-datagram"):
    """A datagram socket.

    Attributes:
        connected: to a socket; ``peer`` is its index, ``peer_name`` the name of one that is not in
            the snapshot. Neither: it is closed.
        queue: ``UnixMessage`` where a message has a sender's name or descriptors.
    """

    connected: bool = False
    peer: Natural | None = None
    peer_name: bytes = b""
    name: UnixName | None = None
    queue: UnixQueue = ()
    shutdown: Natural = 0
    options: tuple[tuple[int, int, bytes], ...] = ()


Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class InetSocket(Description, frozen=True, kw_only=True, tag="inet"):
    """A UDP socket, or a TCP socket that is bound and no more.

    Attributes:
        type: ``SOCK_*``.
        address: numeric, with a scope's name (``fe80::1%eth0``) where it has one.
        port: 0 when it is not bound.
        peer: address and port that it is connected to.
        memberships: multicast groups, each with the name of the interface.
    """

    family: Natural
    type: Natural
    address: str
    port: Port = 0
    peer: tuple[str, Port] | None = None
    memberships: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[int, int, bytes], ...] = ()


class TcpListener(Description, frozen=True, kw_only=True, tag="tcp-listener"):
    """A listening TCP socket. ``address`` is numeric, ``options`` as in ``UnixSocket``."""

    family: Natural
    address: str
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    backlog: Natural
    options: tuple[tuple[int, int, bytes], ...] = ()


class ClosedSocket(Description, frozen=True, kw_only=True, tag="closed-socket"):
    """A socket that comes back unconnected: its peer is elsewhere, or it never had one.

    Attributes:
        was: what it was, for the reader.
    """

    family: Natural
    type: Natural
    protocol: Natural = 0
    was: str = ""
    options: tuple[tuple[int, int, bytes], ...] = ()


class PosixMessageQueue(Description, frozen=True, kw_only=True, tag="posix-queue"):
    """A description of ``IpcNamespace.posix_queues[queue]`` (mq_open(3))."""

    queue: Natural


AnyDescription = (
    RegularFile
    | ObjectFile
    | CharacterDevice
    | PathDescriptor
    | PipeEnd
    | FifoEnd
    | Stream
    | PidDescriptor
    | TerminalEnd
    | EventDescriptor
    | Epoll
    | TimerDescriptor
    | SignalDescriptor
    | Inotify
    | UnixSocket
    | UnixListener
    | UnixDatagram
    | InetSocket
    | TcpListener
    | ClosedSocket
    | PosixMessageQueue
)


class Pipe(Record, frozen=True, kw_only=True):
    """The buffer between two ends.

    Attributes:
        size: as ``F_GETPIPE_SZ``.
        data: what was not read yet: one piece, or one for each packet of an O_DIRECT pipe.
    """

    size: Natural
    data: tuple[bytes, ...] = ()


MOST_TERMINALS = 4096
"""Numbers that are restored, by making all below: as many as kernel.pty.max allows by default."""


class Terminal(Record, frozen=True, kw_only=True):
    """A pseudo-terminal (pty(7)). One without a master's description was hung up.

    Attributes:
        number: N of ``/dev/pts/N``.
        settings: ``struct termios2`` (``TCGETS2``); empty when it was hung up.
        window: ``struct winsize``.
        packets: packet mode, ``TIOCPKT``.
        locked: ``TIOCSPTLCK``.
        opened: the slave is open, or was.
        foreground: its foreground process group, 0 for none.
        typed: what waits for the slave's reader: lines that are complete, or ended by an end of
            file (the empty one is an end of file alone).
        unfinished: the same: what follows them, or all of it where input is not by lines.
        printed: what waits for the master's reader.
        stopped: output is, by a call (``TCOOFF`` of tcflow(3)) or a character (``VSTOP``).
    """

    number: Annotated[int, msgspec.Meta(ge=0, lt=MOST_TERMINALS)]
    settings: bytes = b""
    window: bytes = bytes(8)
    packets: bool = False
    locked: bool = False
    opened: bool = True
    foreground: Pid = 0
    typed: tuple[bytes, ...] = ()
    unfinished: bytes = b""
    printed: bytes = b""
    stopped: Literal["no", "call", "character"] = "no"


class Descriptor(Record, frozen=True, kw_only=True):
    """An entry of the descriptor table; ``description`` is an index into
    ``Manifest.descriptions``."""

    number: DescriptorNumber
    description: Natural
    close_on_exec: bool = False


# --- the process -------------------------------------------------------------------------------


class Credentials(Record, frozen=True, kw_only=True):
    """credentials(7) and capabilities(7), as the process itself saw them.

    Attributes:
        uids: real, effective, saved, file system.
        gids: the same of groups.
        groups: supplementary groups.
        capabilities: inheritable, permitted, effective, bounding, ambient.
        no_new_privileges: prctl(2).
    """

    WORDS = ("capabilities",)

    uids: tuple[Natural, Natural, Natural, Natural]
    gids: tuple[Natural, Natural, Natural, Natural]
    groups: tuple[Natural, ...] = ()
    capabilities: tuple[Word, Word, Word, Word, Word] = (0, 0, 0, 0, 0)
    no_new_privileges: bool = False


class Attributes(Record, frozen=True, kw_only=True):
    """Settings of personality(2), prctl(2) and membarrier(2); those that the kernel keeps for each
    thread are the main thread's.

    Attributes:
        personality: execution domain and flags.
        securebits: ``SECBIT_*`` (capabilities(7)), with ``PR_SET_KEEPCAPS``.
        time_stamp_counter: ``PR_GET_TSC``: 1 may be read, 2 raises SIGSEGV.
        machine_check: ``PR_MCE_KILL_GET``.
        io_flusher: ``PR_GET_IO_FLUSHER``.
        deny_write_execute: ``PR_GET_MDWE``.
        memory_merge: ``PR_GET_MEMORY_MERGE``.
        speculation: ``PR_GET_SPECULATION_CTRL`` by kind, where something was chosen.
        membarrier: commands that were registered for; ``None`` where the kernel does not tell.
    """

    WORDS = ("personality",)

    personality: Word = 0
    securebits: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 0
    time_stamp_counter: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    machine_check: Annotated[int, msgspec.Meta(ge=0, le=2)] = 2
    io_flusher: bool = False
    deny_write_execute: Annotated[int, msgspec.Meta(ge=0, le=3)] = 0
    memory_merge: bool = False
    speculation: dict[Natural, Natural] = {}
    membarrier: Natural | None = None


class Process(Record, frozen=True, kw_only=True):
    """One process.

    Attributes:
        pid: as the process itself saw it; so are ``ppid``, ``pgid`` and ``sid``. 0 is outside.
        exit_signal: what its parent is sent when it ends (clone(2)).
        executable: path of ``/proc/PID/exe``.
        arguments: the command line, for the reader (it is in the memory as well).
        working_directory: path.
        umask: umask(2).
        file: index of the executable in ``Manifest.files``.
        actions: ``struct kernel_sigaction`` by signal number.
        pending: signals queued to the process.
        interval_timers: ``struct itimerval`` of getitimer(2), by ``ITIMER_*``.
        limits: soft and hard limit by ``RLIMIT_*`` number; ``-1`` is unlimited.
        dumpable: ``PR_GET_DUMPABLE``.
        child_subreaper: ``PR_GET_CHILD_SUBREAPER``.
        thp_disabled: ``PR_GET_THP_DISABLE``.
        thp_except_advised: areas with MADV_HUGEPAGE are not meant by that (Linux 6.18).
        oom_score_adj: proc(5).
        timer_slack_ns: ``PR_GET_TIMERSLACK`` of the main thread.
        attributes: further settings.
        locks_future_memory: MCL_FUTURE of mlockall(2), without or with MCL_ONFAULT.
        stopped: signal of a group stop, 0 when running.
        terminal: index of the controlling terminal in ``Manifest.terminals``, where the leader of
            its session is in the snapshot.
    """

    pid: Pid
    ppid: Pid
    pgid: Pid
    sid: Pid
    exit_signal: Natural = SIGCHLD
    executable: str
    file: Natural
    arguments: tuple[str, ...]
    working_directory: str
    umask: Natural
    memory: AddressSpace
    threads: tuple[Thread, ...]
    descriptors: tuple[Descriptor, ...]
    credentials: Credentials
    actions: dict[int, bytes]
    pending: tuple[PendingSignal, ...] = ()
    interval_timers: tuple[bytes, ...] = ()
    timers: tuple[PosixTimer, ...] = ()
    limits: dict[int, tuple[int, int]]
    dumpable: Natural = 1
    child_subreaper: bool = False
    thp_disabled: bool = False
    thp_except_advised: bool = False
    oom_score_adj: int = 0
    timer_slack_ns: Natural = 50_000
    attributes: Attributes = Attributes()
    locks_future_memory: FutureLocks = "no"
    stopped: Natural = 0
    terminal: Natural | None = None


class Zombie(Record, frozen=True, kw_only=True):
    """A process that has ended, and whose parent has not waited for it.

    Attributes:
        pid: as the process itself saw it; so are ``ppid``, ``pgid`` and ``sid``.
        status: as of waitpid(2).
        exit_signal: as of a process.
        name: of its program, for the reader.
    """

    pid: Pid
    ppid: Pid
    pgid: Pid
    sid: Pid
    status: Natural
    exit_signal: Natural = SIGCHLD
    name: str = ""


class Clocks(Record, frozen=True, kw_only=True):
    """The clocks at the freeze, in nanoseconds, as the process saw them (time_namespaces(7))."""

    monotonic_ns: int
    boottime_ns: int
    realtime_ns: int


class Host(Record, frozen=True, kw_only=True):
    """Where the snapshot was taken: portability facts.

    Attributes:
        name: host name.
        architecture: a folder name of ``arch/``.
        machine: ``uname -m``.
        kernel: ``uname -r``.
        processors: how many it had.
        page_size: bytes.
        cpu_features: the processor's features that programs may rely on.
        boot_id: ``/proc/sys/kernel/random/boot_id``: another one each time the host is booted.
    """

    name: str
    architecture: str
    machine: str
    kernel: str
    processors: Natural = 1
    page_size: Natural
    cpu_features: tuple[str, ...] = ()
    boot_id: str = ""


class Note(Record, frozen=True, kw_only=True):
    """Something the user should know about the snapshot (a connection that comes back closed)."""

    object: str
    status: str
    reason: str = ""


class SemaphoreSet(Record, frozen=True, kw_only=True):
    """System V semaphores (semget(2)): id, and the value of each."""

    id: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    permissions: Permissions
    values: tuple[Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)], ...]


class MessageQueue(Record, frozen=True, kw_only=True):
    """A System V message queue (msgget(2)).

    Attributes:
        id: as msgget(2) returned it.
        permissions: key, owner and mode.
        most_bytes: ``msg_qbytes``.
        messages: type and text of each, the oldest first.
    """

    id: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    permissions: Permissions
    most_bytes: Natural
    messages: tuple[tuple[Natural, bytes], ...] = ()


class PosixQueue(Record, frozen=True, kw_only=True):
    """A POSIX message queue (mq_overview(7)).

    Attributes:
        name: without the slash.
        unlinked: it has lost its name (mq_unlink(3)).
        mode: permission bits.
        uid: of its owner, as the process saw it.
        gid: the same.
        most_messages: ``mq_maxmsg``.
        message_size: ``mq_msgsize``, bytes.
        messages: priority and text of each, the next one first.
    """

    name: str
    unlinked: bool = False
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)]
    uid: Natural
    gid: Natural
    most_messages: Natural
    message_size: Natural
    messages: tuple[tuple[Natural, bytes], ...] = ()


class IpcNamespace(Record, frozen=True, kw_only=True):
    """An IPC namespace (ipc_namespaces(7)) that a restored process needs for itself. Its segments
    are in ``Manifest.shared_memory``."""

    semaphores: tuple[SemaphoreSet, ...] = ()
    message_queues: tuple[MessageQueue, ...] = ()
    posix_queues: tuple[PosixQueue, ...] = ()


class Manifest(Record, frozen=True, kw_only=True):
    """A snapshot, complete in itself.

    Attributes:
        schema: ``SCHEMA``.
        id: 32 hexadecimal digits, random.
        name: given by the user, may be empty.
        created: ISO 8601, UTC.
        mode: ``live`` or ``stop``.
        processes: every parent before its children; the first is an ancestor of all.
        zombies: descendants that have ended.
        files: mapped files that must be there on restore, most of them the same.
        carried: files that travel with the snapshot.
        packs: names of the packs that hold the chunks.
        memory_bytes: bytes of process memory that the snapshot holds.
        stored_bytes: bytes that it added to the store, packs and index.
        shared_folders: folders that restored processes have for themselves, each after the one that
            it is in: ``/dev/shm``, temporary folders of sockets, and folders in these.
        ipc: System V objects and POSIX message queues; ``None`` when there are none.
        jupyter: the connection file's entries when the process is a Jupyter kernel.
    """

    schema: int
    id: str
    name: str = ""
    created: str
    mode: str
    software: str
    host: Host
    clocks: Clocks
    processes: tuple[Process, ...]
    zombies: tuple[Zombie, ...] = ()
    descriptions: tuple[AnyDescription, ...] = ()
    pipes: tuple[Pipe, ...] = ()
    terminals: tuple[Terminal, ...] = ()
    shared_memory: tuple[SharedMemory, ...] = ()
    shared_folders: tuple[SharedFolder, ...] = ()
    ipc: IpcNamespace | None = None
    files: tuple[FileIdentity, ...] = ()
    carried: tuple[CarriedFile, ...] = ()
    packs: tuple[str, ...] = ()
    memory_bytes: Natural = 0
    stored_bytes: Natural = 0
    pause_s: float = 0.0
    jupyter: dict[str, str | int] | None = None
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for what no process can be: a store is untrusted input."""
        self._check_tree()
        for description in self.descriptions:
            self._check_description(description)
        for process in self.processes:
            what = f"process {process.pid}"
            _index(f"{what}: executable", process.file, self.files)
            for descriptor in process.descriptors:
                where = f"{what}: descriptor {descriptor.number}"
                _index(where, descriptor.description, self.descriptions)
            if process.terminal is not None:
                _index(f"{what}: controlling terminal", process.terminal, self.terminals)
            self._check_memory(what, process.memory)
            self._check_threads(what, process)

    def _check_tree(self) -> None:
        if not self.processes:
            raise ValueError("it has no process")
        pids = [process.pid for process in self.processes]
        tids = [thread.tid for process in self.processes for thread in process.threads]
        if len(set(tids)) != len(tids):
            raise ValueError("two threads have the same id")
        for position, process in enumerate(self.processes[1:], 1):
            orphan = process.ppid == 1 and process.sid in pids[:position]
            if process.ppid not in pids[:position] and not orphan:
                raise ValueError(f"process {process.pid}: its parent is not before it")
        for zombie in self.zombies:
            if zombie.ppid not in pids or zombie.pid in tids:
                raise ValueError(f"zombie {zombie.pid}: has no parent, or is somebody else")

    def _check_description(self, description: AnyDescription) -> None:
        match description:
            case ObjectFile(object=number):
                _index("shared object of a descriptor", number, self.shared_memory)
            case PipeEnd(pipe=number) | FifoEnd(pipe=number):
                _index("pipe of a descriptor", number, self.pipes)
            case PosixMessageQueue(queue=number):
                queues = () if self.ipc is None else self.ipc.posix_queues
                _index("message queue of a descriptor", number, queues)
            case TerminalEnd(terminal=number):
                _index("terminal of a descriptor", number, self.terminals)
            case UnixSocket() | UnixDatagram():
                if description.peer is not None:
                    _index("peer of a socket", description.peer, self.descriptions)
                for message in description.queue:
                    for number in message.rights if isinstance(message, UnixMessage) else ():
                        _index("descriptor on its way", number, self.descriptions)
            case UnixListener(pending=pending):
                for number in pending:
                    _index("pending connection", number, self.descriptions)
            case Epoll(targets=targets):
                for target in targets:
                    _index("watched by epoll", target.description, self.descriptions)

    def _check_memory(self, what: str, memory: AddressSpace) -> None:
        end = 0
        for mapping in memory.mappings:
            where = f"{what}: mapping at {mapping.start:#x}"
            if not end <= mapping.start < mapping.end <= ADDRESSES:
                raise ValueError(f"{where} is empty, too large or overlaps the one before")
            end = mapping.end
            if mapping.file is not None:
                _index(where, mapping.file, self.files)
            if mapping.object is not None:
                _index(where, mapping.object, self.shared_memory)
        vdso = memory.vdso
        if vdso is None:
            return
        inside = [(vdso.text_start, vdso.text_start + len(vdso.text))]
        inside += [(start, end) for _, start, end in vdso.parts]
        if not all(vdso.start <= start < end <= vdso.end <= ADDRESSES for start, end in inside):
            raise ValueError(f"{what}: a part of the vdso is outside of it")

    def _check_threads(self, what: str, process: Process) -> None:
        if not process.threads or process.threads[0].tid != process.pid:
            raise ValueError(f"{what}: its first thread is not the main thread")
        size = len(process.threads[0].registers)
        for thread in process.threads:
            if len(thread.registers) != size or size < _FEWEST_REGISTERS:
                raise ValueError(f"{what}: thread {thread.tid} has too few or too many registers")


def _index(what: str, number: int, table: tuple[object, ...]) -> None:
    if number >= len(table):
        raise ValueError(f"{what}: refers to entry {number} of {len(table)}")
