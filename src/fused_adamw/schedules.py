"""Learning-rate schedules for ``AdamW(lr=...)``: functions of the step t = 1, 2, ...

``then`` chains them. Warm-up to 0.001 over 100 steps, then a cosine down to 0.0001 over 900 steps,
and 0.0001 from there on::

    AdamW(params, lr=LinearWarmup(1e-3, 100).then(CosineDecay(1e-3, 900, end=1e-4)))

No step is spent at a rate of zero. The last step of a warm-up has the peak rate; the first step of
a decay has the rate that it starts from, and ``end`` is the rate of the first step after it. After
its last step a schedule keeps its rate, unless another one is chained to it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from ._core import as_integer, as_number, shown

__all__ = [
    "Constant",
    "CosineDecay",
    "Joined",
    "LinearDecay",
    "LinearWarmup",
    "Schedule",
]

Schedule: TypeAlias = Callable[[int], float]
"""The learning rate as a function of the step t = 1, 2, ...; any such function will do."""


class _Chainable:
    """The base of the schedules here: they check t, and can be chained."""

    steps: int | None

    def __call__(self, t: int) -> float:
        """Return the learning rate of step t.

        Raises:
            TypeError: t is not a number.
            ValueError: t is less than 1.
        """
        try:
            is_step = t >= 1 if getattr(t, "ndim", 0) == 0 else None
        except TypeError:
            is_step = None
        if is_step is None:
            raise TypeError(f"t must be a step number 1, 2, 3, ...; got {shown(t)}")
        if not is_step:
            raise ValueError(f"t must be a step number 1, 2, 3, ...; got {shown(t)}")
        return self._rate(t)

    def then(self, following: Schedule) -> "Joined":
        """Chain another schedule to this one.

        Args:
            following: takes over after ``steps`` steps, and counts from t = 1 again.

        Returns:
            The schedule of both, which can be chained again.

        Raises:
            TypeError: ``following`` cannot be called.
            ValueError: this schedule has no ``steps``, and so never ends.
        """
        return Joined(self, following)

    def _rate(self, t: int) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(_Chainable):
    """The same rate at every step::

        lr(t) = lr

    The rate of the original algorithm (Kingma & Ba 2015, "Adam: A Method for Stochastic
    Optimization", arXiv:1412.6980).

    Args:
        lr: the rate, at least 0.
        steps: after how many steps a chained schedule takes over; nothing else depends on it.

    Raises:
        TypeError: an argument is not a number, or ``steps`` is not an integer.
        ValueError: a rate is negative or not finite, or ``steps`` is less than 1.
    """

    lr: float
    steps: int | None = None

    def __post_init__(self) -> None:
        _accept_rate(self, "lr")
        if self.steps is not None:
            _accept_steps(self)

    def _rate(self, t: int) -> float:
        return self.lr


@dataclass(frozen=True)
class LinearWarmup(_Chainable):
    """Up by the same amount each step::

        lr(t) = start + (peak - start) t / steps    for t <= steps, then peak

    Gradual warm-up (Goyal et al. 2017, "Accurate, Large Minibatch SGD: Training ImageNet in 1
    Hour", section 2.2, arXiv:1706.02677).

    Args:
        peak: the rate of the last step.
        steps: the number of steps, at least 1.
        start: the rate that the first step is one increment above; at most ``peak``.

    Raises:
        TypeError: an argument is not a number, or ``steps`` is not an integer.
        ValueError: a rate is negative or not finite, ``start`` exceeds ``peak``, or ``steps`` is
            less than 1.
    """

    peak: float
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        _accept_rate(self, "peak")
        _accept_rate(self, "start")
        _accept_steps(self)
        if self.start > self.peak:
            raise ValueError(f"start must be <= peak ({self.peak!r}); got {self.start!r}")

    def _rate(self, t: int) -> float:
        # The last rate is the argument itself, not what a sum rounds to.
        return _between(self.start, self.peak, t / self.steps) if t < self.steps else self.peak


@dataclass(frozen=True)
class _Decay(_Chainable):
    """From ``start`` at the first step down to ``end`` after the last."""

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _accept_rate(self, "start")
        _accept_rate(self, "end")
        _accept_steps(self)
        if self.end > self.start:
            raise ValueError(f"end must be <= start ({self.start!r}); got {self.end!r}")

    def _rate(self, t: int) -> float:
        if t > self.steps:
            return self.end
        return _between(self.start, self.end, self._decayed((t - 1) / self.steps))

    def _decayed(self, elapsed: float) -> float:
        """The fraction of the way down after this fraction of the steps."""
        raise NotImplementedError


@dataclass(frozen=True)
class LinearDecay(_Decay):
    """Down by the same amount each step::

        lr(t) = start + (end - start) (t - 1) / steps    for t <= steps, then end

    As after the warm-up of BERT (Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional
    Transformers", appendix A.2, arXiv:1810.04805); why it does well: Defazio et al. 2023, "When,
    Why and How Much? Adaptive Learning Rate Scheduling by Refinement", arXiv:2310.07831.

    Args:
        start: the rate of the first step.
        steps: the number of steps, at least 1.
        end: the rate of the first step after them; at most ``start``.

    Raises:
        TypeError: an argument is not a number, or ``steps`` is not an integer.
        ValueError: a rate is negative or not finite, ``end`` exceeds ``start``, or ``steps`` is
            less than 1.
    """

    def _decayed(self, elapsed: float) -> float:
        return elapsed


@dataclass(frozen=True)
class CosineDecay(_Decay):
    """Down along half a period of a cosine::

        lr(t) = end + (start - end) (1 + cos(pi (t - 1) / steps)) / 2    for t <= steps, then end

    One period of SGDR (Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm
    Restarts", equation 5, arXiv:1608.03983). Restarts are such schedules, chained.

    Args:
        start: the rate of the first step.
        steps: the number of steps, at least 1.
        end: the rate of the first step after them; at most ``start``.

    Raises:
        TypeError: an argument is not a number, or ``steps`` is not an integer.
        ValueError: a rate is negative or not finite, ``end`` exceeds ``start``, or ``steps`` is
            less than 1.
    """

    def _decayed(self, elapsed: float) -> float:
        # The formula, rearranged so that the first rate is exactly start.
        return (1 - math.cos(math.pi * elapsed)) / 2


@dataclass(frozen=True)
class Joined(_Chainable):
    """One schedule after another, as ``first.then(following)`` makes it::

        lr(t) = first(t)    for t <= first.steps, then following(t - first.steps)

    Args:
        first: a schedule with ``steps``.
        following: a schedule that counts from t = 1 again.

    Attributes:
        steps: the number of steps of both together; None where the second never ends.

    Raises:
        TypeError: ``first`` is not one of these schedules, ``following`` cannot be called, or its
            ``steps`` are neither an int nor None.
        ValueError: ``first`` has no ``steps``, and so never ends.
    """

    first: _Chainable
    following: Schedule
    steps: int | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.first, _Chainable):
            raise TypeError(f"first must be a schedule of this module; got {shown(self.first)}")
        if self.first.steps is None:
            raise ValueError(
                f"{type(self.first).__name__} without `steps` never ends; give it `steps` to chain "
                "another schedule"
            )
        if not callable(self.following):
            raise TypeError(
                f"following must be a schedule, a function of t; got {shown(self.following)}"
            )
        after = getattr(self.following, "steps", None)
        if after is not None:
            after = as_integer("following.steps", after, "an int or None")
        object.__setattr__(self, "steps", None if after is None else self.first.steps + after)

    def _rate(self, t: int) -> float:
        before = self.first.steps
        if before is None or t <= before:
            return self.first(t)
        rate = self.following(t - before)
        try:
            return float(as_number("following", rate))
        except TypeError:
            raise TypeError(f"following must return a number; got {shown(rate)}") from None
        except (ValueError, OverflowError):
            raise ValueError(
                "following must return a number within the range of float64; got one beyond it"
            ) from None

    def __repr__(self) -> str:
        return f"{self.first!r}.then({self.following!r})"


def _between(start: float, end: float, fraction: float) -> float:
    return start + (end - start) * fraction


def _accept_rate(schedule: _Chainable, name: str) -> None:
    """Check a rate and make it a float, so that a NumPy scalar does not set the precision."""
    value = getattr(schedule, name)
    try:
        rate = float(as_number(name, value))
    except TypeError:
        raise TypeError(f"{name} must be a number >= 0; got {shown(value)}") from None
    except (ValueError, OverflowError):  # beyond float64
        rate = math.inf
    if not (math.isfinite(rate) and value >= 0):
        raise ValueError(f"{name} must be a finite number >= 0; got {shown(value)}")
    object.__setattr__(schedule, name, rate)


def _accept_steps(schedule: _Chainable) -> None:
    """Check the number of steps and make it an int, so that it is shown as one."""
    value = as_integer("steps", schedule.steps, "an integer >= 1")
    if value < 1:
        raise ValueError(f"steps must be an integer >= 1; got {shown(value)}")
    object.__setattr__(schedule, "steps", value)
