"""Signal frames: what rt_sigreturn(2) takes registers, signal mask and vector state from.

``struct rt_sigframe`` (arch/x86/include/asm/sigframe.h) is an address to return to and a
``struct ucontext`` (<asm/ucontext.h>), whose ``struct sigcontext`` (<asm/sigcontext.h>) points to
the vector state: an XSAVE area of the standard format, aligned to 64 bytes, with a description of
itself in the bytes that FXSAVE leaves to software. Without vector state the kernel gives the thread
the initial one.
"""

from __future__ import annotations

import struct

from . import registers, vector

CALL_AND_RETURN = b"\x0f\x05\xc3"  # syscall; ret
SIGNAL_RETURN = (
    b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05",  # mov $15, %rax; syscall
    b"\xb8\x0f\x00\x00\x00\x0f\x05",  # mov $15, %eax; syscall
)

RED_ZONE = 128  # bytes below the stack pointer that belong to the function (System V ABI)
# The address to return to; flags, link and stack; struct sigcontext: general registers, selectors,
# error, trap, mask, fault address, vector state; signal mask.
_FRAME = struct.Struct("<Q QQ QI4xQ 18Q4H4QQ64x Q")
_chosen = registers.some(
    "r8 r9 r10 r11 r12 r13 r14 r15 rdi rsi rbp rbx rdx rax rcx rsp rip eflags cs ss".split()
)
_UC_FP_XSTATE, _UC_SIGCONTEXT_SS, _UC_STRICT_RESTORE_SS = 1, 2, 4
_STACK_AS_IT_IS = 7  # no valid mode: sigaltstack(2) fails, which rt_sigreturn ignores
SIZE = _FRAME.size
_ALIGNMENT = 64


def size(state: bytes) -> int:
    """Bytes of a frame with this vector state, wherever it lies."""
    return SIZE + (_ALIGNMENT + vector.frame_size(state) if state else 0)


def place(top: int, length: int) -> int:
    """The highest address below ``top`` for a frame that is also the stack of a C function (System
    V ABI: 8 less than a multiple of 16)."""
    return (top - length - 8 & -16) + 8


def build(raw: bytes, mask: int, state: bytes, address: int, signal_return: int) -> bytes:
    """The frame at ``address``, by which the code at ``signal_return`` loads all this."""
    *words, cs, ss = _chosen(raw)
    flags = _UC_SIGCONTEXT_SS | _UC_STRICT_RESTORE_SS | (_UC_FP_XSTATE if state else 0)
    area = -(-(address + SIZE) // _ALIGNMENT) * _ALIGNMENT if state else 0
    frame = _FRAME.pack(
        *(signal_return, flags, 0),
        *(0, _STACK_AS_IT_IS, 0),
        *words,
        *(cs & 0xFFFF, 0, 0, ss & 0xFFFF),
        *(0, 0, 0, 0, area),
        mask,
    )
    return frame.ljust(area - address, b"\0") + vector.for_frame(state) if state else frame
