"""The command line: the only place that parses arguments or prints."""

import io
import json as json_format
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

from . import explain as worked
from . import training
from .runtime import __version__, runtime_info
from .tiny_transformer import TinyTransformer
from .training import Level, OptimizerName

BAD_INPUT, INTERRUPTED = 2, 130  # exit statuses: of usage errors, of a shell after SIGINT
SAMPLE_LENGTH = {Level.CHARS: 300, Level.WORDS: 60}


def without_extra(missing: ModuleNotFoundError) -> SystemExit:
    print(
        f"error: {missing.name} is not installed; the command line needs: "
        'pip install "fused-adamw[cli]"',
        file=sys.stderr,
    )
    return SystemExit(BAD_INPUT)


try:
    import typer

    from . import report
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
    except OSError as error:  # standard output is full, or gone
        print(f"error: {error.strerror}", file=sys.stderr)
        status = 1
    sys.exit(status)


def fail(message: object) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(BAD_INPUT)


@contextmanager
def bad_input_reported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else error)
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


def finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def version(value: bool) -> None:
    if value:
        typer.echo(f"fused-adamw {__version__}")
        raise typer.Exit


TEXT, OUTPUT = "With --text", "Output"
SIZE: dict[str, Any] = {"min": 1, "rich_help_panel": TEXT}

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
Dtype = Annotated[DtypeName, typer.Option(help="Of parameters, gradients and optimizer state.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the first parameters, batches and sample.")]
# NumPy's own threads spin for a while after each matrix product; a second pool would wait for them
# longer than it could save on models of this size.
NumThreads = Annotated[int, typer.Option(min=1, help="Threads of the fused update.")]
Compare = Annotated[bool, typer.Option("--compare", help="Train with SGD too, side by side.")]
SgdRate = Annotated[
    float | None,
    typer.Option(
        min=0, callback=finite, show_default="--lr", help="Learning rate of SGD in --compare."
    ),
]
TextFile = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        readable=True,
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
Plot = Annotated[
    Path | None,
    typer.Option(
        dir_okay=False,
        readable=False,  # it need not be
        show_default=False,
        rich_help_panel=OUTPUT,
        help="Draw the loss curves into this file (.png, .svg, .pdf).",
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


class Trainee(NamedTuple):
    """A model and the optimizer that trains it, ready to start."""

    name: OptimizerName
    lr: float
    model: TinyTransformer
    optimizer: training.Optimizer


class Outcome(NamedTuple):
    trainee: Trainee
    curve: report.Curve


@app.command()
def train(
    ctx: typer.Context,
    optimizer: Optimizer = OptimizerName.FUSED,
    steps: Steps = 500,
    lr: LearningRate = 0.001,
    weight_decay: WeightDecay = 0.01,
    dtype: Dtype = DtypeName.float64,
    seed: Seed = 42,
    num_threads: NumThreads = 1,
    compare: Compare = False,
    sgd_lr: SgdRate = None,
    text: TextFile = None,
    level: TokenLevel = Level.CHARS,
    context: Context = 32,
    batch_size: BatchSize = 16,
    d_model: DModel = 32,
    n_heads: NHeads = 2,
    d_ff: DFf = 128,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Train the tiny transformer; see what it learns and where the time goes."""
    is_adamw, is_fused = optimizer is not OptimizerName.SGD, optimizer is OptimizerName.FUSED
    sizes = {"d_model": d_model, "n_heads": n_heads, "d_ff": d_ff}
    refuse_idle(ctx, "--text", text is not None, "level", "context", "batch_size", *sizes)
    refuse_idle(ctx, "--compare", compare, "sgd_lr")
    refuse_idle(ctx, "AdamW", is_adamw, "weight_decay", "compare")
    refuse_idle(ctx, "--optimizer fused", is_fused, "num_threads")

    with bad_input_reported():
        if plot is not None:
            report.check_plot_path(plot)
        if text is None:
            task = training.sentence_task()
        else:
            corpus = training.read_text(text, level, context)
            task = training.text_task(corpus, context, batch_size, seed, **sizes)

        def prepared(name: OptimizerName, rate: float) -> Trainee:
            model = TinyTransformer(seed, dtype.value, **task.sizes)
            made = training.make_optimizer(name, model.parameters, rate, weight_decay, num_threads)
            return Trainee(name, rate, model, made)

        trainees = [prepared(optimizer, lr)]
        if compare:
            trainees.append(prepared(OptimizerName.SGD, lr if sgd_lr is None else sgd_lr))

    outcomes = run_all(trainees, task, steps, quiet=json)
    show = print_record if json else print_summary
    show(outcomes, task, seed, reference_seconds(outcomes[0], task, weight_decay))
    warn_of_divergence(outcomes)
    if plot is not None:
        draw_losses(plot, outcomes)
    if outcomes[-1].curve.run.interrupted:
        raise typer.Exit(INTERRUPTED)


def run_all(trainees: list[Trainee], task: training.Task, steps: int, quiet: bool) -> list[Outcome]:
    """Train one after the other, until Ctrl-C."""
    outcomes = []
    for trainee in trainees:
        label = trainee_label(trainee, with_lr=len(trainees) > 1)
        before = held_out_loss(trainee, task)
        with report.progress_bar(label, steps, quiet) as on_step:
            run = training.train(trainee.model, trainee.optimizer, task.batches(), steps, on_step)
        after = held_out_loss(trainee, task)
        held_out = None if before is None or after is None else (before, after)
        outcomes.append(Outcome(trainee, report.Curve(label, run, held_out)))
        if run.interrupted:
            break
    return outcomes


def trainee_label(trainee: Trainee, with_lr: bool) -> str:
    labels = {
        OptimizerName.FUSED: "AdamW",
        OptimizerName.REFERENCE: "AdamW in pure Python",
        OptimizerName.SGD: "SGD",
    }
    label = labels[trainee.name]
    return f"{label}, lr {trainee.lr:g}" if with_lr else label


def held_out_loss(trainee: Trainee, task: training.Task) -> float | None:
    if task.corpus is None:
        return None
    return training.mean_loss(trainee.model, task.corpus.held_out)


def text_sample(outcome: Outcome, task: training.Task, seed: int) -> str | None:
    """What the trained model writes; nothing where its probabilities are no numbers."""
    if task.corpus is None or not math.isfinite(outcome.curve.run.losses[-1]):
        return None
    start = task.corpus.held_out[:1].tolist()
    length = SAMPLE_LENGTH[task.corpus.level]
    return task.corpus.decode(training.sample(outcome.trainee.model, start, length, seed))


def reference_seconds(outcome: Outcome, task: training.Task, weight_decay: float) -> float | None:
    """The pure-Python step beside the fused one, where there is such a one."""
    trainee, (_, run, _) = outcome
    if trainee.name is not OptimizerName.FUSED or not run.steps:
        return None
    batch = next(task.batches())
    return training.reference_step_seconds(trainee.model, batch, trainee.lr, weight_decay)


def title(outcome: Outcome) -> str:
    model = outcome.trainee.model
    return f"Tiny transformer, {model.n_parameters:,} parameters, {model.dtype}"


def print_summary(
    outcomes: list[Outcome], task: training.Task, seed: int, pure_python: float | None
) -> None:
    console = report.console()
    first = outcomes[0]
    curves = [curve for _, curve in outcomes]
    console.print(report.heading(f"{title(first)}, seed {seed}"))
    if task.corpus is not None:
        console.print(report.paragraph(corpus_facts(task.corpus)))
    label, run, _ = curves[-1]
    if run.interrupted:
        console.print(report.paragraph(f"Interrupted: {label} after {run.steps:,} steps."))
    rows = training.predictions(first.trainee.model, task)
    console.print(
        report.predictions_table(rows, f" What it predicts after {first.curve.run.steps:,} steps")
    )
    console.print(report.losses_table(curves, len(task.vocabulary)))
    for label, run, _ in curves:
        console.print(report.time_table(label, run))
    if pure_python is not None:
        console.print(report.reference_comparison(first.curve.run, pure_python))
    written = text_sample(first, task, seed)
    if written is not None:
        console.print(report.sample_panel(written))


def corpus_facts(corpus: training.Corpus) -> str:
    return (
        f"{len(corpus.train):,} tokens to train on, {len(corpus.held_out):,} held out, "
        f"{len(corpus.vocabulary):,} distinct with <PAD>"
    )


def print_record(
    outcomes: list[Outcome], task: training.Task, seed: int, pure_python: float | None
) -> None:
    first = outcomes[0]
    record = run_record(first) | {
        "seed": seed,
        "dtype": str(first.trainee.model.dtype),
        "reference_step_seconds": pure_python,
        "predictions": [row._asdict() for row in training.predictions(first.trainee.model, task)],
    }
    if task.corpus is not None:
        record["sample"] = text_sample(first, task, seed)
    for other in outcomes[1:]:
        record[other.trainee.name.value] = run_record(other)
    record["interrupted"] = outcomes[-1].curve.run.interrupted
    print_json(record)


def run_record(outcome: Outcome) -> dict[str, Any]:
    trainee, (_, run, held_out) = outcome
    initial, final = run.losses[0], run.losses[-1]
    record: dict[str, Any] = {
        "optimizer": trainee.name.value,
        "lr": trainee.lr,
        "parameters": trainee.model.n_parameters,
        "steps": run.steps,
        "initial_loss": initial,
        "final_loss": final,
        "initial_perplexity": report.perplexity(initial),
        "final_perplexity": report.perplexity(final),
        "seconds": run.seconds,
        "forward_seconds": run.forward_seconds,
        "backward_seconds": run.backward_seconds,
        "optimizer_seconds": run.optimizer_seconds,
    }
    if held_out is not None:
        record["initial_held_out_loss"], record["final_held_out_loss"] = held_out
    return record


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
