"""Open files, directories and devices."""

import fcntl
import os

from protocol import expect, main, pattern, program


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
def devices():
    null = os.open("/dev/null", os.O_RDWR)
    zero = os.open("/dev/zero", os.O_RDONLY)
    random = os.open("/dev/urandom", os.O_RDONLY)
    full = os.open("/dev/full", os.O_WRONLY)
    yield
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
