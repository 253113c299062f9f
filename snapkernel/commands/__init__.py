"""The command line: one module per verb, imported when it is used.

The modules import the rest of the package inside their commands, so that ``snapkernel --help``
answers at once.
"""

from __future__ import annotations

import importlib

import click

from snapkernel.errors import SnapkernelError

VERBS = ("checkpoint", "restore", "list", "show", "remove", "verify", "gc", "explain", "doctor")

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and SIGINT, as a shell reports it."""


class Verbs(click.Group):
    """The verbs, and how they end: 0 done, 1 failed with one ``error:`` line, 2 wrong usage."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except SnapkernelError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.command(
    "snapkernel",
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="snapkernel")
def main() -> None:
    """Save, ship and resume running Jupyter kernels: the whole process, memory included."""
