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
from functools import reduce
from typing import Any, TypeAlias

from ._core import as_integer, shown
from ._optim.schedule_arguments import check_rate, check_returned, check_step

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
        return self._rate(check_step(t))

    def then(self, following: Schedule) -> "Joined":
        """Chain another schedule to this one.

        Args:
            following: takes over after ``steps`` steps, and counts from t = 1 again.

        Returns:
            The schedule of both, which can be chained again where ``following`` has ``steps``.

        Raises:
            TypeError, ValueError: as ``Joined``; this schedule must have ``steps``.
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
        _accept(self, "lr")

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
        _accept(self, "peak", "start")
        if self.start > self.peak:
            raise ValueError(f"start must be at most peak ({self.peak!r}); got {self.start!r}")

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
        _accept(self, "start", "end")
        if self.end > self.start:
            raise ValueError(f"end must be at most start ({self.start!r}); got {self.end!r}")

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
        ValueError: ``first`` has no ``steps``, and so never ends, or those of ``following`` are
            less than 1.
    """

    first: _Chainable
    following: Schedule
    steps: int | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.first, _Chainable):
            raise TypeError(f"first must be a schedule of this module; got {shown(self.first)}")
        if self.first.steps is None:
            raise ValueError(
                "first must have `steps`, for another schedule to follow; got a "
                f"{type(self.first).__name__} that never ends"
            )
        if not callable(self.following):
            raise TypeError(
                f"following must be a schedule, a function of t; got {shown(self.following)}"
            )
        after = getattr(self.following, "steps", None)
        if after is not None:
            after = as_integer("following.steps", after, "an int or None", minimum=1)
        object.__setattr__(self, "steps", None if after is None else self.first.steps + after)

    # Thousands may be chained, restarts for one: more calls than Python can nest.

    def _followers(self) -> tuple[_Chainable, list[Schedule]]:
        """The first schedule of a chain, and what follows it, one after another."""
        found: list[Any] = []
        rest: list[Schedule] = [self]
        while rest:
            schedule = rest.pop()
            if isinstance(schedule, Joined):
                rest += schedule.following, schedule.first
            else:
                found.append(schedule)
        return found[0], found[1:]

    def _rate(self, t: int) -> float:
        schedule: Schedule = self
        while isinstance(schedule, Joined):
            before = schedule.first.steps
            if before is None or t <= before:
                schedule = schedule.first
            else:
                schedule, t = schedule.following, t - before
        return check_returned(schedule(t))

    def __repr__(self) -> str:
        first, following = self._followers()
        return f"{first!r}" + "".join(f".then({schedule!r})" for schedule in following)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Joined) and self._followers() == other._followers()

    def __hash__(self) -> int:
        first, following = self._followers()
        return hash((first, *following))

    def __reduce__(self) -> tuple[Any, ...]:
        return _chain, self._followers()


def _chain(first: _Chainable, following: list[Schedule]) -> _Chainable:
    return reduce(Joined, following, first)


def _between(start: float, end: float, fraction: float) -> float:
    return start + (end - start) * fraction


def _accept(schedule: _Chainable, *rates: str) -> None:
    """Check the arguments, rates and the number of steps, and keep them as float and int."""
    for name in rates:
        object.__setattr__(schedule, name, check_rate(name, getattr(schedule, name)))
    if not (isinstance(schedule, Constant) and schedule.steps is None):
        object.__setattr__(schedule, "steps", as_integer("steps", schedule.steps, minimum=1))
