"""`fused-adamw train --log`, and the same numbers in `--json`."""

import csv
import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
from cli_process import SMALL, loads

from fused_adamw import AdamW
from fused_adamw.checkpoint import read_step
from fused_adamw.tiny import TARGETS, TOKENS, TinyTransformer
from fused_adamw.tiny.training_log import TrainingLog

COLUMNS = ["optimizer", "peak_lr", "epoch", "step", "loss", "learning_rate", "gradient_norm"]


def expected(rates, **options):
    """Losses and norms of the default training at these rates."""
    model = TinyTransformer()
    optimizer = AdamW(model.parameters, **options)
    losses, norms = [], []
    for rate in rates:
        loss, grads = model.loss_and_gradients(TOKENS, TARGETS)
        losses.append(loss)
        norms.append(np.linalg.norm(np.concatenate([g.ravel() for g in grads.values()])))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step(grads)
    return [*losses, model.loss(TOKENS, TARGETS)], norms


def rows_of(path):
    if path.endswith(".csv"):
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return [loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("clip", [None, 0.5])
def test_losses_norms_and_rates_of_every_step(train_json, clip):
    options = ("--schedule", "linear", "--warmup", 2, "--steps", 6)
    options += () if clip is None else ("--max-grad-norm", clip)
    record = train_json(*options, "--log", "log.csv")
    rates = [0.0005, 0.001, 0.001, 0.00075, 0.0005, 0.00025]
    assert record["learning_rates"] == pytest.approx(rates, rel=1e-14)
    losses, norms = expected(record["learning_rates"], max_grad_norm=clip)
    assert record["losses"] == losses
    # Before clipping. The order of the sum differs.
    assert record["gradient_norms"] == pytest.approx(norms, rel=1e-13)
    train_json(*options, "--log", "log.jsonl")
    for rows in (rows_of("log.csv"), rows_of("log.jsonl")):
        assert list(rows[0]) == COLUMNS
        assert [int(row["step"]) for row in rows] == list(range(7))
        assert [float(row["loss"]) for row in rows] == losses
        assert not rows[0]["learning_rate"]
        assert not rows[0]["gradient_norm"]
        assert [float(row["learning_rate"]) for row in rows[1:]] == record["learning_rates"]
        assert [float(row["gradient_norm"]) for row in rows[1:]] == record["gradient_norms"]
        assert {(row["optimizer"], float(row["peak_lr"])) for row in rows} == {("AdamW", 0.001)}
        assert not any(row["epoch"] for row in rows)


def test_the_log_of_a_comparison_has_all_trainings(train_json):
    record = train_json("--compare", "--steps", 3, "--log", "log.jsonl")
    rows = rows_of("log.jsonl")
    for name in ("AdamW", "SGD"):
        last = {r["peak_lr"]: r["loss"] for r in rows if (r["optimizer"], r["step"]) == (name, 3)}
        assert last == {row["lr"]: row["loss"] for row in record["sweep"][name.lower()]}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_loss_that_is_not_finite(run, suffix):
    status, out, _ = run("train", "--json", "--lr", 1e150, "--steps", 8, "--log", f"log.{suffix}")
    record = loads(out)
    assert status == 0
    assert record["diverged"] is True
    assert record["losses"][-1] is None
    rows = rows_of(f"log.{suffix}")
    assert len(rows) == 9
    assert rows[-1]["loss"] == ("nan" if suffix == "csv" else None)


def test_the_log_of_a_resumed_training_is_that_of_the_whole(train_json, text):
    options = ("--text", text, *SMALL, "--max-grad-norm", 0.5, "--dtype", "float32")
    whole = train_json(*options, "--steps", 9, "--log", "whole.csv")
    train_json(*options, "--steps", 4, "--checkpoint", "run", "--log", "parts.csv")
    assert len(rows_of("parts.csv")) == 5
    options += ("--checkpoint", "run", "--resume")
    resumed = train_json(*options, "--steps", 9, "--log", "parts.csv")
    assert Path("parts.csv").read_bytes() == Path("whole.csv").read_bytes()
    for key in ("losses", "gradient_norms", "learning_rates"):
        assert resumed[key] == whole[key]


def test_norms_that_were_not_saved_are_null(train_json, monkeypatch):
    from fused_adamw.tiny import training_checkpoint

    write = training_checkpoint.save_checkpoint

    def save(path, optimizer, extra, arrays):
        write(path, optimizer, extra=extra, arrays={"losses": arrays["losses"]})

    with monkeypatch.context() as context:
        context.setattr(training_checkpoint, "save_checkpoint", save)
        train_json("--steps", 3, "--checkpoint", "run")
    record = train_json("--steps", 5, "--checkpoint", "run", "--resume")
    assert record["gradient_norms"][:3] == [None] * 3
    assert all(norm > 0 for norm in record["gradient_norms"][3:])


def test_the_log_can_be_followed(run, monkeypatch):
    """It is written while training goes on."""
    monkeypatch.setattr("fused_adamw.tiny.training_log.FLUSH_SECONDS", 0)
    seen = []
    original = AdamW.step

    def step(self, grads):
        seen.append(len(rows_of("log.csv")))
        original(self, grads)

    monkeypatch.setattr(AdamW, "step", step)
    assert run("train", "--steps", 3, "--log", "log.csv")[0] == 0
    assert seen == [1, 2, 3]


def test_ctrl_c_leaves_a_whole_log(run, stop_at):
    stop_at(5)
    assert run("train", "--log", "log.csv")[0] == 130
    rows = rows_of("log.csv")
    assert [int(row["step"]) for row in rows] == list(range(6))
    assert all(math.isfinite(float(row["gradient_norm"])) for row in rows[1:])


def test_a_disk_that_gets_full(run, monkeypatch):
    """The training is not lost: it goes on, is shown and saved, and the failure is said."""
    original = TrainingLog._row

    def row(self, result, step):
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, result, step)

    monkeypatch.setattr(TrainingLog, "_row", row)
    status, out, err = run("train", "--steps", 9, "--log", "log.csv", "--checkpoint", "run")
    assert (status, err) == (1, "error: log.csv: No space left on device\n")
    assert "Predictions after step 9" in out
    assert read_step("run") == 9
    assert len(rows_of("log.csv")) == 3


@pytest.mark.parametrize(
    "options",
    [
        ("--num-threads", 10**6),
        ("--lr", 1e300, "--dtype", "float32"),
        ("--lr", 1e10, "--weight-decay", 1e308),
        ("--checkpoint", "run", "--resume"),
    ],
    ids=["threads", "rate", "decay", "checkpoint"],
)
def test_a_training_that_is_refused_leaves_the_log_as_it_was(run, options):
    run("train", "--steps", 3, "--checkpoint", "run")
    data = bytearray(Path("run").read_bytes())
    data[-1] ^= 1  # in an array, which is read last
    Path("run").write_bytes(data)
    Path("log.csv").write_text("of before")
    status, _, err = run("train", "--steps", 5, "--log", "log.csv", *options)
    assert (status, err.count("\n")) == (2, 1)
    assert Path("log.csv").read_text() == "of before"


def test_a_log_that_cannot_be_opened_any_more(run, monkeypatch):
    """As one that cannot be written any more."""

    def opened(self):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(TrainingLog, "_opened", opened)
    status, out, err = run("train", "--steps", 3, "--log", "log.csv")
    assert (status, err) == (1, "error: log.csv: No such file or directory\n")
    assert "Predictions after step 3" in out


def test_lists_of_numbers_take_a_line_each(run):
    _, out, _ = run("train", "--json", "--steps", 100)
    assert len(out.splitlines()) < 100
    assert json.loads(out)["losses"][0] == pytest.approx(1.8298677505438041, abs=1e-15)
