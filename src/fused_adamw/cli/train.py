"""The command ``fused-adamw train``."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import typer

from .._io.stop_signals import status_after
from ..tiny.generation import generate, prompt_tokens
from ..tiny.launch import MPIProcesses, Processes
from ..tiny.memory import require_memory, required_bytes
from ..tiny.sweep import Sweep
from ..tiny.text_data import Task, read_text, sentence_task, text_task
from ..tiny.train_loop import History, ScheduleName, TrainingResult, reference_step_seconds
from ..tiny.training_checkpoint import TrainingCheckpoint, checkpoint_lock
from ..tiny.training_log import check_log_path
from . import plots
from .console import make_console, print_json
from .errors import (
    bad_input_reported,
    failures_reported,
    flag,
    interrupts_reported,
    lone_failures_reported,
)
from .html_report import check_report_path, save_report
from .options import N_HEADS, with_options
from .output_files import check_distinct, check_output_path
from .train_options import EXCLUDES, REQUIRES, Resume, TrainConfig, TrainOptions
from .train_report import Report, divergence, label, record, summary, title
from .training import Training, unless_interrupted

D_FF_RATIO = 4  # d_ff / d_model
MAX_REFERENCE_PARAMETERS = 100_000  # a second a step in pure Python


@partial(with_options, requires=REQUIRES, excludes=EXCLUDES)
def train(config: TrainConfig, options: TrainOptions) -> None:
    """Train the tiny transformer; show what it learns and where the time goes."""
    processes = MPIProcesses() if options.mpi else Processes()
    with _checkpoint_locked(options, processes):
        shared: dict[str, Any] = {}
        with _errors_reported(options, processes, shared):
            training = _prepare(config, options, processes)
            shared |= _shared(training)
        with lone_failures_reported(options.mpi), training.log() as log:
            sweeps = training.run(log)
    results = [sweep.shown for sweep in sweeps if sweep.shown is not None]
    if processes.is_main:
        _report(training, results, sweeps)
    if log is not None and log.error is not None:
        raise log.error
    ended = [sweep.interrupted for sweep in sweeps if sweep.interrupted is not None]
    if stop_signal := max(result.history.stop_signal for result in [*results, *ended]):
        raise typer.Exit(status_after(stop_signal))


@contextmanager
def _errors_reported(
    options: TrainOptions, processes: Processes, shared: dict[str, Any]
) -> Iterator[None]:
    """Report errors of any rank as bad input; a signal is no error that all ranks raise."""
    with (
        bad_input_reported(),
        processes.errors_on_all_ranks(shared),
        interrupts_reported(on_ranks=options.mpi),
    ):
        yield


@contextmanager
def _checkpoint_locked(options: TrainOptions, processes: Processes) -> Iterator[None]:
    """Lock the file of the checkpoint, on the rank that writes it, for the whole training."""
    path = options.checkpoint
    with ExitStack() as stack:
        with _errors_reported(options, processes, {}):
            if path is not None and processes.is_main:
                check_output_path(path, replaced=True)
                stack.enter_context(checkpoint_lock(path))
        yield


# ---------------------------------------------------------------------------- checks


def _prepare(config: TrainConfig, options: TrainOptions, processes: Processes) -> Training:
    """Check everything that can be checked before training."""
    if processes.is_main:
        _check_files(options)
    task = _make_task(config, options)
    if task.corpus is not None:
        processes.check_batch_size(config.batch_size)
        batch_size = config.batch_size // processes.size
        nbytes = required_bytes(task.sizes, batch_size, config.dtype.value)
        require_memory("--d-model, --context or --batch-size", nbytes)
    steps = config.total_steps(task.batches_per_epoch)
    prompt = prompt_tokens(task, options.prompt)
    checkpoint, history = None, History()
    if options.checkpoint is not None:
        checkpoint = _make_checkpoint(config, options, task, steps)
        if _resumes(options):
            history = checkpoint.read_history()
    return Training(config, options, processes, task, steps, prompt, checkpoint, history)


def _shared(training: Training) -> dict[str, Any]:
    """What the ranks of a training must have in common, or some would wait for others."""
    checkpoint, config = training.checkpoint, training.config
    named = config.to_dict(training.task.text_digest, training.steps)
    shared = {flag(k): x.value if isinstance(x, Enum) else x for k, x in named.items()}
    shared["the digest of --text"] = shared.pop(flag("text"))
    return shared | {
        "whether --checkpoint is given": checkpoint is not None,
        flag("every"): training.options.every,
        "the step to resume from": training.history.resumed_from,
    }


def _check_files(options: TrainOptions) -> None:
    named = {"--text": options.text, "--checkpoint": options.checkpoint}
    named |= {"--plot": options.plot, "--log": options.log, "--report": options.report}
    check_distinct(named)
    if options.plot is not None:
        plots.check_plot_path(options.plot)
    if options.report is not None:
        check_report_path(options.report)
    if options.log is not None:
        check_log_path(options.log)
        check_output_path(options.log)


def _make_task(config: TrainConfig, options: TrainOptions) -> Task:
    if options.text is None:
        return sentence_task()
    corpus = read_text(options.text, config.context)
    d_model = config.d_model
    sizes = {"d_model": d_model, "n_heads": N_HEADS, "d_ff": D_FF_RATIO * d_model}
    in_epochs = config.epochs is not None
    return text_task(corpus, config.context, config.batch_size, config.seed, in_epochs, **sizes)


def _resumes(options: TrainOptions) -> bool:
    path = options.checkpoint
    missing = path is None or not path.exists()
    return options.resume is Resume.ALWAYS or (options.resume is Resume.AUTO and not missing)


def _make_checkpoint(
    config: TrainConfig, options: TrainOptions, task: Task, steps: int
) -> TrainingCheckpoint:
    """The checkpoint, which has to exist if and only if it is to be resumed."""
    path = options.checkpoint
    assert path is not None
    if path.exists() and options.resume is None:
        raise ValueError(
            f"{path} already exists; pass --resume to continue, or choose another file"
        )
    if not path.exists() and options.resume is Resume.ALWAYS:
        raise ValueError(f"{path} does not exist; pass --resume auto to start a training run")
    definition = config.to_dict(task.text_digest, steps)
    open_ended = config.schedule is ScheduleName.CONSTANT
    return TrainingCheckpoint(path, definition, steps, open_ended, options.every, spelling=flag)


# ---------------------------------------------------------------------------- the report


def _report(training: Training, results: Sequence[TrainingResult], sweeps: Sequence[Sweep]) -> None:
    task, options = training.task, training.options
    curves = {label(result, with_lr=options.compares): result for result in results}
    # Where a signal has ended any of the training runs, what takes long is left out.
    ended = next((s.interrupted for s in sweeps if s.interrupted is not None), results[0]).history
    report = Report(
        curves,
        task,
        training.config.to_dict(task.text_digest, training.steps),
        unless_interrupted(ended, lambda: _reference_seconds(training, results[0])),
        unless_interrupted(ended, lambda: _sample(training, results[0])),
        sweeps,
    )
    if options.json:
        print_json(record(report))
    else:
        make_console().print(*summary(report))
    for name, result in curves.items():
        if warning := divergence(result):
            text = f"warning: {name}: {warning}; try a smaller learning rate"
            print(text, file=sys.stderr)
    if options.plot is not None:
        with failures_reported():
            plots.save_loss_plot(options.plot, curves, title(results[0].model), sweeps)
    if options.report is not None:
        with failures_reported():
            _save_report(options.report, training, report)


def _save_report(path: Path, training: Training, report: Report) -> None:
    heading = title(report.first.model)
    save_report(path, heading, report.first, training.recorders[0], report.task, report.config)


def _sample(training: Training, result: TrainingResult) -> str | None:
    """Text that the trained model writes; None where it cannot write any, or nobody asked."""
    options, task = training.options, training.task
    is_wanted = task.corpus is not None or options.prompt is not None or options.generate
    if not is_wanted or divergence(result) is not None:
        return None
    seed = training.config.seed
    return generate(result.model, task, training.prompt, options.generate, seed)


def _reference_seconds(training: Training, result: TrainingResult) -> float | None:
    """The time of a step in pure Python; None where there is no fused step to compare it with.

    On several ranks a step includes communication. A large model would take minutes.
    """
    is_comparable = result.history.steps and training.processes.size == 1
    if not is_comparable or result.model.n_parameters > MAX_REFERENCE_PARAMETERS:
        return None
    batch = next(training.task.batches())
    weight_decay = training.config.weight_decay
    return reference_step_seconds(result.model, batch, result.lr, weight_decay)
