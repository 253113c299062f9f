"""A manifest with one of everything, as plain data, and stores that hold what somebody made."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import Any

import msgspec

from snapkernel.model import RUN, SCHEMA, MemoryLayout
from snapkernel.store import Store
from snapkernel.store import manifest as manifests
from snapkernel.store.backend import put
from snapkernel.store.manifest import Summary

ID = "0123456789abcdef" * 2
BASE = 0x7F00_0000_0000
PAGE = 4096
_STATUS = os.stat("/etc/passwd")
_FILE = {"path": "/etc/passwd", "size": _STATUS.st_size, "mtime_ns": _STATUS.st_mtime_ns}
_DESCRIPTIONS: list[dict[str, Any]] = [
    {"kind": "file", "file": _FILE, "position": 3, "locks": [{"kind": "posix", "write": False}]},
    {"kind": "object", "object": 1, "flags": os.O_RDWR},
    {"kind": "device", "path": "/dev/null", "device": os.makedev(1, 3), "flags": os.O_RDWR},
    {"kind": "pipe", "pipe": 0, "writable": False},
    {"kind": "pipe", "pipe": 0, "writable": True, "flags": os.O_WRONLY},
    {"kind": "stream", "stream": 1, "was": "/dev/pts/0"},
    {"kind": "eventfd", "count": 3},
    {
        "kind": "epoll",
        "targets": [{"descriptor": 6, "description": 6, "events": 1, "data": 9}],
    },
    {"kind": "timerfd", "clock": 1, "value": 1_000_000_000},
    {"kind": "signalfd", "mask": 1 << 9},
    {"kind": "unix", "type": 1, "peer": 11, "queue": [b"hello"], "options": [[1, 9, b"\1\0\0\0"]]},
    {"kind": "unix", "type": 1, "peer": 10},
    {"kind": "tcp-listener", "family": 2, "address": "127.0.0.1", "port": 8888, "backlog": 5},
    {"kind": "closed-socket", "family": 2, "type": 1, "was": "a connection"},
    {"kind": "terminal", "terminal": 0, "flags": os.O_RDWR},
    {"kind": "terminal", "terminal": 0, "flags": os.O_RDWR, "master": True, "path": "/dev/ptmx"},
]


def thread(tid: int) -> dict[str, Any]:
    return {
        "tid": tid,
        "name": b"sample",
        "registers": bytes(216),
        "vector": {"fxsave": bytes(464)},
        "signal_mask": 0,
        "pending": [{"signal": 10, "info": struct.pack("=i", 10).ljust(128, b"\0")}],
        "alternate_stack": struct.pack("=Qi4xQ", 0, 2, 0),
        "rseq": {"address": BASE, "size": 32, "signature": 0x53053053},
        "scheduling": {"processors": [0]},
    }


def manifest() -> dict[str, Any]:
    """Plain data that passes every check."""
    shared = {"start": BASE + 16 * PAGE, "end": BASE + 17 * PAGE, "protection": 3, "shared": True}
    mappings = [
        {"start": 0x400000, "end": 0x401000, "protection": 5, "file": 0},
        {"start": BASE, "end": BASE + PAGE, "protection": 3, "name": "[anon:x]", "flags": ["ac"]},
        {**shared, "object": 0, "flags": ["mw"]},
    ]
    vdso = {
        "start": BASE + 64 * PAGE,
        "end": BASE + 70 * PAGE,
        "text_start": BASE + 68 * PAGE,
        "text": b"\x7fELF\2\1\1".ljust(2 * PAGE, b"\0"),
        "parts": [
            ["[vvar]", BASE + 64 * PAGE, BASE + 68 * PAGE],
            ["[vdso]", BASE + 68 * PAGE, BASE + 70 * PAGE],
        ],
    }
    process = {
        "pid": 7,
        "ppid": 1,
        "pgid": 7,
        "sid": 7,
        "executable": "/etc/passwd",
        "file": 0,
        "arguments": ["sample", "x"],
        "working_directory": "/",
        "umask": 0o22,
        "memory": {
            "mappings": mappings,
            "layout": dict.fromkeys(MemoryLayout.__struct_fields__, BASE),
            "auxv": bytes(32),
            "vdso": vdso,
            "guards": RUN.pack(BASE, PAGE),
        },
        "threads": [thread(7), thread(8)],
        "descriptors": [
            {"number": number, "description": number} for number in range(len(_DESCRIPTIONS))
        ],
        "credentials": {"uids": [0] * 4, "gids": [0] * 4, "groups": [0], "capabilities": [0] * 5},
        "actions": {2: bytes(32)},
        "interval_timers": [bytes(32)] * 3,
        "timers": [
            {"id": 0, "clock": 1, "signal": 10, "value": 0, "notify": 4, "thread": 8}
            | {"setting": bytes(32)}
        ],
        "limits": {7: [1024, 4096], 3: [-1, -1]},
        "terminal": 0,
    }
    return {
        "schema": SCHEMA,
        "id": ID,
        "name": "sample",
        "created": "2026-01-02T03:04:05Z",
        "mode": "live",
        "software": "tests",
        "host": {
            "name": "here",
            "architecture": "x86_64",
            "machine": "x86_64",
            "kernel": "6.1",
            "page_size": PAGE,
            "cpu_features": ["sse"],
        },
        "clocks": {"monotonic_ns": 1, "boottime_ns": 1, "realtime_ns": 1},
        "processes": [process],
        "descriptions": _DESCRIPTIONS,
        "pipes": [{"size": 65536, "data": [b"waits"]}],
        "terminals": [
            {"number": 1, "settings": bytes(44), "foreground": 7}
            | {"typed": [b"line\n", b""], "unfinished": b"beg", "printed": b"output"}
        ],
        "shared_memory": [
            {"kind": "anonymous", "size": PAGE},
            {"kind": "memfd", "name": "m", "size": 9, "mode": 0o600},
            {"kind": "deleted-file", "name": "/tmp/gone", "size": 9, "mode": 0o600},
        ],
        "files": [_FILE],
        "carried": [
            {"path": "/tmp/snapkernel-fuzz/a", "size": 0, "mode": 0o600, "mtime_ns": 1}
            | {"owner": [0, 0], "attributes": {"user.x": b"y"}, "born_ns": 1, "inode": 5},
            {"path": "/tmp/snapkernel-fuzz/b", "size": 0, "mode": 0o777, "mtime_ns": 1}
            | {"owner": [0, 0], "target": "a", "common": True},
        ],
        "packs": ["ab" * 32],
        "jupyter": {"shell_port": 8888, "key": "x"},
        "notes": [{"object": "fd 5", "status": "replaced"}],
    }


def summary(plain: dict[str, Any]) -> bytes:
    """What goes with a manifest, true where it can be."""
    said: dict[str, Any] = {"id": ID, "memory_bytes": 0, "stored_bytes": 0}
    for name in Summary.__struct_fields__:
        if name in plain:
            said[name] = plain[name]
    host = plain.get("host")
    if isinstance(host, dict):
        said |= {"host": host.get("name"), "architecture": host.get("architecture")}
    with suppress(KeyError, TypeError, AttributeError, struct.error):
        contents = [file["content"]["runs"] for file in plain["carried"] if "content" in file]
        said["file_bytes"] = sum(n for runs in contents for _, n in RUN.iter_unpack(runs))
    return msgspec.msgpack.encode(said)


def empty_store() -> Store:
    return Store.open("memory://", create=True)


def forged(plain: Any, store: Store | None = None) -> Store:
    """A store with a manifest whose checksums are right, whatever it says."""
    store = store or empty_store()
    head = summary(plain if isinstance(plain, dict) else {})
    data = manifests.frame(head, msgspec.msgpack.encode(plain))
    store.backend.delete(manifests.object_name(ID))
    put(store.backend, manifests.object_name(ID), [data])
    return store
