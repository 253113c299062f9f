"""A program that holds something a snapshot may not be able to save."""

import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance" / "programs"))

from protocol import UnsupportedError, call, expect, main, program

IO_URING_SETUP = 425  # the same number on every architecture (Linux 5.1)
HUGETLB = 0x40000
# Numbers of <asm/unistd.h>: on x86_64, and on the architectures with the generic table.
NUMBERS = {
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "io_setup": (206, 0),
    "memfd_secret": (447, 447),
}


def system_call(name, *arguments):
    """One that the C library does not have."""
    machine = os.uname().machine
    if machine not in ("x86_64", "aarch64", "riscv64", "loongarch64"):
        raise UnsupportedError(f"the number of {name} on {machine} is not known here")
    number = NUMBERS[name][machine != "x86_64"]
    try:
        return call("syscall", number, *arguments)
    except OSError as error:
        raise UnsupportedError(f"{name}: {error.strerror}") from None


@program
def io_uring():
    parameters = ctypes.create_string_buffer(120)
    try:
        fd = call("syscall", IO_URING_SETUP, 4, ctypes.addressof(parameters))
    except OSError as error:
        raise UnsupportedError(f"io_uring: {error.strerror}") from None
    yield
    expect("descriptor", os.readlink(f"/proc/self/fd/{fd}"), "anon_inode:[io_uring]")


@program
def io_uring_mapped():
    """The descriptor is closed, and the ring lives on as long as it is mapped."""
    parameters = ctypes.create_string_buffer(120)
    try:
        fd = call("syscall", IO_URING_SETUP, 4, ctypes.addressof(parameters))
    except OSError as error:
        raise UnsupportedError(f"io_uring: {error.strerror}") from None
    ring = mmap.mmap(fd, mmap.PAGESIZE, flags=mmap.MAP_SHARED)
    os.close(fd)
    before = ring[:]
    yield
    expect("ring", ring[:], before)


@program
def fanotify():
    by_identity = 0x200  # FAN_REPORT_FID: a user without privilege may ask for it since Linux 5.13
    try:
        fd = call("fanotify_init", by_identity, os.O_RDONLY)
        call("fanotify_mark", fd, 1, 0x100, -100, b".")  # FAN_MARK_ADD, FAN_CREATE
    except OSError as error:
        raise UnsupportedError(f"fanotify: {error.strerror}") from None
    yield
    Path("made").touch()
    expect("told", select.select([fd], [], [], 30)[0], [fd])


@program
def userfaultfd():
    fd = system_call("userfaultfd", os.O_NONBLOCK | 1)  # UFFD_USER_MODE_ONLY
    yield
    expect("descriptor", os.readlink(f"/proc/self/fd/{fd}"), "anon_inode:[userfaultfd]")


@program
def perf_event():
    """A software counter of our own time, which most hosts let everybody have."""
    attributes = bytearray(128)
    struct.pack_into("=IIQ", attributes, 0, 1, len(attributes), 1)  # TASK_CLOCK
    struct.pack_into("=Q", attributes, 40, 1 << 5)  # exclude_kernel
    buffer = ctypes.create_string_buffer(bytes(attributes))
    fd = system_call("perf_event_open", ctypes.addressof(buffer), 0, -1, -1, 0)
    yield
    first = os.read(fd, 8)
    assert os.read(fd, 8) > first or first != bytes(8), "it does not count"


@program
def bpf():
    """A map of one element."""
    attributes = ctypes.create_string_buffer(struct.pack("=IIIII", 2, 4, 4, 1, 0), 128)  # ARRAY
    fd = system_call("bpf", 0, ctypes.addressof(attributes), 128)  # BPF_MAP_CREATE
    yield
    expect("descriptor", os.readlink(f"/proc/self/fd/{fd}"), "anon_inode:bpf-map")


@program
def asynchronous_input():
    """io_setup(2)."""
    context = ctypes.c_ulong()
    system_call("io_setup", 8, ctypes.addressof(context))
    yield
    with open("/proc/self/maps") as maps:
        assert any("/[aio]" in line for line in maps), "the context is gone"


@program
def secret_memory():
    fd = system_call("memfd_secret", 0)
    os.ftruncate(fd, mmap.PAGESIZE)
    area = mmap.mmap(fd, mmap.PAGESIZE)
    area[:6] = b"secret"
    yield
    expect("content", area[:6], b"secret")


@program
def events_that_wait():
    """An inotify whose event nobody has read."""
    os.mkdir("folder")
    fd = call("inotify_init1", os.O_NONBLOCK)
    call("inotify_add_watch", fd, b"folder", 0x100)  # IN_CREATE
    open("folder/made", "w").close()
    yield
    expect("event", os.read(fd, 4096)[16:20], b"made")


@program
def watch_that_leads_nowhere():
    """What is watched has no path any more, but is still there."""
    open("file", "w").close()
    kept = os.open("file", os.O_RDWR)
    fd = call("inotify_init1", os.O_NONBLOCK)
    call("inotify_add_watch", fd, b"file", 0x2)  # IN_MODIFY
    os.unlink("file")
    yield
    os.write(kept, b"x")
    expect("told", os.read(fd, 4096)[4], 2)


@program
def directory_that_was_deleted():
    os.mkdir("folder")
    fd = os.open("folder", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir("folder")
    yield
    expect("list", os.listdir(fd), [])


@program
def pipe_that_was_deleted():
    """A FIFO."""
    os.mkfifo("named")
    fd = os.open("named", os.O_RDWR)
    os.unlink("named")
    os.write(fd, b"queued")
    yield
    expect("queued", os.read(fd, 100), b"queued")


@program
def signals_to_another():
    """F_SETOWN: our parent is told."""
    reader, _ = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, os.getppid())
    yield
    expect("owner", fcntl.fcntl(reader, fcntl.F_GETOWN), os.getppid())


@program
def process_of_another():
    """A file of /proc that tells of our parent."""
    fd = os.open(f"/proc/{os.getppid()}/stat", os.O_RDONLY)
    yield
    expect("pid", os.read(fd, 100).split()[0], str(os.getppid()).encode())


@program
def thread_of_ours():
    """A file of /proc that tells of a thread."""
    import threading

    go = threading.Event()
    worker = threading.Thread(target=go.wait)
    worker.start()
    fd = os.open(f"/proc/self/task/{worker.native_id}/stat", os.O_RDONLY)
    yield
    expect("tid", os.read(fd, 100).split()[0], str(worker.native_id).encode())
    go.set()


@program
def inotify():
    fd = call("inotify_init1", os.O_NONBLOCK)
    os.mkdir("watched")
    call("inotify_add_watch", fd, b"watched", 0x100)  # IN_CREATE
    yield
    Path("watched/made").touch()
    expect("reported", select.select([fd], [], [], 30)[0], [fd])


@program
def file_lock():
    """flock(2): another description cannot take it."""
    fd = os.open("locked", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
    other = os.open("locked", os.O_RDWR)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    raise AssertionError("the lock is gone")


@program
def record_lock():
    """fcntl(2), F_SETLK: another process cannot take it."""
    fd = os.open("locked", os.O_RDWR | os.O_CREAT)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10)
    yield
    child = os.fork()
    if child == 0:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10)
        except OSError:
            os._exit(0)
        os._exit(1)
    expect("the other's status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)


@program
def lease():
    """fcntl(2), F_SETLEASE: we are told before somebody opens the file."""
    fd = os.open("leased", os.O_RDWR | os.O_CREAT)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
    yield
    expect("lease", fcntl.fcntl(fd, fcntl.F_GETLEASE), fcntl.F_WRLCK)
    try:
        os.open("leased", os.O_RDONLY | os.O_NONBLOCK)
    except BlockingIOError:
        told = signal.sigtimedwait([signal.SIGIO], 30)
        assert told is not None, "somebody opens the file and we are not told"
    else:
        raise AssertionError("somebody opens the file and does not wait for us")


@program
def name_that_is_no_text():
    """A file whose name is not UTF-8."""
    fd = os.open(b"na\xefve", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"text")
    yield
    expect("content", os.pread(fd, 10, 0), b"text")
    expect("name", os.path.basename(os.readlink(f"/proc/self/fd/{fd}".encode())), b"na\xefve")


@program
def pid_descriptor():
    fd = os.pidfd_open(os.getpid())
    yield
    expect("it is our own", select.select([fd], [], [], 0)[0], [])


@program
def unix_listener():
    server = socket.socket(socket.AF_UNIX)
    server.bind("listening")
    server.listen()
    yield
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)
    client.connect("listening")
    accepted, _ = server.accept()
    accepted.sendall(b"hello")
    expect("received", client.recv(10), b"hello")


@program
def udp_bound():
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    yield
    sender.sendto(b"hello", receiver.getsockname())
    receiver.settimeout(30)
    expect("received", receiver.recv(10), b"hello")


@program
def netlink():
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    link.bind((0, 1))
    yield
    expect("groups", link.getsockname()[1], 1)


@program
def path_only():
    """O_PATH."""
    with open("data", "w") as file:
        file.write("text")
    fd = os.open("data", os.O_PATH)
    yield
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH, "O_PATH is gone"
    with open(f"/proc/self/fd/{fd}") as file:
        expect("content", file.read(), "text")


@program
def fifo():
    os.mkfifo("named")
    fd = os.open("named", os.O_RDWR)
    os.write(fd, b"queued")
    yield
    expect("queued", os.read(fd, 100), b"queued")


@program
def terminal():
    master, slave = os.openpty()
    os.write(slave, b"queued")
    yield
    expect("queued", os.read(master, 100), b"queued")


@program
def huge_page():
    try:
        area = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | HUGETLB)
    except OSError as error:
        raise UnsupportedError(f"MAP_HUGETLB: {error.strerror}") from None
    area[:4] = b"huge"
    yield
    expect("content", area[:4], b"huge")


@program
def descriptor_in_flight():
    """A descriptor that was sent through a socket and not received yet."""
    import array

    left, right = socket.socketpair()
    reader, writer = os.pipe()
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))
    left.sendmsg([b"take"], [rights])
    os.close(writer)
    yield
    data, ancillary, _, _ = right.recvmsg(10, socket.CMSG_SPACE(4))
    expect("message", data, b"take")
    os.write(array.array("i", ancillary[0][2])[0], b"through")
    expect("through the passed end", os.read(reader, 10), b"through")


@program
def namespace_of_its_own():
    """The program has left our mount namespace."""
    if os.geteuid() != 0:
        raise UnsupportedError("unshare(2) without privilege")
    call("unshare", 0x20000)  # CLONE_NEWNS
    call("mount", b"none", b"/", None, 1 << 14 | 1 << 18, None)  # MS_REC | MS_PRIVATE
    os.mkdir("mounted")
    call("mount", b"none", b"mounted", b"tmpfs", 0, None)
    Path("mounted/file").write_text("inside")
    yield
    expect("content", Path("mounted/file").read_text(), "inside")


@program
def no_processes_left():
    """RLIMIT_NPROC is reached: this process cannot have another child (getrlimit(2))."""
    import resource

    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    kept = [bytes([number]) * 5000 for number in range(200)]
    try:
        child = os.fork()
    except BlockingIOError:
        pass
    else:
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        raise UnsupportedError("RLIMIT_NPROC does not bind a privileged user")
    yield
    expect("memory", kept == [bytes([number]) * 5000 for number in range(200)], True)


if __name__ == "__main__":
    main()
