"""Learning-rate schedules: functions of the number of a step, t = 1, 2, ..., for ``AdamW(lr=...)``.

They are joined with ``then``. Warm-up to 0.001 over 100 steps, then a cosine down to 0.0001 over
900, and 0.0001 from there on::

    AdamW(params, lr=LinearWarmup(1e-3, 100).then(CosineDecay(1e-3, 900, end=1e-4)))

No step is spent at a rate of zero: a warm-up arrives, the rate of its last step being the peak; a
decay departs, the rate of its first step being the one that it starts from, and ``end`` that of the
first step after it. After its last step a schedule that is not joined to another keeps its rate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field


class _Schedule:
    """What schedules have in common: they check t, and can be joined."""

    steps: int | None

    def __call__(self, t: int) -> float:
        """The learning rate of step t, which is 1 or more."""
        if not t >= 1:
            raise ValueError(f"t is {t!r}; expected the number of a step: 1, 2, 3, ...")
        return self._rate(t)

    def then(self, following: Callable[[int], float]) -> "Joined":
        """This schedule for its number of steps, then ``following``, which counts from 1 again.

        ``following`` is a schedule, or any function of the number of a step.
        """
        return Joined(self, following)

    def _rate(self, t: int) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(_Schedule):
    """The same rate at every step::

        lr(t) = lr

    The rate of the original algorithm (Kingma & Ba 2015, "Adam: A Method for Stochastic
    Optimization", arXiv:1412.6980). ``steps`` says when ``then`` goes on to the next schedule; it
    changes nothing else.
    """

    lr: float
    steps: int | None = None

    def __post_init__(self) -> None:
        _accept_rate(self, "lr")
        if self.steps is not None:
            _require_steps(self.steps)

    def _rate(self, t: int) -> float:
        return self.lr


@dataclass(frozen=True)
class LinearWarmup(_Schedule):
    """Up by the same amount each step::

        lr(t) = start + (peak - start) t / steps    for t <= steps, then peak

    Gradual warm-up (Goyal et al. 2017, "Accurate, Large Minibatch SGD: Training ImageNet in 1
    Hour", section 2.2, arXiv:1706.02677).
    """

    peak: float
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        _accept_rate(self, "peak")
        _accept_rate(self, "start")
        _require_steps(self.steps)
        if self.start > self.peak:
            raise ValueError(f"start is {self.start!r}; expected at most peak, {self.peak!r}")

    def _rate(self, t: int) -> float:
        # The last rate is the argument itself, not what a sum rounds to.
        return _between(self.start, self.peak, t / self.steps) if t < self.steps else self.peak


@dataclass(frozen=True)
class _Decay(_Schedule):
    """From ``start`` at the first step down to ``end`` behind the last."""

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _accept_rate(self, "start")
        _accept_rate(self, "end")
        _require_steps(self.steps)
        if self.end > self.start:
            raise ValueError(f"end is {self.end!r}; expected at most start, {self.start!r}")

    def _rate(self, t: int) -> float:
        if t > self.steps:
            return self.end
        return _between(self.start, self.end, self._part((t - 1) / self.steps))

    def _part(self, elapsed: float) -> float:
        """The part of the way down that is behind at this part of the steps."""
        raise NotImplementedError


@dataclass(frozen=True)
class LinearDecay(_Decay):
    """Down by the same amount each step::

        lr(t) = start + (end - start) (t - 1) / steps    for t <= steps, then end

    As after the warm-up of BERT (Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional
    Transformers", appendix A.2, arXiv:1810.04805); why it does well: Defazio et al. 2023, "When,
    Why and How Much? Adaptive Learning Rate Scheduling by Refinement", arXiv:2310.07831.
    """

    def _part(self, elapsed: float) -> float:
        return elapsed


@dataclass(frozen=True)
class CosineDecay(_Decay):
    """Down along half a period of a cosine::

        lr(t) = end + (start - end) (1 + cos(pi (t - 1) / steps)) / 2    for t <= steps, then end

    One period of SGDR (Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm
    Restarts", equation 5, arXiv:1608.03983). Restarts are such schedules, joined.
    """

    def _part(self, elapsed: float) -> float:
        # The formula, turned round so that the first rate is exactly start.
        return (1 - math.cos(math.pi * elapsed)) / 2


@dataclass(frozen=True)
class Joined(_Schedule):
    """One schedule after the other, as ``first.then(following)`` makes it::

        lr(t) = first(t)    for t <= first.steps, then following(t - first.steps)

    ``steps`` is the number of both together; None where the second has none.
    """

    first: _Schedule
    following: Callable[[int], float]
    steps: int | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.first.steps is None:
            raise ValueError(f"{self.first!r} has no end: nothing can follow it")
        if not callable(self.following):
            raise TypeError(f"following is {self.following!r}; expected a schedule")
        after = getattr(self.following, "steps", None)
        object.__setattr__(self, "steps", None if after is None else self.first.steps + after)

    def _rate(self, t: int) -> float:
        before = self.first.steps
        if before is None or t <= before:
            return self.first(t)
        return float(self.following(t - before))

    def __repr__(self) -> str:
        return f"{self.first!r}.then({self.following!r})"


def _between(start: float, end: float, part: float) -> float:
    return start + (end - start) * part


def _accept_rate(schedule: _Schedule, name: str) -> None:
    """Check a rate and make it a float, so that a NumPy scalar does not set the precision."""
    value = getattr(schedule, name)
    try:
        valid = math.isfinite(value) and value >= 0
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected a number, 0 or more") from None
    if not valid:
        raise ValueError(f"{name} is {value!r}; expected a finite number, 0 or more")
    object.__setattr__(schedule, name, float(value))


def _require_steps(steps: int) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"steps is {steps!r}; expected an integer, 1 or more")
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected 1 or more")
