"""Fixtures that several groups of tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import leaks, leftovers
from support.conformance import Compiler

os.environ.__setitem__(*leaks.MARK)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Temporary files go into a folder that nobody else uses, so that a forgotten one is found."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr("tempfile.tempdir", str(folder))
        yield folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """Address of an empty store, which is removed after the test."""
    folder = tmp_path / "store"
    yield folder.as_uri()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """Compiles programs in C, each once."""
    return Compiler(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(autouse=True)
def swept() -> Iterator[None]:
    """Keys and names that a stopped program has left in the host's namespaces are free again."""
    yield
    leftovers.sweep_all()


@pytest.fixture
def leaves_nothing(temporary_folder: Path) -> Iterator[None]:
    """Fail when a process, namespace, descriptor, mount or temporary file is left behind."""
    before = leaks.look()
    yield
    found = leaks.left_behind(before)
    assert not found, "left behind: " + "; ".join(found)
