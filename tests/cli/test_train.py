"""`fused-adamw train`: options, records and tables."""

import math
import re

import numpy as np
import pytest
from cli_process import MAIN, in_a_process, loads, on_a_terminal
from cli_records import RECORD_KEYS, RUN_KEYS
from systems import needs_terminals

from fused_adamw import AdamW
from fused_adamw.tiny import TARGETS, TOKENS, TinyTransformer


def test_the_default_training(run):
    status, out, err = run("train")
    assert (status, err) == (0, "")
    assert "3,456 parameters, float64, seed 42" in out
    losses = next(line.split() for line in out.splitlines() if line.startswith("  AdamW"))
    assert losses[1] == "1.829868"
    assert losses[3] == "6.2331"
    assert float(losses[2]) < 0.02
    for row in ("<BOS> I I", "I like like", "like transformers transformers"):
        assert any(line.split()[:3] == row.split() for line in out.splitlines())
    for phase in ("forward", "backward", "optimizer"):
        assert phase in out
    assert "in pure Python" in out
    assert "ln 6 = 1.791759" in out


def test_the_default_record(train_json):
    record = train_json()
    assert set(record) == RECORD_KEYS
    assert record["initial_loss"] == pytest.approx(1.8298677505438041, abs=1e-15)
    assert record["final_loss"] < 0.02
    assert record["initial_perplexity"] == math.exp(record["initial_loss"])
    assert record["final_perplexity"] == pytest.approx(math.exp(record["final_loss"]), rel=1e-15)
    expected = {"optimizer": "AdamW", "steps": 500, "parameters": 3456, "lr": 0.001}
    assert expected.items() <= record.items()
    assert record["config"] == {
        "steps": 500,
        "epochs": None,
        "lr": 0.001,
        "weight_decay": 0.01,
        "schedule": "constant",
        "warmup": 0,
        "max_grad_norm": None,
        "dtype": "float64",
        "state_dtype": None,
        "seed": 42,
        "text": None,
    }
    assert record["interrupted"] is False
    assert record["resumed_from"] is None
    phases = (record[f"{phase}_seconds"] for phase in ("forward", "backward", "optimizer"))
    assert record["seconds"] == pytest.approx(sum(phases))
    assert record["reference_step_seconds"] > 0
    assert [row["target"] for row in record["predictions"]] == [
        "I", "like", "transformers", "<EOS>",
    ]  # fmt: skip


def test_lr_weight_decay_seed_and_dtype_change_the_training(train_json):
    first = train_json("--steps", 5)
    others = {
        option: train_json("--steps", 5, option, value)
        for option, value in (
            ("--lr", 0.01),
            ("--weight-decay", 1),
            ("--seed", 7),
            ("--dtype", "float32"),
        )
    }
    finals = [record["final_loss"] for record in (first, *others.values())]
    assert len(set(finals)) == 5
    assert others["--lr"]["initial_loss"] == first["initial_loss"]
    assert others["--weight-decay"]["initial_loss"] == first["initial_loss"]
    assert others["--seed"]["initial_loss"] == TinyTransformer(seed=7).loss(TOKENS, TARGETS)
    assert others["--dtype"]["config"]["dtype"] == "float32"
    # Roundings of 6e-8 in every operation; 1e-7 has been seen.
    assert others["--dtype"]["final_loss"] == pytest.approx(first["final_loss"], abs=1e-5)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_state_in_fewer_bits(run, train_json, state_dtype):
    options = ("--dtype", "float32", "--steps", 20)
    whole = train_json(*options)
    record = train_json(*options, "--state-dtype", state_dtype)
    assert whole["config"]["state_dtype"] is None
    assert record["config"]["state_dtype"] == state_dtype
    model = TinyTransformer(dtype=np.float32)
    optimizer = AdamW(model.parameters, state_dtype=state_dtype)
    for _ in range(20):
        optimizer.step(model.loss_and_gradients(TOKENS, TARGETS)[1])
    assert record["final_loss"] == model.loss(TOKENS, TARGETS)
    # The loss falls by more than 0.5; 0.0015 of difference has been seen.
    assert record["final_loss"] != whole["final_loss"]
    assert record["final_loss"] == pytest.approx(whole["final_loss"], abs=0.01)
    rates = ("--lr", 0.001, "--sgd-lr", 0.1)
    _, out, _ = run("train", *options, "--state-dtype", state_dtype, *rates)
    assert f"AdamW, {state_dtype} state, lr" in " ".join(out.split())


def loss_after(rates, **options):
    """What the default training comes to, with these rates one after the other."""
    model = TinyTransformer()
    optimizer = AdamW(model.parameters, **options)
    for rate in rates:
        _, grads = model.loss_and_gradients(TOKENS, TARGETS)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step(grads)
    return model.loss(TOKENS, TARGETS)


def test_max_grad_norm_clips(train_json):
    record = train_json("--steps", 4, "--max-grad-norm", 0.25)
    assert record["final_loss"] == loss_after([0.001] * 4, max_grad_norm=0.25)
    assert record["final_loss"] != loss_after([0.001] * 4)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--schedule constant", [1, 1, 1, 1]),
        ("--warmup 2", [1 / 2, 1, 1, 1]),
        ("--warmup 8", [1 / 8, 2 / 8, 3 / 8, 4 / 8]),  # a constant rate may not be reached
        ("--schedule linear", [1, 3 / 4, 2 / 4, 1 / 4]),
        ("--schedule linear --warmup 2", [1 / 2, 1, 1, 1 / 2]),
        ("--schedule linear --warmup 3", [1 / 3, 2 / 3, 1, 1]),
        ("--schedule cosine", [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]),
        ("--schedule cosine --warmup 1", [1, 1, 3 / 4, 1 / 4]),
    ],
)
def test_schedules(train_json, arguments, parts):
    record = train_json("--steps", 4, "--lr", 0.01, *arguments.split())
    # The rates here may differ from the schedule's in the last bit.
    assert record["final_loss"] == pytest.approx(loss_after([0.01 * x for x in parts]), rel=1e-13)
    assert record["lr"] == 0.01


def test_compare_leaves_sgd_its_constant_rate(train_json):
    options = ("--schedule", "linear", "--warmup", 2, "--max-grad-norm", 0.1)
    rates = ("--lr", 0.001, "--sgd-lr", 0.001)
    with_them, without = (train_json("--steps", 4, *rates, *o) for o in (options, ()))
    assert with_them["sgd"]["final_loss"] == without["sgd"]["final_loss"]
    assert with_them["final_loss"] != without["final_loss"]


def test_threads_change_no_bit(train_json):
    one, two = (train_json("--steps", 5, "--num-threads", n) for n in (1, 2))
    assert one["final_loss"] == two["final_loss"]


def loss_with_sgd(lr, steps):
    model = TinyTransformer()
    for _ in range(steps):
        _, grads = model.loss_and_gradients(TOKENS, TARGETS)
        for name, parameter in model.parameters.items():
            parameter -= lr * grads[name]
    return model.loss(TOKENS, TARGETS)


def test_rates_that_are_given_are_not_swept(train_json, run):
    rates = ("--lr", 0.001, "--sgd-lr", 0.1)
    record = train_json("--compare", "--steps", 4, *rates)
    assert set(record) == RECORD_KEYS | {"sgd", "sweep"}
    assert set(record["sgd"]) == RUN_KEYS
    assert record["sgd"]["initial_loss"] == record["initial_loss"]
    assert (record["sgd"]["optimizer"], record["sgd"]["lr"]) == ("SGD", 0.1)
    assert record["sgd"]["final_loss"] == loss_with_sgd(0.1, steps=4)
    # --sgd-lr implies --compare.
    assert train_json(*rates, "--steps", 4)["sgd"]["final_loss"] == loss_with_sgd(0.1, 4)
    assert record["final_loss"] == train_json("--steps", 4)["final_loss"]
    assert [len(record["sweep"][name]) for name in ("adamw", "sgd")] == [1, 1]

    _, out, _ = run("train", *rates, "--steps", 4)
    assert "by learning rate" not in out
    for label in ("AdamW, lr 0.001", "SGD, lr 0.1"):
        assert f"Where the time goes: {label}" in out
        assert sum(line.strip().startswith(label) for line in out.splitlines()) == 1


def test_a_loss_that_diverges_is_null_and_reported(run):
    status, out, err = run("train", "--json", "--lr", 1e150, "--steps", 12)
    record = loads(out)
    assert (status, record["steps"], record["final_loss"]) == (0, 12, None)
    first = record["predictions"][0]
    assert (first["probability"], first["predicted"]) == (None, None)
    assert err.startswith("warning: AdamW: loss became non-finite at step ")
    assert err.count("\n") == 1

    _, out, _ = run("train", "--lr", 1e150, "--steps", 12)
    assert ["<BOS>", "I", "-", "nan"] in [line.split() for line in out.splitlines()]

    rates = ("--lr", 0.001, "--sgd-lr", 1e10)
    status, out, err = run("train", "--json", *rates, "--steps", 12)
    assert (status, loads(out)["sgd"]["final_loss"]) == (0, None)
    assert err.startswith("warning: SGD, lr 1e+10: loss became non-finite at step ")
    assert err.count("\n") == 1


@pytest.mark.slow
@needs_terminals
def test_the_progress_bar_of_a_terminal():
    out, shown = on_a_terminal(MAIN, "train", "--steps", 20)
    assert "20/20" in shown
    assert f"loss {TinyTransformer().loss(TOKENS, TARGETS):.4f}" in shown
    assert "20/20" not in out
    out, shown = on_a_terminal(MAIN, "train", "--steps", 20, "--json")
    assert shown == ""
    assert loads(out)["steps"] == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
@pytest.mark.parametrize(
    "command", [("train", "--steps", 20), ("bench", "--case", "tiny-transformer")]
)
def test_no_progress_bar_in_a_file(name, command):
    """Even where colors are wanted, as for the log of a job."""
    options = ("--rounds", 1, "--implementation", "numpy") if command[0] == "bench" else ()
    done = in_a_process(MAIN, *command, *options, **{name: "1"})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@needs_terminals
def test_a_large_loss_on_the_progress_bar():
    _, shown = on_a_terminal(MAIN, "train", "--steps", 10, "--sgd-lr", 3, "--lr", 3)
    assert not re.search("[0-9]{8}", shown)
