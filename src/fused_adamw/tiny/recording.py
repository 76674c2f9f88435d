"""What a training run is recorded as, to be looked at afterwards: attention, predictions, rates of
AdamW, its updates, and the moments of a few parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from ..optimizer import AdamW
from ..reference import bias_correction
from .layers import FloatArray
from .model import Parameters, TinyTransformer
from .text_data import Task
from .train_loop import MOST_STEPS, History, held_out_loss

MAX_SNAPSHOTS = 40
MAX_EVALUATIONS = 20  # of the held-out text, which may be long
MAX_POINTS = 500  # of a curve of moments


@dataclass(frozen=True)
class Snapshot:
    """A model, as it was after a number of updates.

    Attributes:
        step: the number of updates.
        attention: of the example: what each position attends to, shape (heads, n, n).
        probabilities: of the example: of each next token, shape (n, V).
        held_out_loss: in nats per token; None where it was not computed.
        effective_rates: by parameter name, the median of lr / (sqrt(v_hat) + eps) over the elements
            with a v above 0, and None where there is none; empty before the first update.
        relative_updates: by parameter name, the root mean square of the last update, divided by
            that of the parameter; empty where the parameter before is not known.
    """

    step: int
    attention: FloatArray
    probabilities: FloatArray
    held_out_loss: float | None
    effective_rates: dict[str, float | None]
    relative_updates: dict[str, float]


@dataclass
class Curve:
    """An element of a parameter and its moments, after each of `steps` updates."""

    index: tuple[int, ...]
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    m: list[float] = field(default_factory=list)
    v: list[float] = field(default_factory=list)


class Recorder:
    """Records a training run with AdamW.

    Call it after each forward pass with the history, as `on_step` of
    :func:`~fused_adamw.tiny.train_loop.train`.

    Args:
        model: the model that is trained.
        optimizer: of its parameters.
        task: whose example attention and predictions are of.
        steps: number of updates in all.
        rate_at: the learning rate of update t = 1, 2, ...

    Attributes:
        snapshots: in the order of the steps; the first is of the model as it was before training,
            or where the training was resumed, the last of the model after its last update.
        curves: by parameter name, of the element with the largest m at the first update that was
            recorded: in a run from the start, that with the largest gradient.
    """

    def __init__(
        self,
        model: TinyTransformer,
        optimizer: AdamW,
        task: Task,
        steps: int,
        rate_at: Callable[[int], float],
    ) -> None:
        self._model, self._optimizer, self._task = model, optimizer, task
        self._rate_at = rate_at
        last = float(min(steps, MOST_STEPS))
        spread = np.geomspace(1.0, max(last, 1.0), MAX_SNAPSHOTS - 1).round()
        self._snapshot_steps = {0, *map(int, spread), steps}
        every = np.linspace(0.0, last, MAX_EVALUATIONS).round()
        self._evaluation_steps = {0, *map(int, every)}
        self._stride = -(-steps // MAX_POINTS) or 1
        self._before: tuple[int, Parameters] | None = None
        self.snapshots: list[Snapshot] = []
        self.curves: dict[str, Curve] = {}

    def __call__(self, history: History) -> None:
        step = history.steps
        is_end = history.interrupted
        is_first = not self.snapshots
        if step % self._stride == 0 or step == 1 or is_end:
            self._add_to_curves(step)
        evaluates = step in self._evaluation_steps
        if is_first or is_end or evaluates or step in self._snapshot_steps:
            self.snapshots.append(self._snapshot(step, history, evaluates))
        following = step + 1
        if following in self._snapshot_steps or following in self._evaluation_steps:
            copies = {name: p.copy() for name, p in self._model.parameters.items()}
            self._before = (step, copies)

    def _snapshot(self, step: int, history: History, evaluates: bool) -> Snapshot:
        with np.errstate(over="ignore", invalid="ignore"):
            _, (activations, (log_P, *_)) = self._model.forward(*self._task.example)
            loss = None
            if evaluates and not history.interrupted:
                loss = held_out_loss(self._model, self._task, history.stop_requested)
            return Snapshot(
                step,
                activations.attention.P[:, 0],
                np.exp(log_P),
                loss,
                self._effective_rates(step),
                self._relative_updates(step),
            )

    def _effective_rates(self, step: int) -> dict[str, float | None]:
        if step == 0:
            return {}
        (group,) = self._optimizer.param_groups
        correction = bias_correction(group["betas"][1], step)
        lr, eps = self._rate_at(step), group["eps"]
        rates: dict[str, float | None] = {}
        for name, v in _by_name(self._optimizer.v).items():
            found = lr / (np.sqrt(v[v > 0] / correction) + eps)
            rates[name] = float(np.median(found)) if found.size else None
        return rates

    def _relative_updates(self, step: int) -> dict[str, float]:
        if self._before is None or self._before[0] != step - 1:
            return {}
        before = self._before[1]
        return {
            name: _root_mean_square(p - before[name]) / max(_root_mean_square(p), 1e-30)
            for name, p in self._model.parameters.items()
        }

    def _add_to_curves(self, step: int) -> None:
        if step == 0:
            return
        m, v = _by_name(self._optimizer.m), _by_name(self._optimizer.v)
        for name, parameter in self._model.parameters.items():
            if name not in self.curves:
                largest = np.unravel_index(int(np.abs(m[name]).argmax()), parameter.shape)
                self.curves[name] = Curve(tuple(map(int, largest)))
            curve = self.curves[name]
            curve.steps.append(step)
            curve.values.append(float(parameter[curve.index]))
            curve.m.append(float(m[name][curve.index]))
            curve.v.append(float(v[name][curve.index]))


def _by_name(moments: object) -> Mapping[str, FloatArray]:
    return cast("Mapping[str, FloatArray]", moments)


def _root_mean_square(array: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
