"""The command line, as a user meets it: what it prints, where, and with which status."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from errno import ENOSPC
from pathlib import Path

import numpy as np
import pytest
from arrays import command_line

pytest.importorskip("typer")

from matplotlib.image import imread

from fused_adamw import AdamW, __version__, runtime_info
from fused_adamw.cli import app as cli
from fused_adamw.tiny.model import TARGETS, TOKENS, TinyTransformer

RUN_KEYS = {
    "optimizer",
    "lr",
    "parameters",
    "steps",
    "initial_loss",
    "final_loss",
    "initial_perplexity",
    "final_perplexity",
    "seconds",
    "forward_seconds",
    "backward_seconds",
    "optimizer_seconds",
}
HELD_OUT_KEYS = {"initial_held_out_loss", "final_held_out_loss"}
RECORD_KEYS = RUN_KEYS | {
    "seed",
    "dtype",
    "state_dtype",
    "resumed_from",
    "reference_step_seconds",
    "predictions",
    "interrupted",
}


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder; returns its status, standard output and error."""
    return command_line(cli.main, monkeypatch, capsys, tmp_path)


@pytest.fixture
def train_json(run):
    """Runs `train --json`; returns the object, the only thing on standard output."""

    def command(*arguments):
        status, out, err = run("train", "--json", *arguments)
        assert (status, err) == (0, "")
        return loads(out)

    return command


def loads(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 40, encoding="utf-8")
    return path


START = Path.cwd()  # PYTHONPATH may be relative to it

SMALL = ("--context", 8, "--batch-size", 4, "--d-model", 8, "--n-heads", 2, "--d-ff", 16)


def in_a_process(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
        cwd=START,
        timeout=60,
        check=False,
    )


# --------------------------------------------------------------------------- train


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
    expected = {"optimizer": "fused", "steps": 500, "parameters": 3456, "lr": 0.001, "seed": 42}
    assert expected.items() <= record.items()
    assert (record["dtype"], record["state_dtype"]) == ("float64", None)
    assert record["interrupted"] is False
    assert record["resumed_from"] is None
    phases = (record[f"{phase}_seconds"] for phase in ("forward", "backward", "optimizer"))
    assert record["seconds"] == pytest.approx(sum(phases))
    assert record["reference_step_seconds"] > 0
    assert [row["target"] for row in record["predictions"]] == [
        "I", "like", "transformers", "<EOS>",
    ]  # fmt: skip


@pytest.mark.parametrize("optimizer", ["fused", "reference", "sgd"])
def test_optimizer_and_steps(train_json, optimizer):
    record = train_json("--optimizer", optimizer, "--steps", 3)
    assert (record["optimizer"], record["steps"]) == (optimizer, 3)
    assert (record["reference_step_seconds"] is not None) == (optimizer == "fused")


def test_the_reference_optimizer_gives_the_same_losses(train_json):
    fused, reference = (train_json("--steps", 10, "--optimizer", o) for o in ("fused", "reference"))
    # Other roundings, magnified by ten steps; see test_training.
    assert fused["final_loss"] == pytest.approx(reference["final_loss"], abs=1e-11)


def test_one_sgd_step_with_its_rate(train_json):
    model = TinyTransformer()
    _, grads = model.loss_and_gradients(TOKENS, TARGETS)
    for name, parameter in model.parameters.items():
        parameter -= 0.5 * grads[name]
    record = train_json("--optimizer", "sgd", "--lr", 0.5, "--steps", 1)
    assert record["final_loss"] == model.loss(TOKENS, TARGETS)


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
    assert others["--dtype"]["dtype"] == "float32"
    # Roundings of 6e-8 in every operation; 1e-7 has been seen.
    assert others["--dtype"]["final_loss"] == pytest.approx(first["final_loss"], abs=1e-5)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_state_in_fewer_bits(run, train_json, state_dtype):
    options = ("--dtype", "float32", "--steps", 20)
    whole = train_json(*options)
    record = train_json(*options, "--state-dtype", state_dtype)
    assert (whole["state_dtype"], record["state_dtype"]) == (None, state_dtype)
    model = TinyTransformer(dtype=np.float32)
    optimizer = AdamW(model.parameters, state_dtype=state_dtype)
    for _ in range(20):
        optimizer.step(model.loss_and_gradients(TOKENS, TARGETS)[1])
    assert record["final_loss"] == model.loss(TOKENS, TARGETS)
    # The loss falls by more than 0.5; 0.0015 of difference has been seen.
    assert record["final_loss"] != whole["final_loss"]
    assert record["final_loss"] == pytest.approx(whole["final_loss"], abs=0.01)
    _, out, _ = run("train", *options, "--state-dtype", state_dtype, "--compare")
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
    with_them, without = (train_json("--compare", "--steps", 4, *o) for o in (options, ()))
    assert with_them["sgd"]["final_loss"] == without["sgd"]["final_loss"]
    assert with_them["final_loss"] != without["final_loss"]


def test_threads_change_no_bit(train_json):
    one, two = (train_json("--steps", 5, "--num-threads", n) for n in (1, 2))
    assert one["final_loss"] == two["final_loss"]


def test_compare_trains_both_on_the_same_model(train_json, run):
    record = train_json("--compare", "--steps", 4, "--sgd-lr", 0.1)
    assert set(record) == RECORD_KEYS | {"sgd"}
    assert set(record["sgd"]) == RUN_KEYS
    assert record["sgd"]["initial_loss"] == record["initial_loss"]
    alone = train_json("--optimizer", "sgd", "--lr", 0.1, "--steps", 4)
    assert record["sgd"]["final_loss"] == alone["final_loss"]
    assert record["final_loss"] == train_json("--steps", 4)["final_loss"]

    _, out, _ = run("train", "--compare", "--steps", 4)
    for label in ("AdamW, lr 0.001", "SGD, lr 0.001"):
        assert f"Where the time goes: {label}" in out
        assert sum(line.strip().startswith(label) for line in out.splitlines()) == 1


def test_a_loss_that_diverges_is_null_and_said(run):
    status, out, err = run("train", "--json", "--optimizer", "sgd", "--lr", 1e10, "--steps", 12)
    record = loads(out)
    assert (status, record["steps"], record["final_loss"]) == (0, 12, None)
    assert record["predictions"][0]["probability"] is None
    assert err.startswith("warning: SGD: the loss is no finite number from step ")
    assert err.count("\n") == 1


def test_the_progress_bar_of_a_terminal():
    code = "from fused_adamw.cli import main; main()"
    done = in_a_process(code, "train", "--steps", 20, FORCE_COLOR="1")
    assert "20/20" in done.stderr
    assert f"loss {TinyTransformer().loss(TOKENS, TARGETS):.4f}" in done.stderr
    assert "20/20" not in done.stdout
    done = in_a_process(code, "train", "--steps", 20, "--json", FORCE_COLOR="1")
    assert done.stderr == ""
    assert loads(done.stdout)["steps"] == 20


# --------------------------------------------------------------------------- train --text


@pytest.mark.parametrize("level", ["chars", "words"])
def test_text(train_json, text, level):
    record = train_json("--text", text, "--level", level, "--steps", 60, "--lr", 0.01, *SMALL)
    assert set(record) == RECORD_KEYS | HELD_OUT_KEYS | {"sample"}
    vocabulary = {"chars": "acehmnost. ", "words": ("the", "cat", "sat", "on", "mat", ".")}[level]
    assert record["final_held_out_loss"] < math.log(len(vocabulary) + 1)
    assert record["final_held_out_loss"] < record["initial_held_out_loss"]
    assert len(record["sample"]) > 100
    assert len(record["predictions"]) == 8


def test_the_sizes_of_the_model(train_json, text):
    sizes = {"vocab_size": 12, "d_model": 12, "n_heads": 3, "d_ff": 5, "max_length": 7}
    options = {"--context": 7, "--d-model": 12, "--n-heads": 3, "--d-ff": 5}
    record = train_json(
        "--text", text, "--steps", 1, *(x for pair in options.items() for x in pair)
    )
    assert record["parameters"] == TinyTransformer(**sizes).n_parameters


def test_the_seed_fixes_the_text_training(train_json, text):
    first, again = (train_json("--text", text, "--steps", 3, *SMALL) for _ in range(2))
    assert (first["final_loss"], first["sample"]) == (again["final_loss"], again["sample"])
    smaller = train_json("--text", text, "--steps", 3, *SMALL, "--batch-size", 2)
    assert smaller["final_loss"] != first["final_loss"]


def test_the_summary_of_a_text(run, text):
    text.write_text("[red]\x1b[31m loud[/red] " * 40, encoding="utf-8")  # neither markup nor colour
    status, out, err = run("train", "--text", text, "--compare", "--steps", 2, *SMALL)
    assert (status, err) == (0, "")
    assert out.count("on held-out text") == 2
    assert "A sample" in out
    assert "\x1b" not in out


# --------------------------------------------------------------------------- train --plot


def test_the_plot_is_a_picture_of_the_curves(run):
    status, _, err = run("train", "--steps", 30, "--plot", "one.png")
    assert (status, err) == (0, "")
    run("train", "--steps", 30, "--compare", "--sgd-lr", 0.05, "--plot", "two.png")
    pictures = [Path(name) for name in ("one.png", "two.png")]
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in pictures)
    orange = []
    for path in pictures:
        red, green, blue, _ = imread(path).transpose(2, 0, 1)
        assert ((blue > 0.7) & (red < 0.4)).sum() > 500  # the curve of AdamW
        orange.append(int(((red > 0.7) & (green < 0.6) & (blue < 0.4)).sum()))
    assert orange[0] == 0
    assert orange[1] > 500  # the curve of SGD


def test_the_plot_of_a_text_and_of_a_diverging_training(run, text):
    status, _, _ = run("train", "--text", text, "--steps", 2, *SMALL, "--plot", "text.svg")
    assert status == 0
    assert b"<svg" in Path("text.svg").read_bytes()
    status, _, err = run("train", "--steps", 9, "--compare", "--sgd-lr", 1e10, "--plot", "x.png")
    assert (status, err.count("\n")) == (0, 1)
    assert Path("x.png").exists()


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps 0", "--steps"),
        ("--steps many", "--steps"),
        ("--lr -1", "--lr"),
        ("--lr nan", "--lr"),
        ("--lr inf", "--lr"),
        ("--lr 1e39 --dtype float32", "too large for float32"),
        ("--weight-decay -1", "--weight-decay"),
        ("--seed -1", "--seed"),
        ("--num-threads 0", "--num-threads"),
        ("--num-threads 1000000", "num_threads is 1000000"),
        ("--optimizer adam", "--optimizer"),
        ("--dtype float16", "--dtype"),
        ("--unknown", "--unknown"),
        ("--text missing.txt", "No such file"),
        ("--text folder", "Is a directory"),
        ("--text latin1.txt", "latin1.txt is not UTF-8 text (byte 0)"),
        ("--text empty.txt", "empty.txt has too few tokens: 0"),
        ("--text short.txt", "short.txt has too few tokens: 5"),
        ("--text long.txt --context 200", "long.txt has too few tokens: 200"),
        ("--text long.txt --level words", "long.txt has too few tokens: 1"),
        ("--text long.txt --d-model 9", "multiple of n_heads"),
        ("--plot missing/plot.png", "there is no folder"),
        ("--plot long.txt/plot.png", "there is no folder"),
        ("--plot folder.png", "is a directory"),
        ("--plot plot.doc", "suffix '.doc'"),
        ("--plot plot", "suffix ''"),
        ("--level words", "--level has no effect without --text"),
        ("--d-model 8", "--d-model has no effect without --text"),
        ("--sgd-lr 1", "--sgd-lr has no effect without --compare"),
        ("--optimizer sgd --weight-decay 0", "--weight-decay has no effect without AdamW"),
        ("--optimizer sgd --compare", "--compare has no effect without AdamW"),
        ("--optimizer reference --num-threads 1", "--num-threads has no effect without"),
        ("--max-grad-norm -1", "--max-grad-norm"),
        ("--max-grad-norm nan", "--max-grad-norm"),
        ("--max-grad-norm 0", "max_grad_norm is 0"),
        (
            "--optimizer sgd --max-grad-norm 1",
            "--max-grad-norm has no effect without --optimizer f",
        ),
        ("--state-dtype 4bit", "--state-dtype"),
        ("--state-dtype 8bit", "--state-dtype is for parameters in float32: add --dtype float32"),
        (
            "--optimizer sgd --dtype float32 --state-dtype 8bit",
            "--state-dtype has no effect without --optimizer f",
        ),
        ("--schedule step", "--schedule"),
        (
            "--optimizer reference --schedule linear",
            "--schedule has no effect without --optimizer f",
        ),
        ("--warmup -1", "--warmup"),
        ("--optimizer sgd --warmup 1", "--warmup has no effect without --optimizer fused"),
        ("--schedule linear --warmup 500", "warmup is 500; expected fewer than the 500 steps"),
        ("--schedule cosine --warmup 9 --steps 8", "warmup is 9; expected fewer than the 8 steps"),
        # The first rate would do: 1e35.
        ("--warmup 1000 --lr 1e38 --dtype float32", "too large for float32"),
        ("--every 0 --checkpoint run", "--every"),
        ("--every 5", "--every has no effect without --checkpoint"),
        ("--resume", "--resume has no effect without --checkpoint"),
        (
            "--checkpoint run --optimizer sgd",
            "--checkpoint has no effect without --optimizer fused",
        ),
        ("--checkpoint run --compare", "--checkpoint holds one training, --compare makes two"),
        ("--checkpoint run --steps 1000001", "holds a training of 1000000 at most"),
        ("--checkpoint run --resume", "run: there is no such file to resume from"),
        ("--checkpoint folder", "is a directory"),
        ("--checkpoint long.txt", "long.txt exists; --resume goes on from it"),
        ("--checkpoint long.txt --resume", "long.txt is damaged, or no checkpoint"),
        ("--checkpoint empty.txt --resume", "empty.txt is damaged, or no checkpoint"),
        ("--checkpoint missing/run", "there is no folder"),
        ("--checkpoint long.txt/run", "there is no folder"),
        # That a folder cannot be written to is found by trying: this one not even by root.
        ("--checkpoint /proc/run", "proc"),
        # Its own name would do, but not that of the file which a save writes first.
        (f"--checkpoint {'x' * 240}", "x cannot be written"),
    ],
)
@pytest.mark.parametrize("mode", [(), ("--json",)], ids=["table", "json"])
def test_bad_input_is_one_line_before_any_training(run, monkeypatch, arguments, message, mode):
    if "--checkpoint" in arguments:
        pytest.importorskip("safetensors")
    for name in ("folder", "folder.png"):
        Path(name).mkdir()
    Path("latin1.txt").write_bytes("été".encode("latin-1") * 100)
    for name, content in {"empty.txt": "", "short.txt": "short", "long.txt": "x" * 200}.items():
        Path(name).write_text(content)
    before = sorted(Path().rglob("*"))

    monkeypatch.setattr(cli.training, "train", None)
    status, out, err = run("train", *mode, *arguments.split())
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


@pytest.mark.skipif(
    os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0,
    reason="permissions bind neither root nor Windows in this way",
)
def test_files_without_permission(run):
    Path("closed").mkdir(mode=0o500)
    for name in ("text.txt", "plot.png"):
        Path(name).write_text("x" * 200)
        Path(name).chmod(0)
    for arguments in (
        ("--text", "text.txt"),
        ("--plot", "plot.png"),
        ("--plot", "closed/plot.png"),
        ("--checkpoint", "closed/run"),
    ):
        status, out, err = run("train", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)


def test_the_probe_spares_a_picture_that_exists(run, monkeypatch):
    def train(*_):
        assert Path("old.png").read_text() == "old"
        assert not Path("new.png").exists()
        raise KeyboardInterrupt

    Path("old.png").write_text("old")
    monkeypatch.setattr(cli.training, "train", train)
    for name in ("old.png", "new.png"):
        status, _, _ = run("train", "--plot", name)
        assert status == 130
    assert Path("old.png").read_text() == "old"
    assert not Path("new.png").exists()


def test_an_unknown_command(run):
    status, out, err = run("trian")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")


@pytest.mark.parametrize("command", ["train", "explain", "info"])
def test_an_unknown_instruction_set(command):
    code = "from fused_adamw.cli import main; main()"
    done = in_a_process(code, command, FUSED_ADAMW_ISA="abacus")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the environment variable FUSED_ADAMW_ISA is 'abacus'")
    assert done.stderr.count("\n") == 1


def without(missing):
    return f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import fused_adamw.tiny.train_loop  # needs none of them
from fused_adamw.cli import main
main()
"""


@pytest.mark.parametrize("missing", ["typer", "rich", "matplotlib"])
def test_without_the_extra(missing, tmp_path):
    done = in_a_process(without(missing), "train", "--plot", tmp_path / "plot.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {missing}")
    assert 'pip install "fused-adamw[cli]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_safetensors_all_but_the_checkpoint_works(tmp_path):
    code, path = without("safetensors"), tmp_path / "run.safetensors"
    assert in_a_process(code, "train", "--steps", 1).returncode == 0
    done = in_a_process(code, "train", "--checkpoint", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: checkpoints need safetensors")
    assert 'pip install "fused-adamw[checkpoint]"' in done.stderr
    assert done.stderr.count("\n") == 1
    assert not path.exists()


def test_matplotlib_is_imported_for_the_plot_alone():
    code = """
import sys
from fused_adamw.cli import main
try:
    main()
finally:
    assert "matplotlib" not in sys.modules
"""
    assert in_a_process(code, "train", "--steps", 1).returncode == 0


# --------------------------------------------------------------------------- Ctrl-C

# A training that would not end says on standard error when it is under way.
ENDLESS = """
import signal, sys
from fused_adamw.cli import app as cli
from fused_adamw.tiny import train_loop as training

signal.signal(signal.SIGINT, signal.default_int_handler)  # even where a shell ignores it
fused_step = training.AdamW.step

def step(self, grads):
    fused_step(self, grads)
    if self.t == 3:
        print("under way", file=sys.stderr, flush=True)

training.AdamW.step = step
cli.main()
"""


def interrupted(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, "train", "--steps", "1000000", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        cwd=START,
    )
    try:
        assert process.stderr.readline() == "under way\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_with_the_summary():
    status, out, err = interrupted("--compare")
    assert (status, err) == (130, "")
    assert "Interrupted: AdamW, lr 0.001 after " in out
    assert "1.829868" in out
    assert "SGD" not in out  # it had not begun


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_with_the_record():
    status, out, err = interrupted("--json")
    record = loads(out)
    assert (status, err) == (130, "")
    assert record["interrupted"] is True
    assert 3 <= record["steps"] < 1_000_000
    assert record["final_loss"] < record["initial_loss"]


# --------------------------------------------------------------------------- train --checkpoint

MAIN = "from fused_adamw.cli import main; main()"
FALLING = ("--schedule", "cosine", "--warmup", 4, "--max-grad-norm", 0.5)


@pytest.fixture
def load_file():
    return pytest.importorskip("safetensors.numpy").load_file


@pytest.fixture
def assert_same(load_file):
    """Parameters and optimizer of two checkpoints are the same to the last bit."""

    def check(path, other):
        tensors, others = load_file(path), load_file(other)
        assert set(tensors) == set(others)
        for name, array in tensors.items():
            assert array.dtype == others[name].dtype
            np.testing.assert_array_equal(array, others[name], err_msg=name)

    return check


def without_seconds(record):
    return {name: value for name, value in record.items() if not name.endswith("seconds")}


@pytest.fixture
def stop_at(monkeypatch):
    """Has Ctrl-C pressed within the update of this number."""

    def arrange(t):
        fused_step = AdamW.step

        def step(self, grads):
            if self.t + 1 == t:
                signal.raise_signal(signal.SIGINT)
            fused_step(self, grads)

        monkeypatch.setattr(AdamW, "step", step)

    return arrange


@pytest.mark.parametrize("dtype", ["float32", "float64", "8bit"])
@pytest.mark.parametrize("options", [(), FALLING], ids=["constant", "falling"])
@pytest.mark.parametrize("with_text", [False, True], ids=["sentence", "text"])
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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_training_that_is_killed_between_two_saves(tmp_path, text, assert_same):
    killed = """
import os, signal
from fused_adamw.cli import app as cli
from fused_adamw.tiny import train_loop as training

fused_step = training.AdamW.step

def step(self, grads):
    if self.t == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    fused_step(self, grads)

training.AdamW.step = step
cli.main()
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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_training_that_is_killed_at_any_moment(train_json, tmp_path, assert_same):
    from fused_adamw.checkpoint import load_checkpoint

    options = ("--checkpoint", str(tmp_path / "parts"), "--every", "1", "--steps")
    command = [sys.executable, "-c", MAIN, "train", *options, "1000000"]
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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_saves(train_json, tmp_path, assert_same):
    pytest.importorskip("safetensors")
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
    pytest.importorskip("safetensors")
    from fused_adamw.tiny import training_checkpoint as resuming

    saved = []
    write = resuming.save_checkpoint

    def save_checkpoint(path, optimizer, **others):
        saved.append(optimizer.t)
        write(path, optimizer, **others)

    monkeypatch.setattr(resuming, "save_checkpoint", save_checkpoint)
    train_json("--steps", 10, "--checkpoint", "run", *options)
    assert saved == expected
    # What it goes on from is not saved again.
    train_json("--steps", 20, "--checkpoint", "run", "--resume", "--every", 10)
    assert saved == [*expected, 20]


def test_a_training_that_is_complete_is_only_shown(run, train_json):
    pytest.importorskip("safetensors")
    first = train_json("--steps", 5, "--checkpoint", "run", *FALLING)
    content = Path("run").read_bytes()
    again = train_json("--steps", 5, "--checkpoint", "run", "--resume", *FALLING)
    assert again.pop("reference_step_seconds") > 0
    first.pop("reference_step_seconds")
    assert again == first | {"resumed_from": 5}
    assert Path("run").read_bytes() == content


def test_the_summary_and_the_plot_show_the_whole_training(run, monkeypatch):
    pytest.importorskip("safetensors")
    drawn = []
    monkeypatch.setattr(cli.report, "save_plot", lambda _, curves, *__: drawn.extend(curves))
    run("train", "--steps", 20, "--checkpoint", "run")
    options = ("--steps", 30, "--checkpoint", "run", "--resume", "--plot", "plot.png")
    status, out, err = run("train", *options)
    assert (status, err) == (0, "")
    assert "Resumed after 20 steps." in out
    assert "What it predicts after 30 steps" in out
    assert "1.829868" in out  # the first loss
    assert len(drawn[0].run.losses) == 31


def test_the_progress_bar_of_a_resumed_training(tmp_path):
    pytest.importorskip("safetensors")
    options = ("train", "--checkpoint", tmp_path / "run", "--steps")
    in_a_process(MAIN, *options, 20)
    done = in_a_process(MAIN, *options, 30, "--resume", FORCE_COLOR="1")
    assert "30/30" in done.stderr
    assert " 0/30" not in done.stderr


def test_a_training_that_diverges_can_be_resumed(run, assert_same):
    options = ("train", "--json", "--lr", 1e150, "--checkpoint")
    run(*options, "parts", "--steps", 6)
    status, out, err = run(*options, "parts", "--steps", 12, "--resume")
    assert (status, loads(out)["final_loss"], loads(out)["resumed_from"]) == (0, None, 6)
    assert err.startswith("warning: ")
    whole = run(*options, "whole", "--steps", 12)
    assert err == whole[2]  # which names the first step without a loss
    assert_same("parts", "whole")


@pytest.fixture
def saved(train_json, text):
    """A checkpoint after 6 steps, and the options it was made with."""
    pytest.importorskip("safetensors")
    options = {"--steps": 6, "--schedule": "linear", "--warmup": 2, "--max-grad-norm": 1.0}
    options |= {"--text": text, **dict(zip(SMALL[::2], SMALL[1::2], strict=True))}
    train_json("--checkpoint", "run", *(x for pair in options.items() for x in pair))
    return options


@pytest.mark.parametrize(
    ("option", "value", "difference"),
    [
        ("--seed", 7, "--seed is 42 there and 7 here"),
        ("--dtype", "float32", "--dtype is float64 there and float32 here"),
        ("--lr", 0.01, "--lr is 0.001 there and 0.01 here"),
        ("--weight-decay", 0, "--weight-decay is 0.01 there and 0.0 here"),
        ("--max-grad-norm", 2, "--max-grad-norm is 1.0 there and 2.0 here"),
        ("--schedule", "cosine", "--schedule is linear there and cosine here"),
        ("--schedule", "constant", "--schedule is linear there and constant here"),
        ("--warmup", 3, "--warmup is 2 there and 3 here"),
        ("--steps", 7, "--steps is 6 there and 7 here"),
        ("--text", "other.txt", "--text is BLAKE2b "),
        ("--level", "words", "--level is chars there and words here"),
        ("--context", 9, "--context is 8 there and 9 here"),
        ("--batch-size", 5, "--batch-size is 4 there and 5 here"),
        ("--d-model", 10, "--d-model is 8 there and 10 here"),
        ("--n-heads", 1, "--n-heads is 2 there and 1 here"),
        ("--d-ff", 17, "--d-ff is 16 there and 17 here"),
    ],
)
def test_another_training_is_not_resumed(run, saved, option, value, difference):
    Path("other.txt").write_text("the cat sat on the mat. " * 39 + "the cat sat on the tam. ")
    content = Path("run").read_bytes()
    options = saved | {option: value}
    arguments = (x for pair in options.items() for x in pair)
    status, out, err = run("train", "--checkpoint", "run", "--resume", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: run is of another training: ")
    assert difference in err
    # Only what was changed is named: words make another text, too.
    assert err.count("--") == (2 if option == "--level" else 1)
    assert Path("run").read_bytes() == content


def test_another_state_is_not_resumed(run, train_json):
    pytest.importorskip("safetensors")
    options = ("--checkpoint", "run", "--dtype", "float32", "--steps", 3)
    train_json(*options)
    status, _, err = run("train", *options, "--resume", "--state-dtype", "8bit")
    assert status == 2
    assert "another training: --state-dtype is not given there and 8bit here" in err


def test_what_may_change_when_a_training_is_resumed(saved, text, train_json, assert_same):
    text.rename("moved.txt")
    options = saved | {"--text": "moved.txt", "--num-threads": 2, "--every": 3}
    arguments = (x for pair in options.items() for x in pair)
    assert train_json("--checkpoint", "run", "--resume", *arguments)["steps"] == 6


def test_fewer_steps_than_were_done(run, train_json):
    pytest.importorskip("safetensors")
    train_json("--steps", 5, "--checkpoint", "run")
    status, out, err = run("train", "--steps", 4, "--checkpoint", "run", "--resume")
    assert (status, out) == (2, "")
    assert err == "error: run has 5 steps; expected at most 4\n"


def test_an_existing_checkpoint_is_not_lost(run, saved):
    content = Path("run").read_bytes()
    status, out, err = run("train", "--checkpoint", "run")
    assert (status, out) == (2, "")
    assert err == "error: run exists; --resume goes on from it\n"
    assert Path("run").read_bytes() == content


@pytest.mark.parametrize("extra", [{}, {"training": 1}, {"training": {"definition": {}, "run": 2}}])
def test_a_checkpoint_of_something_else(run, extra):
    pytest.importorskip("safetensors")
    from fused_adamw.checkpoint import save_checkpoint

    save_checkpoint("run", AdamW(TinyTransformer().parameters), extra=extra)
    status, out, err = run("train", "--checkpoint", "run", "--resume")
    assert (status, out) == (2, "")
    assert err == "error: run is not from `fused-adamw train`\n"


def test_a_damaged_checkpoint(run, train_json):
    pytest.importorskip("safetensors")
    train_json("--steps", 5, "--checkpoint", "run")
    content = Path("run").read_bytes()
    damaged = (content[:100], content[:-1], content[:-1] + bytes([content[-1] ^ 1]))
    for data in damaged:
        Path("run").write_bytes(data)
        status, out, err = run("train", "--checkpoint", "run", "--resume")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: run is damaged")
        assert Path("run").read_bytes() == data


def test_a_disk_that_gets_full(run, train_json, monkeypatch, assert_same):
    pytest.importorskip("safetensors")
    flush, flushed = os.fsync, []

    def fsync(descriptor):
        flushed.append(descriptor)
        if len(flushed) > 4:  # a file and its folder at each save: two of them go well
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


# --------------------------------------------------------------------------- the rest


def test_explain_shows_the_worked_figures(run):
    status, out, err = run("explain")
    assert (status, err) == (0, "")
    rows = {line.split("  ")[1]: line.split() for line in out.splitlines() if "  " in line}
    for name, figure in {
        "m": "-0.035289300",
        "v": "+0.000124533",
        "m_hat": "-0.352893000",
        "v_hat": "+0.124533469",
        "decayed": "+0.024633754",
        "effective lr": "+0.002833720",
        "update": "-0.001000000",
        "theta": "+0.025633754",
    }.items():
        assert rows[name][-2:] == [figure, figure], name  # the kernel and the reference
    for size, multiplier in {
        "0.001": "999.99",
        "0.01": "100.00",
        "0.1": "10.00",
        "0.5": "2.00",
        "1": "1.00",
        "5": "0.20",
    }.items():
        assert rows[size][-2:] == [multiplier, "x"]
    assert rows["W_1"] == ["W_1", "64", "x", "16", "1,024", "2,048"]
    assert rows["all"] == ["all", "3,456", "6,912"]


def test_info(run):
    status, out, _ = run("info", "--json")
    assert status == 0
    assert loads(out) == runtime_info()
    status, out, _ = run("info")
    assert status == 0
    for fact in (__version__, runtime_info()["isa"], ", ".join(runtime_info()["available_isas"])):
        assert fact in out


def test_version_and_help(run):
    assert run("--version") == (0, f"fused-adamw {__version__}\n", "")
    for arguments in (("--help",), ("train", "--help")):
        status, out, _ = run(*arguments)
        assert status == 0
        assert "Usage" in out


def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "fused_adamw", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"fused-adamw {__version__}\n")


def test_a_terminal_without_the_signs():
    code = "from fused_adamw.cli import main; main()"
    done = in_a_process(code, "train", "--steps", 1, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "1.829868" in done.stdout
