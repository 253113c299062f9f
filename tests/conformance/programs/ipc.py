"""System V shared memory, semaphores and queues; POSIX queues, shared memory and semaphores.

What has a key or a name here outlives a program that is stopped: the tests remove it
(``support.leftovers``).
"""

import ctypes
import ctypes.util
import errno
import mmap
import multiprocessing
import os
import select
import struct
import sys
from contextlib import suppress
from multiprocessing import resource_tracker, shared_memory

from protocol import UnsupportedError, Worker, call, expect, main, pattern, program

PAGE = mmap.PAGESIZE
IPC_CREAT, IPC_EXCL, IPC_NOWAIT, IPC_RMID, IPC_STAT = 0o1000, 0o2000, 0o4000, 0, 2
SHM_RDONLY, GETVAL, GETALL, SETVAL, SETALL = 0o10000, 12, 13, 16, 17
UNDO = 0o10000


def a_key() -> int:
    """One that no other process of this test uses, but a copy of this one."""
    return 0x51000000 | os.getpid()


def a_name() -> str:
    """The same for names."""
    return f"/snapkernel-{os.getpid()}"


def attach(number: int, address: int = 0, flags: int = 0) -> int:
    return call("shmat", number, address, flags)


def segment_status(number: int) -> tuple[int, ...]:
    """key, uid, gid, mode and size (struct shmid_ds of 64-bit machines)."""
    space = ctypes.create_string_buffer(112)
    call("shmctl", number, IPC_STAT, ctypes.addressof(space))
    key, uid, gid, _, _, mode, size = struct.unpack_from("=i5I24xQ", space.raw)
    return key, uid, gid, mode, size


def mapped() -> list[str]:
    with open("/proc/self/maps") as maps:
        return [line for line in maps if "SYSV" in line]


# --- System V shared memory ----------------------------------------------------------------------


@program
def segment_removed():
    """The usual way: removed at once, and gone with its last attachment."""
    number = call("shmget", 0, 5000, IPC_CREAT | 0o600)
    address = attach(number)
    call("shmctl", number, IPC_RMID, 0)
    data = pattern(5000)
    ctypes.memmove(address, data, len(data))
    before = segment_status(number)
    yield
    expect("content", ctypes.string_at(address, 5000), data)
    expect("status", segment_status(number), before)
    ctypes.memmove(address, b"changed", 7)
    again = attach(number)
    expect("seen at another place", ctypes.string_at(again, 7), b"changed")
    call("shmdt", address)
    call("shmdt", again)
    try:
        segment_status(number)
    except OSError as error:
        expect("after the last one", error.errno, errno.EINVAL)
    else:
        raise AssertionError("the segment is still there")


@program
def segment_with_key():
    """Found by its key; in two places, one of them for reading only. With another in between, so
    that ids differ."""
    key = a_key()
    between = call("shmget", 0, PAGE, IPC_CREAT | 0o600)
    number = call("shmget", key, 3 * PAGE, IPC_CREAT | IPC_EXCL | 0o640)
    try:
        address, reader = attach(number), attach(number, 0, SHM_RDONLY)
        call("shmctl", between, IPC_RMID, 0)
        ctypes.memmove(address, pattern(3 * PAGE), 3 * PAGE)
        before, places = segment_status(number), mapped()
        yield
        expect("found by key", call("shmget", key, 0, 0), number)
        expect("status", segment_status(number), before)
        expect("mappings", mapped(), places)
        expect("content", ctypes.string_at(reader, 3 * PAGE), pattern(3 * PAGE))
        ctypes.memmove(address + PAGE, b"changed", 7)
        expect("seen for reading", ctypes.string_at(reader + PAGE, 7), b"changed")
        try:
            call("mprotect", reader, PAGE, 3)
        except OSError as error:
            expect("writing where reading was asked for", error.errno, errno.EACCES)
        else:
            raise AssertionError("what is attached for reading can be written")
        call("shmdt", reader)
        call("shmdt", address)
    finally:
        with suppress(OSError):
            call("shmctl", number, IPC_RMID, 0)


@program
def segment_in_parts():
    """Some of it unmapped, some protected, a page untouched."""
    number = call("shmget", 0, 8 * PAGE, IPC_CREAT | 0o600)
    address, whole = attach(number), attach(number)
    call("shmctl", number, IPC_RMID, 0)
    ctypes.memmove(whole, pattern(4 * PAGE), 4 * PAGE)
    call("munmap", address + 2 * PAGE, PAGE)
    call("mprotect", address + 4 * PAGE, PAGE, 1)
    places = mapped()
    yield
    expect("mappings", mapped(), places)
    expect("content", ctypes.string_at(whole, 4 * PAGE), pattern(4 * PAGE))
    expect("in parts", ctypes.string_at(address + 3 * PAGE, PAGE), pattern(4 * PAGE)[3 * PAGE :])
    expect("untouched", ctypes.string_at(whole + 4 * PAGE, 4 * PAGE), bytes(4 * PAGE))


@program
def segment_not_attached():
    """Made, filled and left alone for now."""
    number = call("shmget", a_key(), 2 * PAGE, IPC_CREAT | IPC_EXCL | 0o600)
    try:
        address = attach(number)
        ctypes.memmove(address, pattern(2 * PAGE), 2 * PAGE)
        call("shmdt", address)
        yield
        expect("mappings", mapped(), [])
        address = attach(number)
        expect("content", ctypes.string_at(address, 2 * PAGE), pattern(2 * PAGE))
    finally:
        call("shmctl", number, IPC_RMID, 0)


@program
def segment_beside_memory_file():
    """An id and an inode are numbers of different kinds."""
    memfd = os.memfd_create("beside")
    os.ftruncate(memfd, PAGE)
    os.pwrite(memfd, b"of the file", 0)
    made = [call("shmget", 0, PAGE, IPC_CREAT | 0o600) for _ in range(4)]
    places = [attach(number) for number in made]
    for number, place in zip(made, places, strict=True):
        call("shmctl", number, IPC_RMID, 0)
        ctypes.memmove(place, b"segment %d" % number, 20)
    shared = mmap.mmap(memfd, PAGE)
    yield
    expect("file", shared[:11], b"of the file")
    for number, place in zip(made, places, strict=True):
        expect("segment", ctypes.string_at(place), b"segment %d" % number)


# --- System V semaphores and queues --------------------------------------------------------------


def operate(number: int, *operations: tuple[int, int, int]) -> None:
    packed = b"".join(struct.pack("=Hhh", *operation) for operation in operations)
    call("semop", number, packed, len(operations))


@program
def semaphores():
    """Values, key and id; a thread waits for one of them."""
    key = a_key()
    number = call("semget", key, 3, IPC_CREAT | IPC_EXCL | 0o600)
    try:
        operate(number, (0, 5, 0), (2, 7, 0))
        worker = Worker(lambda: _wait_for(number)).blocked()
        yield
        expect("found by key", call("semget", key, 0, 0), number)
        expect("values", [call("semctl", number, i, GETVAL) for i in range(3)], [5, 0, 7])
        operate(number, (1, 1, 0))
        expect("waited for", worker.result(), "had")
        operate(number, (0, -5, IPC_NOWAIT))
        expect("values", [call("semctl", number, i, GETVAL) for i in range(3)], [0, 0, 7])
    finally:
        call("semctl", number, 0, IPC_RMID)


def _wait_for(number: int) -> str:
    """semop(2) answers EINTR to a mere stop."""
    while True:
        try:
            operate(number, (1, -1, 0))
            return "had"
        except OSError as error:
            if error.errno != errno.EINTR:
                raise


@program
def message_queue():
    """Messages of several types, in their order; one that cannot be sent any more."""
    key = a_key()
    number = call("msgget", key, IPC_CREAT | IPC_EXCL | 0o600)
    try:
        for kind, text in ((3, b"first"), (1, b""), (3, b"second"), (2, pattern(4000))):
            call("msgsnd", number, struct.pack("@l", kind) + text, len(text), IPC_NOWAIT)
        yield
        expect("found by key", call("msgget", key, 0), number)
        space = ctypes.create_string_buffer(5000)
        found = []
        for wanted in (2, 0, 0, 0):
            at = ctypes.addressof(space)
            length = call("msgrcv", number, at, 4992, wanted, IPC_NOWAIT)
            found.append((struct.unpack_from("@l", space.raw)[0], space.raw[8 : 8 + length]))
        expect("messages", found, [(2, pattern(4000)), (3, b"first"), (1, b""), (3, b"second")])
    finally:
        call("msgctl", number, IPC_RMID, 0)


# --- POSIX message queues ------------------------------------------------------------------------


class Queue:
    """A queue of mq_open(3)."""

    def __init__(self, name: str, flags: int, most: int = 6, size: int = 300) -> None:
        attributes = struct.pack("@8l", 0, most, size, 0, 0, 0, 0, 0)
        self.name = name.encode()
        self.fd = call("mq_open", self.name, flags, 0o600, attributes)

    def send(self, text: bytes, priority: int) -> None:
        call("mq_send", self.fd, text, len(text), priority)

    def receive(self) -> tuple[int, bytes]:
        space, priority = ctypes.create_string_buffer(300), ctypes.c_uint()
        where = ctypes.addressof(space), ctypes.addressof(priority)
        length = call("mq_receive", self.fd, where[0], 300, where[1])
        return priority.value, space.raw[:length]

    def attributes(self) -> tuple[int, ...]:
        space = ctypes.create_string_buffer(64)
        call("mq_getattr", self.fd, ctypes.addressof(space))
        return struct.unpack("@4l", space.raw[:32])


@program
def posix_queue():
    """By name, with messages of several priorities; three descriptors, two of one description."""
    name = a_name()
    queue = Queue(name, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    try:
        reader = Queue(name, os.O_RDONLY | os.O_NONBLOCK)
        twin = os.dup(queue.fd)
        for text, priority in ((b"a", 1), (b"urgent", 9), (b"b", 1), (b"", 0), (b"x" * 300, 9)):
            queue.send(text, priority)
        before = [q.attributes() for q in (queue, reader)]
        yield
        expect("attributes", [q.attributes() for q in (queue, reader)], before)
        expect("access", os.readlink(f"/proc/self/fd/{twin}"), name)
        poll = select.poll()
        poll.register(reader.fd, select.POLLIN)
        expect("readable", poll.poll(0), [(reader.fd, select.POLLIN)])
        found = [reader.receive() for _ in range(5)]
        wanted = [(9, b"urgent"), (9, b"x" * 300), (1, b"a"), (1, b"b"), (0, b"")]
        expect("messages", found, wanted)
        try:
            reader.receive()
        except BlockingIOError:
            pass
        else:
            raise AssertionError("there is another message")
        queue.send(b"new", 2)
        again = Queue(name, os.O_RDWR)
        expect("opened again", again.receive(), (2, b"new"))
    finally:
        call("mq_unlink", name.encode())


@program
def posix_queue_unlinked():
    """Without a name, full, and a thread that waits to send."""
    name = a_name()
    queue = Queue(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, most=2)
    call("mq_unlink", queue.name)
    queue.send(b"one", 0)
    queue.send(b"two", 0)
    worker = Worker(lambda: queue.send(b"three", 0)).blocked()
    yield
    expect("name", os.readlink(f"/proc/self/fd/{queue.fd}"), f"{name} (deleted)")
    found = [queue.receive()[1]]
    worker.result()
    found += [queue.receive()[1] for _ in range(2)]
    expect("messages", found, [b"one", b"two", b"three"])


@program
def posix_queue_waited_for():
    """Empty, and a thread that waits to receive."""
    name = a_name()
    queue = Queue(name, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    call("mq_unlink", queue.name)
    worker = Worker(queue.receive).blocked()
    yield
    queue.send(b"at last", 4)
    expect("received", worker.result(), (4, b"at last"))


# --- POSIX shared memory and semaphores ----------------------------------------------------------


@program
def python_shared_memory():
    """multiprocessing.shared_memory, a file in /dev/shm, of which a restored copy has its own."""
    resource_tracker.register = lambda *_: None  # its helper would be a child process
    resource_tracker.unregister = lambda *_: None
    memory = shared_memory.SharedMemory(a_name(), create=True, size=100_000)
    try:
        memory.buf[:7] = b"content"
        yield
        expect("content", bytes(memory.buf[:7]), b"content")
        other = shared_memory.SharedMemory(memory.name)
        other.buf[:5] = b"again"
        expect("seen", bytes(memory.buf[:7]), b"againnt")
        memory.buf[:7] = b"content"
        other.close()
    finally:
        memory.unlink()


@program
def python_shared_memory_unlinked():
    """Its name is gone; both mappings and the descriptor are of one object."""
    resource_tracker.register = lambda *_: None
    resource_tracker.unregister = lambda *_: None
    memory = shared_memory.SharedMemory(create=True, size=100_000)
    other = shared_memory.SharedMemory(memory.name)
    memory.unlink()
    memory.buf[:7] = b"content"
    yield
    expect("content", bytes(other.buf[:7]), b"content")
    other.buf[50_000:50_002] = b"hi"
    expect("seen", bytes(memory.buf[50_000:50_002]), b"hi")


@program
def python_semaphores():
    """multiprocessing.Lock and Semaphore: unnamed mappings of deleted files in /dev/shm."""
    resource_tracker.register = lambda *_: None
    resource_tracker.unregister = lambda *_: None
    context = multiprocessing.get_context("fork")
    lock, counter = context.Lock(), context.Semaphore(3)
    lock.acquire()
    counter.acquire()
    yield
    expect("lock", lock.acquire(block=False), False)
    expect("counter", [counter.acquire(block=False) for _ in range(3)], [True, True, False])
    lock.release()
    expect("released", lock.acquire(block=False), True)


@program
def named_semaphore():
    """sem_open(3) and a thread that waits (sem_wait(3) is a futex in the mapping)."""
    name = a_name().encode()
    try:
        library = ctypes.CDLL(ctypes.util.find_library("pthread"), use_errno=True)
        library.sem_open.restype = ctypes.c_void_p
        library.sem_wait.argtypes = library.sem_post.argtypes = [ctypes.c_void_p]
        semaphore = library.sem_open(name, os.O_CREAT | os.O_EXCL, 0o600, 0)
    except (AttributeError, TypeError):
        raise UnsupportedError("this C library has no sem_open") from None
    if not semaphore:
        raise OSError(ctypes.get_errno(), "sem_open")
    library.sem_unlink(name)
    worker = Worker(lambda: library.sem_wait(semaphore)).blocked()
    yield
    library.sem_post(semaphore)
    expect("waited for", worker.result(), 0)


if __name__ == "__main__":
    sys.setswitchinterval(0.001)
    main()
