"""The content of a report: headings, paragraphs and tables for people, a record for programs.

It is data; ``fused_adamw.cli`` renders it.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple, TypeAlias

from ..runtime import __version__
from .environment import describe
from .implementations import ours
from .implementations.bandwidth_bound import BANDWIDTH_BOUND
from .runner import BASELINE, CaseResult, Results, Skipped
from .statistics import Quartiles, Statistics
from .workloads import Case

# ---------------------------------------------------------------------------- for people


class Heading(NamedTuple):
    text: str


class Paragraph(NamedTuple):
    text: str


class Table(NamedTuple):
    """A first column of text, and columns of numbers; ``emphasized`` is the name of a row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    emphasized: str


Part: TypeAlias = Heading | Paragraph | Table

COLUMNS = (
    *("", "time per\nstep", "ns per\nparameter"),
    *("GB/s", "share of\nbound", "relative\ntime", "quartiles"),
)
EXPLANATION = (
    f"{BASELINE} is the class of this package. Relative time is the time of a step divided by that "
    f"of {BASELINE} in the same round. {BANDWIDTH_BOUND.name} is a C loop with the same loads and "
    "stores and almost no arithmetic; share of bound is the speed relative to it. A format "
    "after a name is that of the moments; with all- it is that of parameters and gradients too. "
    "GB/s counts the bytes that each implementation moves."
)

MAX_BACKGROUND_LOAD = 0.1
DISTURBED = (
    "Warning: other processes were busy. Where threads wait for a core, the rows show the "
    "scheduler, not the code. Repeat the benchmark on an idle machine."
)


def summary(results: Results) -> Iterator[Part]:
    """What people read, part by part."""
    yield Heading("One AdamW step")
    yield Paragraph("\n".join(_header(results)))
    for case in results.cases:
        rows = [format_row(statistics, BASELINE) for statistics in case.statistics]
        yield Table(case.title, COLUMNS, rows, BASELINE)
    yield Paragraph(EXPLANATION)
    if results.background_load is not None and results.background_load > MAX_BACKGROUND_LOAD:
        yield Paragraph(DISTURBED)
    for title, lines in (
        ("Unavailable", _unavailable_lines(results.unavailable)),
        ("Skipped", _skipped_lines(results.skipped)),
    ):
        if lines:
            yield Heading(title)
            yield Paragraph("\n".join(lines))
    if results.stop_signal:
        yield Heading("Interrupted: these are the results so far.")


def format_row(statistics: Statistics, baseline: str) -> tuple[str, ...]:
    """The texts under COLUMNS. The ratios of the baseline are all 1, so it gets no quartiles."""
    ratio, bound = statistics.relative_time, statistics.share_of_bound
    has_quartiles = ratio is not None and statistics.name != baseline
    return (
        statistics.name,
        format_duration(statistics.seconds.median),
        f"{statistics.ns_per_parameter:.3f}",
        f"{statistics.gb_per_s:.1f}" if statistics.gb_per_s is not None else "",
        f"{bound:.2f}" if bound is not None else "",
        format_ratio(ratio.median) if ratio else "",
        "-".join(map(format_ratio, ratio.quartiles)) if ratio and has_quartiles else "",
    )


def format_ratio(ratio: float) -> str:
    decimals = 2 if ratio < 10 else 1 if ratio < 100 else 0
    return f"{ratio:.{decimals}f}"


def format_duration(seconds: float) -> str:
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * scale:.3g} {unit}"


def _header(results: Results) -> list[str]:
    rounds = f"medians of interleaved rounds of short blocks; rounds: {results.benchmark.rounds}"
    about = describe(results.environment, results.background_load, results.versions)
    return [*about, rounds]


def _unavailable_lines(unavailable: dict[str, str]) -> list[str]:
    return [f"{names}: {reason}" for reason, names in _group_by_value(unavailable.items())]


def _skipped_lines(skipped: list[Skipped]) -> list[str]:
    """A line for each implementation and reason, and for each case that was not run at all."""
    pairs = ((item.case, (item.implementation, item.reason)) for item in skipped)
    return [
        f"{implementation} in {cases}: {reason}" if implementation else f"{cases}: {reason}"
        for (implementation, reason), cases in _group_by_value(pairs)
    ]


def _group_by_value(pairs: Iterable[tuple[str, Any]]) -> list[tuple[Any, str]]:
    """[(value, the names that have it, joined by commas)]"""
    names: dict[Any, list[str]] = {}
    for name, value in pairs:
        names.setdefault(value, []).append(name)
    return [(value, ", ".join(group)) for value, group in names.items()]


# ---------------------------------------------------------------------------- for programs


def record(results: Results) -> dict[str, Any]:
    """The results as JSON has them; benches/README.md describes the keys."""
    return {
        "version": __version__,
        "dtype": results.benchmark.dtype,
        "rounds": results.benchmark.rounds,
        "baseline": BASELINE,
        "environment": {**results.environment, "background_load": results.background_load},
        "versions": results.versions,
        "cases": [_case_record(case) for case in results.cases],
        "unavailable": results.unavailable,
        "skipped": [item._asdict() for item in results.skipped],
        "interrupted": results.stop_signal != 0,
    }


def _case_record(result: CaseResult) -> dict[str, Any]:
    return {
        "name": result.case.name,
        "title": result.title,
        "parameters": result.case.num_parameters,
        "tensors": len(result.case.shapes),
        "implementations": [_implementation_record(item) for item in result.statistics],
    }


def _implementation_record(statistics: Statistics) -> dict[str, Any]:
    return {
        "name": statistics.name,
        "rounds": statistics.rounds,
        "seconds": _quartiles_record(statistics.seconds),
        "ns_per_parameter": statistics.ns_per_parameter,
        "gb_per_s": statistics.gb_per_s,
        "share_of_bound": statistics.share_of_bound,
        "relative_time": _quartiles_record(statistics.relative_time),
    }


def _quartiles_record(values: Quartiles | None) -> dict[str, Any] | None:
    return values and {"median": values.median, "quartiles": list(values.quartiles)}


# ---------------------------------------------------------------------------- the chart


class Role(Enum):
    """How the line of an implementation is drawn."""

    OURS = auto()
    ALSO_OURS = auto()
    OTHER = auto()
    BANDWIDTH_BOUND = auto()


class Point(NamedTuple):
    """Medians and quartiles of ns per parameter at one number of parameters."""

    parameters: int
    ns_per_parameter: float
    low: float
    high: float


class Line(NamedTuple):
    """One implementation, from size to size."""

    label: str
    role: Role
    points: Sequence[Point]


class Chart(NamedTuple):
    lines: list[Line]
    title: str
    caption: str


OUR_IMPLEMENTATIONS = (
    *(ours.FUNCTION, ours.TORCH),
    *(ours.STATE_8BIT, ours.STATE_BFLOAT16, ours.ALL_BFLOAT16),
)
ROLES = {
    BASELINE: Role.OURS,
    **{implementation.name: Role.ALSO_OURS for implementation in OUR_IMPLEMENTATIONS},
    BANDWIDTH_BOUND.name: Role.BANDWIDTH_BOUND,
}


def chart(results: Results) -> Chart:
    """Lines through the cases that differ in size alone.

    They show the implementations that move the same bytes, or, where there are none, all others.
    """
    same_bytes = {
        implementation.name
        for implementation in results.benchmark.implementations
        if implementation.bytes_per_parameter is None and implementation != BANDWIDTH_BOUND
    }
    points: dict[str, list[Point]] = {}
    for case, _, implementations in results.cases:
        for item in implementations if case.drawn else ():
            if not same_bytes or item.name in {*same_bytes, BASELINE, BANDWIDTH_BOUND.name}:
                points.setdefault(item.name, []).append(_chart_point(case, item))
    dtype = results.benchmark.dtype
    lines = [Line(name, ROLES.get(name, Role.OTHER), found) for name, found in points.items()]
    title = f"One AdamW step, {dtype}: ns per parameter, lower is better"
    return Chart(lines, title, _caption(results))


def _chart_point(case: Case, statistics: Statistics) -> Point:
    middle, quartiles = statistics.seconds
    scale = 1e9 / case.num_parameters
    return Point(case.num_parameters, *(scale * x for x in (middle, *quartiles)))


def _caption(results: Results) -> str:
    environment = results.environment
    versions = ", ".join(f"{package} {number}" for package, number in results.versions.items())
    return (
        f"{environment['processor']}, {environment['isa']}, {environment['threads']} threads; "
        f"fused-adamw {__version__}, {versions}; "
        f"medians and quartiles of {results.benchmark.rounds} rounds"
    )
