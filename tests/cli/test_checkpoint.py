"""`fused-adamw train --checkpoint`: saving and resuming."""

import os
import signal
import subprocess
import sys
import time
from errno import ENOSPC
from pathlib import Path

import pytest
from cli_process import MAIN, SMALL, START, in_a_process, interrupted, loads, on_a_terminal
from cli_records import without_seconds
from systems import needs_terminals

from fused_adamw import AdamW
from fused_adamw.checkpoint import load_checkpoint
from fused_adamw.tiny import TinyTransformer, training_checkpoint

SLOW = pytest.mark.slow
FALLING = ("--schedule", "cosine", "--warmup", 4, "--max-grad-norm", 0.5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "8bit"])
@pytest.mark.parametrize(
    "options", [pytest.param((), id="constant", marks=SLOW), pytest.param(FALLING, id="falling")]
)
@pytest.mark.parametrize(
    "with_text", [pytest.param(False, id="sentence", marks=SLOW), pytest.param(True, id="text")]
)
def test_resumed_is_as_if_never_stopped(
    run, train_json, text, assert_same, stop_at, dtype, options, with_text
):
    of_state = ("float32", "--state-dtype", dtype) if dtype == "8bit" else (dtype,)
    options = ("--steps", 20, "--lr", 0.01, "--dtype", *of_state, *options)
    if with_text:
        options += ("--text", text, *SMALL)
    whole = train_json("--checkpoint", "whole", *options)
    stop_at(9)
    status, out, _ = run("train", "--json", "--checkpoint", "parts", *options)
    assert (status, loads(out)["steps"]) == (130, 9)
    resumed = train_json("--checkpoint", "parts", "--resume", *options)
    assert_same("parts", "whole")
    assert resumed["resumed_from"] == 9
    assert without_seconds(resumed) | {"resumed_from": None} == without_seconds(whole)
    # The seconds, too, are those of the whole training.
    phases = (resumed[f"{phase}_seconds"] for phase in ("forward", "backward", "optimizer"))
    assert resumed["seconds"] == pytest.approx(sum(phases))
    assert resumed["seconds"] > loads(out)["seconds"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_training_that_is_killed_between_two_saves(tmp_path, text, assert_same):
    killed = """
import os, signal
from fused_adamw import AdamW
from fused_adamw.cli import main

original_step = AdamW.step

def step(self, grads):
    if self.t == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return original_step(self, grads)

AdamW.step = step
main()
"""
    options = ("train", "--json", "--steps", 20, "--text", text, *SMALL, *FALLING)
    options += ("--dtype", "float32", "--every", 5, "--checkpoint")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert in_a_process(killed, *options, parts).returncode == -signal.SIGKILL
    resumed = in_a_process(MAIN, *options, parts, "--resume")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert loads(resumed.stdout)["resumed_from"] == 10
    assert in_a_process(MAIN, *options, whole).returncode == 0
    assert_same(parts, whole)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_training_that_is_killed_at_any_moment(train_json, tmp_path, assert_same):
    options = ("--checkpoint", str(tmp_path / "parts"), "--every", "1", "--steps")
    command = [sys.executable, "-c", MAIN, "train", *options, "2000000"]
    process = subprocess.Popen(command, cwd=START)
    try:
        while not Path("parts").exists():
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    optimizer = AdamW(TinyTransformer().parameters)
    load_checkpoint("parts", optimizer)
    resumed = train_json(*options, optimizer.t + 3, "--resume")
    assert resumed["resumed_from"] == optimizer.t
    train_json("--checkpoint", "whole", "--steps", optimizer.t + 3)
    assert_same("parts", "whole")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_saves(train_json, tmp_path, assert_same):
    status, out, err = interrupted("--json", "--checkpoint", tmp_path / "parts")
    steps = loads(out)["steps"]
    assert (status, err) == (130, "")
    resumed = train_json("--checkpoint", "parts", "--resume", "--steps", steps + 3)
    assert (resumed["steps"], resumed["resumed_from"]) == (steps + 3, steps)
    assert resumed["interrupted"] is False
    train_json("--checkpoint", "whole", "--steps", steps + 3)
    assert_same("parts", "whole")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), [10]),
        (("--every", 4), [0, 4, 8, 10]),
        (("--every", 5), [0, 5, 10]),
        (("--every", 100), [0, 10]),
    ],
)
def test_when_it_is_saved(train_json, monkeypatch, options, expected):
    saved = []
    write = training_checkpoint.save_checkpoint

    def save_checkpoint(path, optimizer, **others):
        saved.append(optimizer.t)
        write(path, optimizer, **others)

    monkeypatch.setattr(training_checkpoint, "save_checkpoint", save_checkpoint)
    train_json("--steps", 10, "--checkpoint", "run", *options)
    assert saved == expected
    # What it goes on from is not saved again.
    train_json("--steps", 20, "--checkpoint", "run", "--resume", "--every", 10)
    assert saved == [*expected, 20]


def test_a_training_that_is_complete_is_only_shown(run, train_json):
    first = train_json("--steps", 5, "--checkpoint", "run", *FALLING)
    content = Path("run").read_bytes()
    again = train_json("--steps", 5, "--checkpoint", "run", "--resume", *FALLING)
    assert again.pop("reference_step_seconds") > 0
    first.pop("reference_step_seconds")
    assert again == first | {"resumed_from": 5}
    assert Path("run").read_bytes() == content


def test_the_summary_and_the_plot_show_the_whole_training(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "fused_adamw.cli.plots.save_loss_plot", lambda _, curves, *__: drawn.extend(curves.values())
    )
    run("train", "--steps", 20, "--checkpoint", "run")
    options = ("--steps", 30, "--checkpoint", "run", "--resume", "--plot", "plot.png")
    status, out, err = run("train", *options)
    assert (status, err) == (0, "")
    assert "Resumed after step 20." in out
    assert "Predictions after step 30" in out
    assert "1.829868" in out  # the first loss
    assert len(drawn[0].history.losses) == 31


@pytest.mark.slow
@needs_terminals
def test_the_progress_bar_of_a_resumed_training(tmp_path):
    options = ("train", "--checkpoint", tmp_path / "run", "--steps")
    in_a_process(MAIN, *options, 20)
    _, shown = on_a_terminal(MAIN, *options, 30, "--resume")
    assert "30/30" in shown
    assert " 0/30" not in shown


def test_a_training_that_diverges_can_be_resumed(run, assert_same):
    options = ("train", "--json", "--lr", 1e150, "--checkpoint")
    run(*options, "parts", "--steps", 6)
    status, out, err = run(*options, "parts", "--steps", 12, "--resume")
    assert (status, loads(out)["final_loss"], loads(out)["resumed_from"]) == (0, None, 6)
    assert err.startswith("warning: ")
    whole = run(*options, "whole", "--steps", 12)
    assert err == whole[2]  # which names the first non-finite loss
    assert_same("parts", "whole")


def test_a_disk_that_gets_full(run, train_json, monkeypatch, assert_same):
    flush, flushed = os.fsync, []

    def fsync(descriptor):
        flushed.append(descriptor)
        # A file and its folder at each save, of which two go well; on Windows the file only.
        if len(flushed) > (2 if os.name == "nt" else 4):
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", fsync)
        status, out, err = run("train", "--steps", 12, "--checkpoint", "run", "--every", 4)
    assert (status, out, err) == (1, "", f"error: run: {os.strerror(ENOSPC)}\n")
    assert list(Path().iterdir()) == [Path("run")]
    resumed = train_json("--steps", 12, "--checkpoint", "run", "--resume")
    assert resumed["resumed_from"] == 4
    train_json("--steps", 12, "--checkpoint", "whole")
    assert_same("run", "whole")
