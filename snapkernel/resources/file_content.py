"""The bytes of a file: which of them are not holes, how they are read, and whether another file has
the same."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from blake3 import blake3

from snapkernel.freeze.agent import PAGE
from snapkernel.model import Content
from snapkernel.runs import without
from snapkernel.store.fetch import parts

_PIECE = 1 << 20


class FileSource:
    """Bytes of an open file, by offset."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read_into(self, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
        """Fill the buffer; a file that ends early leaves zeros, as a mapping of it would."""
        at = 0
        for offset, length in runs:
            done = 0
            while done < length:
                part = buffer[at + done : at + length]
                got = os.preadv(self.descriptor, [part], offset + done)
                if not got:
                    part[:] = bytes(len(part))
                    got = len(part)
                done += got
            at += length


def data_runs(descriptor: int, size: int) -> list[tuple[int, int]]:
    """The parts of a file that are not holes (lseek(2), SEEK_DATA), in whole pages: a file system
    may have smaller blocks. The last one ends with the file.

    The descriptor is at another place afterwards.
    """
    if size and os.fstat(descriptor).st_blocks * 512 >= size:
        return [(0, size)]  # to look for holes takes as long as there are pages
    runs: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            start = at
        if start >= size:
            break  # it has grown meanwhile
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        start, end = start // PAGE * PAGE, min(-(-end // PAGE) * PAGE, size)
        if runs and sum(runs[-1]) >= start:
            start = runs.pop()[0]
        runs.append((start, end - start))
        at = end
    return runs


def is_equal(descriptor: int, size: int, content: Content) -> bool:
    """Whether a file of ``size`` bytes holds exactly this content, and zeros elsewhere.

    Raises:
        OSError: it cannot be read.
    """
    source, buffer = FileSource(descriptor), memoryview(bytearray(_PIECE))
    for part in parts(content):
        source.read_into(part.runs, buffer[: part.length])
        if blake3(buffer[: part.length]).digest() != part.id:
            return False
    for start, length in without(data_runs(descriptor, size), list(content.iter_runs())):
        for at in range(start, start + length, _PIECE):
            piece = buffer[: min(_PIECE, start + length - at)]
            source.read_into([(at, len(piece))], piece)
            if any(piece):
                return False
    return True
