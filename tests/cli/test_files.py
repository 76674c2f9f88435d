"""The files of `fused-adamw train`: one for each purpose, and nothing but files."""

import copy
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import changes, header_and_data, rewrite, write_file
from cli_process import ENDLESS, SMALL, START
from systems import needs_links, needs_locks

# ---- two options, one file


@pytest.mark.parametrize("other", ["--text", "--checkpoint"])
@pytest.mark.parametrize(
    "kind",
    [
        *("same", "spelling", "absolute", "hard link"),
        *(pytest.param(kind, marks=needs_links) for kind in ("link", "linked folder")),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_the_plot_does_not_replace_another_file(run, monkeypatch, other, kind, exists):
    if not exists and (other == "--text" or kind == "hard link"):
        pytest.skip("exists")
    monkeypatch.setattr("fused_adamw.tiny.launch.train", None)
    Path("folder").mkdir()
    path, plot = "a.png", {"same": "a.png", "spelling": "folder/../a.png"}.get(kind)
    if kind == "absolute":
        plot = os.path.abspath(path)
    elif kind == "link":
        plot = "link.png"
        Path(plot).symlink_to(path)
    elif kind == "linked folder":
        Path("linked").symlink_to("folder")
        path, plot = "folder/a.png", "linked/a.png"
    if exists:
        Path(path).write_text("the text " * 40)
    if kind == "hard link":
        plot = "hard.png"
        os.link(path, plot)
    options = ("--resume",) if other == "--checkpoint" and exists else ()
    before = {file: file.read_bytes() for file in Path().rglob("*") if file.is_file()}
    status, out, err = run("train", other, path, "--plot", plot, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{other} and --plot must be different files; got {Path(plot)}" in err
    assert {file: file.read_bytes() for file in Path().rglob("*") if file.is_file()} == before


@needs_links
@pytest.mark.parametrize(
    "option", ["--checkpoint x", "--plot x.png", "--report x.html", "--log x.csv", "--text x"]
)
def test_a_loop_of_links_is_refused_before_any_training(run, monkeypatch, option):
    monkeypatch.setattr("fused_adamw.tiny.launch.train", None)
    Path(option.split()[1]).symlink_to(option.split()[1])
    status, out, err = run("train", *option.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert os.strerror(errno.ELOOP) in err


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a current folder")
@pytest.mark.parametrize(
    "command",
    [
        "train --checkpoint x.safetensors",
        "train --checkpoint x.safetensors --log y.csv",
        "train --plot x.png",
        "train --report x.html",
        "train --log x.csv",
        "bench --plot x.png",
    ],
)
def test_the_current_folder_was_removed(run, monkeypatch, tmp_path, command):
    monkeypatch.setattr("fused_adamw.tiny.launch.train", None)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    status, out, err = run(*command.split())
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: x\.\w+: {os.strerror(errno.ENOENT)}\n", err)


def test_the_checkpoint_does_not_replace_the_text(run, text):
    content = text.read_bytes()
    status, out, err = run("train", "--text", text, "--checkpoint", text, "--resume")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "--text and --checkpoint must be different files" in err
    assert text.read_bytes() == content


# ---- names


@pytest.mark.skipif(os.name == "nt", reason="Windows limits the whole path")
@pytest.mark.parametrize("name", ["x" * 234, "x" * 255, "ü" * 127])
def test_a_checkpoint_of_any_name(run, train_json, name):
    assert train_json("--steps", 2, "--checkpoint", name)["steps"] == 2
    assert train_json("--steps", 3, "--checkpoint", name, "--resume")["resumed_from"] == 2
    assert os.listdir() == [name]


@pytest.mark.parametrize(
    "arguments", [("--text", ""), ("--checkpoint", "", "--resume"), ("--plot", ".doc")]
)
def test_names_are_escaped_in_messages(run, arguments):
    name = "a\x1b[2J\nerror: b"
    try:
        Path(name).write_bytes(b"")
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error}")
    status, out, err = run("train", arguments[0], name + arguments[1], *arguments[2:])
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err[:-1].isprintable()
    assert r"a\x1b[2J\nerror: b" in err


# ---- what is no regular file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--text", "/dev/zero"),
        ("--checkpoint", "/dev/null"),
        ("--checkpoint", "/dev/zero", "--resume"),
        ("--checkpoint", "pipe.png"),
        ("--checkpoint", "pipe.png", "--resume"),
        ("--plot", "pipe.png"),
        ("--plot", "device.png"),
    ],
)
def test_pipes_and_devices_are_refused_at_once(run, monkeypatch, arguments):
    """A pipe would be waited for; a device may never end, or may not be replaced."""
    monkeypatch.setattr("fused_adamw.tiny.launch.train", None)
    os.mkfifo("pipe.png")
    Path("device.png").symlink_to("/dev/null")
    status, out, err = run("train", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert sorted(os.listdir()) == ["device.png", "pipe.png"]


@pytest.mark.skipif(os.name == "nt" or not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_a_text_from_a_pipe(train_json):
    """As the shell's `--text <(...)` gives it."""
    read, write = os.pipe()
    os.write(write, b"the cat sat on the mat. " * 40)
    os.close(write)
    try:
        record = train_json("--text", f"/dev/fd/{read}", *SMALL, "--steps", 2)
    finally:
        os.close(read)
    assert record["steps"] == 2


# ---- crafted checkpoints


def refused_or_complete(run, *arguments):
    status, out, err = run("train", "--checkpoint", "run", "--resume", *arguments)
    assert (status, out) == (2, "") or (status, err) == (0, "")
    assert err == "" or (err.count("\n") == 1 and err[:-1].isprintable())
    return status


@pytest.mark.slow
@pytest.mark.parametrize("key", ["optimizer", "extra"])
def test_any_value_in_a_checkpoint(run, train_json, key):
    train_json("--steps", 3, "--checkpoint", "run")
    path = Path("run")
    header, data = header_and_data(path)
    metadata, refused = header["__metadata__"], 0
    saved = json.loads(metadata[key])
    if key == "optimizer":  # the rest is read as everywhere
        del saved["steps"], saved["orders"]
    for _, _, value in list(changes(saved))[::3]:
        whole = value
        if key == "optimizer" and isinstance(value, dict):
            original = json.loads(metadata[key])
            whole = {"steps": original["steps"], "orders": original["orders"], **value}
        changed = metadata | {key: json.dumps(whole)}
        write_file(path, header | {"__metadata__": changed}, copy.copy(data))
        refused += refused_or_complete(run, "--steps", 3) == 2
    assert refused > 30


def test_a_checkpoint_whose_losses_are_of_another_step(run, train_json):
    train_json("--steps", 3, "--checkpoint", "run")
    saved = json.loads(header_and_data(Path("run"))[0]["__metadata__"]["optimizer"])
    rewrite(Path("run"), optimizer=json.dumps(saved | {"t": 2}))
    status, out, err = run("train", "--steps", 5, "--checkpoint", "run", "--resume")
    assert (status, out) == (2, "")
    message = "run must have one loss for each step; got t=2 and the losses up to step 3"
    assert err == f"error: {message}\n"


# ---- two training runs, one checkpoint


@pytest.fixture
def training(tmp_path):
    """A training run in another process, which saves to the file "run"."""
    options = ["--steps", "2000000", "--every", "1000", "--checkpoint", str(tmp_path / "run")]
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, "train", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=START,
    ) as process:
        try:
            assert process.stderr.readline() == "under way\n"
            yield process
        finally:
            process.kill()


LOCKED = "cannot be used: another training run saves to it"


@pytest.mark.slow
@needs_locks
def test_two_trainings_of_one_checkpoint(run, train_json, training):
    Path("link").symlink_to("run")
    for name in ("run", "./run", "link"):
        for options in ((), ("--resume",)):
            status, out, err = run("train", "--checkpoint", name, *options)
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert err.startswith(f"error: {name.removeprefix('./')} {LOCKED}")
    assert train_json("--steps", 2, "--checkpoint", "other")["steps"] == 2
    training.send_signal(signal.SIGTERM)
    assert training.wait(60) == 143
    assert sorted(os.listdir()) == ["link", "other", "run"]
    Path("run").rename("moved")
    assert train_json("--steps", 2, "--checkpoint", "run")["steps"] == 2


@pytest.mark.slow
@needs_locks
def test_a_training_that_was_killed_has_no_lock(run, train_json, training):
    training.kill()
    training.wait()
    assert ".run.lock" in os.listdir()
    options = ("--steps", 3, "--checkpoint", "run")
    if Path("run").exists():
        Path("run").unlink()
    assert train_json(*options)["steps"] == 3
    assert os.listdir() == ["run"]


@needs_locks
def test_the_lock_ends_with_the_command(run, monkeypatch):
    def interrupt(*_):
        assert ".run.lock" in os.listdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("fused_adamw.tiny.launch.train", interrupt)
    assert run("train", "--checkpoint", "run")[0] == 130
    assert os.listdir() == []


@needs_locks
def test_a_file_system_without_locks(train_json, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert train_json("--steps", 2, "--checkpoint", "run")["steps"] == 2
    assert os.listdir() == ["run"]
