"""`fused-adamw explain` and `info`, help, version, terminals."""

import subprocess
import sys

import pytest
from cli_process import MAIN, in_a_process, loads

from fused_adamw import __version__, runtime_info


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
    assert rows["total"] == ["total", "3,456", "6,912"]


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
def test_a_terminal_without_the_characters():
    done = in_a_process(MAIN, "train", "--steps", 1, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "1.829868" in done.stdout
