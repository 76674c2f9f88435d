"""Running the command line in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

START = Path.cwd()  # PYTHONPATH may be relative to it
MAIN = "from fused_adamw.cli import main; main()"

# Sizes that train fast.
SMALL = ("--context", 8, "--batch-size", 4, "--d-model", 8)

# A training run that would not end; it says on standard error when it has made three steps.
ENDLESS = """
import signal, sys
from fused_adamw import AdamW
from fused_adamw.cli import main

# Even where a shell or nohup ignores them.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
original_step = AdamW.step

def step(self, grads):
    original_step(self, grads)
    if self.t == 3:
        print("under way", file=sys.stderr, flush=True)

AdamW.step = step
main()
"""


def no_such_file():
    """What the system says about a file that does not exist."""
    with pytest.raises(FileNotFoundError) as caught:
        os.stat("there is no such file")
    return caught.value.strerror


def loads(text):
    """The value of a JSON document that has neither NaN nor infinity."""

    def fail(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=fail)


def in_a_process(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
        cwd=START,
        timeout=240,
        check=False,
    )


def on_a_terminal(code, *arguments, **environment):
    """Run code whose standard error is a terminal; its standard output, and what the terminal
    got."""
    terminal, stderr = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "TERM": "xterm"} | environment,
        cwd=START,
    )
    os.close(stderr)
    shown = b""
    with suppress(OSError):  # EIO: the process has closed the terminal
        while data := os.read(terminal, 1 << 16):
            shown += data
    os.close(terminal)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return out, shown.decode()


def interrupted(*arguments, code=ENDLESS, signals=(signal.SIGINT,)):
    """Press Ctrl-C in a run of two million steps; its status, standard output and error."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", "--steps", "2000000", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        cwd=START,
    )
    try:
        assert process.stderr.readline() == "under way\n"
        for number in signals:
            process.send_signal(number)
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, out, err
