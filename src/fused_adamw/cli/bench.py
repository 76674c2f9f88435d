"""The command ``fused-adamw bench``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .._io.stop_signals import status_after
from ..bench.implementations import IMPLEMENTATIONS
from ..bench.workloads import CASES
from . import plots
from .console import benchmark_bar, make_console, print_json
from .errors import bad_input_reported, failures_reported
from .options import OUTPUT_FILE, OUTPUT_PANEL, Dtype, DtypeName, Json, with_options


@dataclass(frozen=True)
class BenchOptions:
    """The options of the command."""

    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each implementation.")] = 5
    case: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="all that fit in memory",
            help=f"What to update, repeatable: {', '.join(CASES)}.",
        ),
    ] = None
    implementation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="all that are installed",
            help=f"What to compare AdamW with, repeatable: {', '.join(IMPLEMENTATIONS)}.",
        ),
    ] = None
    dtype: Dtype = DtypeName.FLOAT32
    plot: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUT_PANEL,
            help="Plot ns per parameter over the size to this file (.png, .svg, .pdf).",
            **OUTPUT_FILE,
        ),
    ] = None
    json: Json = False


@with_options
def bench(options: BenchOptions) -> None:
    """Benchmark AdamW against every supported implementation that is installed."""
    # The extra [bench] is needed from here on, not by the other commands.
    from ..bench import report, runner
    from .bench_report import render

    with bad_input_reported():
        if options.plot is not None:
            plots.check_plot_path(options.plot)
        benchmark = runner.arranged(
            options.case, options.implementation, options.dtype.value, options.rounds
        )
        if options.plot is not None and not runner.is_drawn(benchmark):
            drawn = ", ".join(name for name, case in CASES.items() if case.drawn)
            raise ValueError(f"--plot requires a --case of {drawn}")
    with benchmark_bar(quiet=options.json) as show:
        results = runner.run(benchmark, show)
    if options.json:
        print_json(report.record(results))
    else:
        make_console().print(*map(render, report.summary(results)))
    chart = report.chart(results)
    if options.plot is not None and chart.lines:
        with failures_reported():
            plots.save_benchmark_plot(options.plot, chart)
    if results.stop_signal:
        raise typer.Exit(status_after(results.stop_signal))
