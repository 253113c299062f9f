"""Files travel with a snapshot: to a host that has none of them (here they are moved away), to one
that has others, and back beside the living original."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.conformance import Conversation, start

import snapkernel
from snapkernel.errors import CannotRestore
from snapkernel.freeze.checkpoint import checkpoint_here
from snapkernel.resources import carried_file, file_choice
from snapkernel.store import Store
from snapkernel.thaw.restore import hold, plan

pytestmark = [pytest.mark.usefixtures("leaves_nothing"), pytest.mark.timeout(120)]

PROGRAMS = Path(__file__).parent / "programs"


def program(name: str) -> list[str]:
    return [sys.executable, str(PROGRAMS / "travels.py"), name]


def taken(
    name: str, folder: Path, store: str, files: str | list[str] = "open", stop: bool = False
) -> snapkernel.Snapshot:
    """A snapshot of a program, which is then gone."""
    folder.mkdir(exist_ok=True)
    with start(program(name), folder) as process:
        assert process.process is not None
        return snapkernel.checkpoint(process.process.pid, store=store, files=files, stop=stop)


def restored(
    snapshot: snapkernel.Snapshot, store: str, files: str = "refuse"
) -> tuple[str, tuple[str, ...], list[str]]:
    """The verdict of a copy, the notes of the restore and what the copy has printed."""
    with Conversation() as copy:
        process = snapkernel.restore(snapshot, store=store, stdio=copy.theirs, files=files)
        copy.hand_over(process)
        return copy.verdict(), process.notes, copy.seen


def refused(snapshot: snapkernel.Snapshot, store: str, files: str = "refuse") -> CannotRestore:
    with pytest.raises(CannotRestore) as caught:
        hold(snapshot, store=store, stdio=(0, 1, 2), files=files).destroy()
    assert all(found.remedy for found in caught.value.findings)
    return caught.value


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and modes of all small files below a folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size < 1 << 20
    }


def note_of(notes: tuple[str, ...], path: Path) -> str:
    """All that is said of a file."""
    return "; ".join(note for note in notes if note.startswith(f"file {path}: "))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


# --- a host that has none of them ----------------------------------------------------------------


@pytest.mark.parametrize("stop", [False, True], ids=["live", "stopped"])
@pytest.mark.parametrize("name", ["open_files", "transaction", "mapped"])
def test_missing_files_are_written(name: str, stop: bool, work: Path, store: str) -> None:
    snapshot = taken(name, work, store, stop=stop)
    before = everything(work)
    away = work.rename(work.with_name("away"))
    assert Store.open(store).verify() == []
    verdict, notes, _ = restored(snapshot, store)
    assert verdict == "ok"
    for record in snapshot.files:
        if not record.common:
            assert "was not here" in note_of(notes, Path(record.path))
    assert set(everything(work)) <= set(before)
    assert everything(away) == before


def test_what_a_file_is_besides_its_content(work: Path, store: str) -> None:
    snapshot = taken("open_files", work, store)
    old = (work / "data/in.csv").stat()
    work.rename(work.with_name("away"))
    assert restored(snapshot, store)[0] == "ok"
    new = (work / "data/in.csv").stat()
    for of in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns"):
        assert getattr(new, of) == getattr(old, of), of
    assert stat.S_IMODE(work.stat().st_mode) == 0o700
    assert sorted(os.listdir(work)) == ["data", "run.log", "scratch"]


def test_attributes_travel(work: Path, store: str) -> None:
    work.mkdir()
    with start(program("grows"), work) as process:
        assert process.process is not None
        try:
            os.setxattr(work / "run.log", "user.origin", b"here")
        except OSError as error:
            pytest.skip(f"this file system has no attributes of users: {error}")
        snapshot = snapkernel.checkpoint(process.process.pid, store=store)
    work.rename(work.with_name("away"))
    assert restored(snapshot, store)[0] == "ok"
    assert os.getxattr(work / "run.log", "user.origin") == b"here"


def test_none_travel_if_none_are_wanted(work: Path, store: str) -> None:
    snapshot = taken("open_files", work, store, files="none")
    assert snapshot.files == ()
    assert restored(snapshot, store)[0] == "ok"  # they are here
    work.rename(work.with_name("away"))
    assert "run.log" in refused(snapshot, store).reason
    assert not work.exists()


def test_what_was_written_travels_if_it_is_wanted(work: Path, store: str) -> None:
    snapshot = taken("written", work, store, files="written")
    paths = {record.path for record in snapshot.files}
    assert {str(work / "results" / name) for name in ("a.csv", "b.txt", "latest")} <= paths
    assert str(work / ".cache/c") not in paths
    work.rename(work.with_name("away"))
    _, _, said = restored(snapshot, store)
    assert said[-5:-1] == ["a.csv True", "b.txt True", "latest True", "cache False"]
    assert os.readlink(work / "results/latest") == "a.csv"


def test_patterns(work: Path, store: str) -> None:
    snapshot = taken("written", work, store, files=["none", "**/*.csv", ".cache/*", "nothing/*"])
    paths = sorted(str(Path(record.path).relative_to(work)) for record in snapshot.files)
    assert paths == [".cache/c", "results/a.csv"]
    assert any(note.startswith("files nothing/*: left") for note in snapshot.notes)


def test_the_store_is_no_part_of_itself(work: Path, tmp_path: Path) -> None:
    store = str(work / "store")
    snapshot = taken("written", work, store, files=["written", "**"])
    assert not [record.path for record in snapshot.files if record.path.startswith(store)]
    assert snapshot.files


MOUNTED = 'mount -t tmpfs -o mode=755 none "$0" && exec "$@"'


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_another_file_system(work: Path, store: str) -> None:
    """A restore where an empty file system is mounted over all that the process had."""
    snapshot = taken("open_files", work, store)
    before = everything(work)
    command = [sys.executable, "-c", "from snapkernel.commands import main; main()"]
    command += ["restore", snapshot.id, "--store", store]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", MOUNTED, str(work), *command],
        input="go\n",
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["ok"]), done.stderr
    assert f"file {work}/run.log: written" in done.stderr
    assert everything(work) == before


# --- a host that has others ----------------------------------------------------------------------


@pytest.fixture
def other(work: Path, store: str) -> snapkernel.Snapshot:
    """A snapshot of which other files stand here, one of them shorter than where the process is."""
    snapshot = taken("open_files", work, store)
    work.rename(work.with_name("away"))
    (work / "data").mkdir(parents=True)
    (work / "run.log").write_text("another log\n")
    (work / "data/in.csv").write_text("short\n")
    return snapshot


def test_others_are_refused_all_at_once(other: snapkernel.Snapshot, work: Path, store: str) -> None:
    before = everything(work)
    found = {finding.object: finding.reason for finding in refused(other, store).findings}
    assert set(found) == {f"file {work}/run.log", f"file {work}/data/in.csv"}
    assert "12 bytes here, 500 in the snapshot" in found[f"file {work}/run.log"]
    assert everything(work) == before, "something was written"


def test_others_are_kept(other: snapkernel.Snapshot, work: Path, store: str) -> None:
    verdict, notes, _ = restored(other, store, "keep")
    assert "row" in verdict  # it reads on behind the end of what is here, as it was told
    assert any("shorter: has 6 bytes here; the process is at byte" in note for note in notes)
    assert any(note.startswith(f"file {work}/run.log: kept") for note in notes)
    assert (work / "data/in.csv").read_text() == "short\n"
    assert (work / "scratch").exists()


def test_others_are_overwritten(other: snapkernel.Snapshot, work: Path, store: str) -> None:
    verdict, notes, _ = restored(other, store, "overwrite")
    assert verdict == "ok"
    assert "was replaced" in note_of(notes, work / "run.log")
    assert (work / "run.log").stat().st_size == 505
    assert sorted(os.listdir(work)) == ["data", "run.log", "scratch"]


def test_beside_others(other: snapkernel.Snapshot, work: Path, store: str) -> None:
    verdict, notes, _ = restored(other, store, "beside")
    assert verdict == "ok"
    assert f"is {work}/run.log-2" in note_of(notes, work / "run.log")
    assert (work / "run.log").read_text() == "another log\n"
    assert (work / "run.log-2").stat().st_size == 505


def test_an_equal_file_is_no_other(work: Path, store: str) -> None:
    """Copied by somebody, with another time."""
    snapshot = taken("grows", work, store)
    away = work.rename(work.with_name("away"))
    work.mkdir()
    (work / "run.log").write_bytes((away / "run.log").read_bytes())
    verdict, notes, _ = restored(snapshot, store)
    assert verdict == "ok"
    assert not [note for note in notes if str(work) in note]


def test_same_size_and_other_content(work: Path, store: str) -> None:
    snapshot = taken("grows", work, store)
    work.rename(work.with_name("away"))
    work.mkdir()
    (work / "run.log").write_text("two\n")
    assert "another content" in refused(snapshot, store).reason


def test_something_else_in_its_place(work: Path, store: str) -> None:
    """A directory, a pipe: neither opened nor replaced."""
    snapshot = taken("grows", work, store)
    work.rename(work.with_name("away"))
    work.mkdir()
    os.mkfifo(work / "run.log")
    for mode in ("refuse", "keep", "overwrite"):
        assert "no regular file" in refused(snapshot, store, mode).reason
    assert restored(snapshot, store, "beside")[0] == "ok"


# --- the living original -------------------------------------------------------------------------


def test_shared_with_the_living_original(work: Path, store: str) -> None:
    """Also when it has gone on writing: it is the same file, and nobody writes it anew."""
    work.mkdir()
    with start(program("grows"), work) as process:
        assert process.process is not None
        snapshot = snapkernel.checkpoint(process.process.pid, store=store)
        inode = (work / "run.log").stat().st_ino
        with open(work / "run.log", "a") as more:
            more.write("meanwhile\n")
        verdict, notes, _ = restored(snapshot, store)
        assert verdict == "ok"
        assert not [note for note in notes if str(work) in note]
        assert (work / "run.log").read_text() == "one\nmeanwhile\ntwo\n"
        assert process.verdict() == "ok"
    assert (work / "run.log").stat().st_ino == inode


def test_a_new_file_with_the_old_number(work: Path, store: str) -> None:
    """File systems give the number of a removed file to the next one."""
    snapshot = taken("grows", work, store)
    old = (work / "run.log").stat()
    for _ in range(50):
        (work / "run.log").unlink()
        (work / "run.log").write_text("something else\n")
        if (work / "run.log").stat().st_ino == old.st_ino:
            break
    assert "15 bytes here" in refused(snapshot, store).reason


# --- what others use as well ---------------------------------------------------------------------


def test_a_history_of_this_host_is_used(work: Path, store: str) -> None:
    """Whatever is asked: it is neither refused, nor replaced, nor doubled."""
    snapshot = taken("history", work, store)
    work.rename(work.with_name("away"))
    assert restored(snapshot, store)[0] == "ok"
    path = work / ".config/history"
    assert path.read_text() == "one\ntwo\n"
    for mode in ("refuse", "keep", "overwrite", "beside"):
        path.write_text("of this host\n")
        verdict, notes, _ = restored(snapshot, store, mode)
        assert verdict == "ok"
        assert "the one that is here is used" in note_of(notes, path)
        assert path.read_text() == "of this host\ntwo\n"
        assert os.listdir(path.parent) == ["history"]


def test_a_log_that_it_was_started_with(work: Path, store: str, tmp_path: Path) -> None:
    """Its server's, on standard error and on a copy of it, as in ipykernel."""
    work.mkdir()
    code = "import os, sys; os.dup2(2, 50); print('ready', flush=True); input()"
    log = tmp_path / "server.log"
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            cwd=work,
        )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        snapshot = snapkernel.checkpoint(process.pid, store=store)
        process.kill()
    (record,) = snapshot.files
    assert (record.path, record.common) == (str(log), True)


def test_two_names_of_a_file(work: Path, store: str) -> None:
    work.mkdir()
    with start(program("grows"), work) as process:
        assert process.process is not None
        os.link(work / "run.log", work / "second")
        snapshot = snapkernel.checkpoint(process.process.pid, store=store, files="second")
    assert "is the same file as" in note_of(snapshot.notes, work / "second")
    work.rename(work.with_name("away"))
    assert restored(snapshot, store)[0] == "ok"
    assert (work / "second").read_text() == "one\n"


# --- databases -----------------------------------------------------------------------------------


def test_a_journal_is_not_laid_beside_another_database(work: Path, store: str) -> None:
    """SQLite would roll it back into whatever database is there."""
    snapshot = taken("transaction", work, store)
    assert {Path(record.path).name for record in snapshot.files} >= {
        "numbers.db",
        "numbers.db-journal",
    }
    away = work.rename(work.with_name("away"))
    work.mkdir()
    (work / "numbers.db").write_bytes(b"another database")
    for mode in ("refuse", "keep", "beside"):
        assert "numbers.db" in refused(snapshot, store, mode).reason
        assert os.listdir(work) == ["numbers.db"]
    # The very same database, whose transaction has ended meanwhile.
    (work / "numbers.db").unlink()
    work.rmdir()
    away.rename(work)
    (work / "numbers.db-journal").unlink()
    with open(work / "numbers.db", "ab") as database:
        database.write(b"x")
    assert "belongs to the database" in refused(snapshot, store).reason
    assert not (work / "numbers.db-journal").exists()


# --- hazards -------------------------------------------------------------------------------------


def test_written_to_while_it_is_stored(
    work: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there at the freeze is in the snapshot, without what was appended; that there is
    more is said."""
    work.mkdir()

    class Appending(carried_file._Reading):
        def read_into(self, runs: Sequence[tuple[int, int]], buffer: memoryview) -> None:
            with open(work / "run.log", "a") as log:
                log.write("more\n")
            super().read_into(runs, buffer)

    monkeypatch.setattr(carried_file, "_Reading", Appending)
    with start(program("grows"), work) as process:
        assert process.process is not None
        place = Store.open(store, create=True)
        snapshot = checkpoint_here(process.process.pid, store=place)
    assert "was written to while it was stored" in note_of(snapshot.notes, work / "run.log")
    work.rename(work.with_name("away"))
    assert restored(snapshot, store)[0] == "ok"
    assert (work / "run.log").read_text() == "one\ntwo\n"


def test_a_lease_is_not_broken(work: Path, store: str) -> None:
    """Nor is the position moved of the description by which its file is read."""
    work.mkdir()
    with start(program("leased"), work) as process:
        assert process.process is not None
        snapshot = snapkernel.checkpoint(process.process.pid, store=store)
        again = snapkernel.checkpoint(process.process.pid, store=store)
        assert process.verdict() == "ok"
    assert [record.path for record in again.files] == [str(work / "leased")]
    work.rename(work.with_name("away"))
    assert restored(snapshot, store)[0] == "ok"
    assert (work / "leased").read_bytes() == b"0123456789"


def test_a_file_that_cannot_be_read(
    work: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk fails: the file is left, and all else is saved."""

    def fails(descriptor: int, buffers: object, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    work.mkdir()
    with start(program("grows"), work) as process:
        assert process.process is not None
        with monkeypatch.context() as patch:
            patch.setattr("os.preadv", fails)
            place = Store.open(store, create=True)
            snapshot = checkpoint_here(process.process.pid, store=place)
        assert process.verdict() == "ok"
    assert "does not travel: Input/output error" in note_of(snapshot.notes, work / "run.log")
    assert snapshot.files == ()
    assert Store.open(store).verify() == []


def test_strange_names(work: Path, store: str) -> None:
    """Names that no text can hold, links to such, and what is below a link that travels."""
    (work / "real").mkdir(parents=True)
    (work / "real/x").write_text("x")
    (work / "link").symlink_to("real")
    os.symlink(b"\xff", os.fsencode(work) + b"/to-bytes")
    Path(os.fsdecode(os.fsencode(work) + b"/\xfe")).write_text("")
    (work / "new\nline").write_text("n")
    os.mkfifo(work / "pipe")
    snapshot = taken("grows", work, store, files=["*", "link/*", "real/*"])
    names = sorted(os.path.relpath(record.path, work) for record in snapshot.files)
    assert names == ["link", "new\nline", "real/x", "run.log"]
    left = "\n".join(note for note in snapshot.notes if ": left: " in note)
    for name in ("to-bytes", "\\xfe", "link/x", "pipe"):
        assert f"{name}: left" in left
    work.rename(work.with_name("away"))
    assert restored(snapshot, store)[0] == "ok"
    assert (work / "link/x").read_text() == "x"


def test_too_large_to_travel_unasked(
    work: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, and a pattern takes it along."""
    monkeypatch.setattr(file_choice, "MOST", 10_000)
    work.mkdir()
    place = Store.open(store, create=True)
    with start(program("open_files"), work) as process:
        assert process.process is not None
        pid = process.process.pid
        plain = checkpoint_here(pid, store=place)
        asked = checkpoint_here(pid, store=place, files=["data/*.csv"])
        explained = {found.object: found for found in snapkernel.explain(pid)}
        assert process.verdict() == "ok"
    assert not [record for record in plain.files if record.path.endswith("in.csv")]
    assert any(note.startswith(f"file {work}/data/in.csv: left") for note in plain.notes)
    assert [record for record in asked.files if record.path.endswith("in.csv")]
    assert explained[f"file {work}/data/in.csv"].status == "left"
    assert explained[f"file {work}/run.log"].status == "saved"


def test_a_restore_that_fails_takes_its_files_back(
    work: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = taken("open_files", work, store)
    work.rename(work.with_name("away"))
    hold(snapshot, store=store, stdio=(0, 1, 2)).destroy()
    assert not work.exists()
    work.mkdir()
    (work / "run.log").write_text("another log\n")
    hold(snapshot, store=store, stdio=(0, 1, 2), files="overwrite").destroy()
    assert everything(work) == {"run.log": (b"another log\n", 0o100644)}


def test_links_of_others_are_not_followed(work: Path, store: str, tmp_path: Path) -> None:
    """Somebody who foresees a restore makes a link in a folder that all may write to."""
    if os.geteuid() != 0:
        pytest.skip("only root can make links of somebody else")
    snapshot = taken("grows", work, store)
    work.rename(work.with_name("away"))
    (tmp_path / "secret").mkdir()
    os.symlink("secret", work)
    os.chown(work, 65534, 65534, follow_symlinks=False)
    assert "somebody else" in str(refused(snapshot, store)) or not os.listdir(tmp_path / "secret")
    assert os.listdir(tmp_path / "secret") == []
    os.chown(work, 0, 0, follow_symlinks=False)
    assert restored(snapshot, store)[0] == "ok"
    assert os.listdir(tmp_path / "secret") == ["run.log"]


def test_no_rights_to_write_it(work: Path, store: str, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    snapshot = taken("grows", work, store)
    work.rename(work.with_name("away"))
    tmp_path.chmod(0o500)
    try:
        assert "does not let us" in refused(snapshot, store).reason
    finally:
        tmp_path.chmod(0o700)


def test_a_plan_says_what_would_be_written(work: Path, store: str) -> None:
    snapshot = taken("grows", work, store)
    assert not [line for line in plan(snapshot.id, store=store) if "run.log:" in line]
    work.rename(work.with_name("away"))
    assert f"-- write file {work}/run.log: 4 bytes" in list(plan(snapshot.id, store=store))
    assert not work.exists()
