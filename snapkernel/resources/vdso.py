"""The kernel's own mappings: vdso text and its data pages (vdso(7)).

The C library keeps pointers into the vdso, so it must come back at its address. The same kernel
maps the same text there. Another kernel's text would have its functions elsewhere; then the old
text stays as ordinary memory and its functions are overwritten with plain system calls, which
hold on every kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from snapkernel import procfs
from snapkernel.arch import Architecture
from snapkernel.constants import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    PROT_EXEC,
    PROT_READ,
)
from snapkernel.errors import CannotRestore
from snapkernel.freeze.batch import Batch
from snapkernel.freeze.target import Memory
from snapkernel.model import Vdso

NAMES = ("[vdso]", "[vvar]", "[vvar_vclock]")
OTHER = ("[vsyscall]", "[vectors]", "[sigpage]")


def capture(memory: Memory, areas: Sequence[procfs.Area]) -> Vdso | None:
    """The vdso's block of a process, if it has one."""
    parts = [area for area in areas if area.name in NAMES]
    text = next((area for area in parts if area.name == "[vdso]"), None)
    if text is None:
        return None
    return Vdso(
        start=min(area.start for area in parts),
        end=max(area.end for area in parts),
        text_start=text.start,
        text=memory.read(text.start, text.end - text.start),
        parts=tuple((area.name, area.start, area.end) for area in parts),
    )


def same(old: Vdso, new: Vdso) -> bool:
    """The text is the same, and so is the shape of the block."""

    def shape(vdso: Vdso) -> list[tuple[str, int, int]]:
        return [(name, start - vdso.start, end - vdso.start) for name, start, end in vdso.parts]

    return old.text == new.text and shape(old) == shape(new)


def map_fresh(architecture: Architecture, old: Vdso) -> Batch:
    """Have this kernel's vdso mapped where the old one was."""
    batch = Batch("map the vdso at its old place")
    name, arguments = architecture.vdso_map_call(old.start)
    batch.call(name, *arguments, check=False, note="vdso")
    return batch


def map_old_text(old: Vdso) -> Batch:
    """Make room for the old text as ordinary memory."""
    batch = Batch("keep the old vdso's text, redirected to system calls")
    batch.call(
        "mmap",
        old.text_start,
        len(old.text),
        PROT_READ | PROT_EXEC,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
        -1,
        0,
        note="vdso text",
    )
    return batch


def redirected(architecture: Architecture, old: Vdso) -> bytes:
    """The old text with every function it exports replaced by a system call."""
    text = bytearray(old.text)
    for symbol, offset in symbols(old.text).items():
        code = architecture.vdso_redirect(symbol)
        if code is not None and offset + len(code) <= len(text):
            text[offset : offset + len(code)] = code
    return bytes(text)


def symbols(image: bytes) -> dict[str, int]:
    """Defined functions of a 64-bit ELF shared object: name to offset (elf(5), DYNSYM).

    Raises:
        CannotRestore: it is none.
    """
    try:
        return _symbols(image)
    except (ValueError, LookupError, OverflowError, struct.error) as error:
        raise CannotRestore("vdso", f"its text is no shared object: {error}") from None


def _symbols(image: bytes) -> dict[str, int]:
    order = "<" if image[5] == 1 else ">"
    found: dict[str, int] = {}
    (table,) = struct.unpack_from(f"{order}Q", image, 40)
    size, count = struct.unpack_from(f"{order}HH", image, 58)
    layout = f"{order}IIQQQQIIQQ"
    sections = [struct.unpack_from(layout, image, table + i * size) for i in range(count)]
    for section in sections:
        if section[1] != 11:  # SHT_DYNSYM: there is one at most
            continue
        strings = sections[section[6]][4]
        if section[4] + section[5] > len(image):
            raise ValueError("a section is behind its end")
        for at in range(section[4], section[4] + section[5], 24):
            name, _, _, home, value, _ = struct.unpack_from(f"{order}IBBHQQ", image, at)
            if home:
                end = image.index(b"\0", strings + name)
                found[image[strings + name : end].decode()] = value
        break
    return found
