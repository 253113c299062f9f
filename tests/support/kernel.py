"""A running ipykernel and a client of it, as a Jupyter front end would have them."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from jupyter_client.launcher import launch_kernel

import snapkernel
from snapkernel import procfs
from support.conformance import Process

if TYPE_CHECKING:
    from typing_extensions import Self

PATIENCE = 60.0
"""Seconds after which a kernel that does not answer counts as hanging."""

IPYKERNEL = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")

NOT_UNIQUE = re.compile(
    r"ERROR! Session/line number was not unique in ?"
    r"|database\. History logging moved to new session ?(\d+\n?)?"
)
"""What IPython says, in parts, when two copies of a kernel write into one history, each its
line 7. It begins a new session then, and all is well."""


class CellFailed(Exception):
    """A cell raised; the text is ``name: value`` of its exception, or what it printed."""


class Kernel:
    """A kernel and its client.

    Attributes:
        process: the kernel's.
        pid: of the kernel, as this host sees it.
        client: a connected client.
        connection_file: of the kernel.
        answers: ``control`` when it answers there while a cell runs, otherwise ``shell``.
    """

    def __init__(
        self, process: Process, client: BlockingKernelClient, answers: str = "control"
    ) -> None:
        self.process = process
        self.pid = process.pid
        self.client = client
        self.connection_file = Path(client.connection_file)
        self.answers = answers
        self.settle()

    @classmethod
    def start(
        cls,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        transport: str = "tcp",
        command: Sequence[str] = IPYKERNEL,
        answers: str = "control",
    ) -> Kernel:
        """Start a kernel in `folder` the way Jupyter does: ipykernel watches its parent.

        IPython's and matplotlib's own folders are below `folder`, BLAS has two threads. In
        `command`, ``{connection_file}`` stands for the path, as in Jupyter's ``kernel.json``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "connection.json"
        ip = "" if transport == "tcp" else str(folder / "socket")
        key = secrets.token_hex(16).encode()
        write_connection_file(str(file), ip=ip, transport=transport, key=key)
        # With it, ipykernel would not capture descriptors 1 and 2, as it does elsewhere.
        inherited = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        own = {
            "IPYTHONDIR": str(folder / "ipython"),
            "MPLBACKEND": "agg",
            "MPLCONFIGDIR": str(folder / "matplotlib"),
            "OMP_NUM_THREADS": "2",
            "OPENBLAS_NUM_THREADS": "2",
        }
        with open(folder / "kernel.log", "ab") as log:
            process = launch_kernel(
                [word.replace("{connection_file}", str(file)) for word in command],
                stdout=log.fileno(),
                stderr=log.fileno(),
                cwd=str(folder),
                env={**inherited, **own, **(environment or {})},
            )
        try:
            return cls(process, connect(file), answers)
        except BaseException:
            process.kill()
            process.wait(PATIENCE)
            raise

    @classmethod
    def restore(
        cls,
        snapshot: snapkernel.Snapshot,
        store: str,
        folder: Path,
        client: BlockingKernelClient | None = None,
        answers: str = "control",
    ) -> Kernel:
        """Restore a kernel; its connection file goes into `folder`.

        With `client`, the old client goes on; otherwise a new one is made from the new file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        restored = snapkernel.restore(
            snapshot, store=store, connection_file=folder / "connection.json"
        )
        try:
            assert restored.connection_file == folder / "connection.json"
            if client is None:
                client = connect(restored.connection_file)
            return cls(restored, client, answers)
        except BaseException:
            restored.kill()
            restored.wait(PATIENCE)
            raise

    def settle(self) -> None:
        """Return once the kernel answers, and this client hears what it publishes.

        It asks on the control channel, which answers while a cell runs, where the kernel does so.
        """
        session, client = self.client.session, self.client
        channel = client.control_channel if self.answers == "control" else client.shell_channel
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            question = session.msg("kernel_info_request")
            wanted = question["header"]["msg_id"]
            channel.send(question)
            try:
                while asked_by(channel.get_msg(timeout=1)) != wanted:
                    pass
                # The first message of a new subscription is a welcome, without a parent.
                while asked_by(self.client.get_iopub_msg(timeout=0.3)) != wanted:
                    pass
            except Empty:
                continue
            return
        raise TimeoutError("the kernel does not answer")

    def execute(self, code: str, timeout: float = PATIENCE) -> str:
        """Run a cell and return the text it printed or displayed. Raise CellFailed."""
        return self.result(self.send(code), timeout)

    def send(self, code: str, allow_stdin: bool = False) -> str:
        """Start a cell, without waiting, and return the request's id."""
        return str(self.client.execute(code, allow_stdin=allow_stdin))

    def result(self, request: str, timeout: float = PATIENCE) -> str:
        """Wait for the end of a cell of this client."""
        deadline = time.monotonic() + timeout
        text = ""
        while True:
            message = self._message(self.client.get_iopub_msg, deadline)
            if asked_by(message) != request:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                text += content["text"]
            elif message["msg_type"] in ("execute_result", "display_data"):
                text += content["data"].get("text/plain", "")
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                break
        while True:
            reply = self._message(self.client.get_shell_msg, deadline)
            if asked_by(reply) == request:
                break
        if reply["content"]["status"] != "ok":
            found = reply["content"]
            raise CellFailed(f"{found.get('ename') or text}: {found.get('evalue')}")
        return NOT_UNIQUE.sub("", text)

    def until_printed(self, request: str, text: str, timeout: float = PATIENCE) -> None:
        """Wait until the cell has printed `text`: it is where the test wants it to be."""
        deadline = time.monotonic() + timeout
        seen = ""
        while text not in seen:
            message = self._message(self.client.get_iopub_msg, deadline)
            if asked_by(message) == request:
                seen += message["content"].get("text", "")
                assert message["msg_type"] != "error", message["content"]

    def ask(self, code: str) -> tuple[str, str]:
        """Start a cell that asks for input; return the request's id and the prompt.

        ipykernel drops a question while the client's stdin channel is still connecting: such a
        cell is interrupted, and run again.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            request = self.send(code, allow_stdin=True)
            try:
                message = self._message(self.client.get_stdin_msg, time.monotonic() + 5)
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise
                self.interrupt()
            else:
                return request, str(message["content"]["prompt"])

    @staticmethod
    def _message(get: Any, deadline: float) -> dict[str, Any]:
        try:
            message: dict[str, Any] = get(timeout=max(0.1, deadline - time.monotonic()))
        except Empty:
            raise TimeoutError("the kernel is silent") from None
        return message

    def interrupt(self) -> None:
        """What the interrupt button does."""
        os.kill(self.pid, signal.SIGINT)

    def kill(self) -> BlockingKernelClient:
        """End the kernel's process at once, and what it has started, but keep the client."""
        started = procfs.descendants(self.pid) if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return self.client

    def disconnect(self) -> None:
        """Close the client's connections."""
        self.client.stop_channels()
        self.client.context.destroy(linger=0)

    def close(self) -> None:
        """End the kernel and the client."""
        self.kill()
        self.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def asked_by(message: dict[str, Any]) -> str | None:
    """The id of the request that a message belongs to; some kernels leave the header away."""
    return (message.get("parent_header") or {}).get("msg_id")


def connect(connection_file: Path) -> BlockingKernelClient:
    """A client that knows only the connection file."""
    client = BlockingKernelClient(connection_file=str(connection_file))
    client.load_connection_file()
    client.start_channels()
    return client
