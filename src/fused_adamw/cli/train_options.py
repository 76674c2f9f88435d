"""The options of the command ``fused-adamw train``."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .._optim.state_formats import STATE_DTYPES
from ..tiny.train_loop import ScheduleName
from .options import (
    CHECKPOINT_PANEL,
    OUTPUT_FILE,
    OUTPUT_PANEL,
    TEXT_SIZE,
    Dtype,
    DtypeName,
    Json,
    above_zero,
    divided_by_heads,
    file_name,
    finite,
    known_state_dtype,
    not_both,
    output_file,
    silence_other_ranks,
)

LR = 0.001
OTHER_FORMATS = frozenset(
    (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".hdf5", ".onnx")
)


class Resume(StrEnum):
    """Whether the checkpoint has to exist."""

    AUTO = "auto"
    ALWAYS = "always"  # without a value


REQUIRES = {
    **dict.fromkeys(("context", "batch_size", "d_model"), "text"),
    **dict.fromkeys(("every", "resume"), "checkpoint"),
}
EXCLUDES = {"epochs": "steps"}
OPTIONAL_VALUES = {"--resume": tuple(Resume)}


def checkpoint_file(value: str) -> Path:
    """The path of a checkpoint, whose name must not be that of a different format."""
    path = output_file(value)
    if path.suffix.lower() in OTHER_FORMATS:
        raise typer.BadParameter(
            "must not have the suffix of a different format (a checkpoint is a .safetensors file); "
            f"got {value!r}"
        )
    return path


@dataclass(frozen=True)
class TrainConfig:
    """The options that, with the text, determine the parameters after a number of steps."""

    steps: Annotated[int, typer.Option(min=1, help="Number of updates.")] = 500
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="Instead of --steps: passes over the training text, in batches of windows that "
            "are shuffled for each. The sentence is one batch.",
        ),
    ] = None
    lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=finite,
            show_default=f"{LR}; with --compare, found by a sweep",
            help="Learning rate of AdamW.",
        ),
    ] = None
    weight_decay: Annotated[
        float, typer.Option(min=0, callback=finite, help="Weight decay of AdamW.")
    ] = 0.01
    schedule: Annotated[
        ScheduleName,
        typer.Option(
            help="Learning rate after the warm-up: constant, or decaying to 0 at the end."
        ),
    ] = ScheduleName.CONSTANT
    warmup: Annotated[int, typer.Option(min=0, help="Linear warm-up steps.")] = 0
    max_grad_norm: Annotated[
        float | None,
        typer.Option(
            callback=above_zero, show_default=False, help="Clip gradients to this global norm."
        ),
    ] = None
    dtype: Dtype = DtypeName.FLOAT64
    state_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(STATE_DTYPES),
            callback=known_state_dtype,
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
        int,
        typer.Option(
            callback=divided_by_heads, help="Width of the model, which has two heads.", **TEXT_SIZE
        ),
    ] = 32

    def __post_init__(self) -> None:
        falls = self.schedule is not ScheduleName.CONSTANT
        if falls and self.epochs is None and self.warmup >= self.steps:
            raise ValueError(f"--warmup ({self.warmup}) must be less than --steps ({self.steps})")
        if self.state_dtype is not None and self.dtype is not DtypeName.FLOAT32:
            raise ValueError("--state-dtype requires --dtype float32")

    @property
    def rate(self) -> float:
        """The learning rate, unless it is to be found."""
        return LR if self.lr is None else self.lr

    def total_steps(self, batches_per_epoch: int) -> int:
        """Return the number of updates.

        Raises:
            ValueError: they are no more than those of the warm-up, after which the rate decays.
        """
        if self.epochs is None:
            return self.steps
        steps = self.epochs * batches_per_epoch
        if self.schedule is not ScheduleName.CONSTANT and self.warmup >= steps:
            raise ValueError(
                f"--warmup ({self.warmup}) must be less than the number of steps of --epochs "
                f"{self.epochs} ({steps})"
            )
        return steps

    def to_dict(self, text: str | None, steps: int) -> dict[str, Any]:
        """Return the options by name, for JSON; `text` identifies the text, if there is one."""
        options = asdict(self) | {"steps": steps, "lr": self.rate, "text": text}
        if text is None:
            for name, required in REQUIRES.items():
                if required == "text":
                    del options[name]
        return options


@dataclass(frozen=True)
class TrainOptions:
    """The options of a training run that leave its result the same, or add to it."""

    num_threads: Annotated[
        int | None,
        typer.Option(min=1, show_default="autotuned", help="Threads of the fused update."),
    ] = None
    mpi: Annotated[
        bool,
        typer.Option(
            "--mpi",
            callback=silence_other_ranks,
            is_eager=True,
            help="Run under mpiexec: divide batches of --text and optimizer state among the ranks.",
        ),
    ] = False
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also train with plain SGD. Rates that are not given are found: the best of a "
            "sweep, for each optimizer, so that this takes about 20 training runs.",
        ),
    ] = False
    sgd_lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=finite,
            show_default="found by a sweep",
            help="Learning rate of SGD, which is constant; implies --compare.",
        ),
    ] = None
    text: Annotated[
        Path | None,
        typer.Option(  # read where the ranks raise errors together
            parser=file_name,
            metavar="FILE",
            show_default='"I like transformers"',
            help="Train on the characters of a UTF-8 file; its last tenth is held out.",
        ),
    ] = None
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=CHECKPOINT_PANEL,
            help="Save model and optimizer to this file, in safetensors format, at the end, "
            "and on Ctrl-C, SIGTERM or SIGHUP.",
            **{**OUTPUT_FILE, "parser": checkpoint_file},
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
        Resume | None,
        typer.Option(
            rich_help_panel=CHECKPOINT_PANEL,
            metavar="[auto]",
            show_default=False,
            help="Continue the training in --checkpoint up to --steps or --epochs; with auto, "
            "start one where the file does not exist yet (always: the same as no value). The "
            "result is the same, bit for bit, as if it had never stopped (with --text and --mpi, "
            "on as many ranks). Options that affect it must not change; with a constant schedule, "
            "--steps or --epochs may differ.",
        ),
    ] = None
    plot: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUT_PANEL,
            help="Plot the losses to this file (.png, .svg, .pdf): over steps, and those of a "
            "sweep over rates.",
            **OUTPUT_FILE,
        ),
    ] = None
    report: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUT_PANEL,
            help="Write an HTML report of the training (.html), which needs no network: losses, "
            "attention, predictions, rates, updates and moments over the steps.",
            **OUTPUT_FILE,
        ),
    ] = None
    log: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUT_PANEL,
            help="Write the loss after each step, its learning rate and its gradient norm to this "
            "file while training (.csv or .jsonl).",
            **OUTPUT_FILE,
        ),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=OUTPUT_PANEL,
            show_default="the first character held out, or <BOS>",
            help="Let the trained model continue this text.",
        ),
    ] = None
    generate: Annotated[
        int | None,
        typer.Option(
            min=1,
            rich_help_panel=OUTPUT_PANEL,
            show_default="300 characters, or up to <EOS>",
            help="Maximum number of tokens that the trained model generates.",
            metavar="N",
        ),
    ] = None
    json: Json = False

    def __post_init__(self) -> None:
        other = "--compare" if self.compare else "--sgd-lr"
        for name, given in (
            ("--checkpoint", self.checkpoint is not None),
            ("--every", self.every is not None),
            ("--resume", self.resume is not None),
            ("--mpi", self.mpi),
        ):
            if given and self.compares:
                raise not_both(name, other)
        for name, given in ((other, self.compares), ("--mpi", self.mpi)):
            if given and self.report is not None:
                raise not_both(name, "--report")

    @property
    def compares(self) -> bool:
        """Whether to train with SGD too."""
        return self.compare or self.sgd_lr is not None
