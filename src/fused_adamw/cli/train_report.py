"""What `fused-adamw train` reports: for people as text and tables, for programs as a record."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from ..tiny.model import TinyTransformer
from ..tiny.text_data import Corpus, Task, predictions, sample
from ..tiny.train_loop import TrainingResult
from . import console

SAMPLE_LENGTH = 300
DIVERGED = 3  # a loss that many times the first one, or that of guessing


@dataclass(frozen=True)
class Report:
    """What is reported.

    Attributes:
        results: by label, AdamW's first.
        task: what the models were trained on.
        config: the options by name.
        reference_step_seconds: time of an AdamW step in pure Python, where that is comparable.
        sample: text that the trained model writes; None without one.
    """

    results: dict[str, TrainingResult]
    task: Task
    config: dict[str, Any]
    reference_step_seconds: float | None
    sample: str | None

    @property
    def first(self) -> TrainingResult:
        """The result of AdamW."""
        return next(iter(self.results.values()))


def label(result: TrainingResult, with_lr: bool) -> str:
    """Return the name of a training in tables and plots."""
    state = f", {result.state_dtype} state" if result.state_dtype is not None else ""
    rate = f", lr {result.lr:g}" if with_lr else ""
    return f"{result.optimizer}{state}{rate}"


def title(model: TinyTransformer) -> str:
    """Return the title of a report on this model."""
    return f"Tiny transformer, {model.n_parameters:,} parameters, {model.dtype}"


def text_sample(result: TrainingResult, task: Task, seed: int) -> str | None:
    """Return text that the trained model writes; None where it cannot write any."""
    corpus = task.corpus
    if corpus is None or divergence(result) is not None:
        return None
    start = corpus.held_out[:1].tolist()
    return corpus.decode(sample(result.model, start, SAMPLE_LENGTH, seed))


def divergence(result: TrainingResult) -> str | None:
    """Return how the loss diverged; None where it did not."""
    history = result.history
    if (step := history.first_non_finite_step) is not None:
        return f"loss became non-finite at step {step}"
    first, last = history.losses[0], history.losses[-1]
    if last > DIVERGED * max(first, math.log(result.model.vocab_size)):
        rose = f"{console.decimals(first, 3)} to {console.decimals(last, 3)}"
        return f"training has diverged: loss rose from {rose}"
    return None


# ---------------------------------------------------------------------------- for people


def summary(report: Report) -> Iterator[RenderableType]:
    """Yield what to print, part by part."""
    task, first = report.task, report.first
    yield console.heading(f"{title(first.model)}, seed {report.config['seed']}")
    if task.corpus is not None:
        yield console.paragraph(corpus_size(task.corpus))
    if first.history.resumed_from is not None:
        yield console.paragraph(f"Resumed after {first.history.resumed_from:,} steps.")
    for name, result in report.results.items():
        if result.history.interrupted:
            yield console.paragraph(f"Interrupted: {name} after {result.history.steps:,} steps.")
    yield console.predictions_table(predictions(first.model, task), first.history.steps)
    yield console.losses_table(report.results, len(task.vocabulary))
    for name, result in report.results.items():
        yield console.time_table(name, result.history)
    if report.reference_step_seconds is not None:
        yield console.reference_comparison(first.history, report.reference_step_seconds)
    if report.sample is not None:
        yield console.sample_panel(report.sample)


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
    if report.task.corpus is not None:
        found["sample"] = report.sample
    for other in others:
        found[other.optimizer.lower()] = result_record(other)
    interrupted = any(result.history.interrupted for result in report.results.values())
    return found | {"interrupted": interrupted}


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
    }
    if result.initial_held_out_loss is not None:
        found["initial_held_out_loss"] = result.initial_held_out_loss
        found["final_held_out_loss"] = result.final_held_out_loss
    return found
