"""What `fused-adamw train --resume` refuses."""

from pathlib import Path

import pytest

from fused_adamw import AdamW
from fused_adamw.checkpoint import save_checkpoint
from fused_adamw.tiny import TinyTransformer


@pytest.mark.parametrize(
    ("option", "value", "difference"),
    [
        ("--seed", 7, "--seed 42 (now 7)"),
        ("--dtype", "float32", "--dtype float64 (now float32)"),
        ("--lr", 0.01, "--lr 0.001 (now 0.01)"),
        ("--weight-decay", 0, "--weight-decay 0.01 (now 0.0)"),
        ("--max-grad-norm", 2, "--max-grad-norm 1.0 (now 2.0)"),
        ("--schedule", "cosine", "--schedule linear (now cosine)"),
        ("--schedule", "constant", "--schedule linear (now constant)"),
        ("--warmup", 3, "--warmup 2 (now 3)"),
        ("--steps", 7, "--steps 6 (now 7)"),
        ("--text", "other.txt", "--text BLAKE2b "),
        ("--context", 9, "--context 8 (now 9)"),
        ("--batch-size", 5, "--batch-size 4 (now 5)"),
        ("--d-model", 10, "--d-model 8 (now 10)"),
    ],
)
def test_a_training_with_different_options_is_not_resumed(run, saved, option, value, difference):
    Path("other.txt").write_text("the cat sat on the mat. " * 39 + "the cat sat on the tam. ")
    content = Path("run").read_bytes()
    options = saved | {option: value}
    arguments = (x for pair in options.items() for x in pair)
    status, out, err = run("train", "--checkpoint", "run", "--resume", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: run was saved with different options: ")
    assert difference in err
    assert err.count("--") == 1  # only what was changed is named
    assert Path("run").read_bytes() == content


def test_a_training_with_another_state_dtype_is_not_resumed(run, train_json):
    options = ("--checkpoint", "run", "--dtype", "float32", "--steps", 3)
    train_json(*options)
    status, _, err = run("train", *options, "--resume", "--state-dtype", "8bit")
    assert status == 2
    assert "run was saved with different options: --state-dtype not given (now 8bit)" in err


def test_what_may_change_when_a_training_is_resumed(saved, text, train_json, assert_same):
    text.rename("moved.txt")
    options = saved | {"--text": "moved.txt", "--num-threads": 2, "--every": 3}
    arguments = (x for pair in options.items() for x in pair)
    assert train_json("--checkpoint", "run", "--resume", *arguments)["steps"] == 6


def test_fewer_steps_than_were_done(run, train_json):
    train_json("--steps", 5, "--checkpoint", "run")
    status, out, err = run("train", "--steps", 4, "--checkpoint", "run", "--resume")
    assert (status, out) == (2, "")
    assert err == "error: --steps must be at least 5, the number of steps in run; got 4\n"


def test_an_existing_checkpoint_is_not_lost(run, saved):
    content = Path("run").read_bytes()
    status, out, err = run("train", "--checkpoint", "run")
    assert (status, out) == (2, "")
    assert err == "error: run already exists; pass --resume to continue, or choose another file\n"
    assert Path("run").read_bytes() == content


@pytest.mark.parametrize(
    "extra", [{}, {"training": 1}, {"training": {"options": {}, "forward_seconds": 2}}]
)
def test_a_checkpoint_of_something_else(run, extra):
    save_checkpoint("run", AdamW(TinyTransformer().parameters), extra=extra)
    status, out, err = run("train", "--checkpoint", "run", "--resume")
    assert (status, out) == (2, "")
    assert err == (
        "error: run must be the checkpoint of a training run; got one without its options, losses "
        "and times\n"
    )


def test_a_damaged_checkpoint(run, train_json):
    train_json("--steps", 5, "--checkpoint", "run")
    content = Path("run").read_bytes()
    damaged = (content[:100], content[:-1], content[:-1] + bytes([content[-1] ^ 1]))
    for data in damaged:
        Path("run").write_bytes(data)
        status, out, err = run("train", "--checkpoint", "run", "--resume")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: run is corrupt")
        assert Path("run").read_bytes() == data
