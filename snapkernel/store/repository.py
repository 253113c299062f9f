"""A store: packs, index, manifests and a configuration in a backend."""

from __future__ import annotations

import builtins
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from snapkernel.errors import DamagedSnapshot, SnapshotNotFound, StoreError
from snapkernel.model import Content, Manifest
from snapkernel.store import check, collect
from snapkernel.store import manifest as manifests
from snapkernel.store.backend import Backend, ExistingObject, MissingObject, get, put
from snapkernel.store.fetch import Fetch, Reader, group_buffer, groups, joined_runs, parts
from snapkernel.store.local import LocalBackend
from snapkernel.store.manifest import Summary
from snapkernel.store.memory import MemoryBackend
from snapkernel.store.writer import SnapshotWriter

FORMAT = 1
"""Version of the store's layout. A newer one is refused."""

_CONFIG = "config"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What a store says about itself.

    Attributes:
        format: version of the layout.
        id: 32 hexadecimal digits, random.
        features: what a program must know beyond the format to use the store; none yet.
    """

    format: int
    id: str
    features: tuple[str, ...] = ()


class Store:
    """Snapshots in a folder (``file:///path``).

    Attributes:
        url: of the store.
        config: what it says about itself.
    """

    url: str

    def __init__(self, backend: Backend, config: Config) -> None:
        self.backend = backend
        self.config = config
        self.url = backend.url

    @classmethod
    def open(cls, url: str | None = None, *, create: bool = False) -> Store:
        """Open a store, or with ``create`` make it if there is none.

        Args:
            url: ``file:///path``, a path, or ``memory://`` for tests; ``None`` is what
                ``$SNAPKERNEL_STORE`` says, else a folder below Jupyter's data directory.
            create: make the store if it is not there.

        Raises:
            StoreError: there is no store, it cannot be read or written, or it is of a newer
                version.
        """
        backend = _backend(url or os.environ.get("SNAPKERNEL_STORE") or default_url())
        try:
            data = get(backend, _CONFIG, limit=1 << 16)
        except MissingObject:
            if not create:
                remedy = "a first checkpoint makes it; or name another store with --store"
                raise StoreError(f"store {backend.url}", "there is no store", remedy) from None
            data = _make_config(backend)
        return cls(backend, _read_config(backend.url, data))

    def writer(self) -> SnapshotWriter:
        """Begin a new snapshot."""
        return SnapshotWriter(self.backend)

    # --- reading ---------------------------------------------------------------------------------

    def load(self, snapshot: str) -> Manifest:
        """Read a manifest by id, by name (the newest of it) or by at least 4 digits of its id.

        Raises:
            SnapshotNotFound: there is none, or more than one.
            DamagedSnapshot: it is not what it should be, or of a newer version.
            StoreError: the store cannot be read.
        """
        id = self._resolve(snapshot)
        try:
            return manifests.read(self.backend, id)
        except MissingObject:
            raise self._not_found(snapshot) from None

    def list(self) -> builtins.list[Summary]:
        """Summaries of all snapshots, the newest first; damaged ones say so in ``problem``.

        Raises StoreError.
        """
        found = []
        for id in manifests.ids(self.backend):
            try:
                found.append(manifests.read_summary(self.backend, id))
            except MissingObject:  # removed meanwhile
                continue
            except DamagedSnapshot as error:
                found.append(Summary(id=id, problem=error.reason))
        return sorted(found, key=lambda summary: (summary.created, summary.id), reverse=True)

    def fetch(
        self,
        manifest: Manifest,
        content: Content,
        *,
        threads: int | None = None,
        memory_limit: int = 256 << 20,
    ) -> Fetch:
        """Begin to read a content in the background.

        Args:
            manifest: the one that holds the content.
            content: what to read.
            threads: how many; as many as processors by default.
            memory_limit: bytes that may wait for their delivery.
        """
        return Fetch(
            self.backend, manifest.packs, content, threads=threads, memory_limit=memory_limit
        )

    def read(self, manifest: Manifest, content: Content) -> Iterator[tuple[int, bytes]]:
        """Yield ``(address, bytes)``, ascending, of a small content.

        Raises DamagedSnapshot, StoreError.
        """
        reader = Reader(self.backend, manifest.packs)
        buffer = group_buffer()
        for group in groups(parts(content)):
            data = reader.read(group, buffer)
            start = 0
            for address, length in joined_runs(group.parts):
                yield address, bytes(data[start : start + length])
                start += length

    # --- upkeep ----------------------------------------------------------------------------------

    def remove(self, snapshot_ids: Iterable[str]) -> None:
        """Remove snapshots, named as for ``load``; ``gc`` frees their space.

        Raises SnapshotNotFound before anything is removed; StoreError.
        """
        for id in [self._present(snapshot) for snapshot in snapshot_ids]:
            self.backend.delete(manifests.object_name(id))

    def gc(self, *, grace: float = 3600.0) -> int:
        """Remove what no snapshot needs, and return how many bytes that freed.

        Args:
            grace: seconds that unneeded files are left alone since they were written or used,
                because a snapshot that is being written may need them. It must be longer than
                writing the largest snapshot takes.

        Raises:
            DamagedSnapshot: a manifest cannot be read, so what it needs is not known.
            StoreError: the store cannot be read or written.
        """
        return collect.collect(self.backend, before=time.time() - grace)

    def verify(self, snapshot: str | None = None, *, data: bool = True) -> builtins.list[str]:
        """Check one snapshot or all, and return what is wrong in words.

        Args:
            snapshot: as for ``load``; ``None`` for all.
            data: read every chunk and check its hash; else only that the chunks are there.

        Raises SnapshotNotFound; StoreError when the store cannot be read.
        """
        ids = manifests.ids(self.backend) if snapshot is None else [self._present(snapshot)]
        return check.verify(self.backend, ids, data=data)

    # --- names -----------------------------------------------------------------------------------

    def _resolve(self, snapshot: str) -> str:
        if manifests.is_id(snapshot.lower()):
            return snapshot.lower()
        id = manifests.resolve(snapshot, self.list())
        if id is None:
            raise self._not_found(snapshot)
        return id

    def _present(self, snapshot: str) -> str:
        id = self._resolve(snapshot)
        if id not in manifests.ids(self.backend):
            raise self._not_found(snapshot)
        return id

    def _not_found(self, snapshot: str) -> SnapshotNotFound:
        reason = f"there is no snapshot of that id or name in {self.url}"
        return SnapshotNotFound(f"snapshot {snapshot!r}", reason, "see `snapkernel list`")


def default_url() -> str:
    """The folder ``snapkernel`` below Jupyter's data directory."""
    from jupyter_core.paths import jupyter_data_dir

    return str(Path(jupyter_data_dir()) / "snapkernel")


def _backend(url: str) -> Backend:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalBackend(Path(url).expanduser().absolute())
    if scheme == "memory":
        return MemoryBackend.named(rest)
    parsed = urlsplit(url)
    if scheme == "file" and parsed.netloc in ("", "localhost") and parsed.path:
        return LocalBackend(Path(unquote(parsed.path)))
    reason = "a file URL has the form file:///path" if scheme == "file" else "not supported"
    raise StoreError(f"store {url}", reason, "give file:///path or a path")


def _make_config(backend: Backend) -> bytes:
    data = msgspec.json.encode(Config(format=FORMAT, id=os.urandom(16).hex())) + b"\n"
    try:
        put(backend, _CONFIG, [data], exclusive=True)
    except ExistingObject:  # another process was faster
        data = get(backend, _CONFIG, limit=1 << 16)
    return data


def _read_config(url: str, data: bytes) -> Config:
    try:
        config = msgspec.json.decode(data, type=Config)
        if config.format < 1 or not manifests.is_id(config.id):
            raise ValueError("it has an impossible format or id")
    except (ValueError, RecursionError) as error:
        reason = f"its configuration is damaged: {error}"
        remedy = "restore the file `config` from a copy, or name another store with --store"
        raise StoreError(f"store {url}", reason, remedy) from error
    if config.format > FORMAT or config.features:
        reason = f"its format is {config.format}, this version reads up to {FORMAT}"
        if config.features:
            reason = f"it needs {', '.join(config.features)}, which this version lacks"
        raise StoreError(f"store {url}", reason, "upgrade snapkernel")
    return config
