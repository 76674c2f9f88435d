"""The command ``fused-adamw train``."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import typer

from ..tiny.baselines import SGD
from ..tiny.launch import MPIProcesses, Processes
from ..tiny.memory import require_memory, required_bytes
from ..tiny.model import TinyTransformer
from ..tiny.text_data import Task, read_text, sentence_task, text_task
from ..tiny.train_loop import (
    History,
    Optimizer,
    ScheduleName,
    TrainingResult,
    held_out_loss,
    make_schedule,
    reference_step_seconds,
)
from ..tiny.training_checkpoint import TrainingCheckpoint, checkpoint_lock
from . import plots
from .console import make_console, print_json, progress_bar
from .errors import bad_input_reported, print_in_handler, status_after
from .options import TrainConfig, TrainOptions, with_options
from .output_files import check_distinct, check_output_path
from .train_report import Report, divergence, label, record, summary, text_sample, title

N_HEADS = 2
D_FF_RATIO = 4  # d_ff / d_model
MAX_REFERENCE_PARAMETERS = 100_000  # a second a step in pure Python

T = TypeVar("T")


@with_options
def train(config: TrainConfig, options: TrainOptions) -> None:
    """Train the tiny transformer; show what it learns and where the time goes."""
    processes = MPIProcesses() if options.mpi else Processes()
    with _checkpoint_locked(options, processes):
        with bad_input_reported(), processes.errors_on_all_ranks():
            training = _prepare(config, options, processes)
        results = [training.run_adamw()]
        if options.compares and not results[0].history.interrupted:
            results.append(training.run_sgd())
    if processes.is_main:
        _report(training, results)
    if stop_signal := max(result.history.stop_signal for result in results):
        raise typer.Exit(status_after(stop_signal))


@contextmanager
def _checkpoint_locked(options: TrainOptions, processes: Processes) -> Iterator[None]:
    """Lock the file of the checkpoint, on the rank that writes it, for the whole training."""
    path = options.checkpoint
    with ExitStack() as stack:
        with bad_input_reported(), processes.errors_on_all_ranks():
            if path is not None and processes.is_main:
                check_output_path(path, replaced=True)
                stack.enter_context(checkpoint_lock(path))
        yield


@dataclass(frozen=True)
class Training:
    """What the command is going to train, once everything has been checked."""

    config: TrainConfig
    options: TrainOptions
    processes: Processes
    task: Task
    checkpoint: TrainingCheckpoint | None
    history: History  # of AdamW: empty, or from the checkpoint

    def run_adamw(self) -> TrainingResult:
        """Train with AdamW, from the checkpoint on if there is one to resume."""
        config = self.config
        with bad_input_reported():
            model = self.make_model()
            optimizer = self.processes.make_adamw(
                model.parameters,
                config.lr,
                make_schedule(config.schedule, config.lr, config.warmup, config.steps),
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                state_dtype=config.state_dtype,
                num_threads=self.options.num_threads,
            )
            if self.checkpoint is not None and self.options.resume:
                self.checkpoint.load(optimizer)
                if optimizer.t != self.history.steps:
                    raise ValueError(
                        f"{self.checkpoint.path} does not match its losses: it has "
                        f"{optimizer.t} steps and {self.history.steps} losses"
                    )
        save = None
        if self.checkpoint is not None:
            save = partial(self.checkpoint.save_when_due, optimizer)
        result = TrainingResult("AdamW", config.lr, model, self.history, config.state_dtype)
        return self._run(result, optimizer, save)

    def run_sgd(self) -> TrainingResult:
        """Train the same model on the same batches with plain SGD."""
        lr = self.config.lr if self.options.sgd_lr is None else self.options.sgd_lr
        model = self.make_model()
        return self._run(TrainingResult("SGD", lr, model, History()), SGD(model.parameters, lr))

    def make_model(self) -> TinyTransformer:
        """Return the model before its first update."""
        return TinyTransformer(self.config.seed, self.config.dtype.value, **self.task.sizes)

    def _run(
        self,
        result: TrainingResult,
        optimizer: Optimizer,
        save: Callable[[History], None] | None = None,
    ) -> TrainingResult:
        steps, history = self.config.steps, result.history
        result.initial_held_out_loss = held_out_loss(self.make_model(), self.task)
        name = label(result, with_lr=self.options.compares)
        quiet = self.options.json or not self.processes.is_main
        with progress_bar(name, history.resumed_from or 0, steps, quiet) as show:

            def on_step(history: History) -> None:
                show(history)
                if save is not None:
                    save(history)

            batches = self.task.batches()
            self.processes.train(
                result.model, optimizer, batches, steps, on_step, history, _report_repeated_signal
            )
        result.final_held_out_loss = _unless_interrupted(
            history, lambda: held_out_loss(result.model, self.task)
        )
        return result


def _report_repeated_signal() -> None:
    print_in_handler("interrupted: finishing this step, then the summary follows")


def _unless_interrupted(history: History, compute: Callable[[], T]) -> T | None:
    """Return the result; None where a signal has ended the training, or ends the computation.

    The summary is to follow at once.
    """
    if history.interrupted:
        return None
    try:
        return compute()
    except KeyboardInterrupt:
        history.stop_signal = signal.SIGINT
        return None


def _prepare(config: TrainConfig, options: TrainOptions, processes: Processes) -> Training:
    """Check everything that can be checked before training."""
    if processes.is_main:
        named = {"--text": options.text, "--checkpoint": options.checkpoint}
        check_distinct(named | {"--plot": options.plot})
        if options.plot is not None:
            plots.check_plot_path(options.plot)
    task = _make_task(config, options)
    if task.corpus is not None:
        processes.check_batch_size(config.batch_size)
        batch_size = config.batch_size // processes.size
        nbytes = required_bytes(task.sizes, batch_size, config.dtype.value)
        require_memory("--d-model, --context or --batch-size", nbytes)
    checkpoint, history = None, History()
    if options.checkpoint is not None:
        checkpoint = _make_checkpoint(config, options, task)
        if options.resume:
            history = checkpoint.read_history()
    return Training(config, options, processes, task, checkpoint, history)


def _make_task(config: TrainConfig, options: TrainOptions) -> Task:
    if options.text is None:
        return sentence_task()
    corpus = read_text(options.text, config.context)
    d_model = config.d_model
    sizes = {"d_model": d_model, "n_heads": N_HEADS, "d_ff": D_FF_RATIO * d_model}
    return text_task(corpus, config.context, config.batch_size, config.seed, **sizes)


def _make_checkpoint(config: TrainConfig, options: TrainOptions, task: Task) -> TrainingCheckpoint:
    """The checkpoint, which has to exist if and only if it is to be resumed."""
    path = options.checkpoint
    assert path is not None
    if path.exists() and not options.resume:
        raise ValueError(
            f"{path} already exists; pass --resume to continue, or choose another file"
        )
    definition = config.to_dict(task.text_digest)
    open_ended = config.schedule is ScheduleName.CONSTANT
    return TrainingCheckpoint(path, definition, config.steps, open_ended, options.every)


# ---------------------------------------------------------------------------- the report


def _report(training: Training, results: list[TrainingResult]) -> None:
    task, options = training.task, training.options
    curves = {label(result, with_lr=options.compares): result for result in results}
    config = training.config.to_dict(task.text_digest)
    history = results[0].history
    report = Report(
        curves,
        task,
        config,
        _unless_interrupted(history, lambda: _reference_seconds(training, results[0])),
        _unless_interrupted(history, lambda: text_sample(results[0], task, config["seed"])),
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
        model = results[0].model
        with bad_input_reported():
            plots.save_loss_plot(options.plot, curves, title(model), model.vocab_size)


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
