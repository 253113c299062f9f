from __future__ import annotations

from pathlib import Path

import pytest
from samples import new_id

from snapkernel.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the local store is."""
    return tmp_path / "store"


@pytest.fixture
def local(folder: Path) -> Store:
    return Store.open(str(folder), create=True)


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, folder: Path) -> Store:
    """A new store in each backend: the conformance suite runs against all of them."""
    url = f"memory://{new_id()}" if request.param == "memory" else folder.as_uri()
    return Store.open(url, create=True)


@pytest.fixture(autouse=True)
def all_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small samples would all be left plain in a store that is near; see ``writer._PLAIN``."""
    monkeypatch.setattr("snapkernel.store.writer._PLAIN", 0)
