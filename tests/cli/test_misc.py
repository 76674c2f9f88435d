"""`fused-adamw info`, help, version, terminals."""

import io
import math
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from cli_process import MAIN, in_a_process, loads

from fused_adamw import __version__, runtime_info
from fused_adamw.cli.console import benchmark_bar, progress_bar
from fused_adamw.tiny import History


def test_info(run):
    status, out, _ = run("info", "--json")
    assert status == 0
    around = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": np.__version__,
        "system": platform.platform(),
    }
    assert loads(out) == runtime_info() | around
    status, out, _ = run("info")
    assert status == 0
    isas = ", ".join(runtime_info()["available_isas"])
    for fact in (__version__, runtime_info()["isa"], isas, *around.values()):
        assert fact in out


def test_version_and_help(run):
    assert run("--version") == (0, f"fused-adamw {__version__}\n", "")
    for arguments in (("--help",), ("train", "--help")):
        status, out, _ = run(*arguments)
        assert status == 0
        assert "Usage" in out


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "bench", "explain", "info"])
def test_help_fills_the_lines_of_a_terminal(command):
    done = in_a_process(MAIN, command, "--help", COLUMNS="80")
    assert done.returncode == 0
    assert "…" not in done.stdout  # nothing is cut off
    about, _, _ = done.stdout.partition("╭")
    for line, following in pairwise(map(str.strip, about.splitlines())):
        if line and following:
            assert len(line) + len(following.split()[0]) > 76, (line, following)


@pytest.mark.slow
def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "fused_adamw", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"fused-adamw {__version__}\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (("train", "--steps", 1), ["us per step"]),
        (
            ("explain",),
            [
                "theta * (1 - alpha * lambda) = 0.024634 * 0.99999 = ",
                "gelu(x) = x / 2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))",
                "| m_hat = m * 1 / (1 - beta1^t) | v_hat = ",
            ],
        ),
    ],
)
def test_a_terminal_without_the_characters(command, parts):
    done = in_a_process(MAIN, *command, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert [part for part in parts if part not in done.stdout] == []
    assert "?" not in done.stdout
    tables = re.findall(r"^\+-+\+\n(?:\|.*\n)+\+-+\+\n", done.stdout, re.M)
    assert tables
    for table in tables:  # every line as wide as the first
        assert len(set(map(len, table.splitlines()))) == 1


@pytest.mark.slow
def test_interrupted_while_it_is_imported(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = in_a_process(MAIN, "explain", PYTHONPATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def shown_in(columns, run, monkeypatch, *arguments):
    """What a command prints on a terminal of this width."""
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = run(*arguments)
    assert status == 0
    return out


@pytest.mark.parametrize("columns", ["0", "00", "\u00b2", "-3", "x", "", "9" * 20])
def test_a_width_that_is_none_is_ignored(run, monkeypatch, columns):
    for arguments in (("info",), ("explain", "adamw")):  # the second fills its lines
        monkeypatch.delenv("COLUMNS", raising=False)
        expected = run(*arguments)[1]
        assert shown_in(columns, run, monkeypatch, *arguments) == expected


@pytest.mark.parametrize("columns", [1, 9, 30, 40, 60])
@pytest.mark.parametrize("section", ["adamw", "forward", "backward", "parameters"])
def test_a_narrow_terminal_shows_every_character(run, monkeypatch, section, columns):
    arguments = (run, monkeypatch, "explain", section)
    wide, narrow = (shown_in(width, *arguments) for width in (200, columns))

    def characters(text):  # but those of lines and blanks; an ellipsis would be one more
        return Counter(re.sub(r"[\s─]", "", text))

    assert characters(narrow) == characters(wide)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_of_more_steps_than_float64_has(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar("AdamW", 0, 10**400, quiet=False, transient=False) as bar:
        for steps in range(4):
            bar._drawn = -math.inf  # it would draw ten times a second
            bar.show(History([1.5] * (steps + 1)))
    with benchmark_bar(quiet=False) as show:
        for done in range(4):
            show("numpy", done, 10**400)
    assert "loss 1.5000" in sys.stderr.getvalue()
    assert "numpy" in sys.stderr.getvalue()
