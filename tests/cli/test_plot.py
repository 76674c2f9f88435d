"""`fused-adamw train --plot`."""

import errno
import os
from pathlib import Path

import pytest
from cli_process import MAIN, SMALL, in_a_process
from matplotlib.image import imread

from fused_adamw.tiny import launch


@pytest.mark.slow
def test_the_plot_is_a_image_of_the_curves(run):
    status, _, err = run("train", "--steps", 30, "--plot", "one.png")
    assert (status, err) == (0, "")
    rates = ("--lr", 0.001, "--sgd-lr", 0.05)
    run("train", "--steps", 30, *rates, "--plot", "two.png")
    images = [Path(name) for name in ("one.png", "two.png")]
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in images)
    orange = []
    for path in images:
        red, green, blue, _ = imread(path).transpose(2, 0, 1)
        assert ((blue > 0.7) & (red < 0.4)).sum() > 500  # the curve of AdamW
        orange.append(int(((red > 0.7) & (green < 0.6) & (blue < 0.4)).sum()))
    assert orange[0] == 0
    assert orange[1] > 500  # the curve of SGD


@pytest.mark.slow
def test_the_plot_of_a_text_and_of_a_diverging_training(run, text):
    status, _, _ = run("train", "--text", text, "--steps", 2, *SMALL, "--plot", "text.svg")
    assert status == 0
    assert b"<svg" in Path("text.svg").read_bytes()
    status, _, err = run("train", "--steps", 9, "--lr", 0.001, "--sgd-lr", 1e10, "--plot", "x.png")
    assert (status, err.count("\n")) == (0, 1)
    assert Path("x.png").exists()


def test_the_check_leaves_an_existing_image_alone(run, monkeypatch):
    def train(*_):
        assert Path("old.png").read_text() == "old"
        assert not Path("new.png").exists()
        raise KeyboardInterrupt

    Path("old.png").write_text("old")
    monkeypatch.setattr("fused_adamw.tiny.launch.train", train)
    for name in ("old.png", "new.png"):
        status, _, _ = run("train", "--plot", name)
        assert status == 130
    assert Path("old.png").read_text() == "old"
    assert not Path("new.png").exists()


@pytest.mark.slow
def test_matplotlib_is_imported_for_the_plot_alone():
    code = f"""
import sys
try:
    {MAIN}
finally:
    assert "matplotlib" not in sys.modules
"""
    assert in_a_process(code, "train", "--steps", 1).returncode == 0


@pytest.mark.parametrize("option", ["--plot", "--report"])
def test_a_folder_that_is_gone_after_the_training_is_no_bad_input(run, monkeypatch, option):
    if option == "--report":
        pytest.importorskip("plotly")
    original = launch.train

    def train(*arguments):
        original(*arguments)
        Path("folder").rmdir()

    path = {"--plot": "folder/plot.png", "--report": "folder/run.html"}[option]
    Path("folder").mkdir()
    monkeypatch.setattr(launch, "train", train)
    status, out, err = run("train", "--steps", 2, option, path)
    assert (status, err) == (1, f"error: {path}: {os.strerror(errno.ENOENT)}\n")
    assert "Predictions after step 2" in out
