"""The race of `fused-adamw bench`: our class against all that is installed, case by case."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from ..optimizer import AdamW
from .environment import Machine, installed, machine, memory_allows, other_work, processor_ticks
from .harness import Contest, Prepare, Step, time_block
from .implementations import CONTENDERS, LIMIT, MISSING, Contender, loaded
from .statistics import Figures, figures
from .workloads import CASES, READ_AND_WRITTEN, Array, Case, held

BASE = "AdamW"  # what a training loop holds, and what the others are compared with
PEERS = tuple(contender.name for contender in CONTENDERS)

# ---------------------------------------------------------------------------- on shared moments


def our_class(params: list[Array], grads: list[Array], optimizer: AdamW) -> Step:
    return lambda: optimizer.step(grads)


def on_held_moments(prepare: Prepare) -> Prepare:
    """A contender that steps on the moments of our class; see ``held``."""
    return lambda params, grads, optimizer: prepare(params, grads, optimizer.m, optimizer.v)


# ---------------------------------------------------------------------------- who and where


class Race(NamedTuple):
    cases: list[Case]
    contenders: list[Contender]
    dtype: str
    rounds: int


class LeftOut(NamedTuple):
    contender: str | None  # None: all of them
    case: str
    reason: str


class Result(NamedTuple):
    """Of one case."""

    case: Case
    title: str
    figures: list[Figures]


class Results:
    """What the race has come to, so far."""

    def __init__(self, race: Race) -> None:
        self.race = race
        self.machine: Machine = machine()
        self.versions: dict[str, str] = {}
        self.cases: list[Result] = []
        self.left_out: list[LeftOut] = []
        self.missing: dict[str, str] = {}
        self.other_work: float | None = None
        self.interrupted = False


def arranged(
    cases: Sequence[str] | None, peers: Sequence[str] | None, dtype: str, rounds: int
) -> Race:
    """The race of these names, or of all. Our class and the limit always take part."""
    chosen = named("case", cases, CASES)
    by_name = {contender.name: contender for contender in CONTENDERS}
    contenders = named("peer", peers, by_name)
    if by_name[LIMIT] not in contenders:
        contenders.append(by_name[LIMIT])
    race = Race(chosen, contenders, dtype, rounds)
    if all(too_large(case, dtype) for case in chosen):
        raise ValueError(f"case {chosen[0].name} {too_large(chosen[0], dtype)}")
    return race


def is_drawn(race: Race) -> bool:
    return any(case.drawn for case in race.cases)


Item = TypeVar("Item")


def named(what: str, names: Sequence[str] | None, items: Mapping[str, Item]) -> list[Item]:
    """The items of these names, in their own order; without names all."""
    for name in names or ():
        if name not in items:
            raise ValueError(f"there is no {what} {name!r}; expected one of {', '.join(items)}")
    return [item for name, item in items.items() if not names or name in names]


def too_large(case: Case, dtype: str, arrays: float = 4) -> str | None:
    """Why so many arrays are not made on this machine."""
    needed = arrays * case.parameters * np.dtype(dtype).itemsize
    if memory_allows(needed):
        return None
    return f"needs {needed / 1e9:.1f} GB, which would not leave a fifth of the memory free"


def unsuitable(contender: Contender, case: Case, dtype: str, kept: float = 0) -> str | None:
    """Why a contender is left out of a case, in which others keep so many arrays of their own."""
    if dtype not in contender.dtypes:
        return f"has no {dtype}"
    if case.parameters > contender.largest:
        return "takes too long"
    if case.parameters < contender.smallest:
        return contender.too_small
    return too_large(case, dtype, contender.arrays + kept)


# ---------------------------------------------------------------------------- run

Show = Callable[[str, int, int], None]
"""Called with what comes next, and how many of how many blocks are done."""


def run(race: Race, show: Show) -> Results:
    """Race until the end or Ctrl-C."""
    results = Results(race)
    try:
        contests = list(contests_of(race, results, show))
        start, done = processor_ticks(), 0
        total = sum(race.rounds * len(contest.contenders) for _, contest in contests)
        for case, contest in contests:
            blocks: dict[str, dict[int, float]] = {}
            try:
                for _, turn, name in contest.blocks(race.rounds):
                    show(f"{case.name}: {name}", done, total)
                    if (seconds := attempt(contest, name, results.missing)) is not None:
                        blocks.setdefault(name, {})[turn] = seconds
                    done += 1
            finally:
                contest.forget()
                results.other_work = other_work(start)
                if blocks:
                    found = figures(contest, blocks, BASE)
                    results.cases.append(Result(case, contest.title, found))
        show("done", done, total)
    except KeyboardInterrupt:
        results.interrupted = True
    return results


def contests_of(race: Race, results: Results, show: Show) -> Iterator[tuple[Case, Contest]]:
    """Load whoever takes part somewhere; note who does not, and where."""
    packages = ["numpy"]
    for case in race.cases:
        if reason := too_large(case, race.dtype):
            results.left_out.append(LeftOut(None, case.name, reason))
            continue
        contenders: dict[str, Prepare] = {BASE: our_class}
        moved: dict[str, float] = {}
        kept = 0.0
        for contender in race.contenders:
            if reason := unsuitable(contender, case, race.dtype, kept):
                results.left_out.append(LeftOut(contender.name, case.name, reason))
                continue
            show(f"loading {contender.name}", 0, 1)
            if (prepare := loaded(contender)) is None:
                results.missing[contender.name] = MISSING[contender.name]
            else:
                contenders[contender.name] = on_held_moments(prepare)
                packages += contender.packages
                kept += contender.kept
                if contender.bytes_moved:
                    moved[contender.name] = contender.bytes_moved * case.parameters
        results.versions = installed(dict.fromkeys(packages))
        yield case, contest_of(case, contenders, race.dtype, moved)


def contest_of(
    case: Case, contenders: dict[str, Prepare], dtype: str, moved_by_own: dict[str, float]
) -> Contest:
    moved = READ_AND_WRITTEN * case.parameters * np.dtype(dtype).itemsize
    return Contest(
        case.name,
        f"{case.title}, {dtype}: {case.parameters:,} parameters",
        contenders,
        lambda: held(case.shapes, dtype),
        case.parameters,
        moved,
        moved_by_own,
    )


def attempt(contest: Contest, name: str, missing: dict[str, str]) -> float | None:
    """The seconds of one block; None where the contender fails, which stops no other."""
    if name in missing:
        return None
    try:
        return time_block(contest.step(name))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        missing[name] = f"failed in {contest.name}: {reason}"
        return None
