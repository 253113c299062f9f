"""``snapkernel explain``: can this process be saved?"""

from __future__ import annotations

import click

from snapkernel.commands.options import files_option, json_option, process_argument
from snapkernel.commands.output import message, print_json, print_table


@click.command("explain")
@process_argument
@files_option
@json_option
@click.pass_context
def command(ctx: click.Context, target: str, files: tuple[str, ...], as_json: bool) -> None:
    """Tell whether a process can be saved.

    What becomes of each of its objects is listed, and what stands in the way. The exit status is
    then 1. PID may also be a Jupyter connection file or a kernel id.
    """
    import snapkernel

    findings = snapkernel.explain(snapkernel.resolve_target(target), files)
    refused = [finding for finding in findings if finding.status == "refused"]
    if as_json:
        objects = [
            {
                "object": finding.object,
                "status": finding.status,
                "reason": finding.reason,
                "remedy": finding.remedy,
            }
            for finding in findings
        ]
        print_json({"ok": not refused, "objects": objects})
    else:
        print_table(
            ("OBJECT", "STATUS", "REASON", "REMEDY"),
            ((found.object, found.status, found.reason, found.remedy) for found in findings),
        )
        if refused:
            message(f"it cannot be saved: {len(refused)} of {len(findings)} objects are refused")
        else:
            message("it can be saved")
    ctx.exit(1 if refused else 0)
