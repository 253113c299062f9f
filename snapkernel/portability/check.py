"""What must be the same on the host of a restore; every mismatch is listed at once."""

from __future__ import annotations

import os
import stat

from snapkernel import arch, procfs
from snapkernel.errors import CannotRestore, Finding
from snapkernel.model import (
    AnyDescription,
    CharacterDevice,
    FifoEnd,
    FileIdentity,
    Inotify,
    Manifest,
    PathDescriptor,
    RegularFile,
)
from snapkernel.portability.files import Arrivals
from snapkernel.resources import device


def mismatches(manifest: Manifest, arrivals: Arrivals | None = None) -> list[Finding]:
    """Everything on this host that is not as the snapshot needs it, once the files that travel with
    it have arrived."""
    host = manifest.host
    arrivals = arrivals or Arrivals()
    found: list[Finding] = []

    def mismatch(object: str, reason: str, remedy: str) -> None:
        found.append(Finding(object, "refused", reason, remedy))

    machine = os.uname().machine
    if arch.MACHINES.get(machine) != host.architecture:
        mismatch(
            f"architecture {host.architecture}",
            f"this host is {machine}",
            f"restore on a host that is {host.machine}",
        )
        return found
    page_size = os.sysconf("SC_PAGESIZE")
    if page_size != host.page_size:
        mismatch(
            "page size",
            f"{host.page_size} bytes there, {page_size} here",
            "boot a kernel with the same page size",
        )
    missing = set(host.cpu_features) - set(arch.native().cpu_features())
    if missing:
        mismatch(
            f"processor features {', '.join(sorted(missing))}",
            "this processor does not have them, and the program may use them",
            "restore on a processor that has them",
        )
    needed_of_shared = _needed_of_shared(manifest)
    found += arrivals.findings
    for index, file in enumerate(manifest.files):
        if arrivals.brings(file.path):
            continue
        needed = needed_of_shared.get(index)
        reason = _changed(file) if needed is None else _too_short(file, needed)
        if reason:
            mismatch(f"file {file.path}", reason, "install the same version at the same path")
    for description in manifest.descriptions:
        for kind, path in _opened_by_path(description):
            if path.startswith("/proc/"):
                continue  # of the process itself: there when it is
            if arrivals.brings(path):
                continue
            try:
                status = os.lstat(path) if kind == "path" else os.stat(path)
            except OSError:
                remedy = "make it (mkfifo)" if kind == "FIFO" else "put it there"
                mismatch(f"{kind} {path}", "is open in the snapshot and not here", remedy)
                continue
            if reason := _of_another_kind(description, status):
                remedy = "make it (mkfifo)" if kind == "FIFO" else "put the original back"
                mismatch(f"{kind} {path}", reason, remedy)
    if reason := _memory(manifest):
        mismatch("memory", reason, "restore on a host with more memory, or end other programs")
    directory = manifest.processes[0].working_directory
    if not os.path.isdir(directory) and not arrivals.brings(directory):
        mismatch(f"working directory {directory}", "is not there", "make it")
    return found


def _of_another_kind(description: AnyDescription, status: os.stat_result) -> str:
    """Why not even to open what stands at a path: a pipe would let the restore wait, and opening
    some devices does something. Empty when it is of the right kind."""
    match description:
        case CharacterDevice(device=number):
            same = stat.S_ISCHR(status.st_mode) and status.st_rdev == number
            stateless = number in device.STATELESS
            return "" if same and stateless else "is another device here than in the snapshot"
        case RegularFile(directory=True):
            return "" if stat.S_ISDIR(status.st_mode) else "is no directory here"
        case RegularFile():
            return "" if stat.S_ISREG(status.st_mode) else "is no regular file here"
        case FifoEnd():
            return "" if stat.S_ISFIFO(status.st_mode) else "is something else here"
    return ""


def _memory(manifest: Manifest) -> str:
    """Why there is no room for the largest of its processes; empty when there is."""
    needed = max(process.memory.content.length for process in manifest.processes)
    needed += sum(record.content.length for record in manifest.shared_memory)
    there = procfs.available_memory() + procfs.free_swap()
    return f"{needed} bytes are needed, {there} are free" if needed > there else ""


def _opened_by_path(description: AnyDescription) -> list[tuple[str, str]]:
    """What a description needs of the file system: kind and path."""
    match description:
        case RegularFile(file=file):
            return [("file", file.path)]
        case CharacterDevice(path=path):
            return [("file", path)]
        case FifoEnd(path=path):
            return [("FIFO", path)]
        case PathDescriptor(path=path):
            return [("path", path)]
        case Inotify(watches=watches):
            return [("path", watch.path) for watch in watches]
        case _:
            return []


def _needed_of_shared(manifest: Manifest) -> dict[int, int]:
    """How many bytes the files must have that are only mapped shared, and so may have any content
    (mmap(2), MAP_SHARED); all others must be the same."""
    needed: dict[int, int] = {}
    same = {process.file for process in manifest.processes}
    for process in manifest.processes:
        for mapping in process.memory.mappings:
            if mapping.file is None:
                continue
            if not mapping.shared:
                same.add(mapping.file)
            mapped = mapping.offset + mapping.end - mapping.start
            needed[mapping.file] = max(mapped, needed.get(mapping.file, 0))
    sizes = {index: file.size for index, file in enumerate(manifest.files)}
    return {
        index: min(mapped, sizes[index]) for index, mapped in needed.items() if index not in same
    }


def _too_short(file: FileIdentity, needed: int) -> str:
    """Why a file that is only mapped shared does not do; empty when it does."""
    try:
        status = os.stat(file.path)
    except OSError as error:
        return f"is mapped in the snapshot and cannot be opened here: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file here"
    size = status.st_size
    return f"has {size} bytes here, {needed} are mapped in the snapshot" if size < needed else ""


def _changed(file: FileIdentity) -> str:
    """Why a mapped file is not the one of the snapshot; empty when it is."""
    try:
        status = os.stat(file.path)
    except OSError as error:
        return f"is mapped in the snapshot and cannot be opened here: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file here"
    if status.st_size != file.size:
        return f"has {status.st_size} bytes here, {file.size} in the snapshot"
    if status.st_mtime_ns == file.mtime_ns:
        return ""
    if file.build_id:
        same = procfs.build_id(file.path) == file.build_id
        return "" if same else "has another build id than in the snapshot"
    return "was modified since the snapshot was taken"


def refuse_mismatches(manifest: Manifest, arrivals: Arrivals | None = None) -> None:
    """Raise all mismatches as one error.

    Raises:
        CannotRestore: there is one.
    """
    found = mismatches(manifest, arrivals)
    if found:
        reason = "; ".join(f"{finding.object}: {finding.reason}" for finding in found)
        raise CannotRestore(f"snapshot {manifest.id}", reason, found[0].remedy, found)
