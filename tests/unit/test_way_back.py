"""The signal by which the agent ends a batch in a process that lives on: nobody notices it."""

from __future__ import annotations

from collections.abc import Iterable
from signal import (
    SIGALRM,
    SIGCHLD,
    SIGCONT,
    SIGPIPE,
    SIGTSTP,
    SIGURG,
    SIGWINCH,
    Signals,
    valid_signals,
)

from snapkernel.freeze.way_back import quiet_signal


def bits(signals: Iterable[int]) -> int:
    return sum(1 << number - 1 for number in signals)


def status(
    caught: Iterable[int] = (), ignored: Iterable[int] = (), pending: Iterable[int] = ()
) -> dict[str, str]:
    """The lines of ``/proc/PID/status`` that matter."""
    sets = {"SigCgt": caught, "SigIgn": ignored, "ShdPnd": pending, "SigPnd": ()}
    return {name: f"{bits(signals):016x}" for name, signals in sets.items()}


def test_usually() -> None:
    assert quiet_signal(status(), 0) == SIGURG


def test_handled() -> None:
    assert quiet_signal(status(caught=[SIGURG]), 0) == SIGWINCH


def test_blocked() -> None:
    """It could be one that the process waits for by sigwait(3) or a signalfd."""
    assert quiet_signal(status(), bits([SIGURG, SIGWINCH])) == SIGCHLD


def test_pending() -> None:
    assert quiet_signal(status(pending=[SIGURG]), 0) == SIGWINCH


def test_all_are_handled_but_one_that_is_ignored() -> None:
    others: set[Signals | int] = valid_signals() - {SIGPIPE}
    assert quiet_signal(status(caught=others, ignored=[SIGPIPE]), 0) == SIGPIPE


def test_those_that_stop_and_continue_have_effects_although_they_are_ignored() -> None:
    others = valid_signals() - {SIGCONT, SIGTSTP}
    assert quiet_signal(status(caught=others, ignored=[SIGCONT, SIGTSTP]), 0) is None


def test_none() -> None:
    assert quiet_signal(status(caught=valid_signals()), 0) is None
    assert quiet_signal(status(caught=[SIGALRM]), bits(valid_signals())) is None
