"""Fixtures of the tests of the command line."""

import signal

import numpy as np
import pytest
from arrays import command_line
from cli_process import SMALL, loads

pytest.importorskip("typer")

from fused_adamw import AdamW, cli


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder; returns its status, standard output and error."""
    return command_line(cli.main, monkeypatch, capsys, tmp_path)


@pytest.fixture
def train_json(run):
    """Runs `train --json`; returns the object, the only thing on standard output."""

    def command(*arguments):
        status, out, err = run("train", "--json", *arguments)
        assert (status, err) == (0, "")
        return loads(out)

    return command


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
