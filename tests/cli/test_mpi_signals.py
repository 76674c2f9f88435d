"""Signals that end `fused-adamw train --mpi`, with real MPI."""

import os
import signal
from time import monotonic, sleep

import pytest
from checkpoints import stored_arrays
from mpi import begin, needs_mpi

from fused_adamw.checkpoint import read_step

# A run that would not end; each rank leaves a file with its process number after three steps.
ENDLESS = """
import os, signal, sys
from pathlib import Path
from fused_adamw.cli import main
from fused_adamw.sharded import ShardedAdamW

signal.signal(signal.SIGINT, signal.default_int_handler)  # even where a shell ignores it
original_step, folder = ShardedAdamW.step, Path(sys.argv.pop(1))

def step(self, grads):
    original_step(self, grads)
    if self.t == 3:
        started = folder / f"{self.comm.rank}.pid"
        started.with_suffix(".new").write_text(str(os.getpid()))
        started.with_suffix(".new").rename(started)

ShardedAdamW.step = step
main()
"""


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("signaled", [[0], [1], [0, 1]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_on_one_rank_or_all_ends_the_training_on_all(number, signaled, tmp_path):
    checkpoint, pids = tmp_path / "checkpoint", [tmp_path / f"{rank}.pid" for rank in range(2)]
    steps = ["--steps", 2_000_000, "--checkpoint", checkpoint]
    process = begin(2, "-c", ENDLESS, tmp_path, "train", "--mpi", "--num-threads", "1", *steps)
    try:
        deadline = monotonic() + 240
        while not all(pid.exists() for pid in pids) and monotonic() < deadline:
            sleep(0.01)
        for rank in signaled:
            os.kill(int(pids[rank].read_text()), number)
        process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode != 0
    # All ranks stopped after the same step, and saved.
    assert read_step(checkpoint) >= 3
    assert len(stored_arrays(checkpoint)) > 3


# One rank is interrupted in the function that is named, which the others have left or will leave.
INTERRUPTED = """
import signal, sys
from importlib import import_module
from mpi4py import MPI
from fused_adamw.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
module, name, rank = import_module(sys.argv[1]), sys.argv[2], int(sys.argv[3])
original = getattr(module, name)

def interrupted(*arguments, **options):
    if MPI.COMM_WORLD.rank == rank:
        signal.raise_signal(signal.SIGINT)
    return original(*arguments, **options)

setattr(module, name, interrupted)
del sys.argv[1:4]
main()
"""


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("options", "join_mpi"),
        ("train", "prompt_tokens"),  # while all ranks check their options
        ("training", "make_schedule"),
        ("training", "held_out_loss"),
    ],
)
def test_ctrl_c_on_one_rank_outside_of_training_leaves_none_waiting(
    module, function, rank, tmp_path
):
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 30)
    command = ["train", "--mpi", "--num-threads", "1", "--text", text, "--d-model", "8"]
    program = ["-c", INTERRUPTED, f"fused_adamw.cli.{module}", function, rank]
    process = begin(2, *program, *command)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert out.count(b"loss") == 0
    assert err.count(b"error: interrupted") == 1
    assert b"Traceback" not in err
