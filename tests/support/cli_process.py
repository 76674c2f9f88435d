"""Running the command line in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

START = Path.cwd()  # PYTHONPATH may be relative to it
MAIN = "from fused_adamw.cli import main; main()"

# Sizes that train fast.
SMALL = ("--context", 8, "--batch-size", 4, "--d-model", 8)

# A training that would not end; it says on standard error when it has made three steps.
ENDLESS = """
import signal, sys
from fused_adamw import AdamW
from fused_adamw.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # even where a shell ignores it
original_step = AdamW.step

def step(self, grads):
    original_step(self, grads)
    if self.t == 3:
        print("under way", file=sys.stderr, flush=True)

AdamW.step = step
main()
"""


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
        timeout=60,
        check=False,
    )


def interrupted(*arguments):
    """Press Ctrl-C in a training of two million steps; its status, standard output and error."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, "train", "--steps", "2000000", *map(str, arguments)],
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
