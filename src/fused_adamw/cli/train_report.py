"""What `fused-adamw train` reports: for people as text and tables, for programs as a record."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from rich.console import RenderableType

from ..tiny.epochs import complete_epochs
from ..tiny.model import TinyTransformer
from ..tiny.sweep import Sweep
from ..tiny.text_data import Corpus, Task, predictions
from ..tiny.train_loop import TrainingResult
from . import console
from . import training_tables as tables
from .sweep_report import sweep_record, sweep_summary


@dataclass(frozen=True)
class Report:
    """What is reported.

    Attributes:
        results: by label, AdamW's first.
        task: what the models were trained on.
        config: the options by name.
        reference_step_seconds: time of an AdamW step in pure Python, where that is comparable.
        sample: text that the trained model writes; None without one.
        sweeps: the training runs at other rates, of each optimizer.
    """

    results: dict[str, TrainingResult]
    task: Task
    config: dict[str, Any]
    reference_step_seconds: float | None
    sample: str | None
    sweeps: Sequence[Sweep]

    @property
    def first(self) -> TrainingResult:
        """The result of AdamW."""
        return next(iter(self.results.values()))

    @property
    def interrupted(self) -> list[TrainingResult]:
        """The training runs that a signal has ended: those shown, or the last one of a sweep."""
        ended = (sweep.interrupted for sweep in self.sweeps)
        found = chain(self.results.values(), ended)
        unique = {id(x): x for x in found if x is not None and x.history.interrupted}
        return list(unique.values())


def label(result: TrainingResult, with_lr: bool) -> str:
    """Return the name of a training run in tables and plots."""
    state = f", {result.state_dtype} state" if result.state_dtype is not None else ""
    rate = f", lr {result.lr:g}" if with_lr else ""
    return f"{result.optimizer}{state}{rate}"


def title(model: TinyTransformer) -> str:
    """Return the title of a report on this model."""
    return f"Tiny transformer, {model.n_parameters:,} parameters, {model.dtype}"


def divergence(result: TrainingResult) -> str | None:
    """Return how the loss diverged; None where it did not."""
    if not result.diverged:
        return None
    history = result.history
    if (step := history.first_non_finite_step) is not None:
        return f"loss became non-finite at step {step}"
    first, last, chance = (
        console.decimals(loss, 3) for loss in (history.losses[0], history.losses[-1], result.chance)
    )
    return f"training has diverged: loss rose from {first} to {last} (chance: {chance})"


# ---------------------------------------------------------------------------- for people


def summary(report: Report) -> Iterator[RenderableType]:
    """Yield what to print, part by part."""
    task, first = report.task, report.first
    yield console.heading(f"{title(first.model)}, seed {report.config['seed']}")
    if task.corpus is not None:
        yield console.paragraph(corpus_size(task.corpus))
    if first.history.resumed_from is not None:
        yield console.paragraph(f"Resumed after step {first.history.resumed_from:,}.")
    names = {id(result): name for name, result in report.results.items()}
    for result in report.interrupted:
        name = names.get(id(result), label(result, with_lr=True))
        yield console.paragraph(f"Interrupted: {name} after step {result.history.steps:,}.")
    yield tables.predictions_table(predictions(first.model, task), first.history.steps)
    yield tables.losses_table(report.results, len(task.vocabulary))
    yield from sweep_summary(report.sweeps, report.config["steps"])
    for name, result in report.results.items():
        yield tables.time_table(name, result.history)
    if report.reference_step_seconds is not None:
        yield tables.reference_comparison(first.history, report.reference_step_seconds)
    if report.sample is not None:
        yield tables.sample_panel(report.sample)


def corpus_size(corpus: Corpus) -> str:
    """Return a line on the size of the text."""
    return (
        f"{len(corpus.train):,} tokens to train on, {len(corpus.held_out):,} held out, "
        f"vocabulary of {len(corpus.vocabulary):,} with <PAD>"
    )


# ---------------------------------------------------------------------------- for programs


def record(report: Report) -> dict[str, Any]:
    """Return what `summary` shows, and more, as JSON."""
    first, *others = report.results.values()
    found = result_record(first) | {
        "config": report.config,
        "resumed_from": first.history.resumed_from,
        "reference_step_seconds": report.reference_step_seconds,
        "predictions": [row._asdict() for row in predictions(first.model, report.task)],
    }
    if report.task.corpus is not None or report.sample is not None:
        found["sample"] = report.sample
    for other in others:
        found[other.optimizer.lower()] = result_record(other)
    if others:
        found["sweep"] = sweep_record(report.sweeps)
    if report.config["epochs"] is not None:
        epochs = complete_epochs(first.history, report.task.batches_per_epoch)
        found["epochs"] = [asdict(epoch) for epoch in epochs]
    return found | {"interrupted": bool(report.interrupted)}


def result_record(result: TrainingResult) -> dict[str, Any]:
    """Return the numbers of one training."""
    history = result.history
    initial, final = history.losses[0], history.losses[-1]
    found: dict[str, Any] = {
        "optimizer": result.optimizer,
        "lr": result.lr,
        "parameters": result.model.n_parameters,
        "steps": history.steps,
        "initial_loss": initial,
        "final_loss": final,
        "initial_perplexity": console.perplexity(initial),
        "final_perplexity": console.perplexity(final),
        "seconds": history.seconds,
        "forward_seconds": history.forward_seconds,
        "backward_seconds": history.backward_seconds,
        "optimizer_seconds": history.optimizer_seconds,
        "diverged": result.diverged,
        "losses": history.losses,
        "gradient_norms": history.gradient_norms,
        "learning_rates": [result.rate_at(t) for t in range(1, history.steps + 1)],
    }
    if result.initial_held_out_loss is not None:
        found["initial_held_out_loss"] = result.initial_held_out_loss
        found["final_held_out_loss"] = result.final_held_out_loss
    return found
