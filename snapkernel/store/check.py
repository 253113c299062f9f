"""Verification: is everything there that the manifests promise, bit by bit?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from snapkernel.errors import DamagedSnapshot, SnapkernelError
from snapkernel.store import manifest as manifests
from snapkernel.store.backend import Backend, MissingObject
from snapkernel.store.fetch import Group, Part, Reader, group_buffer, groups
from snapkernel.store.pack import ROW, Row, check_layout, damaged, object_name, read_table

Users = dict[Row, str]
"""Chunks of one pack, each with words for what needs it."""


def verify(backend: Backend, ids: Sequence[str], *, data: bool) -> list[str]:
    """Return what is wrong with these snapshots, one line each. Raises StoreError.

    With ``data``, the packs that they need are read whole: a chunk that nothing needs today may
    be relied on by the next snapshot.
    """
    sizes = {entry.name: entry.size for entry in backend.list("packs")}
    problems: list[str] = []
    wanted: dict[str, Users] = {}
    for id in ids:
        try:
            manifest = manifests.read(backend, id)
        except DamagedSnapshot as error:
            problems.append(str(error))
            continue
        except MissingObject:  # removed meanwhile
            continue
        for what, content in manifests.contents(manifest):
            for chunk, number, *place in content.iter_chunks():
                users = wanted.setdefault(manifest.packs[number], {})
                users.setdefault(Row(chunk, *place), f"snapshot {id}, {what}")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        checks = (
            pool.submit(_check_pack, backend, pack, sizes.get(object_name(pack)), users, data)
            for pack, users in sorted(wanted.items())
        )
        while batch := list(islice(checks, 64)):
            for check in batch:
                problems += check.result()
    return problems


def _check_pack(
    backend: Backend, pack: str, size: int | None, users: Users, data: bool
) -> list[str]:
    """Compare a pack's table with what manifests say, then read the chunks."""
    try:
        if size is None:
            raise damaged(pack, "it is missing")
        packed = read_table(backend, pack, size)
        check_layout(backend, pack, size, packed)
    except SnapkernelError as error:
        needed = " and by ".join(sorted(set(users.values())))
        return [f"{error.object}: {error.reason}; needed by {needed}"]
    table = [Row(*row) for row in ROW.iter_unpack(packed)]
    missing = users.keys() - set(table)
    problems = [f"{users[row]}: chunk {row.id.hex()} is not in pack {pack}" for row in missing]
    if data:
        problems += _check_chunks(backend, pack, table, users)
    return problems


def _check_chunks(backend: Backend, pack: str, table: Iterable[Row], users: Users) -> Iterator[str]:
    reader = Reader(backend, [pack])
    chunks = [Part(0, *row[1:], row.id, [(row.offset, row.length)]) for row in table]
    buffer = group_buffer()
    for group in groups(chunks):
        try:
            reader.read(group, buffer)
        except DamagedSnapshot:  # find out which of them
            for part in group.parts:
                try:
                    reader.read(Group(0, [part], part.length), buffer)
                except DamagedSnapshot as error:
                    row = Row(part.id, *part[1:5])
                    user = users.get(row, "no snapshot needs it now")
                    yield f"{error.object}: it is damaged; {user}"
