"""The tables of `fused-adamw train`."""

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..tiny.text_data import Prediction
from ..tiny.train_loop import History, TrainingResult
from .console import decimals, number_table, perplexity, text_table, visible
from .spelling import spelled


def losses_table(curves: Mapping[str, TrainingResult], vocab_size: int) -> Table:
    """Return the first and last losses of training runs by label."""
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
    table = text_table("after", "target", "predicted", title=f"Predictions after step {steps:,}")
    table.add_column("P(target)", justify="right")
    for row in rows:
        style = "green" if row.predicted == row.target else "red"
        table.add_row(
            Text(visible(row.token)),  # verbatim, never as markup
            Text(visible(row.target)),
            Text("-" if row.predicted is None else visible(row.predicted), style),
            f"{row.probability:.4f}",
        )
    return table


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
        spelled(f" One AdamW step: {1e6 * step:,.1f} µs fused, {1e6 * reference_seconds:,.0f} µs "),
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
