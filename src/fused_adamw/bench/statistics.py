"""Statistics of a comparison: medians and quartiles over its rounds, ratios within rounds."""

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import NamedTuple, TypeAlias

from .harness import Comparison

Blocks: TypeAlias = Mapping[str, Mapping[int, float]]
"""{implementation: {round: seconds a step}}"""


class Quartiles(NamedTuple):
    median: float
    quartiles: tuple[float, float]


class Statistics(NamedTuple):
    """One implementation in one comparison.

    Attributes:
        rounds: the number of rounds in which it was timed.
        seconds: of a step.
        gb_per_s: 1e9 bytes read and written a second; None where they are not counted.
        share_of_bound: its speed divided by that of the bandwidth bound; None where that was not
            timed or moves a different number of bytes.
        relative_time: its time divided by that of the baseline.
    """

    name: str
    rounds: int
    seconds: Quartiles
    ns_per_parameter: float
    gb_per_s: float | None
    share_of_bound: float | None
    relative_time: Quartiles | None


def summarize(
    comparison: Comparison, blocks: Blocks, baseline: str, bound: str
) -> list[Statistics]:
    """Statistics of the implementations that were timed, in the order of the comparison.

    Args:
        blocks: what was measured.
        baseline: the implementation whose time is the unit of ``relative_time``.
        bound: the implementation that shows the memory bandwidth.
    """
    return [
        _summarize_one(name, comparison, blocks, baseline, bound)
        for name in comparison.implementations
        if blocks.get(name)
    ]


def _summarize_one(
    name: str, comparison: Comparison, blocks: Blocks, baseline: str, bound: str
) -> Statistics:
    seconds = quartiles_of(list(blocks[name].values()))
    bytes_moved = comparison.own_bytes_moved.get(name, comparison.bytes_moved)
    same_bytes = name not in comparison.own_bytes_moved
    to_bound = ratios(blocks.get(bound, {}), blocks[name]) if same_bytes else []
    to_baseline = ratios(blocks[name], blocks.get(baseline, {}))
    return Statistics(
        name,
        len(blocks[name]),
        seconds,
        seconds.median / comparison.num_parameters * 1e9,
        bytes_moved / seconds.median / 1e9 if bytes_moved else None,
        median(to_bound) if to_bound else None,
        quartiles_of(to_baseline) if to_baseline else None,
    )


def ratios(numerators: Mapping[int, float], denominators: Mapping[int, float]) -> list[float]:
    """One ratio for each round that has both."""
    return [numerators[turn] / denominators[turn] for turn in numerators if turn in denominators]


def quartiles_of(values: Sequence[float]) -> Quartiles:
    """Median and quartiles of one value or more."""
    if len(values) < 2:
        return Quartiles(values[0], (values[0], values[0]))
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Quartiles(middle, (low, high))
