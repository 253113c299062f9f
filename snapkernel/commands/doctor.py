"""``snapkernel doctor``: what can this host do?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from snapkernel.commands.options import json_option, store_option
from snapkernel.commands.output import format_size, message, print_json, print_table
from snapkernel.errors import SnapkernelError

if TYPE_CHECKING:
    from snapkernel.commands.host_checks import Check


@click.command("doctor")
@store_option
@json_option
@click.pass_context
def command(ctx: click.Context, store: str | None, as_json: bool) -> None:
    """Tell what this host can do for this user.

    In the end a small process is really saved and restored. The exit status is 1 when something
    is missing.
    """
    checks = list(_checks(store))
    missing = [check for check in checks if check.status == "missing"]
    if as_json:
        print_json({"ok": not missing, "checks": [asdict(check) for check in checks]})
    else:
        print_table(
            ("CHECK", "STATUS", "DETAIL", "REMEDY"),
            ((check.name, check.status, check.detail, check.remedy) for check in checks),
        )
        message(
            f"{len(missing)} missing" if missing else "this host can save and restore processes"
        )
    ctx.exit(1 if missing else 0)


def _checks(store: str | None) -> Iterator[Check]:
    from snapkernel.commands.host_checks import host_checks

    yield from host_checks()
    yield _store(store)
    yield _canary()


def _store(url: str | None) -> Check:
    """Write something to the store that nobody sees, and ask for the space."""
    from snapkernel.commands.host_checks import Check
    from snapkernel.store import Store
    from snapkernel.store.local import LocalBackend

    try:
        backend = Store.open(url, create=True).backend
        upload = backend.upload()
        try:
            upload.write([b"snapkernel doctor"])
        finally:
            upload.abort()
    except SnapkernelError as error:
        return Check("store", "missing", f"{error.object}: {error.reason}", error.remedy)
    detail = f"{backend.url} can be written"
    if isinstance(backend, LocalBackend):
        detail += f", {format_size(shutil.disk_usage(backend.root).free)} free"
    return Check("store", "ok", detail)


def _canary() -> Check:
    from snapkernel.commands.canary import fly
    from snapkernel.commands.host_checks import Check

    try:
        return Check("canary", "ok", fly())
    except SnapkernelError as error:
        return Check("canary", "missing", f"{error.object}: {error.reason}", error.remedy)
