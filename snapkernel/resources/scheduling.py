"""When and where a thread runs: sched(7), I/O priority (ioprio_set(2)), timer slack, NUMA policy.

sched_getattr(2) (Linux 3.14) tells policy, nice value, priorities and deadlines at once, and the
clamps of utilization where the kernel has them (Linux 5.3). The rest is asked one by one.
"""

from __future__ import annotations

import os
import struct

from snapkernel.constants import PR_GET_TIMERSLACK, PR_SET_TIMERSLACK
from snapkernel.freeze.batch import Batch, Space
from snapkernel.model import Scheduling
from snapkernel.resources import memory_policy
from snapkernel.resources.context import Build

# struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period, and clamps
_ATTRIBUTES = struct.Struct("=IIQiI3QII")
_RESET_ON_FORK, _RECLAIM, _OVERRUN, _KEEP_ALL, _CLAMPS = 1, 2, 4, 0x18, 0x60
_RESET_IN_POLICY = 0x40000000
_LONGEST_SLACK = (1 << 63) - 1  # 292 years; the kernel takes twice that
_FIFO, _RR, _DEADLINE = 1, 2, 6
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_SHIFT = 13
_CLAMPED_BY_ITSELF = ((0, 0), (0, 1024), (1024, 1024))  # not built in; the defaults of policies


class Question:
    """The calls that ask a thread, as part of a batch that is run by somebody else."""

    def __init__(self, batch: Batch) -> None:
        self._attributes = Space(bytes(_ATTRIBUTES.size))
        batch.call("sched_getattr", 0, self._attributes, _ATTRIBUTES.size, 0)
        self._slack = batch.call("prctl", PR_GET_TIMERSLACK, check=False)
        self._io = batch.call("ioprio_get", _IOPRIO_WHO_PROCESS, 0, check=False)
        self._memory = memory_policy.Question(batch)

    def answer(self, tid: int) -> Scheduling:
        """What the thread has answered; ``tid`` is its id on this host."""
        _, policy, flags, nice, priority, *times, low, high = _ATTRIBUTES.unpack(
            self._attributes.data
        )
        io, slack = self._io.result or 0, self._slack.result or 0
        return Scheduling(
            policy=policy,
            nice=nice if policy not in (_FIFO, _RR, _DEADLINE) else os.getpriority(0, tid),
            priority=priority,
            processors=tuple(sorted(os.sched_getaffinity(tid))),
            flags=flags & (_RESET_ON_FORK | _RECLAIM | _OVERRUN),
            deadline=tuple(times) if policy == _DEADLINE else (),
            utilization=() if (low, high) in _CLAMPED_BY_ITSELF else (low, high),
            io_priority=io if io >> _IOPRIO_CLASS_SHIFT > 0 else 0,
            timer_slack_ns=slack if slack >= 0 else _LONGEST_SLACK,
            memory=self._memory.answer(),
        )


# --- rebuild -----------------------------------------------------------------------------------


def rebuild(build: Build, batch: Batch, wanted: Scheduling, note: str) -> None:
    """What this host has and allows; anything else is noted."""
    _affinity(build, batch, wanted, note)
    if wanted.io_priority:
        lost = f"I/O priority {wanted.io_priority:#x} of {note}"
        batch.call("ioprio_set", _IOPRIO_WHO_PROCESS, 0, wanted.io_priority, optional=lost)
    slack = wanted.timer_slack_ns
    slack = build.process.timer_slack_ns if slack is None else slack
    batch.call("prctl", PR_SET_TIMERSLACK, slack, note=note)
    if wanted.memory is not None:
        memory_policy.rebuild_of_thread(build, batch, wanted.memory, note)
    # First the nice value, which a policy without one keeps for later.
    if wanted.nice != os.getpriority(os.PRIO_PROCESS, 0):
        lost = f"nice value {wanted.nice} of {note}"
        batch.call("setpriority", 0, 0, wanted.nice & 0xFFFFFFFF, optional=lost)
    lost = f"scheduling policy {wanted.policy} of {note}"
    if len(wanted.deadline) == 3:
        attributes = _attributes(wanted.policy, wanted.flags, times=wanted.deadline)
        batch.call("sched_setattr", 0, attributes, 0, optional=lost)
    elif wanted.policy | wanted.flags or os.sched_getscheduler(0):
        # It keeps the nice value, whatever that could be set to.
        policy = wanted.policy | (_RESET_IN_POLICY if wanted.flags & _RESET_ON_FORK else 0)
        parameters = struct.pack("=i", wanted.priority)
        batch.call("sched_setscheduler", 0, policy, parameters, optional=lost)
    if len(wanted.utilization) == 2:
        attributes = _attributes(0, _KEEP_ALL | _CLAMPS, clamps=wanted.utilization)
        lost = f"utilization clamps {wanted.utilization} of {note}"
        batch.call("sched_setattr", 0, attributes, 0, optional=lost)


def _attributes(
    policy: int,
    flags: int,
    times: tuple[int, ...] = (0, 0, 0),
    clamps: tuple[int, ...] = (0, 0),
) -> bytes:
    return _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, flags, 0, 0, *times, *clamps)


def _affinity(build: Build, batch: Batch, wanted: Scheduling, note: str) -> None:
    """A thread that could run on all processors of its host may run on all of this one."""
    processors = os.sched_getaffinity(0).intersection(wanted.processors)
    if processors and len(wanted.processors) < build.manifest.host.processors:
        mask = bytearray(128)
        for processor in processors:
            if processor < 1024:
                mask[processor // 8] |= 1 << processor % 8
        batch.call("sched_setaffinity", 0, len(mask), bytes(mask), note=note)
