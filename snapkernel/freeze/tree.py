"""A process with all its descendants, stopped at one instant.

Parents are stopped before their children: a frozen process makes no new ones, so when all that are
known stand still and no unknown child is left, nothing runs any more. A child that has ended, and
that its parent has not waited for, is a zombie: there is nothing to stop.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from snapkernel import procfs
from snapkernel.errors import TargetError
from snapkernel.freeze.target import Target, freeze

_PATIENCE = 1.0
"""Seconds in which a process without memory becomes a zombie."""


@dataclass
class Tree:
    """Stopped processes.

    Attributes:
        targets: every parent before its children, and children in the order of their birth.
        zombies: pids, on this host, of children that have ended.
    """

    targets: list[Target] = field(default_factory=list)
    zombies: list[int] = field(default_factory=list)


@contextmanager
def freeze_tree(pid: int, orphans: Collection[int] = ()) -> Iterator[Tree]:
    """Stop a process and all its descendants for the time of the block, and so the ``orphans`` that
    were found to belong to it.

    Raises:
        TargetError: one does not exist, is traced by another process, or may not be traced.
    """
    tree = Tree()
    with ExitStack() as stack:
        tree.targets.append(stack.enter_context(freeze(pid)))
        for orphan in sorted(orphans):
            _add(stack, tree, orphan)
        tree.zombies.clear()  # theirs are not ours to keep
        seen = {pid, *orphans}
        while new := [child for t in tree.targets for child in procfs.children(t.pid)]:
            new = [child for child in new if child not in seen]
            if not new:
                break
            seen.update(new)
            for child in new:
                _add(stack, tree, child)
        tree.targets = list(in_order(tree.targets, orphans))
        yield tree


def _add(stack: ExitStack, tree: Tree, child: int) -> None:
    try:
        if not _is_zombie(child):
            tree.targets.append(stack.enter_context(freeze(child)))
            return
    except (TargetError, FileNotFoundError, ProcessLookupError):
        if not _ends(child):
            raise
    with suppress(
        TargetError, FileNotFoundError, ProcessLookupError
    ):  # it is gone: its parent does not want to know of its end
        if _is_zombie(child):
            tree.zombies.append(child)


def _ends(child: int) -> bool:
    """It is ending, and has done so when this returns. Nobody tells who is not its parent."""
    deadline = time.monotonic() + _PATIENCE
    with suppress(TargetError, FileNotFoundError, ProcessLookupError):
        while "VmSize" not in procfs.status(child) and time.monotonic() < deadline:
            if _is_zombie(child):
                return True
            time.sleep(0.0002)
        return False
    return True


def _is_zombie(pid: int) -> bool:
    """It has ended, all threads of it, and waits for its parent to ask for its status."""
    return procfs.stat(pid)[0] == "Z" and len(procfs.tids(pid)) == 1


def in_order(targets: list[Target], orphans: Collection[int] = ()) -> Iterator[Target]:
    """Each process directly followed by its descendants; orphans after all others."""
    children: dict[int, list[Target]] = {}
    roots = [targets[0], *(target for target in targets[1:] if target.pid in orphans)]
    for target in targets[1:]:
        children.setdefault(int(procfs.stat(target.pid)[1]), []).append(target)

    def walk(target: Target) -> Iterator[Target]:
        yield target
        for child in children.get(target.pid, ()):
            yield from walk(child)

    return (target for root in roots for target in walk(root))
