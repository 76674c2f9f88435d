"""`fused-adamw train --epochs`, `--resume auto`, `--prompt` and `--generate`."""

from pathlib import Path

import numpy as np
import pytest
from cli_process import MAIN, SMALL, loads, on_a_terminal
from cli_records import HELD_OUT_KEYS, RECORD_KEYS, without_seconds
from systems import needs_terminals

from fused_adamw import AdamW
from fused_adamw.cli.train_options import ScheduleName, TrainConfig
from fused_adamw.tiny import TARGETS, TOKENS, TinyTransformer
from fused_adamw.tiny.epochs import evaluate_epoch

# The text has 960 characters, 864 of them to train on: 107 windows of 8, 26 batches of 4.
PER_EPOCH = 26


def test_epochs_of_a_text(train_json, text):
    record = train_json("--text", text, *SMALL, "--epochs", 3)
    assert set(record) == RECORD_KEYS | HELD_OUT_KEYS | {"sample", "epochs"}
    assert record["steps"] == 3 * PER_EPOCH == record["config"]["steps"]
    assert record["config"]["epochs"] == 3
    for i, epoch in enumerate(record["epochs"]):
        assert (epoch["epoch"], epoch["steps"]) == (i + 1, (i + 1) * PER_EPOCH)
        losses = record["losses"][i * PER_EPOCH : (i + 1) * PER_EPOCH]
        assert epoch["loss"] == pytest.approx(np.mean(losses), rel=1e-14)
    assert record["epochs"][2]["held_out_loss"] == record["final_held_out_loss"]
    # A training run of two epochs begins in the same way.
    two = train_json("--text", text, *SMALL, "--epochs", 2)
    assert two["epochs"] == record["epochs"][:2]
    assert two["final_held_out_loss"] == record["epochs"][1]["held_out_loss"]
    random = train_json("--text", text, *SMALL, "--steps", 3 * PER_EPOCH)
    assert random["losses"] != record["losses"]


def test_epochs_of_the_sentence_are_its_steps(train_json):
    record = train_json("--epochs", 30)
    assert record["steps"] == 30
    assert record["final_loss"] == train_json("--steps", 30)["final_loss"]
    assert [epoch["loss"] for epoch in record["epochs"]] == record["losses"][:30]
    assert record["epochs"][0]["held_out_loss"] is None


def test_a_line_of_progress_for_each_epoch(run, text):
    status, out, err = run("train", "--text", text, *SMALL, "--epochs", 4)
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()[:4]]
    record = loads(run("train", "--json", "--text", text, *SMALL, "--epochs", 4)[1])
    for line, epoch in zip(lines, record["epochs"], strict=True):
        shown = ["epoch", f"{epoch['epoch']}/4", "training", "loss", f"{epoch['loss']:.4f}"]
        assert line[:7] == [*shown, "held-out", f"{epoch['held_out_loss']:.4f}"]
    _, out, _ = run("train", "--epochs", 300)
    assert 20 <= sum(line.startswith("epoch ") for line in out.splitlines()) <= 30
    assert "epoch   1/300" in out
    assert "epoch 300/300" in out


@needs_terminals
def test_the_progress_where_only_the_errors_go_to_a_terminal(text):
    out, shown = on_a_terminal(MAIN, "train", "--text", text, *SMALL, "--epochs", 2)
    assert out.count("epoch ") == 2
    assert "epoch " not in shown
    assert f"{2 * PER_EPOCH}/{2 * PER_EPOCH}" in shown


def test_the_schedule_ends_with_the_last_epoch(train_json, text):
    record = train_json("--text", text, *SMALL, "--epochs", 2, "--schedule", "linear")
    steps = 2 * PER_EPOCH
    rates = [0.001 * (steps - k) / steps for k in range(steps)]
    assert record["learning_rates"] == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize("stop", [7, PER_EPOCH, PER_EPOCH + 9])
def test_epochs_are_resumed_as_if_never_stopped(
    run, train_json, text, stop_at, assert_same, monkeypatch, stop
):
    options = ("--text", text, *SMALL, "--epochs", 3)
    whole = train_json(*options, "--checkpoint", "whole", "--log", "whole.csv")
    with monkeypatch.context() as context:
        original = AdamW.step
        stop_at(stop)
        status, out, _ = run("train", "--json", *options, "--checkpoint", "parts")
        context.setattr(AdamW, "step", original)
    assert (status, loads(out)["steps"]) == (130, stop)
    resumed = train_json(*options, "--checkpoint", "parts", "--resume", "--log", "parts.csv")
    assert_same("parts", "whole")
    assert without_seconds(resumed) | {"resumed_from": None} == without_seconds(whole)
    assert Path("parts.csv").read_bytes() == Path("whole.csv").read_bytes()
    epochs = [row.split(",")[2] for row in Path("whole.csv").read_text().splitlines()[1:]]
    assert epochs == ["0", *("1" * PER_EPOCH), *("2" * PER_EPOCH), *("3" * PER_EPOCH)]


def test_more_epochs_of_a_constant_rate(run, train_json, text, assert_same):
    options = ("--text", text, *SMALL)
    train_json(*options, "--epochs", 3, "--checkpoint", "whole")
    train_json(*options, "--epochs", 1, "--checkpoint", "parts")
    train_json(*options, "--epochs", 3, "--checkpoint", "parts", "--resume")
    assert_same("parts", "whole")

    def refusal(*more):
        status, out, err = run("train", *options, *more, "--checkpoint", "parts", "--resume")
        assert (status, out) == (2, "")
        return err

    assert refusal("--epochs", 2) == (
        f"error: the steps of --epochs must be at least {3 * PER_EPOCH}, the number of steps in "
        f"parts; got {2 * PER_EPOCH}\n"
    )
    different = "error: parts was saved with different options: --epochs 3 (now not given)\n"
    assert refusal("--steps", 100) == different


def test_a_constant_rate_may_not_be_reached(train_json, text):
    record = train_json("--text", text, *SMALL, "--epochs", 1, "--warmup", 2 * PER_EPOCH)
    assert record["steps"] == PER_EPOCH


def test_a_warm_up_as_long_as_the_default_steps():
    """It is compared with the steps of the epochs."""
    config = TrainConfig(epochs=30, schedule=ScheduleName.LINEAR, warmup=500)
    assert config.total_steps(PER_EPOCH) == 30 * PER_EPOCH
    with pytest.raises(
        ValueError, match=r"^--warmup \(500\) must be less than the number of steps"
    ):
        config.total_steps(16)


def test_the_epochs_of_a_falling_rate_stay(run, train_json, text):
    options = ("--text", text, *SMALL, "--schedule", "cosine", "--checkpoint", "run")
    train_json(*options, "--epochs", 1)
    status, _, err = run("train", *options, "--epochs", 2, "--resume")
    assert status == 2
    assert err == "error: run was saved with different options: --epochs 1 (now 2)\n"


def test_ctrl_c_while_held_out_text_is_evaluated(run, text, monkeypatch):
    """The rest of it is left out."""
    from fused_adamw.cli import training

    def evaluate(result, task):
        if result.history.steps == PER_EPOCH:
            import signal

            signal.raise_signal(signal.SIGINT)
        evaluate_epoch(result, task)

    monkeypatch.setattr(training, "evaluate_epoch", evaluate)
    status, out, err = run("train", "--json", "--text", text, *SMALL, "--epochs", 3)
    record = loads(out)
    assert (status, err) == (130, "")
    assert record["steps"] == PER_EPOCH + 1  # the step that had begun
    assert record["epochs"][0]["held_out_loss"] is None


# ---- --resume auto


@pytest.mark.parametrize("spelled", [("--resume", "auto"), ("--resume=auto",)])
def test_auto_starts_a_training_or_continues_it(train_json, assert_same, spelled):
    for i in range(1, 4):
        record = train_json("--steps", 4 * i, "--checkpoint", "run", *spelled)
        assert record["resumed_from"] == (4 * (i - 1) or None)
    train_json("--checkpoint", "whole", "--steps", 12)
    assert_same("run", "whole")


def test_resume_alone_before_other_options(run, train_json):
    train_json("--checkpoint", "run", "--steps", 3)
    for options in (("--resume", "--steps", 5), ("--steps", 5, "--resume")):
        assert train_json("--checkpoint", "run", *options)["steps"] == 5
    status, _, err = run("train", "--checkpoint", "run", "--resume=never")
    assert (status, err.count("\n")) == (2, 1)
    assert "--resume" in err


def test_auto_checks_what_it_finds(run, train_json):
    train_json("--checkpoint", "run", "--steps", 3)
    status, out, err = run("train", "--checkpoint", "run", "--resume", "auto", "--seed", 3)
    assert (status, out) == (2, "")
    assert err == "error: run was saved with different options: --seed 42 (now 3)\n"


# ---- --prompt and --generate


def test_the_trained_model_completes_the_sentence(train_json, run):
    assert train_json("--prompt", "I")["sample"] == "I like transformers <EOS>"
    assert train_json("--generate", 2)["sample"] == "I like"
    assert "sample" not in train_json()
    _, out, _ = run("train", "--prompt", "I like")
    assert "I like transformers <EOS>" in out


def test_the_trained_model_continues_a_text(train_json, text):
    options = ("--text", text, *SMALL, "--steps", 40, "--checkpoint", "run")
    sample = train_json(*options, "--prompt", "the c", "--generate", 25)["sample"]
    assert sample.startswith("the c")
    assert len(sample) == 5 + 25
    # What was trained is used again without training.
    again = train_json(*options, "--resume", "--prompt", "the c", "--generate", 25)
    assert (again["sample"], again["resumed_from"]) == (sample, 40)
    assert len(train_json(*options, "--resume", "--generate", 7)["sample"]) == 1 + 7


def test_a_model_that_diverged_writes_nothing(run):
    status, out, _ = run("train", "--json", "--lr", 1e150, "--steps", 9, "--prompt", "I")
    assert status == 0
    assert "sample" not in loads(out)


def test_the_model_is_used_with_the_parameters_it_has(train_json):
    """One that has not learnt writes what its own predictions give."""
    sample = train_json("--steps", 1, "--generate", 4, "--seed", 3)["sample"].split()
    model = TinyTransformer(3)
    AdamW(model.parameters).step(model.loss_and_gradients(TOKENS, TARGETS)[1])
    generator, tokens = np.random.default_rng(3), [1]
    vocabulary = ["<PAD>", "<BOS>", "<EOS>", "I", "like", "transformers"]
    while len(tokens) < 5 and tokens[-1] != 2:
        logits = model.logits(tokens)[-1]
        exponentials = np.exp(logits - logits[1:].max())
        exponentials[0] = 0  # <PAD> is never drawn
        tokens.append(int(generator.choice(6, p=exponentials / exponentials.sum())))
    assert sample == [vocabulary[token] for token in tokens[1:]]
