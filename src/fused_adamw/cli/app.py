"""The command line: the only place that parses arguments or prints."""

import io
import json as json_format
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from ..bench import runner as race
from ..bench.workloads import CASES
from ..runtime import __version__, runtime_info
from ..tiny import train_loop as training
from ..tiny import worked_example as worked
from ..tiny.data_parallel import SplitBatches, rows_of
from ..tiny.model import TinyTransformer
from ..tiny.train_loop import Level, OptimizerName, Run, ScheduleName

if TYPE_CHECKING:
    from ..tiny.training_checkpoint import TrainingFile

BAD_INPUT, INTERRUPTED = 2, 130  # exit statuses: of usage errors, of a shell after SIGINT


def without_extra(missing: ModuleNotFoundError) -> SystemExit:
    print(
        f"error: {missing.name} is not installed; the command line needs: "
        'pip install "fused-adamw[cli]"',
        file=sys.stderr,
    )
    return SystemExit(BAD_INPUT)


try:
    import typer

    from ..bench import report as race_summary
    from . import console as report
    from .train_report import Outcome, Trainee, record, summary, title, trainee_label
except ModuleNotFoundError as missing:
    raise without_extra(missing) from None

# Typer raises it for any wrong option or command, but exports only its subclass.
USAGE_ERROR: Any = typer.BadParameter.__base__

app = typer.Typer(
    help="AdamW in one pass over memory, and the tiny transformer that it trains.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> NoReturn:
    """Run the command; an error is one line, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a sign shows a question mark instead of failing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = app(prog_name="fused-adamw", standalone_mode=False)
    except USAGE_ERROR as error:
        if message := " ".join(error.format_message().split()):
            typer.echo(f"error: {message}", err=True)
        status = BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except ModuleNotFoundError as missing:  # Matplotlib is imported late
        raise without_extra(missing) from None
    except OSError as error:  # standard output is full, or gone; a checkpoint cannot be saved
        print(f"error: {reason(error)}", file=sys.stderr)
        status = 1
    sys.exit(status)


def fail(message: object) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(BAD_INPUT)


def reason(error: OSError) -> object:
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error


@contextmanager
def bad_input_reported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fail(reason(error))
    except ValueError as error:
        fail(error)


def print_json(value: dict[str, Any]) -> None:
    typer.echo(json_format.dumps(without_nan(value), indent=2, allow_nan=False))


def without_nan(value: Any) -> Any:
    """JSON has neither NaN nor infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------------------- options


class DtypeName(StrEnum):
    float32 = "float32"
    float64 = "float64"


class StateDtypeName(StrEnum):
    bfloat16 = "bfloat16"
    in_8_bits = "8bit"


def finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def version(value: bool) -> None:
    if value:
        typer.echo(f"fused-adamw {__version__}")
        raise typer.Exit


def join_ranks(mpi: bool) -> bool:
    """Before all else: only rank 0 has a voice."""
    if mpi:
        try:
            from .._distributed import bucket_comm as messages
        except ImportError as error:  # says what to install
            fail(error)
        messages.abort_on_exception(messages.world())
        if messages.world().rank > 0:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    return mpi


TEXT, CHECKPOINT, OUTPUT = "With --text", "Checkpoint", "Output"
SIZE: dict[str, Any] = {"min": 1, "rich_help_panel": TEXT}
WRITTEN: dict[str, Any] = {"dir_okay": False, "readable": False, "show_default": False}

Version = Annotated[
    bool, typer.Option("--version", help="Print the version.", callback=version, is_eager=True)
]
Optimizer = Annotated[
    OptimizerName,
    typer.Option(help="AdamW by the compiled kernel, AdamW in pure Python, or plain SGD."),
]
Steps = Annotated[int, typer.Option(min=1, help="How many updates.")]
LearningRate = Annotated[float, typer.Option(min=0, callback=finite, help="Learning rate.")]
WeightDecay = Annotated[float, typer.Option(min=0, callback=finite, help="Weight decay of AdamW.")]
Schedule = Annotated[
    ScheduleName,
    typer.Option(help="The learning rate after the warm-up: as it is, or down to 0 at --steps."),
]
Warmup = Annotated[
    int, typer.Option(min=0, help="Over so many first steps the learning rate rises to --lr.")
]
MaxGradNorm = Annotated[
    float | None,
    typer.Option(
        min=0, callback=finite, show_default=False, help="Clip gradients to this global norm."
    ),
]
Dtype = Annotated[DtypeName, typer.Option(help="Of parameters, gradients and optimizer state.")]
StateDtype = Annotated[
    StateDtypeName | None,
    typer.Option(
        show_default="--dtype",
        help="Keep the moments of AdamW in fewer bits; for --dtype float32.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the first parameters, batches and sample.")]
NumThreads = Annotated[
    int | None,
    typer.Option(min=1, show_default="what is found faster", help="Threads of the fused update."),
]
Mpi = Annotated[
    bool,
    typer.Option(
        "--mpi",
        callback=join_ranks,
        is_eager=True,
        help="Under mpiexec: divide each batch of --text, and optimizer and state, over the ranks.",
    ),
]
Compare = Annotated[bool, typer.Option("--compare", help="Train with SGD too, side by side.")]
SgdRate = Annotated[
    float | None,
    typer.Option(
        min=0, callback=finite, show_default="--lr", help="Learning rate of SGD in --compare."
    ),
]
TextFile = Annotated[
    Path | None,
    typer.Option(  # checked where ranks agree on what is wrong
        show_default='"I like transformers"',
        help="Train on this UTF-8 file; its last tenth is held out.",
    ),
]
TokenLevel = Annotated[Level, typer.Option(rich_help_panel=TEXT, help="What a token is.")]
Context = Annotated[int, typer.Option(help="Tokens in a window.", **SIZE)]
BatchSize = Annotated[int, typer.Option(help="Windows in a batch.", **SIZE)]
DModel = Annotated[int, typer.Option(help="Width of the model.", **SIZE)]
NHeads = Annotated[int, typer.Option(help="Heads of the attention.", **SIZE)]
DFf = Annotated[int, typer.Option(help="Width of the feed-forward layer.", **SIZE)]
Rounds = Annotated[int, typer.Option(min=1, help="Turns of each contender.")]
Cases = Annotated[
    list[str] | None,
    typer.Option(
        "--case",
        metavar="NAME",
        show_default="all that memory allows",
        help=f"What to take steps on, repeatable: {', '.join(CASES)}.",
    ),
]
Peers = Annotated[
    list[str] | None,
    typer.Option(
        "--peer",
        metavar="NAME",
        show_default="all",
        help=f"Whom to race {race.BASE} with, repeatable: {', '.join(race.PEERS)}.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=CHECKPOINT,
        help="Save model and optimizer into this file (.safetensors) at the end, also after "
        "Ctrl-C. At most a million --steps.",
        **WRITTEN,
    ),
]
Every = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default=False,
        rich_help_panel=CHECKPOINT,
        help="Save after each so many steps, too.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        rich_help_panel=CHECKPOINT,
        help="Go on from the --checkpoint, up to --steps in all; where it has them, only show it. "
        "It ends with the bits of a training that never stopped. Options have to be as they were; "
        "--steps may be more where the schedule is constant.",
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=OUTPUT,
        help="Draw the loss curves into this file (.png, .svg, .pdf).",
        **WRITTEN,
    ),
]
Chart = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        rich_help_panel=OUTPUT,
        help="Draw ns per parameter over the size into this file (.png, .svg, .pdf).",
        **WRITTEN,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object, only that.")
]


def refuse_idle(ctx: typer.Context, needed: str, present: bool, *names: str) -> None:
    """An option that would change nothing is an error: its user expects that it does."""
    for name in names:
        source = ctx.get_parameter_source(name)
        if not present and source is not None and source.name == "COMMANDLINE":
            fail(f"--{name.replace('_', '-')} has no effect without {needed}")


@app.callback()
def common(version: Version = False) -> None:
    # Fails where FUSED_ADAMW_ISA names no instruction set of this machine.
    with bad_input_reported():
        runtime_info()


# ---------------------------------------------------------------------------- train


# What the parameters after a number of steps follow from, beside the text.
DEFINING = (
    *("lr", "weight_decay", "schedule", "warmup", "max_grad_norm", "dtype", "state_dtype", "seed"),
    *("level", "context", "batch_size", "d_model", "n_heads", "d_ff"),
)


@app.command()
def train(
    ctx: typer.Context,
    optimizer: Optimizer = OptimizerName.FUSED,
    steps: Steps = 500,
    lr: LearningRate = 0.001,
    weight_decay: WeightDecay = 0.01,
    schedule: Schedule = ScheduleName.CONSTANT,
    warmup: Warmup = 0,
    max_grad_norm: MaxGradNorm = None,
    dtype: Dtype = DtypeName.float64,
    state_dtype: StateDtype = None,
    seed: Seed = 42,
    num_threads: NumThreads = None,
    mpi: Mpi = False,
    compare: Compare = False,
    sgd_lr: SgdRate = None,
    text: TextFile = None,
    level: TokenLevel = Level.CHARS,
    context: Context = 32,
    batch_size: BatchSize = 16,
    d_model: DModel = 32,
    n_heads: NHeads = 2,
    d_ff: DFf = 128,
    checkpoint: Checkpoint = None,
    every: Every = None,
    resume: Resume = False,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Train the tiny transformer; see what it learns and where the time goes."""
    refuse_contradictions(ctx)
    ranks = Ranks() if mpi else Alone()
    with bad_input_reported(), ranks.agreed():
        if plot is not None and ranks.first:
            report.check_plot_path(plot)
        if text is None:
            task = training.sentence_task()
        else:
            corpus = training.read_text(text, level, context)
            sizes = {"d_model": d_model, "n_heads": n_heads, "d_ff": d_ff}
            task = training.text_task(corpus, context, batch_size, seed, **sizes)
            ranks.require_divisible(batch_size)
        rates = training.make_schedule(schedule, lr, warmup, steps)
        file = training_file(ctx, checkpoint, task, ranks.first) if checkpoint is not None else None
        run = file.read() if file is not None and resume else Run()

    with bad_input_reported():

        def prepared(name: OptimizerName, rate: float, run: Run) -> Trainee:
            model = TinyTransformer(seed, dtype.value, **task.sizes)
            made = ranks.make_optimizer(
                name,
                model.parameters,
                rate,
                weight_decay,
                num_threads,
                rates,
                max_grad_norm,
                None if state_dtype is None else state_dtype.value,
            )
            return Trainee(name, rate, model, made, held_out_loss(model, task), run)

        trainees = [prepared(optimizer, lr, run)]
        if compare:
            rate = lr if sgd_lr is None else sgd_lr
            trainees.append(prepared(OptimizerName.SGD, rate, Run()))
        save = attached(file, trainees[0]) if file is not None else None

    outcomes = run_all(trainees, task, steps, save, json or not ranks.first, ranks)
    if not ranks.first:
        raise typer.Exit(INTERRUPTED if outcomes[-1].curve.run.interrupted else 0)
    shown = outcomes, task, seed, reference_seconds(outcomes[0], task, weight_decay)
    if json:
        print_json(record(*shown))
    else:
        console = report.console()
        for part in summary(*shown):
            console.print(part)
    warn_of_divergence(outcomes)
    if plot is not None:
        draw_losses(plot, outcomes)
    if outcomes[-1].curve.run.interrupted:
        raise typer.Exit(INTERRUPTED)


def refuse_contradictions(ctx: typer.Context) -> None:
    given = ctx.params
    is_adamw = given["optimizer"] != OptimizerName.SGD
    is_fused = given["optimizer"] == OptimizerName.FUSED
    has_text, saved = given["text"] is not None, given["checkpoint"] is not None
    refuse_idle(ctx, "--text", has_text, "level", "context", "batch_size")
    refuse_idle(ctx, "--text", has_text, "d_model", "n_heads", "d_ff")
    refuse_idle(ctx, "--compare", given["compare"], "sgd_lr")
    refuse_idle(ctx, "AdamW", is_adamw, "weight_decay", "compare")
    refuse_idle(ctx, "--optimizer fused", is_fused, "num_threads", "schedule", "warmup")
    refuse_idle(ctx, "--optimizer fused", is_fused, "max_grad_norm", "checkpoint", "state_dtype")
    refuse_idle(ctx, "--optimizer fused", is_fused, "mpi")
    refuse_idle(ctx, "--checkpoint", saved, "every", "resume")
    if given["state_dtype"] is not None and given["dtype"] != DtypeName.float32:
        fail("--state-dtype is for parameters in float32: add --dtype float32")
    if saved and given["compare"]:
        fail("--checkpoint holds one training, --compare makes two")
    if given["mpi"] and given["compare"]:
        fail("--mpi divides AdamW, --compare is with SGD too: one or the other")


class Alone:
    """One process, as opposed to ``Ranks``."""

    first = True
    agreed = staticmethod(nullcontext)
    make_optimizer = staticmethod(training.make_optimizer)

    def require_divisible(self, batch_size: int) -> None:
        pass

    def train(self, model: TinyTransformer, *arguments: Any) -> None:
        training.train(model, *arguments)


class Ranks:
    """The processes of one mpiexec, which train together."""

    def __init__(self) -> None:
        from .._distributed import bucket_comm as messages

        self.comm = messages.own_duplicate(messages.world())
        self.first = self.comm.rank == 0
        self.agreed = partial(messages.agreed, self.comm)

    def require_divisible(self, batch_size: int) -> None:
        rows_of(batch_size, self.comm.rank, self.comm.size)

    def make_optimizer(self, name: OptimizerName, *arguments: Any) -> training.Optimizer:
        from ..sharded import ShardedAdamW

        return partial(training.make_optimizer, adamw=ShardedAdamW)(name, *arguments)

    def train(self, model: TinyTransformer, *arguments: Any) -> None:
        split = SplitBatches(model, self.comm)
        partial(training.train, agree=split.any)(split, *arguments)


def training_file(
    ctx: typer.Context, path: Path, task: training.Task, writes: bool
) -> "TrainingFile":
    """The checkpoint, which exists if and only if it is to be resumed, and can be written by the
    process that ``writes``."""
    try:
        from ..tiny.training_checkpoint import TrainingFile
    except ImportError as error:  # says what to install
        raise ValueError(error) from None
    given = ctx.params
    if path.exists() and not given["resume"]:
        raise ValueError(f"{path} exists; --resume goes on from it")
    if writes:
        report.check_output_path(path, replaced=True)
    definition = {name: given[name] for name in DEFINING}
    definition["text"] = None if task.corpus is None else task.corpus.digest
    open_ended = given["schedule"] == ScheduleName.CONSTANT
    return TrainingFile(path, definition, given["steps"], open_ended, given["every"])


Save = Callable[[Run], None]


def attached(file: "TrainingFile", trainee: Trainee) -> Save:
    """Bring the trainee to where its record ends; what saves it, at each step where that is due."""
    optimizer = trainee.optimizer
    if trainee.run.resumed_from is not None:
        file.load(optimizer)
    return partial(file.save_when_due, optimizer)


def run_all(
    trainees: list[Trainee],
    task: training.Task,
    steps: int,
    save: Save | None,
    quiet: bool,
    ranks: Alone | Ranks,
) -> list[Outcome]:
    """Train one after the other, until Ctrl-C."""
    outcomes = []
    for trainee in trainees:
        label = trainee_label(trainee, with_lr=len(trainees) > 1)
        outcomes.append(run_one(trainee, label, task, steps, save, quiet, ranks))
        if trainee.run.interrupted:
            break
    return outcomes


def run_one(
    trainee: Trainee,
    label: str,
    task: training.Task,
    steps: int,
    save: Save | None,
    quiet: bool,
    ranks: Alone | Ranks,
) -> Outcome:
    model, run = trainee.model, trainee.run
    with report.progress_bar(label, run.resumed_from or 0, steps, quiet) as show:

        def on_step(run: Run) -> None:
            show(run)
            if save is not None:
                save(run)

        ranks.train(model, trainee.optimizer, task.batches(), steps, on_step, run)
    before, after = trainee.held_out_loss, held_out_loss(model, task)
    held_out = None if before is None or after is None else (before, after)
    return Outcome(trainee, report.Curve(label, run, held_out))


def held_out_loss(model: TinyTransformer, task: training.Task) -> float | None:
    return None if task.corpus is None else training.mean_loss(model, task.corpus.held_out)


def reference_seconds(outcome: Outcome, task: training.Task, weight_decay: float) -> float | None:
    """The pure-Python step beside the fused one, where there is such a one."""
    trainee, (_, run, _) = outcome
    if trainee.name is not OptimizerName.FUSED or not run.steps:
        return None
    batch = next(task.batches())
    return training.reference_step_seconds(trainee.model, batch, trainee.lr, weight_decay)


def warn_of_divergence(outcomes: list[Outcome]) -> None:
    for _, (label, run, _) in outcomes:
        step = next((i for i, loss in enumerate(run.losses) if not math.isfinite(loss)), None)
        if step is not None:
            typer.echo(
                f"warning: {label}: the loss is no finite number from step {step} on; "
                "try a smaller learning rate",
                err=True,
            )


def draw_losses(path: Path, outcomes: list[Outcome]) -> None:
    curves = [curve for _, curve in outcomes]
    with bad_input_reported():
        report.save_plot(path, curves, outcomes[0].trainee.model.vocab_size, title(outcomes[0]))


# ---------------------------------------------------------------------------- bench


@app.command()
def bench(
    ctx: typer.Context,
    rounds: Rounds = 5,
    case: Cases = None,
    peer: Peers = None,
    dtype: Dtype = DtypeName.float32,
    plot: Chart = None,
    json: Json = False,
) -> None:
    """Race AdamW against every other implementation that is installed here."""
    with bad_input_reported():
        if plot is not None:
            report.check_plot_path(plot)
        arranged = race.arranged(case, peer, dtype.value, rounds)
    drawn = [name for name, case in CASES.items() if case.drawn]
    refuse_idle(ctx, f"a --case of {', '.join(drawn)}", race.is_drawn(arranged), "plot")
    with report.race_bar(quiet=json) as show:
        results = race.run(arranged, show)
    if json:
        print_json(race_summary.record(results))
    else:
        console = report.console()
        for part in race_summary.summary(results):
            console.print(part)
    lines, *texts = race_summary.chart(results)
    if plot is not None and lines:
        with bad_input_reported():
            report.save_chart(plot, lines, *texts)
    if results.interrupted:
        raise typer.Exit(INTERRUPTED)


# ---------------------------------------------------------------------------- explain


@app.command()
def explain() -> None:
    """Follow one AdamW update by hand, in the kernel and in pure Python."""
    kernel, reference = (
        worked.worked_update(update) for update in (worked.kernel_update, worked.reference_update)
    )
    rows = [(*names, value, reference[names]) for names, value in kernel.items()]
    model = TinyTransformer()
    shapes = {name: parameter.shape for name, parameter in model.parameters.items()}
    report.console().print(
        report.heading("One AdamW update"),
        report.paragraph(
            f"theta {worked.THETA}, gradient g {worked.GRADIENT}, first step: t = 1, m = v = 0\n"
            f"lr {worked.LR}, beta1 {worked.BETA1}, beta2 {worked.BETA2}, eps {worked.EPS:g}, "
            f"weight decay wd {worked.WEIGHT_DECAY}"
        ),
        report.worked_update_table(rows),
        report.heading("The smaller the gradient, the larger its rate"),
        report.paragraph(
            "At the first step every parameter moves by about lr, whatever its gradient."
        ),
        report.effective_rates_table(worked.effective_rates(worked.kernel_update), worked.LR),
        report.heading("What AdamW keeps for the tiny transformer"),
        report.paragraph("Two state values, m and v, for each parameter."),
        report.parameters_table(shapes),
    )


# ---------------------------------------------------------------------------- info


@app.command()
def info(json: Json = False) -> None:
    """Show the version, the instruction sets and the threads."""
    facts = runtime_info()
    if json:
        print_json(dict(facts))
        return
    report.console().print(
        report.facts_table(
            {
                "version": facts["version"],
                "instruction set": facts["isa"],
                "available": ", ".join(facts["available_isas"]),
                "OpenMP": "yes" if facts["openmp"] else "no",
                "threads": str(facts["num_threads"]),
            }
        )
    )
