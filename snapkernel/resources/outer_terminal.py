"""The settings of a terminal that leads outside, such as a program's that was started by hand.

The program has set them (an editor of lines reads every key, and shows it itself), and relies on
them. Where it is restored in a terminal, this gets them, but not speed and framing, which belong to
the line (termios(3)); and the program is told that the window has changed, as it has, whereupon
programs draw what they show anew.
"""

from __future__ import annotations

import os
import signal
import struct
from contextlib import suppress

from snapkernel.model import Manifest, Note, Stream
from snapkernel.resources.open_file import OpenFile
from snapkernel.resources.terminal_queue import SETTINGS, ask, tell

_FLAGS = struct.Struct("=4I")
"""Input, output, control and local modes, at the beginning of ``struct termios2``."""
_SPEEDS = 8
"""Bytes at its end."""


def capture(file: OpenFile) -> bytes:
    """Its settings; empty when it is no terminal, or was hung up."""
    return ask(file.descriptor, "TCGETS2", SETTINGS) if os.isatty(file.descriptor) else b""


def rebuild(manifest: Manifest, inherited: dict[int, int], pid: int) -> list[Note]:
    """Give the settings to the terminals among our descriptors ``inherited``, by stream, and tell
    the group of the process ``pid``. Nobody touches a terminal in whose background he is: there,
    who is in the foreground relies on the settings."""
    notes = []
    streams = [record for record in manifest.descriptions if isinstance(record, Stream)]
    settings = {record.stream: record.settings for record in streams if record.settings}
    terminals = {n: inherited[n] for n in sorted(settings) if os.isatty(inherited[n])}
    for stream, descriptor in terminals.items():
        if _in_background(descriptor):
            reason = "its settings are those of who is in the foreground"
            notes.append(Note(object=f"standard stream {stream}", status="replaced", reason=reason))
        else:
            _set(descriptor, settings[stream])
    if terminals:
        with suppress(ProcessLookupError):
            os.killpg(os.getpgid(pid), signal.SIGWINCH)
    return notes


def _in_background(descriptor: int) -> bool:
    try:
        return os.tcgetpgrp(descriptor) != os.getpgrp()
    except OSError:  # ENOTTY: it does not control our session.
        return False


def _set(descriptor: int, settings: bytes) -> None:
    now = ask(descriptor, "TCGETS2", SETTINGS)
    wanted, line = list(_FLAGS.unpack_from(settings)), _FLAGS.unpack_from(now)
    wanted[2] = line[2]
    characters = settings[_FLAGS.size : -_SPEEDS]
    tell(descriptor, "TCSETS2", _FLAGS.pack(*wanted) + characters + now[-_SPEEDS:])
