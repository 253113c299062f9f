"""``docs/format.md`` is enough to read a snapshot: nothing of the store's own code is used here."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import msgspec
import zstandard
from blake3 import blake3
from samples import BASE, PAGE, save

from snapkernel.store import Store


def unshuffle(data: bytes, width: int) -> bytes:
    count = len(data) // width
    planes = [data[plane * count : (plane + 1) * count] for plane in range(width)]
    return (
        bytes(byte for element in zip(*planes, strict=True) for byte in element)
        + (data[count * width :])
    )


def read_manifest(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    magic, version, flags, summary, body, length = struct.unpack_from("<8sHHIIQ", data)
    assert (magic, version, flags) == (b"snapkman", 1, 0)
    head = 28 + summary
    assert data[head : head + 32] == blake3(data[:head]).digest()
    assert len(data) == head + 32 + body + 32
    assert data[-32:] == blake3(data[:-32]).digest()
    plain = zstandard.ZstdDecompressor().decompress(data[head + 32 : -32])
    assert len(plain) == length
    return msgspec.msgpack.decode(data[28:head]), msgspec.msgpack.decode(plain)


def read_pack(data: bytes, name: str) -> list[tuple[Any, ...]]:
    assert data[:16] == struct.pack("<8sHHI", b"snapkpak", 1, 0, 0)
    _, count, version, flags, magic = struct.unpack("<16sIHH8s", data[-64:-32])
    assert (version, flags, magic) == (1, 0, b"snapkpak")
    table = data[-64 - 45 * count : -64]
    assert data[-32:].hex() == name == blake3(data[-64 - 45 * count : -32]).hexdigest()
    return list(struct.iter_unpack("<32sIIIB", table))


def test_a_reader_made_from_the_documentation(local: Store, folder: Path) -> None:
    data = bytearray(random.Random(1).randbytes(300 * PAGE))
    data += b"".join(struct.pack("<q", n) for n in range(40_000))
    data += b"".join(struct.pack("<i", n) for n in range(70_000))
    data += b"".join(struct.pack("<h", n % 1009) for n in range(140_000))
    data += b"".join(b"%d, " % (n * n) for n in range(60_000))
    data += bytes(30 * PAGE) + b"the end"
    saved = save(local, data, name="sample")

    config = json.loads((folder / "config").read_text())
    assert config["format"] == 1
    summary, manifest = read_manifest((folder / "manifests" / saved.id).read_bytes())
    assert summary["id"] == manifest["id"] == saved.id
    assert summary["name"] == "sample"

    found = bytearray(len(data))
    content = manifest["processes"][0]["memory"]["content"]
    packs = [(folder / "packs" / n[:2] / n).read_bytes() for n in manifest["packs"]]
    tables = [read_pack(p, n) for p, n in zip(packs, manifest["packs"], strict=True)]
    decompress = zstandard.ZstdDecompressor().decompress
    plain = b""
    codecs = set()
    for id, pack, offset, stored, length, codec in struct.iter_unpack(
        "<32sIIIIB", content["chunks"]
    ):
        assert (id, offset, stored, length, codec) in tables[pack]
        chunk = packs[pack][offset : offset + stored]
        chunk = decompress(chunk) if codec else chunk
        chunk = unshuffle(chunk, {2: 8, 3: 4, 4: 2}[codec]) if codec > 1 else chunk
        assert len(chunk) == length
        assert blake3(chunk).digest() == id
        plain += chunk
        codecs.add(codec)
    assert codecs == {0, 1, 2, 3, 4}
    for address, length in struct.iter_unpack("<QQ", content["runs"]):
        found[address - BASE : address - BASE + length], plain = plain[:length], plain[length:]
    assert plain == b""
    assert found == data

    (index,) = (folder / "index").iterdir()
    listed = index.read_bytes()
    assert listed[-32:] == blake3(listed[:-32]).digest()
    assert struct.unpack_from("<8sHHI", listed) == (b"snapkidx", 1, 0, len(packs))
    at, sizes, rows = 16, {}, {}
    for _ in packs:
        name, size, count = struct.unpack_from("<32sII", listed, at)
        sizes[name.hex()] = size
        rows[name.hex()] = list(
            struct.iter_unpack("<32sIIIB", listed[at + 40 : at + 40 + 45 * count])
        )
        at += 40 + 45 * count
    assert at == len(listed) - 32
    assert sizes == dict(zip(manifest["packs"], map(len, packs), strict=True))
    assert rows == dict(zip(manifest["packs"], tables, strict=True))
