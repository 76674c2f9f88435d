"""The training loop: it joins a model, an optimizer and data, and measures where the time goes.

Nothing here prints or parses.
"""

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from time import perf_counter
from typing import Literal, Protocol

import numpy as np

from .._io.stop_signals import stop_signals
from ..schedules import CosineDecay, LinearDecay, LinearWarmup
from .baselines import ReferenceAdamW
from .model import Cache, Parameters, TinyTransformer
from .text_data import Batch, Task, mean_loss
from .token_input import Sequences

# ---------------------------------------------------------------------------- records


@dataclass
class History:
    """Losses and times of a training so far.

    Attributes:
        losses: the loss after each number of updates, in nats per token; losses[0] is the one
            before the first update.
        forward_seconds, backward_seconds, optimizer_seconds: time spent on each phase.
        stop_signal: the number of the signal that ended the training, such as SIGINT (Ctrl-C) or
            SIGTERM; 0 if none did.
        resumed_from: number of updates that an earlier process made; None if there was none.
    """

    losses: list[float] = field(default_factory=list)
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    stop_signal: int = 0
    resumed_from: int | None = None

    @property
    def steps(self) -> int:
        """The number of completed updates."""
        return len(self.losses) - 1

    @property
    def seconds(self) -> float:
        """The time spent on all three phases."""
        return self.forward_seconds + self.backward_seconds + self.optimizer_seconds

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the training."""
        return self.stop_signal != 0

    @property
    def first_non_finite_step(self) -> int | None:
        """The step at which the loss became infinite or NaN; None if it never did."""
        return next((i for i, loss in enumerate(self.losses) if not math.isfinite(loss)), None)


@dataclass
class TrainingResult:
    """A model, and how its training went.

    Attributes:
        optimizer: name of the optimizer.
        lr: the highest learning rate.
        model: with the parameters after the last update.
        history: losses and times.
        state_dtype: storage format of the moments; None for that of the parameters.
        initial_held_out_loss: before the first update; None where the task has no held-out text.
        final_held_out_loss: after the last update, or None.
    """

    optimizer: Literal["AdamW", "SGD"]
    lr: float
    model: TinyTransformer
    history: History
    state_dtype: str | None = None
    initial_held_out_loss: float | None = None
    final_held_out_loss: float | None = None


# ---------------------------------------------------------------------------- the loop


class Model(Protocol):
    """What the loop needs of a model."""

    def forward(self, tokens: Sequences, targets: Sequences) -> tuple[float, Cache]: ...

    def backward(self, cache: Cache) -> Parameters: ...


class Optimizer(Protocol):
    """What the loop needs of an optimizer, which updates its parameters in place."""

    def step(self, grads: Parameters) -> object: ...


def train(
    model: Model,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    steps: int,
    on_step: Callable[[History], None] | None = None,
    history: History | None = None,
    over_ranks: Callable[[int], int] = int,
    on_repeated_signal: Callable[[], None] | None = None,
) -> History:
    """Train for `steps` updates, or until Ctrl-C, SIGTERM or SIGHUP; an update is never cut short.

    Takes one more batch than updates: the last gives the loss after the last update.

    Args:
        model: its parameters are those of the optimizer.
        optimizer: called once for each batch.
        batches: tokens and targets, from the very start of the training.
        steps: number of updates in all, those of `history` included.
        on_step: called after every forward pass with the history, whose last loss belongs to the
            current parameters. At the last call either `history.steps` is `steps` or
            `history.interrupted` is true.
        history: that of a training to continue, with model and optimizer as they were then.
        over_ranks: the maximum of its arguments on the processes that train together, so that they
            stop together.
        on_repeated_signal: called at each signal after the first, which may come while a long
            update, or `on_step`, is finishing.

    Returns:
        `history`, or a new one, up to the last update.
    """
    history = History() if history is None else history
    # The last forward pass is repeated: the next update needs its gradients.
    del history.losses[-1:]
    # Where a loss diverges, the losses themselves show it.
    floating_point = np.errstate(over="ignore", invalid="ignore")
    with stop_signals(on_repeated_signal) as request, floating_point:
        for tokens, targets in islice(batches, len(history.losses), None):
            start = perf_counter()
            loss, cache = model.forward(tokens, targets)
            forward_end = perf_counter()
            history.losses.append(loss)
            history.stop_signal = over_ranks(request.signal)
            if on_step is not None:
                on_step(history)
            if history.steps >= steps or history.interrupted:
                break
            backward_start = perf_counter()
            grads = model.backward(cache)
            backward_end = perf_counter()
            optimizer.step(grads)
            end = perf_counter()
            history.forward_seconds += forward_end - start
            history.backward_seconds += backward_end - backward_start
            history.optimizer_seconds += end - backward_end
        history.stop_signal = over_ranks(request.signal)
    return history


def held_out_loss(model: TinyTransformer, task: Task) -> float | None:
    """Return the mean loss on the held-out text; None where the task has none."""
    return None if task.corpus is None else mean_loss(model, task.corpus.held_out)


# ---------------------------------------------------------------------------- AdamW


class ScheduleName(StrEnum):
    """Shape of the learning rate after the warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


def make_schedule(
    name: ScheduleName, lr: float, warmup: int, steps: int
) -> Callable[[int], float] | None:
    """Return a schedule that rises to `lr` over `warmup` steps, then follows `name`.

    A linear or cosine decay reaches 0 after `steps` steps, warm-up included. Returns None where
    the rate is `lr` at every step.
    """
    if name is ScheduleName.CONSTANT:
        return LinearWarmup(lr, warmup) if warmup else None
    kind = LinearDecay if name is ScheduleName.LINEAR else CosineDecay
    decay = kind(lr, steps - warmup)
    return LinearWarmup(lr, warmup).then(decay) if warmup else decay


def reference_step_seconds(
    model: TinyTransformer, batch: Batch, lr: float, weight_decay: float, repeats: int = 5
) -> float:
    """Return the median time of a pure-Python step on copies of the model's parameters."""
    parameters = {name: parameter.copy() for name, parameter in model.parameters.items()}
    with np.errstate(over="ignore", invalid="ignore"):
        _, grads = model.loss_and_gradients(*batch)
    optimizer = ReferenceAdamW(parameters, lr, weight_decay)
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        optimizer.step(grads)
        seconds.append(perf_counter() - start)
    return statistics.median(seconds)
