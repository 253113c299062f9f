"""IPC objects and settings in process trees: what is shared, and what is one's own."""

import ctypes
import os
import struct
from contextlib import suppress

from attributes import prctl, sched_getattr, sched_setattr
from family import child
from ipc import (
    GETVAL,
    IPC_CREAT,
    IPC_EXCL,
    IPC_NOWAIT,
    IPC_RMID,
    PAGE,
    SHM_RDONLY,
    Queue,
    a_key,
    a_name,
    attach,
    operate,
    segment_status,
)
from protocol import call, expect, main, pattern, program


@program
def one_segment_in_two_processes():
    """What one writes the other reads, at another address and only for reading."""
    number = call("shmget", 0, 3 * PAGE, IPC_CREAT | 0o600)
    address = attach(number)
    ctypes.memmove(address, pattern(2 * PAGE), 2 * PAGE)

    def action(end):
        reader = attach(number, 0, SHM_RDONLY)
        call("shmdt", address)
        end.send(b"ready")
        end.recv(100)
        end.send(ctypes.string_at(reader + 2 * PAGE, 6))

    with child(action) as (_, end):
        call("shmctl", number, IPC_RMID, 0)
        before = segment_status(number)
        yield
        expect("status", segment_status(number), before)
        expect("content", ctypes.string_at(address, 2 * PAGE), pattern(2 * PAGE))
        ctypes.memmove(address + 2 * PAGE, b"parent", 6)
        end.send(b"go")
        expect("seen by the child", end.recv(100), b"parent")


@program
def segments_of_a_child():
    """The parent has none; one is attached by the child, another one by nobody."""

    def action(end):
        number = call("shmget", a_key(), PAGE, IPC_CREAT | IPC_EXCL | 0o600)
        address = attach(number)
        ctypes.memmove(address, b"not attached", 12)
        call("shmdt", address)
        attached = call("shmget", 0, PAGE, IPC_CREAT | 0o600)
        place = attach(attached)
        call("shmctl", attached, IPC_RMID, 0)
        ctypes.memmove(place, b"attached", 8)
        try:
            end.send(b"ready")
            end.recv(100)
            again = attach(call("shmget", a_key(), 0, 0))
            end.send(ctypes.string_at(again, 12) + ctypes.string_at(place, 8))
        finally:
            call("shmctl", number, IPC_RMID, 0)

    with child(action) as (_, end):
        yield
        end.send(b"go")
        expect("segments", end.recv(100), b"not attachedattached")


def _take(number: int) -> None:
    """semop(2) answers EINTR to a mere stop."""
    while True:
        with suppress(InterruptedError):
            operate(number, (0, -1, 0))
            return


@program
def semaphores_between_processes():
    """A child waits in semop(2) for its parent."""
    number = call("semget", 0, 2, IPC_CREAT | 0o600)
    try:

        def action(end):
            operate(number, (1, 1, 0))
            end.send(b"ready")
            _take(number)
            operate(number, (1, 1, 0))
            end.send(b"taken")

        with child(action) as (_, end):
            yield
            expect("value", call("semctl", number, 1, GETVAL), 1)
            operate(number, (0, 1, 0))
            expect("child", end.recv(100), b"taken")
            operate(number, (1, -2, IPC_NOWAIT))
    finally:
        call("semctl", number, 0, IPC_RMID)


@program
def message_queue_of_two():
    """System V: what the child has sent waits for the parent."""
    number = call("msgget", 0, IPC_CREAT | 0o600)
    try:

        def action(end):
            call("msgsnd", number, struct.pack("@l", 7) + b"early", 5, IPC_NOWAIT)
            end.send(b"ready")
            end.recv(100)
            call("msgsnd", number, struct.pack("@l", 7) + b"later", 5, IPC_NOWAIT)
            end.send(b"sent")

        with child(action) as (_, end):
            yield
            end.send(b"go")
            expect("child", end.recv(100), b"sent")
            space = ctypes.create_string_buffer(100)
            for text in (b"early", b"later"):
                call("msgrcv", number, ctypes.addressof(space), 90, 0, IPC_NOWAIT)
                expect("message", space.raw[8:13], text)
    finally:
        call("msgctl", number, IPC_RMID, 0)


@program
def posix_queue_of_two():
    """Open in both, and another one in the child alone."""
    name = a_name()
    shared = Queue(name, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    call("mq_unlink", shared.name)
    shared.send(b"before", 1)

    def action(end):
        own = Queue(a_name(), os.O_CREAT | os.O_EXCL | os.O_RDWR)
        call("mq_unlink", own.name)
        own.send(b"own", 3)
        end.send(b"ready")
        end.recv(100)
        shared.send(b"from the child", 2)
        end.send(own.receive()[1])

    with child(action) as (_, end):
        yield
        end.send(b"go")
        expect("own queue", end.recv(100), b"own")
        expect("first", shared.receive(), (2, b"from the child"))
        expect("second", shared.receive(), (1, b"before"))


@program
def settings_of_each():
    """Nice value, policy, timer slack and personality of a child are not its parent's."""

    def action(end):
        sched_setattr(3, 0, 7)
        prctl(29, 77_000)
        call("personality", 0x0040000)
        mine = (*sched_getattr()[:4], prctl(30), call("personality", 0xFFFFFFFF))
        end.send(b"ready")
        end.recv(100)
        now = (*sched_getattr()[:4], prctl(30), call("personality", 0xFFFFFFFF))
        end.send(repr(now == mine).encode())

    prctl(29, 66_000)
    with child(action) as (_, end):
        mine = (*sched_getattr()[:4], prctl(30), call("personality", 0xFFFFFFFF))
        expect("timer slack before", mine[-2], 66_000)
        yield
        expect(
            "of the parent",
            (*sched_getattr()[:4], prctl(30), call("personality", 0xFFFFFFFF)),
            mine,
        )
        end.send(b"go")
        expect("of the child", end.recv(100), b"True")


if __name__ == "__main__":
    main()
