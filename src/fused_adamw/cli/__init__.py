"""The command ``fused-adamw``: the only place that parses arguments or prints."""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Annotated, Any, NoReturn

from .._io.stop_signals import StopRequest, signal_of, status_after, stop_signals_raised
from ..runtime import __version__, runtime_info


def _report_missing_extra(error: ModuleNotFoundError) -> NoReturn:
    extras = {"cpuinfo": "cli,bench", "psutil": "cli,bench", "plotly": "report"}
    extra = extras.get(error.name or "", "cli")
    print(
        f"error: {error.name} is not installed; the command needs: "
        f'pip install "fused-adamw[{extra}]"',
        file=sys.stderr,
    )
    sys.exit(2)


def _end_interrupted(number: int) -> NoReturn:
    print("error: interrupted", file=sys.stderr)
    if "--mpi" in sys.argv:  # others wait for this rank; mpiexec ends them if a signal has ended it
        sys.stderr.flush()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    sys.exit(status_after(number))


@contextmanager
def _ended_by_signals(raised: AbstractContextManager[StopRequest]) -> Iterator[None]:
    """End the process where a signal asks to, even if its exception was replaced by another, as
    class definitions and the compiler do during imports."""
    request = StopRequest()
    try:
        with raised as request:
            yield
    except KeyboardInterrupt as error:
        _end_interrupted(signal_of(error))
    except Exception:
        if request.signal:
            _end_interrupted(request.signal)
        raise


try:
    with _ended_by_signals(stop_signals_raised()):  # the imports take most of a second
        import typer
        from typer.core import TyperGroup

        from . import bench, explain, info, train
        from .console import correct_columns
        from .errors import (
            BAD_INPUT,
            FAILED,
            USAGE_ERROR,
            bad_input_reported,
            describe,
            report,
            usage_message,
        )
        from .options import of_all_ranks, with_values
        from .train_options import OPTIONAL_VALUES
except ModuleNotFoundError as error:
    _report_missing_extra(error)

__all__ = ["main"]


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run a command, with its options checked first."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # which Typer would turn into a status, with no message
            _end_interrupted(signal_of(error))


app = typer.Typer(
    cls=_Commands,
    help="AdamW in one pass over memory, and a tiny transformer to train with it.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (train.train, bench.bench, explain.explain, info.info):
    app.command()(command)


def main() -> NoReturn:
    """Run the command; every failure is one line and an exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        stream = getattr(sys, name)
        # A terminal that lacks a character shows a question mark instead of failing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    on_ranks = "--mpi" in sys.argv
    with _ended_by_signals(nullcontext(StopRequest()) if on_ranks else stop_signals_raised()):
        status = _run(with_values(sys.argv[1:], OPTIONAL_VALUES))
    sys.exit(status)


def _run(arguments: list[str]) -> int | None:
    """Run the command with these arguments; return its exit status."""
    correct_columns()
    try:
        status: int | None = app(arguments, prog_name="fused-adamw", standalone_mode=False)
        sys.stdout.flush()
    except USAGE_ERROR as error:
        if message := usage_message(error):
            report(of_all_ranks(message) if "--mpi" in arguments else message)
        status = BAD_INPUT
    except ModuleNotFoundError as error:  # Matplotlib and Plotly are imported late
        _report_missing_extra(error)
    # Standard output is full or closed; a checkpoint cannot be saved; memory is exhausted.
    except (OSError, MemoryError) as error:
        report(describe(error))
        status = FAILED
        _discard_what_cannot_be_written()
    return status


def _discard_what_cannot_be_written() -> None:
    """Python would write the rest of standard output at its end, and fail with a status and a
    message of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError), open(os.devnull, "w", encoding="utf-8") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"fused-adamw {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    # Fails where FUSED_ADAMW_ISA names no instruction set of this machine.
    with bad_input_reported():
        runtime_info()
