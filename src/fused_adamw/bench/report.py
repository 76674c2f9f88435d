"""What `fused-adamw bench` came to: for people as tables, for programs as a record."""

from collections.abc import Iterable, Iterator
from typing import Any

from ..cli import console as report
from ..runtime import __version__
from .environment import lines
from .implementations import (
    LIMIT,
    OURS,
    OURS_8BIT,
    OURS_ALL_BFLOAT16,
    OURS_BFLOAT16,
    OURS_FOR_TORCH,
)
from .runner import BASE, LeftOut, Result, Results
from .statistics import Figures, Spread
from .workloads import Case

COLUMNS = (
    *("", "time a\nstep", "ns per\nparameter"),
    *("GB/s", "of the\nlimit", "times\nours", "quartiles"),
)
EXPLANATION = (
    f"Ours is {BASE}, the class: all others' times are also given as multiples of its time, within "
    "rounds. The limit is a C loop with the loads and stores of a step and next to no arithmetic. "
    "8bit and bfloat16: what the moments are kept in; all-bfloat16: parameters and gradients too. "
    "Their GB/s count these bytes."
)

MUCH_OTHER_WORK = 0.1
DISTURBED = (
    "Warning: other processes were at work. Where several threads have to wait for a core, the "
    "rows show the scheduler, not the code: repeat this on an idle machine."
)

# ---------------------------------------------------------------------------- for people


def summary(results: Results) -> Iterator[report.Part]:
    """What to print, part by part."""
    yield report.heading("One AdamW step")
    yield report.paragraph("\n".join(header(results)))
    for case in results.cases:
        cells = [figures.cells(BASE) for figures in case.figures]
        yield report.race_table(case.title, COLUMNS, cells, BASE)
    yield report.paragraph(EXPLANATION)
    if results.other_work is not None and results.other_work > MUCH_OTHER_WORK:
        yield report.paragraph(DISTURBED)
    for title, notes in (
        ("Missing", missing_lines(results.missing)),
        ("Left out", left_out_lines(results.left_out)),
    ):
        if notes:
            yield report.heading(title)
            yield report.paragraph("\n".join(notes))
    if results.interrupted:
        yield report.heading("Interrupted: this is what was measured so far.")


def header(results: Results) -> list[str]:
    rounds = f"{results.race.rounds} rounds of short blocks, in which all take turns; medians"
    return [*lines(results.machine, results.other_work, results.versions), rounds]


def missing_lines(missing: dict[str, str]) -> list[str]:
    return [f"{names}: {remedy}" for remedy, names in gathered(missing.items())]


def left_out_lines(left_out: list[LeftOut]) -> list[str]:
    """A line for each contender and reason, or each case that nobody runs."""
    told = ((left.case, (left.contender, left.reason)) for left in left_out)
    return [
        f"{contender} in {cases}: {reason}" if contender else f"{cases}: {reason}"
        for (contender, reason), cases in gathered(told)
    ]


def gathered(pairs: Iterable[tuple[str, Any]]) -> list[tuple[Any, str]]:
    """(what, the names of all that it is said of)"""
    names: dict[Any, list[str]] = {}
    for name, what in pairs:
        names.setdefault(what, []).append(name)
    return [(what, ", ".join(of_it)) for what, of_it in names.items()]


# ---------------------------------------------------------------------------- for programs


def record(results: Results) -> dict[str, Any]:
    """What `summary` says, as JSON has it; benches/README.md describes the keys."""
    return {
        "version": __version__,
        "dtype": results.race.dtype,
        "rounds": results.race.rounds,
        "ours": BASE,
        "machine": {**results.machine, "other_work": results.other_work},
        "versions": results.versions,
        "cases": [case_record(case) for case in results.cases],
        "missing": results.missing,
        "left_out": [left._asdict() for left in results.left_out],
        "interrupted": results.interrupted,
    }


def case_record(result: Result) -> dict[str, Any]:
    return {
        "name": result.case.name,
        "title": result.title,
        "parameters": result.case.parameters,
        "tensors": len(result.case.shapes),
        "contenders": [contender_record(figures) for figures in result.figures],
    }


def contender_record(figures: Figures) -> dict[str, Any]:
    return {
        "name": figures.name,
        "rounds": figures.rounds,
        "seconds": figures.seconds.median,
        "seconds_quartiles": list(figures.seconds.quartiles),
        "ns_per_parameter": figures.ns_per_parameter,
        "gb_per_s": figures.gb_per_s,
        "share_of_limit": figures.share_of_limit,
        "times_ours": spread_record(figures.times_ours),
    }


def spread_record(spread: Spread | None) -> dict[str, Any] | None:
    return spread and {"median": spread.median, "quartiles": list(spread.quartiles)}


# ---------------------------------------------------------------------------- for slides


ROLES = {
    BASE: report.Role.OURS,
    **dict.fromkeys(
        (OURS, OURS_FOR_TORCH, OURS_8BIT, OURS_BFLOAT16, OURS_ALL_BFLOAT16), report.Role.ALSO_OURS
    ),
    LIMIT: report.Role.LIMIT,
}


def chart(results: Results) -> tuple[list[report.Line], str, str]:
    """Lines, title and caption: the lines go through the cases that their size alone sets apart,
    for the contenders that move the same bytes; all the others, where there are only these."""
    like = {c.name for c in results.race.contenders if c.bytes_moved is None} - {LIMIT}
    lines: dict[str, list[report.Point]] = {}
    for case, _, contenders in results.cases:
        for figures in contenders if case.drawn else ():
            if not like or figures.name in {*like, BASE, LIMIT}:
                lines.setdefault(figures.name, []).append(chart_point(case, figures))
    title = f"One AdamW step, {results.race.dtype}: ns per parameter, lower is better"
    roles = {name: ROLES.get(name, report.Role.PEER) for name in lines}
    drawn = [report.Line(name, roles[name], points) for name, points in lines.items()]
    return drawn, title, caption(results)


def chart_point(case: Case, figures: Figures) -> report.Point:
    middle, quartiles = figures.seconds
    scale = 1e9 / case.parameters
    return report.Point(case.parameters, *(scale * x for x in (middle, *quartiles)))


def caption(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{package} {found}" for package, found in results.versions.items())
    return (
        f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads; "
        f"fused-adamw {__version__}, {versions}; "
        f"medians and quartiles of {results.race.rounds} rounds"
    )
