"""The command ``fused-adamw explain``."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from math import isfinite
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import RenderableType

from ..explain.adamw import GRADIENT, STEPS, THETA, Hyperparameters, explain_adamw
from ..explain.backward import explain_backward
from ..explain.forward import explain_forward
from ..explain.parameters import explain_parameters
from ..explain.rates import explain_rates
from ..explain.scale import explain_scale
from .console import benchmark_bar, make_console, paragraph, print_json
from .errors import bad_input_reported, flag
from .explain_text.render import render
from .options import Json, with_options

MOST_STEPS = 10_000


class Section(StrEnum):
    """A part of the explanation."""

    ADAMW = "adamw"
    RATES = "rates"
    PARAMETERS = "parameters"
    FORWARD = "forward"
    BACKWARD = "backward"
    SCALE = "scale"


BY_DEFAULT: list[Section] = [section for section in Section if section is not Section.SCALE]
HYPERPARAMETERS = {field.name for field in fields(Hyperparameters)}
USED_BY = {  # the options that a section uses
    Section.ADAMW: {"theta", "gradient", "steps", *HYPERPARAMETERS},
    Section.RATES: HYPERPARAMETERS,
}
DEFAULTS = Hyperparameters()


@dataclass(frozen=True)
class ExplainOptions:
    """The options of the command."""

    section: Annotated[
        str | None,
        typer.Argument(
            metavar="SECTION",
            show_default="all but scale, which times steps for a minute or two",
            help=f"What to explain: {', '.join(Section)}.",
        ),
    ] = None
    theta: Annotated[float | None, typer.Option(show_default=str(THETA), help="The parameter.")] = (
        None
    )
    gradient: Annotated[
        list[float] | None,
        typer.Option(
            show_default=str(GRADIENT),
            help="Its gradient. Repeatable: one for each step, the last for all after it.",
        ),
    ] = None
    lr: Annotated[
        float | None, typer.Option(show_default=str(DEFAULTS.lr), help="Learning rate.")
    ] = None
    betas: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="BETA1 BETA2",
            show_default=" ".join(map(str, DEFAULTS.betas)),
            help="Decay rates of m and v.",
        ),
    ] = None
    eps: Annotated[
        float | None,
        typer.Option(show_default=str(DEFAULTS.eps), help="Added to the denominator."),
    ] = None
    weight_decay: Annotated[
        float | None, typer.Option(show_default=str(DEFAULTS.weight_decay), help="Weight decay.")
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(show_default=str(STEPS), help="Number of updates to follow."),
    ] = None
    json: Json = False

    def __post_init__(self) -> None:
        if self.section is not None and self.section not in list(Section):
            names = ", ".join(Section)
            raise ValueError(f"SECTION must be one of {names}; got {self.section!r}")
        self._check_used()
        for name, values in (("theta", [self.theta]), ("gradient", self.gradient or [])):
            for value in values:
                if value is not None and not isfinite(value):
                    raise ValueError(f"--{name} must be finite; got {value}")
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"--steps must be between 1 and {MOST_STEPS:,}; got {self.steps:,}")
        most, given = self.steps or STEPS, len(self.gradient or [])
        if given > most:
            raise ValueError(
                f"--gradient must be given at most --steps ({most}) times; got {given}"
            )

    def _check_used(self) -> None:
        used = set().union(*(USED_BY.get(section, set()) for section in self.sections))
        for name in USED_BY[Section.ADAMW]:
            if getattr(self, name) is not None and name not in used:
                users = " or ".join(s for s, names in USED_BY.items() if name in names)
                raise ValueError(
                    f"{flag(name)} must be used with the section {users}; got {self.section}"
                )

    @property
    def sections(self) -> list[Section]:
        """What to explain."""
        return BY_DEFAULT if self.section is None else [Section(self.section)]

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The numbers that are given, and the defaults of the others."""
        given = {name: getattr(self, name) for name in HYPERPARAMETERS}
        return Hyperparameters(**{k: value for k, value in given.items() if value is not None})


@with_options
def explain(options: ExplainOptions) -> None:
    """Explain a training step, number by number.

    One AdamW update, the rates it amounts to, the model's parameters, its forward and its backward
    pass, and the step at scale. The options are numbers of your own for the section adamw; rates
    uses all of them but --theta, --gradient and --steps."""
    with bad_input_reported():
        found = {section: compute(section, options) for section in options.sections}
    if options.json:
        print_json({section.value: record(result) for section, result in found.items()})
    else:
        make_console().print(*text(found, options))


def compute(section: Section, options: ExplainOptions) -> Any:
    """Return the numbers of a section."""
    if section is Section.ADAMW:
        return explain_adamw(
            THETA if options.theta is None else options.theta,
            options.gradient or (GRADIENT,),
            options.hyperparameters,
            STEPS if options.steps is None else options.steps,
        )
    if section is Section.RATES:
        return explain_rates(options.hyperparameters)
    if section is Section.SCALE:
        with benchmark_bar(quiet=options.json) as show:
            return explain_scale(show)
    others = {
        Section.PARAMETERS: explain_parameters,
        Section.FORWARD: explain_forward,
        Section.BACKWARD: explain_backward,
    }
    return others[section]()


def record(value: Any) -> Any:
    """Return a result as JSON: dataclasses as objects, arrays as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: record(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [record(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def text(found: dict[Section, Any], options: ExplainOptions) -> Iterator[RenderableType]:
    """Yield what to print."""
    for result in found.values():
        yield from render(result)
    if options.section is None:
        names = ", ".join(BY_DEFAULT)
        yield paragraph(
            f"\nOne section alone: fused-adamw explain SECTION, with SECTION one of {names}. There "
            f"is one more, {Section.SCALE}, which times steps on this machine. --help lists the "
            "options for numbers of your own; --json prints all digits."
        )
