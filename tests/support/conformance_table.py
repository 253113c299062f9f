"""Makes ``docs/conformance.md``: what the conformance programs found out, as a table.

    python tests/support/conformance_table.py            # run the tests, then write the table
    python tests/support/conformance_table.py --check    # does the table have every program?

The tests run as the user who asks for it, and where that is root, again without any privilege.
Rows are the programs, described by their documentation; columns are the ways they were taken.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

TESTS = Path(__file__).parent.parent
TABLE = TESTS.parent / "docs" / "conformance.md"
sys.path.insert(0, str(TESTS))

from support.conformance import PROGRAMS, program_names  # noqa: E402
from support.unprivileged import NOBODY, as_nobody  # noqa: E402

WAYS = {
    "test_live": "live",
    "test_stopped": "stopped",
    "test_three_generations": "third generation",
}
"""Columns by test: the copy beside the original; the copy of one that ended; a copy of a copy of a
copy."""
PASSED, FAILED, NOT_RUN = "yes", "**no**", ""
_CASE = re.compile(r"(\w+)\[(.+)\]")

HEAD = """# What is saved and comes back

Made by `make conformance`; do not edit. Every row is a small program in
`tests/conformance/programs/` that has one thing, is saved, restored, and looks whether it is as it
was. It was taken in these ways:

- *live*: the program goes on, and so does its copy beside it;
- *stopped*: the program ends with the checkpoint, and is restored;
- *third generation*: a copy of a copy of a copy.

An empty field was not run. A letter says why it could not be."""


@dataclass
class Results:
    """What became of each test.

    Attributes:
        outcomes: by user (``root`` or ``user``), program and test.
        reasons: of what was skipped, each with the letter that stands for it.
    """

    outcomes: dict[tuple[str, str, str], str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, user: str, report: Path) -> None:
        """Read what pytest has written with ``--junitxml``."""
        for case in ElementTree.parse(report).iter("testcase"):
            found = _CASE.fullmatch(case.get("name", ""))
            if found is None or found[1] not in WAYS:
                continue
            skipped = case.find("skipped")
            if skipped is not None:
                outcome = self._letter(skipped.get("message", ""))
            elif case.find("failure") is not None or case.find("error") is not None:
                outcome = FAILED
            else:
                outcome = PASSED
            before = self.outcomes.get((user, found[2], found[1]))
            self.outcomes[user, found[2], found[1]] = FAILED if before == FAILED else outcome

    def _letter(self, reason: str) -> str:
        return self.reasons.setdefault(reason, chr(ord("a") + len(self.reasons)))


# --- the programs --------------------------------------------------------------------------------


def chapters() -> Mapping[str, str]:
    """Module of programs in Python, and what it says of itself."""
    return {
        path.stem: _first(ast.get_docstring(_parsed(path)) or path.stem)
        for path in sorted(PROGRAMS.glob("*.py"))
    }


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def description(name: str) -> str:
    """What a program is about, in a few words."""
    module, _, function = name.partition(".")
    if function:
        for node in _parsed(PROGRAMS / f"{module}.py").body:
            if isinstance(node, ast.FunctionDef) and node.name == function:
                return _first(ast.get_docstring(node) or _words(function))
    for folder in (PROGRAMS, PROGRAMS / platform.machine()):
        source = folder / f"{name}.c"
        if source.exists() and (comment := re.match(r"/\*(.*?)\*/", source.read_text(), re.S)):
            return _first(re.sub(r"\n ?\*?", "\n", comment[1]))
    return _words(name)


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize() + "."


def _first(text: str) -> str:
    """The first sentence, on one line, as a table can have it."""
    line = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.:;]) ", line)[0].rstrip(".:;").replace("|", "\\|")


# --- the table -----------------------------------------------------------------------------------


def table(results: Results) -> str:
    """The text of ``docs/conformance.md``."""
    users = [user for user in ("root", "user") if any(key[0] == user for key in results.outcomes)]
    here = f"Linux {platform.release().split('-')[0]} on {platform.machine()}"
    lines = [HEAD, "", f"Run on {here}.", ""]
    lines += [f"- {letter}: {reason}" for reason, letter in results.reasons.items()]
    titles = chapters()
    last = None
    for name in program_names():
        module = name.partition(".")[0] if "." in name else ""
        if module != last:
            last = module
            lines += ["", f"## {titles.get(module, 'Programs in C')}", ""]
            columns = [f"{user}: {way}" for user in users for way in WAYS.values()]
            lines += ["| program | what | " + " | ".join(columns) + " |"]
            lines += ["|---|---|" + "---|" * len(columns)]
        found = [
            results.outcomes.get((user, name, test), NOT_RUN) for user in users for test in WAYS
        ]
        lines.append(f"| `{name}` | {description(name)} | " + " | ".join(found) + " |")
    return "\n".join(lines) + "\n"


def listed(text: str) -> set[str]:
    """The programs that a table has."""
    return set(re.findall(r"^\| `([\w.]+)` \|", text, re.M))


def problems(text: str) -> Iterator[str]:
    """What is not right with a table."""
    programs = set(program_names())
    yield from (f"{name} is missing" for name in sorted(programs - listed(text)))
    # Programs of other architectures may be listed.
    known = {path.stem for path in PROGRAMS.rglob("*.c")} | programs
    yield from (f"{name} is no program" for name in sorted(listed(text) - known))


# --- running -------------------------------------------------------------------------------------


def run(folder: Path) -> Results:
    """Run the programs, as root and as a user at the same time, as far as we can be both."""
    home = folder / "home"
    home.mkdir()
    runs = [("user" if os.geteuid() else "root", folder, lambda command: command)]
    if os.geteuid() == 0:
        os.chown(home, NOBODY, NOBODY)
        runs.append(("user", home, lambda command: as_nobody(command, home)))
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "JUPYTER", "PYTEST"))
    }
    running = []
    for user, place, prefixed in runs:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [str(TESTS / "conformance"), "-k", " or ".join(WAYS)]
        command += [f"--basetemp={place}/tests", f"--junitxml={place}/report.xml"]
        environment = {"HOME": str(place), "TMPDIR": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(prefixed(command), cwd=place, env=inherited | environment)
        running.append((user, place, process))
    results = Results()
    for user, place, process in running:
        process.wait()
        results.add(user, place / "report.xml")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Make docs/conformance.md.")
    parser.add_argument("--check", action="store_true", help="only look whether it is complete")
    if parser.parse_args().check:
        found = list(problems(TABLE.read_text()))
        sys.exit("\n".join([*found, "run `make conformance`"]) if found else 0)
    # The usual temporary folders may be root's alone.
    folder = Path(tempfile.mkdtemp(prefix="c-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        TABLE.write_text(table(run(folder)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{TABLE} is written")


if __name__ == "__main__":
    main()
