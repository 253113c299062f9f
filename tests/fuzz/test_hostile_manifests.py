"""A manifest that somebody made to do harm is refused when it is read, and says why."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mutations import replaced
from whole import BASE, ID, PAGE, empty_store, forged, manifest, summary, thread

from snapkernel.errors import CannotRestore, DamagedSnapshot, StoreError
from snapkernel.model import CHUNK, RUN, CarriedFile, Content, Manifest
from snapkernel.portability.files import decide
from snapkernel.store import Store
from snapkernel.store import manifest as manifests
from snapkernel.store.backend import put as put_object
from snapkernel.thaw.restore import hold, plan

PROCESS = ("processes", 0)
MEMORY = (*PROCESS, "memory")


def put(*path: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda new: replaced(manifest(), path, new)


def process(**fields: Any) -> dict[str, Any]:
    return replaced(manifest(), PROCESS, {**manifest()["processes"][0], **fields})


def memory(**fields: Any) -> dict[str, Any]:
    return replaced(manifest(), MEMORY, {**manifest()["processes"][0]["memory"], **fields})


def mapping(number: int, **fields: Any) -> dict[str, Any]:
    mappings = manifest()["processes"][0]["memory"]["mappings"]
    mappings[number] |= fields
    return memory(mappings=mappings)


def content(address: int, length: int = PAGE) -> dict[str, bytes]:
    chunk = CHUNK.pack(bytes(32), 0, 16, 100, length, 1)
    return {"runs": RUN.pack(address, length), "chunks": chunk}


def description(number: int, **fields: Any) -> dict[str, Any]:
    plain = manifest()
    return put("descriptions", number)({**plain["descriptions"][number], **fields})


def in_thread(**fields: Any) -> dict[str, Any]:
    return process(threads=[thread(7), {**thread(8), **fields}])


def timer(**fields: Any) -> dict[str, Any]:
    (only,) = manifest()["processes"][0]["timers"]
    return process(timers=[{**only, **fields}])


def locked(start: int, end: int) -> dict[str, Any]:
    return description(0, locks=[{"kind": "posix", "write": True, "start": start, "end": end}])


def described_twice() -> dict[str, Any]:
    entries = manifest()["processes"][0]["descriptors"]
    return process(descriptors=[*entries, {"number": 13, "description": 0}])


def carried(**fields: Any) -> dict[str, Any]:
    first = manifest()["carried"][0]
    return put("carried", 0)({**first, **fields})


def carried_to(path: str) -> dict[str, Any]:
    return carried(path=path)


OWNED = {"id": 0, "permissions": {"key": 0, "uid": 0, "gid": 0, "mode": 0o600}}
QUEUE = {"name": "q", "mode": 0o600, "uid": 0, "gid": 0, "most_messages": 1, "message_size": 1}


def segment(**fields: Any) -> dict[str, Any]:
    """A System V segment as one more object, and further fields of the manifest."""
    record = {"kind": "system-v", "size": 1, "segment": OWNED}
    return manifest() | {"shared_memory": [*manifest()["shared_memory"], record]} | fields


def shared(files: Sequence[str] = (), folders: Sequence[str] = ()) -> dict[str, Any]:
    """Files in memory, and folders that are mounted."""
    records = [{"kind": "dev-shm", "name": name, "size": 1} for name in files]
    places = [{"path": path, "place": True, "mode": 0, "owner": [0, 0]} for path in folders]
    objects = [*manifest()["shared_memory"], *records]
    return manifest() | {"shared_memory": objects, "shared_folders": places}


def ipc(**fields: Any) -> dict[str, Any]:
    return manifest() | {"ipc": fields}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # paths
    "a NUL in a path": (description(0, file={"path": "/a\0b", "size": 1, "mtime_ns": 1}), "name"),
    "a NUL in a mapped file": (put("files", 0, "path")("/bin/true\0x"), "not a name"),
    "a NUL in a device": (description(2, path="/dev/null\0"), "not a name"),
    "a NUL in the directory": (process(working_directory="/\0"), "not a name"),
    "a NUL in a memfd": (put("shared_memory", 1, "name")("m\0"), "not a name"),
    "a NUL in a mapping's name": (mapping(1, name="[anon:\0]"), "not a name"),
    "a path upwards": (put("files", 0, "path")("/bin/../../etc/passwd"), "root directory"),
    "a relative path": (put("files", 0, "path")("passwd"), "root directory"),
    "a relative executable": (process(executable="true"), "root directory"),
    "a relative deleted file": (put("shared_memory", 2, "name")("gone"), "root directory"),
    "a deleted file upwards": (put("shared_memory", 2, "name")("/tmp/../etc/x"), "root"),
    "a path of 5000 characters": (process(working_directory="/" + "x" * 5000), "not a name"),
    "a directory in a process": (process(working_directory="/proc/self/root"), "into a process"),
    "a directory by descriptor": (process(working_directory="/proc/1/fd/3"), "into a process"),
    "a directory by thread": (process(working_directory="/proc/1/task/1/cwd"), "into a process"),
    "a file in a process": (put("files", 0, "path")("/proc/1/root/etc/shadow"), "into a process"),
    # memory
    "content in a shared mapping": (memory(content=content(BASE + 16 * PAGE)), "no mapping"),
    "content in no mapping": (memory(content=content(BASE + PAGE)), "no mapping"),
    "content across a mapping's end": (memory(content=content(BASE, 2 * PAGE)), "no mapping"),
    "content below all mappings": (memory(content=content(PAGE)), "no mapping"),
    "content behind an object's end": (
        put("shared_memory", 1, "content")(content(1 << 20)),
        "behind its end",
    ),
    "guards in no mapping": (memory(guards=RUN.pack(PAGE, PAGE)), "no mapping"),
    "guards that overlap": (memory(guards=2 * RUN.pack(BASE, PAGE)), "guards"),
    "half a guard": (memory(guards=bytes(15)), "truncated"),
    "overlapping mappings": (mapping(1, end=BASE + 32 * PAGE), "overlaps"),
    "a mapping over the vdso": (mapping(2, end=BASE + 65 * PAGE), "overlaps the vdso"),
    "half a page": (mapping(1, end=BASE + 100), "whole pages"),
    "an offset of half a page": (mapping(0, offset=100), "whole pages"),
    "an offset that wraps": (mapping(2, offset=(1 << 63) - PAGE), "behind the end"),
    "a mapping beyond the address space": (mapping(2, end=(1 << 64) - PAGE), "<="),
    "a mapping of two files": (mapping(0, object=0), "two files"),
    "a file that is not there": (mapping(0, file=1), "entry 1 of 1"),
    "a vdso of a gigabyte": (
        memory(
            vdso={"start": BASE + (1 << 30), "end": BASE + (1 << 31), "parts": []}
            | {"text_start": BASE + (1 << 30), "text": bytes(1 << 21)}
        ),
        "vdso is too large",
    ),
    "a large auxiliary vector": (memory(auxv=bytes(1 << 16)), "auxiliary vector"),
    "pages of three bytes": (put("host", "page_size")(3), "pages of 3 bytes"),
    "an object of no kind": (put("shared_memory", 0, "kind")("magic"), "no kind"),
    "an object larger than a file": (put("shared_memory", 1, "size")((1 << 63) - 1), "size"),
    "a mode of more bits": (put("shared_memory", 1, "mode")(1 << 20), "mode"),
    # descriptors
    "a descriptor beyond any table": (
        put(*PROCESS, "descriptors", 13, "number")((1 << 31) - 1),
        "beyond any table",
    ),
    "a negative descriptor": (put(*PROCESS, "descriptors", 0, "number")(-1), ">= 0"),
    "a descriptor twice": (described_twice(), "there twice"),
    "a description of nobody": (
        process(descriptors=manifest()["processes"][0]["descriptors"][:-1]),
        "no descriptor refers",
    ),
    "a description that is not there": (
        put(*PROCESS, "descriptors", 0, "description")(99),
        "entry 99",
    ),
    "a file to be truncated": (description(0, flags=os.O_RDWR | os.O_TRUNC), "no open file"),
    "a file to be made": (description(0, flags=os.O_RDWR | os.O_CREAT), "no open file"),
    "a device to be truncated": (description(2, flags=os.O_TRUNC), "no open file"),
    "flags of 33 bits": (description(6, flags=1 << 32), "no open file"),
    "a lock of negative length": (locked(9, 3), "no bytes"),
    "an end of a pipe both ways": (description(3, flags=3), "no end of a pipe"),
    "a pipe that is not there": (description(3, pipe=1), "entry 1 of 1"),
    "more than fits into a pipe": (put("pipes", 0, "size")(2), "than fits"),
    "an endless pipe": (put("pipes", 0, "size")(1 << 40), "than fits"),
    "shared anonymous memory that is open": (description(1, object=0), "anonymous memory open"),
    "a socket that is its own peer": (description(10, peer=10), "not the other end"),
    "a triangle of sockets": (description(11, peer=0), "not the other end"),
    "a socket with a file for a peer": (description(10, peer=0), "not the other end"),
    "ends of two types": (description(10, type=2), "another type"),
    "a raw socket": (description(13, type=3), "not saved"),
    "a packet socket": (description(13, family=17), "not saved"),
    "a firewall": (description(13, options=[[socket.IPPROTO_IP, 64, b"x"]]), "option 64"),
    "a filter": (description(13, options=[[1, 26, bytes(16)]]), "option 26"),
    "a long option": (description(13, options=[[1, 9, bytes(1 << 20)]]), "option 9"),
    "no address": (description(12, address="example.org"), "no address"),
    "an address with NUL": (description(12, address="127.0.0.1\0"), "no address"),
    "no family": (description(12, family=40000), "not saved"),
    "a port of 17 bits": (description(12, port=65536), "<= 65535"),
    "watched by epoll, and not there": (
        description(7, targets=[{"descriptor": 6, "description": 99, "events": 1, "data": 0}]),
        "entry 99",
    ),
    # files that travel
    "a file to nowhere": (carried_to(""), "root directory"),
    "a relative file": (carried_to("a"), "root directory"),
    "a file upwards": (carried_to("/tmp/../etc/cron.d/x"), "root directory"),
    "a file with a NUL": (carried_to("/tmp/a\0b"), "not a name"),
    "a file of the kernel": (carried_to("/proc/sys/kernel/core_pattern"), "no such files"),
    "a file of a process": (carried_to("/proc/self/root/etc/x"), "into a process"),
    "a file of sysfs": (carried_to("/sys/kernel/x"), "no such files"),
    "a device": (carried_to("/dev/sda"), "no such files"),
    "two slashes": (carried_to("//proc/sysrq-trigger"), "not the name of a file"),
    "a directory": (carried_to("/tmp/a/"), "not the name of a file"),
    "the root directory": (carried_to("/"), "not the name of a file"),
    "a file twice": (carried_to("/tmp/snapkernel-fuzz/b"), "same path"),
    "a file through a link": (carried_to("/tmp/snapkernel-fuzz/b/c"), "below another file"),
    "a file with the rights of its owner": (carried(mode=0o4755), "mode or owner"),
    "a user of a file of 33 bits": (carried(owner=[1 << 32, 0]), "mode or owner"),
    "a file of another time": (carried(mtime_ns=-(1 << 63)), "impossible time"),
    "a file larger than any": (carried(size=(1 << 63) - 1), "impossible size"),
    "content behind a file's end": (carried(size=10, content=content(0)), "behind its end"),
    "a link with a size": (carried(target="/x", size=1), "impossible size"),
    "a link with a NUL": (carried(target="/x\0"), "not a name"),
    "a capability": (carried(attributes={"security.capability": b"x"}), "does not travel"),
    "an access list": (carried(attributes={"system.posix_acl_access": b"x"}), "does not travel"),
    "large attributes": (carried(attributes={"user.x": bytes(1 << 17)}), "more attributes"),
    "a million files": (
        put("carried")([manifest()["carried"][0]] * ((1 << 20) + 1)),
        "entries",
    ),
    # IPC objects
    "a segment of everybody": (segment(), "no IPC namespace"),
    "a segment in itself": (put("shared_memory", 0, "kind")("system-v"), "segment or none"),
    "semaphores twice": (ipc(semaphores=2 * [{**OWNED, "values": [1]}]), "there twice"),
    "a queue twice": (ipc(posix_queues=[QUEUE, QUEUE]), "there twice"),
    "a queue elsewhere": (ipc(posix_queues=[{**QUEUE, "name": "../x"}]), "cannot be called"),
    "a queue without a name": (ipc(posix_queues=[{**QUEUE, "name": ""}]), "cannot be called"),
    "a queue that is not there": (
        put("descriptions", 13)({"kind": "posix-queue", "queue": 0}),
        "entry 0 of 0",
    ),
    "a queue of nobody": (ipc(posix_queues=[{**QUEUE, "uid": 1 << 40}]), "owner"),
    "many semaphores": (
        ipc(semaphores=[{**OWNED, "values": [0] * ((1 << 20) + 1)}]),
        "too many",
    ),
    # private folders
    "a file in no folder": (shared(files=["/dev/shm/x"]), "in no folder"),
    "a file elsewhere": (shared(files=["/etc/passwd"], folders=["/dev/shm"]), "in no folder"),
    "a file in memory upwards": (
        shared(files=["/dev/shm/../x"], folders=["/dev/shm"]),
        "root directory",
    ),
    "a file in memory twice": (
        shared(files=2 * ["/dev/shm/x"], folders=["/dev/shm"]),
        "there twice",
    ),
    "a folder with two slashes": (shared(folders=["/dev//shm"]), "is not a name"),
    # terminals
    "a terminal that is not there": (description(14, terminal=1), "entry 1 of 1"),
    "a terminal with a high number": (put("terminals", 0, "number")(4096), "<= 4095"),
    "two terminals of one number": (put("terminals")([{"number": 1}] * 2), "same number"),
    "a terminal that nobody has open": (
        put("terminals")([{"number": 1}, {"number": 2}]),
        "open nowhere",
    ),
    "two masters": (description(14, master=True, path="/dev/ptmx"), "two masters"),
    "a file for a master": (description(15, path="/etc/passwd"), "no master"),
    "half a terminal": (put("terminals", 0, "settings")(bytes(7)), "settings"),
    "settings of half a terminal": (description(5, settings=bytes(7)), "no terminal"),
    "a window of one number": (put("terminals", 0, "window")(bytes(2)), "settings"),
    "much that was typed": (put("terminals", 0, "unfinished")(bytes(5000)), "typed"),
    "many ends of file": (put("terminals", 0, "typed")([b""] * 5000), "typed"),
    "much that was printed": (put("terminals", 0, "printed")(bytes(1 << 17)), "printed"),
    "a controlling terminal that is not there": (process(terminal=3), "entry 3 of 1"),
    "a controlling terminal without a master": (description(15, master=False), "hung up"),
    # processes and threads
    "no process": (put("processes")([]), "no process"),
    "pid 1": (process(pid=1, threads=[thread(1)]), "first process"),
    "a pid beyond all": (process(pid=1 << 30), "<="),
    "no thread": (process(threads=[]), "main thread"),
    "a thread twice": (process(threads=[thread(7), thread(7)]), "same id"),
    "few registers": (in_thread(registers=bytes(8)), "registers"),
    "a short alternate stack": (in_thread(alternate_stack=bytes(3)), "alternate"),
    "much vector state": (in_thread(vector={"fxsave": bytes(1 << 20)}), "vector"),
    "a signal of 100": (in_thread(pending=[{"signal": 100, "info": bytes(128)}]), "signal 100"),
    "a short siginfo": (process(pending=[{"signal": 9, "info": b""}]), "signal 9"),
    "a mask of 65 bits": (in_thread(signal_mask=-1), "64 bits"),
    "a priority of 10000": (in_thread(scheduling={"policy": 1, "priority": 10000}), "<= 99"),
    "a policy of 10000": (in_thread(scheduling={"policy": 10000}), "settings"),
    "one deadline": (in_thread(scheduling={"policy": 6, "deadline": [1]}), "deadlines"),
    "a NUMA policy of 20 bits": (in_thread(scheduling={"memory": {"mode": 1 << 20}}), "NUMA"),
    "a NUMA policy of memory": (mapping(1, policy={"mode": 1 << 20}), "NUMA"),
    "an rseq of 33 bits": (in_thread(rseq={"address": 0, "size": 1 << 32, "signature": 0}), "rseq"),
    "a long name of a thread": (in_thread(name=bytes(99)), "too long"),
    "a timer of 40 bits": (timer(id=1 << 40), "none of Linux"),
    "a timer for signal 99": (timer(signal=99), "none of Linux"),
    "a timer with a short setting": (timer(setting=b""), "another setting"),
    "a timer twice": (process(timers=2 * manifest()["processes"][0]["timers"]), "same id"),
    "one interval timer": (process(interval_timers=[bytes(32)]), "interval timers"),
    "a short action": (process(actions={2: b""}), "signal action"),
    "an action for signal 99": (process(actions={99: bytes(32)}), "unknown signal"),
    "an unknown limit": (process(limits={99: [1, 1]}), "resource limit"),
    "a negative limit": (process(limits={7: [-2, 1]}), "negative"),
    "oom_score_adj": (process(oom_score_adj=-100000), "oom_score_adj"),
    "a user of 33 bits": (
        process(credentials={"uids": [1 << 32, 0, 0, 0], "gids": [0] * 4}),
        "32 bits",
    ),
    "many processors": (in_thread(scheduling={"processors": [0] * ((1 << 20) + 1)}), "processors"),
    "a million notes": (put("notes")([{"object": "", "status": ""}] * ((1 << 20) + 1)), "entries"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_refused(what: str) -> None:
    plain, reason = REFUSED[what]
    store = forged(plain)
    with pytest.raises(DamagedSnapshot, match=reason) as caught:
        store.load(ID)
    assert ID in caught.value.object
    assert caught.value.remedy


def test_what_they_were_made_of_is_not_refused() -> None:
    """So each of them is refused for what was changed, and for nothing else."""
    store = forged(manifest())
    loaded = store.load(ID)
    assert msgspec.to_builtins(loaded)["id"] == ID
    assert len(list(plan(ID, store=store))) > 100


DEEP = b"\x81\xa1x" + b"\x91" * 60_000 + b"\xc0"
"""MessagePack: a map with one field, which is an array in an array in an array."""


def framed(head: bytes, body: bytes) -> Store:
    store = empty_store()
    put_object(store.backend, manifests.object_name(ID), [manifests.frame(head, body)])
    return store


def test_deep_nesting() -> None:
    honest = msgspec.msgpack.encode(manifest())
    head = summary(manifest())
    with pytest.raises(DamagedSnapshot, match="recursion"):
        framed(DEEP, honest).load(ID)
    with pytest.raises(DamagedSnapshot, match="unknown field"):
        framed(head, DEEP).load(ID)
    with pytest.raises(DamagedSnapshot, match="recursion"):
        framed(head, DEEP).gc()
    (listed,) = framed(DEEP, honest).list()
    assert "recursion" in listed.problem


def test_deep_nesting_in_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(b'{"format": 1, "x": ' + b"[" * 60_000)
    with pytest.raises(StoreError, match="recursion"):
        Store.open(str(tmp_path))


# --- what only the host can tell -----------------------------------------------------------------


def held(plain: dict[str, Any]) -> None:
    hold(ID, store=forged(plain), stdio=(0, 1, 2)).destroy()


def test_a_pipe_where_a_file_was(tmp_path: Path) -> None:
    """It is not opened: that would wait for ever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    file = {"path": str(fifo), "size": 0, "mtime_ns": 0}
    with pytest.raises(CannotRestore, match="no regular file"):
        held(description(0, file=file, flags=os.O_RDONLY))
    with pytest.raises(CannotRestore, match="no regular file"):
        held(put("files", 0)({**file, "build_id": "ab" * 20}))


def test_a_device_that_does_something_when_it_is_opened() -> None:
    with pytest.raises(CannotRestore, match="another device"):
        held(description(2, path="/dev/tty", device=os.makedev(5, 0)))
    with pytest.raises(CannotRestore, match="another device"):
        held(description(2, path="/dev/zero"))
    file = {"path": "/dev/zero", "size": 0, "mtime_ns": 0}
    with pytest.raises(CannotRestore, match="no regular file"):
        held(description(0, file=file))


def opened_as(folder: Path, name: str, **fields: Any) -> dict[str, Any]:
    """One file that travels to a place, and is not open."""
    first = {**manifest()["carried"][0], "attributes": {}}
    return put("carried")([{**first, "path": str(folder / name), **fields}])


def test_a_file_where_none_is_expected(tmp_path: Path) -> None:
    """What was not open and is neither below the working directory nor temporary is not written
    unless it is asked for, nor is what is hidden there."""
    for path in ("/etc/cron.d", "/root/.ssh", "/tmp/.hidden"):
        with pytest.raises(CannotRestore, match="missing here, was not open"):
            held(opened_as(Path(path), "snapkernel-fuzz"))
        assert not os.path.lexists(f"{path}/snapkernel-fuzz")


def test_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    with pytest.raises(CannotRestore, match="4 bytes here, 0 in the snapshot"):
        held(opened_as(tmp_path, "there"))
    (tmp_path / "link").symlink_to("there")
    with pytest.raises(CannotRestore, match="4 bytes here, 0 in the snapshot"):
        held(opened_as(tmp_path, "link"))
    assert (tmp_path / "there").read_text() == "mine"


def test_a_file_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CannotRestore, match="no directory here"):
        held(opened_as(tmp_path / "file", "x"))
    with pytest.raises(CannotRestore, match="cannot be looked at"):
        held(opened_as(tmp_path, "x" * 300))


def test_a_sparse_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    """Four tebibytes of nothing is compared at once."""
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 42)
    record = CarriedFile(
        path=str(tmp_path / "sparse"), size=1 << 42, mode=0o600, owner=(0, 0), mtime_ns=1
    )
    arrivals = decide(make_manifest_with(record))
    assert not arrivals.findings
    assert not arrivals.orders


def make_manifest_with(record: CarriedFile) -> Manifest:
    whole = msgspec.convert(manifest(), Manifest)
    return msgspec.structs.replace(whole, carried=(record,))


def test_more_files_than_there_is_room_for(tmp_path: Path) -> None:
    content = Content(runs=RUN.pack(0, 1 << 60))
    record = CarriedFile(
        path=str(tmp_path / "a"), size=1 << 60, mode=0, owner=(0, 0), mtime_ns=1, content=content
    )
    (found,) = decide(make_manifest_with(record)).findings
    assert f"{1 << 60} bytes of files are needed" in found.reason


def test_more_memory_than_there_is() -> None:
    chunks, length = 1 << 16, 1 << 20
    row = CHUNK.pack(bytes(32), 0, 16, 100, length, 1)
    runs = RUN.pack(1 << 40, chunks * length * 16)
    plain = memory(
        content={"runs": runs, "chunks": row * chunks * 16},
        mappings=[{"start": 1 << 40, "end": (1 << 40) + chunks * length * 16, "protection": 3}],
        guards=b"",
    )
    with pytest.raises(CannotRestore, match="bytes are needed"):
        held(plain)


def test_an_architecture_that_nobody_knows() -> None:
    plain = put("host", "architecture")("../x86_64")
    with pytest.raises(CannotRestore, match="architecture"):
        held(plain)
    with pytest.raises(CannotRestore, match="not known"):
        list(plan(ID, store=forged(plain)))
