"""A contest: contenders that do the same work in turns, timed in short blocks."""

import gc
import math
from statistics import median
from time import perf_counter
from timeit import repeat

WARM_UP_SECONDS = 0.02  # the threads of the contender before go on spinning for milliseconds
BLOCK_SECONDS = 0.06
SAMPLE_SECONDS = 0.002  # long beside the clock, short beside an interruption
FEWEST_SAMPLES = 3


class Contest:
    """``contenders``: {name: prepare}. ``arguments()`` makes what they share, and
    ``prepare(*arguments())`` gives the step to be timed. Both are kept until another contest
    begins, since at the largest sizes only one fits into memory.

    ``parameters`` are updated in a step, with ``moved`` bytes (None: not worth saying)."""

    running = None

    def __init__(self, name, title, contenders, arguments, parameters, moved=None):
        self.name, self.title, self.contenders = name, title, contenders
        self.make_arguments, self.parameters, self.moved = arguments, parameters, moved
        self.forget()

    def forget(self):
        self.arguments, self.steps = None, {}
        gc.collect()

    def step(self, contender):
        if Contest.running is not self:
            if Contest.running:
                Contest.running.forget()
            Contest.running = self
            self.arguments = self.make_arguments()
        if contender not in self.steps:
            self.steps[contender] = self.contenders[contender](*self.arguments)
            self.steps[contender]()  # compiles, where there is something to compile
        return self.steps[contender]

    def blocks(self, rounds):
        """(contest, round, contender), the contenders of a round next to each other. Every round
        begins with another one, so that none always follows the same part of a drift."""
        names = list(self.contenders)
        for turn in range(rounds):
            start = turn * len(names) // rounds
            for name in names[start:] + names[:start]:
                yield self, turn, name


def warm_up(step):
    """Repeat the step for a while; the seconds that one takes."""
    fastest, end = math.inf, perf_counter() + WARM_UP_SECONDS
    while True:
        start = perf_counter()
        step()
        now = perf_counter()
        fastest = min(fastest, now - start)
        if now >= end:
            return fastest


def plan(step):
    """(samples, steps a sample) of a block, after a warm-up."""
    expected = warm_up(step)
    iterations = math.ceil(SAMPLE_SECONDS / expected)
    return max(FEWEST_SAMPLES, round(BLOCK_SECONDS / (iterations * expected))), iterations


def time_block(benchmark, step):
    """The median seconds a step over a block of samples; None where benchmarks are disabled."""
    samples, iterations = plan(step)
    benchmark.pedantic(step, rounds=samples, iterations=iterations)
    return benchmark.stats.stats.median if benchmark.enabled else None


def quick_median(step):
    """The same without pytest-benchmark."""
    samples, iterations = plan(step)
    return median(repeat(step, repeat=samples, number=iterations)) / iterations
