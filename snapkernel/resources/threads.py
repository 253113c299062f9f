"""Threads: registers, and what the kernel keeps for each of them.

From outside come registers, signal mask, pending signals, robust futex list (get_robust_list(2)),
rseq registration (ptrace(2), PTRACE_GET_RSEQ_CONFIGURATION) and scheduling. Only the thread itself
can be asked for its clear_child_tid address, alternate stack and parent-death signal.

A thread stopped inside a restartable sequence (rseq(2)) would find it aborted by the kernel when it
goes on; running the agent in it makes the kernel forget the sequence, so its abort is done here.
"""

from __future__ import annotations

import struct

from snapkernel import procfs
from snapkernel.arch import Architecture
from snapkernel.constants import (
    CLONE_FILES,
    CLONE_FS,
    CLONE_SIGHAND,
    CLONE_SYSVSEM,
    CLONE_THREAD,
    CLONE_VM,
    PR_GET_NAME,
    PR_GET_PDEATHSIG,
    PR_GET_TID_ADDRESS,
    PR_SET_NAME,
    PR_SET_PDEATHSIG,
    SS_DISABLE,
)
from snapkernel.errors import TargetError
from snapkernel.freeze import tracing
from snapkernel.freeze.batch import Batch, Space, Words
from snapkernel.freeze.target import Target
from snapkernel.model import Thread
from snapkernel.resources import scheduling, signals
from snapkernel.resources.context import Build, Capture

_RSEQ_CS = struct.Struct("=IIQQQ")  # version, flags, start, length, abort


def leave_sequences(target: Target, architecture: Architecture) -> None:
    """Move threads that are inside a restartable sequence to its abort handler, as the kernel
    does with a thread that it preempts there."""
    for tid in target.tids:
        registration = tracing.rseq(tid)
        if registration is None:
            continue
        (sequence,) = struct.unpack("=Q", target.memory.read(registration.address + 8, 8))
        if not sequence:
            continue
        _, _, start, length, abort = _RSEQ_CS.unpack(target.memory.read(sequence, _RSEQ_CS.size))
        at = architecture.program_counter(target.registers[tid])
        if start <= at < start + length:
            moved = architecture.with_program_counter(target.registers[tid], abort)
            target.registers[tid] = moved
            tracing.set_registers(tid, moved)


class Question:
    """Asks a thread for what only it can know."""

    def __init__(self, batch: Batch, architecture: Architecture) -> None:
        """Add the calls to a batch, which the thread must run."""
        self._architecture = architecture
        self._address, self._death = Space(bytes(8)), Space(bytes(4))
        self._stack, self._name = Space(bytes(architecture.stack_size)), Space(bytes(16))
        self._knows = batch.call("prctl", PR_GET_TID_ADDRESS, self._address, check=False)
        batch.call("prctl", PR_GET_PDEATHSIG, self._death)
        batch.call("sigaltstack", 0, self._stack)
        batch.call("prctl", PR_GET_NAME, self._name)
        self._schedule = scheduling.Question(batch)

    def answer(self, capture: Capture, tid: int) -> Thread:
        """The thread, after the batch has run; ``tid`` as this host sees it."""
        target, agent, architecture = capture.target, capture.agent, self._architecture
        assert target is not None
        assert agent is not None
        if self._knows.result != 0:
            raise TargetError(
                f"thread {tid}",
                "the kernel does not tell its clear_child_tid address",
                "boot a kernel with CONFIG_CHECKPOINT_RESTORE",
            )
        size, order = architecture.word_size, architecture.byte_order
        registers = target.registers[tid]
        nested = len(capture.status["NSpid"].split()) > 1
        return Thread(
            tid=procfs.inner_tid(target.pid, tid) if nested else tid,
            name=self._name.data.partition(b"\0")[0],
            registers=architecture.resumable(registers, target.memory.read),
            vector=architecture.get_vector(tid, agent.vector_regset(tid)),
            system_call=architecture.interrupted_call(registers),
            signal_mask=target.masks[tid],
            pending=tracing.pending_signals(tid, shared=False),
            robust_list=tracing.robust_list(tid),
            clear_child_tid=int.from_bytes(self._address.data[:size], order),  # type: ignore[arg-type]
            rseq=tracing.rseq(tid),
            alternate_stack=self._stack.data,
            parent_death_signal=int.from_bytes(self._death.data, order),  # type: ignore[arg-type]
            scheduling=self._schedule.answer(tid),
        )


def capture_others(capture: Capture, architecture: Architecture) -> list[Thread]:
    """Every thread but the leader."""
    target, agent = capture.target, capture.agent
    assert target is not None
    assert agent is not None
    found = []
    for tid in target.tids[1:]:
        batch = Batch(f"ask thread {tid}")
        question = Question(batch, architecture)
        agent.run(batch, tid)
        found.append(question.answer(capture, tid))
    return found


# --- rebuild -----------------------------------------------------------------------------------


def rebuild_threads(build: Build) -> Batch:
    """Make the other threads, with the tids they had (clone3(2), set_tid, Linux 5.5). They are
    traced from birth and stop before their first instruction."""
    batch = Batch("make threads")
    flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM
    for thread in build.process.threads[1:]:
        tid = struct.pack("=i", thread.tid)
        arguments = Words((flags, 0, 0, 0, 0, 0, 0, 0, tid, 1, 0))
        batch.call("clone3", arguments, 11 * 8, note=f"thread {thread.tid}")
    return batch


def rebuild_thread(build: Build, thread: Thread, architecture: Architecture) -> Batch:
    """What only the thread itself can set. Its signals are all blocked meanwhile."""
    batch = Batch(f"thread {thread.tid} ({thread.name.decode(errors='replace')})")
    note = f"thread {thread.tid}"
    batch.call("set_tid_address", thread.clear_child_tid, note=note)
    if thread.robust_list[0]:
        batch.call("set_robust_list", *thread.robust_list, note=note)
    if thread.rseq is not None:
        rseq = thread.rseq
        batch.call("rseq", rseq.address, rseq.size, rseq.flags, rseq.signature, note=note)
    pointer, flags, size = _stack(thread.alternate_stack, architecture)
    if not flags & SS_DISABLE:
        batch.call(
            "sigaltstack", _pack_stack(pointer, flags & ~1, size, architecture), 0, note=note
        )
    batch.call("prctl", PR_SET_NAME, thread.name[:15] + b"\0", note=note)
    scheduling.rebuild(build, batch, thread.scheduling, note)
    signals.queue(batch, build.process.pid, thread.tid, thread.pending)
    return batch


def rebuild_last(batch: Batch, thread: Thread) -> Batch:
    """What a change of credentials takes back (kernel/cred.c, commit_creds)."""
    if thread.parent_death_signal:
        note = f"thread {thread.tid}"
        batch.call("prctl", PR_SET_PDEATHSIG, thread.parent_death_signal, note=note)
    return batch


def _stack(raw: bytes, architecture: Architecture) -> tuple[int, int, int]:
    """``stack_t``: pointer, flags, size."""
    word = "Q" if architecture.word_size == 8 else "I"
    pad = "4x" if architecture.word_size == 8 else ""
    fields: tuple[int, int, int] = struct.unpack(f"={word}i{pad}{word}", raw)
    return fields


def _pack_stack(pointer: int, flags: int, size: int, architecture: Architecture) -> bytes:
    word = "Q" if architecture.word_size == 8 else "I"
    pad = "4x" if architecture.word_size == 8 else ""
    return struct.pack(f"={word}i{pad}{word}", pointer, flags, size)
