"""Learning rates tried one after the other: what loss each leads to, and which is the best."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from .train_loop import DIVERGED, OptimizerName, TrainingResult

# Rates are 10^(k/2): half a decade apart. Each sweep has those from 0.0001 to 1, the middle ones
# first, and goes on beyond them while the outermost is the best, or works.
MIDDLE, LOWEST, HIGHEST = -6, -8, 0
MIN_EXPONENT, MAX_EXPONENT = -14, 8
WORKING_SHARE = 0.9  # of the way from chance to the best loss


def rate_of(k: int) -> float:
    """Return 10^(k/2) to three digits."""
    return float(f"{10 ** (k / 2):.3g}")


@dataclass
class Sweep:
    """The training runs of one optimizer at different rates.

    Attributes:
        optimizer: its name.
        chance: the loss of guessing.
        losses: the loss of each training run by rate, on held-out text where there is some;
            infinite where it became non-finite.
        best: the training run with the lowest loss; None before the first has ended.
        interrupted: the training run that a signal has ended, if any.
    """

    optimizer: OptimizerName
    chance: float
    losses: dict[float, float] = field(default_factory=dict)
    best: TrainingResult | None = None
    interrupted: TrainingResult | None = None

    @property
    def best_loss(self) -> float:
        """The lowest loss; infinite where all training runs have diverged."""
        return min(self.losses.values(), default=math.inf)

    @property
    def is_swept(self) -> bool:
        """Whether its best rate was looked for: it is not one that was given."""
        return len(self.losses) > 1

    @property
    def diverged(self) -> bool:
        """Whether all training runs that have ended have diverged."""
        return self.has_diverged(self.best_loss)

    def has_diverged(self, loss: float) -> bool:
        """Whether a training run with this final loss has diverged."""
        return loss > DIVERGED * self.chance

    @property
    def shown(self) -> TrainingResult | None:
        """The training run to show: the best one, or what there is of the first."""
        return self.interrupted if self.best is None else self.best

    def add(self, result: TrainingResult) -> None:
        """Add the training run at a rate."""
        if result.history.interrupted:
            self.interrupted = result
            return
        is_best = self.best is None or result.outcome < self.best_loss
        self.losses[result.lr] = result.outcome
        if is_best:
            self.best = result

    def working(self, best: float | None = None) -> list[float]:
        """Return the rates that reach `working_loss` of `best`, or of the lowest loss here: those
        around the best rate without a gap, since training at a rate beyond one is chaotic."""
        enough = working_loss(self.chance, self.best_loss if best is None else best)
        for works, rates in groupby(sorted(self.losses), lambda lr: self.losses[lr] <= enough):
            row = list(rates)
            if works and self.best_loss in map(self.losses.get, row):
                return row
        return []


def working_loss(chance: float, best: float) -> float:
    """Return the loss that is most of the way from chance to the best one."""
    return chance - WORKING_SHARE * (chance - best) if best < chance else best


def on_held_out_text(sweeps: Iterable[Sweep]) -> bool:
    """Whether their losses are those on held-out text."""
    return any(s.best is not None and s.best.final_held_out_loss is not None for s in sweeps)


def sweep_rates(
    optimizer: OptimizerName, chance: float, train_at: Callable[[float], TrainingResult]
) -> Sweep:
    """Train at all rates of a sweep, or until a signal ends one of the training runs."""
    sweep = Sweep(optimizer, chance)
    for k in _exponents(sweep):
        sweep.add(train_at(rate_of(k)))
        if sweep.interrupted is not None:
            break
    return sweep


def _exponents(sweep: Sweep) -> Iterator[int]:
    """Yield the exponents of the rates to try next, until `sweep` needs no more of them."""
    yield from sorted(range(LOWEST, HIGHEST + 1), key=lambda k: (abs(k - MIDDLE), -k))
    for outermost, sign, last in ((HIGHEST, 1, MAX_EXPONENT), (LOWEST, -1, MIN_EXPONENT)):
        k = outermost
        while k != last and rate_of(k) in sweep.working():
            k += sign
            yield k
