"""Settings of the process that only it can be asked for: personality(2), prctl(2), membarrier(2).

Those that the kernel keeps for each thread (securebits, time-stamp counter, speculation, machine
checks) are those of the main thread; a thread inherits them, so they are set before there are
others. What this kernel does not know cannot have been set: its question is answered by an error.

What a process cannot even be asked for is in ``docs/architecture.md``.
"""

from __future__ import annotations

import struct

from snapkernel.constants import (
    PR_GET_IO_FLUSHER,
    PR_GET_MDWE,
    PR_GET_MEMORY_MERGE,
    PR_GET_SECUREBITS,
    PR_GET_SPECULATION_CTRL,
    PR_GET_TSC,
    PR_MCE_KILL,
    PR_MCE_KILL_DEFAULT,
    PR_MCE_KILL_GET,
    PR_MCE_KILL_SET,
    PR_SET_IO_FLUSHER,
    PR_SET_KEEPCAPS,
    PR_SET_MDWE,
    PR_SET_MEMORY_MERGE,
    PR_SET_SECUREBITS,
    PR_SET_SPECULATION_CTRL,
    PR_SET_TSC,
    PR_TSC_ENABLE,
)
from snapkernel.freeze.batch import Batch, Call, Space
from snapkernel.model import Attributes

_INT = struct.Struct("=i")
SECBIT_KEEP_CAPS = 1 << 4
ASK_PERSONALITY = 0xFFFFFFFF
SPECULATIONS = {0: "store bypass", 1: "indirect branches", 2: "flush of the L1 data cache"}
PR_SPEC_PRCTL = 1  # it can be set for a thread
PR_SPEC_DISABLE, PR_SPEC_FORCE_DISABLE, PR_SPEC_DISABLE_NOEXEC = 4, 8, 16
PR_SPEC_L1D_FLUSH = 2  # the one kind that PR_SPEC_ENABLE turns on
MEMBARRIER_CMD_GET_REGISTRATIONS = 1 << 9  # Linux 6.3
MEMBARRIER_PRIVATE = (1 << 4, 1 << 6, 1 << 8)  # expedited: plain, sync-core, rseq
MEMBARRIER_REGISTER = (1 << 2, *MEMBARRIER_PRIVATE)


class Question:
    """The calls that ask, as part of a batch that is run by somebody else."""

    def __init__(self, batch: Batch) -> None:
        def ask(option: int, *arguments: int | Space) -> Call:
            return batch.call("prctl", option, *arguments, check=False)

        self._personality = batch.call("personality", ASK_PERSONALITY)
        self._membarrier = batch.call(
            "membarrier", MEMBARRIER_CMD_GET_REGISTRATIONS, 0, 0, check=False
        )
        self._securebits = ask(PR_GET_SECUREBITS)
        self._counter = Space(_INT.pack(PR_TSC_ENABLE))
        self._counter_known = ask(PR_GET_TSC, self._counter)
        self._machine_check = ask(PR_MCE_KILL_GET)
        self._flusher = ask(PR_GET_IO_FLUSHER)
        self._deny = ask(PR_GET_MDWE)
        self._merge = ask(PR_GET_MEMORY_MERGE)
        self._speculation = {kind: ask(PR_GET_SPECULATION_CTRL, kind) for kind in SPECULATIONS}

    def answer(self) -> Attributes:
        """What the process has answered."""
        counter = PR_TSC_ENABLE
        if self._counter_known.result == 0:
            (counter,) = _INT.unpack(self._counter.data)
        registered = self._membarrier.result
        return Attributes(
            personality=_natural(self._personality),
            securebits=_natural(self._securebits),
            time_stamp_counter=counter,
            machine_check=_natural(self._machine_check, PR_MCE_KILL_DEFAULT),
            io_flusher=self._flusher.result == 1,
            deny_write_execute=_natural(self._deny),
            memory_merge=self._merge.result == 1,
            speculation={
                kind: call.result
                for kind, call in self._speculation.items()
                if call.result is not None and _was_chosen(kind, call.result)
            },
            membarrier=registered if registered is not None and registered >= 0 else None,
        )


def _natural(call: Call, otherwise: int = 0) -> int:
    return call.result if call.result is not None and call.result >= 0 else otherwise


def _was_chosen(kind: int, state: int) -> bool:
    """Stricter than what a process has by itself."""
    if state <= 0 or not state & PR_SPEC_PRCTL:
        return False
    if kind == 2:
        return bool(state & PR_SPEC_L1D_FLUSH)
    return bool(state & (PR_SPEC_DISABLE | PR_SPEC_FORCE_DISABLE | PR_SPEC_DISABLE_NOEXEC))


# --- rebuild -----------------------------------------------------------------------------------


def rebuild(batch: Batch, wanted: Attributes) -> None:
    """Set them, in a process of one thread whose memory is mapped and protected for good: a denial
    (PR_SET_MDWE) cannot be taken back."""

    def put(lost: str, option: int, *arguments: int) -> None:
        batch.call("prctl", option, *arguments, optional=lost)

    if wanted.personality:
        batch.call("personality", wanted.personality, note="personality")
    # Before Linux 6.3 nobody knows; what the process may rely on is registered then.
    for command in MEMBARRIER_REGISTER:
        if wanted.membarrier is None and command in MEMBARRIER_PRIVATE:
            batch.call("membarrier", command, 0, 0, check=False)
        elif wanted.membarrier is not None and wanted.membarrier & command:
            batch.call(
                "membarrier", command, 0, 0, optional=f"membarrier registration {command:#x}"
            )
    if wanted.securebits & SECBIT_KEEP_CAPS:
        batch.call("prctl", PR_SET_KEEPCAPS, 1, note="PR_SET_KEEPCAPS")
    if wanted.securebits & ~SECBIT_KEEP_CAPS:
        put(f"securebits {wanted.securebits:#x}", PR_SET_SECUREBITS, wanted.securebits)
    for kind, state in wanted.speculation.items():
        name = SPECULATIONS.get(kind, f"kind {kind}")
        state &= ~PR_SPEC_PRCTL
        put(f"speculation setting {state} ({name})", PR_SET_SPECULATION_CTRL, kind, state)
    if wanted.machine_check != PR_MCE_KILL_DEFAULT:
        batch.call("prctl", PR_MCE_KILL, PR_MCE_KILL_SET, wanted.machine_check)
    if wanted.io_flusher:
        put("PR_SET_IO_FLUSHER", PR_SET_IO_FLUSHER, 1)
    if wanted.memory_merge:
        put("PR_SET_MEMORY_MERGE", PR_SET_MEMORY_MERGE, 1)
    if wanted.time_stamp_counter != PR_TSC_ENABLE:
        batch.call("prctl", PR_SET_TSC, wanted.time_stamp_counter, note="time-stamp counter")
    if wanted.deny_write_execute:
        put("PR_SET_MDWE", PR_SET_MDWE, wanted.deny_write_execute)
