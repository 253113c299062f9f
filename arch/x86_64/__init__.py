"""x86_64 (AMD64, Intel 64)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .. import Architecture, Back
from . import cpu, registers, signal_frame, vdso, vector
from .system_calls import SYSTEM_CALLS
from .terminal import TERMINAL_REQUESTS


class X86(Architecture):
    """The contract, filled in from this folder's files."""

    name = "x86_64"
    byte_order = "little"
    word_size = 8
    system_calls = SYSTEM_CALLS
    terminal_requests = TERMINAL_REQUESTS
    system_call_instruction = registers.SYSCALL
    call_and_return = signal_frame.CALL_AND_RETURN
    signal_return = signal_frame.SIGNAL_RETURN
    task_size = (1 << 47) - 4096
    sigaction_size = 32
    stack_size = 24
    epoll_event = "=IQ"
    semid_ds = "=i5I24x32xQ16x"

    def program_counter(self, raw: bytes) -> int:
        return registers.get(raw, "rip")

    def with_program_counter(self, raw: bytes, address: int) -> bytes:
        return registers.replace(raw, rip=address)

    def for_call(
        self,
        raw: bytes,
        address: int,
        number: int,
        arguments: tuple[int, ...],
        back: Back | None = None,
    ) -> bytes:
        return registers.for_call(raw, address, number, arguments, back)

    def for_agent(
        self, raw: bytes, address: int, stack: int, argument: int, back: Back | None = None
    ) -> bytes:
        return registers.for_agent(raw, address, stack, argument, back)

    def call_result(self, raw: bytes) -> int:
        return registers.signed(registers.get(raw, "rax"))

    def interrupted_call(self, raw: bytes) -> int | None:
        return registers.interrupted_call(raw)

    def unnoticed(self, raw: bytes) -> bytes:
        return registers.unnoticed(raw)

    def resumable(self, raw: bytes, read: Callable[[int, int], bytes]) -> bytes:
        return registers.resumable(raw, read)

    def resumed(self, raw: bytes, read: Callable[[int, int], bytes]) -> bytes:
        return registers.resumed(raw, read)

    def vector_regset(self, tid: int) -> bytes:
        return vector.read(tid)

    def free_stack(self, raw: bytes) -> int:
        return registers.get(raw, "rsp") - signal_frame.RED_ZONE

    def frame_size(self, state: bytes) -> int:
        return signal_frame.size(state)

    def frame_place(self, top: int, size: int) -> int:
        return signal_frame.place(top, size)

    def signal_frame(
        self, raw: bytes, mask: int, state: bytes, address: int, signal_return: int
    ) -> bytes:
        return signal_frame.build(raw, mask, state, address, signal_return)

    def get_vector(self, tid: int, regset: bytes) -> dict[str, bytes]:
        return vector.get(tid, regset)

    def set_vector(self, tid: int, components: Mapping[str, bytes]) -> None:
        vector.set(tid, components)

    def vdso_redirect(self, symbol: str) -> bytes | None:
        return vdso.redirect(symbol)

    def vdso_map_call(self, address: int) -> tuple[str, tuple[int, ...]]:
        return "arch_prctl", (vdso.ARCH_MAP_VDSO_64, address)

    def cpu_features(self) -> tuple[str, ...]:
        return cpu.features()


ARCHITECTURE = X86()
