"""Runs ``fused-adamw bench``: our class and every installed implementation, case by case."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from .._io.stop_signals import signal_of
from ..optimizer import AdamW
from .environment import (
    BackgroundLoad,
    Environment,
    fits_in_memory,
    get_environment,
    installed_versions,
)
from .harness import Comparison, Prepare, Step, time_block
from .implementations import IMPLEMENTATIONS, Implementation, Loader
from .implementations.bandwidth_bound import BANDWIDTH_BOUND
from .implementations.base import first_line
from .statistics import Statistics, summarize
from .workloads import ARRAYS_MOVED, CASES, Arrays, Case, draw_with_optimizer

BASELINE = "AdamW"  # what training loops use; all others are compared with it

# ---------------------------------------------------------------------------- the arguments


def prepare_class(params: Arrays, grads: Arrays, optimizer: AdamW) -> Step:
    """The step of the baseline."""
    return lambda: optimizer.step(grads)


def on_moments_of_optimizer(prepare: Prepare) -> Prepare:
    """Prepare an implementation on the moments of our class; see ``draw_with_optimizer``."""
    return lambda params, grads, optimizer: prepare(params, grads, optimizer.m, optimizer.v)


# ---------------------------------------------------------------------------- selection


class Benchmark(NamedTuple):
    """What is to be run."""

    cases: list[Case]
    implementations: list[Implementation]
    dtype: str
    rounds: int


class Skipped(NamedTuple):
    implementation: str | None  # None: all of them
    case: str
    reason: str


class CaseResult(NamedTuple):
    case: Case
    title: str
    statistics: list[Statistics]


class Results:
    """The results so far.

    Attributes:
        versions: {package: version} of the implementations that were timed.
        skipped: what was not timed, though it could have been.
        unavailable: {implementation: why it could not be loaded, or where it failed}.
        background_load: of other processes, from 0 to 1; None before the first measurement.
        stop_signal: the number of the signal that ended the run, such as SIGINT (Ctrl-C); 0 if none
            did.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self.environment: Environment = get_environment()
        self.versions: dict[str, str] = {}
        self.cases: list[CaseResult] = []
        self.skipped: list[Skipped] = []
        self.unavailable: dict[str, str] = {}
        self.background_load: float | None = None
        self.stop_signal = 0


def arranged(
    cases: Sequence[str] | None, implementations: Sequence[str] | None, dtype: str, rounds: int
) -> Benchmark:
    """The benchmark of these cases and implementations; None stands for all of them.

    Our class and the bandwidth bound are always included.

    Raises ValueError for an unknown name, or where no case fits into memory.
    """
    chosen = _select("case", cases, CASES)
    selected = _select("implementation", implementations, IMPLEMENTATIONS)
    if BANDWIDTH_BOUND not in selected:
        selected.append(BANDWIDTH_BOUND)
    if all(too_large(case, dtype) for case in chosen):
        raise ValueError(f"case {chosen[0].name} {too_large(chosen[0], dtype)}")
    return Benchmark(chosen, selected, dtype, rounds)


def is_drawn(benchmark: Benchmark) -> bool:
    """Whether a chart would show anything."""
    return any(case.drawn for case in benchmark.cases)


Item = TypeVar("Item")


def _select(kind: str, names: Sequence[str] | None, items: Mapping[str, Item]) -> list[Item]:
    for name in names or ():
        if name not in items:
            raise ValueError(f"{kind} must be one of {', '.join(items)}; got {name!r}")
    return [item for name, item in items.items() if not names or name in names]


def too_large(case: Case, dtype: str, arrays: float = 4) -> str | None:
    """Why this machine has no memory for that many arrays; None where it has."""
    nbytes = arrays * case.num_parameters * np.dtype(dtype).itemsize
    if fits_in_memory(nbytes):
        return None
    return f"needs {nbytes / 1e9:.1f} GB, which would leave less than a fifth of the memory free"


def reason_to_skip(
    implementation: Implementation, case: Case, dtype: str, extra_arrays: float = 0
) -> str | None:
    """Why an implementation is not timed; ``extra_arrays`` are those that others keep meanwhile."""
    return implementation.unsuitable(case.num_parameters, dtype) or too_large(
        case, dtype, implementation.peak_arrays + extra_arrays
    )


# ---------------------------------------------------------------------------- run

Show = Callable[[str, int, int], None]
"""Called with what comes next, the number of blocks done, and the number of all blocks."""


def run(benchmark: Benchmark, show: Show) -> Results:
    """Run it to the end, or until Ctrl-C, or what is raised as that is."""
    results = Results(benchmark)
    with Loader() as loader:
        try:
            comparisons = list(_load_comparisons(results, loader, show))
            _time_comparisons(comparisons, results, show)
        except KeyboardInterrupt as error:
            results.stop_signal = signal_of(error)
    return results


def _load_comparisons(
    results: Results, loader: Loader, show: Show
) -> Iterator[tuple[Case, Comparison]]:
    """Load what takes part somewhere; note what does not, and why."""
    benchmark, packages = results.benchmark, ["numpy"]
    for case in benchmark.cases:
        if reason := too_large(case, benchmark.dtype):
            results.skipped.append(Skipped(None, case.name, reason))
            continue
        prepares: dict[str, Prepare] = {BASELINE: prepare_class}
        own_bytes: dict[str, float] = {}
        extra_arrays = 0.0
        for implementation in benchmark.implementations:
            name = implementation.name
            if reason := reason_to_skip(implementation, case, benchmark.dtype, extra_arrays):
                results.skipped.append(Skipped(name, case.name, reason))
                continue
            show(f"loading {name}", 0, 1)
            if (prepare := loader.load(implementation)) is None:
                results.unavailable[name] = loader.unavailable[name]
                continue
            prepares[name] = on_moments_of_optimizer(prepare)
            packages += implementation.packages
            extra_arrays += implementation.extra_arrays
            if implementation.bytes_per_parameter:
                own_bytes[name] = implementation.bytes_per_parameter * case.num_parameters
        results.versions = installed_versions(dict.fromkeys(packages))
        yield case, _make_comparison(case, prepares, benchmark.dtype, own_bytes)


def _make_comparison(
    case: Case, prepares: dict[str, Prepare], dtype: str, own_bytes_moved: dict[str, float]
) -> Comparison:
    return Comparison(
        case.name,
        f"{case.title}, {dtype}: {case.num_parameters:,} parameters",
        prepares,
        lambda: draw_with_optimizer(case.shapes, dtype),
        case.num_parameters,
        ARRAYS_MOVED * case.num_parameters * np.dtype(dtype).itemsize,
        own_bytes_moved,
    )


def _time_comparisons(
    comparisons: list[tuple[Case, Comparison]], results: Results, show: Show
) -> None:
    rounds = results.benchmark.rounds
    total = sum(rounds * len(comparison.implementations) for _, comparison in comparisons)
    background, done = BackgroundLoad(), 0
    for case, comparison in comparisons:
        blocks: dict[str, dict[int, float]] = {}
        try:
            for _, turn, name in comparison.blocks(rounds):
                show(f"{case.name}: {name}", done, total)
                if (seconds := _try_block(comparison, name, results.unavailable)) is not None:
                    blocks.setdefault(name, {})[turn] = seconds
                done += 1
        finally:
            comparison.release()
            results.background_load = background.share()
            if blocks:
                statistics = summarize(comparison, blocks, BASELINE, BANDWIDTH_BOUND.name)
                results.cases.append(CaseResult(case, comparison.title, statistics))
    show("done", done, total)


def _try_block(comparison: Comparison, name: str, unavailable: dict[str, str]) -> float | None:
    """The seconds of a step; None where the implementation fails, which does not end the run."""
    if name in unavailable:
        return None
    try:
        return time_block(comparison.step(name))
    except Exception as error:
        unavailable[name] = f"failed in {comparison.name}: {first_line(error)}"
        return None
