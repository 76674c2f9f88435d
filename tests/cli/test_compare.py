"""`fused-adamw train --compare`: each optimizer at its own best rate."""

import math
import signal
from itertools import count

import numpy as np
import pytest
from cli_process import SMALL, loads
from cli_records import RECORD_KEYS

from fused_adamw import AdamW
from fused_adamw.cli import training
from fused_adamw.cli.sweep_report import conclusions, sweep_record
from fused_adamw.tiny import SGD, TARGETS, TOKENS, History, TinyTransformer, TrainingResult
from fused_adamw.tiny.sweep import Sweep

CHANCE = math.log(6)


def loss_after(name, lr, steps):
    model = TinyTransformer()
    optimizer = AdamW(model.parameters, lr) if name == "adamw" else None
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            _, grads = model.loss_and_gradients(TOKENS, TARGETS)
            if optimizer is not None:
                optimizer.step(grads)
                continue
            for key, parameter in model.parameters.items():
                parameter -= lr * grads[key]
        return model.loss(TOKENS, TARGETS)


def test_each_optimizer_is_shown_at_the_best_rate_of_its_sweep(train_json):
    steps = 40
    record = train_json("--compare", "--steps", steps)
    assert set(record) == RECORD_KEYS | {"sgd", "sweep"}
    sweep = record["sweep"]
    assert sweep["chance"] == CHANCE
    for name, shown in (("adamw", record), ("sgd", record["sgd"])):
        rows = sweep[name]
        rates = [row["lr"] for row in rows]
        assert rates == sorted(rates)
        assert {0.0001, 0.001, 0.01, 0.1, 1.0} <= set(rates)
        for row in rows[2:8:2]:
            assert row["loss"] == loss_after(name, row["lr"], steps)
        best = min((row for row in rows if row["loss"] is not None), key=lambda row: row["loss"])
        assert (shown["lr"], shown["final_loss"]) == (best["lr"], best["loss"])
        assert rates[0] < shown["lr"] < rates[-1]
    assert record["config"]["lr"] == 0.001  # of a training run that does not compare
    assert record["final_loss"] < sweep["working_loss"] < CHANCE


@pytest.mark.slow
def test_what_the_default_comparison_says(run):
    """The figures of docs/why-not-sgd.md."""
    status, out, err = run("train", "--compare", "--plot", "plot.svg")
    assert (status, err) == (0, "")
    words = " ".join(out.split())
    assert "Loss after 500 steps, by learning rate" in words
    # AdamW's loss, far below float64's resolution of 1.8, may differ in its third digit.
    assert "AdamW (rate 0.0316) reaches a loss of 7." in words
    assert "SGD (rate 0.316) 4.60e-04, 5." in words
    assert "SGD's best rate is 10 times that of AdamW. At AdamW's best rate SGD reaches" in words
    assert "AdamW's from 0.000316 to 0.1, 2.5 decades; SGD's from 0.01 to 1, 2.0 decades." in words
    assert "Both work over 2 decades of rates or more: neither is much more sensitive" in words
    rows = [line.split() for line in out.splitlines()]
    assert ["3.16", "-", "diverges"] in rows
    assert any(row[:1] == ["0.316"] and row[-1:] == ["*"] for row in rows)


def test_one_rate_that_is_given(train_json, run):
    record = train_json("--sgd-lr", 0.2, "--steps", 5)
    assert [row["lr"] for row in record["sweep"]["sgd"]] == [0.2] == [record["sgd"]["lr"]]
    assert len(record["sweep"]["adamw"]) >= 9
    record = train_json("--compare", "--lr", 0.02, "--steps", 5)
    assert [row["lr"] for row in record["sweep"]["adamw"]] == [0.02] == [record["lr"]]
    assert len(record["sweep"]["sgd"]) >= 9
    _, out, _ = run("train", "--sgd-lr", 0.2, "--steps", 5)
    assert "SGD at the rate that was given, AdamW at its best: " in " ".join(out.split())
    assert "Rates that work" not in out  # of one rate nothing is known


def test_a_sweep_of_a_text_compares_held_out_losses(run, text):
    status, out, err = run("train", "--json", "--text", text, *SMALL, "--steps", 30, "--compare")
    record = loads(out)
    assert (status, err) == (0, "")
    for name, shown in (("adamw", record), ("sgd", record["sgd"])):
        losses = {row["lr"]: row["loss"] for row in record["sweep"][name]}
        assert losses[shown["lr"]] == shown["final_held_out_loss"]
        assert shown["final_held_out_loss"] == min(x for x in losses.values() if x is not None)


# ---- Ctrl-C


@pytest.mark.parametrize("swept", [True, False])
def test_ctrl_c_during_the_second_optimizer(run, monkeypatch, swept):
    """What takes long is left out, although AdamW's training is complete."""
    monkeypatch.setattr("fused_adamw.cli.train.reference_step_seconds", None)
    original_step, calls = SGD.step, count()

    def step(self, grads):
        if next(calls) == 13:
            signal.raise_signal(signal.SIGINT)
        original_step(self, grads)

    monkeypatch.setattr(SGD, "step", step)
    options = ("--compare",) if swept else ("--lr", 0.01, "--sgd-lr", 0.001)
    steps = 10 if swept else 20
    status, out, err = run("train", "--steps", steps, *options)
    assert (status, err) == (130, "")
    # Of a sweep the first training of SGD, at 0.001, is complete.
    interrupted = "SGD, lr 0.00316 after step 4" if swept else "SGD, lr 0.001 after step 14"
    assert f"Interrupted: {interrupted}." in out
    assert "Where the time goes: SGD, lr 0.001" in out
    assert "pure Python" not in out


def test_ctrl_c_during_the_first_sweep(run, stop_at, monkeypatch):
    monkeypatch.setattr("fused_adamw.cli.train.reference_step_seconds", None)
    monkeypatch.setattr(training.Training, "_run_sgd", None)
    stop_at(3)
    status, out, err = run("train", "--json", "--compare", "--steps", 10)
    record = loads(out)
    assert (status, err) == (130, "")
    assert (record["steps"], record["lr"], record["interrupted"]) == (3, 0.001, True)


# ---- in words


def sweep(name, losses):
    best = min(losses, key=losses.__getitem__)
    found = Sweep(name, CHANCE, losses)
    found.best = TrainingResult(name, best, TinyTransformer(), History([CHANCE, losses[best]]))
    return found


def said(adamw, sgd):
    return list(conclusions([sweep("AdamW", adamw), sweep("SGD", sgd)]))


def test_it_says_which_is_better_and_by_how_much():
    first, second, *_ = said({0.01: 0.2, 0.1: 0.4}, {0.01: 1.0, 0.1: 0.3})
    assert first == (
        "Each at its best rate: AdamW (rate 0.01) reaches a loss of 0.200, SGD (rate 0.1) 0.300, "
        "1.5 times that of AdamW."
    )
    assert (
        second
        == "SGD's best rate is 10 times that of AdamW. At AdamW's best rate SGD reaches 1.00."
    )
    first, second, *_ = said({0.01: 0.5, 0.1: 0.9}, {0.01: 0.2, 0.1: 9.0})
    assert first.startswith("Each at its best rate: SGD (rate 0.01) reaches a loss of 0.200, AdamW")
    assert first.endswith("2.5 times that of SGD.")
    assert second == "The best rate is the same for both."
    assert said({0.1: 0.5, 1.0: 1.0}, {0.1: 0.5, 1.0: 0.9})[0].endswith("0.500, about the same.")
    assert said({0.1: 0.5, 1.0: 1.0}, {0.1: 9.0, 1.0: 0.9})[1].endswith("SGD diverges.")


def test_a_rate_that_was_given_is_not_called_the_best():
    swept = {0.01: 1.0, 0.1: 0.3}
    assert said({0.01: 0.2}, swept) == [
        "AdamW at the rate that was given, SGD at its best: AdamW (rate 0.01) reaches a loss of "
        "0.200, SGD (rate 0.1) 0.300, 1.5 times that of AdamW.",
        "At AdamW's rate SGD reaches 1.00.",
    ]
    assert said(swept, {0.0: 1.8}) == [
        "SGD at the rate that was given, AdamW at its best: AdamW (rate 0.1) reaches a loss of "
        "0.300, SGD (rate 0) 1.80, 6 times that of AdamW."
    ]
    assert said(swept, {1e300: 1e5}) == ["SGD diverges at the rate that was given."]


def test_a_loss_of_zero():
    zero = {0.01: 0.1, 0.1: 0.0}
    assert said(zero, {0.01: 0.5, 0.1: 0.2})[0] == (
        "Each at its best rate: AdamW (rate 0.1) reaches a loss of 0, SGD (rate 0.1) 0.200."
    )
    assert said(zero, zero)[0].endswith("SGD (rate 0.1) 0, about the same.")


def test_nothing_is_said_of_a_sweep_that_a_signal_has_ended():
    first, second = (sweep(name, {0.01: 0.2, 0.1: 0.4}) for name in ("AdamW", "SGD"))
    second.interrupted = TrainingResult("SGD", 1.0, TinyTransformer(), History([CHANCE]))
    assert list(conclusions([first, second])) == []


def test_it_says_over_which_rates_each_works():
    wide = {lr: 0.1 for lr in (0.001, 0.01, 0.1, 1.0)}
    narrow = {0.001: 1.5, 0.01: 1.5, 0.1: 0.1, 1.0: 1.5}
    *_, ranges, conclusion = said(wide, narrow)
    assert "AdamW's from 0.001 to 1, 3.0 decades; SGD's 0.1 only." in ranges
    assert conclusion == "SGD is more sensitive to its rate here."
    assert said(narrow, wide)[-1] == "AdamW is more sensitive to its rate here."
    assert said(wide, wide)[-1].startswith("Both work over 3 decades of rates or more: neither")
    assert said(narrow, narrow)[-1].startswith("Neither is much more sensitive")
    poor = dict.fromkeys(wide, 1.5)
    assert said(wide, poor)[-1].endswith("none of SGD's.")
    high = dict.fromkeys(wide, 1.9)
    assert said(high, high)[-1] == "Neither does better than guessing in so few steps."


def test_it_says_what_it_can_where_all_diverge():
    diverging = {0.1: math.inf, 1.0: math.inf}
    assert said(diverging, diverging) == []
    assert said({0.1: 0.5, 1.0: 0.6}, diverging)[0] == "SGD diverges at all of its rates."
    far = {0.1: 100 * CHANCE, 1.0: 1e84}
    first, *others = said({0.1: 0.5, 1.0: 0.6}, far)
    assert first == "SGD diverges at all of its rates."
    assert not any("times" in sentence for sentence in others)
    record = sweep_record([sweep("AdamW", diverging), sweep("SGD", diverging)])
    assert record["sgd"] == [{"lr": 0.1, "loss": math.inf}, {"lr": 1.0, "loss": math.inf}]
