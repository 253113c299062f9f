"""CRIU as a Debian package, unpacked in a cache folder, to stand beside snapkernel.

The CRIU of Debian 14 is used on every host, because older ones fail on newer kernels: Debian 12's
3.17 does not start on Linux 6.18 ("Failed to fill self vdso symtable"), and Debian 13's 4.1 cannot
dump a TCP socket from Linux 6.16 on (CRIU issue 2705, mended in 4.2). It runs out of a folder, with
the loader and the libraries it was built for, so nothing is installed. The packages come from the
Debian archive that the machine is configured to use.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SUITE = "forky"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}


class NoCriuError(Exception):
    """CRIU cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Criu:
    """A CRIU that runs here: ``command`` begins every call, ``version`` names it in tables."""

    command: tuple[str, ...]
    version: str

    def dump(self, pid: int, images: Path) -> list[str]:
        """The command that dumps ``pid`` and lets it go on."""
        return [
            *self.command,
            *("dump", "--tree", str(pid), "--images-dir", str(images)),
            *("--tcp-close", "--leave-running", "--log-file", "dump.log", "-v1"),
        ]

    def restore(self, images: Path) -> list[str]:
        """The command that restores a dump and returns when the process runs."""
        return [
            *self.command,
            *("restore", "--restore-detached", "--images-dir", str(images)),
            *("--tcp-close", "--log-file", "restore.log", "-v1"),
        ]


def prepare(cache: Path) -> Criu:
    """Download CRIU into ``cache`` unless it is there, and check that it runs.

    Raises:
        NoCriuError: not root, no package for this machine, no Debian source, no network.
    """
    if os.geteuid() != 0:
        raise NoCriuError("CRIU needs root")
    triple = TRIPLES.get(platform.machine())
    if triple is None:
        raise NoCriuError(f"no set-up for {platform.machine()}")
    root = cache / "root"
    if not (root / "usr/sbin/criu").exists():
        _download(cache, root)
    libraries = root / "usr/lib" / triple
    loader = next(libraries.glob("ld-linux-*.so.*"))
    command = (str(loader), "--library-path", str(libraries), str(root / "usr/sbin/criu"))
    result = subprocess.run([*command, "--version"], capture_output=True, text=True)
    match = re.search(r"Version: (\S+)", result.stdout)
    if match is None:
        raise NoCriuError(f"CRIU does not start: {result.stderr.strip()}")
    return Criu(command, match[1])


def frozen_seconds(images: Path) -> float:
    """How long a dump kept the process stopped, from CRIU's own ``stats-dump``.

    Two magic numbers and a length, then protobuf: field 1 is the dump's statistics, of which
    field 2 is the frozen time in microseconds.
    """
    data = (images / "stats-dump").read_bytes()
    (length,) = struct.unpack_from("<I", data, 8)
    statistics = _protobuf_fields(data[12 : 12 + length])[1]
    assert isinstance(statistics, bytes)
    frozen = _protobuf_fields(statistics)[2]
    assert isinstance(frozen, int)
    return frozen / 1e6


def _protobuf_fields(data: bytes) -> dict[int, int | bytes]:
    fields: dict[int, int | bytes] = {}
    position = 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        key = number()
        if key & 7 == 2:
            length = number()
            fields[key >> 3] = data[position : position + length]
            position += length
        else:
            fields[key >> 3] = number()
    return fields


def _download(cache: Path, root: Path) -> None:
    source = _debian_source()
    for folder in ("lists", "cache", "packages", "unpacking"):
        shutil.rmtree(cache / folder, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial", "packages"):
        (cache / folder).mkdir(parents=True)
    (cache / "status").touch()
    (cache / "sources.list").write_text(f"deb [signed-by={KEYRING}] {source} {SUITE} main\n")
    configuration = cache / "apt.conf"
    configuration.write_text(
        f'Dir::State::Lists "{cache}/lists";\n'
        f'Dir::State::status "{cache}/status";\n'
        f'Dir::Cache "{cache}/cache";\n'
        f'Dir::Etc::sourcelist "{cache}/sources.list";\n'
        'Dir::Etc::sourceparts "-";\n'
        'Acquire::Languages "none";\n'
        'APT::Sandbox::User "root";\n'
    )

    def run(*command: str) -> str:
        result = subprocess.run(
            command,
            cwd=cache / "packages",
            env={**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C"},
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise NoCriuError(f"{' '.join(command[:2])} failed: {result.stderr.strip()}")
        return result.stdout

    run("apt-get", "update")
    simulated = run("apt-get", "--simulate", "--no-install-recommends", "install", "criu")
    packages = re.findall(r"^Inst (\S+)", simulated, re.MULTILINE)
    run("apt-get", "download", *packages)
    for link in ("bin", "lib", "lib64", "sbin"):  # the shape of a merged-/usr system
        (cache / "unpacking/usr" / link).mkdir(parents=True, exist_ok=True)
        (cache / "unpacking" / link).symlink_to(f"usr/{link}")
    for package in sorted((cache / "packages").glob("*.deb")):
        contents = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE, check=True
        )
        subprocess.run(
            ["tar", "-x", "-C", str(cache / "unpacking"), "--keep-directory-symlink"],
            input=contents.stdout,
            check=True,
        )
    (cache / "unpacking").rename(root)
    for folder in ("lists", "cache", "packages"):
        shutil.rmtree(cache / folder)


def _debian_source() -> str:
    """Address of the Debian archive that this machine is configured to use."""
    if not shutil.which("apt-get") or not KEYRING.exists():
        raise NoCriuError("this is not a Debian system")
    folder = Path("/etc/apt")
    files = [folder / "sources.list", *sorted(folder.glob("sources.list.d/*"))]
    text = "\n".join(path.read_text() for path in files if path.is_file())
    one_line = r"^deb\s+(?:\[[^]]*\]\s+)?(\S+/debian)/?\s"
    stanza = r"^URIs:\s*(\S+/debian)/?\s*$"
    match = re.search(f"{one_line}|{stanza}", text, re.MULTILINE)
    if match is None:
        raise NoCriuError("no Debian archive is configured in /etc/apt")
    return match[1] or match[2]
