"""The vdso (vdso(7)): how to have it mapped, and how to do without it."""

from __future__ import annotations

import struct

ARCH_MAP_VDSO_64 = 0x2003  # arch_prctl(2), Linux 4.8 with CONFIG_CHECKPOINT_RESTORE

_NUMBERS = {
    "clock_gettime": 228,
    "gettimeofday": 96,
    "time": 201,
    "clock_getres": 229,
    "getcpu": 309,
}
_ENOSYS = 38


def redirect(symbol: str) -> bytes | None:
    """``mov $number, %eax; syscall; ret`` for functions that are also system calls.

    Of the others, getrandom answers ENOSYS, whereupon the C library makes the system call.
    """
    name = symbol.removeprefix("__vdso_")
    if name in _NUMBERS:
        return b"\xb8" + struct.pack("<I", _NUMBERS[name]) + b"\x0f\x05\xc3"
    if symbol.startswith("__vdso_"):
        return b"\x48\xc7\xc0" + struct.pack("<i", -_ENOSYS) + b"\xc3"
    return None
