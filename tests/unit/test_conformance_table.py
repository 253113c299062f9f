"""``docs/conformance.md`` has every program, and none has failed."""

from __future__ import annotations

from pathlib import Path

from support import conformance_table
from support.conformance import program_names

REPORT = """<testsuites><testsuite>
<testcase classname="x" name="test_live[files.append]" time="1"/>
<testcase name="test_stopped[files.append]"><failure message="m">t</failure></testcase>
<testcase name="test_three_generations[files.append]"><skipped message="no memfd"/></testcase>
<testcase classname="x" name="test_ends_when_told_to" time="1"/>
</testsuite></testsuites>"""


def test_every_program_is_in_the_table() -> None:
    assert list(conformance_table.problems(conformance_table.TABLE.read_text())) == []


def test_nothing_in_the_table_has_failed() -> None:
    text = conformance_table.TABLE.read_text()
    assert conformance_table.FAILED not in text
    assert f"| {conformance_table.PASSED} |" in text


def test_a_table(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    results = conformance_table.Results()
    results.add("root", tmp_path / "report.xml")
    text = conformance_table.table(results)
    row = next(line for line in text.splitlines() if line.startswith("| `files.append` |"))
    assert row.endswith("| yes | **no** | a |")
    assert "- a: no memfd" in text
    assert conformance_table.listed(text) == set(program_names())
    missing = text.replace(row, "")
    assert list(conformance_table.problems(missing)) == ["files.append is missing"]
    strange = text + "| `files.nothing` | x | yes |\n"
    assert list(conformance_table.problems(strange)) == ["files.nothing is no program"]


def test_every_program_says_what_it_is_about() -> None:
    for name in program_names():
        assert len(conformance_table.description(name)) > 3, name
