"""Sharding: the programs in ``programs/``, under ``mpiexec`` with a real MPI."""

import re
from pathlib import Path

import pytest
from mpi import needs_mpi, start

PROGRAMS = Path(__file__).parent / "programs"

pytestmark = [needs_mpi, pytest.mark.slow]


def run(ranks, name, *arguments):
    result = start(ranks, PROGRAMS / name, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_bits_are_those_of_a_single_process(ranks):
    run(ranks, "bits.py")
    run(ranks, "bits_of_trees.py")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_mistake_on_one_rank_is_the_same_error_on_all(ranks):
    run(ranks, "faults.py")
    run(ranks, "construction_faults.py")


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_exception_without_a_text_is_raised_on_all_ranks(ranks):
    run(ranks, "exceptions.py")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_memory_and_bytes(ranks):
    run(ranks, "budget.py")


@pytest.mark.parametrize("value", ["", "auto", "0", "3"])
def test_ranks_divide_the_cores_unless_a_number_of_threads_is_asked_for(value, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    run(2, "threads.py", "asked" if value == "3" else "not asked")


@pytest.mark.parametrize("ranks", [2, 3])
def test_ordinary_models_in_buckets_of_the_default_size(ranks):
    run(ranks, "models.py")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_different_operations_are_an_error_on_all_ranks(ranks, tmp_path):
    run(ranks, "operations.py", tmp_path)


@pytest.mark.parametrize("ranks", [1, 2])
def test_signal_handlers_that_raise(ranks, tmp_path):
    run(ranks, "handlers.py", tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_handlers_that_raise_on_all_ranks_save_or_end_the_job(seed, tmp_path):
    """Ranks that are in different operations say so; none waits until `start` ends it."""
    result = start(3, PROGRAMS / "stopped.py", tmp_path / "saved", seed)
    if result.returncode == 0:
        assert [file.name for file in tmp_path.iterdir()] == ["saved"]
    else:
        refused = (tmp_path / "saved.refused").read_text()
        assert "must be the same on all ranks" in refused
        assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_checkpoint_does_not_depend_on_the_number_of_ranks(ranks, tmp_path):
    run(ranks, "checkpoints.py", tmp_path)
    run(ranks, "checkpoint_faults.py", tmp_path)


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "scaling.md"
    if not page.exists():
        pytest.skip("no docs beside these tests")
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    program = tmp_path / "train.py"
    program.write_text(code)
    monkeypatch.chdir(tmp_path)
    result = start(2, "-m", "mpi4py", program)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "tiny.safetensors").exists()


@pytest.mark.parametrize("how", ["SIGKILL", "exception"])
def test_a_rank_that_dies_ends_the_job_and_the_checkpoint_resumes_it(how, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(2, "killed.py", whole, 8)
    # A rank that waited forever would run into the timeout of `start`.
    assert start(4, PROGRAMS / "killed.py", stopped, 8, how, 5).returncode != 0
    assert stopped.read_bytes() != whole.read_bytes()
    run(2, "killed.py", stopped, 8)
    assert stopped.read_bytes() == whole.read_bytes()
