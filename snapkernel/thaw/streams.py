"""The standard streams that a restored process gets, and where its files go on this host."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from jupyter_core.paths import jupyter_data_dir, jupyter_runtime_dir

from snapkernel.errors import CannotRestore
from snapkernel.model import Manifest, Stream


@contextlib.contextmanager
def opened(manifest: Manifest, stdio: tuple[int, int, int] | None) -> Iterator[dict[int, int]]:
    """Descriptors of ours for the streams that the process needs, by stream.

    Without ``stdio``: /dev/null for input, a log file for output and error. Who was in a terminal
    may write to input as well.

    Raises:
        CannotRestore: the log file cannot be written.
    """
    needed = {d.stream for d in manifest.descriptions if isinstance(d, Stream)}
    with contextlib.ExitStack() as stack:
        found: dict[int, int] = {}
        for stream in sorted(needed):
            # Copies: the numbers 0 to 2 of the kernel-init are its own.
            if stdio is not None:
                descriptor = os.dup(stdio[stream])
            elif stream == 0:
                descriptor = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            else:
                descriptor = os.dup(found[1]) if 1 in found else _log(manifest)
            found[stream] = descriptor
            stack.callback(os.close, descriptor)
        yield found


def log_path(manifest: Manifest) -> Path:
    """Where the output of a detached process goes."""
    return Path(jupyter_data_dir(), "snapkernel-logs", f"{manifest.id}.log")


def _log(manifest: Manifest) -> int:
    path = log_path(manifest)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotRestore(
            f"log file {path}", error.strerror or str(error), "give stdio= or make it writable"
        ) from None


def connection_path(manifest: Manifest) -> Path:
    """A name for the connection file that no kernel has, nor gets meanwhile."""
    folder = Path(jupyter_runtime_dir())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / f"kernel-snapkernel-{manifest.id[:12]}-{secrets.token_hex(4)}.json"
