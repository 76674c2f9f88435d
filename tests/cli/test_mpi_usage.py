"""`fused-adamw train --mpi`: what is wrong is said once."""

import re
import sys

import pytest
from mpi import needs_mpi, start

TEXT = "the quick brown fox jumps over the lazy dog. " * 30


def train(ranks, *arguments):
    return start(ranks, "-m", "fused_adamw", "train", "--mpi", "--num-threads", "1", *arguments)


@pytest.mark.slow
@needs_mpi
def test_only_one_rank_prints(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    for arguments, expected in (
        (
            ["--text", text, "--batch-size", 9],
            "--batch-size must be a multiple of the number of ranks (2); got 9",
        ),
        (["--text", tmp_path / "none"], "No such file"),
        (["--lr", "fast"], "error: --lr must be a number; got 'fast'"),
        (["--unknown"], "error: No such option: --unknown"),
        (["--steps"], "error: Option '--steps' requires an argument"),
        (["--compare"], "--mpi cannot be combined with --compare"),
        (["--sgd-lr", "1"], "--mpi cannot be combined with --sgd-lr"),
        (["--batch-size", "8"], "--batch-size requires --text"),
    ):
        result = train(2, *arguments)
        assert result.returncode == 2
        assert result.stdout == ""
        assert expected in result.stderr
        assert result.stderr.count("error:") == 1
    result = train(2, "--steps", 5)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("Predictions after") == 1


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("options", ["--unknown", "--steps", "--steps x", "--epochs 2 --steps 3"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_usage_error_on_one_rank_ends_all(options, rank):
    """The others would wait for it."""
    module = ["-m", "fused_adamw", "train", "--mpi"]
    wrong = [*module, *options.split()]
    first, second = (wrong, module) if rank == 0 else (module, wrong)
    result = start(1, *first, ":", "-n", 1, sys.executable, *second)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(rf"error: rank {rank}: .*--(unknown|steps).*\n", result.stderr)
