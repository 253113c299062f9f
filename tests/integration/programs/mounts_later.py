"""Saves and restores itself a child, mounts something, and saves the copy: run by
``test_hazards``, as root, in a mount namespace of its own whose mounts are shared."""

import subprocess
import sys
from pathlib import Path

import snapkernel


def mounted(pid: int, place: Path) -> bool:
    return f" {place} " in Path(f"/proc/{pid}/mountinfo").read_text()


def main() -> None:
    folder = Path(sys.argv[1])
    place, store = folder / "later", str(folder / "store")
    place.mkdir()
    original = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    copies = []
    try:
        copies.append(
            snapkernel.restore(snapkernel.checkpoint(original.pid, store=store), store=store)
        )
        subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
        assert mounted(copies[0].pid, place), "the copy does not see what was mounted later"
        again = snapkernel.checkpoint(copies[0].pid, store=store)
        copies.append(snapkernel.restore(again, store=store))
        subprocess.run(["umount", str(place)], check=True)
        for copy in copies:
            assert copy.poll() is None
            assert not mounted(copy.pid, place), "the copy holds what was unmounted"
    finally:
        for copy in copies:
            copy.kill()
        original.kill()
        original.wait()
    print("ok")


main()
