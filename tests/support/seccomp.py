"""Runs a command under a seccomp filter that forbids system calls, as containers do.

    python seccomp.py unshare,ptrace COMMAND...

A forbidden call fails with EPERM; ``clone`` only when it is to make namespaces; ``clone3``, whose
flags a filter cannot see, with ENOSYS, as in the default profile of Docker.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

NUMBERS = {
    "x86_64": {
        "clone": 56,
        "ptrace": 101,
        "mount": 165,
        "unshare": 272,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "userfaultfd": 323,
        "clone3": 435,
        "pidfd_getfd": 438,
    }
}
DOCKER_TRACING = "clone,clone3,unshare,setns,mount,userfaultfd"
"""What Docker's default profile forbids, of the calls that we need, with CAP_SYS_PTRACE."""
DOCKER = f"{DOCKER_TRACING},kcmp,pidfd_getfd"
"""The same without that capability."""

_NAMESPACES = 0x7E020080  # CLONE_NEW*, clone(2)
_LOAD, _EQUAL, _SET, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ and JSET, BPF_RET
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NUMBER, _FLAGS = 0, 16  # offsets in struct seccomp_data (little-endian)
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2


def program(names: list[str]) -> bytes:
    """The filter, as an array of struct sock_filter."""
    numbers = NUMBERS[platform.machine()]
    lines = [(_LOAD, 0, 0, _NUMBER)]
    for name in names:
        number = errno.ENOSYS if name == "clone3" else errno.EPERM
        if name == "clone":
            lines += [(_EQUAL, 0, 4, numbers[name]), (_LOAD, 0, 0, _FLAGS)]
            lines += [(_SET, 0, 1, _NAMESPACES), (_RETURN, 0, 0, _FAIL | number)]
            lines += [(_RETURN, 0, 0, _ALLOW)]
        else:
            lines += [(_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _FAIL | number)]
    lines += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def main() -> None:
    """Set the filter and become the command."""
    code = program(sys.argv[1].split(","))
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER, header):
        raise OSError(ctypes.get_errno(), "prctl")
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
