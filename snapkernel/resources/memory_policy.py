"""On which nodes memory is taken: policies of threads and of areas (set_mempolicy(2), mbind(2)).

A thread is asked by get_mempolicy(2). Those of areas are in ``/proc/PID/numa_maps``
(numa_maps(5)), which takes as long to read as ``smaps`` and is read before the freeze with it.
Kernels without CONFIG_NUMA have neither.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from snapkernel import procfs
from snapkernel.freeze.batch import Batch, Space
from snapkernel.model import Mapping, MemoryPolicy
from snapkernel.resources.context import Build

_MASK = struct.Struct("=16Q")
_BITS = 1024  # there are at most as many nodes (CONFIG_NODES_SHIFT)
_INT = struct.Struct("=i")
MODES = {
    "default": 0,
    "prefer": 1,
    "bind": 2,
    "interleave": 3,
    "local": 4,
    "prefer (many)": 5,  # Linux 5.15
    "weighted interleave": 6,  # Linux 6.9
}
FLAGS = {"static": 1 << 15, "relative": 1 << 14, "balancing": 1 << 13}


Policies = dict[int, MemoryPolicy]
"""Of the areas that have one of their own, by their first addresses."""


class Question:
    """The call that asks a thread, as part of a batch that is run by somebody else."""

    def __init__(self, batch: Batch) -> None:
        self._mode, self._nodes = Space(bytes(_INT.size)), Space(bytes(_MASK.size))
        self._call = batch.call("get_mempolicy", self._mode, self._nodes, _BITS, 0, 0, check=False)

    def answer(self) -> MemoryPolicy | None:
        """Its policy; ``None`` where it has none of its own."""
        (mode,) = _INT.unpack(self._mode.data)
        if self._call.result != 0 or not mode:
            return None
        words = _MASK.unpack(self._nodes.data)
        nodes = (number for number in range(_BITS) if words[number // 64] >> number % 64 & 1)
        return MemoryPolicy(mode=mode, nodes=tuple(nodes))


def of_areas(pid: int, areas: Sequence[procfs.Area]) -> Policies:
    """Policies of areas that have one of their own, by their first addresses.

    The others show that of the main thread; which one that is, the vdso shows, which nobody binds.
    """
    try:
        lines = procfs.text(f"/proc/{pid}/numa_maps").split("\n")
    except FileNotFoundError:
        return {}
    found: Policies = {}
    for line in lines:
        # A policy may have a blank in its name: what follows it is "file=", "anon=" and the like.
        start, _, rest = line.partition(" ")
        if rest and not rest.startswith("default"):
            policy = parse(rest)
            if policy is not None:
                found[int(start, 16)] = policy
    inherited = [found[a.start] for a in areas if a.name == "[vdso]" and a.start in found]
    return {start: policy for start, policy in found.items() if policy not in inherited}


def parse(text: str) -> MemoryPolicy | None:
    """A policy as the kernel prints it (mm/mempolicy.c, mpol_to_str): ``bind=static:0-3``."""
    name = next((n for n in sorted(MODES, key=len, reverse=True) if text.startswith(n)), None)
    if name is None or name == "default":
        return None
    mode, rest = MODES[name], text[len(name) :]
    if rest.startswith("="):
        words, colon, nodes = rest[1:].partition(":")
        for word in words.split("|"):
            mode |= FLAGS.get(word, 0)
        rest = colon + nodes
    listed: list[int] = []
    if rest.startswith(":"):
        for part in rest[1:].split()[0].split(","):
            first, _, last = part.partition("-")
            listed += range(int(first), int(last or first) + 1)
    return MemoryPolicy(mode=mode, nodes=tuple(listed))


# --- rebuild -----------------------------------------------------------------------------------


def rebuild_of_thread(build: Build, batch: Batch, policy: MemoryPolicy, note: str) -> None:
    """In the thread itself."""
    lost = f"NUMA policy of {note}"
    batch.call("set_mempolicy", policy.mode, _mask(policy), _BITS, optional=lost)


def rebuild_of_areas(build: Build, batch: Batch) -> None:
    """Before memory is filled, which takes it from the nodes."""
    for mapping in build.process.memory.mappings:
        if mapping.policy is not None:
            _bind(batch, mapping, mapping.policy)


def _bind(batch: Batch, mapping: Mapping, policy: MemoryPolicy) -> None:
    lost = f"NUMA policy of memory {mapping.start:#x}-{mapping.end:#x}"
    length = mapping.end - mapping.start
    arguments = (mapping.start, length, policy.mode, _mask(policy), _BITS, 0)
    batch.call("mbind", *arguments, optional=lost)


def _mask(policy: MemoryPolicy) -> bytes:
    words = [0] * (_BITS // 64)
    for node in policy.nodes:
        if node < _BITS:
            words[node // 64] |= 1 << node % 64
    return _MASK.pack(*words)
