"""Failures of `fused-adamw train --mpi` on one rank or on all, with real MPI."""

import pytest
from mpi import needs_mpi, start

# The method of a class or the function of a module that is named fails on some ranks, after calls.
FAILING = """
import sys
from importlib import import_module
from mpi4py import MPI
from fused_adamw.cli import main

module, names, ranks, calls = sys.argv[1], sys.argv[2].split("."), sys.argv[3], int(sys.argv[4])
owner = import_module(module)
for name in names[:-1]:
    owner = getattr(owner, name)
original = getattr(owner, names[-1])

def failing(*arguments, **options):
    global calls
    calls -= 1
    if calls < 0 and str(MPI.COMM_WORLD.rank) in ranks:
        raise MemoryError("no memory")
    return original(*arguments, **options)

setattr(owner, names[-1], failing)
del sys.argv[1:5]
main()
"""


def train(folder, module, function, ranks, calls):
    text = folder / "text"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 30)
    options = ["--num-threads", 1, "--text", text, "--d-model", 8, "--batch-size", 4]
    options += ["--epochs", 2, "--checkpoint", folder / "checkpoint", "--every", 2]
    program = ["-c", FAILING, f"fused_adamw.{module}", function, ranks, calls]
    return start(2, *program, "train", "--mpi", *options)


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("module", "function", "calls"),
    [
        ("tiny.model", "TinyTransformer.__init__", 0),
        ("tiny.model", "TinyTransformer.forward", 9),
        ("tiny.model", "TinyTransformer.backward", 3),
        ("tiny.training_checkpoint", "TrainingCheckpoint.save_when_due", 1),
        ("cli.training", "evaluate_epoch", 0),
    ],
)
def test_a_failure_on_one_rank_ends_all(module, function, calls, rank, tmp_path):
    """The others would wait for it, and what rank 1 prints is not shown."""
    result = train(tmp_path, module, function, str(rank), calls)
    assert result.returncode != 0
    assert result.stderr.count("error:") == 1
    assert f"error: rank {rank}: not enough memory: no memory\n" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("ranks", ["0", "1", "01"])
def test_a_save_that_fails_is_reported_once(ranks, tmp_path):
    """All ranks raise what one of them has met."""
    result = train(tmp_path, "_io.checkpoint_save", "pieces", ranks, 0)
    where = "" if ranks == "01" else f"rank {ranks}: "
    expected = f"error: not enough memory: {where}no memory\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", expected)
