"""Plots of loss curves and of benchmarks."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from .._io.atomic_write import atomic_write
from ..tiny.sweep import Sweep, on_held_out_text
from ..tiny.train_loop import DIVERGED, TrainingResult
from .console import step_count
from .errors import describe
from .output_files import check_output_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..bench.report import Chart, Line

FIGURE_SIZE, SWEEP_SIZE, CHART_SIZE = (7.2, 4.0), (10.0, 4.2), (10.0, 5.6)  # inches
LOG_SCALE_RATIO = 20  # losses that are so far apart are on a logarithmic scale
CAPTION_WIDTH = 150  # characters

COLORS = ("#1f6feb", "#d9730d")  # of loss curves; the first is ours in benchmarks, too

# After Okabe & Ito, for readers with a color vision deficiency. More markers than colors, so that
# no pair occurs twice.
OTHER_COLORS = (
    *("#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f", "#5d4a9c", "#b8a800"),
)
OTHER_MARKERS = "sv^DPXdph<>"
DASHES = ((6, 2), (2, 1), (8, 2, 2, 2), (4, 1, 1, 1, 1, 1), (1, 1))


def check_plot_path(path: Path) -> None:
    """Raise ValueError unless an image can be written there; leave no file."""
    figure, _ = _figure((2, 2))
    extension = path.suffix[1:].lower()
    if extension not in figure.canvas.get_supported_filetypes():
        raise ValueError(
            f"--plot must end in .png, .svg, .pdf or another format of Matplotlib's; got {path}"
        )
    check_output_path(path, replaced=True)
    try:  # some formats, and some settings of Matplotlib, need TeX or other programs
        figure.savefig(BytesIO(), format=extension)
    except Exception as error:
        reason = describe(error).partition("\n")[0]
        raise ValueError(
            f"{path}: {path.suffix} cannot be written here ({reason}); use .png, .svg or .pdf"
        ) from None


def save_loss_plot(
    path: Path,
    curves: Mapping[str, TrainingResult],
    title: str,
    sweeps: Sequence[Sweep],
) -> None:
    """Plot the losses of training runs by label; to their left those of sweeps, if any."""
    if any(sweep.is_swept for sweep in sweeps):
        figure, (left, axes) = _figure(SWEEP_SIZE, columns=2)
        _plot_sweeps(left, sweeps, [result.history.steps for result in curves.values()])
        figure.suptitle(title, fontsize="medium", x=0.01, horizontalalignment="left")
        is_best = all(sweep.is_swept for sweep in sweeps)
        right = "Each at its best rate" if is_best else "Loss by step"
        axes.set_title(right, fontsize="medium", loc="left")
    else:
        figure, (axes,) = _figure(FIGURE_SIZE)
        axes.set_title(title, fontsize="medium", loc="left")
    first = next(iter(curves.values()))
    _plot_chance(axes, first.chance, first.model.vocab_size, 1)
    for (label, result), color in zip(curves.items(), COLORS, strict=False):
        _plot_losses(axes, label, result, color)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    # Where one training diverges, the other curve stays readable.
    top = min(axes.get_ylim()[1], 3 * first.chance)
    if sweeps and _spans_decades(sweeps):
        axes.set_yscale("log")
        axes.set_ylim(top=2 * DIVERGED * first.chance)
    else:
        axes.set_ylim(0, top)
    axes.margins(x=0.01)
    axes.legend(frameon=False)
    _save(figure, path, dpi=150)


def _spans_decades(sweeps: Sequence[Sweep]) -> bool:
    """Whether losses are so far apart that a logarithmic scale shows more of them."""
    return min(sweep.best_loss for sweep in sweeps) < sweeps[0].chance / LOG_SCALE_RATIO


def _plot_chance(axes: "Axes", chance: float, vocab_size: int, right_end: float) -> None:
    axes.axhline(chance, color="0.6", linewidth=0.8, linestyle="--")
    axes.annotate(
        f"chance, ln {vocab_size}",
        (right_end, chance),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        horizontalalignment="right",
        color="0.4",
        fontsize="small",
    )


def _plot_losses(axes: "Axes", label: str, result: TrainingResult, color: str) -> None:
    axes.plot(result.history.losses, label=label, color=color, linewidth=1.5)
    first, last = result.initial_held_out_loss, result.final_held_out_loss
    if first is not None and last is not None:
        axes.plot(
            (0, result.history.steps),
            (first, last),
            "o",
            label=f"{label}, held-out text",
            color=color,
            markerfacecolor="white",
        )


def _plot_sweeps(axes: "Axes", sweeps: Sequence[Sweep], steps: Sequence[int]) -> None:
    """Plot the loss over the logarithm of the rate; training that diverged at the upper edge."""
    chance, vocab_size = sweeps[0].chance, round(math.exp(sweeps[0].chance))
    is_log, top = _spans_decades(sweeps), 1.1 * DIVERGED * chance
    axes.set_xscale("log")
    if is_log:
        axes.set_yscale("log")
        top *= 2
    _plot_chance(axes, chance, vocab_size, 0.7)
    above_0 = [loss for sweep in sweeps for loss in sweep.losses.values() if loss > 0]
    bottom = min(above_0, default=chance) / 4 if is_log else 0  # where a loss of 0 is drawn
    for sweep, color in zip(sweeps, COLORS, strict=False):
        points = sorted((lr, min(max(loss, bottom), top)) for lr, loss in sweep.losses.items())
        diverged = [lr for lr, loss in points if sweep.has_diverged(loss)]
        style: dict[str, Any] = {"color": color, "linewidth": 1.5, "markersize": 4, "zorder": 3}
        axes.plot(*zip(*points, strict=True), marker="o", label=sweep.optimizer, **style)
        if diverged:  # an empty line would spoil the layout
            at_top = [top] * len(diverged)
            axes.plot(diverged, at_top, "x", color=color, markersize=8, clip_on=False)
        if sweep.is_swept and sweep.best is not None and sweep.best_loss < top:
            _mark_best(axes, sweep.best.lr, max(sweep.best_loss, bottom), color, bottom)
    axes.set_ylim(bottom, top)
    axes.set_xlabel("learning rate  (×: diverges)")
    axes.set_ylabel("loss, nats per token")
    loss = "Held-out loss" if on_held_out_text(sweeps) else "Loss"
    title = f"{loss} after {step_count(max(steps))}"
    axes.set_title(title, fontsize="medium", loc="left")
    axes.legend(frameon=False)


def _mark_best(axes: "Axes", lr: float, loss: float, color: str, bottom: float) -> None:
    style: dict[str, Any] = {"color": color, "markersize": 10, "markerfacecolor": "none"}
    axes.plot(lr, loss, "o", clip_on=False, **style)
    axes.annotate(
        f"best: {lr:g}",
        (lr, loss),
        xytext=(0, -16 if loss > bottom else 9),
        textcoords="offset points",
        horizontalalignment="center",
        color=color,
        fontsize="small",
    )


def save_benchmark_plot(path: Path, chart: "Chart") -> None:
    """Plot ns per parameter over the number of parameters, a line for each implementation."""
    figure, (axes,) = _figure(CHART_SIZE)
    # The slowest at the smallest size comes first, as it is on top there.
    styled = zip(chart.lines, _line_styles(chart.lines), strict=True)
    for line, style in sorted(styled, key=_slowest_first):
        x, y, low, high = zip(*line.points, strict=True)
        errors = (
            [a - b for a, b in zip(y, low, strict=True)],
            [b - a for a, b in zip(y, high, strict=True)],
        )
        if len(x) == 1:  # a line without markers would be invisible
            style = {"marker": "_", "markersize": 12} | style
        axes.errorbar(x, y, yerr=errors, label=line.label, elinewidth=0.8, capsize=2, **style)
    # Matplotlib before 3.11 starts axes that are logarithmic before there are error bars at 1.
    axes.set_xscale("log")
    axes.set_yscale("log")
    _set_size_axis(axes, chart)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("ns per parameter")
    axes.set_title(chart.title, loc="left", fontweight="bold")
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.supxlabel(fill(chart.caption, CAPTION_WIDTH), fontsize="x-small", color="0.4")
    _save(figure, path, dpi=200)


def _set_size_axis(axes: "Axes", chart: "Chart") -> None:
    from matplotlib.ticker import EngFormatter

    points = [point for line in chart.lines for point in line.points]
    size = points[0].parameters
    if {point.parameters for point in points} == {size}:
        # Where there is nothing to span, Matplotlib scales logarithmic axes wrongly.
        axes.set_xlim(size / 2, size * 2)
        axes.set_ylim(0.8 * min(x.low for x in points), 1.25 * max(x.high for x in points))
        axes.set_xticks([size])
        axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("parameters")


def _save(figure: "Figure", path: Path, dpi: int) -> None:
    """Replace the image as a whole, so that there is none of which a part is missing."""
    image = BytesIO()
    figure.savefig(image, format=path.suffix[1:].lower(), dpi=dpi)
    with atomic_write(path) as file:
        file.write(image.getbuffer())


def _figure(size: tuple[float, float], columns: int = 1) -> tuple["Figure", list["Axes"]]:
    figure = _figure_class()(figsize=size, layout="constrained")
    all_axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def _figure_class() -> type["Figure"]:
    """Import Matplotlib, late because it takes long. Without pyplot, no display is needed.

    Nor is a backend: the variable is that of a notebook, whose backend may not be installed here.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return Figure


def _slowest_first(styled: tuple["Line", dict[str, Any]]) -> tuple[int, float]:
    first = styled[0].points[0]
    return first.parameters, -first.ns_per_parameter


def _line_styles(lines: Sequence["Line"]) -> Iterator[dict[str, Any]]:
    from ..bench.report import Role

    ours = {"color": COLORS[0], "marker": "o", "zorder": 4}
    others = zip(cycle(OTHER_COLORS), cycle(OTHER_MARKERS), strict=False)
    dashes = cycle((0, pattern) for pattern in DASHES)
    for line in lines:
        if line.role is Role.OURS:
            yield ours | {"linewidth": 3.5, "markersize": 7}
        elif line.role is Role.ALSO_OURS:
            yield ours | {"linewidth": 1.5, "markersize": 4, "linestyle": next(dashes)}
        elif line.role is Role.BANDWIDTH_BOUND:
            yield {"color": "0.15", "linestyle": "--", "linewidth": 1.5, "zorder": 5}
        else:
            color, marker = next(others)
            yield {"color": color, "marker": marker, "linewidth": 1.3, "markersize": 5}
