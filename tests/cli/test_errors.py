"""Bad input, and what is missing: one line on standard error, and an exit status."""

import errno
import os
from pathlib import Path

import pytest
from cli_process import MAIN, in_a_process, no_such_file
from permissions import binding_permissions

needs_posix_paths = pytest.mark.skipif(os.name == "nt", reason="paths as on POSIX")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps 0", "error: --steps must be at least 1; got 0\n"),
        ("--steps many", "error: --steps must be an integer; got 'many'\n"),
        ("--steps=", "error: --steps must be an integer; got ''\n"),
        ("--steps=--5", "error: --steps must be an integer; got '--5'\n"),
        pytest.param(
            f"--steps 1{'0' * 5000}",
            "error: --steps must have at most 4,300 digits; got 5,001\n",
            id="--steps of 5001 digits",
        ),
        pytest.param(
            f"--steps {'x' * 5000}",
            "error: --steps must be an integer; got 'xxx",
            id="--steps of 5000 letters",
        ),
        ("--lr -1", "error: --lr must be at least 0; got -1\n"),
        ("--lr fast", "error: --lr must be a number; got 'fast'\n"),
        ("--lr nan", "error: --lr must be finite; got nan\n"),
        ("--lr inf", "error: --lr must be finite; got inf"),
        ("--lr 1e39 --dtype float32", "float32"),
        ("--weight-decay -1", "error: --weight-decay must be at least 0; got -1\n"),
        ("--seed -1", "error: --seed must be at least 0; got -1\n"),
        ("--num-threads 0", "error: --num-threads must be at least 1; got 0\n"),
        ("--num-threads 1000000", "error: --num-threads must be"),
        ("--dtype float16", "error: --dtype must be one of float32, float64; got 'float16'\n"),
        ("--unknown", "--unknown"),
        ("--text missing.txt", f"error: missing.txt: {no_such_file()}\n"),
        ("--text folder", "error: folder must be a file or a pipe; got a folder\n"),
        ("--text latin1.txt", "latin1.txt must be UTF-8 text; byte 0 is invalid"),
        (
            "--text empty.txt",
            "empty.txt must have at least 36 characters for a context of 32; got 0",
        ),
        ("--text short.txt", "short.txt must have at least 36 characters"),
        ("--text long.txt --context 200", "long.txt must have at least 223 characters"),
        (
            "--text long.txt --d-model 9",
            "--d-model must be a multiple of the number of heads (2); got 9",
        ),
        ("--plot missing/plot.png", "does not exist; create it first"),
        ("--plot long.txt/plot.png", "long.txt/plot.png must be in a folder; got the file "),
        ("--plot folder.png", "error: --plot must be a file; got the folder 'folder.png'"),
        *(
            (f"--{name}=", f"error: --{name} must be the name of a file; got ''")
            for name in ("text", "checkpoint", "plot", "report", "log")
        ),
        (
            "--plot plot.doc",
            "--plot must end in .png, .svg, .pdf or another format of Matplotlib's; got plot.doc",
        ),
        ("--plot plot", "format of Matplotlib's; got plot"),
        ("--context 8", "--context requires --text"),
        ("--batch-size 8", "--batch-size requires --text"),
        ("--d-model 8", "--d-model requires --text"),
        ("--sgd-lr nan", "--sgd-lr"),
        ("--max-grad-norm -1", "--max-grad-norm must be a finite number above 0; got -1.0\n"),
        ("--max-grad-norm nan", "--max-grad-norm"),
        ("--max-grad-norm 0 --every 5", "--max-grad-norm must be a finite number above 0; got"),
        (
            "--dtype float32 --state-dtype 4bit",
            "error: --state-dtype must be one of float32, bfloat16, 8bit; got '4bit'",
        ),
        ("--state-dtype 8bit", "--state-dtype requires --dtype float32"),
        ("--schedule step", "--schedule must be one of constant, linear, cosine; got 'step'\n"),
        ("--warmup -1", "--warmup"),
        ("--schedule linear --warmup 500", "--warmup (500) must be less than --steps (500)"),
        ("--schedule cosine --warmup 9 --steps 8", "--warmup (9) must be less than --steps (8)"),
        # The first rate would do: 1e35.
        ("--warmup 1000 --lr 1e38 --dtype float32", "float32"),
        ("--every 0 --checkpoint run", "error: --every must be at least 1; got 0\n"),
        ("--every 5", "--every requires --checkpoint"),
        ("--d-model 33", "--d-model must be a multiple of the number of heads (2); got 33"),
        ("--every 5 --compare", "--every cannot be combined with --compare"),
        ("--resume --sgd-lr 1", "--resume cannot be combined with --sgd-lr"),
        ("--resume", "--resume requires --checkpoint"),
        ("--epochs 0", "--epochs"),
        ("--epochs 2 --steps 9", "--epochs cannot be combined with --steps; leave one of them out"),
        (
            "--epochs 5 --schedule linear --warmup 5",
            "--warmup (5) must be less than the number of steps of --epochs 5 (5)",
        ),
        (
            "--text long.txt --epochs 1",
            "error: --batch-size must be at most the number of windows in the text (5); got 16",
        ),
        ("--log log.txt", "--log must end in .csv or .jsonl; got log.txt"),
        ("--log log", "--log must end in .csv or .jsonl; got log"),
        ("--log missing/log.csv", "does not exist; create it first"),
        ("--log a.csv --checkpoint a.csv", "--checkpoint and --log must be different files"),
        ("--generate 0", "error: --generate must be at least 1; got 0\n"),
        ("--prompt you", "--prompt must contain words of I, like, transformers only; got 'you'"),
        ("--text long.txt --prompt y", "--prompt must contain characters of the text only; got"),
        ("--resume auto", "--resume requires --checkpoint"),
        ("--checkpoint run --resume=no", "--resume must be one of auto, always; got 'no'\n"),
        ("--checkpoint long.txt --resume auto", "long.txt is corrupt"),
        (
            "--checkpoint run.pt",
            "error: --checkpoint must not have the suffix of a different format (a checkpoint is a "
            ".safetensors file); got 'run.pt'\n",
        ),
        ("--checkpoint long.NPZ --resume", "must not have the suffix of a different format"),
        ("--checkpoint run --compare", "--checkpoint cannot be combined with --compare"),
        ("--checkpoint run --sgd-lr 1", "--checkpoint cannot be combined with --sgd-lr"),
        (
            "--checkpoint run --resume",
            "run does not exist; pass --resume auto to start a training run",
        ),
        ("--checkpoint folder", "error: --checkpoint must be a file; got the folder 'folder'"),
        (
            "--checkpoint long.txt",
            "long.txt already exists; pass --resume to continue, or choose another file",
        ),
        ("--checkpoint long.txt --resume", "long.txt is corrupt"),
        ("--checkpoint empty.txt --resume", "empty.txt is corrupt"),
        ("--checkpoint missing/run", "does not exist; create it first"),
        pytest.param(
            "--checkpoint missing/../run",
            f"run cannot be written: {os.strerror(errno.ENOENT)}",
            marks=needs_posix_paths,
        ),
        ("--checkpoint long.txt/run", "long.txt/run must be in a folder; got the file "),
        # That a folder cannot be written to is found by trying: this one not even by root.
        ("--checkpoint /proc/run", "proc"),
        pytest.param(
            f"--checkpoint {'x' * 256}",
            f"x cannot be written: {os.strerror(errno.ENAMETOOLONG)}",
            marks=needs_posix_paths,
        ),
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

    monkeypatch.setattr("fused_adamw.tiny.launch.train", None)
    status, out, err = run("train", *mode, *arguments.split())
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err.replace(os.sep, "/")
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("option", "name"),
    [
        *(("--text", "closed.csv"), ("--log", "closed.csv"), ("--log", "closed/log.csv")),
        *(("--plot", "closed/plot.png"), ("--checkpoint", "closed/run")),
    ],
)
def test_files_without_permission(run, option, name):
    Path("closed").mkdir(mode=0o500)
    Path("closed.csv").write_text("x" * 200)
    Path("closed.csv").chmod(0)
    with binding_permissions():
        status, out, err = run("train", option, name)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert err.endswith(f"{os.strerror(errno.EACCES)}\n")


@pytest.mark.skipif(os.name != "nt", reason="elsewhere a file without permission is replaced")
@pytest.mark.parametrize("options", [("--plot", "a.png"), ("--checkpoint", "a.png", "--resume")])
def test_a_read_only_file_is_refused_before_any_training_on_windows(run, monkeypatch, options):
    monkeypatch.setattr("fused_adamw.tiny.launch.train", None)
    Path("a.png").touch(mode=0o444)
    status, out, err = run("train", *options)
    assert (status, out) == (2, "")
    assert err == f"error: a.png cannot be written: {os.strerror(errno.EACCES)}\n"
    assert os.listdir() == ["a.png"]


def test_a_file_that_is_replaced_needs_no_permission_of_its_own(run):
    Path("plot.png").touch(mode=0)
    with binding_permissions():
        status, _, err = run("train", "--steps", 2, "--lr", 0.01, "--plot", "plot.png")
    assert (status, err) == (0, "")
    assert Path("plot.png").stat().st_size


def test_an_unknown_command(run):
    status, out, err = run("trian")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "explain", "info"])
def test_an_unknown_instruction_set(command):
    done = in_a_process(MAIN, command, FUSED_ADAMW_ISA="abacus")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the environment variable FUSED_ADAMW_ISA ")
    assert "abacus" in done.stderr
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


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["typer", "rich", "matplotlib"])
def test_without_the_extra(missing, tmp_path):
    done = in_a_process(without(missing), "train", "--plot", tmp_path / "plot.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {missing}")
    assert 'pip install "fused-adamw[cli]"' in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["psutil", "cpuinfo"])
def test_only_bench_needs_its_extra(missing):
    done = in_a_process(without(missing), "bench")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {missing}")
    assert 'pip install "fused-adamw[cli,bench]"' in done.stderr
    assert done.stderr.count("\n") == 1
    assert in_a_process(without(missing), "train", "--steps", 1).returncode == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "not enough memory"),
        (MemoryError("for an array"), "not enough memory: for an array"),
        (OSError(), "OSError"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_without_text_is_named(run, monkeypatch, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr("fused_adamw.cli.train.sentence_task", fail)
    assert run("train") == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "not enough memory"),
        (MemoryError("for an array"), "not enough memory: for an array"),
        (OSError(28, "No space left on device", "run"), "run: No space left on device"),
    ],
)
def test_what_fails_during_the_training_has_another_status(run, monkeypatch, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr("fused_adamw.tiny.launch.train", fail)
    assert run("train") == (1, "", f"error: {message}\n")
