"""General registers: ``struct user_regs_struct`` (<sys/user.h>), the regset ``NT_PRSTATUS``."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from operator import itemgetter

from .. import Back

NAMES = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
    "fs_base gs_base ds es fs gs"
).split()
_LAYOUT = struct.Struct(f"<{len(NAMES)}Q")
_WORD = struct.Struct("<Q")
_INDEX = {name: index for index, name in enumerate(NAMES)}
_ARGUMENTS = [_INDEX[name] for name in ("rdi", "rsi", "rdx", "r10", "r8", "r9")]
_RIP, _RSP, _RAX, _ORIG_RAX = (_INDEX[name] for name in ("rip", "rsp", "rax", "orig_rax"))
_MASK = (1 << 64) - 1
_NONE = _MASK  # orig_rax outside of a system call

SYSCALL = b"\x0f\x05"

EINTR = 4
ERESTARTNOHAND = 514
ERESTART_RESTARTBLOCK = 516
RESTART_SYSCALL = 219

# These answer EINTR to a mere stop (signal(7)): epoll_wait, epoll_pwait, epoll_pwait2,
# rt_sigtimedwait, semop, semtimedop, io_getevents, io_pgetevents; and on a socket with a timeout
# read, readv, recvfrom, recvmsg, recvmmsg, write, writev, sendto, sendmsg, sendmmsg, accept(4).
INTERRUPTED_BY_STOPS = frozenset(
    {232, 281, 441, 128, 65, 220, 208, 333} | {0, 19, 45, 47, 299, 1, 20, 44, 46, 307, 43, 288}
)
# Those that use the restart block: poll, nanosleep, futex, clock_nanosleep.
USE_RESTART_BLOCK = frozenset({7, 35, 202, 230})


def signed(word: int) -> int:
    """A register's word as a signed number."""
    return word - (1 << 64) if word >> 63 else word


def get(raw: bytes, name: str) -> int:
    """One register."""
    word: int = _WORD.unpack_from(raw, 8 * _INDEX[name])[0]
    return word


def some(names: Sequence[str]) -> Callable[[bytes], tuple[int, ...]]:
    """A function that gives several registers."""
    chosen = itemgetter(*(_INDEX[name] for name in names))

    def these(raw: bytes) -> tuple[int, ...]:
        words: tuple[int, ...] = chosen(_LAYOUT.unpack(raw))
        return words

    return these


def replace(raw: bytes, **values: int) -> bytes:
    """A copy with other values."""
    words = list(_LAYOUT.unpack(raw))
    for name, value in values.items():
        words[_INDEX[name]] = value & _MASK
    return _LAYOUT.pack(*words)


def for_call(
    raw: bytes, address: int, number: int, arguments: tuple[int, ...], back: Back | None
) -> bytes:
    """One system call; ``orig_rax`` of -1 keeps the kernel from restarting an older one."""
    words = list(_LAYOUT.unpack(raw))
    words[_RIP], words[_RAX], words[_ORIG_RAX] = address, number, _NONE
    for index, argument in zip(_ARGUMENTS, (*arguments, 0, 0, 0, 0, 0, 0), strict=False):
        words[index] = argument
    if back is not None:
        words[_RSP] = back[0]  # the frame begins with the address to return to
    return _LAYOUT.pack(*words)


def for_agent(raw: bytes, address: int, stack: int, argument: int, back: Back | None) -> bytes:
    """A C function (System V ABI): the stack as after a call, direction flag clear."""
    return replace(
        raw,
        rip=address,
        rsp=stack - 8 if back is None else back[0],
        rdi=argument,
        rax=0,
        orig_rax=_NONE,
        eflags=get(raw, "eflags") & ~0x400,
    )


def interrupted_call(raw: bytes) -> int | None:
    """The number in ``orig_rax`` when the kernel is to restart that call."""
    number, result = get(raw, "orig_rax"), -signed(get(raw, "rax"))
    if number == _NONE:
        return None
    restart = 512 <= result <= ERESTART_RESTARTBLOCK and result != 515
    always = result == EINTR and number in INTERRUPTED_BY_STOPS
    return number if restart or always else None


def unnoticed(raw: bytes) -> bytes:
    """Turn the EINTR of a call that a stop has interrupted into "make it again, unless a handler
    runs"; what uses the restart block is left to the kernel, which knows the time that is left."""
    number = interrupted_call(raw)
    if number in INTERRUPTED_BY_STOPS and -signed(get(raw, "rax")) == EINTR:
        return replace(raw, rax=-ERESTARTNOHAND)
    return raw


def resumable(raw: bytes, read: Callable[[int, int], bytes]) -> bytes:
    """Turn "resume by the restart block" into "make the call again, unless a handler runs".

    That is what ``-ERESTARTNOHAND`` means to the kernel (arch/x86/kernel/signal.c), whichever
    task has these registers. A call that was resumed by restart_syscall(2) before gets its number
    back from the ``mov $number, %eax`` in front of the instruction.
    """
    number = interrupted_call(raw)
    if number is None:
        # Not to be restarted: take away the number, or a result that looks like an error
        # code of the kernel's own would be mistaken for one.
        return replace(raw, orig_rax=_NONE)
    result = -signed(get(raw, "rax"))
    if number == RESTART_SYSCALL:
        found = _number_in_code(get(raw, "rip"), read)
        if found is None:
            return replace(raw, rax=-EINTR, orig_rax=_NONE)
        number = found
    if result in (ERESTART_RESTARTBLOCK, EINTR):
        return replace(raw, rax=-ERESTARTNOHAND, orig_rax=number)
    return raw


def resumed(raw: bytes, read: Callable[[int, int], bytes]) -> bytes:
    """What the kernel would make of these registers before the thread goes on: a call that is to be
    made again is, and begins anew (arch/x86/kernel/signal.c, arch_do_signal_or_restart)."""
    raw = resumable(raw, read)
    number = interrupted_call(raw)
    if number is None:
        return raw
    return replace(raw, rip=get(raw, "rip") - len(SYSCALL), rax=number, orig_rax=_NONE)


def _number_in_code(after: int, read: Callable[[int, int], bytes]) -> int | None:
    try:
        code = read(after - 34, 32)
    except OSError:
        return None
    for at in range(len(code) - 5, -1, -1):
        if code[at] == 0xB8:
            number: int = struct.unpack_from("<I", code, at + 1)[0]
            if number in USE_RESTART_BLOCK:
                return number
    return None
