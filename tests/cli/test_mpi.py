"""`fused-adamw train --mpi`, with real MPI."""

import json
import subprocess
import sys

import pytest
from checkpoints import stored_arrays
from mpi import needs_mpi, start

TEXT = "the quick brown fox jumps over the lazy dog. " * 30


def train(ranks, *arguments):
    return start(ranks, "-m", "fused_adamw", "train", "--mpi", "--num-threads", "1", *arguments)


def record(ranks, *arguments):
    """The numbers of one JSON object that do not depend on the number of ranks."""
    result = train(ranks, "--json", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return without_times(json.loads(result.stdout))


def without_times(found):
    kept = {key: x for key, x in found.items() if "loss" in key or key in ("steps", "parameters")}
    return kept | {f"losses[{i}]": loss for i, loss in enumerate(kept.pop("losses"))}


def single(*arguments):
    """The same of a training run without MPI."""
    command = [sys.executable, "-m", "fused_adamw", "train", "--json", *map(str, arguments)]
    return without_times(
        json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    )


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_sentence_is_learnt_to_the_same_bits(ranks):
    assert record(ranks, "--steps", 30) == single("--steps", 30)


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_text_is_learnt_to_the_same_losses(ranks, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    arguments = ["--text", text, "--steps", 20, "--max-grad-norm", 0.5, "--d-model", 16]
    # The gradients of a batch are added in a different order: float64 rounding, grown in 20 steps.
    assert record(ranks, *arguments) == pytest.approx(single(*arguments), rel=1e-10)


@pytest.mark.slow
@needs_mpi
def test_epochs_and_the_log_on_ranks(tmp_path):
    """Norms are those of the whole gradient, or null where no rank has it."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    arguments = ["--text", text, "--epochs", 2, "--d-model", 8, "--batch-size", 8]
    whole = single(*arguments)
    assert record(2, *arguments) == pytest.approx(whole, rel=1e-10)
    found, alone = [], [*arguments, "--max-grad-norm", 0.5, "--log"]
    for options in ([*arguments, "--log"], alone):
        log = tmp_path / "log.jsonl"
        result = train(2, "--json", *options, log)
        assert (result.returncode, result.stderr) == (0, "")
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(whole["steps"] + 1))
        assert [row["gradient_norm"] for row in rows[1:]] == json.loads(result.stdout)[
            "gradient_norms"
        ]
        found.append([row["gradient_norm"] for row in rows[1:]])
    assert set(found[0]) == {None}
    command = [sys.executable, "-m", "fused_adamw", "train", "--json", *map(str, alone[:-1])]
    expected = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found[1] == pytest.approx(expected["gradient_norms"], rel=1e-10)


RANK_IN_ITS_FOLDER = """
import os
from mpi4py import MPI
from fused_adamw.cli import main

os.chdir(os.environ["FOLDERS"] + str(MPI.COMM_WORLD.rank))
main()
"""


@pytest.mark.slow
@needs_mpi
def test_one_rank_writes_the_log(tmp_path, monkeypatch):
    for rank in range(2):
        (tmp_path / f"rank{rank}").mkdir()
    monkeypatch.setenv("FOLDERS", str(tmp_path / "rank"))
    result = start(2, "-c", RANK_IN_ITS_FOLDER, "train", "--mpi", "--steps", 2, "--log", "log.csv")
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.rglob("log.csv")) == [tmp_path / "rank0" / "log.csv"]


LOG_THAT_FAILS = """
from fused_adamw.cli import main
from fused_adamw.tiny.training_log import TrainingLog

def row(*_):
    raise OSError(28, "No space left on device")

TrainingLog._row = row
main()
"""


@pytest.mark.slow
@needs_mpi
def test_a_log_that_cannot_be_written_leaves_no_rank_waiting(tmp_path):
    arguments = ["train", "--mpi", "--steps", 5, "--log", tmp_path / "log.csv"]
    result = start(2, "-c", LOG_THAT_FAILS, *arguments)
    assert result.returncode != 0
    assert result.stderr.count("No space left on device") == 1
    assert "Predictions after step 5" in result.stdout


@pytest.mark.slow
@needs_mpi
def test_a_model_of_an_ordinary_size_is_trained(tmp_path):
    """Without the steps in pure Python, which would take longer than everything else."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    code = (
        "from fused_adamw.cli import main; from fused_adamw.tiny.baselines import ReferenceAdamW; "
        "ReferenceAdamW.step = lambda self, grads: None; main()"
    )
    options = ["--mpi", "--text", text, "--steps", 2, "--d-model", 96, "--json"]
    result = start(2, "-c", code, "train", *options)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["final_loss"] < found["initial_loss"]


@pytest.mark.slow
@needs_mpi
def test_a_training_on_ranks_is_stopped_and_resumed_to_the_same_bits(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    arguments = ["--text", text, "--d-model", 16]
    expected = record(2, *arguments, "--steps", 12, "--checkpoint", whole)
    record(2, *arguments, "--steps", 5, "--checkpoint", parts)
    resumed = [*arguments, "--steps", 12, "--checkpoint", parts, "--resume"]
    assert record(2, *resumed) == expected
    assert stored_arrays(parts) == stored_arrays(whole)


@pytest.mark.slow
@needs_mpi
def test_ranks_with_other_options_end_at_once(tmp_path):
    """A rank with a checkpoint would wait in its save for one without."""
    for name, text in (("text", TEXT), ("other", TEXT.replace("quick", "brisk"))):
        (tmp_path / name).write_text(text)
    common = ["--mpi", "--steps", 4]
    text, other = ["--text", tmp_path / "text"], ["--text", tmp_path / "other"]
    for first, second, expected in (
        (["--checkpoint", tmp_path / "file"], [], "whether --checkpoint is given"),
        ([], ["--steps", 6], "--steps"),
        ([*text, "--schedule", "linear"], text, "--schedule"),
        (text, [*text, "--batch-size", 32], "--batch-size"),
        (text, other, "the digest of --text"),
    ):
        module = ["-m", "fused_adamw", "train"]
        rest = [*common, *first, ":", "-n", 1, sys.executable, *module, *common, *second]
        result = start(1, *module, *rest)
        assert result.returncode == 2, result.stderr
        assert f"error: {expected} must be the same on all ranks; got " in result.stderr
        assert not (tmp_path / "file").exists()


@pytest.mark.slow
@needs_mpi
def test_a_step_that_includes_communication_is_not_compared():
    """With that of one process in pure Python."""
    assert "pure Python" not in train(2, "--steps", 5).stdout
    assert json.loads(train(2, "--json", "--steps", 5).stdout)["reference_step_seconds"] is None
    assert "pure Python" in train(1, "--steps", 5).stdout


SIGNAL_ON_ONE_RANK = """
import signal, sys
from mpi4py import MPI
from fused_adamw.cli import main
from fused_adamw.sharded import ShardedAdamW

original_step = ShardedAdamW.step

def step(self, *arguments):
    if self.t == 3 and MPI.COMM_WORLD.rank == 1:
        signal.raise_signal(signal.SIGTERM)
    return original_step(self, *arguments)

ShardedAdamW.step = step
try:
    main()
except SystemExit as exit_:
    # In one write: those of two ranks must not come between each other.
    sys.__stderr__.write(f"status {exit_.code}\\n")
    sys.__stderr__.flush()
"""


@pytest.mark.slow
@needs_mpi
def test_sigterm_on_one_rank_saves_and_ends_all(tmp_path):
    path = tmp_path / "run.safetensors"
    arguments = ["train", "--mpi", "--json", "--steps", "2000000", "--checkpoint", path]
    result = start(2, "-c", SIGNAL_ON_ONE_RANK, *arguments)
    assert result.stderr.count("status 143") == 2
    assert json.loads(result.stdout)["steps"] == 4
    assert record(2, "--steps", 6, "--checkpoint", path, "--resume")["steps"] == 6


@pytest.mark.slow
@needs_mpi
def test_files_are_checked_on_all_ranks(tmp_path):
    """By the one that writes them."""
    plot = tmp_path / "x.png"
    for other in ("--text", "--checkpoint"):
        plot.write_text(TEXT)
        result = train(2, other, plot, "--plot", plot, *(["--resume"] * (other != "--text")))
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.count("must be different files") == 1
        assert plot.read_text() == TEXT
