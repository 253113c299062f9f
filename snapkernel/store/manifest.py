"""Manifests as files: a summary that can be read alone, then everything, both with checksums.

What is read here may have been written by anyone. It is bounded in size before it is unpacked,
decoded strictly by the types of ``snapkernel.model``, and every table in it is checked before
anything uses it. ``docs/format.md`` is the normative text.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Iterator, Sequence

import msgspec
import zstandard
from blake3 import blake3

from snapkernel import plausible
from snapkernel.errors import DamagedSnapshot, InvalidName, SnapshotNotFound
from snapkernel.model import SCHEMA, Content, Manifest
from snapkernel.store import pack
from snapkernel.store.backend import Backend, get
from snapkernel.store.codec import CODECS

FOLDER = "manifests"
VERSION = 1
MAGIC = b"snapkman"
HEADER = struct.Struct("<8sHHIIQ")
"""Magic, version, flags (none yet), length of the summary, stored length of the manifest
(MessagePack compressed with zstd), its length."""
MAX_SUMMARY = 1 << 16
MAX_MANIFEST = 256 << 20
"""Bytes of the MessagePack: enough for more than a tebibyte of chunks."""

_LEVEL = 3
_ID = re.compile(r"[0-9a-f]{32}")
_PACK = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"\w(?:[\w .+@-]{0,126}[\w.+@-])?")
_ADDRESSES = 1 << 64
_INVALID = (ValueError, struct.error, msgspec.MsgspecError, RecursionError)


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a list of snapshots shows.

    Attributes:
        id: of the snapshot.
        name: may be empty.
        created: ISO 8601, UTC.
        host: where it was taken.
        architecture: of that host.
        mode: ``live`` or ``stop``.
        memory_bytes: bytes of process memory that it holds.
        file_bytes: bytes of files that travel with it.
        stored_bytes: bytes that it added to the store.
        schema: version of the manifest's schema.
        software: what wrote it.
        problem: why the manifest cannot be read; empty when it can.
    """

    id: str
    name: str = ""
    created: str = ""
    host: str = ""
    architecture: str = ""
    mode: str = ""
    memory_bytes: int = 0
    file_bytes: int = 0
    stored_bytes: int = 0
    schema: int = SCHEMA
    software: str = ""
    problem: str = ""


class References(msgspec.Struct):
    """What garbage collection reads of a manifest, whatever its schema."""

    packs: tuple[str, ...] = ()


_DECODER = msgspec.msgpack.Decoder(Manifest)  # its making takes longer than its use


def check_name(name: str) -> str:
    """Return a snapshot's name, or raise InvalidName.

    A name has 1 to 128 letters, digits, spaces and ``. _ - + @``, begins with a letter or digit,
    does not end with a space, and cannot be taken for an id.
    """
    reason = ""
    if not name or len(name) > 128:
        reason = "a name has 1 to 128 characters"
    elif not _NAME.fullmatch(name) or name[0] == "_":
        reason = "only letters, digits, spaces and . _ - + @, first a letter or digit"
    elif not unicodedata.is_normalized("NFC", name):
        reason = "its accents are not in the usual form (Unicode NFC)"
    elif _ID.fullmatch(name.lower()):
        reason = "32 hexadecimal digits are an id"
    if reason:
        raise InvalidName(f"name {name[:140]!r}", reason, "choose another name")
    return name


def object_name(id: str) -> str:
    return f"{FOLDER}/{id}"


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def ids(backend: Backend) -> list[str]:
    """The ids of all snapshots. Raises StoreError."""
    names = (entry.name.rpartition("/")[2] for entry in backend.list(FOLDER))
    return [name for name in names if is_id(name)]


def contents(manifest: Manifest) -> Iterator[tuple[str, Content]]:
    """Yield every content of a manifest with words for what it is."""
    for process in manifest.processes:
        yield f"memory of process {process.pid}", process.memory.content
    for number, shared in enumerate(manifest.shared_memory):
        yield f"shared memory {shared.name or number}", shared.content
    for file in manifest.carried:
        yield f"file {file.path}", file.content


# --- encoding ------------------------------------------------------------------------------------


def encode(manifest: Manifest) -> bytes:
    """Return the manifest's file. Raises ValueError when the manifest is not a valid one."""
    check(manifest)
    plain = msgspec.msgpack.encode(manifest)
    if len(plain) > MAX_MANIFEST:
        raise ValueError(f"the manifest is larger than {MAX_MANIFEST >> 20} MiB")
    return frame(msgspec.msgpack.encode(_summarise(manifest)), plain)


def frame(summary: bytes, plain: bytes) -> bytes:
    """Return the file of an encoded summary and an encoded manifest."""
    body = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).compress(plain)
    head = HEADER.pack(MAGIC, VERSION, 0, len(summary), len(body), len(plain)) + summary
    head += blake3(head).digest()
    return head + body + blake3(head + body).digest()


def _summarise(manifest: Manifest) -> Summary:
    return Summary(
        id=manifest.id,
        name=manifest.name,
        created=manifest.created,
        host=manifest.host.name,
        architecture=manifest.host.architecture,
        mode=manifest.mode,
        memory_bytes=manifest.memory_bytes,
        file_bytes=sum(file.content.length for file in manifest.carried),
        stored_bytes=manifest.stored_bytes,
        schema=manifest.schema,
        software=manifest.software,
    )


# --- decoding ------------------------------------------------------------------------------------


def read_summary(backend: Backend, id: str) -> Summary:
    """Read the small part of a manifest. Raises DamagedSnapshot, StoreError."""
    head = get(backend, object_name(id), limit=4096)
    try:
        length, _, _ = _lengths(head)
        if length > len(head):
            head = get(backend, object_name(id), limit=length)
        summary = _decode_summary(head[:length])
        if summary.id != id:
            raise ValueError(f"it says that it is {summary.id}")
    except _INVALID as error:
        raise damaged(id, str(error)) from error
    return summary


def read(backend: Backend, id: str) -> Manifest:
    """Read a manifest. Raises DamagedSnapshot, StoreError."""
    try:
        plain, summary = _read_body(backend, id)
        if summary.schema > SCHEMA:
            raise DamagedSnapshot(
                f"snapshot {id}",
                f"its schema is {summary.schema}, this version reads up to {SCHEMA}",
                "upgrade snapkernel",
            )
        manifest = _DECODER.decode(plain)
        if manifest.id != id or _summarise(manifest) != summary:
            raise ValueError("its summary is of another snapshot")
        check(manifest)
    except _INVALID as error:
        raise damaged(id, str(error)) from error
    return manifest


def read_references(backend: Backend, id: str) -> tuple[str, ...]:
    """Read the packs that a snapshot needs, whatever its schema. Raises DamagedSnapshot."""
    try:
        return msgspec.msgpack.decode(_read_body(backend, id)[0], type=References).packs
    except _INVALID as error:
        raise damaged(id, str(error)) from error


def damaged(id: str, reason: str) -> DamagedSnapshot:
    remedy = "take another snapshot; `snapkernel remove` removes this one"
    return DamagedSnapshot(f"snapshot {id}", f"its manifest is damaged: {reason}", remedy)


def _lengths(data: bytes) -> tuple[int, int, int]:
    """Length of the head, of the whole file, and of the MessagePack."""
    magic, version, flags, summary, body, plain = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError("it is not a manifest")
    if version > VERSION or flags:
        raise DamagedSnapshot("manifest", "its format is newer", "upgrade snapkernel")
    if summary > MAX_SUMMARY or plain > MAX_MANIFEST or body > MAX_MANIFEST:
        raise ValueError("it is too large")
    head = HEADER.size + summary + pack.HASH
    return head, head + body + pack.HASH, plain


def _decode_summary(head: bytes) -> Summary:
    if blake3(head[: -pack.HASH]).digest() != head[-pack.HASH :]:
        raise ValueError("the checksum of its summary does not match")
    return msgspec.msgpack.decode(head[HEADER.size : -pack.HASH], type=Summary)


def _read_body(backend: Backend, id: str) -> tuple[bytes, Summary]:
    data = get(backend, object_name(id), limit=MAX_MANIFEST + (1 << 20))
    head, whole, length = _lengths(data)
    if len(data) != whole:
        raise ValueError(f"it has {len(data)} bytes instead of {whole}")
    if blake3(data[: -pack.HASH]).digest() != data[-pack.HASH :]:
        raise ValueError("its checksum does not match")
    summary = _decode_summary(data[:head])
    body = data[head : -pack.HASH]
    try:
        # The decompressor trusts the length in the frame, so that is looked at first.
        if zstandard.frame_content_size(body) != length:
            raise ValueError("its length does not match")
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=length), summary
    except zstandard.ZstdError as error:
        raise ValueError(f"it cannot be decompressed ({error})") from error


# --- checking ------------------------------------------------------------------------------------


def check(manifest: Manifest) -> None:
    """Raise ValueError unless the id, names and all content tables make sense."""
    if not is_id(manifest.id):
        raise ValueError("the id is not 32 hexadecimal digits")
    if manifest.name:
        try:
            check_name(manifest.name)
        except InvalidName as error:
            raise ValueError(str(error)) from error
    if not all(_PACK.fullmatch(name) for name in manifest.packs):
        raise ValueError("the name of a pack is not 64 hexadecimal digits")
    for what, content in contents(manifest):
        try:
            check_content(content, len(manifest.packs))
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
    plausible.check(manifest)


def check_content(content: Content, packs: int) -> None:
    """Raise ValueError unless the runs ascend and the chunks are possible and fill them."""
    end = total = 0
    for address, length in content.iter_runs():
        if address < end or not length:
            raise ValueError(f"the run at {address:#x} is empty or overlaps the one before")
        end = address + length
        total += length
    if end > _ADDRESSES:
        raise ValueError("a run goes beyond the end of the address space")
    for _, number, offset, stored, length, codec in content.iter_chunks():
        if codec not in CODECS:
            raise ValueError(f"codec {codec} is not known; a newer snapkernel may know it")
        if number >= packs:
            raise ValueError(f"a chunk is in pack {number} of {packs}")
        if not pack.is_place(offset, stored, length, codec):
            raise ValueError("a chunk has an impossible place, or two lengths")
        total -= length
    if total:
        raise ValueError("the chunks do not fill the runs")


def resolve(text: str, summaries: Sequence[Summary]) -> str | None:
    """Find an id by name (the newest of it, the first in ``summaries``), else by prefix.

    Returns ``None`` when there is none. Raises SnapshotNotFound for an ambiguous prefix.
    """
    for summary in summaries:
        if summary.name == text and not summary.problem:
            return summary.id
    if not re.fullmatch(r"[0-9a-f]{4,32}", text.lower()):
        return None
    found = [summary.id for summary in summaries if summary.id.startswith(text.lower())]
    if len(found) > 1:
        reason = f"{len(found)} snapshots begin with it"
        raise SnapshotNotFound(f"snapshot {text}", reason, "give more digits of the id")
    return found[0] if found else None
