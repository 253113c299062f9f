"""How the bytes of a chunk are stored: as they are, or compressed, numbers after a byte shuffle.

Elements of a numeric array share their high bytes and differ in the low ones. Put all first
bytes together, then all second bytes, and zstd finds what they have in common: a linspace becomes
40 times smaller instead of 1.2 times. Text and object heaps lose by it, so a trial on a sample of
each chunk decides. Random bytes fail every trial and are stored as they are, at a few
microseconds a chunk. A chunk whose sample does under the last chunk's codec as that chunk's did
is more of the same, and needs no other trial.
"""

from __future__ import annotations

from collections.abc import Callable

import zstandard

from snapkernel._native import ffi, lib

STORED, ZSTD = 0, 1
WIDTHS = {2: 8, 3: 4, 4: 2}
"""Bytes of the elements that a codec shuffles before zstd."""
CODECS = frozenset({STORED, ZSTD, *WIDTHS})

MAX_CHUNK = 1 << 20
"""Largest length of a chunk that a reader accepts, in bytes."""

_LEVEL = 1  # 2: 40 % slower on numbers, 3 % smaller
_SAMPLE = 8 << 10
_PIECES = 4
_NUMBERS = 0.9  # a shuffle wins that much with numbers, not with objects
_SHUFFLE_COST = 1.1  # a shuffle may store so much more, for it is several times faster
_STORE_FROM = 0.87  # normal floats save 12 %, not worth a fifth of the speed in both directions
_SAME = 1 / 16  # samples that differ by no more than this are of the same kind


class Encoder:
    """Compresses chunks. Each thread has its own."""

    def __init__(self, stay_plain: Callable[[int], bool] = lambda length: False) -> None:
        """``stay_plain`` says whether a chunk of so many bytes, of objects, is not to be
        compressed."""
        self._stay_plain = stay_plain
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
        self._scratch = memoryview(bytearray(MAX_CHUNK))
        self._target = ffi.from_buffer(self._scratch)
        self._last = STORED
        self._last_size = 0
        self._numbers = False

    def encode(self, raw: memoryview) -> tuple[int, bytes | memoryview]:
        """Return the codec and the bytes to store; these are ``raw`` itself for ``STORED``."""
        codec = self._choose(raw)
        if codec == STORED or (not self._numbers and self._stay_plain(len(raw))):
            return STORED, raw
        stored = self._zstd.compress(self._shuffled(codec, raw) if codec in WIDTHS else raw)
        if len(stored) > len(raw) * _STORE_FROM:
            return STORED, raw
        return codec, stored

    def _choose(self, raw: memoryview) -> int:
        """Compress a sample of the chunk: as the last chunk was, or else in each way."""
        sample = _sample(raw)
        if self._last != STORED:
            size = self._size(self._last, sample)
            if abs(size - self._last_size) <= self._last_size * _SAME:
                return self._last
        sizes = {codec: self._size(codec, sample) for codec in (ZSTD, *WIDTHS)}
        shuffle = min(WIDTHS, key=sizes.__getitem__)
        codec = shuffle if sizes[shuffle] < sizes[ZSTD] * _SHUFFLE_COST else ZSTD
        if sizes[codec] > len(sample) * _STORE_FROM:
            codec = STORED
        self._numbers = sizes[shuffle] < sizes[ZSTD] * _NUMBERS
        self._last, self._last_size = codec, sizes.get(codec, 0)
        return codec

    def _size(self, codec: int, sample: bytes | memoryview) -> int:
        shuffled = self._shuffled(codec, sample) if codec in WIDTHS else sample
        return len(self._zstd.compress(shuffled))

    def _shuffled(self, codec: int, raw: bytes | memoryview) -> memoryview:
        lib.sk_shuffle(ffi.from_buffer(raw), self._target, len(raw), WIDTHS[codec])
        return self._scratch[: len(raw)]


class Decoder:
    """Decompresses chunks. Each thread has its own."""

    def __init__(self) -> None:
        # A frame of ours never needs a larger window; what is read is not trusted.
        self._zstd = zstandard.ZstdDecompressor(max_window_size=MAX_CHUNK)
        self._scratch = memoryview(bytearray(MAX_CHUNK))
        self._source = ffi.from_buffer(self._scratch)

    def decode(self, codec: int, stored: memoryview, target: memoryview) -> None:
        """Fill ``target``, exactly. Raises ValueError when the bytes do not decode to that."""
        width = WIDTHS.get(codec)
        plain = self._scratch[: len(target)] if width else target
        try:
            # In one pass, without a copy: the whole frame is there, and so is the room for it.
            count = self._zstd.stream_reader(stored).readinto(plain)
        except zstandard.ZstdError as error:
            raise ValueError(f"cannot be decompressed ({error})") from error
        if count != len(target):
            raise ValueError("decompresses to another length")
        if width:
            lib.sk_unshuffle(self._source, ffi.from_buffer(target), len(target), width)


def _sample(raw: memoryview) -> bytes | memoryview:
    """Pieces from all over the chunk, at multiples of 64 bytes so that elements stay whole."""
    if len(raw) <= _SAMPLE:
        return raw
    step = len(raw) // _PIECES
    size = _SAMPLE // _PIECES
    starts = ((step * number + (step - size) // 2) & ~63 for number in range(_PIECES))
    return b"".join([raw[start : start + size] for start in starts])
