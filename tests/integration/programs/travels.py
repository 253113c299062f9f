"""Programs whose files travel with them. The protocol is that of the conformance programs; they
begin in a folder of their own."""

import contextlib
import fcntl
import mmap
import os
import signal
import sqlite3
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance" / "programs"))

from protocol import expect, main, program


@program
def open_files():
    """A log that is written, a table that is read in the middle, a sparse file for a while."""
    log = open("run.log", "a")  # noqa: SIM115
    log.write("line\n" * 100)
    log.flush()
    os.mkdir("data")
    Path("data/in.csv").write_text("".join(f"row {number}\n" for number in range(5000)))
    os.chmod("data/in.csv", 0o640)
    os.utime("data/in.csv", ns=(1_600_000_000_123_456_789,) * 2)
    table = open("data/in.csv")  # noqa: SIM115
    for _ in range(1000):
        table.readline()
    scratch = open("scratch", "w+b")  # noqa: SIM115
    scratch.truncate(1 << 30)
    os.pwrite(scratch.fileno(), b"middle", 1 << 29)
    yield
    expect("row", table.readline(), "row 1000\n")
    expect("rows", sum(1 for _ in table), 3999)
    expect("scratch", os.pread(scratch.fileno(), 6, 1 << 29), b"middle")
    expect("size", os.fstat(scratch.fileno()).st_size, 1 << 30)
    expect("holes", os.fstat(scratch.fileno()).st_blocks < 1000, True)
    log.write("more\n")
    log.flush()
    expect("log", os.fstat(log.fileno()).st_size, 505)


@program
def grows():
    """A log to which a line is added."""
    log = open("run.log", "a")  # noqa: SIM115
    log.write("one\n")
    log.flush()
    yield
    log.write("two\n")
    log.flush()
    expect("end", os.fstat(log.fileno()).st_size, log.tell())


@program
def transaction():
    """A database in the middle of a transaction that is too large for memory."""
    database = sqlite3.connect("numbers.db", isolation_level=None)
    database.execute("create table numbers (n integer)")
    database.execute("insert into numbers values (1)")
    database.execute("pragma cache_size = 2")
    database.execute("begin immediate")
    database.execute("update numbers set n = 2")
    for number in range(3000):
        database.execute("insert into numbers values (?)", (number,))
    expect("journal", os.path.exists("numbers.db-journal"), True)
    yield
    database.execute("rollback")
    expect("rolled back", database.execute("select n from numbers").fetchall(), [(1,)])
    expect("check", database.execute("pragma integrity_check").fetchone(), ("ok",))


@program
def mapped():
    """A file that is mapped for writing, and not open any more."""
    Path("matrix").write_bytes(b"0" * 8192)
    with open("matrix", "r+b") as file:
        memory = mmap.mmap(file.fileno(), 8192)
    memory[5000:5003] = b"abc"
    Path("constants").write_bytes(b"1" * 8192)
    with open("constants", "rb") as file:
        constants = mmap.mmap(file.fileno(), 8192, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    for number in {int(n) for n in os.listdir("/proc/self/fd")} - {0, 1, 2}:
        with contextlib.suppress(OSError):
            os.close(number)  # Python keeps a descriptor for each mapping
    yield
    expect("constants", constants[:8192], b"1" * 8192)
    expect("memory", memory[4999:5004], b"0abc0")
    memory[0:1] = b"x"
    expect("file", Path("matrix").read_bytes()[:1], b"x")


@program
def leased():
    """A file that nobody else may open without its being told (fcntl(2), F_SETLEASE)."""
    fd = os.open("leased", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"0123456789")
    os.lseek(fd, 3, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    broken = []
    signal.signal(signal.SIGIO, lambda *_: broken.append(1))
    yield
    expect("broken", broken, [])
    expect("lease", fcntl.fcntl(fd, fcntl.F_GETLEASE), fcntl.F_WRLCK)
    expect("read on", os.read(fd, 3), b"345")


@program
def history():
    """A file of the user's, which all programs on a host share."""
    os.mkdir(".config")
    with open(".config/history", "a") as shared:
        shared.write("one\n")
        shared.flush()
        yield
        shared.write("two\n")


@program
def written():
    """Results that were written and closed."""
    os.mkdir("results")
    os.mkdir(".cache")
    Path("results/a.csv").write_text("a")
    Path("results/b.txt").write_text("b")
    Path(".cache/c").write_text("c")
    os.symlink("a.csv", "results/latest")
    yield
    for name in ("a.csv", "b.txt", "latest"):
        print(name, os.path.lexists(f"results/{name}"))
    print("cache", os.path.lexists(".cache/c"))


main()
