"""The figures of the report of a training run, for Plotly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...tiny.recording import Recorder, Snapshot
from ...tiny.text_data import Task
from ...tiny.train_loop import TrainingResult
from ..console import step_count, visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, ORANGE, GREEN = "#2f81f7", "#d9730d", "#2da44e"
WIDE = 320  # pixels, the height of a figure


@dataclass(frozen=True)
class FigureSection:
    """A part of the page with a figure.

    Attributes:
        name: its name in links and in the script.
        title: its heading.
        text: what is to be seen, and how to read it.
        figure: as Plotly draws it.
    """

    name: str
    title: str
    text: str
    figure: "Figure"


def sections(
    result: TrainingResult, recorder: Recorder, task: Task, max_grad_norm: float | None
) -> list[FigureSection]:
    """Return the sections in the order of the page."""
    return [
        FigureSection("loss", "Loss and learning rate", LOSS_TEXT, loss_figure(result, recorder)),
        FigureSection("norm", "Gradient norm", NORM_TEXT, norm_figure(result, max_grad_norm)),
        FigureSection(
            "attention",
            "Attention",
            ATTENTION_TEXT.format(start=start(recorder)),
            attention_figure(recorder, task),
        ),
        FigureSection("rates", "Effective learning rates", RATES_TEXT, rates_figure(recorder)),
        FigureSection("updates", "Size of the updates", UPDATES_TEXT, updates_figure(recorder)),
        FigureSection(
            "moments",
            "One parameter and its moments",
            MOMENTS_TEXT.format(element=_element(recorder)),
            moments_figure(recorder),
        ),
        FigureSection("time", "Where the time went", TIME_TEXT, time_figure(result)),
    ]


def start(recorder: Recorder) -> str:
    """Return in words when the first snapshot was taken: a run that was resumed does not begin
    with the model as it was before training."""
    step = recorder.snapshots[0].step
    return f"after {step_count(step)}, where it was resumed" if step else "before training"


def _element(recorder: Recorder) -> str:
    if recorder.snapshots[0].step:
        return "the largest m where the training was resumed"
    return "the largest gradient at the first update"


LOSS_TEXT = (
    "The cross entropy in nats per token: of each batch before its update (blue), and of the "
    "held-out text where there is one (orange). The dotted line is the loss of guessing, ln of the "
    "size of the vocabulary."
)
NORM_TEXT = (
    "The global norm of the gradient of each update: the root of the sum of all squares. Where a "
    "line is drawn, longer gradients were scaled down to it."
)
ATTENTION_TEXT = (
    "Each row is a position, and shows how it distributes its attention over itself and the "
    "positions before it: a softmax, so that a row adds up to 1. Left: {start}. Right: after as "
    "many updates as the slider says."
)
RATES_TEXT = (
    "AdamW divides the learning rate by the root of v-hat, for each parameter by its own: "
    "lr / (sqrt(v_hat) + eps). A row is a tensor, and the color is the median of its parameters. "
    "Tensors with small gradients have large rates."
)
UPDATES_TEXT = (
    "The root mean square of an update, divided by that of the parameters that it changes. About "
    "10^-3 is common; far more is a learning rate that is too high, and far less hardly learns."
)
MOMENTS_TEXT = (
    "Of each tensor, the element with {element}. m is the mean of the recent gradients, and the "
    "root of v that of their size; both start at 0, which the bias correction undoes."
)
TIME_TEXT = "Seconds in the forward pass, the backward pass and the update, all steps together."


def loss_figure(result: TrainingResult, recorder: Recorder) -> "Figure":
    """Return the loss, with the learning rate below it."""
    from plotly.subplots import make_subplots

    history = result.history
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.75, 0.25])
    steps = list(range(len(history.losses)))
    x, losses = _thinned(steps, history.losses)
    figure.add_scatter(x=x, y=losses, name="training", line_color=BLUE, row=1, col=1)
    evaluated = [s for s in recorder.snapshots if s.held_out_loss is not None]
    if evaluated:
        at, values = zip(*((s.step, s.held_out_loss) for s in evaluated), strict=True)
        figure.add_scatter(
            x=at, y=values, name="held out", line_color=ORANGE, mode="lines+markers", row=1, col=1
        )
    figure.add_hline(y=result.chance, line_dash="dot", line_color="gray", row=1, col=1)
    x, rates = _thinned(steps[1:], [result.rate_at(t) for t in steps[1:]])
    figure.add_scatter(x=x, y=rates, name="learning rate", line_color=GREEN, row=2, col=1)
    figure.update_yaxes(title_text="loss", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="rate", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title_text="updates", row=2, col=1)
    return _laid_out(figure, WIDE + 100)


def norm_figure(result: TrainingResult, max_grad_norm: float | None) -> "Figure":
    """Return the gradient norms, with the one that they are clipped to."""
    from plotly.graph_objects import Figure

    norms = result.history.gradient_norms
    x, y = _thinned(list(range(1, len(norms) + 1)), norms)
    figure = Figure()
    figure.add_scatter(x=x, y=y, name="norm", line_color=BLUE)
    if max_grad_norm is not None:
        figure.add_hline(y=max_grad_norm, line_dash="dash", line_color=ORANGE)
        figure.add_annotation(
            x=1,
            xref="paper",
            y=math.log10(max_grad_norm) if max_grad_norm > 0 else 0,
            text="clipped to",
            showarrow=False,
            yanchor="bottom",
        )
    figure.update_yaxes(title_text="norm", type="log")
    figure.update_xaxes(title_text="update")
    return _laid_out(figure)


def attention_figure(recorder: Recorder, task: Task) -> "Figure":
    """Return the maps of each head, before training and at the last snapshot."""
    from plotly.subplots import make_subplots

    first, last = recorder.snapshots[0], recorder.snapshots[-1]
    heads = first.attention.shape[0]
    titles = [f"head {head}, {when}" for head in range(heads) for when in ("start", "now")]
    figure = make_subplots(
        rows=heads,
        cols=2,
        subplot_titles=titles,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.16,
    )
    names = [f"{i} {visible(task.vocabulary[t])}" for i, t in enumerate(task.example[0])]
    for head in range(heads):
        for column, snapshot in ((1, first), (2, last)):
            figure.add_heatmap(
                z=attention_of(snapshot, head),
                x=names,
                y=names,
                zmin=0,
                zmax=1,
                colorscale="Blues",
                showscale=False,
                xgap=1,
                ygap=1,
                hovertemplate="%{y} attends to %{x}: %{z:.3f}<extra></extra>",
                row=head + 1,
                col=column,
            )
    figure.update_yaxes(autorange="reversed")
    return _laid_out(figure, 300 * heads)


def attention_of(snapshot: Snapshot, head: int) -> list[list[float]]:
    """Return the map of a head, rounded to what can be seen."""
    return [[round(float(p), 4) for p in row] for row in snapshot.attention[head]]


def rates_figure(recorder: Recorder) -> "Figure":
    """Return the median effective rate by tensor and step."""
    shown = [s for s in recorder.snapshots if s.effective_rates]
    rows = [[s.effective_rates[name] for s in shown] for name in recorder.curves]
    return _heat_map(shown, list(recorder.curves), rows, "rate")


def updates_figure(recorder: Recorder) -> "Figure":
    """Return the relative size of the updates by tensor and step."""
    shown = [s for s in recorder.snapshots if s.relative_updates]
    rows = [[s.relative_updates[name] for s in shown] for name in recorder.curves]
    return _heat_map(shown, list(recorder.curves), rows, "|update| / |parameter|")


def _heat_map(
    shown: Sequence[Snapshot], names: list[str], rows: Sequence[Sequence[float | None]], title: str
) -> "Figure":
    from plotly.graph_objects import Figure

    logarithms = [[None if not x else math.log10(x) for x in row] for row in rows]
    figure = Figure()
    figure.add_heatmap(
        z=logarithms,
        x=[f"{s.step:,}" for s in shown],
        y=names,
        customdata=rows,
        colorscale="Viridis",
        colorbar={"title": {"text": "log10", "side": "right"}},
        hovertemplate="%{y} at update %{x}: %{customdata:.3g}<extra>" + title + "</extra>",
    )
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(title_text="update", type="category")
    return _laid_out(figure, WIDE + 60)


def moments_figure(recorder: Recorder) -> "Figure":
    """Return the curves of the first parameter; the page's script selects another."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    curve = next(iter(recorder.curves.values()), None)
    for row, (label, color) in enumerate(zip(("parameter", "m", "v"), COLORS, strict=True), 1):
        y = [] if curve is None else (curve.values, curve.m, curve.v)[row - 1]
        x = [] if curve is None else curve.steps
        figure.add_scatter(x=x, y=y, name=label, line_color=color, row=row, col=1)
        figure.update_yaxes(title_text=label, row=row, col=1)
    figure.update_xaxes(title_text="update", row=3, col=1)
    return _laid_out(figure, WIDE + 120)


COLORS = (BLUE, ORANGE, GREEN)


def time_figure(result: TrainingResult) -> "Figure":
    """Return the seconds of each phase."""
    from plotly.graph_objects import Figure

    history = result.history
    seconds = (history.forward_seconds, history.backward_seconds, history.optimizer_seconds)
    figure = Figure()
    figure.add_bar(
        x=seconds,
        y=["forward", "backward", "update"],
        orientation="h",
        marker_color=COLORS,
        text=[f"{s:.3g} s" for s in seconds],
        textposition="auto",
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="seconds")
    return _laid_out(figure, 220)


def _laid_out(figure: "Figure", height: int = WIDE) -> "Figure":
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 20, "t": 30, "b": 45},
        showlegend=False,
        template="plotly_white",
        font_size=13,
    )
    return figure


def _thinned(
    x: Sequence[int], y: Sequence[float], most: int = 2000
) -> tuple[list[int], list[float]]:
    """Return at most about `most` of the points, the last one among them."""
    stride = -(-len(x) // most) or 1
    kept = list(range(0, len(x), stride))
    if kept and kept[-1] != len(x) - 1:
        kept.append(len(x) - 1)
    return [x[i] for i in kept], [y[i] for i in kept]
