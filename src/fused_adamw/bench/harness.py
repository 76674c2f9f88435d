"""A contest: contenders that do the same work in turns, timed in short blocks."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from time import perf_counter
from timeit import repeat
from typing import Any, ClassVar, Self, TypeAlias

Step: TypeAlias = Callable[[], object]
"""What is timed."""

Prepare: TypeAlias = Callable[..., Step]
"""Makes a step of the arguments that all contenders of a contest share."""

WARM_UP_SECONDS = 0.02  # the threads of the contender before go on spinning for milliseconds
BLOCK_SECONDS = 0.06
SAMPLE_SECONDS = 0.002  # long beside the clock, short beside an interruption
FEWEST_SAMPLES = 3


class Contest:
    """``contenders``: {name: prepare}. ``arguments()`` makes what they share, and
    ``prepare(*arguments())`` gives the step to be timed. Both are kept until another contest
    begins, since at the largest sizes only one fits into memory.

    ``parameters`` are updated in a step, with ``moved`` bytes (None: not worth saying), or for some
    contenders ``moved_by_own``, by name."""

    running: ClassVar["Contest | None"] = None

    def __init__(
        self,
        name: str,
        title: str,
        contenders: Mapping[str, Prepare],
        arguments: Callable[[], tuple[Any, ...]],
        parameters: int,
        moved: int | None = None,
        moved_by_own: Mapping[str, float] | None = None,
    ) -> None:
        self.name, self.title, self.contenders = name, title, contenders
        self.make_arguments, self.parameters, self.moved = arguments, parameters, moved
        self.moved_by_own = moved_by_own or {}
        self.arguments: tuple[Any, ...] | None = None
        self.steps: dict[str, Step] = {}

    def forget(self) -> None:
        self.arguments, self.steps = None, {}
        gc.collect()

    def step(self, contender: str) -> Step:
        if Contest.running is not self:
            if Contest.running:
                Contest.running.forget()
            Contest.running = self
        if self.arguments is None:
            self.arguments = self.make_arguments()
        if contender not in self.steps:
            step = self.contenders[contender](*self.arguments)
            step()  # compiles, where there is something to compile
            self.steps[contender] = step
        return self.steps[contender]

    def blocks(self, rounds: int) -> Iterator[tuple[Self, int, str]]:
        """(contest, round, contender), the contenders of a round next to each other. Every round
        begins with another one, so that none always follows the same part of a drift."""
        names = list(self.contenders)
        for turn in range(rounds):
            start = turn * len(names) // rounds
            for name in names[start:] + names[:start]:
                yield self, turn, name


def warm_up(step: Step) -> float:
    """Repeat the step for a while; the seconds that one takes."""
    fastest, end = math.inf, perf_counter() + WARM_UP_SECONDS
    while True:
        start = perf_counter()
        step()
        now = perf_counter()
        fastest = min(fastest, now - start)
        if now >= end:
            return fastest


def plan(step: Step) -> tuple[int, int]:
    """(samples, steps a sample) of a block, after a warm-up."""
    expected = warm_up(step)
    iterations = math.ceil(SAMPLE_SECONDS / expected)
    return max(FEWEST_SAMPLES, round(BLOCK_SECONDS / (iterations * expected))), iterations


def time_block(step: Step) -> float:
    """The median seconds a step over a block of samples."""
    samples, iterations = plan(step)
    return median(repeat(step, repeat=samples, number=iterations)) / iterations
