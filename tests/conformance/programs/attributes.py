"""What a process can set for itself with prctl(2) and its like, and what it then is told."""

import ctypes
import os
import struct
import threading

from protocol import UnsupportedError, Worker, call, expect, main, program

NODE = 0
PAGE = os.sysconf("SC_PAGESIZE")


def prctl(option: int, *arguments: int | bytes) -> int:
    return call("prctl", option, *arguments, *[0] * (4 - len(arguments)))


def supported(name: str, option: int, *arguments: int | bytes) -> None:
    """Set something that not every kernel or user has."""
    try:
        prctl(option, *arguments)
    except OSError as error:
        raise UnsupportedError(f"{name}: {error.strerror}") from None


@program
def personality():
    """ADDR_NO_RANDOMIZE, as after `setarch --addr-no-randomize`."""
    call("personality", 0x0040000)
    thread = threading.Event()
    worker = Worker(lambda: thread.wait() and call("personality", 0xFFFFFFFF)).blocked()
    yield
    thread.set()
    expect("personality", call("personality", 0xFFFFFFFF), 0x0040000)
    expect("personality of a thread", worker.result(), 0x0040000)


@program
def keep_capabilities():
    prctl(8, 1)  # PR_SET_KEEPCAPS
    yield
    expect("PR_GET_KEEPCAPS", prctl(7), 1)


@program
def securebits():
    """SECBIT_NOROOT, which only a privileged process may set, and its lock."""
    supported("PR_SET_SECUREBITS", 28, 0x3)
    yield
    expect("PR_GET_SECUREBITS", prctl(27), 0x3)


@program
def parent_death_signal():
    """It is the thread's own, and a change of user takes it back."""
    prctl(1, 10)
    yield
    found = ctypes.c_int()
    prctl(2, ctypes.addressof(found))
    expect("PR_GET_PDEATHSIG", found.value, 10)


@program
def parent_death_signal_of_a_user():
    """A process that root has made another user's; root restores it."""
    if os.geteuid() != 0:
        raise UnsupportedError("only root can change its user")
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    prctl(4, 1)  # PR_SET_DUMPABLE: may be looked at
    prctl(1, 10)
    yield
    found = ctypes.c_int()
    prctl(2, ctypes.addressof(found))
    expect("PR_GET_PDEATHSIG", found.value, 10)


@program
def no_new_privileges():
    prctl(38, 1)
    yield
    expect("PR_GET_NO_NEW_PRIVS", prctl(39), 1)


@program
def not_dumpable_again():
    prctl(4, 0)
    prctl(4, 1)
    yield
    expect("PR_GET_DUMPABLE", prctl(3), 1)


@program
def child_subreaper():
    """Orphans below it become its children."""
    prctl(36, 1)
    yield
    found = ctypes.c_int()
    prctl(37, ctypes.addressof(found))
    expect("PR_GET_CHILD_SUBREAPER", found.value, 1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            os.read(reader, 1)
            os._exit(5)
        os._exit(0)
    expect("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
    os.write(writer, b"x")
    expect("grandchild", os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]), 5)


@program
def membarrier():
    """A registered process may use the expedited commands (membarrier(2)), others get EPERM."""
    number = {"x86_64": 324}.get(os.uname().machine, 283)
    for register in (1 << 4, 1 << 6, 1 << 2):
        try:
            call("syscall", number, register, 0, 0)
        except OSError as error:
            raise UnsupportedError(f"membarrier {register:#x}: {error.strerror}") from None
    try:
        before = call("syscall", number, 1 << 9, 0, 0)
    except OSError:
        before = None  # Linux before 6.3
    yield
    if before is not None:
        expect("registrations", call("syscall", number, 1 << 9, 0, 0), before)
    for command in (1 << 3, 1 << 5):
        expect(f"command {command:#x}", call("syscall", number, command, 0, 0), 0)


@program
def huge_pages_disabled():
    supported("PR_SET_THP_DISABLE", 41, 1)
    yield
    expect("PR_GET_THP_DISABLE", prctl(42), 1)


@program
def huge_pages_disabled_except_advised():
    supported("PR_SET_THP_DISABLE with PR_THP_DISABLE_EXCEPT_ADVISED", 41, 1, 2)
    yield
    expect("PR_GET_THP_DISABLE", prctl(42), 3)


@program
def deny_write_execute():
    """PR_SET_MDWE: no memory becomes executable."""
    supported("PR_SET_MDWE", 65, 1)
    yield
    expect("PR_GET_MDWE", prctl(66), 1)
    memory = call("mmap", 0, PAGE, 3, 0x22, -1, 0)
    try:
        call("mprotect", memory, PAGE, 5)
    except OSError as error:
        expect("mprotect", error.strerror, "mprotect: " + os.strerror(13))
    else:
        raise AssertionError("memory became executable")


@program
def machine_check_kill():
    supported("PR_MCE_KILL", 33, 1, 1)
    yield
    expect("PR_MCE_KILL_GET", prctl(34), 1)


@program
def io_flusher():
    supported("PR_SET_IO_FLUSHER", 57, 1)
    yield
    expect("PR_GET_IO_FLUSHER", prctl(58), 1)


@program
def memory_merge():
    supported("PR_SET_MEMORY_MERGE", 67, 1)
    yield
    expect("PR_GET_MEMORY_MERGE", prctl(68), 1)


@program
def speculation():
    """A choice for the process, where its processor and kernel offer one."""
    chosen = {}
    for kind, choice in {0: 4, 1: 8, 2: 2}.items():
        try:
            prctl(53, kind, choice)
        except OSError:
            continue
        chosen[kind] = prctl(52, kind)
    if not chosen:
        raise UnsupportedError("PR_SET_SPECULATION_CTRL: nothing can be chosen here")
    yield
    expect("speculation", {kind: prctl(52, kind) for kind in chosen}, chosen)


@program
def timer_slack_of_threads():
    """Each thread has its own."""
    go = threading.Event()

    def sets_its_own() -> int:
        prctl(29, 77_000)
        ready.set()
        go.wait()
        return prctl(30)

    ready = threading.Event()
    worker = Worker(sets_its_own)
    worker.start()
    ready.wait()
    prctl(29, 120_000)
    yield
    go.set()
    expect("of the main thread", prctl(30), 120_000)
    expect("of the other", worker.result(), 77_000)


# --- when a thread runs ------------------------------------------------------------------------

SCHED_SETATTR, SCHED_GETATTR = 314, 315
IOPRIO_SET, IOPRIO_GET = 251, 252
ATTRIBUTES = struct.Struct("=IIQiI3QII")


def sched_getattr() -> tuple[int, ...]:
    space = ctypes.create_string_buffer(ATTRIBUTES.size)
    call("syscall", SCHED_GETATTR, 0, ctypes.addressof(space), ATTRIBUTES.size, 0)
    return ATTRIBUTES.unpack(space.raw)


def sched_setattr(policy: int, flags: int = 0, nice: int = 0, priority: int = 0, *more: int):
    words = (*more, 0, 0, 0, 0, 0)[:5]
    packed = ATTRIBUTES.pack(ATTRIBUTES.size, policy, flags, nice, priority, *words)
    try:
        call("syscall", SCHED_SETATTR, 0, packed, 0)
    except OSError as error:
        raise UnsupportedError(f"sched_setattr {policy}: {error.strerror}") from None


@program
def idle_with_nice():
    """A nice value under SCHED_IDLE, which has another meaning there."""
    sched_setattr(5, 0, 7)
    before = sched_getattr()
    yield
    expect("sched_getattr", sched_getattr(), before)


@program
def reset_on_fork():
    os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
    before = sched_getattr()
    yield
    expect("sched_getattr", sched_getattr(), before)
    expect("flag", os.sched_getscheduler(0), os.SCHED_BATCH | os.SCHED_RESET_ON_FORK)


@program
def real_time():
    """A thread of SCHED_RR beside an ordinary one."""
    go, ready = threading.Event(), threading.Event()
    said = []

    def important() -> tuple[int, ...]:
        try:
            sched_setattr(2, 1, 0, 13)
        except UnsupportedError as error:
            said.append(error)
        ready.set()
        go.wait()
        return sched_getattr()

    worker = Worker(important)
    worker.start()
    ready.wait()
    if said:
        raise said[0]
    yield
    go.set()
    expect("main", sched_getattr()[1], os.SCHED_OTHER)
    found = worker.result()
    expect("policy, flags, priority", (found[1], found[2], found[4]), (2, 1, 13))


@program
def deadline():
    sched_setattr(6, 1, 0, 0, 1_000_000, 20_000_000, 40_000_000)
    before = sched_getattr()
    yield
    expect("sched_getattr", sched_getattr()[1:8], before[1:8])


@program
def utilization_clamps():
    sched_setattr(0, 0x60, 0, 0, 0, 0, 0, 100, 500)
    yield
    expect("clamps", sched_getattr()[8:], (100, 500))


@program
def io_priority():
    """Each thread has its own (ioprio_set(2))."""
    go, ready = threading.Event(), threading.Event()

    def idle() -> int:
        call("syscall", IOPRIO_SET, 1, 0, 3 << 13)
        ready.set()
        go.wait()
        return call("syscall", IOPRIO_GET, 1, 0)

    worker = Worker(idle)
    worker.start()
    ready.wait()
    call("syscall", IOPRIO_SET, 1, 0, 2 << 13 | 6)
    yield
    go.set()
    expect("of the main thread", call("syscall", IOPRIO_GET, 1, 0), 2 << 13 | 6)
    expect("of the other", worker.result(), 3 << 13)


# --- where memory is taken from ------------------------------------------------------------------

GET_MEMPOLICY, SET_MEMPOLICY, MBIND = 239, 238, 237
INTERLEAVE, BIND, STATIC = 3, 2, 1 << 15
MASK = (1 << NODE).to_bytes(128, "little")


def policy(address: int = 0) -> tuple[int, bytes]:
    mode, nodes = ctypes.c_int(), ctypes.create_string_buffer(128)
    where = (address, 2) if address else (0, 0)  # MPOL_F_ADDR
    pointers = ctypes.addressof(mode), ctypes.addressof(nodes)
    try:
        call("syscall", GET_MEMPOLICY, *pointers, 1024, *where)
    except OSError as error:
        raise UnsupportedError(f"get_mempolicy: {error.strerror}") from None
    return mode.value, nodes.raw


@program
def memory_policy_of_threads():
    policy()
    go, ready = threading.Event(), threading.Event()

    def interleaved() -> tuple[int, bytes]:
        call("syscall", SET_MEMPOLICY, INTERLEAVE, MASK, 1024)
        ready.set()
        go.wait()
        return policy()

    worker = Worker(interleaved)
    worker.start()
    ready.wait()
    call("syscall", SET_MEMPOLICY, BIND | STATIC, MASK, 1024)
    plain = call("mmap", 0, 4 * PAGE, 3, 0x22, -1, 0)
    yield
    go.set()
    expect("of the main thread", policy(), (BIND | STATIC, MASK))
    expect("of the other", worker.result(), (INTERLEAVE, MASK))
    call("syscall", SET_MEMPOLICY, 0, None, 0)
    expect("of memory without a policy", policy(plain)[0], 0)


@program
def memory_policy_of_areas():
    """mbind(2): of private memory, a part of it, and of a shared object."""
    policy()
    private = call("mmap", 0, 16 * PAGE, 3, 0x22, -1, 0)
    ctypes.memset(private, 1, 16 * PAGE)
    shared = call("mmap", 0, 16 * PAGE, 3, 0x21, -1, 0)
    call("syscall", MBIND, private + 4 * PAGE, 4 * PAGE, BIND | STATIC, MASK, 1024, 0)
    call("syscall", MBIND, private + 8 * PAGE, 4 * PAGE, INTERLEAVE, MASK, 1024, 0)
    call("syscall", MBIND, shared, 16 * PAGE, BIND, MASK, 1024, 0)
    places = {
        "before": private,
        "bound": private + 5 * PAGE,
        "interleaved": private + 9 * PAGE,
        "behind": private + 12 * PAGE,
        "shared": shared + PAGE,
    }
    before = {name: policy(place) for name, place in places.items()}
    expect("bound", before["bound"], (BIND | STATIC, MASK))
    yield
    expect("policies", {name: policy(place) for name, place in places.items()}, before)
    expect("content", ctypes.string_at(private, 16 * PAGE), b"\1" * 16 * PAGE)


if __name__ == "__main__":
    main()
