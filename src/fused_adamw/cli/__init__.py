"""The command ``fused-adamw``: the only place that parses arguments or prints."""

import io
import os
import signal
import sys
from typing import Annotated, NoReturn

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


try:
    import typer

    from . import bench, explain, info, train
    from .console import check_columns
    from .errors import (
        BAD_INPUT,
        FAILED,
        INTERRUPTED,
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
except KeyboardInterrupt:  # the imports take most of a second
    print("error: interrupted", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)

__all__ = ["main"]

app = typer.Typer(
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
    check_columns()
    arguments = with_values(sys.argv[1:], OPTIONAL_VALUES)
    try:
        status = app(arguments, prog_name="fused-adamw", standalone_mode=False)
    except USAGE_ERROR as error:
        if message := usage_message(error):
            report(of_all_ranks(message) if "--mpi" in arguments else message)
        status = BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except ModuleNotFoundError as error:  # Matplotlib and Plotly are imported late
        _report_missing_extra(error)
    # Standard output is full or closed; a checkpoint cannot be saved; memory is exhausted.
    except (OSError, MemoryError) as error:
        report(describe(error))
        status = FAILED
    sys.exit(status)


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
