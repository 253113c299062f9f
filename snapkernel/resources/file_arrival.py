"""Files that have travelled with a snapshot (``carried_file``), written where they are missing."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from snapkernel.errors import CannotRestore
from snapkernel.model import CarriedFile, Content, Note
from snapkernel.resources import folder

_PIECE = 4 << 20
_SQLITE = b"SQLite format 3\0"
_NO_MORE = (
    "is a database that SQLite knows by the number of its file, which is another one now: open "
    "connections can read, but no longer write; connect again"
)
"""SQLITE_READONLY_DBMOVED (https://www.sqlite.org/rescode.html)."""

Deliver = Callable[[Content, Callable[[list[tuple[int, int]], memoryview], None]], None]
"""Gives the bytes of a content away, from several threads."""


@dataclass(frozen=True)
class Order:
    """A file that is to be written.

    Attributes:
        record: what.
        path: where.
        replace: what stands there.
    """

    record: CarriedFile
    path: str
    replace: bool = False


@dataclass
class _Staged:
    order: Order
    folder: int
    made: str
    placed: bool = False

    @property
    def name(self) -> str:
        return os.path.basename(self.order.path)


class Arrival:
    """Files on their way to their places: first they are all written beside these, under names of
    their own, then they are put there. Until ``keep`` everything can be undone.

    Attributes:
        notes: what the user should know.
    """

    def __init__(self, begin: Callable[[str], None] = lambda path: None) -> None:
        """``begin`` is told a name of our own before there is a file of that name."""
        self._begin = begin
        self.notes: list[Note] = []
        self._staged: list[_Staged] = []
        self._folders = folder.Folders()
        self._asides: list[tuple[int, str, str]] = []

    def write(self, orders: Sequence[Order], deliver: Deliver) -> None:
        """Write all of them.

        Raises:
            CannotRestore: one cannot be written; nothing has changed then, once ``undo`` is called.
        """
        for order in orders:
            with _told(order):
                self._stage(order, deliver)
        for staged in self._staged:
            with _told(staged.order):
                self._place(staged)

    def _stage(self, order: Order, deliver: Deliver) -> None:
        record = order.record
        into = self._folders.open(os.path.dirname(order.path))
        made = f".snapkernel-{secrets.token_hex(8)}"
        self._begin(os.path.join(os.path.dirname(order.path), made))
        if record.target:
            os.symlink(record.target, made, dir_fd=into)
            self._staged.append(_Staged(order, into, made))
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(made, flags, 0o600, dir_fd=into)
        try:
            self._staged.append(_Staged(order, into, made))
            self._fill(record, descriptor, deliver)
        finally:
            os.close(descriptor)

    def _fill(self, record: CarriedFile, descriptor: int, deliver: Deliver) -> None:
        def write(runs: list[tuple[int, int]], data: memoryview) -> None:
            for offset, length in runs:
                piece, data = data[:length], data[length:]
                if not offset and piece[:16] == _SQLITE:
                    self._note(record, _NO_MORE)
                while piece:
                    done = os.pwrite(descriptor, piece[:_PIECE], offset)
                    piece, offset = piece[done:], offset + done

        os.ftruncate(descriptor, record.size)
        deliver(record.content, write)
        owner = os.fstat(descriptor)
        if record.owner != (owner.st_uid, owner.st_gid):
            try:
                os.fchown(descriptor, *record.owner)
            except OSError:
                if record.owner[0] != owner.st_uid:
                    self._note(record, f"belongs to user {owner.st_uid}, not {record.owner[0]}")
        os.fchmod(descriptor, record.mode)
        for name, value in record.attributes.items():
            try:
                os.setxattr(descriptor, name, value)
            except OSError as error:
                self._note(record, f"lacks the attribute {name}: {error.strerror}")
        os.utime(descriptor, ns=(record.mtime_ns, record.mtime_ns))

    def _note(self, record: CarriedFile, reason: str) -> None:
        self.notes.append(Note(object=f"file {record.path}", status="replaced", reason=reason))

    def _place(self, staged: _Staged) -> None:
        """Give it its name: a new one, or in exchange for what has it now."""
        into, name = staged.folder, staged.name
        if staged.order.replace:
            aside = f"{staged.made}-old"
            os.link(name, aside, src_dir_fd=into, dst_dir_fd=into, follow_symlinks=False)
            self._asides.append((into, aside, name))
            os.rename(staged.made, name, src_dir_fd=into, dst_dir_fd=into)
        else:
            try:
                os.link(staged.made, name, src_dir_fd=into, dst_dir_fd=into, follow_symlinks=False)
                os.unlink(staged.made, dir_fd=into)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise
                # No hard links here: the name is taken first, then what has taken it is replaced.
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=into))
                os.rename(staged.made, name, src_dir_fd=into, dst_dir_fd=into)
        staged.placed = True

    def keep(self) -> None:
        """They stay."""
        for into, aside, _ in self._asides:
            with contextlib.suppress(OSError):
                os.unlink(aside, dir_fd=into)
        self._folders.close()

    def undo(self) -> None:
        """As if nothing had been written."""
        for staged in self._staged:
            with contextlib.suppress(OSError):
                if not staged.placed:
                    os.unlink(staged.made, dir_fd=staged.folder)
                elif not staged.order.replace:
                    os.unlink(staged.name, dir_fd=staged.folder)
        for into, aside, name in self._asides:
            with contextlib.suppress(OSError):
                os.rename(aside, name, src_dir_fd=into, dst_dir_fd=into)
        self._folders.remove_made()
        self._folders.close()


@contextlib.contextmanager
def _told(order: Order) -> Iterator[None]:
    """What the system says against writing a file, in our words."""
    try:
        yield
    except FileExistsError:
        reason = "has come into being while the snapshot was restored"
        raise CannotRestore(f"file {order.path}", reason, "try again") from None
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
        remedy = "make room or allow it, or restore without files (--files none)"
        raise CannotRestore(f"file {order.path}", reason, remedy) from None
