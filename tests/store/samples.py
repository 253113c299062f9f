"""What the tests of the store keep in it: bytes at addresses, and manifests around them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from snapkernel.model import (
    SCHEMA,
    AddressSpace,
    Clocks,
    Content,
    Credentials,
    FileIdentity,
    Host,
    Manifest,
    Mapping,
    MemoryLayout,
    Process,
    Thread,
)
from snapkernel.store import Store

PAGE = 4096
BASE = 0x7F00_0000_0000


class Bytes:
    """A source: ``data`` from ``base`` on, zeros elsewhere."""

    def __init__(self, data: bytes | bytearray, base: int = BASE) -> None:
        self.data = data
        self.base = base

    def read_into(self, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
        position = 0
        for address, length in runs:
            start = address - self.base
            buffer[position : position + length] = self.data[start : start + length]
            position += length
        assert position == len(buffer)


def new_id() -> str:
    return os.urandom(16).hex()


def around(content: Content) -> tuple[Mapping, ...]:
    """One private mapping that has all bytes of a content; none where no mapping can."""
    runs = list(content.iter_runs())
    end = -(-sum(runs[-1]) // PAGE) * PAGE if runs else 0
    if not runs or runs[0][0] >= end or end >= 1 << 63:
        return ()
    return (Mapping(start=runs[0][0] // PAGE * PAGE, end=end, protection=3),)


def make_manifest(content: Content | None = None, **fields: Any) -> Manifest:
    """A valid manifest of one process that has this content in its memory."""
    layout = MemoryLayout(**dict.fromkeys(MemoryLayout.__struct_fields__, 0))
    memory = AddressSpace(
        mappings=around(content or Content()), auxv=b"", layout=layout, content=content or Content()
    )
    process = Process(
        pid=7,
        ppid=1,
        pgid=7,
        sid=7,
        executable="/bin/true",
        file=0,
        arguments=("true",),
        working_directory="/",
        umask=0o22,
        memory=memory,
        threads=(
            Thread(
                tid=7,
                name=b"true",
                registers=bytes(216),
                vector={},
                signal_mask=0,
                alternate_stack=bytes(24),
            ),
        ),
        descriptors=(),
        credentials=Credentials(uids=(0, 0, 0, 0), gids=(0, 0, 0, 0)),
        actions={},
        limits={},
    )
    given: dict[str, Any] = {
        "schema": SCHEMA,
        "id": new_id(),
        "created": "2026-01-02T03:04:05Z",
        "mode": "live",
        "software": "tests",
        "host": Host(
            name="here", architecture="x86_64", machine="x86_64", kernel="6.1", page_size=PAGE
        ),
        "clocks": Clocks(monotonic_ns=1, boottime_ns=1, realtime_ns=1),
        "processes": (process,),
        "files": (FileIdentity(path="/bin/true", size=1, mtime_ns=1),),
    }
    return Manifest(**{**given, **fields})


def save(
    store: Store, data: bytes | bytearray, runs: Iterable[tuple[int, int]] = (), **fields: Any
) -> Manifest:
    """Store a snapshot of some bytes."""
    with store.writer() as writer:
        wanted = list(runs) or [(BASE, len(data))]
        content = writer.store(Bytes(data), wanted, page_size=PAGE)
        return writer.commit(make_manifest(content, **fields))


def memory(manifest: Manifest) -> Content:
    return manifest.processes[0].memory.content


def fetched(store: Store, manifest: Manifest, size: int, **options: Any) -> bytearray:
    """The bytes of a snapshot's memory, zero where it has none."""
    found = bytearray(size)
    seen: set[int] = set()

    def write(runs: list[tuple[int, int]], data: memoryview) -> None:
        position = 0
        for address, length in runs:
            assert address not in seen
            seen.add(address)
            start = address - BASE
            found[start : start + length] = data[position : position + length]
            position += length
        assert position == len(data)

    with store.fetch(manifest, memory(manifest), **options) as fetch:
        fetch.deliver(write)
    return found
