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
from typing import Literal, Protocol, TypeAlias

import numpy as np

from .._core import as_integer
from .._io.stop_signals import stop_signals
from ..schedules import CosineDecay, LinearDecay, LinearWarmup
from .baselines import ReferenceAdamW
from .model import Cache, Parameters, TinyTransformer
from .text_data import Batch, Task, mean_loss
from .token_input import Sequences

# ---------------------------------------------------------------------------- records


@dataclass
class History:
    """Losses and times of a training run so far.

    Attributes:
        losses: the loss after each number of updates, in nats per token; losses[0] is the one
            before the first update.
        forward_seconds, backward_seconds, optimizer_seconds: time spent on each phase.
        stop_signal: the number of the signal that ended the training, such as SIGINT (Ctrl-C) or
            SIGTERM; 0 if none did.
        resumed_from: number of updates that an earlier process made; None if there was none.
        gradient_norms: the global norm of the gradient of each update, before it is clipped; NaN
            where no rank has all of the gradient, or an earlier process did not save it.
        held_out_losses: after each epoch, where a training run has epochs and held-out text.
        stop_requested: whether a signal has come since the last step.
    """

    losses: list[float] = field(default_factory=list)
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    stop_signal: int = 0
    resumed_from: int | None = None
    gradient_norms: list[float] = field(default_factory=list)
    held_out_losses: list[float] = field(default_factory=list)
    stop_requested: Callable[[], bool] = field(default=bool, repr=False, compare=False)

    @property
    def steps(self) -> int:
        """The number of completed updates."""
        return max(len(self.losses) - 1, 0)

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


OptimizerName: TypeAlias = Literal["AdamW", "SGD"]
MOST_STEPS = 10**18  # that can be taken; an integer may be beyond float64
DIVERGED = 2  # a loss that many times that of guessing, or the first one


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
        schedule: the learning rate of each update; None where it is `lr` at every one.
    """

    optimizer: OptimizerName
    lr: float
    model: TinyTransformer
    history: History
    state_dtype: str | None = None
    initial_held_out_loss: float | None = None
    final_held_out_loss: float | None = None
    schedule: Callable[[int], float] | None = None

    @property
    def chance(self) -> float:
        """The loss of guessing."""
        return math.log(self.model.vocab_size)

    @property
    def outcome(self) -> float:
        """The last loss, on held-out text where there is some; infinite where it is not finite."""
        held_out = self.final_held_out_loss
        loss = self.history.losses[-1] if held_out is None else held_out
        return loss if math.isfinite(loss) else math.inf

    @property
    def diverged(self) -> bool:
        """Whether the loss has become non-finite, or far greater than that of guessing."""
        losses = self.history.losses
        too_much = DIVERGED * max(losses[0], self.chance)
        return self.history.first_non_finite_step is not None or losses[-1] > too_much

    def rate_at(self, t: int) -> float:
        """Return the learning rate of update t = 1, 2, ..."""
        return self.lr if self.schedule is None else self.schedule(t)


# ---------------------------------------------------------------------------- the loop


class Model(Protocol):
    """What the loop needs of a model.

    Attributes:
        has_whole_gradients: whether `backward` returns the gradients of the whole batch.
    """

    has_whole_gradients: bool

    def forward(self, tokens: Sequences, targets: Sequences) -> tuple[float, Cache]: ...

    def backward(self, cache: Cache) -> Parameters: ...


class Optimizer(Protocol):
    """What the loop needs of an optimizer, which updates its parameters in place."""

    def step(self, grads: Parameters) -> float | None:
        """Update the parameters; return the global norm of the gradients where it was computed."""


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

    Takes one more batch than updates: the last gives the loss after the last update. Where the
    batches end early, so does the training.

    Args:
        model: its parameters are those of the optimizer.
        optimizer: called once for each batch.
        batches: tokens and targets, from the very start of the training.
        steps: number of updates in all, those of `history` included.
        on_step: called after every forward pass with the history, whose last loss belongs to the
            current parameters. At the last call either `history.steps` is `steps`, or
            `history.interrupted` is true, or the batches have ended.
        history: that of a training run to continue, with model and optimizer as they were then.
        over_ranks: takes a number and returns its maximum over the processes that train together,
            so that they stop together.
        on_repeated_signal: called at each signal after the first, which may come while a long
            update, or `on_step`, is finishing.

    Returns:
        `history`, or a new one, up to the last update.

    Raises:
        TypeError: `steps` is not an integer.
        ValueError: `steps` is below 0.
    """
    steps = as_integer("steps", steps, minimum=0)
    history = History() if history is None else history
    # The last forward pass is repeated: the next update needs its gradients.
    del history.losses[-1:]
    # Where a loss diverges, the losses themselves show it.
    floating_point = np.errstate(over="ignore", invalid="ignore")
    with stop_signals(on_repeated_signal) as request, floating_point:
        history.stop_requested = lambda: request.signal != 0
        source = islice(batches, len(history.losses), None)
        batch = next(source, None)
        while batch is not None:
            tokens, targets = batch
            start = perf_counter()
            loss, cache = model.forward(tokens, targets)
            forward_end = perf_counter()
            history.losses.append(loss)
            history.stop_signal = over_ranks(request.signal)
            if on_step is not None:
                on_step(history)
            if history.steps >= steps or history.interrupted:
                break
            batch = next(source, None)
            if batch is None:  # for the loss after the update
                break
            backward_start = perf_counter()
            grads = model.backward(cache)
            backward_end = perf_counter()
            norm = optimizer.step(grads)
            end = perf_counter()
            history.forward_seconds += forward_end - start
            history.backward_seconds += backward_end - backward_start
            history.optimizer_seconds += end - backward_end
            if norm is None:
                norm = global_norm(grads) if model.has_whole_gradients else math.nan
            history.gradient_norms.append(norm)
        history.stop_signal = over_ranks(request.signal)
    return history


def global_norm(grads: Parameters) -> float:
    """Return the square root of the sum of the squares of all gradients, summed in float64."""
    doubles = (gradient.astype(np.float64, copy=False) for gradient in grads.values())
    return math.sqrt(sum(float(np.vdot(double, double)) for double in doubles))


def held_out_loss(
    model: TinyTransformer, task: Task, stop_requested: Callable[[], bool] = bool
) -> float | None:
    """Return the mean loss on the held-out text; None where the task has none, or when asked to
    stop."""
    return None if task.corpus is None else mean_loss(model, task.corpus.held_out, stop_requested)


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
    """Return the median time of a pure-Python step on copies of the model's parameters.

    Of `repeats` steps, or of those that a second is enough for, and at least one.
    """
    parameters = {name: parameter.copy() for name, parameter in model.parameters.items()}
    with np.errstate(over="ignore", invalid="ignore"):
        _, grads = model.loss_and_gradients(*batch)
    optimizer = ReferenceAdamW(parameters, lr, weight_decay)
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        optimizer.step(grads)
        seconds.append(perf_counter() - start)
        if sum(seconds) > 1:
            break
    return statistics.median(seconds)
