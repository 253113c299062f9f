"""Everything again without any privilege: checkpoint and restore as a user who is not root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.unprivileged import TESTS, as_nobody

PYTHON = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs"]


def run_as_nobody(home: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run some of our tests as a user without a name, capabilities or groups."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "JUPYTER", "PYTEST"))
    }
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*PYTHON, f"--basetemp={home}/tests", *(f"{TESTS}/{test}" for test in tests)]
    return subprocess.run(
        as_nobody(command, home),
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="all tests already run without privilege")
@pytest.mark.parametrize(
    "tests",
    [
        [
            "integration/test_kernel_restore.py::test_every_object_is_there",
            "integration/test_kernel_restore.py::test_two_beside_the_original",
            "integration/test_kernel_restore.py::test_three_generations",
            "integration/test_kernel_restore.py::test_on_a_host_without_its_files",
        ],
        [
            f"conformance/test_conformance.py::test_three_generations[{name}]"
            for name in (
                "memory.private_anonymous",
                "memory.memory_file",
                "memory.memory_file_in_parts",
                "memory.replaced_library",
                "memory.shared_in_parts",
                "memory.sparse_shared",
                "memory.shared_file",
                "files.deleted",
                "files.given_a_name_later",
                "files.only_paths",
                "files.owners",
                "files.own_proc_files",
                "channels.fifo_with_data",
                "channels.fifo_without_writer",
                "events.inotify_watches",
                "memory.locked_in_future",
                "channels.pair_seqpacket",
                "events.signal_descriptor",
                "family_ipc.one_segment_in_two_processes",
                "family_ipc.posix_queue_of_two",
                "family_ipc.settings_of_each",
                "family.group_without_leader",
                "family.session_without_leader",
                "multiprocess.files_in_dev_shm",
                "multiprocess.manager",
                "multiprocess.named_memory_of_two",
                "multiprocess.spawn",
                "ipc.message_queue",
                "ipc.posix_queue",
                "ipc.segment_not_attached",
                "ipc.segment_with_key",
                "ipc.semaphores",
                "attributes.memory_policy_of_areas",
                "attributes.personality",
                "identity.numbers",
                "identity.privileges",
                "identity.subprocesses",
                "network.listening",
                "network.multicast",
                "network.udp_options",
                "network.udp_shared_port",
                "sessions.hang_up",
                "sessions.jobs",
                "sessions.own_terminal",
                "terminals.terminal_bytes_waiting",
                "terminals.terminal_controlling",
                "terminals.terminal_numbers",
                "terminals.terminal_packets",
                "threads.identities",
                "signal_pending",
                "timer_posix",
                "unix_sockets.accepted",
                "unix_sockets.datagrams",
                "unix_sockets.listening",
                "unix_sockets.socket_on_its_way",
            )
        ],
        [
            f"integration/test_files_travel.py::{name}"
            for name in (
                "test_missing_files_are_written[mapped-live]",
                "test_missing_files_are_written[transaction-stopped]",
                "test_what_a_file_is_besides_its_content",
                "test_others_are_refused_all_at_once",
                "test_others_are_overwritten",
                "test_shared_with_the_living_original",
                "test_a_new_file_with_the_old_number",
                "test_a_restore_that_fails_takes_its_files_back",
                "test_no_rights_to_write_it",
            )
        ],
        [
            "integration/test_foreground.py::test_stop_and_continue",
            "integration/test_foreground.py::test_stop_that_is_handled",
            "integration/test_foreground.py::test_stop_without_a_shell",
            "integration/test_foreground.py::test_interrupt",
            "integration/test_foreground.py::test_interrupt_reaches_children",
            "integration/test_foreground.py::test_window",
            "integration/test_foreground.py::test_death[SIGTERM]",
            "integration/test_foreground.py::test_hang_up",
            "integration/test_kernel_terminals.py::test_command_in_a_kernel_that_is_stopped",
            "integration/test_kernel_terminals.py::test_dialogue[live]",
            "integration/test_outer_terminal.py::test_the_prompt_answers",
            "integration/test_outer_terminal.py::test_in_no_terminal",
        ],
        [
            "faults/test_fault_targets.py::test_of_another_user",
            "faults/test_fault_targets.py::test_no_room_for_a_child",
            "faults/test_fault_stores.py::test_small_disks_of_a_user",
        ],
        [
            "faults/test_fault_steps.py::test_checkpoint_goes_on[kill]",
            "faults/test_fault_steps.py::test_restore[kill]",
            "faults/test_fault_steps.py::test_the_freezer_is_killed",
        ],
    ],
    ids=["kernels", "programs", "files", "terminals", "faults", "deaths"],
)
def test_as_a_user(tests: list[str], home: Path) -> None:
    done = run_as_nobody(home, *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(tests)} passed" in done.stdout, done.stdout
