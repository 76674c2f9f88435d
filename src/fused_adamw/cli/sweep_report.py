"""What a sweep over learning rates has shown: a table, and the same in words."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..tiny.sweep import Sweep, on_held_out_text, working_loss
from . import console

SIMILAR_DECADES = 0.75  # ranges of rates that differ by less, as by one step of a sweep


def sweep_summary(sweeps: Sequence[Sweep], steps: int) -> Iterator[RenderableType]:
    """Yield the table of the losses by rate, and what it shows; nothing without a sweep."""
    if not any(sweep.is_swept for sweep in sweeps):
        return
    held_out = " on held-out text" if on_held_out_text(sweeps) else ""
    count = console.step_count(steps)
    yield console.heading(f"Loss{held_out} after {count}, by learning rate")
    yield sweep_table(sweeps)
    for sentence in conclusions(sweeps):
        yield console.paragraph(sentence)


def sweep_table(sweeps: Sequence[Sweep]) -> Table:
    """Return the losses of all optimizers by rate, the best of each marked."""
    names = [f"{sweep.optimizer}  " for sweep in sweeps]
    table = console.number_table("rate", *names, caption=" *: the best one\n")
    for lr in sorted({lr for sweep in sweeps for lr in sweep.losses}):
        table.add_row(f"{lr:g}", *(_cell(sweep, lr) for sweep in sweeps))
    return table


def _cell(sweep: Sweep, lr: float) -> Text:
    if lr not in sweep.losses:
        return Text("-  ")
    loss = sweep.losses[lr]
    if sweep.has_diverged(loss):
        return Text("diverges  ", style="red")
    is_best = sweep.is_swept and sweep.best is not None and lr == sweep.best.lr
    return Text(f"{short(loss)} *" if is_best else f"{short(loss)}  ", "bold" if is_best else "")


def short(loss: float) -> str:
    """Return a loss to three digits."""
    if loss == 0:
        return "0"
    return f"{loss:#.3g}" if loss >= 1e-3 else f"{loss:.2e}"


# ---------------------------------------------------------------------------- in words


def conclusions(sweeps: Sequence[Sweep]) -> Iterator[str]:
    """Yield a paragraph for each thing that the two sweeps show; nothing where one is missing or
    has been interrupted."""
    if len(sweeps) < 2 or any(sweep.best is None or sweep.interrupted for sweep in sweeps):
        return
    diverged = [sweep for sweep in sweeps if sweep.diverged]
    if len(diverged) == len(sweeps):
        return
    for sweep in diverged:
        where = "at all of its rates" if sweep.is_swept else "at the rate that was given"
        yield f"{sweep.optimizer} diverges {where}."
    if not diverged:
        yield _at_their_best(*sweeps)
        yield from _at_one_rate(*sweeps)
    if all(sweep.is_swept for sweep in sweeps):
        yield from _sensitivity(*sweeps)


def _best_lr(sweep: Sweep) -> float:
    assert sweep.best is not None
    return sweep.best.lr


def _at_their_best(adamw: Sweep, sgd: Sweep) -> str:
    first, second = sorted((adamw, sgd), key=lambda sweep: sweep.best_loss)
    text = (
        f"{_rates(adamw, sgd)}: {first.optimizer} (rate {_best_lr(first):g}) reaches a loss of "
        f"{short(first.best_loss)}, {second.optimizer} (rate {_best_lr(second):g}) "
        f"{short(second.best_loss)}"
    )
    if second.best_loss <= 1.01 * first.best_loss:
        return f"{text}, about the same."
    if first.best_loss == 0:
        return f"{text}."
    return f"{text}, {_digits(second.best_loss / first.best_loss)} times that of {first.optimizer}."


def _rates(adamw: Sweep, sgd: Sweep) -> str:
    if adamw.is_swept and sgd.is_swept:
        return "Each at its best rate"
    given, found = (adamw, sgd) if sgd.is_swept else (sgd, adamw)
    return f"{given.optimizer} at the rate that was given, {found.optimizer} at its best"


def _at_one_rate(adamw: Sweep, sgd: Sweep) -> Iterator[str]:
    """Yield what becomes of SGD at AdamW's rate, where that has been tried."""
    loss = sgd.losses.get(_best_lr(adamw))
    there = ""
    if loss is not None:
        there = "diverges" if sgd.has_diverged(loss) else f"reaches {short(loss)}"
    if not (adamw.is_swept and sgd.is_swept):
        if there and _best_lr(adamw) != _best_lr(sgd):
            yield f"At AdamW's rate SGD {there}."
        return
    ratio = _best_lr(sgd) / _best_lr(adamw)
    if ratio == 1:
        yield "The best rate is the same for both."
        return
    text = f"SGD's best rate is {_digits(ratio)} times that of AdamW."
    yield f"{text} At AdamW's best rate SGD {there}." if there else text


def _sensitivity(adamw: Sweep, sgd: Sweep) -> Iterator[str]:
    best = min(adamw.best_loss, sgd.best_loss)
    if best >= adamw.chance:
        yield "Neither does better than guessing in so few steps."
        return
    enough = working_loss(adamw.chance, best)
    ranges = [_range(sweep, best) for sweep in (adamw, sgd)]
    yield (
        f"Rates that work (loss at most {short(enough)}: nine tenths of the way from chance, "
        f"{short(adamw.chance)}, to the best): {ranges[0]}; {ranges[1]}."
    )
    width, other = (_decades(sweep.working(best)) for sweep in (adamw, sgd))
    if width is None or other is None:
        return
    least = math.floor(min(width, other))
    if abs(width - other) >= SIMILAR_DECADES:
        name = sgd.optimizer if width > other else adamw.optimizer
        yield f"{name} is more sensitive to its rate here."
    elif least >= 1:
        number = "a decade" if least == 1 else f"{least} decades"
        yield (
            f"Both work over {number} of rates or more: neither is much more sensitive to its rate "
            "than the other here."
        )
    else:
        yield "Neither is much more sensitive to its rate than the other here."


def _range(sweep: Sweep, best: float) -> str:
    rates = sweep.working(best)
    if not rates:
        return f"none of {sweep.optimizer}'s"
    if len(rates) == 1:
        return f"{sweep.optimizer}'s {rates[0]:g} only"
    decades = _decades(rates)
    return f"{sweep.optimizer}'s from {rates[0]:g} to {rates[-1]:g}, {decades:.1f} decades"


def _decades(rates: Sequence[float]) -> float | None:
    return round(math.log10(rates[-1] / rates[0]), 1) if rates else None


def _digits(ratio: float) -> str:
    return f"{ratio:,.0f}" if 10 <= ratio < 1e6 else f"{ratio:.3g}"


# ---------------------------------------------------------------------------- for programs


def sweep_record(sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """Return the losses by rate, and what counts as a rate that works, as JSON."""
    best = min(sweep.best_loss for sweep in sweeps)
    found: dict[str, Any] = {
        "chance": sweeps[0].chance,
        "working_loss": working_loss(sweeps[0].chance, best),
    }
    for sweep in sweeps:
        found[sweep.optimizer.lower()] = [
            {"lr": lr, "loss": loss} for lr, loss in sorted(sweep.losses.items())
        ]
    return found
