"""How a training run ends early: signals, and what a second one does."""

import os
import signal
import subprocess
import sys

import pytest
from cli_process import ENDLESS, SMALL, interrupted, loads
from cli_records import RECORD_KEYS

from fused_adamw import AdamW
from fused_adamw._io.stop_signals import DEFAULT_HANDLERS
from fused_adamw.checkpoint import load_checkpoint
from fused_adamw.cli import train as train_command
from fused_adamw.cli import training
from fused_adamw.tiny import TinyTransformer, train
from fused_adamw.tiny.text_data import sentence_task

if not hasattr(signal, "SIGHUP"):
    pytest.skip("Windows has no such signals", allow_module_level=True)

STATUS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130}


@pytest.mark.slow
@pytest.mark.parametrize("number", STATUS)
def test_each_signal_saves(tmp_path, train_json, assert_same, number):
    status, out, err = interrupted("--json", "--checkpoint", tmp_path / "parts", signals=[number])
    steps = loads(out)["steps"]
    assert (status, err) == (STATUS[number], "")
    assert loads(out)["interrupted"] is True
    optimizer = AdamW(TinyTransformer().parameters)
    load_checkpoint(tmp_path / "parts", optimizer)
    assert optimizer.t == steps
    train_json("--checkpoint", "parts", "--resume", "--steps", steps + 3)
    train_json("--checkpoint", "whole", "--steps", steps + 3)
    assert_same("parts", "whole")


@pytest.mark.slow
def test_sigterm_ends_with_the_summary():
    status, out, err = interrupted(signals=[signal.SIGTERM])
    assert (status, err) == (143, "")
    assert "Interrupted: AdamW after " in out


SIGNAL_TWICE = """
import os, signal

def save(self, optimizer, history):
    if history.interrupted:
        os.kill(os.getpid(), signal.SIGINT)

from fused_adamw.tiny.training_checkpoint import TrainingCheckpoint
TrainingCheckpoint.save_when_due = save
"""


@pytest.mark.slow
def test_a_second_ctrl_c_says_that_it_is_ending(tmp_path):
    """It comes while the checkpoint is being saved."""
    status, out, err = interrupted("--checkpoint", tmp_path / "run", code=SIGNAL_TWICE + ENDLESS)
    assert (status, err.count("\n")) == (130, 1)
    assert err.startswith("interrupted: finishing this step")
    assert "Interrupted: AdamW after " in out


@pytest.mark.parametrize("where", ["held_out_loss", "make_schedule"])
def test_ctrl_c_where_there_is_nothing_to_summarize(run, text, monkeypatch, where):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, where, interrupt)
    assert run("train", "--text", text, *SMALL) == (130, "", "error: interrupted\n")


SLOW = {
    "held_out_loss": training,
    "reference_step_seconds": train_command,
    "generate": train_command,
}


@pytest.fixture
def calls(monkeypatch):
    """The calls of functions that take long for a large model or text."""
    found = []
    for name, module in SLOW.items():
        original = getattr(module, name)

        def counted(*arguments, name=name, original=original):
            found.append(name)
            return original(*arguments)

        monkeypatch.setattr(module, name, counted)
    return found


@pytest.mark.parametrize("mode", [(), ("--json",)])
def test_after_ctrl_c_nothing_takes_long(run, text, stop_at, calls, mode):
    stop_at(3)
    status, out, err = run("train", *mode, "--text", text, *SMALL)
    assert (status, err) == (130, "")
    assert calls == ["held_out_loss"]  # before the first step
    if mode:
        record = loads(out)
        assert record["steps"] == 3
        assert record["reference_step_seconds"] is None
        assert record["final_held_out_loss"] is None
        assert record["sample"] is None
        assert record.keys() >= RECORD_KEYS
    else:
        assert "Interrupted: AdamW after step 3." in out
        assert "pure Python" not in out


@pytest.mark.parametrize("slow", SLOW)
def test_ctrl_c_after_the_last_step_leaves_out_what_takes_long(run, text, monkeypatch, slow):
    original = getattr(SLOW[slow], slow)
    count = iter(range(9))

    def interrupted_at_the_end(*arguments):
        if slow != "held_out_loss" or next(count):
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(SLOW[slow], slow, interrupted_at_the_end)
    status, out, err = run("train", "--json", "--text", text, *SMALL, "--steps", 4)
    assert (status, err) == (130, "")
    record = loads(out)
    assert (record["steps"], record["interrupted"]) == (4, True)


def test_a_large_model_is_not_timed_in_pure_python(run, text, calls, monkeypatch):
    """Which would take minutes."""
    monkeypatch.setattr(train_command, "MAX_REFERENCE_PARAMETERS", 1000)
    status, out, _ = run("train", "--text", text, *SMALL, "--steps", 2)
    assert status == 0
    assert "reference_step_seconds" not in calls
    assert "pure Python" not in out


# ---- the loop itself


def run_loop(on_step, **options):
    model = TinyTransformer()
    optimizer = AdamW(model.parameters)
    return train(model, optimizer, sentence_task().batches(), 9, on_step, **options), optimizer


@pytest.fixture
def default_handlers():
    """Even where a shell or nohup ignores these signals."""
    before = {
        number: signal.signal(number, handler) for number, handler in DEFAULT_HANDLERS.items()
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STATUS)
def test_the_loop_ends_after_a_whole_step(number, default_handlers):
    handler, repeated = signal.getsignal(number), []

    def on_step(history):
        if history.steps == 2:
            signal.raise_signal(number)
            signal.raise_signal(number)

    history, optimizer = run_loop(on_step, on_repeated_signal=lambda: repeated.append(1))
    assert (history.stop_signal, history.steps, optimizer.t) == (number, 3, 3)
    assert repeated == [1]
    assert signal.getsignal(number) == handler


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("kind", ["ignored", "handled"])
def test_handlers_of_the_application_keep_their_effect(number, kind):
    received = []
    handler = signal.SIG_IGN if kind == "ignored" else (lambda *_: received.append(number))
    previous = signal.signal(number, handler)
    try:
        history, _ = run_loop(lambda history: signal.raise_signal(number))
    finally:
        signal.signal(number, previous)
    assert (history.steps, history.interrupted) == (9, False)
    assert len(received) == (10 if kind == "handled" else 0)


def test_all_processes_end_together():
    """The signal reached another one: the numbers are compared at each step."""
    numbers = iter([0, 0, signal.SIGTERM, signal.SIGTERM])
    history, optimizer = run_loop(None, over_ranks=lambda number: max(number, next(numbers)))
    assert (history.stop_signal, optimizer.t) == (signal.SIGTERM, 2)


def lines_to(target, *arguments, unbuffered):
    """The status and standard error of a training run in epochs whose standard output is a file."""
    command = [sys.executable, "-m", "fused_adamw", "train", "--epochs", "4", *arguments]
    options = {"stderr": subprocess.PIPE, "text": True, "check": False}
    options["env"] = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open(target, "w", encoding="utf-8") as out:
        done = subprocess.run(command, stdout=out, **options)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_that_cannot_be_written_does_not_end_the_training(tmp_path, unbuffered):
    """What was trained is saved; the error is told at the end."""
    path = tmp_path / "run"
    status, err = lines_to("/dev/full", "--checkpoint", str(path), unbuffered=unbuffered)
    assert (status, err) == (1, "error: No space left on device\n")
    optimizer = AdamW(TinyTransformer().parameters)
    load_checkpoint(path, optimizer)
    assert optimizer.t == 4


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_stream_that_is_closed(closed, tmp_path):
    path = tmp_path / "run"
    code = f"import os; os.close({1 if closed == 'stdout' else 2}); import runpy, sys; " + (
        "os.execv(sys.executable, [sys.executable, '-m', 'fused_adamw', *sys.argv[1:]])"
    )
    arguments = ["train", "--epochs", "3", "--checkpoint", str(path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("epoch 3/3" in done.stdout) == (closed == "stderr")
    assert path.exists()
