"""Interleaved timing: implementations do the same work and take turns, in short blocks."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from timeit import repeat
from typing import Any, Self, TypeAlias

Step: TypeAlias = Callable[[], object]
"""The call that is timed."""

Prepare: TypeAlias = Callable[..., Step]
"""Makes a step from the arguments that all implementations of a comparison share."""

WARM_UP_SECONDS = 0.02  # the threads of the previous implementation spin for milliseconds
BLOCK_SECONDS = 0.06
SAMPLE_SECONDS = 0.002  # long compared with the clock, short compared with an interruption
MIN_SAMPLES = 3


@dataclass(eq=False)
class Comparison:
    """Implementations that are timed on the same arguments.

    The arguments and the steps are made when they are first needed and kept until ``release``: the
    largest sizes fit into memory only once.

    Attributes:
        name: short, for progress and test ids.
        title: for the heading of its table.
        implementations: {name: function of the arguments that returns the step to be timed}.
        make_arguments: makes the arguments that all implementations share.
        num_parameters: the number of parameters that a step updates.
        bytes_moved: the bytes that a step reads and writes; None where that says nothing.
        own_bytes_moved: the same by name, for implementations that move a different number.
    """

    name: str
    title: str
    implementations: Mapping[str, Prepare]
    make_arguments: Callable[[], tuple[Any, ...]]
    num_parameters: int
    bytes_moved: float | None = None
    own_bytes_moved: Mapping[str, float] = field(default_factory=dict)
    _arguments: tuple[Any, ...] | None = field(default=None, init=False, repr=False)
    _steps: dict[str, Step] = field(default_factory=dict, init=False, repr=False)

    def release(self) -> None:
        """Free the arguments and the steps."""
        self._arguments, self._steps = None, {}
        gc.collect()

    def step(self, implementation: str) -> Step:
        """The step of an implementation, prepared and called once."""
        if self._arguments is None:
            self._arguments = self.make_arguments()
        if implementation not in self._steps:
            step = self.implementations[implementation](*self._arguments)
            step()  # compiles, where there is something to compile
            self._steps[implementation] = step
        return self._steps[implementation]

    def blocks(self, rounds: int) -> Iterator[tuple[Self, int, str]]:
        """Yield (comparison, round, implementation), round by round.

        Each round starts with a different implementation, so that none always follows the same
        one, or always comes first while the machine drifts.
        """
        names = list(self.implementations)
        for turn in range(rounds):
            start = turn * len(names) // rounds
            for name in names[start:] + names[:start]:
                yield self, turn, name


def time_block(step: Step) -> float:
    """The median of the seconds a step, over one block of samples."""
    samples, iterations = choose_samples(step)
    return median(repeat(step, repeat=samples, number=iterations)) / iterations


def choose_samples(step: Step) -> tuple[int, int]:
    """Warm up; return the number of samples of a block and of steps a sample."""
    expected = _warm_up(step)
    iterations = math.ceil(SAMPLE_SECONDS / expected)
    return max(MIN_SAMPLES, round(BLOCK_SECONDS / (iterations * expected))), iterations


def _warm_up(step: Step) -> float:
    """Repeat the step for WARM_UP_SECONDS; return the seconds of the fastest one."""
    fastest, end = math.inf, perf_counter() + WARM_UP_SECONDS
    while True:
        start = perf_counter()
        step()
        now = perf_counter()
        fastest = min(fastest, now - start)
        if now >= end:
            return fastest
