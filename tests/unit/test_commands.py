"""The command line: usage, the shape of what is printed, exit statuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from snapkernel.commands import VERBS, main
from snapkernel.commands.output import format_seconds, format_size, printable
from snapkernel.store import Store


@pytest.fixture
def store(tmp_path: Path) -> str:
    """An empty store."""
    return Store.open((tmp_path / "store").as_uri(), create=True).url


def run(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, arguments, prog_name="snapkernel")


def failure(result: Result) -> str:
    """The one line that a failed command prints."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


# --- usage ---------------------------------------------------------------------------------------


def test_help_lists_every_verb() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert [verb for verb in VERBS if not re.search(rf"^  {verb} +\w", result.stdout, re.M)] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from snapkernel.commands import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'rich', 'msgspec', 'zstandard', 'boto3', 'snapkernel._native'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["thaw"],
        ["checkpoint"],
        ["checkpoint", "1", "2"],
        ["checkpoint", "1", "--unknown"],
        ["restore"],
        ["restore", "a", "--plan", "--detach"],
        ["restore", "a", "--files", "maybe"],
        ["restore", "a", "--plan", "--connection-file", "b"],
        ["list", "a"],
        ["show"],
        ["remove"],
        ["verify", "a", "b"],
        ["gc", "a"],
        ["explain"],
        ["doctor", "a"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: snapkernel" in result.stderr


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["checkpoint", "explain"])
def test_a_target_that_is_not_there_is_one_error_line(verb: str) -> None:
    assert "no-such-kernel" in failure(run(verb, "no-such-kernel"))


@pytest.mark.parametrize("verb", ["restore", "show", "remove", "verify"])
def test_a_snapshot_that_is_not_there_is_one_error_line(verb: str, store: str) -> None:
    assert "cleaned" in failure(run(verb, "cleaned", "--store", store))


@pytest.mark.parametrize("verb", ["list", "gc", "verify"])
def test_a_strange_store_is_one_error_line(verb: str) -> None:
    assert "gopher" in failure(run(verb, "--store", "gopher://a"))


@pytest.mark.parametrize("verb", ["list", "gc", "verify"])
def test_a_store_that_is_not_there_is_not_made(verb: str, tmp_path: Path) -> None:
    assert "there is no store" in failure(run(verb, "--store", (tmp_path / "store").as_uri()))
    assert list(tmp_path.iterdir()) == []


def test_lazy_restore_is_refused_with_a_remedy(store: str) -> None:
    assert "restore eagerly" in failure(run("restore", "a", "--lazy", "--store", store))


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_text: str) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("snapkernel.resolve_target", interrupted)
    result = run("explain", "1")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


# --- an empty store ------------------------------------------------------------------------------


def test_an_empty_store_is_an_empty_array(store: str) -> None:
    result = run("list", "--json", "--store", store)
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


@pytest.mark.parametrize("verb", ["gc", "verify"])
def test_an_empty_store_is_in_order(verb: str, store: str) -> None:
    result = run(verb, "--json", "--store", store)
    assert result.exit_code == 0
    assert isinstance(json.loads(result.stdout), dict)


# --- what people read ----------------------------------------------------------------------------


def test_sizes_and_times_for_people() -> None:
    assert [format_size(n) for n in (0, 1023, 1024, 5 << 30, 3 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 GiB",
        "3072.0 TiB",
    ]
    assert [format_seconds(s) for s in (0.00712, 1.5)] == ["7.1 ms", "1.50 s"]


def test_nothing_that_a_store_says_steers_the_terminal() -> None:
    assert "\x1b" not in printable("a\x1b]0;b\n\u202e")
    assert "\n" not in printable("a\nb")
    assert printable("naïve, 東京") == "naïve, 東京"
