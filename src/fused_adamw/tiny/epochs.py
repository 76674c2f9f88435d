"""Epochs: passes over the training data, each with its mean loss and the loss on held-out text."""

import math
from dataclasses import dataclass
from statistics import fmean

from .text_data import Task
from .train_loop import History, TrainingResult, held_out_loss


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    Attributes:
        epoch: its number, from 1.
        steps: number of updates at its end.
        loss: mean of the losses of its batches, each before the update that it led to.
        held_out_loss: at its end; NaN where it was not evaluated.
    """

    epoch: int
    steps: int
    loss: float
    held_out_loss: float


def complete_epochs(history: History, batches_per_epoch: int) -> list[Epoch]:
    """Return the epochs that are complete."""
    complete = history.steps // batches_per_epoch
    return [epoch_of(history, number, batches_per_epoch) for number in range(1, complete + 1)]


def epoch_of(history: History, number: int, batches_per_epoch: int) -> Epoch:
    """Return the epoch of this number, which is complete."""
    start, end = (number - 1) * batches_per_epoch, number * batches_per_epoch
    held_out = history.held_out_losses
    loss = held_out[number - 1] if len(held_out) >= number else math.nan
    return Epoch(number, end, fmean(history.losses[start:end]), loss)


def evaluate_epoch(result: TrainingResult, task: Task) -> None:
    """At the end of an epoch add the loss on held-out text to the history, unless it is known."""
    history, known = result.history, result.history.held_out_losses
    number, rest = divmod(history.steps, task.batches_per_epoch)
    if rest or len(known) >= number:
        return
    loss = held_out_loss(result.model, task, history.stop_requested)
    if loss is not None:
        known += [math.nan] * (number - 1 - len(known))
        known.append(loss)
