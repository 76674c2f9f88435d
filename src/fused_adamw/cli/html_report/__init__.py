"""The report of a training run: one HTML file that needs no network."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from ..._io.atomic_write import atomic_write
from ...tiny.layers import FloatArray
from ...tiny.recording import Recorder, Snapshot
from ...tiny.text_data import Task
from ...tiny.train_loop import TrainingResult
from ...tiny.training_log import without_nan
from ..console import visible
from ..output_files import check_output_path
from .figures import FigureSection, attention_of, sections, start

N_SHOWN = 3  # predictions of a position


def check_report_path(path: Path) -> None:
    """Raise ValueError unless a report can be written there; leave no file."""
    import plotly  # noqa: F401 - if it is missing, before the training

    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--report must name an .html file; got {path}")
    check_output_path(path, replaced=True)


def save_report(
    path: Path,
    title: str,
    result: TrainingResult,
    recorder: Recorder,
    task: Task,
    config: Mapping[str, Any],
) -> None:
    """Write the report; replaces the file as a whole."""
    from plotly.offline import get_plotlyjs

    parts = sections(result, recorder, task, config["max_grad_norm"])
    folder = files(__package__)
    page = Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        summary=escape(_summary(result)),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        config=_config_table(config),
        start=escape(start(recorder)),
        predictions=_predictions_table(recorder, task),
        sections="\n".join(map(_section, parts)),
        links="\n".join(_link(part) for part in parts),
        plotly=get_plotlyjs(),
        data=_script_json(_data(parts, recorder)),
        script=(folder / "page.js").read_text(encoding="utf-8"),
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def _summary(result: TrainingResult) -> str:
    losses = result.history.losses
    return (
        f"{result.optimizer}: loss from {losses[0]:.4g} to {losses[-1]:.4g} in "
        f"{result.history.steps:,} updates"
    )


def _data(parts: list[FigureSection], recorder: Recorder) -> dict[str, Any]:
    """What the script draws, and what the slider and the list choose from."""
    heads = range(recorder.snapshots[0].attention.shape[0])
    return {
        "figures": {p.name: json.loads(p.figure.to_json()) for p in parts},
        "attention": [
            {"step": s.step, "heads": [attention_of(s, head) for head in heads]}
            for s in recorder.snapshots
        ],
        "curves": {
            f"{name}{list(curve.index)}": [curve.steps, curve.values, curve.m, curve.v]
            for name, curve in recorder.curves.items()
        },
    }


def _script_json(data: dict[str, Any]) -> str:
    """JSON within a script element, which no string of it can end."""
    return json.dumps(without_nan(data), allow_nan=False).replace("<", "\\u003c")


# ---------------------------------------------------------------------------- HTML


def _link(section: FigureSection) -> str:
    return f'<a href="#{section.name}">{escape(section.title)}</a>'


CONTROLS = {
    "attention": '<p class="control"><label for="step">After <output id="step-shown"></output> '
    'updates</label><input type="range" id="step" min="0" value="0"></p>',
    "moments": '<p class="control"><label for="parameter">Parameter</label> '
    '<select id="parameter"></select></p>',
}


def _section(section: FigureSection) -> str:
    return (
        f'<section id="{section.name}"><h2>{escape(section.title)}</h2>'
        f"<p>{escape(section.text)}</p>{CONTROLS.get(section.name, '')}"
        f'<div class="figure" id="figure-{section.name}" role="img" '
        f'aria-label="{escape(section.title)}"></div></section>'
    )


def _config_table(config: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in config.items() if value is not None}
    rows = (
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(str(value))}</td></tr>"
        for name, value in shown.items()
    )
    return "\n".join(rows)


def _predictions_table(recorder: Recorder, task: Task) -> str:
    first, last = recorder.snapshots[0], recorder.snapshots[-1]
    return "\n".join(_prediction_rows(first, last, task))


def _prediction_rows(first: Snapshot, last: Snapshot, task: Task) -> Iterator[str]:
    tokens, targets = task.example
    for i, (token, target) in enumerate(zip(tokens, targets, strict=False)):
        cells = (_predicted(s.probabilities[i], target, task.vocabulary) for s in (first, last))
        yield (
            f"<tr><td>{i}</td><td>{_token(task.vocabulary[token])}</td>"
            f"<td>{_token(task.vocabulary[target])}</td>{''.join(cells)}</tr>"
        )


def _predicted(probabilities: FloatArray, target: int, vocabulary: tuple[str, ...]) -> str:
    if not np.isfinite(probabilities).all():
        return "<td>none: the scores are not finite</td>"
    most = np.argsort(-probabilities, kind="stable")[:N_SHOWN]
    shown = (
        f'<span class="{"right" if index == target else "other"}">'
        f"{_token(vocabulary[index])} {probabilities[index]:.1%}</span>"
        for index in most
    )
    return f"<td>{' '.join(shown)}</td>"


def _token(text: str) -> str:
    return f"<code>{escape(visible(text))}</code>"
