"""`fused-adamw train --text`."""

import math

from cli_process import SMALL
from cli_records import HELD_OUT_KEYS, RECORD_KEYS

from fused_adamw.tiny import TinyTransformer


def test_text(train_json, text):
    record = train_json("--text", text, "--steps", 60, "--lr", 0.01, *SMALL)
    assert set(record) == RECORD_KEYS | HELD_OUT_KEYS | {"sample"}
    assert record["final_held_out_loss"] < math.log(len("acehmnost. ") + 1)
    assert record["final_held_out_loss"] < record["initial_held_out_loss"]
    assert len(record["sample"]) > 100
    assert len(record["predictions"]) == 8
    assert {"context": 8, "batch_size": 4, "d_model": 8}.items() <= record["config"].items()
    assert record["config"]["text"].startswith("BLAKE2b ")


def test_the_sizes_of_the_model(train_json, text):
    sizes = {"vocab_size": 12, "d_model": 12, "n_heads": 2, "d_ff": 48, "max_length": 7}
    record = train_json("--text", text, "--steps", 1, "--context", 7, "--d-model", 12)
    assert record["parameters"] == TinyTransformer(**sizes).n_parameters


def test_the_seed_fixes_the_text_training(train_json, text):
    first, again = (train_json("--text", text, "--steps", 3, *SMALL) for _ in range(2))
    assert (first["final_loss"], first["sample"]) == (again["final_loss"], again["sample"])
    smaller = train_json("--text", text, "--steps", 3, *SMALL, "--batch-size", 2)
    assert smaller["final_loss"] != first["final_loss"]


def test_the_summary_of_a_text(run, text):
    text.write_text("[red]\x1b[31m loud[/red] " * 40, encoding="utf-8")  # neither markup nor color
    rates = ("--lr", 0.001, "--sgd-lr", 0.001)
    status, out, err = run("train", "--text", text, *rates, "--steps", 2, *SMALL)
    assert (status, err) == (0, "")
    assert out.count("on held-out text") == 2
    assert "A sample" in out
    assert "\x1b" not in out
