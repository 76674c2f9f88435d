"""The options of the commands: a class whose fields are options, with their defaults and help."""

import inspect
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .._optim.state_formats import STATE_DTYPES
from ..tiny.launch import join_mpi
from ..tiny.train_loop import ScheduleName
from .errors import bad_input_reported, fail, interrupts_reported

# ---------------------------------------------------------------------------- option classes

REQUIRES = {  # an option that does nothing without another
    **dict.fromkeys(("context", "batch_size", "d_model"), "text"),
    **dict.fromkeys(("every", "resume"), "checkpoint"),
}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of the dataclasses that it takes."""
    hints: dict[str, Any] = get_type_hints(command)
    classes: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}

    def invoke(ctx: typer.Context, **values: Any) -> None:
        _check_required(ctx)
        with bad_input_reported():
            arguments = {
                name: kind(**{field.name: values[field.name] for field in fields(kind)})
                for name, kind in classes.items()
            }
        with interrupts_reported():
            command(**arguments)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("ctx", keyword, annotation=typer.Context)]
    for kind in classes.values():
        annotations = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, keyword, default=field.default, annotation=annotations[field.name]
            )
            for field in fields(kind)
        ]
    invoke.__name__, invoke.__doc__ = command.__name__, command.__doc__
    invoke.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return invoke


def _check_required(ctx: typer.Context) -> None:
    for name, required in REQUIRES.items():
        source = ctx.get_parameter_source(name)
        given = source is not None and source.name == "COMMANDLINE"
        if given and ctx.params[required] is None:
            fail(f"--{name.replace('_', '-')} requires --{required}")


# ---------------------------------------------------------------------------- callbacks


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"must be finite; got {value}")
    return value


def _state_dtype(value: str | None) -> str | None:
    if value is not None and value not in STATE_DTYPES:
        raise typer.BadParameter(f"must be one of {', '.join(STATE_DTYPES)}; got {value}")
    return value


def _silence_other_ranks(mpi: bool) -> bool:
    """Runs first: only rank 0 prints."""
    if mpi:
        try:
            is_main = join_mpi()
        except ImportError as error:  # its message says what to install
            fail(error)
        if not is_main:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    return mpi


# ---------------------------------------------------------------------------- values


class DtypeName(StrEnum):
    """What the tiny transformer and the benchmark compute in."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


TEXT_PANEL, CHECKPOINT_PANEL, OUTPUT_PANEL = "With --text", "Checkpoint", "Output"
TEXT_SIZE: dict[str, Any] = {"min": 1, "rich_help_panel": TEXT_PANEL}
OUTPUT_FILE: dict[str, Any] = {
    "dir_okay": False,
    "readable": False,
    "show_default": False,
    "metavar": "FILE",
}

Dtype = Annotated[
    DtypeName, typer.Option(help="Data type of parameters, gradients and optimizer state.")
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        rich_help_panel=OUTPUT_PANEL,
        help="Print the result as JSON and nothing else.",
    ),
]

# ---------------------------------------------------------------------------- train


@dataclass(frozen=True)
class TrainConfig:
    """The options that, with the text, determine the parameters after a number of steps."""

    steps: Annotated[int, typer.Option(min=1, help="Number of updates.")] = 500
    lr: Annotated[float, typer.Option(min=0, callback=_finite, help="Learning rate.")] = 0.001
    weight_decay: Annotated[
        float, typer.Option(min=0, callback=_finite, help="Weight decay of AdamW.")
    ] = 0.01
    schedule: Annotated[
        ScheduleName,
        typer.Option(
            help="Learning rate after the warm-up: constant, or decaying to 0 at --steps."
        ),
    ] = ScheduleName.CONSTANT
    warmup: Annotated[int, typer.Option(min=0, help="Linear warm-up steps.")] = 0
    max_grad_norm: Annotated[
        float | None,
        typer.Option(
            min=0, callback=_finite, show_default=False, help="Clip gradients to this global norm."
        ),
    ] = None
    dtype: Dtype = DtypeName.FLOAT64
    state_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(STATE_DTYPES),
            callback=_state_dtype,
            show_default="--dtype",
            help="Storage format of the moments of AdamW; requires --dtype float32.",
        ),
    ] = None
    seed: Annotated[
        int, typer.Option(min=0, help="Seed for initialization, batches and sampling.")
    ] = 42
    context: Annotated[int, typer.Option(help="Tokens in a window of the text.", **TEXT_SIZE)] = 32
    batch_size: Annotated[int, typer.Option(help="Windows in a batch.", **TEXT_SIZE)] = 16
    d_model: Annotated[
        int, typer.Option(help="Width of the model, which has two heads.", **TEXT_SIZE)
    ] = 32

    def __post_init__(self) -> None:
        if self.schedule is not ScheduleName.CONSTANT and self.warmup >= self.steps:
            raise ValueError(f"--warmup ({self.warmup}) must be less than --steps ({self.steps})")
        if self.state_dtype is not None and self.dtype is not DtypeName.FLOAT32:
            raise ValueError("--state-dtype requires --dtype float32")

    def to_dict(self, text: str | None) -> dict[str, Any]:
        """Return the options by name, for JSON; `text` identifies the text, if there is one."""
        options = asdict(self) | {"text": text}
        if text is None:
            for name, required in REQUIRES.items():
                if required == "text":
                    del options[name]
        return options


@dataclass(frozen=True)
class TrainOptions:
    """The options of a training that leave its result the same, or add to it."""

    num_threads: Annotated[
        int | None,
        typer.Option(min=1, show_default="autotuned", help="Threads of the fused update."),
    ] = None
    mpi: Annotated[
        bool,
        typer.Option(
            "--mpi",
            callback=_silence_other_ranks,
            is_eager=True,
            help="Run under mpiexec: divide batches of --text and optimizer state among the ranks.",
        ),
    ] = False
    compare: Annotated[
        bool, typer.Option("--compare", help="Also train with plain SGD, side by side.")
    ] = False
    sgd_lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=_finite,
            show_default="--lr",
            help="Learning rate of SGD; implies --compare.",
        ),
    ] = None
    text: Annotated[
        Path | None,
        typer.Option(  # checked where the ranks raise errors together
            metavar="FILE",
            show_default='"I like transformers"',
            help="Train on the characters of a UTF-8 file; its last tenth is held out.",
        ),
    ] = None
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=CHECKPOINT_PANEL,
            help="Save model and optimizer to this file (.safetensors) at the end, "
            "and on Ctrl-C or SIGTERM.",
            **OUTPUT_FILE,
        ),
    ] = None
    every: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            rich_help_panel=CHECKPOINT_PANEL,
            help="Also save every N steps.",
            metavar="N",
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel=CHECKPOINT_PANEL,
            help="Continue the training in --checkpoint up to --steps. The result is the same, bit "
            "for bit, as if it had never stopped. Options that affect it must be unchanged; with a "
            "constant schedule, --steps may differ.",
        ),
    ] = False
    plot: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUT_PANEL,
            help="Plot the loss curves to this file (.png, .svg, .pdf).",
            **OUTPUT_FILE,
        ),
    ] = None
    json: Json = False

    def __post_init__(self) -> None:
        other = "--compare" if self.compare else "--sgd-lr"
        for name, given in (("--checkpoint", self.checkpoint is not None), ("--mpi", self.mpi)):
            if given and self.compares:
                raise ValueError(f"{name} cannot be combined with {other}; leave one of them out")

    @property
    def compares(self) -> bool:
        """Whether to train with SGD too."""
        return self.compare or self.sgd_lr is not None
