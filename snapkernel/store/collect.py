"""Garbage collection: mark the packs that manifests name, sweep the others.

It takes no lock. A snapshot that is being written is safe because its packs, and the older packs
that it relies on (touched by the writer), are younger than the grace time, and because the writer
looks for them again before it commits.
"""

from __future__ import annotations

from snapkernel.store import index as indexes
from snapkernel.store import manifest as manifests
from snapkernel.store.backend import Backend, MissingObject
from snapkernel.store.pack import object_name, read_table


def collect(backend: Backend, *, before: float) -> int:
    """Remove packs and unfinished files last touched before that time. Returns bytes freed.

    Raises DamagedSnapshot when a manifest cannot be read; StoreError.
    """
    # The packs are listed first: what is written later is not in the list, so it stays.
    packs = list(backend.list("packs"))
    needed: set[str] = set()
    for id in manifests.ids(backend):
        try:
            needed.update(object_name(pack) for pack in manifests.read_references(backend, id))
        except MissingObject:  # removed meanwhile
            continue
    freed = 0
    for entry in packs:
        if entry.name not in needed and entry.modified < before:
            backend.delete(entry.name)
            freed += entry.size
    for entry in backend.unfinished():
        if entry.modified < before:
            backend.discard(entry)
            freed += entry.size
    alive = {entry.name: entry.size for entry in backend.list("packs")}
    freed += _mend_index(backend, {name: alive[name] for name in needed if name in alive}, alive)
    return freed


def _mend_index(backend: Backend, needed: dict[str, int], alive: dict[str, int]) -> int:
    """Remove index files of packs that are gone, index packs that no file names any more."""
    freed = 0
    missing = dict(needed)
    for entry in list(backend.list(indexes.FOLDER)):
        try:
            names = [object_name(pack) for pack, _, _ in indexes.read_index(backend, entry.name)]
        except MissingObject:
            continue
        if not any(name in alive for name in names):
            backend.delete(entry.name)
            freed += entry.size
        for name in names:
            missing.pop(name, None)
    if missing:
        tables = []
        for name, size in sorted(missing.items()):
            pack = name.rpartition("/")[2]
            tables.append((pack, size, read_table(backend, pack, size)))
        freed -= indexes.write_index(backend, tables)
    return freed
