"""A kernel with other processes: what notebooks start, they find again in the restored copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.kernel import Kernel

import snapkernel

CELLS = {
    "subprocess": (
        "import subprocess\n"
        "bc = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)\n"
        "bc.stdin.write('one\\n'); bc.stdin.flush(); found = bc.stdout.readline()",
        "bc.stdin.write('two\\n'); bc.stdin.flush(); found += bc.stdout.readline()\n"
        "bc.stdin.close(); print(repr(found), bc.wait(10))",
        "'one\\ntwo\\n' 0",
    ),
    "pool": (
        "import multiprocessing, os\n"
        "pool = multiprocessing.get_context('fork').Pool(2)\n"
        "before = sorted(set(pool.map(len, ['a' * n for n in range(50)])))",
        "print(before == list(range(50)) == pool.map(len, ['a' * n for n in range(50)]))\n"
        "pool.terminate(); pool.join()",
        "True",
    ),
    "shell": (
        "import threading\n"
        "worker = threading.Thread(target=lambda: results.append(get_ipython().getoutput("
        "'echo $$ > pid; read -r word < fifo; echo got $word; exit 3')))\n"
        "results = []\n"
        "import os, time; os.mkfifo('fifo'); worker.start()\n"
        "while not (os.path.exists('pid') and open('pid').read().endswith('\\n')): time.sleep(.01)",
        "print('the shell is', 'alive' if os.path.exists('/proc/' + open('pid').read().strip()) "
        "else 'gone')",
        "the shell is alive",
    ),
}


@pytest.mark.parametrize("name", sorted(CELLS))
def test_started_in_a_cell(name: str, tmp_path: Path, store: str) -> None:
    """It goes on in the original, and in a copy beside it."""
    prepare, ask, answer = CELLS[name]
    with Kernel.start(tmp_path / "original") as original:
        original.execute(prepare)
        snapshot = snapkernel.checkpoint(original.pid, store=store)
        assert len(snapshot.manifest.processes) > 1
        with Kernel.restore(snapshot, store, tmp_path / "copy") as copy:
            assert copy.execute(ask).strip() == answer
        assert original.execute(ask).strip() == answer
