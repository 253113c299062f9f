"""What differs between processors: the contract that every folder here fulfils.

``arch/README.md`` has the contract as a table. Everything outside this package is written against
:class:`Architecture` and knows no processor.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

MACHINES = {"x86_64": "x86_64"}
"""Folder of this package by ``uname -m``."""


Back = tuple[int, int]
"""A signal frame, and code that makes rt_sigreturn(2) with it, by their addresses."""


class Architecture(ABC):
    """The facts of one processor architecture under Linux.

    Registers are handled as the bytes of the general regset (``NT_PRSTATUS``, ptrace(2)); words
    are unsigned, in the machine's byte order.
    """

    name: str
    byte_order: str
    """``little`` or ``big``."""
    word_size: int
    system_calls: Mapping[str, int]
    """Numbers of the system calls that snapkernel makes, by name."""
    terminal_requests: Mapping[str, int]
    """Numbers of the requests of ioctl(2) on terminals, by name."""
    system_call_instruction: bytes
    call_and_return: bytes
    """A system call instruction and the return from a function."""
    signal_return: tuple[bytes, ...]
    """Instructions that make rt_sigreturn(2), as C libraries have them; any of these."""
    task_size: int
    """End of the addresses that a process may map."""
    sigaction_size: int
    """Size of the kernel's ``struct sigaction``."""
    stack_size: int
    """Size of ``stack_t``."""
    epoll_event: str = "=I4xQ"
    """Format of ``struct epoll_event`` (struct): packed on x86_64 alone."""
    shmid_ds: str = "=i5I24xQ24x2iQ16x"
    """Format of ``struct shmid64_ds`` (<asm/shmbuf.h>): key, uid, gid, cuid, cgid, mode; size, pid
    of the creator, of the last one to attach or detach it, number of attachments."""
    semid_ds: str = "=i5I24x16xQ16x"
    """Format of ``struct semid64_ds`` (<asm/sembuf.h>): the same six; number of semaphores."""
    msqid_ds: str = "=i5I24x24x3Q2i16x"
    """Format of ``struct msqid64_ds`` (<asm/msgbuf.h>): the same six; bytes and messages in
    it, most bytes, pid of the last sender and receiver."""

    @abstractmethod
    def program_counter(self, registers: bytes) -> int:
        """The address of the next instruction."""

    @abstractmethod
    def with_program_counter(self, registers: bytes, address: int) -> bytes:
        """A copy that goes on at ``address``."""

    @abstractmethod
    def for_call(
        self,
        registers: bytes,
        address: int,
        number: int,
        arguments: tuple[int, ...],
        back: Back | None = None,
    ) -> bytes:
        """A copy that makes one system call at the system call instruction at ``address``. With
        ``back``, a return follows there, and leads through that signal frame."""

    @abstractmethod
    def for_agent(
        self, registers: bytes, address: int, stack: int, argument: int, back: Back | None = None
    ) -> bytes:
        """A copy that runs a C function at ``address`` with one argument and a fresh stack; with
        ``back``, the stack is below that signal frame, and the function returns through it."""

    @abstractmethod
    def call_result(self, registers: bytes) -> int:
        """The signed result of a finished system call."""

    @abstractmethod
    def interrupted_call(self, registers: bytes) -> int | None:
        """The number of the system call that the stop interrupted, or ``None``."""

    @abstractmethod
    def unnoticed(self, registers: bytes) -> bytes:
        """A copy with which the *same* task goes on as if it had not been stopped.

        Some system calls answer EINTR to a mere stop (signal(7), "Interruption of system calls and
        library functions by stop signals"); they are made again, unless a handler runs.
        """

    @abstractmethod
    def resumable(self, registers: bytes, read: Callable[[int, int], bytes]) -> bytes:
        """A copy with which *another* task resumes where this one was stopped.

        An interrupted system call is made again, because what the kernel remembers about it
        (the restart block) stays with the old task. ``read(address, length)`` reads memory.
        """

    @abstractmethod
    def resumed(self, registers: bytes, read: Callable[[int, int], bytes]) -> bytes:
        """A copy as after the kernel has dealt with an interrupted system call: nothing is left
        for it to do, whoever loads these registers. ``read(address, length)`` reads memory."""

    @abstractmethod
    def vector_regset(self, tid: int) -> bytes:
        """Floating point and vector state of a stopped thread, as the kernel gives it."""

    @abstractmethod
    def free_stack(self, registers: bytes) -> int:
        """The address below which a signal handler could have its stack."""

    @abstractmethod
    def frame_size(self, state: bytes) -> int:
        """The most bytes of a signal frame with this vector state (may be empty)."""

    @abstractmethod
    def frame_place(self, top: int, size: int) -> int:
        """Where a signal frame of that size lies that ends below ``top``, and below which a
        function may have its stack."""

    @abstractmethod
    def signal_frame(
        self, registers: bytes, mask: int, state: bytes, address: int, signal_return: int
    ) -> bytes:
        """The memory at ``address`` by which the code at ``signal_return`` gives a thread these
        registers, this signal mask and this vector state (the initial one where it is empty)."""

    @abstractmethod
    def get_vector(self, tid: int, regset: bytes) -> dict[str, bytes]:
        """What is in a thread's ``vector_regset``, by component."""

    @abstractmethod
    def set_vector(self, tid: int, components: Mapping[str, bytes]) -> None:
        """Give a stopped thread the state of ``components``, laid out as this processor wants.

        Raises:
            CannotRestore: the processor lacks a component that is in use.
        """

    @abstractmethod
    def vdso_redirect(self, symbol: str) -> bytes | None:
        """Code that does what the vdso's function ``symbol`` does, by a plain system call."""

    @abstractmethod
    def vdso_map_call(self, address: int) -> tuple[str, tuple[int, ...]]:
        """The system call that maps the vdso's block at ``address``."""

    @abstractmethod
    def cpu_features(self) -> tuple[str, ...]:
        """Features of this processor that a program may have found out and rely on."""


def load(name: str) -> Architecture:
    """The architecture of the folder ``name``.

    Raises:
        KeyError: there is no such folder.
    """
    if name not in MACHINES.values():
        raise KeyError(name)
    module = importlib.import_module(f"{__name__}.{name}")
    architecture: Architecture = module.ARCHITECTURE
    return architecture


def native() -> Architecture:
    """The architecture that this interpreter runs on.

    Raises:
        KeyError: snapkernel has no folder for it.
    """
    return load(MACHINES[os.uname().machine])
