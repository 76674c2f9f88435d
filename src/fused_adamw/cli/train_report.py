"""What `fused-adamw train` came to: for people as tables, for programs as a record."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..optimizer import AdamW
from ..tiny import train_loop as training
from ..tiny.model import TinyTransformer
from ..tiny.train_loop import Level, OptimizerName
from . import console as report

SAMPLE_LENGTH = {Level.CHARS: 300, Level.WORDS: 60}


class Trainee(NamedTuple):
    """A model and the optimizer that trains it, ready to start or to go on."""

    name: OptimizerName
    lr: float
    model: TinyTransformer
    optimizer: training.Optimizer
    held_out_loss: float | None  # of the model before its first update
    run: training.Run


class Outcome(NamedTuple):
    trainee: Trainee
    curve: report.Curve


def trainee_label(trainee: Trainee, with_lr: bool) -> str:
    labels = {
        OptimizerName.FUSED: "AdamW",
        OptimizerName.REFERENCE: "AdamW in pure Python",
        OptimizerName.SGD: "SGD",
    }
    label = labels[trainee.name]
    if (state_dtype := state_dtype_of(trainee)) is not None:
        label = f"{label}, {state_dtype} state"
    return f"{label}, lr {trainee.lr:g}" if with_lr else label


def state_dtype_of(trainee: Trainee) -> str | None:
    """Of moments in fewer bits than the parameters."""
    optimizer = trainee.optimizer
    return optimizer.state_dtype if isinstance(optimizer, AdamW) else None


def title(outcome: Outcome) -> str:
    model = outcome.trainee.model
    return f"Tiny transformer, {model.n_parameters:,} parameters, {model.dtype}"


def text_sample(outcome: Outcome, task: training.Task, seed: int) -> str | None:
    """What the trained model writes; nothing where its probabilities are no numbers."""
    if task.corpus is None or not math.isfinite(outcome.curve.run.losses[-1]):
        return None
    start = task.corpus.held_out[:1].tolist()
    length = SAMPLE_LENGTH[task.corpus.level]
    return task.corpus.decode(training.sample(outcome.trainee.model, start, length, seed))


# ---------------------------------------------------------------------------- for people


def summary(
    outcomes: list[Outcome], task: training.Task, seed: int, pure_python: float | None
) -> Iterator[report.Part]:
    """What to print, part by part; `pure_python` is the time of a step of the reference."""
    first = outcomes[0]
    curves = [curve for _, curve in outcomes]
    yield report.heading(f"{title(first)}, seed {seed}")
    if task.corpus is not None:
        yield report.paragraph(corpus_facts(task.corpus))
    if first.curve.run.resumed_from is not None:
        yield report.paragraph(f"Resumed after {first.curve.run.resumed_from:,} steps.")
    label, run, _ = curves[-1]
    if run.interrupted:
        yield report.paragraph(f"Interrupted: {label} after {run.steps:,} steps.")
    rows = training.predictions(first.trainee.model, task)
    yield report.predictions_table(rows, f" What it predicts after {first.curve.run.steps:,} steps")
    yield report.losses_table(curves, len(task.vocabulary))
    for label, run, _ in curves:
        yield report.time_table(label, run)
    if pure_python is not None:
        yield report.reference_comparison(first.curve.run, pure_python)
    written = text_sample(first, task, seed)
    if written is not None:
        yield report.sample_panel(written)


def corpus_facts(corpus: training.Corpus) -> str:
    return (
        f"{len(corpus.train):,} tokens to train on, {len(corpus.held_out):,} held out, "
        f"{len(corpus.vocabulary):,} distinct with <PAD>"
    )


# ---------------------------------------------------------------------------- for programs


def record(
    outcomes: list[Outcome], task: training.Task, seed: int, pure_python: float | None
) -> dict[str, Any]:
    """What `summary` says, and more, as JSON has it but for numbers that are not finite."""
    first = outcomes[0]
    told = run_record(first) | {
        "seed": seed,
        "dtype": str(first.trainee.model.dtype),
        "state_dtype": state_dtype_of(first.trainee),
        "resumed_from": first.curve.run.resumed_from,
        "reference_step_seconds": pure_python,
        "predictions": [row._asdict() for row in training.predictions(first.trainee.model, task)],
    }
    if task.corpus is not None:
        told["sample"] = text_sample(first, task, seed)
    for other in outcomes[1:]:
        told[other.trainee.name.value] = run_record(other)
    told["interrupted"] = outcomes[-1].curve.run.interrupted
    return told


def run_record(outcome: Outcome) -> dict[str, Any]:
    trainee, (_, run, held_out) = outcome
    initial, final = run.losses[0], run.losses[-1]
    told: dict[str, Any] = {
        "optimizer": trainee.name.value,
        "lr": trainee.lr,
        "parameters": trainee.model.n_parameters,
        "steps": run.steps,
        "initial_loss": initial,
        "final_loss": final,
        "initial_perplexity": report.perplexity(initial),
        "final_perplexity": report.perplexity(final),
        "seconds": run.seconds,
        "forward_seconds": run.forward_seconds,
        "backward_seconds": run.backward_seconds,
        "optimizer_seconds": run.optimizer_seconds,
    }
    if held_out is not None:
        told["initial_held_out_loss"], told["final_held_out_loss"] = held_out
    return told
