"""Process trees: children with all that they share with their parents."""

import contextlib
import fcntl
import mmap
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from areas import PAGE, READ, Area, call
from protocol import PATIENCE, expect, main, pattern, program


@contextlib.contextmanager
def child(action: Callable[[socket.socket], object]) -> Iterator[tuple[int, socket.socket]]:
    """A forked process that runs `action` with its end of a socket pair, and then ends."""
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            mine.close()
            other.settimeout(PATIENCE)
            action(other)
            status = 0
        finally:
            os._exit(status)
    other.close()
    mine.settimeout(PATIENCE)
    with mine:
        expect("child", mine.recv(100), b"ready")
        yield pid, mine
    expect("status", os.waitpid(pid, 0), (pid, 0))


@program
def one_child():
    """It waits for a word, and its memory is its own."""
    data = bytearray(pattern(3 << 20))

    def action(end):
        data[:5] = b"child"
        end.send(b"ready")
        end.recv(100)
        end.send(bytes(data[:5]) + bytes([data[5:] == pattern(3 << 20)[5:]]))
        end.send(struct.pack("=iii", os.getpid(), os.getppid(), os.getpgrp()))

    with child(action) as (pid, end):
        group = os.getpgrp()
        yield
        end.send(b"go")
        expect("memory of the child", end.recv(100), b"child\1")
        expect("ids", struct.unpack("=iii", end.recv(100)), (pid, os.getpid(), group))
        expect("memory of the parent", data == pattern(3 << 20), True)


@program
def grandchildren():
    def grandchild(end):
        end.send(b"ready")
        end.recv(100)
        end.send(b"%d %d" % (os.getpid(), os.getppid()))

    def action(end):
        with child(grandchild) as (first, one), child(grandchild) as (second, two):
            end.send(b"ready")
            end.recv(100)
            for pid, other in ((first, one), (second, two)):
                other.send(b"go")
                expect("grandchild", other.recv(100), b"%d %d" % (pid, os.getpid()))
        end.send(b"done")

    with child(action) as (_, end):
        yield
        end.send(b"go")
        expect("answer", end.recv(100), b"done")


@program
def child_with_threads():
    """Locks between them, and thread-local values."""

    def action(end):
        local, lock, found = threading.local(), threading.Lock(), []

        def work(number):
            local.value = number
            with lock:
                found.append(local.value)

        lock.acquire()
        workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for worker in workers:
            worker.start()
        end.send(b"ready")
        end.recv(100)
        lock.release()
        for worker in workers:
            worker.join()
        end.send(bytes(sorted(found)))

    with child(action) as (_, end):
        yield
        end.send(b"go")
        expect("answer", end.recv(100), bytes(range(4)))


@program
def zombies():
    """Children that have ended, one by itself and one by a signal, and were not waited for."""
    quiet = signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
    seen = []
    by_itself = os.fork()
    if by_itself == 0:
        os._exit(7)
    by_signal = os.fork()
    if by_signal == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    for pid in (by_itself, by_signal):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    count = len(seen)
    yield
    expect("signals of children", len(seen), count)
    expect("exit status", os.waitpid(by_itself, 0), (by_itself, 7 << 8))
    expect("signal", os.waitpid(by_signal, 0), (by_signal, signal.SIGTERM))
    signal.signal(signal.SIGCHLD, quiet)


@program
def ends_later():
    """The parent hears of it: SIGCHLD, and the status."""
    heard = threading.Event()
    signal.signal(signal.SIGCHLD, lambda *_: heard.set())
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(3)
    os.close(reader)
    yield
    expect("too early", heard.is_set(), False)
    os.close(writer)
    expect("heard", heard.wait(PATIENCE), True)
    expect("status", os.waitpid(pid, 0), (pid, 3 << 8))


@program
def sessions_and_groups():
    def leads_session(end):
        os.setsid()
        end.send(b"ready")
        end.recv(100)
        end.send(b"%d" % (os.getsid(0) == os.getpgrp() == os.getpid()))

    def leads_group(end):
        os.setpgid(0, 0)
        signal.signal(signal.SIGUSR1, lambda *_: end.send(b"group"))
        end.send(b"ready")
        end.recv(100)
        end.send(b"%d" % (os.getpgrp() == os.getpid()))

    with child(leads_session) as (_, one), child(leads_group) as (leader, two):
        member = os.fork()
        if member == 0:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            signal.pause()
        os.setpgid(member, leader)
        yield
        expect("group of the member", os.getpgid(member), leader)
        os.kill(-leader, signal.SIGUSR1)
        expect("signal", two.recv(100), b"group")
        expect("member", os.waitpid(member, 0), (member, signal.SIGUSR1))
        for end in (one, two):
            end.send(b"go")
            expect("leader", end.recv(100), b"1")


def reader_of(pids: int) -> tuple[int, ...]:
    """Pids that another process has written."""
    with open(pids, "rb") as file:
        data = file.read()
    return struct.unpack(f"={len(data) // 4}i", data)


@program
def group_without_leader():
    """Two processes, one of which has ended, of a group whose leader has ended."""
    leader = os.fork()
    if leader == 0:
        signal.pause()
    os.setpgid(leader, leader)
    members = []
    for status in (None, 5):
        member = os.fork()
        if member == 0:
            os.setpgid(0, leader)
            if status is not None:
                os._exit(status)
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            signal.pause()
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(member, leader)
        members.append(member)
    os.waitid(os.P_PID, members[1], os.WEXITED | os.WNOWAIT)
    os.kill(leader, signal.SIGKILL)
    os.waitpid(leader, 0)
    heard = []
    signal.signal(signal.SIGCHLD, lambda *_: heard.append(1))
    yield
    expect("signals of children", heard, [])
    expect("group", [os.getpgid(member) for member in members], [leader, leader])
    expect("ended before", os.waitpid(members[1], 0), (members[1], 5 << 8))
    os.killpg(leader, signal.SIGUSR1)
    expect("signal", os.waitpid(members[0], 0), (members[0], signal.SIGUSR1))
    try:
        os.wait()
    except ChildProcessError:
        return
    raise AssertionError("there is another child")


@program
def session_without_leader():
    """What is left over of it was given to its grandparent, a subreaper."""
    call("prctl", 36, 1, 0, 0, 0)
    pids, writer = os.pipe()
    leader = os.fork()
    if leader == 0:
        os.setsid()
        for group in (False, True):
            left = os.fork()
            if left == 0:
                if group:
                    os.setpgid(0, 0)
                    if os.fork():
                        os._exit(0)  # and so this group has no leader either
                os.write(writer, struct.pack("=i", os.getpid()))
                os.close(writer)
                signal.signal(signal.SIGUSR1, signal.SIG_DFL)
                signal.pause()
            if group:
                os.waitpid(left, 0)
                os.write(writer, struct.pack("=i", left))
        os._exit(0)
    os.close(writer)
    os.waitpid(leader, 0)
    found = sorted(reader_of(pids))
    groups = {pid: os.getpgid(pid) for pid in found if os.path.exists(f"/proc/{pid}")}
    expect("processes", len(groups), 2)
    expect("sessions before", {os.getsid(pid) for pid in groups}, {leader})
    expect("groups before", len({leader, *groups.values()}), 2)
    yield
    expect("sessions", {os.getsid(pid) for pid in groups}, {leader})
    expect("groups", {pid: os.getpgid(pid) for pid in groups}, groups)
    for pid, group in groups.items():
        os.killpg(group, signal.SIGUSR1)
        expect("signal", os.waitpid(pid, 0), (pid, signal.SIGUSR1))


def parent_of(pid: int) -> int:
    """The parent of another process."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


@program
def orphans():
    """Processes whose parent has ended, in the session of the program: one with a child of its own,
    one in a group that has lost its leader. Their parent is an init, and they live on."""
    mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine.settimeout(PATIENCE)
    other.settimeout(PATIENCE)

    def live(group: bool) -> None:
        if group:
            os.setpgid(0, 0)
        parent = os.getpid()
        if os.fork() == 0:
            mine.close()
            reader, writer = os.pipe()
            below = 0 if group else os.fork()
            if not group and below == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            while os.getppid() == parent:
                time.sleep(0.001)
            other.send(struct.pack("=ii", os.getpid(), os.getpgrp()))
            if not other.recv(100):
                os._exit(0)
            if not group:
                os.kill(below, signal.SIGKILL)
                expect("status of its child", os.waitpid(below, 0), (below, signal.SIGKILL))
            ids = os.getpid(), os.getpgrp(), os.getppid(), os.getsid(0)
            other.send(struct.pack("=iiii", *ids))
        os._exit(0)

    found = {}
    for group in (False, True):
        pid = os.fork()
        if pid == 0:
            live(group)
        expect("status", os.waitpid(pid, 0), (pid, 0))
        orphan, its_group = struct.unpack("=ii", mine.recv(100))
        found[orphan] = its_group
        expect("group", its_group, pid if group else os.getpgrp())
    other.close()
    before = {pid: parent_of(pid) for pid in found}
    yield
    for _ in range(2):
        mine.send(b"go")
        pid, group, parent, session = struct.unpack("=iiii", mine.recv(100))
        expect("group of an orphan", group, found.pop(pid))
        expect("session of an orphan", session, os.getsid(0))
        assert parent in (1, before[pid]), f"its parent is {parent}"


@program
def left_its_session():
    """A child of the old session, whose parent leads a new one now."""

    def stays(end):
        session = os.getsid(0)
        end.send(b"ready")
        end.recv(100)
        end.send(b"%d" % (os.getsid(0) == session))

    def action(end):
        old = os.getsid(0)
        with child(stays) as (_, other):
            os.setsid()
            end.send(b"ready")
            end.recv(100)
            other.send(b"go")
            expect("session", other.recv(100), b"1")
            expect("own session", os.getsid(0) == os.getpid() != old, True)
        end.send(b"done")

    with child(action) as (_, end):
        yield
        end.send(b"go")
        expect("answer", end.recv(100), b"done")


@program
def shared_memory():
    """What one writes the other reads, at any of its places."""
    area = mmap.mmap(-1, 4 << 20)
    area[:100] = b"a" * 100
    memfd = os.memfd_create("shared")
    os.ftruncate(memfd, 1 << 20)
    of_memfd = mmap.mmap(memfd, 1 << 20)

    def action(end):
        of_memfd[1000:1005] = b"child"
        area[200:205] = b"child"
        end.send(b"ready")
        end.recv(100)
        area[(3 << 20) : (3 << 20) + 5] = b"later"
        of_memfd[2000:2005] = b"later"
        end.send(area[300:306] + of_memfd[:6])

    with child(action) as (_, end):
        yield
        area[300:306] = of_memfd[:6] = b"parent"
        end.send(b"go")
        expect("seen by the child", end.recv(100), b"parentparent")
        expect("anonymous", (area[:100], area[200:205]), (b"a" * 100, b"child"))
        expect("later", area[(3 << 20) : (3 << 20) + 5], b"later")
        expect("memfd", (of_memfd[1000:1005], of_memfd[2000:2005]), (b"child", b"later"))
        expect("by descriptor", os.pread(memfd, 5, 2000), b"later")


@program
def shared_description():
    """A file that was opened before the fork has one position for both."""
    with tempfile.TemporaryFile() as deleted, open(__file__, "rb", buffering=0) as named:
        deleted.write(b"0123456789")
        deleted.flush()
        deleted.seek(2)

        def action(end):
            end.send(b"ready")
            end.recv(100)
            end.send(os.read(deleted.fileno(), 3) + os.read(named.fileno(), 3))

        with child(action) as (_, end):
            yield
            end.send(b"go")
            expect("child", end.recv(100), b'234"""')
            expect("position", os.lseek(deleted.fileno(), 0, os.SEEK_CUR), 5)
            expect("position of the file", os.lseek(named.fileno(), 0, os.SEEK_CUR), 3)


@program
def own_descriptors():
    """The same number means something else to each of them."""
    reader, writer = os.pipe()
    os.dup2(reader, 50)

    def action(end):
        os.dup2(writer, 50)
        os.close(reader)
        end.send(b"ready")
        end.recv(100)
        os.write(50, b"through the pipe")

    with child(action) as (_, end):
        os.close(writer)
        yield
        end.send(b"go")
        expect("read", os.read(50, 100), b"through the pipe")
    expect("end", os.read(50, 100), b"")


@program
def locks_of_a_child():
    with tempfile.TemporaryFile() as file:
        wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 10, 20, 0)

        def holder() -> int:
            answer = fcntl.fcntl(file.fileno(), fcntl.F_GETLK, wanted)
            kind, *_, pid = struct.unpack("hhqqi4x", answer)
            return 0 if kind == fcntl.F_UNLCK else pid

        def action(end):
            fcntl.fcntl(file.fileno(), fcntl.F_SETLK, wanted)
            end.send(b"ready")
            end.recv(100)

        with child(action) as (pid, end):
            expect("lock before", holder(), pid)
            yield
            expect("lock", holder(), pid)
            end.send(b"go")
        expect("afterwards", holder(), 0)


@program
def stopped_child():
    """By SIGSTOP; it goes on by SIGCONT."""

    def action(end):
        end.send(b"ready")
        end.recv(100)
        end.send(b"goes on")

    with child(action) as (pid, end):
        os.kill(pid, signal.SIGSTOP)
        expect("stops", os.waitid(os.P_PID, pid, os.WSTOPPED).si_status, signal.SIGSTOP)
        yield
        end.send(b"go")
        with open(f"/proc/{pid}/stat") as stat:
            expect("state", stat.read().rpartition(")")[2].split()[0], "T")
        os.kill(pid, signal.SIGCONT)
        expect("answer", end.recv(100), b"goes on")


@program
def programs():
    """Other programs, connected by pipes."""
    sort = subprocess.Popen(["sort"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    shell = subprocess.Popen(
        ["sh", "-c", 'read line; echo "$line" | cat; exit 5'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    sort.stdin.write(b"b\n")
    sort.stdin.flush()
    yield
    expect("sorted", sort.communicate(b"a\n", PATIENCE)[0], b"a\nb\n")
    expect("shell", shell.communicate(b"line\n", PATIENCE)[0], b"line\n")
    expect("status", shell.wait(PATIENCE), 5)


def square(number: int) -> int:
    return number * number


@program
def multiprocessing_pool():
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        expect("before", pool.map(square, range(10)), [n * n for n in range(10)])
        yield
        expect("after", pool.map(square, range(100)), [n * n for n in range(100)])


def pss(pids):
    """Kilobytes that processes take, where a page that n of them have counts for 1/n in each."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total


@program
def copy_on_write():
    """Memory that a child and a grandchild have from their parent is there once, until one of them
    writes to it; and each has its own in all that it has changed since: written, zeroed, dropped,
    unmapped, protected, and added to the heap."""
    size = 256 * PAGE
    common = Area(32 << 20)
    common.write(pattern(32 << 20))
    changed = Area(size)
    changed.write(pattern(size))
    small = [bytes([n % 251]) * 600 for n in range(10000)]

    def change(area, mark):
        area.write(mark * PAGE, 3 * PAGE)
        area.write(bytes(PAGE), 5 * PAGE)
        area.advise(mmap.MADV_DONTNEED, 7 * PAGE, PAGE)
        call("munmap", area.address + 9 * PAGE, PAGE)
        call("mprotect", area.address + 11 * PAGE, PAGE, READ)

    def check(area, mark):
        expected = bytearray(pattern(size))
        expected[3 * PAGE : 4 * PAGE] = mark * PAGE
        expected[5 * PAGE : 6 * PAGE] = expected[7 * PAGE : 8 * PAGE] = bytes(PAGE)
        for page in range(size // PAGE):
            if page == 9:
                assert not area.readable(page * PAGE), "an unmapped page can be read"
            else:
                there = area.read(PAGE, page * PAGE)
                expect(f"page {page}", there == expected[page * PAGE : (page + 1) * PAGE], True)
        expect("common", common.read() == pattern(32 << 20), True)
        expect("heap", all(small[n] == bytes([n % 251]) * 600 for n in range(10000)), True)

    def grandchild(end):
        end.send(b"ready")
        end.recv(100)
        check(changed, b"c")
        end.send(b"right")
        end.recv(100)

    def action(end):
        change(changed, b"c")
        small.extend([b"more" * 100] * 2000)
        with child(grandchild) as (pid, below):
            end.send(b"ready")
            end.recv(100)
            check(changed, b"c")
            expect("heap of the child", small[10000:] == [b"more" * 100] * 2000, True)
            below.send(b"go")
            end.send(below.recv(100))
            end.send(struct.pack("=i", pid))
            end.recv(100)

    with child(action) as (pid, end):
        changed.write(b"p" * PAGE, 20 * PAGE)
        yield
        end.send(b"go")
        expect("grandchild", end.recv(100), b"right")
        below = struct.unpack("=i", end.recv(100))[0]
        expected = bytearray(pattern(size))
        expected[20 * PAGE : 21 * PAGE] = b"p" * PAGE
        expect("memory of the parent", changed.read() == expected, True)
        taken = pss([os.getpid(), pid, below])
        assert taken < 110 << 10, f"the three take {taken} kB"
        common.write(b"parent")
        expect("written", common.read(6), b"parent")
        end.send(b"end")


if __name__ == "__main__":
    main()
