"""What the commands print: tables, text, progress bars, JSON."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import typer
from rich import box
from rich.console import Console
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

from ..tiny.text_data import Prediction
from ..tiny.train_loop import History, TrainingResult


def make_console() -> Console:
    """Return the console of standard output."""
    return Console(highlight=False)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object, with null for numbers that are not finite."""
    typer.echo(json.dumps(_without_nan(value), indent=2, allow_nan=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def perplexity(loss: float) -> float:
    """Return exp(loss), infinite where a float cannot represent it."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


def decimals(value: float, places: int) -> str:
    """Return a number with these decimal places; where it is large, 4 digits and an exponent."""
    return f"{value:.{places}f}" if abs(value) < 1e6 else f"{value:.3e}"


def heading(text: str) -> Padding:
    """Return a bold line with an empty one above it."""
    return Padding(Text(text, style="bold"), (1, 0, 0, 1), expand=False)


def paragraph(text: str) -> Padding:
    """Return text with the left margin of tables."""
    return Padding(Text(text), (0, 0, 0, 1), expand=False)


def bullets(items: Iterable[str]) -> Padding:
    """Return a list with the left margin of tables."""
    table = Table.grid(padding=(0, 1))
    for item in items:
        table.add_row("-", Text(item))
    return Padding(table, (0, 0, 0, 1), expand=False)


# ---------------------------------------------------------------------------- progress


@contextmanager
def progress_bar(
    label: str, done: int, steps: int, quiet: bool
) -> Iterator[Callable[[History], None]]:
    """Show a bar on standard error if that is a terminal; yield what `train` calls at each step."""
    bar = _manual_bar(quiet, TextColumn("loss {task.fields[loss]}"))
    task = bar.add_task(label, completed=done, total=steps, loss="")
    drawn = -math.inf

    def on_step(history: History) -> None:
        nonlocal drawn
        now = time.monotonic()
        if history.steps == steps or now - drawn > 0.1:
            loss = decimals(history.losses[-1], 4)
            bar.update(task, completed=history.steps, loss=loss, refresh=True)
            drawn = now

    with bar:
        yield on_step
    if not bar.disable:
        bar.console.print()


@contextmanager
def benchmark_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show the same for a benchmark; yield what is called between two measurements."""
    bar = _manual_bar(quiet)
    task = bar.add_task("")
    with bar:
        yield lambda text, done, total: bar.update(
            task, description=f"{text:<30}", completed=done, total=total, refresh=True
        )


def _manual_bar(quiet: bool, *columns: ProgressColumn) -> Progress:
    """Return a bar that is drawn on request only: a thread that redraws it would take its time from
    the steps that are measured."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        *columns,
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        auto_refresh=False,
    )
    # Rich takes FORCE_COLOR for a terminal; in a file the bar would be a line each time.
    bar.disable = quiet or not sys.stderr.isatty()
    return bar


# ---------------------------------------------------------------------------- tables


def number_table(*headers: str, title: str | None = None, caption: str | None = None) -> Table:
    """Return a table whose first column is text and whose others are numbers."""
    table = text_table(title=title)
    table.caption, table.caption_justify = caption, "left"
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left")
    return table


def text_table(*headers: str, title: str | None = None) -> Table:
    """Return a table whose columns are text."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title and f" {title}",
        title_justify="left",
        title_style="bold",
        header_style="dim",
    )
    for header in headers:
        table.add_column(header)
    return table


def losses_table(curves: Mapping[str, TrainingResult], vocab_size: int) -> Table:
    """Return the first and last losses of trainings by label."""
    table = number_table(
        "",
        "loss: first",
        "last",
        "perplexity: first",
        "last",
        title="Loss and perplexity",
        caption=f" chance: ln {vocab_size} = {math.log(vocab_size):.6f}, perplexity {vocab_size}\n",
    )
    for label, result in curves.items():
        losses = result.history.losses
        table.add_row(label, *_loss_cells(losses[0], losses[-1]))
        first, last = result.initial_held_out_loss, result.final_held_out_loss
        if first is not None and last is not None:
            table.add_row("  on held-out text", *_loss_cells(first, last))
    return table


def _loss_cells(*losses: float) -> list[str]:
    perplexities = [decimals(perplexity(loss), 4) for loss in losses]
    return [decimals(loss, 6) for loss in losses] + perplexities


def predictions_table(rows: Sequence[Prediction], steps: int) -> Table:
    """Return what the model predicts after this number of steps."""
    table = text_table("after", "target", "predicted", title=f"Predictions after {steps:,} steps")
    table.add_column("P(target)", justify="right")
    for row in rows:
        right = row.predicted == row.target
        table.add_row(
            _visible(row.token),
            _visible(row.target),
            Text(_visible(row.predicted).plain, style="green" if right else "red"),
            f"{row.probability:.4f}",
        )
    return table


def _visible(token: str) -> Text:
    """Return a token verbatim, never as markup; white space and control characters as Python's."""
    return Text(token if token.isprintable() and not token.isspace() else repr(token))


def time_table(label: str, history: History) -> Table:
    """Return the time spent on each phase of a step."""
    table = number_table(
        "", "seconds", "share", "µs per step", title=f"Where the time goes: {label}"
    )
    phases = {
        "forward": history.forward_seconds,
        "backward": history.backward_seconds,
        "optimizer": history.optimizer_seconds,
    }
    for phase, seconds in phases.items():
        table.add_row(phase, *_time_cells(seconds, history))
    table.add_section()
    table.add_row("total", *_time_cells(history.seconds, history))
    return table


def _time_cells(seconds: float, history: History) -> tuple[str, str, str]:
    if not history.steps:
        return f"{seconds:.3f}", "-", "-"
    share = 100 * seconds / history.seconds
    return f"{seconds:.3f}", f"{share:.1f} %", f"{1e6 * seconds / history.steps:,.1f}"


def reference_comparison(history: History, reference_seconds: float) -> Text:
    """Return a line that compares the fused step with the one in pure Python."""
    step = history.optimizer_seconds / history.steps
    ratio = reference_seconds / step
    return Text.assemble(
        f" One AdamW step: {1e6 * step:,.1f} µs fused, {1e6 * reference_seconds:,.0f} µs "
        "in pure Python, ",
        (f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.1f} times", "bold"),
        " as long.\n",
    )


def sample_panel(text: str) -> Panel:
    """Return a frame with text that the model wrote."""
    shown = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return Panel(Text(shown), title="A sample", title_align="left", box=box.ROUNDED)


def benchmark_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], emphasized: str
) -> Table:
    """Return the statistics of implementations, a row each, one of which is in bold."""
    table = number_table(*columns, title=title)
    table.padding = 0, 1, 0, 0
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*row, style="bold" if row[0] == emphasized else "")
    return table


def key_value_table(rows: Mapping[str, str]) -> Table:
    """Return a table of names and values without a header."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table
