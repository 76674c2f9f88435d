"""`fused-adamw train --plot`."""

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_process import MAIN, SMALL, in_a_process, no_such_file
from matplotlib.image import imread

from fused_adamw.cli import plots
from fused_adamw.tiny import History, TinyTransformer, TrainingResult, launch
from fused_adamw.tiny.sweep import Sweep


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


@pytest.mark.slow
def test_the_plot_of_a_sweep_with_a_loss_of_zero(tmp_path):
    """On a logarithmic scale there is no 0: it is drawn at the lower edge."""
    losses = {0.01: 1.0, 0.1: 1e-3, 1.0: 0.0}
    result = TrainingResult("AdamW", 1.0, TinyTransformer(), History([1.0, 0.0]))
    swept = Sweep("AdamW", result.chance, losses, result)
    plots.save_loss_plot(tmp_path / "zero.png", {"AdamW": result}, "title", [swept])
    assert imread(tmp_path / "zero.png").size


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


# Files can have 20,000 bytes, as on a disk that is full, but for what coverage saves at the end.
FULL_DISK = f"""
import atexit, resource
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
atexit.register(resource.setrlimit, resource.RLIMIT_FSIZE, before)
{MAIN}
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_an_image_that_does_not_fit_on_the_disk_leaves_the_old_one(tmp_path):
    path = tmp_path / "plot.png"
    path.write_bytes(b"old")
    done = in_a_process(FULL_DISK, "train", "--steps", 20, "--plot", path)
    message = f"error: {path}: {os.strerror(errno.EFBIG)}\n"
    assert (done.returncode, done.stderr) == (1, message)
    assert "Predictions after step 20" in done.stdout
    assert (os.listdir(tmp_path), path.read_bytes()) == (["plot.png"], b"old")


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
    assert (status, err) == (1, f"error: {Path(path)}: {no_such_file()}\n")
    assert "Predictions after step 2" in out


# ---- plots that cannot be written here


@pytest.mark.parametrize("extension", ["pgf", "png"])
def test_a_format_that_needs_a_missing_program(run, monkeypatch, extension):
    """As .pgf does without TeX, and every format with `text.usetex`."""
    from matplotlib.figure import Figure

    def fail(*_, **__):
        raise RuntimeError("xelatex not found\ninstall it")

    monkeypatch.setattr(Figure, "savefig", fail)
    monkeypatch.setattr("fused_adamw.tiny.launch.train", None)
    status, out, err = run("train", "--plot", f"plot.{extension}")
    assert (status, out) == (2, "")
    assert err == (
        f"error: plot.{extension}: .{extension} cannot be written here (xelatex not found); use "
        ".png, .svg or .pdf\n"
    )
    assert os.listdir() == []


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of Matplotlib's TeX
def test_text_that_tex_cannot_set(run, monkeypatch):
    import matplotlib

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("fused_adamw.tiny.launch.train", None)
    for settings, name in (({"text.usetex": True}, "x.png"), ({}, "x.pgf")):
        with matplotlib.rc_context(settings):
            status, out, err = run("train", "--plot", name)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "cannot be written here" in err
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "none such"])
def test_the_backend_of_a_notebook(tmp_path, backend):
    command = [sys.executable, "-m", "fused_adamw", "train", "--steps", "2", "--plot"]
    done = subprocess.run(
        [*command, str(tmp_path / "x.png")],
        env=os.environ | {"MPLBACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_variable_of_the_backend_is_left_alone(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "abc")
    plots._figure_class()
    assert os.environ["MPLBACKEND"] == "abc"
