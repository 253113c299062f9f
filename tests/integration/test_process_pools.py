"""Workers of a kernel, as libraries start them: they go on in a restored copy beside its living
original, in the original, and after the original has ended."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kernel import Kernel

import snapkernel

TIME = 120.0
"""Seconds for one cell; the first one imports."""

POOLS = {
    "spawn": (
        "import multiprocessing, math\n"
        "pool = multiprocessing.get_context('spawn').Pool(2)\n"
        "before = pool.map(math.factorial, range(20))",
        "print(before == pool.map(math.factorial, range(20)))\npool.terminate(); pool.join()",
        "True",
    ),
    "forkserver": (
        "import multiprocessing, math\n"
        "context = multiprocessing.get_context('forkserver')\n"
        "pool = context.Pool(2); before = pool.map(abs, range(-5, 5))",
        "with context.Pool(1) as another: print(another.apply(abs, (-7,)))\n"
        "print(before == pool.map(abs, range(-5, 5)))\n"
        "pool.terminate(); pool.join()",
        "7\nTrue",
    ),
    "manager": (
        "import multiprocessing, os\n"
        "manager = multiprocessing.get_context('spawn').Manager()\n"
        "shared = manager.list([1, 2])",
        "shared.append(3); print(list(shared))",
        "[1, 2, 3]",
    ),
    "named memory": (
        "import numpy\n"
        "from multiprocessing.shared_memory import SharedMemory\n"
        "memory = SharedMemory(create=True, size=8000)\n"
        "array = numpy.ndarray((1000,), buffer=memory.buf); array[:] = numpy.arange(1000)",
        "array += 1; other = SharedMemory(memory.name)\n"
        "print(numpy.ndarray((1000,), buffer=other.buf).sum())\n"
        "other.close(); del array; memory.close(); memory.unlink()",
        "500500.0",
    ),
    "executor": (
        "import math\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "executor = ProcessPoolExecutor(2)\n"
        "before = list(executor.map(math.sqrt, range(10)))",
        "print(before == list(executor.map(math.sqrt, range(10)))); executor.shutdown()",
        "True",
    ),
    "joblib": (
        "import math, numpy, joblib\n"
        "parallel = joblib.Parallel(n_jobs=2, max_nbytes=1000).__enter__()\n"
        "large = numpy.arange(100_000.0)\n"
        "before = parallel(joblib.delayed(numpy.sum)(large[n:]) for n in range(4))",
        "print(before == parallel(joblib.delayed(numpy.sum)(large[n:]) for n in range(4)))\n"
        "parallel.__exit__(None, None, None)\n"
        "print(joblib.Parallel(n_jobs=2)(joblib.delayed(math.sqrt)(n * n) for n in range(4)))",
        "True\n[0.0, 1.0, 2.0, 3.0]",
    ),
    **{
        f"torch {strategy}": (
            "import torch; from torch.utils.data import DataLoader, TensorDataset\n"
            f"torch.multiprocessing.set_sharing_strategy('{strategy}')\n"
            "data = TensorDataset(torch.arange(4000.).reshape(400, 10))\n"
            "loader = DataLoader(data, batch_size=10, num_workers=2, persistent_workers=True)\n"
            "batches = iter(loader); first = [next(batches)[0].sum() for _ in range(3)]",
            "rest = [batch.sum() for batch, in batches]\n"
            "print(len(rest), float(sum(first) + sum(rest)))\n"
            "print(float(sum(batch.sum() for batch, in loader)))",
            "37 7998000.0\n7998000.0",
        )
        for strategy in ("file_descriptor", "file_system")
    },
    "background": (
        "import subprocess, os\n"
        "sh = subprocess.Popen('sleep 1000 & exec cat', shell=True, process_group=0,\n"
        "    stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "sh.stdin.write(b'one\\n'); sh.stdin.flush(); found = sh.stdout.readline()",
        "print(os.getpgid(sh.pid) == sh.pid, found); os.killpg(sh.pid, 9); print(sh.wait())",
        "True b'one\\n'\n-9",
    ),
}


OWN_NAMES = """
import multiprocessing, os
multiprocessing.current_process()._config['semprefix'] = f'/snapkernel-{os.getpid()}'
"""
"""Semaphores get names with the kernel's pid, as other libraries give them."""


@contextlib.contextmanager
def swept(snapshot: snapkernel.Snapshot, host_pid: int) -> Iterator[None]:
    """Nobody is left to remove what processes have in /dev/shm that are killed."""
    started = {host_pid, *(process.pid for process in snapshot.manifest.processes)}
    named = {Path(record.name).name for record in snapshot.manifest.shared_memory}
    try:
        yield
    finally:
        for path in Path("/dev/shm").iterdir():
            numbers = map(int, re.findall(r"[0-9]+", path.name))
            if path.name in named or started.intersection(numbers):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize("stop", [False, True], ids=["live", "stopped"])
@pytest.mark.parametrize("name", sorted(POOLS))
def test_workers(name: str, stop: bool, tmp_path: Path, store: str) -> None:
    """They answer as before, and everything that is shared is the copy's own."""
    package = name.partition(" ")[0]
    if package in ("joblib", "torch") and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (the extras [test,torch] bring it)")
    prepare, ask, answer = POOLS[name]
    with contextlib.ExitStack() as stack:
        original = stack.enter_context(Kernel.start(tmp_path / "original"))
        original.execute(OWN_NAMES + prepare, TIME)
        snapshot = snapkernel.checkpoint(original.pid, store=store, stop=stop)
        with swept(snapshot, original.pid):
            with Kernel.restore(snapshot, store, tmp_path / "copy") as copy:
                assert copy.execute(ask, TIME).strip() == answer
            if not stop:
                assert original.execute(ask, TIME).strip() == answer
            stack.close()


def test_what_a_shell_has_left_in_the_background(tmp_path: Path, store: str) -> None:
    """The shell has ended, and its job, which is nobody's child any more, is saved with the kernel
    in whose session it is."""
    with Kernel.start(tmp_path / "original") as original:
        start = (
            "import os, subprocess;"
            "print(subprocess.getoutput('sleep 99 >/dev/null 2>&1 & echo $!'))"
        )
        pid = int(original.execute(start))
        try:
            snapshot = snapkernel.checkpoint(original.pid, store=store)
        finally:
            original.execute(f"os.kill({pid}, 9)")
        assert {pid} < {process.pid for process in snapshot.manifest.processes}
        with Kernel.restore(snapshot, store, tmp_path / "copy") as copy:
            ask = f"print(open('/proc/{pid}/comm').read(), os.getsid({pid}) == os.getpid())"
            assert copy.execute(ask).split() == ["sleep", "True"]
            copy.execute(f"os.kill({pid}, 9)")
