"""Open files, directories and devices."""

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import threading

from protocol import Worker, call, expect, main, pattern, program, restored

KEEP_SIZE, PUNCH_HOLE = 1, 2
F_SETSIG, F_GETSIG, F_SETOWN_EX, F_GETOWN_EX = 10, 11, 15, 16
F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP = 0, 1, 2
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400


@program
def offset():
    with open("data", "wb") as file:
        file.write(pattern(10000))
    fd = os.open("data", os.O_RDWR)
    os.lseek(fd, 1234, os.SEEK_SET)
    yield
    expect("position", os.lseek(fd, 0, os.SEEK_CUR), 1234)
    expect("next bytes", os.read(fd, 100), pattern(10000)[1234:1334])
    expect("mode", fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE, os.O_RDWR)


@program
def python_buffers():
    """What Python has read ahead or not yet written is memory and must fit the offset."""
    with open("lines", "w") as file:
        file.writelines(f"line {number}\n" for number in range(5000))
    reader = open("lines")  # noqa: SIM115
    first = [next(reader) for _ in range(10)]
    writer = open("written", "w")  # noqa: SIM115
    writer.write("buffered ")
    yield
    expect("first", first[-1], "line 9\n")
    expect("rest", [int(line.split()[1]) for line in reader], list(range(10, 5000)))
    writer.write("and flushed")
    writer.close()
    with open("written") as file:
        expect("written", file.read(), "buffered and flushed")


@program
def append():
    fd = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, b"before\n")
    yield
    os.write(fd, b"after\n")
    with open("log", "rb") as file:
        content = file.read()
    assert content.startswith(b"before\n"), content
    assert content.endswith(b"after\n"), content
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND, "O_APPEND is gone"


@program
def duplicates():
    """Two descriptors of one description share the offset, a second open does not."""
    with open("data", "wb") as file:
        file.write(pattern(1000))
    fd = os.open("data", os.O_RDONLY)
    twin = os.dup2(fd, 200)
    other = os.open("data", os.O_RDONLY)
    os.lseek(fd, 100, os.SEEK_SET)
    yield
    expect("first read", os.read(twin, 10), pattern(1000)[100:110])
    expect("second read", os.read(fd, 10), pattern(1000)[110:120])
    expect("other", os.read(other, 10), pattern(1000)[:10])


@program
def descriptor_flags():
    with open("data", "wb") as file:
        file.write(b"x")
    kept = os.open("data", os.O_RDONLY)
    os.set_inheritable(kept, True)
    closed = os.open("data", os.O_RDONLY | os.O_CLOEXEC)
    fcntl.fcntl(closed, fcntl.F_SETFL, os.O_NONBLOCK)
    high = fcntl.fcntl(kept, fcntl.F_DUPFD, 900)
    table = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    yield
    expect("kept is inherited", os.get_inheritable(kept), True)
    expect("closed is inherited", os.get_inheritable(closed), False)
    assert fcntl.fcntl(closed, fcntl.F_GETFL) & os.O_NONBLOCK, "O_NONBLOCK is gone"
    expect("high number", os.pread(high, 1, 0), b"x")
    expect("table", sorted(int(name) for name in os.listdir("/proc/self/fd")), table)


@program
def deleted():
    """An open file without a name keeps content, offset and size."""
    fd = os.open("temporary", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, pattern(100_000))
    os.pwrite(fd, b"end", 5_000_000)
    os.lseek(fd, 50_000, os.SEEK_SET)
    os.unlink("temporary")
    yield
    expect("position", os.lseek(fd, 0, os.SEEK_CUR), 50_000)
    expect("size", os.fstat(fd).st_size, 5_000_003)
    expect("links", os.fstat(fd).st_nlink, 0)
    expect("content", os.pread(fd, 100_000, 0) == pattern(100_000), True)
    expect("hole", os.pread(fd, 1000, 2_000_000), bytes(1000))
    expect("end", os.pread(fd, 10, 5_000_000), b"end")
    os.write(fd, b"more")
    expect("written", os.pread(fd, 4, 50_000), b"more")


@program
def deleted_twice_open():
    """Two descriptions of one deleted file are still one file."""
    first = os.open("temporary", os.O_RDWR | os.O_CREAT, 0o600)
    second = os.open("temporary", os.O_RDONLY)
    os.unlink("temporary")
    os.write(first, b"written once")
    yield
    expect("read", os.read(second, 20), b"written once")
    os.write(first, b", and again")
    expect("read on", os.read(second, 20), b", and again")


@program
def called_deleted():
    """A name that reads like the kernel's mark of a deleted file."""
    import mmap

    name = "notes (deleted)"
    fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"still here")
    area = mmap.mmap(fd, 10, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    yield
    expect("mapped", area[:], b"still here")
    expect("links", os.fstat(fd).st_nlink, 1)
    assert os.path.sameopenfile(fd, os.open(name, os.O_RDONLY)), "it is another file"
    with open("/proc/self/maps") as maps:
        names = [line.rstrip().rpartition("/")[2] for line in maps if "notes" in line]
    expect("maps", names, [name])


@program
def shared_locks():
    """Locks of all three kinds that many may have, so that a copy beside its original may."""
    import struct

    first = os.open("locked", os.O_RDWR | os.O_CREAT, 0o600)
    second = os.open("locked", os.O_RDWR)
    os.dup(first)
    fcntl.flock(second, fcntl.LOCK_SH)
    fcntl.lockf(first, fcntl.LOCK_SH, 510, 1073741826)  # as sqlite does
    fcntl.lockf(second, fcntl.LOCK_SH, 10)
    to_the_end = struct.pack("=hh4xqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 0, 0)
    fcntl.fcntl(first, 37, to_the_end)  # F_OFD_SETLK

    def locks(fd):
        with open(f"/proc/self/fdinfo/{fd}") as info:
            found = [line.split() for line in info if line.startswith("lock:")]
        return sorted(words[2:5] + words[-2:] for words in found)

    before = [locks(first), locks(second)]
    expect("how many", [len(found) for found in before], [2, 2])
    yield
    expect("locks", [locks(first), locks(second)], before)


@program
def shared_lease():
    """A lease for reading: a copy beside its original may have one, too (fcntl(2), F_SETLEASE)."""
    open("leased", "w").close()
    fd = os.open("leased", os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    fcntl.fcntl(fd, F_SETSIG, signal.SIGRTMIN + 3)
    owner = fcntl.fcntl(fd, F_GETOWN_EX, bytes(8))
    yield
    expect("lease", fcntl.fcntl(fd, fcntl.F_GETLEASE), fcntl.F_RDLCK)
    expect("signal", fcntl.fcntl(fd, F_GETSIG), signal.SIGRTMIN + 3)
    expect("owner", fcntl.fcntl(fd, F_GETOWN_EX, bytes(8)), owner)


@program
def owners():
    """Who is told of data: the process, its group, one of its threads; and by which signal."""
    numbers = [signal.SIGRTMIN + 4, signal.SIGRTMIN + 5, signal.SIGIO]
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    go = threading.Event()
    worker = Worker(go.wait).blocked()
    targets = [
        (F_OWNER_PID, os.getpid()),
        (F_OWNER_TID, worker.native_id),
        (F_OWNER_PGRP, os.getpgrp()),
    ]
    pipes = [os.pipe() for _ in targets]
    left, right = socket.socketpair()
    owned = [reader for reader, _ in pipes]
    for fd, owner, number in zip(owned, targets, [*numbers[:2], 0], strict=True):
        fcntl.fcntl(fd, F_SETOWN_EX, struct.pack("ii", *owner))
        fcntl.fcntl(fd, F_SETSIG, number)
    for fd in (owned[0], owned[1]):
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    fcntl.fcntl(left, fcntl.F_SETOWN, os.getpid())
    owned.append(left.fileno())

    def state():
        return [
            (
                fcntl.fcntl(fd, F_GETOWN_EX, bytes(8)),
                fcntl.fcntl(fd, F_GETSIG),
                fcntl.fcntl(fd, fcntl.F_GETFL),
            )
            for fd in owned
        ]

    before = state()
    yield
    expect("owners, signals, flags", state(), before)
    expect("told before", signal.sigpending() & set(numbers), set())
    os.write(pipes[0][1], b"x")
    told = signal.sigtimedwait([numbers[0]], 30)
    assert told is not None, "nobody was told of data in a pipe"
    os.write(pipes[1][1], b"x")
    with open(f"/proc/self/task/{worker.native_id}/status") as status:
        pending = int(status.read().partition("SigPnd:")[2].split()[0], 16)
    assert pending >> numbers[1] - 1 & 1, "the thread was not told of data in a pipe"
    os.write(pipes[2][1], b"x")
    right.send(b"x")
    expect("told without O_ASYNC", signal.SIGIO in signal.sigpending(), False)
    fcntl.fcntl(left, fcntl.F_SETFL, os.O_ASYNC)
    right.send(b"x")
    assert signal.sigtimedwait([signal.SIGIO], 30), "nobody was told of data in a socket"
    go.set()


@program
def unnamed_temporary_file():
    """O_TMPFILE, as tempfile.TemporaryFile makes it."""
    import tempfile

    file = tempfile.TemporaryFile(dir=".")  # noqa: SIM115
    file.write(pattern(50_000))
    file.flush()
    file.seek(10)
    yield
    expect("read", file.read(100), pattern(50_000)[10:110])
    file.seek(0, os.SEEK_END)
    expect("size", file.tell(), 50_000)


@program
def directory():
    os.mkdir("folder")
    with open("folder/inside", "w") as file:
        file.write("text")
    fd = os.open("folder", os.O_RDONLY | os.O_DIRECTORY)
    yield
    expect("list", os.listdir(fd), ["inside"])
    inner = os.open("inside", os.O_RDONLY, dir_fd=fd)
    expect("relative to it", os.read(inner, 10), b"text")


@program
def given_a_name_later():
    """What O_TMPFILE made can be linked into a folder (open(2)), also by a restored process."""
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, pattern(50_000))
    os.pwrite(fd, b"end", 5_000_000)
    yield
    blocks = os.fstat(fd).st_blocks * 512
    assert blocks < 1 << 20, f"{blocks} bytes are taken by a file with a hole"
    name = f"named-{restored()}"
    own = f"/proc/self/fd/{fd}".encode()
    call("linkat", AT_FDCWD, own, AT_FDCWD, name.encode(), AT_SYMLINK_FOLLOW)
    with open(name, "rb") as file:
        expect("content", file.read(50_000), pattern(50_000))
        expect("size", os.fstat(file.fileno()).st_size, 5_000_003)
        expect("mode", os.fstat(file.fileno()).st_mode & 0o777, 0o640)
    os.write(fd, b"appended")
    with open(name, "rb") as file:
        expect("the same file", os.pread(file.fileno(), 8, 50_000), b"appended")


@program
def hole_punched():
    """What was given back of a file without a name stays a hole (fallocate(2))."""
    fd = os.open("temporary", os.O_RDWR | os.O_CREAT, 0o600)
    os.unlink("temporary")
    os.write(fd, pattern(8 << 20))
    call("fallocate", fd, PUNCH_HOLE | KEEP_SIZE, 1 << 20, 6 << 20)
    expected = pattern(1 << 20), pattern(8 << 20)[7 << 20 :]
    assert os.fstat(fd).st_blocks * 512 < 3 << 20, "the file system keeps no holes"
    yield
    expect("size", os.fstat(fd).st_size, 8 << 20)
    expect("begin", os.pread(fd, 1 << 20, 0) == expected[0], True)
    expect("hole", os.pread(fd, 6 << 20, 1 << 20) == bytes(6 << 20), True)
    expect("end", os.pread(fd, 1 << 20, 7 << 20) == expected[1], True)
    blocks = os.fstat(fd).st_blocks * 512
    assert blocks < 3 << 20, f"{blocks} bytes are taken, where 2 MiB are needed"
    expect("first hole", os.lseek(fd, 0, os.SEEK_HOLE), 1 << 20)


@program
def directory_half_read():
    """getdents64(2) goes on behind the entries that were read."""
    os.mkdir("folder")
    names = {f"a rather long name of an entry {number}" for number in range(200)}
    for name in names:
        open(f"folder/{name}", "w").close()
    fd = os.open("folder", os.O_RDONLY | os.O_DIRECTORY)
    seen = [*entries(fd), *entries(fd)]
    position = os.lseek(fd, 0, os.SEEK_CUR)
    assert 0 < len(seen) < 100, seen
    yield
    expect("position", os.lseek(fd, 0, os.SEEK_CUR), position)
    while more := entries(fd):
        seen += more
    expect("once each", sorted(seen), sorted([*names, ".", ".."]))
    os.lseek(fd, 0, os.SEEK_SET)
    expect("from the beginning", len(entries(fd)) > 0, True)


def entries(fd):
    """The next entries of a directory, as many as fit into a kilobyte."""
    buffer = ctypes.create_string_buffer(1024)
    length = call("getdents64", fd, ctypes.addressof(buffer), len(buffer))
    names, at = [], 0
    while at < length:
        size = struct.unpack_from("=H", buffer, at + 16)[0]
        names.append(buffer.raw[at + 19 : at + size].split(b"\0")[0].decode())
        at += size
    return names


@program
def only_paths():
    """O_PATH: of a file, a directory, a symbolic link itself, a socket, a device."""
    os.mkdir("folder")
    with open("folder/file", "w") as file:
        file.write("text")
    os.symlink("nowhere", "link")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    file, folder = os.open("folder/file", os.O_PATH), os.open("folder", os.O_PATH | os.O_DIRECTORY)
    link = os.open("link", os.O_PATH | os.O_NOFOLLOW)
    others = [os.open("socket", os.O_PATH), os.open("/dev/null", os.O_PATH)]
    descriptors = [file, folder, link, *others]
    twin = os.dup(folder)
    flags = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in descriptors]
    status = [os.fstat(fd)[:3] for fd in descriptors]
    yield
    expect("flags", [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in descriptors], flags)
    expect("status", [os.fstat(fd)[:3] for fd in descriptors], status)
    expect("link", os.readlink("", dir_fd=link), "nowhere")
    with open(os.open("file", os.O_RDONLY, dir_fd=twin)) as opened:
        expect("relative to it", opened.read(), "text")
    with open(f"/proc/self/fd/{file}") as opened:
        expect("opened again", opened.read(), "text")
    try:
        os.read(file, 1)
    except OSError as error:
        expect("error", error.errno, errno.EBADF)
    else:
        raise AssertionError("it can be read")


@program
def only_path_of_deleted():
    """O_PATH of a file without a name; what it leads to is in the snapshot."""
    with open("temporary", "wb") as file:
        file.write(pattern(5000))
    fd = os.open("temporary", os.O_PATH)
    os.unlink("temporary")
    yield
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH, "O_PATH is gone"
    with open(f"/proc/self/fd/{fd}", "rb") as file:
        expect("content", file.read(), pattern(5000))


@program
def own_proc_files():
    """Files and directories of /proc/self, each with its position."""
    maps, status = (
        os.open("/proc/self/maps", os.O_RDONLY),
        os.open("/proc/self/status", os.O_RDONLY),
    )
    folder = os.open("/proc/self/task", os.O_RDONLY | os.O_DIRECTORY)
    memory = os.open("/proc/self/mem", os.O_RDWR)
    name = os.read(status, 6)
    kept = ctypes.create_string_buffer(pattern(100))
    os.lseek(memory, ctypes.addressof(kept), os.SEEK_SET)
    yield
    expect("name", name + os.read(status, 4096).partition(b"\n")[0], b"Name:\t" + comm())
    expect("memory", os.read(memory, 100), pattern(100))
    assert b"r-xp" in os.read(maps, 1 << 16), "no mapping is executable"
    expect("threads", os.listdir(folder), [str(os.getpid())])


def comm():
    with open("/proc/self/comm", "rb") as file:
        return file.read().strip()


@program
def devices():
    null = os.open("/dev/null", os.O_RDWR)
    zero = os.open("/dev/zero", os.O_RDONLY)
    random = os.open("/dev/urandom", os.O_RDONLY)
    full = os.open("/dev/full", os.O_WRONLY)
    appending = os.open("/dev/null", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
    files = [null, zero, random, full, appending]
    os.write(null, b"as if it were written")
    os.read(zero, 100)
    state = [(fcntl.fcntl(fd, fcntl.F_GETFL), os.lseek(fd, 0, os.SEEK_CUR)) for fd in files]
    yield
    found = [(fcntl.fcntl(fd, fcntl.F_GETFL), os.lseek(fd, 0, os.SEEK_CUR)) for fd in files]
    expect("flags and positions", found, state)
    expect("null", (os.read(null, 10), os.write(null, b"abc")), (b"", 3))
    expect("zero", os.read(zero, 10), bytes(10))
    assert os.read(random, 16) != os.read(random, 16), "urandom repeats itself"
    try:
        os.write(full, b"x")
    except OSError as error:
        expect("full", error.strerror, "No space left on device")
    else:
        raise AssertionError("/dev/full took a byte")


@program
def own_proc_file():
    """Files of /proc/self that are held open, as psutil and htop do."""
    stat = os.open("/proc/self/stat", os.O_RDONLY)
    first = os.read(stat, 4096).split()[0]
    yield
    os.lseek(stat, 0, os.SEEK_SET)
    expect("pid", os.read(stat, 4096).split()[0], first)


if __name__ == "__main__":
    main()
