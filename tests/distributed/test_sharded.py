"""Sharding: the plan, and the programs in ``programs/``, under ``mpiexec`` with real MPI."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from readme import BLOCKS

from fused_adamw._core import BLOCK
from fused_adamw._distributed.partition import UNIT, make_plan

PROGRAMS = Path(__file__).parent / "programs"
MPIEXEC = shutil.which(
    "mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
OF_OPEN_MPI = {  # which else refuses containers, and more ranks than processors
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or find_spec("mpi4py") is None, reason="needs mpi4py and mpiexec"
)


def start(ranks, program, *arguments):
    """Run a program on so many ranks; it is ended where it hangs."""
    command = [MPIEXEC, "-n", str(ranks), sys.executable, *map(str, [program, *arguments])]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | OF_OPEN_MPI
    )


def run(ranks, name, *arguments):
    result = start(ranks, PROGRAMS / name, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# ---------------------------------------------------------------------------- the plan

TENSORS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 300), st.integers(UNIT - 1, UNIT + 1), st.integers(0, 10**6)),
        st.sampled_from(["float32", "float64"]),
    ),
    min_size=1,
    max_size=12,
)


@given(TENSORS, st.integers(1, 40), st.sampled_from([8 * UNIT, 200_000, 1 << 20, 1 << 24]))
def test_each_element_has_one_owner_and_the_shares_are_even(tensors, ranks, bucket_bytes):
    sizes, dtypes = [size for size, _ in tensors], [dtype for _, dtype in tensors]
    seen, owned = [0] * len(sizes), [0] * ranks
    for bucket in make_plan(sizes, dtypes, ranks, bucket_bytes):
        assert 0 < bucket.nbytes <= bucket_bytes
        assert len(bucket.parts) == ranks
        for rank, part in enumerate(bucket.parts):
            for strip in part:
                assert dtypes[strip.tensor] == bucket.dtype
                assert strip.begin == seen[strip.tensor] < strip.end
                assert strip.begin % UNIT == 0
                seen[strip.tensor] = strip.end
                owned[rank] += strip.size * np.dtype(bucket.dtype).itemsize
    assert seen == sizes
    unit = UNIT * max(np.dtype(dtype).itemsize for dtype in dtypes)
    assert max(owned) <= sum(owned) / ranks + unit


def test_units_are_made_of_whole_blocks():
    assert UNIT % BLOCK == 0


def test_units_are_the_chunks_of_the_norm():
    source = Path(__file__).parents[2] / "csrc" / "parallel.c"
    assert f"#define CHUNK {UNIT}\n" in source.read_text()


def test_large_tensors_are_moved_where_they_are_and_small_ones_together():
    plan = make_plan([10, 1 << 20, 20, 30], ["float32"] * 4, 2, 1 << 21)
    assert [bucket.stretch for bucket in plan] == [(1, 0, 1 << 19), (1, 1 << 19, 1 << 20), None]
    assert plan[-1].counts in ([10, 50], [30, 30])
    assert plan[0].counts == [1 << 18, 1 << 18]
    assert plan[0].starts == [0, 1 << 18]


# ---------------------------------------------------------------------------- with MPI


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_bits_are_those_of_a_single_process(ranks):
    run(ranks, "bits.py")


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_is_wrong_on_one_rank_is_the_same_error_on_all(ranks):
    run(ranks, "faults.py")


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_memory_and_bytes(ranks):
    run(ranks, "budget.py")


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_checkpoint_does_not_depend_on_the_number_of_ranks(ranks, tmp_path):
    pytest.importorskip("safetensors")
    run(ranks, "checkpoints.py", tmp_path)


@needs_mpi
def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    (code,) = (block for block in BLOCKS if "sharded" in block)
    program = tmp_path / "train.py"
    program.write_text(code)
    monkeypatch.chdir(tmp_path)
    result = start(2, "-m", "mpi4py", program)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "tiny.safetensors").exists()


@needs_mpi
@pytest.mark.parametrize("how", ["SIGKILL", "exception"])
def test_a_rank_that_dies_ends_the_job_and_the_checkpoint_resumes_it(how, tmp_path):
    pytest.importorskip("safetensors")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(2, "killed.py", whole, 8)
    # A rank that waited for ever would run into the timeout of `start`.
    assert start(4, PROGRAMS / "killed.py", stopped, 8, how, 5).returncode != 0
    assert stopped.read_bytes() != whole.read_bytes()
    run(2, "killed.py", stopped, 8)
    assert stopped.read_bytes() == whole.read_bytes()


# ---------------------------------------------------------------------------- the command line

TEXT = "the quick brown fox jumps over the lazy dog. " * 30


def train(ranks, *arguments):
    pytest.importorskip("typer")
    return start(ranks, "-m", "fused_adamw", "train", "--mpi", "--num-threads", "1", *arguments)


def record(ranks, *arguments):
    """Of one JSON object, the numbers that a training has to end with, whoever took it."""
    result = train(ranks, "--json", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(result.stdout)
    return {key: x for key, x in found.items() if "loss" in key or key in ("steps", "parameters")}


def single(*arguments):
    """The same of a training without MPI."""
    command = [sys.executable, "-m", "fused_adamw", "train", "--json", *map(str, arguments)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return {key: x for key, x in found.items() if "loss" in key or key in ("steps", "parameters")}


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_sentence_is_learnt_to_the_same_bits(ranks):
    assert record(ranks, "--steps", 30) == single("--steps", 30)


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_text_is_learnt_to_the_same_losses(ranks, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    arguments = ["--text", text, "--steps", 20, "--max-grad-norm", 0.5, "--d-model", 16]
    # The gradients of a batch are added up in another order: float64 rounding, grown in 20 steps.
    assert record(ranks, *arguments) == pytest.approx(single(*arguments), rel=1e-10)


@needs_mpi
def test_a_training_on_ranks_is_stopped_and_resumed_to_the_same_bits(tmp_path):
    pytest.importorskip("safetensors")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    arguments = ["--text", text, "--d-model", 16]
    expected = record(2, *arguments, "--steps", 12, "--checkpoint", whole)
    record(2, *arguments, "--steps", 5, "--checkpoint", parts)
    resumed = [*arguments, "--steps", 12, "--checkpoint", parts, "--resume"]
    assert record(2, *resumed) == expected
    assert arrays_in(parts) == arrays_in(whole)


def arrays_in(path):
    from safetensors.numpy import load_file

    return {name: array.tobytes() for name, array in load_file(path).items()}


@needs_mpi
def test_only_one_rank_speaks(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    for arguments, expected in (
        (["--text", text, "--batch-size", 9], "--batch-size is 9; expected a multiple of the 2"),
        (["--text", tmp_path / "none"], "No such file"),
        (["--lr", "fast"], "--lr"),
        (["--compare"], "--mpi divides AdamW"),
        (["--optimizer", "sgd"], "has no effect without --optimizer fused"),
    ):
        result = train(2, *arguments)
        assert result.returncode == 2
        assert result.stdout == ""
        assert expected in result.stderr
        assert result.stderr.count("error:") == 1
    result = train(2, "--steps", 5)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("What it predicts") == 1
