"""What `fused-adamw train` trains, once everything has been checked, and how it shows progress."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import takewhile
from typing import TypeVar

from .._io.stop_signals import signal_of
from ..optimizer import AdamW
from ..tiny.baselines import SGD
from ..tiny.epochs import epoch_of, evaluate_epoch
from ..tiny.launch import OnStep, Processes
from ..tiny.model import TinyTransformer
from ..tiny.recording import Recorder
from ..tiny.sweep import Sweep, sweep_rates
from ..tiny.text_data import Task
from ..tiny.train_loop import (
    History,
    Optimizer,
    OptimizerName,
    TrainingResult,
    held_out_loss,
    make_schedule,
)
from ..tiny.training_checkpoint import TrainingCheckpoint
from ..tiny.training_log import TrainingLog
from .console import TrainingBar, epoch_line, progress_bar
from .errors import bad_input_reported, lone_failures_reported, print_in_handler
from .train_options import TrainConfig, TrainOptions
from .train_report import label

MAX_EPOCH_LINES = 25  # a line for each epoch, or for each of so many parts of the training

T = TypeVar("T")


@dataclass(frozen=True)
class Training:
    """What the command is going to train, once everything has been checked."""

    config: TrainConfig
    options: TrainOptions
    processes: Processes
    task: Task
    steps: int
    prompt: list[int]
    checkpoint: TrainingCheckpoint | None
    history: History  # of AdamW: empty, or from the checkpoint
    recorders: list[Recorder] = field(default_factory=list)  # of AdamW, for a report; `run` adds it

    def run(self, log: TrainingLog | None) -> list[Sweep]:
        """Train with AdamW and, to compare, with SGD: at one rate, or at those of a sweep."""
        sweeps = [self._sweep("AdamW", self.config.lr, partial(self._run_adamw, log))]
        if self.options.compares and sweeps[0].interrupted is None:
            run_sgd = partial(self._run_sgd, log)
            sweeps.append(self._sweep("SGD", self.options.sgd_lr, run_sgd))
        return sweeps

    def _sweep(
        self, name: OptimizerName, lr: float | None, train_at: Callable[[float], TrainingResult]
    ) -> Sweep:
        if self._is_swept(name):
            return sweep_rates(name, self.chance, train_at)
        sweep = Sweep(name, self.chance)
        sweep.add(train_at(self.config.rate if lr is None else lr))
        return sweep

    def _run_adamw(self, log: TrainingLog | None, lr: float) -> TrainingResult:
        """Train with AdamW, from the checkpoint on if there is one to resume."""
        config = self.config
        schedule = make_schedule(config.schedule, lr, config.warmup, self.steps)
        with bad_input_reported(), lone_failures_reported(self.options.mpi):
            model = self.make_model()
            optimizer = self.processes.make_adamw(
                model.parameters,
                lr,
                schedule,
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                state_dtype=config.state_dtype,
                num_threads=self.options.num_threads,
            )
            if self.checkpoint is not None and self.history.resumed_from is not None:
                self.checkpoint.load(optimizer)
                if optimizer.t != self.history.steps:
                    raise ValueError(
                        f"{self.checkpoint.path} must have one loss for each step; got "
                        f"t={optimizer.t} and the losses up to step {self.history.steps}"
                    )
        history = History() if self.options.compares else self.history
        result = TrainingResult("AdamW", lr, model, history, config.state_dtype, schedule=schedule)
        after_step: list[OnStep] = []
        if self.checkpoint is not None:
            after_step.append(partial(self.checkpoint.save_when_due, optimizer))
        if self.options.report is not None:
            assert isinstance(optimizer, AdamW)  # --report excludes --mpi
            recorder = Recorder(model, optimizer, self.task, self.steps, result.rate_at)
            self.recorders.append(recorder)
            after_step.append(recorder)
        return self._run(result, optimizer, log, after_step)

    def _run_sgd(self, log: TrainingLog | None, lr: float) -> TrainingResult:
        """Train the same model on the same batches with plain SGD."""
        model = self.make_model()
        result = TrainingResult("SGD", lr, model, History())
        return self._run(result, SGD(model.parameters, lr), log)

    def make_model(self) -> TinyTransformer:
        """Return the model before its first update."""
        return TinyTransformer(self.config.seed, self.config.dtype.value, **self.task.sizes)

    @cached_property
    def _initial_held_out_loss(self) -> float | None:
        return held_out_loss(self.make_model(), self.task)

    @property
    def in_epochs(self) -> bool:
        """Whether the training passes over the data again and again, in whole epochs."""
        return self.config.epochs is not None

    @property
    def chance(self) -> float:
        """The loss of guessing."""
        return math.log(len(self.task.vocabulary))

    def _is_swept(self, name: OptimizerName) -> bool:
        """Whether the learning rate of an optimizer is to be found."""
        given = self.config.lr if name == "AdamW" else self.options.sgd_lr
        return self.options.compares and given is None

    def _run(
        self,
        result: TrainingResult,
        optimizer: Optimizer,
        log: TrainingLog | None,
        save: Sequence[OnStep] = (),
    ) -> TrainingResult:
        result.initial_held_out_loss = self._initial_held_out_loss
        steps, history, is_swept = self.steps, result.history, self._is_swept(result.optimizer)
        batches = self.task.batches()
        if is_swept:  # where it has diverged there is no more to see
            batches = takewhile(lambda _: all(map(math.isfinite, history.losses[-1:])), batches)
        name = label(result, with_lr=self.options.compares)
        quiet = self.options.json or not self.processes.is_main
        with progress_bar(name, history.resumed_from or 0, steps, quiet, is_swept) as bar:
            after_step: list[OnStep] = [bar.show, *save]
            if self.in_epochs and not self.options.compares:
                after_step.insert(0, partial(self._end_epoch, result, None if quiet else bar))
            if log is not None:
                after_step.append(lambda _: log.add(result))

            def on_step(history: History) -> None:
                for act in after_step:
                    act(history)

            self.processes.train(
                result.model, optimizer, batches, steps, on_step, history, _report_repeated_signal
            )
        result.final_held_out_loss = unless_interrupted(
            history, lambda: held_out_loss(result.model, self.task)
        )
        return result

    def _end_epoch(self, result: TrainingResult, bar: TrainingBar | None, history: History) -> None:
        """Evaluate an epoch at its end, and show it, unless it was shown before."""
        number, rest = divmod(history.steps, self.task.batches_per_epoch)
        if rest or not number:
            return
        evaluate_epoch(result, self.task)
        if bar is not None and history.steps != history.resumed_from:
            epochs = self.config.epochs or 0
            if number % -(-epochs // MAX_EPOCH_LINES) == 0 or number in (1, epochs):
                epoch = epoch_of(history, number, self.task.batches_per_epoch)
                bar.print(epoch_line(epoch, epochs, history))

    @contextmanager
    def log(self) -> Iterator[TrainingLog | None]:
        """Open the log, if there is to be one, on the rank that writes it."""
        log = None
        if self.options.log is not None and self.processes.is_main:
            per_epoch = self.task.batches_per_epoch if self.in_epochs else None
            log = TrainingLog(self.options.log, per_epoch)
        try:
            yield log
        finally:
            if log is not None:
                log.close()


def _report_repeated_signal() -> None:
    print_in_handler("interrupted: finishing this step, then the summary follows")


def unless_interrupted(history: History, compute: Callable[[], T]) -> T | None:
    """Return the result; None where a signal has ended the training, or ends the computation.

    The summary is to follow at once.
    """
    if history.interrupted:
        return None
    try:
        return compute()
    except KeyboardInterrupt as error:
        history.stop_signal = signal_of(error)
        return None
