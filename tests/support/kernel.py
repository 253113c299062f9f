"""A running ipykernel and a client of it, as a Jupyter front end would have them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from queue import Empty
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

import snapkernel

if TYPE_CHECKING:
    from typing_extensions import Self

PATIENCE = 60.0
"""Seconds after which a kernel that does not answer counts as hanging."""


class CellFailed(Exception):
    """A cell raised; the text is ``name: value`` of its exception."""


class Owner(Protocol):
    """How the kernel's process is ended."""

    def end(self) -> None: ...


class Kernel:
    """A kernel and its client.

    Attributes:
        pid: of the kernel, as this host sees it.
        client: a connected client.
        connection_file: of the kernel.
    """

    def __init__(self, pid: int, client: BlockingKernelClient, owner: Owner) -> None:
        self.pid = pid
        self.client = client
        self.owner = owner
        self.connection_file = Path(client.connection_file)
        self.settle()

    @classmethod
    def start(cls, folder: Path, environment: Mapping[str, str] | None = None) -> Kernel:
        """Start an ipykernel in `folder` the way Jupyter does: it watches its parent.

        IPython's and matplotlib's own folders are below `folder`, BLAS has two threads.
        """
        folder.mkdir(parents=True, exist_ok=True)
        manager = KernelManager(
            kernel_name="python3", connection_file=str(folder / "connection.json")
        )
        spec = manager.kernel_spec
        assert spec is not None
        spec.argv[0] = sys.executable
        own = {
            "IPYTHONDIR": str(folder / "ipython"),
            "MPLBACKEND": "agg",
            "MPLCONFIGDIR": str(folder / "matplotlib"),
            "OMP_NUM_THREADS": "2",
            "OPENBLAS_NUM_THREADS": "2",
        }
        log = os.open(folder / "kernel.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            manager.start_kernel(
                cwd=str(folder),
                stdout=log,
                stderr=log,
                env={**os.environ, **own, **(environment or {})},
            )
        finally:
            os.close(log)
        provisioner = manager.provisioner
        assert provisioner is not None
        pid = provisioner.pid  # type: ignore[attr-defined]
        try:
            return cls(pid, connect(folder / "connection.json"), _Managed(manager))
        except BaseException:
            manager.shutdown_kernel(now=True)
            raise

    @classmethod
    def restore(
        cls,
        snapshot: snapkernel.Snapshot,
        store: str,
        folder: Path,
        client: BlockingKernelClient | None = None,
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
            return cls(restored.pid, client, _Restored(restored))
        except BaseException:
            restored.kill()
            restored.wait(PATIENCE)
            raise

    def settle(self) -> None:
        """Return once the kernel answers, and this client hears what it publishes.

        It asks on the control channel, which answers while a cell runs.
        """
        session, control = self.client.session, self.client.control_channel
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            question = session.msg("kernel_info_request")
            wanted = question["header"]["msg_id"]
            control.send(question)
            try:
                while self.client.get_control_msg(timeout=1)["parent_header"]["msg_id"] != wanted:
                    pass
                # The first message of a new subscription is a welcome, without a parent.
                while (
                    self.client.get_iopub_msg(timeout=0.3)["parent_header"].get("msg_id") != wanted
                ):
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
            if message["parent_header"].get("msg_id") != request:
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
            if reply["parent_header"].get("msg_id") == request:
                break
        if reply["content"]["status"] != "ok":
            found = reply["content"]
            raise CellFailed(f"{found.get('ename')}: {found.get('evalue')}")
        return text

    def until_printed(self, request: str, text: str, timeout: float = PATIENCE) -> None:
        """Wait until the cell has printed `text`: it is where the test wants it to be."""
        deadline = time.monotonic() + timeout
        seen = ""
        while text not in seen:
            message = self._message(self.client.get_iopub_msg, deadline)
            if message["parent_header"].get("msg_id") == request:
                seen += message["content"].get("text", "")
                assert message["msg_type"] != "error", message["content"]

    def until_asked(self, timeout: float = PATIENCE) -> str:
        """Wait until the kernel asks for input, and return the prompt."""
        message = self._message(self.client.get_stdin_msg, time.monotonic() + timeout)
        return str(message["content"]["prompt"])

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
        """End the kernel's process at once, but keep the client."""
        self.owner.end()
        return self.client

    def close(self) -> None:
        """End the kernel and the client."""
        self.owner.end()
        self.client.stop_channels()
        self.client.context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def connect(connection_file: Path) -> BlockingKernelClient:
    """A client that knows only the connection file."""
    client = BlockingKernelClient(connection_file=str(connection_file))
    client.load_connection_file()
    client.start_channels()
    return client


class _Managed:
    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager

    def end(self) -> None:
        if self.manager.has_kernel:
            # The file stays: a kernel restored on the same ports is reached through it.
            self.manager.cleanup_connection_file = lambda: None  # type: ignore[method-assign]
            self.manager.shutdown_kernel(now=True)
            self.manager.context.destroy(linger=0)


class _Restored:
    def __init__(self, restored: snapkernel.RestoredProcess) -> None:
        self.restored = restored

    def end(self) -> None:
        if self.restored.poll() is None:
            self.restored.kill()
        self.restored.wait(PATIENCE)
