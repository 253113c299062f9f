"""Fixtures of the integration tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.unprivileged import NOBODY


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder of the user without privilege. Usual temporary folders are root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="snapkernel-user-", dir="/var/tmp"))
    folder.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)
