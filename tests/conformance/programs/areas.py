"""Raw mappings of memory, which Python's own mmap module would hide."""

import ctypes
import errno
import mmap
import os

from protocol import UnsupportedError, call

PAGE = mmap.PAGESIZE
READ, WRITE, NONE = mmap.PROT_READ, mmap.PROT_WRITE, 0
SHARED, PRIVATE, ANONYMOUS = mmap.MAP_SHARED, mmap.MAP_PRIVATE, mmap.MAP_ANONYMOUS
NORESERVE = 0x4000  # include/uapi/asm-generic/mman.h; the same on all our architectures but ppc64


class Area:
    """One mapping made with mmap(2)."""

    def __init__(
        self,
        length: int,
        protection: int = READ | WRITE,
        flags: int = PRIVATE | ANONYMOUS,
        fd: int = -1,
        offset: int = 0,
    ) -> None:
        self.length = length
        try:
            self.address = call("mmap", 0, length, protection, flags, fd, offset)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                raise UnsupportedError(f"mmap with flags {flags:#x}: {error.strerror}") from None
            raise

    def write(self, data: bytes, offset: int = 0) -> None:
        ctypes.memmove(self.address + offset, data, len(data))

    def read(self, length: int | None = None, offset: int = 0) -> bytes:
        return ctypes.string_at(self.address + offset, self.length if length is None else length)

    def protect(self, protection: int, offset: int = 0, length: int | None = None) -> None:
        call("mprotect", self.address + offset, length or self.length, protection)

    def advise(self, advice: int, offset: int = 0, length: int | None = None) -> None:
        try:
            call("madvise", self.address + offset, length or self.length, advice)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise UnsupportedError(f"madvise {advice}") from None
            raise

    def details(self) -> dict[str, str]:
        """The area's entry of smaps (proc_pid_smaps(5)), with the first line under ``""``."""
        found: dict[str, str] = {}
        with open("/proc/self/smaps") as smaps:
            for line in smaps:
                first = line.split(maxsplit=1)[0]
                if not first.endswith(":"):
                    if found:
                        break
                    start, end = (int(part, 16) for part in first.split("-"))
                    if start <= self.address < end:
                        found[""] = line.rstrip("\n")
                elif found:
                    name, _, value = line.partition(":")
                    found[name] = value.strip()
        if not found:
            raise AssertionError(f"no mapping at {self.address:#x}")
        return found

    def vm_flags(self) -> set[str]:
        return set(self.details()["VmFlags"].split())

    def permissions(self) -> str:
        return self.details()[""].split()[1]

    def resident(self) -> int:
        """Bytes of the whole mapping in memory."""
        return int(self.details()["Rss"].split()[0]) * 1024

    def readable(self, offset: int = 0) -> bool:
        """Whether reading there works. The kernel tries it, so nothing crashes."""
        reader, writer = os.pipe()
        try:
            call("write", writer, self.address + offset, 1)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            return False
        finally:
            os.close(reader)
            os.close(writer)
        return True

    def writable(self, offset: int = 0) -> bool:
        """Whether writing there works; the byte becomes ``!``."""
        reader, writer = os.pipe()
        os.write(writer, b"!")
        try:
            call("read", reader, self.address + offset, 1)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            return False
        finally:
            os.close(reader)
            os.close(writer)
        return True
