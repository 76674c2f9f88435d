"""The command line, as a user meets it: what it prints, where, and with which status."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")

from matplotlib.image import imread

from fused_adamw import __version__, cli, runtime_info
from fused_adamw.tiny_transformer import TARGETS, TOKENS, TinyTransformer

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
RECORD_KEYS = RUN_KEYS | {"seed", "dtype", "reference_step_seconds", "predictions", "interrupted"}


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder; returns its status, standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["fused-adamw", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code or 0, *capsys.readouterr()

    return command


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


SMALL = ("--context", 8, "--batch-size", 4, "--d-model", 8, "--n-heads", 2, "--d-ff", 16)


def in_a_process(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
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
    assert record["dtype"] == "float64"
    assert record["interrupted"] is False
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
        ("--text missing.txt", "does not exist"),
        ("--text folder", "is a directory"),
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
    ],
)
@pytest.mark.parametrize("mode", [(), ("--json",)], ids=["table", "json"])
def test_bad_input_is_one_line_before_any_training(run, monkeypatch, arguments, message, mode):
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


@pytest.mark.parametrize("missing", ["typer", "rich", "matplotlib"])
def test_without_the_extra(missing, tmp_path):
    code = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import fused_adamw.training  # needs none of them
from fused_adamw.cli import main
main()
"""
    done = in_a_process(code, "train", "--plot", tmp_path / "plot.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {missing}")
    assert 'pip install "fused-adamw[cli]"' in done.stderr
    assert done.stderr.count("\n") == 1


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
from fused_adamw import cli, training

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
        [sys.executable, "-c", ENDLESS, "train", "--steps", "1000000000", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
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
    assert 3 <= record["steps"] < 1_000_000_000
    assert record["final_loss"] < record["initial_loss"]


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
