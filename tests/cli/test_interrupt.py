"""Ctrl-C, SIGTERM and SIGHUP: every command says that it was interrupted."""

import errno
import io
import os
import signal
import sys

import pytest
import typer
from cli_process import in_a_process, interrupted, loads

from fused_adamw._io.stop_signals import StopSignal, stop_signals, stop_signals_raised
from fused_adamw.cli.errors import interrupts_reported


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_with_the_summary():
    status, out, err = interrupted("--compare")
    assert (status, err) == (130, "")
    assert "Interrupted: AdamW, lr 0.001 after " in out
    assert "1.829868" in out
    assert "SGD" not in out  # it had not begun


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_with_the_record():
    status, out, err = interrupted("--json")
    record = loads(out)
    assert (status, err) == (130, "")
    assert record["interrupted"] is True
    assert 3 <= record["steps"] < 2_000_000
    assert record["final_loss"] < record["initial_loss"]


# A command within which a function receives a signal, at a call of this number. With TURNED in the
# environment the function replaces its exception by another, as imports may do.
SIGNALED = """
import os, signal, sys
from importlib import import_module
from fused_adamw.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # even where a shell ignores it
signal.signal(signal.SIGHUP, signal.SIG_DFL)
number, module, name, at = int(sys.argv[1]), import_module(sys.argv[2]), sys.argv[3], sys.argv[4]
original, calls = getattr(module, name), []

def signaled(*arguments):
    calls.append(name)
    if len(calls) == int(at):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            if "TURNED" in os.environ:
                raise SyntaxError("(unicode error)") from error
            raise
    return original(*arguments)

setattr(module, name, signaled)
del sys.argv[1:5]
main()
"""

# A command whose imports are interrupted at that of a module; with TURNED, as above.
SIGNALED_IMPORTS = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "fused_adamw.cli.console":
            try:
                signal.raise_signal(int(sys.argv[1]))
            except KeyboardInterrupt as error:
                if "TURNED" in os.environ:
                    raise RuntimeError("Error calling __set_name__") from error
                raise

sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from fused_adamw.cli import main
"""

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
each_signal = pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])


turned = pytest.mark.parametrize("environment", [{}, {"TURNED": "1"}], ids=["", "turned"])


def signaled(name, *arguments, **environment):
    """The status, standard output and error of a command, less what shells add to the status."""
    number = int(getattr(signal, name))
    done = in_a_process(SIGNALED, number, *arguments, **environment)
    return done.returncode - 128 - number, done.stdout, done.stderr


@posix
@each_signal
@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "function", "command"),
    [
        ("cli.training", "make_schedule", ["train", "--steps", 3]),
        ("cli.explain", "explain_rates", ["explain"]),
        ("explain.scale", "time_block", ["explain", "scale"]),
        ("cli.info", "runtime_info", ["info"]),
    ],
)
@turned
def test_each_command_says_that_a_signal_ended_it(name, module, function, command, environment):
    found = signaled(name, f"fused_adamw.{module}", function, 1, *command, **environment)
    assert found == (0, "", "error: interrupted\n")


@posix
@each_signal
@pytest.mark.slow
@turned
@pytest.mark.parametrize("function", ["correct_columns", "runtime_info"])
def test_a_signal_while_the_options_are_read(name, function, environment):
    found = signaled(name, "fused_adamw.cli", function, 1, "info", **environment)
    assert found == (0, "", "error: interrupted\n")


@posix
@each_signal
@turned
def test_a_signal_during_the_imports(name, environment):
    number = int(getattr(signal, name))
    done = in_a_process(SIGNALED_IMPORTS, number, **environment)
    assert (done.returncode, done.stderr) == (128 + number, "error: interrupted\n")


class ClosedTerminal(io.StringIO):
    def write(self, text):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@posix
def test_the_status_of_a_signal_where_the_terminal_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", ClosedTerminal())
    with pytest.raises(typer.Exit) as ended, interrupts_reported():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.exit_code == 128 + signal.SIGTERM


@posix
@each_signal
@pytest.mark.slow
def test_a_benchmark_ends_with_what_was_measured(name):
    pytest.importorskip("psutil")
    command = ["bench", "--case", "tiny-transformer", "--implementation", "numpy"]
    status, out, err = signaled(name, "fused_adamw.bench.runner", "time_block", 3, *command)
    assert (status, err) == (0, "")
    assert "Interrupted" in out
    assert "tiny transformer" in out


@posix
@pytest.mark.slow
def test_a_signal_between_two_training_runs_ends_the_command():
    arguments = ["train", "--steps", 3, "--compare"]
    found = signaled("SIGTERM", "fused_adamw.cli.training", "make_schedule", 3, *arguments)
    assert found == (0, "", "error: interrupted\n")


@posix
def test_handlers_are_restored_and_those_of_the_application_kept():
    received = []
    own = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        with stop_signals_raised():
            signal.raise_signal(signal.SIGTERM)
            with stop_signals() as request:
                signal.raise_signal(signal.SIGTERM)
        assert (len(received), request.signal) == (2, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with stop_signals_raised():
            raising = signal.getsignal(signal.SIGTERM)
            with stop_signals() as request:
                signal.raise_signal(signal.SIGTERM)
            assert request.signal == signal.SIGTERM
            assert signal.getsignal(signal.SIGTERM) is raising
            with pytest.raises(StopSignal) as raised:
                signal.raise_signal(signal.SIGTERM)
            assert raised.value.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, own)
