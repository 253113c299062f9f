"""x87, SSE, AVX, AVX-512, PKRU and AMX: the regset ``NT_X86_XSTATE``, one entry per component.

The regset is an XSAVE area in standard format (Intel SDM volume 1, chapter 13): 512 bytes of
FXSAVE, a header whose first word tells which components are not in their initial state, then the
components at offsets that differ between processors (CPUID leaf 0DH). Kept by component, a state
fits another processor that has the same components at other places.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache

from snapkernel._native import ffi, lib
from snapkernel.errors import CannotRestore, TargetError

NT_X86_XSTATE = 0x202
COMPONENTS = {
    2: "avx",
    5: "opmask",
    6: "zmm_hi256",
    7: "hi16_zmm",
    9: "pkru",
    17: "tile_config",
    18: "tile_data",
}
_new = ffi.new_allocator(should_clear_after_alloc=False)
_LEGACY = 464  # FXSAVE without the bytes that are left to software
_HEADER = 512
_SIZE = 16384
_MAGIC1, _END = 0x46505853, b"EXPF"  # FP_XSTATE_MAGIC1, FP_XSTATE_MAGIC2
_USED = struct.Struct("<Q")
_SOFTWARE = struct.Struct("<IIQI")  # struct _fpx_sw_bytes: magic, size of all, components, size
_ON_REQUEST = 1 << 17 | 1 << 18  # arch_prctl(2), ARCH_REQ_XCOMP_PERM: not in everybody's frames
_PKRU = 9
_INITIAL_X87 = b"\x7f\x03" + bytes(22)
_INITIAL_MXCSR = b"\x80\x1f\x00\x00"


def _layout() -> dict[int, tuple[int, int]]:
    """``{component: (offset, size)}`` of this processor."""
    offset, size = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    found = {}
    for component in range(2, 63):
        if lib.sk_arch_vector_component(component, offset, size) == 0:
            found[component] = (int(offset[0]), int(size[0]))
    return found


_HERE = _layout()


def read(tid: int) -> bytes:
    """The regset."""
    area = _new("uint8_t[]", _SIZE)
    length = lib.sk_get_regset(tid, NT_X86_XSTATE, area, _SIZE)
    if length < 0:
        raise TargetError(f"thread {tid}", f"vector registers cannot be read (errno {-length})")
    return bytes(ffi.buffer(area, length))


def get(tid: int, area: bytes) -> dict[str, bytes]:
    """The components of a thread's regset that are not in their initial state."""
    (in_use,) = _USED.unpack_from(area, _HEADER)
    components = {"fxsave": area[:_LEGACY]}
    for number in range(2, 63):
        if in_use >> number & 1:
            offset, size = _HERE.get(number, (0, _SIZE))
            content = area[offset : offset + size]
            # A processor may say "in use" of a state that equals the initial one, which is zero;
            # of MPX, for one, which Linux lets nobody use any more.
            if not any(content):
                continue
            if number not in COMPONENTS:
                raise TargetError(
                    f"thread {tid}", f"uses the unknown vector state component {number}"
                )
            components[COMPONENTS[number]] = content
    return components


@cache
def _in_frame(requested: bool, most: int) -> tuple[int, int]:
    """The components that are saved in a thread's signal frames, and the size of these; with or
    without those that a program must ask for."""
    components, size = 3, _HEADER + 64
    for number, (offset, length) in _HERE.items():
        bit = 1 << number
        if number in COMPONENTS and (requested or not bit & _ON_REQUEST):
            components |= bit
            size = max(size, offset + length)
    return components, min(size, most)


def frame_size(state: bytes) -> int:
    """Bytes of the state in a signal frame."""
    (in_use,) = _USED.unpack_from(state, _HEADER)
    return _in_frame(in_use & _ON_REQUEST != 0, len(state))[1] + 4


def for_frame(state: bytes) -> bytes:
    """The state as rt_sigreturn(2) wants it (<asm/sigcontext.h>, ``struct _xstate``)."""
    (in_use,) = _USED.unpack_from(state, _HEADER)
    components, size = _in_frame(in_use & _ON_REQUEST != 0, len(state))
    area = bytearray(state[:size])
    _SOFTWARE.pack_into(area, _LEGACY, _MAGIC1, size + 4, components, size)
    if components >> _PKRU & 1:
        in_use |= 1 << _PKRU  # not in use would be zero: access to everything
    _USED.pack_into(area, _HEADER, in_use & components)
    return bytes(area) + _END


def _in_use(fxsave: bytes) -> int:
    """Which of x87 (bit 0) and SSE (bit 1) are not in their initial state."""
    x87 = fxsave[:24] != _INITIAL_X87 or any(fxsave[32:160])
    sse = fxsave[24:28] != _INITIAL_MXCSR or any(fxsave[160:416])
    return x87 | sse << 1


def set(tid: int, components: Mapping[str, bytes]) -> None:
    """Lay the components out for this processor and load them."""
    unknown = components.keys() - {"fxsave", *COMPONENTS.values()}
    if unknown or len(components.get("fxsave", b"")) != _LEGACY:
        reason = f"has the unknown vector state {', '.join(sorted(unknown)) or 'fxsave'}"
        raise CannotRestore(f"thread {tid}", reason, "upgrade snapkernel")
    present = read(tid)
    area = bytearray(len(present))
    area[_LEGACY:_HEADER] = present[_LEGACY:_HEADER]
    area[:_LEGACY] = components["fxsave"]
    in_use = _in_use(components["fxsave"])
    for number, name in COMPONENTS.items():
        if name not in components:
            continue
        offset, size = _HERE.get(number, (0, 0))
        if size != len(components[name]) or offset + size > len(area):
            raise CannotRestore(
                f"vector state {name}",
                "this processor does not have it",
                "restore on a host with the processor features that `snapkernel show` lists",
            )
        area[offset : offset + size] = components[name]
        in_use |= 1 << number
    struct.pack_into("<Q", area, _HEADER, in_use)
    result = lib.sk_set_regset(tid, NT_X86_XSTATE, bytes(area), len(area))
    if result < 0:
        raise TargetError(f"thread {tid}", f"vector registers cannot be set (errno {-result})")
