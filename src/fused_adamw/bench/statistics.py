"""What the blocks of a contest come to: speeds, and ratios within rounds."""

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import NamedTuple, TypeAlias

from .harness import Contest
from .implementations import LIMIT

Blocks: TypeAlias = Mapping[str, Mapping[int, float]]
"""{contender: {round: seconds a step}}"""

COLUMNS = ("", "time a step", "ns/parameter", "GB/s", "of the limit", "times ours", "quartiles")


class Spread(NamedTuple):
    median: float
    quartiles: tuple[float, float]


class Figures(NamedTuple):
    """Of one contender in one contest."""

    name: str
    rounds: int
    seconds: Spread  # a step
    ns_per_parameter: float
    gb_per_s: float | None
    share_of_limit: float | None  # of its speed
    times_ours: Spread | None

    def cells(self, ours: str) -> tuple[str, ...]:
        """The texts below COLUMNS; `ours` has ratios of 1 and needs no quartiles."""
        ratio = self.times_ours
        with_quartiles = ratio is not None and self.name != ours
        return (
            self.name,
            duration(self.seconds.median),
            f"{self.ns_per_parameter:.3f}",
            f"{self.gb_per_s:.1f}" if self.gb_per_s is not None else "",
            f"{self.share_of_limit:.2f}" if self.share_of_limit is not None else "",
            times(ratio.median) if ratio else "",
            " to ".join(map(times, ratio.quartiles)) if ratio and with_quartiles else "",
        )


def figures(contest: Contest, blocks: Blocks, ours: str) -> list[Figures]:
    """In the order of the contest. Speeds are compared within rounds, with those of `ours`."""
    return [
        figures_of(name, contest, blocks, ours) for name in contest.contenders if blocks.get(name)
    ]


def figures_of(name: str, contest: Contest, blocks: Blocks, ours: str) -> Figures:
    seconds = spread(list(blocks[name].values()))
    own = name in contest.moved_by_own  # then the limit, with its arrays, is not one
    moved = contest.moved_by_own.get(name, contest.moved)
    limit = [] if own else ratios(blocks.get(LIMIT, {}), blocks[name])
    to_ours = ratios(blocks[name], blocks.get(ours, {}))
    return Figures(
        name,
        len(blocks[name]),
        seconds,
        seconds.median / contest.parameters * 1e9,
        moved / seconds.median / 1e9 if moved else None,
        median(limit) if limit else None,
        spread(to_ours) if to_ours else None,
    )


def ratios(these: Mapping[int, float], those: Mapping[int, float]) -> list[float]:
    """these / those, a round each."""
    return [these[turn] / those[turn] for turn in these if turn in those]


def spread(values: Sequence[float]) -> Spread:
    if len(values) < 2:
        return Spread(values[0], (values[0], values[0]))
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(middle, (low, high))


def times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}"


def duration(seconds: float) -> str:
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * scale:.3g} {unit}"
