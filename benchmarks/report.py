"""The results of a run as a table of medians and ratios, a list of verdicts, and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

GIB = 1 << 30
MIB = 1 << 20

Results = dict[str, Any]


def seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def size(value: float) -> str:
    return f"{value / MIB:.0f} MiB" if value < GIB else f"{value / GIB:.2f} GiB"


METRICS: dict[str, tuple[str, Callable[[float], str]]] = {
    "pause": ("pause, by the tool", seconds),
    "gap": ("pause, seen from inside", seconds),
    "safe": ("time until safe", seconds),
    "stored": ("bytes stored", size),
    "running": ("time to running", seconds),
    "first_cell": ("time to first cell", seconds),
    "checkpoint_peak": ("peak memory, freezing", size),
    "restore_peak": ("peak memory, thawing", size),
}


def one_line(measurement: dict[str, Any]) -> str:
    """One measurement, as it is made."""
    kind = "warm-up" if measurement["round"] == 0 else f"round {measurement['round']}"
    values = "  ".join(
        f"{name} {METRICS[name][1](measurement[name])}"
        for name in ("pause", "gap", "safe", "stored", "running", "first_cell")
    )
    return f"{measurement['size']:g} GiB {kind:8} {measurement['tool']:10} {values}"


class Medians:
    """Medians over the counted rounds."""

    def __init__(self, results: Results) -> None:
        self.measurements = [m for m in results["measurements"] if m["round"] > 0]
        self.sizes = sorted({m["size"] for m in self.measurements})
        self.tools = sorted({m["tool"] for m in self.measurements}, reverse=True)

    def get(self, tool: str, of: float, name: str) -> float | None:
        values = [
            m[name]
            for m in self.measurements
            if m["tool"] == tool and m["size"] == of and m[name] is not None
        ]
        return statistics.median(values) if values else None

    def ratio(self, of: float, name: str) -> float | None:
        ours, theirs = self.get("snapkernel", of, name), self.get("criu", of, name)
        return None if ours is None or not theirs else ours / theirs


def show(results: Results) -> None:
    """Print the table and the verdicts."""
    medians = Medians(results)
    console = Console()
    table = Table(
        title=f"medians of {results['rounds']} rounds: {results['processors']} processors, "
        f"Linux {results['linux']}, snapshots in {results['folder']}"
    )
    table.add_column("kernel holds")
    table.add_column("")
    for name in ("snapkernel", f"CRIU {results['criu'] or ''}", "ratio"):
        table.add_column(name, justify="right")
    for of in medians.sizes:
        for name, (label, text) in METRICS.items():
            ours, theirs = medians.get("snapkernel", of, name), medians.get("criu", of, name)
            ratio = medians.ratio(of, name)
            table.add_row(
                f"{of:g} GiB" if name == "pause" else "",
                label,
                "-" if ours is None else text(ours),
                "-" if theirs is None else text(theirs),
                "-" if ratio is None else f"{ratio:.3f}",
                end_section=name == list(METRICS)[-1],
            )
    console.print(table)
    noise = [m["idle_gap"] for m in medians.measurements]
    if noise:
        console.print(
            f"Seen from inside, a kernel that nobody checkpoints pauses {seconds(max(noise))} too."
        )
    for line in verdicts(results):
        console.print(line, highlight=False, soft_wrap=True)


def verdicts(results: Results) -> list[str]:
    """What the project promised, and whether this run kept it."""
    medians = Medians(results)
    lines = []

    def judge(
        promise: str, measured: float | None, limit: float | None, low: bool, text: str
    ) -> None:
        """One promise: ``measured`` must be below (``low``) or above ``limit``."""
        if measured is None or limit is None:
            lines.append(f"[yellow]not measured[/]  {promise}")
            return
        kept = measured <= limit if low else measured >= limit
        lines.append(
            f"{'[green]kept        [/]' if kept else '[red]MISSED      [/]'}  {promise}: {text}"
        )

    fork = medians.get("snapkernel", 0, "fork")
    for name in ("pause", "gap"):
        value = medians.get("snapkernel", 0, name)
        judge(
            f"{METRICS[name][0]}, idle kernel with numpy and pandas: at most 12 ms and a fork",
            value,
            fork and 0.012 + fork,
            True,
            f"{seconds(value or 0)}, a fork takes {seconds(fork or 0)}",
        )
    value = medians.ratio(0, "first_cell")
    judge(
        "restore to the first cell, 0 GiB: at most 0.8 of CRIU's",
        value,
        0.8,
        True,
        f"{value or 0:.2f}",
    )
    value = medians.ratio(4, "running")
    judge("restore of 4 GiB: at most half of CRIU's", value, 0.5, True, f"{value or 0:.2f}")
    of = 4 if 4 in medians.sizes else max(medians.sizes, default=0)
    before, after = (medians.get("snapkernel", of, name) for name in ("huge", "huge_after"))
    share = after / before if before and after is not None else None
    theirs = medians.get("criu", of, "huge_after")
    judge(
        f"huge pages after a restore of {of:g} GiB: at least 90 % of those before",
        share,
        0.9,
        False,
        f"{(share or 0) * 100:.0f} %, CRIU {'-' if theirs is None else size(theirs)}",
    )
    safe, resident = (medians.get("snapkernel", 4, name) for name in ("safe", "resident"))
    rate = resident / safe / 1e6 if safe and resident else None
    judge("snapshot of 4 GiB: at least 800 MB/s", rate, 800, False, f"{rate or 0:.0f} MB/s")
    ratio = results["structured_ratio"]
    judge("structured data: at least 3 times smaller", ratio, 3, False, f"{ratio or 0:.2f} times")
    added = {
        m["size"]: m["second"] / m["stored"]
        for m in medians.measurements
        if m["second"] is not None
    }
    judge(
        f"a second snapshot of {of:g} GiB with 1 % of the data changed: at most 3 % of the bytes",
        added.get(of),
        0.03,
        True,
        ", ".join(f"{share * 100:.2f} % at {at:g} GiB" for at, share in sorted(added.items())),
    )
    return lines


def plot(results: Results, path: Path) -> None:
    """Draw every ratio over the size of the kernel; without CRIU there is none."""
    medians = Medians(results)
    if len(medians.tools) < 2:
        print("no plot: there is nothing to compare with")
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    width = 0.8 / len(medians.sizes)
    for index, of in enumerate(medians.sizes):
        positions = [place + index * width for place in range(len(METRICS))]
        ratios = [medians.ratio(of, name) or float("nan") for name in METRICS]
        shade = pyplot.get_cmap("Blues")(0.35 + 0.6 * index / max(1, len(medians.sizes) - 1))
        heights = [ratio - 1 for ratio in ratios]  # bars hang from, or stand on, "as much as CRIU"
        bars = axes.bar(positions, heights, width, bottom=1, color=shade, label=f"{of:g} GiB")
        axes.bar_label(
            bars, [f"{ratio:.2g}" for ratio in ratios], fontsize=7, rotation=90, padding=2
        )
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.set_xticks(
        [place + width * (len(medians.sizes) - 1) / 2 for place in range(len(METRICS))],
        [label.replace(", ", ",\n").replace("time ", "time\n") for label, _ in METRICS.values()],
        fontsize=8,
    )
    axes.set_ylabel("snapkernel / CRIU (less is better)")
    axes.set_title(
        f"Freeze and thaw of an ipykernel: snapkernel beside CRIU {results['criu']}, "
        f"{results['processors']} processors, Linux {results['linux']}",
        fontsize=10,
    )
    axes.legend(title="kernel holds")
    figure.savefig(path, dpi=130)
