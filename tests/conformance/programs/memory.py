"""Private memory and mapped files."""

import mmap
import os
import threading

from areas import ANONYMOUS, NONE, NORESERVE, PAGE, PRIVATE, READ, SHARED, WRITE, Area
from protocol import UnsupportedError, call, expect, main, pattern, program, restored

MEBIBYTE = 1 << 20
DROPPABLE = 0x08  # MAP_DROPPABLE, Linux 6.11, a type like MAP_SHARED and MAP_PRIVATE
GROWSDOWN = mmap.MAP_GROWSDOWN if hasattr(mmap, "MAP_GROWSDOWN") else 0x100
GUARD_INSTALL = 102  # MADV_GUARD_INSTALL, Linux 6.13
WIPEONFORK = 18
DONTDUMP = 16
PR_SET_VMA = 0x53564D41
PR_SET_VMA_ANON_NAME = 0
MCL_FUTURE, MCL_ONFAULT = 2, 4


@program
def private_anonymous():
    area = Area(4 * MEBIBYTE)
    area.write(pattern(3 * MEBIBYTE))
    yield
    expect("content", area.read() == pattern(3 * MEBIBYTE) + bytes(MEBIBYTE), True)
    area.write(b"still writable")
    expect("what was written", area.read(14), b"still writable")


@program
def scattered_pages():
    """Every other page dirty: the ranges of the snapshot are many and short."""
    area = Area(512 * PAGE)
    area.advise(mmap.MADV_NOHUGEPAGE)
    for page in range(0, 512, 2):
        area.write(pattern(PAGE, page % 250 + 1), page * PAGE)
    yield
    for page in range(512):
        expected = bytes(PAGE) if page % 2 else pattern(PAGE, page % 250 + 1)
        expect(f"page {page}", area.read(PAGE, page * PAGE) == expected, True)


@program
def sparse_reservation():
    length = 64 << 30
    area = Area(length, flags=PRIVATE | ANONYMOUS | NORESERVE)
    places = (0, 17 * MEBIBYTE, (40 << 30) + 3 * PAGE, length - PAGE)
    for number, place in enumerate(places):
        area.write(pattern(PAGE, number + 1), place)
    yield
    for number, place in enumerate(places):
        expect(f"page at {place:#x}", area.read(PAGE, place), pattern(PAGE, number + 1))
    expect("a page in between", area.read(PAGE, 20 << 30), bytes(PAGE))
    assert "nr" in area.vm_flags(), "the reservation counts against the commit limit"
    assert area.resident() < 64 * MEBIBYTE, f"{area.resident()} bytes are resident"


@program
def inaccessible():
    """Data below PROT_NONE is still there."""
    area = Area(64 * PAGE)
    area.write(pattern(64 * PAGE))
    area.protect(NONE)
    reserved = Area(256 * MEBIBYTE, NONE)
    yield
    expect("can be read", area.readable(), False)
    expect("permissions", area.permissions(), "---p")
    expect("the reserved one can be read", reserved.readable(), False)
    area.protect(READ)
    expect("content", area.read() == pattern(64 * PAGE), True)
    reserved.protect(READ | WRITE)
    expect("reserved", reserved.read(PAGE, 99 * PAGE), bytes(PAGE))


@program
def read_only():
    area = Area(16 * PAGE)
    area.write(pattern(16 * PAGE))
    area.protect(READ)
    executable = Area(16 * PAGE)
    executable.write(pattern(16 * PAGE, 2))
    executable.protect(READ | mmap.PROT_EXEC)
    yield
    expect("can be written", area.writable(), False)
    expect("content", area.read() == pattern(16 * PAGE), True)
    expect("permissions", executable.permissions(), "r-xp")
    expect("executable content", executable.read() == pattern(16 * PAGE, 2), True)


@program
def permissions_by_page():
    """Neighbours with different protection stay apart, and do not merge with others."""
    area = Area(8 * PAGE)
    area.write(pattern(8 * PAGE))
    area.protect(READ, 2 * PAGE, 2 * PAGE)
    area.protect(NONE, 5 * PAGE, PAGE)
    before = [(area.readable(p * PAGE), area.writable(p * PAGE)) for p in range(8)]
    yield
    after = [(area.readable(p * PAGE), area.writable(p * PAGE)) for p in range(8)]
    expect("readable, writable", after, before)


@program
def program_break():
    """The heap is where brk(2) put it, and grows on."""
    start = call("sbrk", 8 * MEBIBYTE)
    heap = Area.__new__(Area)
    heap.address, heap.length = start, 8 * MEBIBYTE
    heap.write(pattern(8 * MEBIBYTE))
    yield
    expect("content", heap.read() == pattern(8 * MEBIBYTE), True)
    grown = call("sbrk", MEBIBYTE)
    assert grown >= start + 8 * MEBIBYTE, "the program break went back"
    heap.address, heap.length = grown, MEBIBYTE
    expect("new heap", heap.read() == bytes(MEBIBYTE), True)
    heap.write(pattern(MEBIBYTE))
    assert "[heap]" in heap.details()[""], heap.details()[""]


@program
def growing_area():
    """A MAP_GROWSDOWN area, like the stack."""
    area = Area(16 * PAGE, flags=PRIVATE | ANONYMOUS | GROWSDOWN)
    area.write(pattern(16 * PAGE))
    yield
    expect("content", area.read() == pattern(16 * PAGE), True)
    assert "gd" in area.vm_flags(), area.vm_flags()


@program
def private_file():
    """Clean pages come from the file, dirty ones from the snapshot."""
    with open("private", "wb") as file:
        file.write(pattern(64 * PAGE))
    with open("private", "rb") as file:
        area = Area(64 * PAGE, flags=PRIVATE, fd=file.fileno())
        second = Area(8 * PAGE, READ, PRIVATE, file.fileno(), 32 * PAGE)
    for page in (0, 7, 8, 63):
        area.write(pattern(PAGE, 99), page * PAGE)
    expected = bytearray(pattern(64 * PAGE))
    for page in (0, 7, 8, 63):
        expected[page * PAGE : (page + 1) * PAGE] = pattern(PAGE, 99)
    yield
    expect("content", area.read() == bytes(expected), True)
    expect("at an offset", second.read() == pattern(64 * PAGE)[32 * PAGE : 40 * PAGE], True)
    assert area.details()[""].endswith("/private"), area.details()[""]
    with open("private", "rb") as file:
        expect("the file itself", file.read() == pattern(64 * PAGE), True)


@program
def private_file_with_zeros():
    """A page of zeros over a file's bytes is not the file's page, which would be there without
    it; so it is with a memfd that is mapped privately."""
    with open("zeros", "wb") as file:
        file.write(pattern(8 * PAGE))
    memory = os.memfd_create("zeros")
    os.write(memory, pattern(8 * PAGE))
    with open("zeros", "rb") as file:
        areas = [Area(8 * PAGE, fd=fd, flags=PRIVATE) for fd in (file.fileno(), memory)]
    for area in areas:
        area.write(bytes(2 * PAGE), 3 * PAGE)
        area.write(b"written", 6 * PAGE)
    yield
    expected = pattern(3 * PAGE) + bytes(2 * PAGE) + pattern(8 * PAGE)[5 * PAGE :]
    expected = expected[: 6 * PAGE] + b"written" + expected[6 * PAGE + 7 :]
    for area in areas:
        expect("content", area.read(8 * PAGE) == expected, True)


@program
def private_file_beyond_end():
    """A mapping that is longer than its file: the last page is zero-filled, more is not there."""
    with open("short", "wb") as file:
        file.write(pattern(PAGE + 100))
    with open("short", "rb") as file:
        area = Area(4 * PAGE, flags=PRIVATE, fd=file.fileno())
    area.write(b"dirty", PAGE + 50)
    yield
    expect("first page", area.read(PAGE), pattern(PAGE))
    expect("rest", area.read(PAGE - 50, PAGE + 50)[:5], b"dirty")
    expect("fill", area.read(PAGE - 100, PAGE + 100), bytes(PAGE - 100))
    expect("beyond the end can be read", area.readable(3 * PAGE), False)


@program
def private_deleted_file():
    with open("deleted", "wb") as file:
        file.write(pattern(32 * PAGE))
    with open("deleted", "rb") as file:
        area = Area(32 * PAGE, flags=PRIVATE, fd=file.fileno())
    os.unlink("deleted")
    area.write(pattern(PAGE, 77), 5 * PAGE)
    expected = pattern(5 * PAGE) + pattern(PAGE, 77) + pattern(32 * PAGE)[6 * PAGE :]
    yield
    expect("content", area.read() == expected, True)


@program
def shared_anonymous():
    """One object under two addresses, made with mremap(2) and an old size of 0."""
    area = Area(64 * PAGE, flags=SHARED | ANONYMOUS)
    area.write(pattern(64 * PAGE))
    twin = Area.__new__(Area)
    twin.length = area.length
    twin.address = call("mremap", area.address, 0, area.length, 1)
    yield
    expect("content", area.read() == pattern(64 * PAGE), True)
    assert "sh" in area.vm_flags(), area.vm_flags()
    area.write(b"seen on the other side", 3 * PAGE)
    expect("shared", twin.read(22, 3 * PAGE), b"seen on the other side")


@program
def shared_in_parts():
    """One object behind mappings of different protection, of which the first is not the widest."""
    area = Area(48 * PAGE, flags=SHARED | ANONYMOUS)
    area.write(pattern(48 * PAGE))
    area.protect(READ, 16 * PAGE, PAGE)
    area.protect(NONE, 40 * PAGE, 8 * PAGE)
    yield
    expect("permissions", area.permissions(), "rw-s")
    expect("can be written", area.writable(16 * PAGE), False)
    expect("can be read", area.readable(40 * PAGE), False)
    area.protect(READ)
    expect("content", area.read() == pattern(48 * PAGE), True)


@program
def sparse_shared():
    """Pages of a hole do not come to life, neither in the original nor in a copy."""
    length = 8 << 30
    area = Area(length, flags=SHARED | ANONYMOUS | NORESERVE)
    places = (0, 17 * MEBIBYTE, (5 << 30) + 3 * PAGE, length - PAGE)
    for number, place in enumerate(places):
        area.write(pattern(PAGE, number + 1), place)
    yield
    resident = area.resident()
    assert resident < 64 * MEBIBYTE, f"{resident} bytes are resident"
    for number, place in enumerate(places):
        expect(f"page at {place:#x}", area.read(PAGE, place), pattern(PAGE, number + 1))
    expect("a page in between", area.read(PAGE, 3 << 30), bytes(PAGE))
    assert "nr" in area.vm_flags(), "the reservation counts against the commit limit"


@program
def shared_with_children():
    """Shared anonymous memory is shared with a child that is started after the restore."""
    area = Area(4 * PAGE, flags=SHARED | ANONYMOUS)
    area.write(b"parent")
    yield
    child = os.fork()
    if child == 0:
        area.write(b"child ")
        os._exit(0)
    expect("child's status", os.waitpid(child, 0)[1], 0)
    expect("content", area.read(6), b"child ")


@program
def shared_file():
    """Writes reach the file."""
    with open("shared", "wb") as file:
        file.write(pattern(16 * PAGE))
    with open("shared", "r+b") as file:
        area = Area(16 * PAGE, flags=SHARED, fd=file.fileno())
    area.write(b"before", 2 * PAGE)
    yield
    area.write(b"after!", 9 * PAGE)
    with open("shared", "rb") as file:
        content = file.read()
    expect("written before", content[2 * PAGE : 2 * PAGE + 6], b"before")
    expect("written after", content[9 * PAGE : 9 * PAGE + 6], b"after!")


@program
def shared_file_that_changes():
    """Somebody modifies a file that is mapped shared all the time, as databases are."""
    with open("shared", "wb") as file:
        file.write(pattern(4 * PAGE))
    with open("shared", "r+b") as file:
        area = Area(4 * PAGE, flags=SHARED, fd=file.fileno())
    ended = threading.Event()

    def modify():
        number = 0
        while not ended.wait(0.001):
            number += 1
            os.utime("shared", ns=(number, number))

    thread = threading.Thread(target=modify)
    thread.start()
    yield
    ended.set()
    thread.join()
    expect("content", area.read() == pattern(4 * PAGE), True)


@program
def replaced_library():
    """A file mapped in segments, as the dynamic linker does it, and deleted by an upgrade."""
    with open("library.so", "wb") as file:
        file.write(pattern(16 * PAGE - 100))
    with open("library.so", "rb") as file:
        head = Area(6 * PAGE, READ, PRIVATE, file.fileno())
        code = Area(6 * PAGE, READ | mmap.PROT_EXEC, PRIVATE, file.fileno(), 5 * PAGE)
        data = Area(6 * PAGE, READ | WRITE, PRIVATE, file.fileno(), 10 * PAGE)
    data.write(b"relocated")
    data.write(b"relocated", 5 * PAGE)
    os.unlink("library.so")
    yield
    content = pattern(16 * PAGE - 100) + bytes(100)
    expect("head", head.read() == content[: 6 * PAGE], True)
    expect("code", code.read() == content[5 * PAGE : 11 * PAGE], True)
    expect("permissions", code.permissions(), "r-xp")
    expect("between", data.read(4 * PAGE, PAGE) == content[11 * PAGE : 15 * PAGE], True)
    for place in (0, 5 * PAGE):
        mine = data.read(PAGE, place)
        expect("relocated", mine[:9], b"relocated")
        expect("rest", mine[9:] == content[10 * PAGE + place :][9:PAGE], True)


@program
def deleted_with_its_folder():
    os.mkdir("folder")
    descriptor = os.open("folder/gone", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(descriptor, pattern(4 * PAGE))
    area = Area(4 * PAGE, flags=SHARED, fd=descriptor)
    os.unlink("folder/gone")
    os.rmdir("folder")
    yield
    expect("in memory", area.read() == pattern(4 * PAGE), True)
    area.write(b"one object", PAGE)
    expect("in the file", os.pread(descriptor, 10, PAGE), b"one object")


@program
def shared_deleted_file():
    with open("gone", "w+b") as file:
        file.write(pattern(16 * PAGE))
        file.flush()
        area = Area(16 * PAGE, flags=SHARED, fd=file.fileno())
        descriptor = os.dup(file.fileno())
    os.unlink("gone")
    area.write(b"through memory", PAGE)
    yield
    expect("in memory", area.read(14, PAGE), b"through memory")
    expect("in the file", os.pread(descriptor, 14, PAGE), b"through memory")
    os.pwrite(descriptor, b"through the file", 3 * PAGE)
    expect("still one object", area.read(16, 3 * PAGE), b"through the file")


@program
def memory_file():
    """A memfd with a descriptor, mapped twice, is one object."""
    import fcntl

    fd = os.memfd_create("corpus", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 32 * PAGE)
    first = Area(32 * PAGE, flags=SHARED, fd=fd)
    second = Area(8 * PAGE, flags=SHARED, fd=fd, offset=16 * PAGE)
    first.write(pattern(24 * PAGE))
    os.lseek(fd, 4321, os.SEEK_SET)
    seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    yield
    expect("content", first.read() == pattern(24 * PAGE) + bytes(8 * PAGE), True)
    expect("position", os.lseek(fd, 0, os.SEEK_CUR), 4321)
    expect("seals", fcntl.fcntl(fd, fcntl.F_GET_SEALS), seals)
    first.write(b"one object", 17 * PAGE)
    expect("second mapping", second.read(10, PAGE), b"one object")
    expect("descriptor", os.pread(fd, 10, 17 * PAGE), b"one object")
    assert "memfd:corpus" in os.readlink(f"/proc/self/fd/{fd}")


@program
def sealed_memory_file():
    """A memfd that nobody may write any more, and its private mapping."""
    import fcntl

    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, pattern(8 * PAGE))
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    area = Area(8 * PAGE, READ | WRITE, PRIVATE, fd)
    area.write(b"private", PAGE)
    yield
    expect("seals", fcntl.fcntl(fd, fcntl.F_GET_SEALS), seals)
    expect("content", os.pread(fd, 8 * PAGE, 0) == pattern(8 * PAGE), True)
    expect("private page", area.read(7, PAGE), b"private")
    try:
        os.pwrite(fd, b"x", 0)
    except PermissionError:
        return
    raise AssertionError("the sealed file can be written")


@program
def memory_file_without_descriptor():
    fd = os.memfd_create("closed")
    os.ftruncate(fd, 8 * PAGE)
    first = Area(8 * PAGE, flags=SHARED, fd=fd)
    second = Area(8 * PAGE, flags=SHARED, fd=fd)
    os.close(fd)
    first.write(pattern(8 * PAGE))
    yield
    expect("content", second.read() == pattern(8 * PAGE), True)
    second.write(b"shared")
    expect("still shared", first.read(6), b"shared")


@program
def memory_file_in_parts():
    """Mappings that show different parts of a memfd that nobody has open."""
    fd = os.memfd_create("parts")
    os.ftruncate(fd, 100 * PAGE)
    first = Area(4 * PAGE, flags=SHARED, fd=fd)
    second = Area(32 * PAGE, flags=SHARED, fd=fd, offset=60 * PAGE)
    own = Area(8 * PAGE, flags=PRIVATE, fd=fd, offset=2 * PAGE)
    os.close(fd)
    first.write(pattern(4 * PAGE))
    second.write(pattern(16 * PAGE, 2))
    own.write(b"own", PAGE)
    yield
    expect("first", first.read() == pattern(4 * PAGE), True)
    expect("second", second.read() == pattern(16 * PAGE, 2) + bytes(16 * PAGE), True)
    expect("private", own.read(3, PAGE), b"own")
    first.write(b"seen", 2 * PAGE)
    expect("not private", own.read(4), b"seen")


@program
def huge_pages():
    area = Area(34 * MEBIBYTE)
    area.advise(mmap.MADV_HUGEPAGE)
    area.write(pattern(34 * MEBIBYTE))
    before = int(area.details()["AnonHugePages"].split()[0])
    if before == 0:
        raise UnsupportedError("no transparent huge pages")
    yield
    expect("content", area.read() == pattern(34 * MEBIBYTE), True)
    after = int(area.details()["AnonHugePages"].split()[0])
    assert "hg" in area.vm_flags(), area.vm_flags()
    assert after >= 0.9 * before, f"{after} kB in huge pages, {before} before"


@program
def not_inherited():
    """MADV_DONTFORK: a copy-on-write child does not have it."""
    area = Area(64 * PAGE)
    area.write(pattern(64 * PAGE))
    area.advise(mmap.MADV_DONTFORK)
    yield
    expect("content", area.read() == pattern(64 * PAGE), True)
    assert "dc" in area.vm_flags(), area.vm_flags()


@program
def wiped_in_children():
    """MADV_WIPEONFORK keeps what must not exist twice, such as the state of a random generator: a
    restored copy finds it wiped, like a forked child, and the original does not."""
    area = Area(64 * PAGE)
    area.write(pattern(64 * PAGE))
    area.advise(WIPEONFORK)
    yield
    expected = bytes(64 * PAGE) if restored() else pattern(64 * PAGE)
    expect("content", area.read() == expected, True)
    assert "wf" in area.vm_flags(), area.vm_flags()


@program
def not_dumped():
    area = Area(16 * PAGE)
    area.write(pattern(16 * PAGE))
    area.advise(DONTDUMP)
    yield
    expect("content", area.read() == pattern(16 * PAGE), True)
    assert "dd" in area.vm_flags(), area.vm_flags()


@program
def locked():
    """mlock(2)."""
    area = Area(8 * PAGE)
    area.write(pattern(8 * PAGE))
    call("mlock", area.address, area.length)
    yield
    expect("content", area.read() == pattern(8 * PAGE), True)
    assert "lo" in area.vm_flags(), area.vm_flags()


@program
def locked_on_fault():
    """mlock2(2), MLOCK_ONFAULT: pages are locked when they are touched, and no others are there."""
    area = Area(64 * PAGE)
    call("mlock2", area.address, area.length, 1)
    area.write(pattern(2 * PAGE))
    yield
    expect("content", area.read(2 * PAGE), pattern(2 * PAGE))
    expect("resident", area.resident(), 2 * PAGE)
    assert {"lo", "lf"} <= area.vm_flags(), area.vm_flags()


def _future_locks(flags: int):
    """mlockall(2), MCL_FUTURE: what is mapped from now on is locked."""
    before = Area(8 * PAGE)
    try:
        call("mlockall", flags)
    except OSError as error:
        raise UnsupportedError(f"mlockall: {error.strerror}") from None
    yield
    after = Area(8 * PAGE)
    assert "lo" not in before.vm_flags(), before.vm_flags()
    assert "lo" in after.vm_flags(), after.vm_flags()
    on_fault = bool(flags & MCL_ONFAULT)
    expect("locked on fault", "lf" in after.vm_flags(), on_fault)
    expect("resident", after.resident(), 0 if on_fault else 8 * PAGE)


@program
def locked_in_future():
    yield from _future_locks(MCL_FUTURE)


@program
def locked_in_future_on_fault():
    yield from _future_locks(MCL_FUTURE | MCL_ONFAULT)


@program
def guard_pages():
    area = Area(64 * PAGE)
    area.advise(mmap.MADV_NOHUGEPAGE)
    area.write(pattern(64 * PAGE))
    guarded = (0, 10, 11, 63)
    for page in guarded:
        area.advise(GUARD_INSTALL, page * PAGE, PAGE)
    yield
    for page in range(64):
        expect(f"page {page} can be read", area.readable(page * PAGE), page not in guarded)
        if page not in guarded:
            expected = pattern(64 * PAGE)[page * PAGE : (page + 1) * PAGE]
            expect(f"page {page}", area.read(PAGE, page * PAGE) == expected, True)


@program
def droppable():
    """The kernel may take the content away at any time, so it is either there or zero."""
    area = Area(16 * PAGE, flags=DROPPABLE | ANONYMOUS)
    if "dp" not in area.vm_flags():
        raise UnsupportedError("MAP_DROPPABLE")
    area.write(pattern(16 * PAGE))
    yield
    assert "dp" in area.vm_flags(), area.vm_flags()
    for page in range(16):
        found = area.read(PAGE, page * PAGE)
        expected = pattern(16 * PAGE)[page * PAGE : (page + 1) * PAGE]
        assert found in (expected, bytes(PAGE)), f"page {page} is neither as written nor zero"
    area.write(b"usable")
    expect("written", area.read(6), b"usable")


@program
def named():
    """prctl(2), PR_SET_VMA_ANON_NAME."""
    area = Area(16 * PAGE)
    area.write(pattern(16 * PAGE))
    try:
        call("prctl", PR_SET_VMA, PR_SET_VMA_ANON_NAME, area.address, area.length, b"my arrays")
    except OSError:
        raise UnsupportedError("names of anonymous memory") from None
    if "my arrays" not in area.details()[""]:
        raise UnsupportedError("names of anonymous memory")
    yield
    expect("name", area.details()[""].partition("[")[2], "anon:my arrays]")
    expect("content", area.read() == pattern(16 * PAGE), True)


@program
def named_shared():
    """The same of shared memory (Linux 6.2)."""
    area = Area(16 * PAGE, flags=SHARED | ANONYMOUS)
    area.write(pattern(16 * PAGE))
    try:
        call("prctl", PR_SET_VMA, PR_SET_VMA_ANON_NAME, area.address, area.length, b"our arrays")
    except OSError:
        raise UnsupportedError("names of shared anonymous memory") from None
    if "our arrays" not in area.details()[""]:
        raise UnsupportedError("names of shared anonymous memory")
    yield
    expect("name", area.details()[""].partition("[")[2], "anon_shmem:our arrays]")
    expect("content", area.read() == pattern(16 * PAGE), True)


@program
def many_mappings():
    """More mappings than fit into one batch."""
    areas = []
    for number in range(600):
        area = Area(2 * PAGE, READ | WRITE)
        area.write(number.to_bytes(4, "big"))
        area.protect(NONE, PAGE, PAGE)
        areas.append(area)
    yield
    expect("numbers", [int.from_bytes(area.read(4), "big") for area in areas], list(range(600)))


if __name__ == "__main__":
    main()
