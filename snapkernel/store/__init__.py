"""The store: chunks, packs, index and manifests, in a folder. ``docs/format.md`` is normative."""

from snapkernel.store.fetch import Fetch
from snapkernel.store.manifest import Summary, check_name
from snapkernel.store.repository import Store
from snapkernel.store.writer import SnapshotWriter, Source

__all__ = ["Fetch", "SnapshotWriter", "Source", "Store", "Summary", "check_name"]
