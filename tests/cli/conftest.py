"""Fixtures of the tests of the command line."""

import signal
from functools import partial

import numpy as np
import pytest
from arrays import command_line
from cli_process import SMALL, loads

pytest.importorskip("typer")

from rich.cells import cell_len

from fused_adamw import AdamW, cli
from fused_adamw.explain import scale


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder; returns its status, standard output and error."""
    return command_line(cli.main, monkeypatch, capsys, tmp_path)


def json_of(run, command, *arguments):
    """The object that a command prints with `--json`, the only thing on standard output."""
    status, out, err = run(command, "--json", *arguments)
    assert (status, err) == (0, "")
    return loads(out)


@pytest.fixture
def train_json(run):
    """Runs `train --json`; returns the object, the only thing on standard output."""

    return partial(json_of, run, "train")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 40, encoding="utf-8")
    return path


@pytest.fixture
def load_file():
    return pytest.importorskip("safetensors.numpy").load_file


@pytest.fixture
def assert_same(load_file):
    """Parameters, optimizer and losses of two checkpoints are the same to the last bit."""

    def check(path, other):
        tensors, others = load_file(path), load_file(other)
        assert set(tensors) == set(others)
        for name, array in tensors.items():
            assert array.dtype == others[name].dtype
            np.testing.assert_array_equal(array, others[name], err_msg=name)

    return check


@pytest.fixture
def stop_at(monkeypatch):
    """Has Ctrl-C pressed within the update of this number."""

    def arrange(t):
        original_step = AdamW.step

        def step(self, grads):
            if self.t + 1 == t:
                signal.raise_signal(signal.SIGINT)
            return original_step(self, grads)

        monkeypatch.setattr(AdamW, "step", step)

    return arrange


@pytest.fixture
def saved(train_json, text):
    """A checkpoint after 6 steps, and the options it was made with."""
    options = {"--steps": 6, "--schedule": "linear", "--warmup": 2, "--max-grad-norm": 1.0}
    options |= {"--text": text, **dict(zip(SMALL[::2], SMALL[1::2], strict=True))}
    train_json("--checkpoint", "run", *(x for pair in options.items() for x in pair))
    return options


@pytest.fixture
def explain(run, monkeypatch):
    """Runs `explain`; returns the lines that it prints on 80 columns, without blanks between
    their words and without empty ones."""
    monkeypatch.setenv("COLUMNS", "80")

    def command(*arguments):
        status, out, err = run("explain", *arguments)
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert max(map(cell_len, lines)) <= 80
        assert not any("…" in line.replace(" …]", "") for line in lines)  # nothing is cut off
        return [" ".join(line.split()) for line in lines if line.strip()]

    return command


@pytest.fixture
def explain_json(run):
    return partial(json_of, run, "explain")


@pytest.fixture
def quick_scale(monkeypatch):
    """No step is timed: each takes a quarter of a millisecond. No large model fits in memory."""
    monkeypatch.setattr(scale, "SAMPLE_PARAMETERS", 2**10)
    monkeypatch.setattr(scale, "time_block", lambda step: 0.25e-3)
    monkeypatch.setattr(scale, "_fits", lambda: lambda nbytes: nbytes < 1e6)


@pytest.fixture
def tiny_scale(quick_scale, monkeypatch):
    """Two models, of which the first fits in memory."""
    models = (scale.NamedModel("Tiny", "3,456", [(3456,)]), scale.MODELS[-1])
    monkeypatch.setattr(scale, "MODELS", models)
