"""What the commands print: tables, text, progress bars, JSON."""

import json
import math
import os
import re
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

from ..tiny.epochs import Epoch
from ..tiny.train_loop import MOST_STEPS, History
from ..tiny.training_log import without_nan
from .spelling import spelled

FEWEST_COLUMNS = 30
"""Narrower tables would lose what they show; a narrower terminal wraps these."""


def correct_columns() -> None:
    """Have Rich ignore COLUMNS where it is no width, such as 0, and use no fewer than it needs."""
    given = os.environ.get("COLUMNS")
    if given is None:
        return
    columns = int(given) if given.isdecimal() and len(given) < 10 else 0
    if columns == 0:
        del os.environ["COLUMNS"]
    elif columns < FEWEST_COLUMNS:
        os.environ["COLUMNS"] = str(FEWEST_COLUMNS)


def make_console() -> Console:
    """Return the console of standard output; in a file it has as many columns on Windows as
    elsewhere."""
    # Rich leaves a column free where a Windows console may need it, and otherwise in files, too.
    return Console(highlight=False, legacy_windows=None if sys.stdout.isatty() else False)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object, with null for numbers that are not finite; a line for a list of
    them."""
    text = json.dumps(without_nan(value), indent=2, allow_nan=False)
    # A line break is never part of a string.
    typer.echo(re.sub(r"\[\n([^\[\]{}\"]+)\]", lambda x: f"[{' '.join(x[1].split())}]", text))


def perplexity(loss: float) -> float:
    """Return exp(loss), infinite where a float cannot represent it."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


def decimals(value: float, places: int) -> str:
    """Return a number with these decimal places; where it is large, 4 digits and an exponent."""
    return f"{value:.{places}f}" if abs(value) < 1e6 else f"{value:.3e}"


def visible(token: str) -> str:
    """Return a token; white space and control characters as Python writes them."""
    return token if token.isprintable() and not token.isspace() else repr(token)


def heading(text: str) -> Padding:
    """Return a bold line with an empty one above it."""
    return Padding(Text(spelled(text), style="bold"), (1, 0, 0, 1), expand=False)


def step_count(steps: int) -> str:
    """Return a number of steps in words."""
    return f"{steps:,} step{'s' * (steps != 1)}"


def paragraph(text: str) -> Padding:
    """Return text with the left margin of tables."""
    return Padding(Text(spelled(text)), (0, 0, 0, 1), expand=False)


def bullets(items: Iterable[str]) -> Padding:
    """Return a list with the left margin of tables."""
    table = Table.grid(padding=(0, 1))
    for item in items:
        table.add_row("-", Text(spelled(item)))
    return Padding(table, (0, 0, 0, 1), expand=False)


# ---------------------------------------------------------------------------- progress


class TrainingBar:
    """The bar of a training run: on standard error if that is a terminal, else nothing."""

    def __init__(self, bar: Progress, label: str, done: int, steps: int) -> None:
        self._bar, self._steps = bar, steps
        self._task = bar.add_task(label, completed=done, total=min(steps, MOST_STEPS), loss="")
        self._drawn = -math.inf
        self._prints = True

    def show(self, history: History) -> None:
        """Draw it, at most ten times a second; called at each step."""
        now = time.monotonic()
        if history.steps == self._steps or now - self._drawn > 0.1:
            loss = decimals(history.losses[-1], 4)
            self._bar.update(self._task, completed=history.steps, loss=loss, refresh=True)
            self._drawn = now

    def print(self, line: str) -> None:
        """Print a line on standard output, above the bar if both are on one terminal. Where that
        fails the training goes on, to be saved: the summary fails then, too, and says why."""
        try:
            if not self._bar.disable and sys.stdout.isatty():
                self._bar.console.print(Text(line))
            elif self._prints:
                print(line, flush=True)
        except OSError:
            self._prints = False


@contextmanager
def progress_bar(
    label: str, done: int, steps: int, quiet: bool, transient: bool
) -> Iterator[TrainingBar]:
    """Show the bar of a training run, and remove it at the end if it is transient."""
    bar = _manual_bar(quiet, TextColumn("loss {task.fields[loss]}"), transient=transient)
    with bar:
        yield TrainingBar(bar, label, done, steps)
    if not bar.disable and not transient:
        bar.console.print()


def epoch_line(epoch: Epoch, epochs: int, history: History) -> str:
    """Return the progress at the end of an epoch."""
    number = f"{epoch.epoch:{len(str(epochs))}}/{epochs}"
    held_out = epoch.held_out_loss
    evaluated = "" if math.isnan(held_out) else f"   held-out {decimals(held_out, 4)}"
    return (
        f"epoch {number}   training loss {decimals(epoch.loss, 4)}{evaluated}   "
        f"{history.seconds:.1f} s"
    )


@contextmanager
def benchmark_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show the same for a benchmark; yield what is called between two measurements."""
    bar = _manual_bar(quiet)
    task = bar.add_task("")
    with bar:
        yield lambda text, done, total: bar.update(
            task,
            description=f"{text:<30}",
            completed=done,
            total=min(total, MOST_STEPS),
            refresh=True,
        )


def _manual_bar(quiet: bool, *columns: ProgressColumn, transient: bool = False) -> Progress:
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
        transient=transient,
        redirect_stdout=False,  # to standard error, which may be elsewhere
    )
    # Rich takes FORCE_COLOR for a terminal; in a file the bar would be a line each time.
    bar.disable = quiet or not sys.stderr.isatty()
    return bar


# ---------------------------------------------------------------------------- tables


def number_table(*headers: str, title: str | None = None, caption: str | None = None) -> Table:
    """Return a table whose first column is text and whose others are numbers."""
    table = text_table(title=title)
    table.caption, table.caption_justify = caption and spelled(caption), "left"
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left")
    return table


class _UncutTable(Table):
    """A table that continues on the next line what is too wide for a narrow terminal. Rich's own
    ends it with an ellipsis, which would hide digits, exponents and names."""

    def add_column(self, *headers: Any, **kwargs: Any) -> None:
        super().add_column(*_spelled_texts(headers), **{"overflow": "fold", **kwargs})

    def add_row(self, *cells: Any, **kwargs: Any) -> None:
        super().add_row(*_spelled_texts(cells), **kwargs)


def _spelled_texts(items: Iterable[Any]) -> Iterator[Any]:
    """Yield the items, texts as standard output can show them."""
    return (spelled(item) if isinstance(item, str) else item for item in items)


def text_table(*headers: str, title: str | None = None) -> Table:
    """Return a table whose columns are text."""
    table = _UncutTable(
        box=box.SIMPLE_HEAD,
        title=title and spelled(f" {title}"),
        title_justify="left",
        title_style="bold",
        header_style="dim",
    )
    for header in headers:
        table.add_column(header)
    return table


def benchmark_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], emphasized: str
) -> Table:
    """Return the statistics of implementations, a row each, one of which is in bold. Names of up to
    24 characters and usual numbers fit in 80 columns, as in a file."""
    table = number_table(*columns, title=title)
    table.padding, table.min_width = 0, len(title) + 2  # the title in one line
    for row in rows:
        table.add_row(*row, style="bold" if row[0] == emphasized else "")
    return table


def key_value_table(rows: Mapping[str, str]) -> Table:
    """Return a table of names and values without a header."""
    table = _UncutTable(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table
