"""Which files travel, whether two are equal, and how folders are opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from snapkernel.errors import InvalidName
from snapkernel.model import Content
from snapkernel.resources import file_choice
from snapkernel.resources.file_choice import Choice
from snapkernel.resources.file_content import FileSource, data_runs, is_equal
from snapkernel.resources.folder import Folders
from snapkernel.store import Store

PAGE = 4096


# --- words and patterns --------------------------------------------------------------------------


def test_words() -> None:
    assert Choice.of("open") == Choice.of([]) == Choice(open=True)
    assert Choice.of("none") == Choice()
    assert not Choice.of("none")
    assert Choice.of(["written"]) == Choice(open=True, written=True)
    assert Choice.of(["none", "*.csv"]) == Choice(patterns=("*.csv",))


@pytest.mark.parametrize("word", ["", "a\0b", "../x", "a/../b", "x" * 5000, "[z-a]"])
def test_what_is_no_pattern(word: str) -> None:
    with pytest.raises(InvalidName, match="files"):
        Choice.of(word)


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("a.csv", ["/w/a.csv"], ["/w/xa.csv", "/w/a.csvx", "/a.csv", "/w/aXcsv"]),
        ("*.csv", ["/w/a.csv", "/w/é.csv"], ["/w/.csv", "/w/.a.csv", "/w/d/a.csv"]),
        (".*", ["/w/.a"], ["/w/a"]),
        ("**", ["/w/a", "/w/d/a"], ["/w", "/w/.d/a", "/w/d/.a", "/x/a"]),
        ("**/*.csv", ["/w/a.csv", "/w/d/e/a.csv"], ["/w/.d/a.csv"]),
        ("d/**/x/?", ["/w/d/x/a", "/w/d/e/x/a"], ["/w/d/x/ab", "/w/d/x/.", "/w/x/a"]),
        ("[ab]-[!c]", ["/w/a-d"], ["/w/a-c", "/w/c-d", "/w/a-/"]),
        ("[]]", ["/w/]"], ["/w/["]),
        ("[x", ["/w/[x"], ["/w/x"]),
        ("/data/*", ["/data/a"], ["/w/data/a"]),
        ("a\nb", ["/w/a\nb"], ["/w/a"]),
    ],
)
def test_patterns(pattern: str, fits: Sequence[str], does_not: Sequence[str]) -> None:
    ((_, folder, expression),) = Choice.of(pattern).expressions("/w")
    assert [path for path in fits if not expression.fullmatch(path)] == []
    assert [path for path in does_not if expression.fullmatch(path)] == []
    assert all(path.startswith(folder) for path in fits)


def test_hidden_files() -> None:
    assert file_choice.is_hidden("/home/u/.ssh/id", ["/home/u/work"])
    assert file_choice.is_hidden("/home/u/work/.git/x", ["/home/u/work"])
    assert not file_choice.is_hidden("/home/u/.cache/work/x", ["/home/u/.cache/work"])
    assert not file_choice.is_hidden("/home/u/a.b/x", [])


def test_files_of_the_kernel() -> None:
    assert file_choice.is_of_kernel("/proc/1/maps")
    assert file_choice.is_of_kernel("/dev/sda")
    assert not file_choice.is_of_kernel("/dev/shm/x")
    assert not file_choice.is_of_kernel("/process/x")


# --- contents ------------------------------------------------------------------------------------


def stored(path: Path) -> Content:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with Store.open("memory://", create=True).writer() as writer:
            runs = data_runs(descriptor, os.fstat(descriptor).st_size)
            return writer.store(FileSource(descriptor), runs, page_size=PAGE)
    finally:
        os.close(descriptor)


def equal(path: Path, content: Content) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return is_equal(descriptor, os.fstat(descriptor).st_size, content)
    finally:
        os.close(descriptor)


def test_equal_contents(tmp_path: Path) -> None:
    """Holes, zeros that are written, and an end within a page."""
    size = (3 << 20) + 17
    data = bytearray(size)
    data[1_000_000:1_000_005] = b"first"
    data[-4:] = b"last"
    one, other = tmp_path / "one", tmp_path / "other"
    with open(one, "wb") as file:
        for at in (1_000_000, size - 4):
            file.seek(at)
            file.write(data[at : at + 5])
    other.write_bytes(data)
    assert one.read_bytes() == bytes(data)
    for content in (stored(one), stored(other)):
        assert content.length < 3 * PAGE
        assert equal(one, content)
        assert equal(other, content)
        for at in (0, 999_999, 1_000_004, 2_000_000, size - 1):
            changed = bytearray(data)
            changed[at] ^= 1
            other.write_bytes(changed)
            assert not equal(other, content), at
        other.write_bytes(data)


# --- folders -------------------------------------------------------------------------------------


def test_folders_are_made_and_removed(tmp_path: Path) -> None:
    folders = Folders()
    descriptor = folders.open(f"{tmp_path}/a/b")
    assert os.path.samestat(os.fstat(descriptor), os.stat(tmp_path / "a/b"))
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    folders.open(f"{tmp_path}/c")
    (tmp_path / "c/theirs").write_text("x")
    folders.remove_made()
    folders.close()
    assert os.listdir(tmp_path) == ["c"]


def test_own_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "direct").symlink_to(tmp_path / "there")
    (tmp_path / "relative").symlink_to("./../" + tmp_path.name + "/direct")
    folders = Folders()
    made = folders.open(f"{tmp_path}/relative/x")
    assert os.path.samestat(os.fstat(made), os.stat(tmp_path / "there/x"))
    folders.close()


def test_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    folders = Folders()
    with pytest.raises(OSError, match="symbolic links"):
        folders.open(f"{tmp_path}/a/x")
    folders.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes links of somebody else")
def test_links_of_others_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    os.chown(tmp_path / "link", 65534, 65534, follow_symlinks=False)
    folders = Folders()
    with pytest.raises(PermissionError, match="somebody else"):
        folders.open(f"{tmp_path}/link/x")
    folders.close()
    assert not os.listdir(tmp_path / "there")
