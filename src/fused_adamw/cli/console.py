"""What a reader sees: tables, progress bars, the pictures of loss curves and of races."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ..tiny.train_loop import Prediction, Run

FIGURE_SIZE, CHART_SIZE = (7.2, 4.0), (10.0, 5.6)  # inches
COLOURS = ("#1f6feb", "#d9730d")


# Of the contenders of a race; after Okabe & Ito, whose colours the colour-blind tell apart.
RACE_COLOURS = (
    *("#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f", "#5d4a9c", "#b8a800"),
)
RACE_MARKERS = "sv^DPXdph<>"  # more than colours: no pair comes twice
RACE_DASHES = ((6, 2), (2, 1), (8, 2, 2, 2), (4, 1, 1, 1, 1, 1), (1, 1))
CAPTION_WIDTH = 150  # characters


class Role(Enum):
    """How a contender is drawn."""

    OURS = auto()
    ALSO_OURS = auto()
    PEER = auto()
    LIMIT = auto()


Part: TypeAlias = RenderableType
"""Anything here that a console prints."""


class Curve(NamedTuple):
    """A training, under the name it has for the reader."""

    label: str
    run: Run
    held_out: tuple[float, float] | None  # losses before and after


class Point(NamedTuple):
    parameters: int
    ns_per_parameter: float
    low: float  # quartiles
    high: float


class Line(NamedTuple):
    """A contender of a race, from size to size."""

    label: str
    role: Role
    points: Sequence[Point]


def console() -> Console:
    return Console(highlight=False)


def perplexity(loss: float) -> float:
    """exp(loss), infinite where a float cannot hold it."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


# ---------------------------------------------------------------------------- progress


@contextmanager
def progress_bar(label: str, done: int, steps: int, quiet: bool) -> Iterator[Callable[[Run], None]]:
    """A bar on standard error, where that is a terminal; yields what `train` calls at each step."""
    bar = still_bar(quiet, TextColumn("loss {task.fields[loss]:.4f}"))
    task = bar.add_task(label, completed=done, total=steps, loss=math.nan)
    drawn = -math.inf

    def on_step(run: Run) -> None:
        nonlocal drawn
        now = time.monotonic()
        if run.steps == steps or now - drawn > 0.1:
            bar.update(task, completed=run.steps, loss=run.losses[-1], refresh=True)
            drawn = now

    with bar:
        yield on_step
    if not bar.disable:
        bar.console.print()


@contextmanager
def race_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """The same of a race; yields what is called between two blocks, never within one."""
    bar = still_bar(quiet)
    task = bar.add_task("")
    with bar:
        yield lambda text, done, total: bar.update(
            task, description=f"{text:<30}", completed=done, total=total, refresh=True
        )


def still_bar(quiet: bool, *columns: ProgressColumn) -> Progress:
    """A bar that is drawn when it is told to: a thread that redraws would take its time from the
    steps that are measured."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        *columns,
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        auto_refresh=False,
    )
    bar.disable = quiet or not bar.console.is_terminal
    return bar


# ---------------------------------------------------------------------------- tables


def plain_table(*headers: str, title: str | None = None, caption: str | None = None) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        header_style="dim",
    )
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left")
    return table


def losses_table(curves: Sequence[Curve], vocab_size: int) -> Table:
    table = plain_table(
        "",
        "loss: first",
        "last",
        "perplexity: first",
        "last",
        title=" Loss and perplexity",
        caption=f" chance: ln {vocab_size} = {math.log(vocab_size):.6f}, perplexity {vocab_size}",
    )
    for label, run, held_out in curves:
        ends = {label: (run.losses[0], run.losses[-1])}
        if held_out is not None:
            ends["  on held-out text"] = held_out
        for name, losses in ends.items():
            table.add_row(
                name,
                *(f"{loss:.6f}" for loss in losses),
                *(f"{perplexity(loss):.4f}" for loss in losses),
            )
    return table


def predictions_table(rows: Sequence[Prediction], title: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
    )
    for header in ("after", "target", "predicted"):
        table.add_column(header)
    table.add_column("P(target)", justify="right")
    for row in rows:
        right = row.predicted == row.target
        table.add_row(
            visible(row.token),
            visible(row.target),
            Text(visible(row.predicted).plain, style="green" if right else "red"),
            f"{row.probability:.4f}",
        )
    return table


def visible(token: str) -> Text:
    """A token as it is, never as markup; white space and control characters as in Python."""
    return Text(token if token.isprintable() and not token.isspace() else repr(token))


def time_table(label: str, run: Run) -> Table:
    table = plain_table(
        "", "seconds", "share", "µs per step", title=f" Where the time goes: {label}"
    )
    phases = {
        "forward": run.forward_seconds,
        "backward": run.backward_seconds,
        "optimizer": run.optimizer_seconds,
    }
    for phase, seconds in phases.items():
        table.add_row(phase, *time_cells(seconds, run))
    table.add_section()
    table.add_row("all", *time_cells(run.seconds, run))
    return table


def time_cells(seconds: float, run: Run) -> tuple[str, str, str]:
    if not run.steps:
        return f"{seconds:.3f}", "-", "-"
    share = 100 * seconds / run.seconds
    return f"{seconds:.3f}", f"{share:.1f} %", f"{1e6 * seconds / run.steps:,.1f}"


def reference_comparison(run: Run, reference_seconds: float) -> Text:
    step = run.optimizer_seconds / run.steps
    return Text.assemble(
        f" One AdamW step: {1e6 * step:,.1f} µs fused, {1e6 * reference_seconds:,.0f} µs "
        "in pure Python, ",
        (f"{reference_seconds / step:,.0f} times", "bold"),
        " as long.\n",
    )


def sample_panel(text: str) -> Panel:
    shown = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return Panel(Text(shown), title="A sample", title_align="left", box=box.ROUNDED)


def worked_update_table(rows: Sequence[tuple[str, str, float, float]]) -> Table:
    """Rows of what, formula, the kernel's number and the reference's."""
    table = Table(box=box.SIMPLE_HEAD, header_style="dim")
    table.add_column("")
    table.add_column("formula")
    for header in ("kernel", "reference"):
        table.add_column(header, justify="right")
    for name, formula, kernel, reference in rows:
        style = "bold" if name == "theta" else None
        table.add_row(name, formula, f"{kernel:+.9f}", f"{reference:+.9f}", style=style)
    return table


def effective_rates_table(rows: Sequence[tuple[float, float]], lr: float) -> Table:
    table = plain_table("|g|", "effective lr", "of lr")
    for gradient, multiplier in rows:
        table.add_row(f"{gradient:g}", f"{multiplier * lr:.6f}", f"{multiplier:.2f} x")
    return table


def parameters_table(shapes: Mapping[str, tuple[int, ...]]) -> Table:
    table = plain_table("parameter", "shape", "values", "AdamW state")
    counts = [math.prod(shape) for shape in shapes.values()]
    for (name, shape), count in zip(shapes.items(), counts, strict=True):
        table.add_row(name, " x ".join(map(str, shape)), f"{count:,}", f"{2 * count:,}")
    table.add_section()
    table.add_row("all", "", f"{sum(counts):,}", f"{2 * sum(counts):,}", style="bold")
    return table


def race_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], ours: str
) -> Table:
    table = plain_table(*columns, title=f"\n {title}")
    table.padding = 0, 1, 0, 0
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*row, style="bold" if row[0] == ours else "")
    return table


def facts_table(facts: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, fact in facts.items():
        table.add_row(name, Text(fact))
    return table


def heading(text: str) -> Padding:
    return Padding(Text(text, style="bold"), (1, 0, 0, 1), expand=False)


def paragraph(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 1), expand=False)


# ---------------------------------------------------------------------------- files


def check_output_path(path: Path, replaced: bool = False) -> None:
    """Raise ValueError unless a file can be written there, or replaced; leave no trace."""
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {target.parent}")
    if replaced:
        # Not it, but its folder is written to, and a name as long as that of a checkpoint in the
        # making has to be allowed.
        target = target.with_name(f".{target.name}.{'0' * 16}.tmp")
    try:
        if target.exists():
            target.open("ab").close()
        else:
            target.touch(exist_ok=False)
            target.unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


# ---------------------------------------------------------------------------- the plot


def check_plot_path(path: Path) -> None:
    """Raise ValueError unless a picture can be written there; leave no trace."""
    from matplotlib.figure import Figure

    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(f"{path}: no picture has the suffix {path.suffix!r}; try .png")
    check_output_path(path)


def save_plot(path: Path, curves: Sequence[Curve], vocab_size: int, title: str) -> None:
    # Matplotlib takes long to import and is needed here alone. Without pyplot no display is.
    from matplotlib.figure import Figure

    figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
    axes = figure.subplots()
    chance = math.log(vocab_size)
    axes.axhline(chance, color="0.6", linewidth=0.8, linestyle="--")
    axes.annotate(
        f"chance, ln {vocab_size}",
        (1, chance),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        horizontalalignment="right",
        color="0.4",
        fontsize="small",
    )
    for (label, run, held_out), colour in zip(curves, COLOURS, strict=False):
        axes.plot(run.losses, label=label, color=colour, linewidth=1.5)
        if held_out is not None:
            axes.plot(
                (0, run.steps),
                held_out,
                "o",
                label=f"{label}, held-out text",
                color=colour,
                markerfacecolor="white",
            )
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.set_title(title, fontsize="medium", loc="left")
    # Where one training diverges, the other curve stays readable.
    axes.set_ylim(0, min(axes.get_ylim()[1], 3 * chance))
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def save_chart(path: Path, lines: Sequence[Line], title: str, caption: str) -> None:
    """ns per parameter over the number of parameters, a line for each contender."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=CHART_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    # The slowest at the smallest size is on top there, and in the legend.
    for line, style in sorted(zip(lines, line_styles(lines), strict=True), key=slowest_first):
        x, y, low, high = zip(*line.points, strict=True)
        spread = (
            [a - b for a, b in zip(y, low, strict=True)],
            [b - a for a, b in zip(y, high, strict=True)],
        )
        axes.errorbar(x, y, yerr=spread, label=line.label, elinewidth=0.8, capsize=2, **style)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("parameters")
    axes.set_ylabel("ns per parameter")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.supxlabel(fill(caption, CAPTION_WIDTH), fontsize="x-small", color="0.4")
    figure.savefig(path, dpi=200)


def slowest_first(styled: tuple[Line, dict[str, Any]]) -> tuple[int, float]:
    first = styled[0].points[0]
    return first.parameters, -first.ns_per_parameter


def line_styles(lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    ours = {"color": COLOURS[0], "marker": "o", "zorder": 4}
    peers = zip(cycle(RACE_COLOURS), cycle(RACE_MARKERS), strict=False)
    dashes = cycle((0, pattern) for pattern in RACE_DASHES)
    for line in lines:
        if line.role is Role.OURS:
            yield ours | {"linewidth": 3.5, "markersize": 7}
        elif line.role is Role.ALSO_OURS:
            yield ours | {"linewidth": 1.5, "markersize": 4, "linestyle": next(dashes)}
        elif line.role is Role.LIMIT:
            yield {"color": "0.15", "linestyle": "--", "linewidth": 1.5, "zorder": 5}
        else:
            colour, marker = next(peers)
            yield {"color": colour, "marker": marker, "linewidth": 1.3, "markersize": 5}
