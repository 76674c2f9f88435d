"""The checkpoint of a training run: its losses, and what reading them costs."""

import errno
import math
import os
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from checkpoints import next_descriptor
from processes import bytes_read, start_children
from systems import needs_linux, needs_locks

from fused_adamw import AdamW
from fused_adamw._io import file_lock
from fused_adamw.checkpoint import save_checkpoint
from fused_adamw.tiny import History, TrainingCheckpoint
from fused_adamw.tiny.training_checkpoint import checkpoint_lock

MANY = 1_500_000


@pytest.mark.slow
def test_millions_of_losses_are_saved_exactly(tmp_path):
    losses = np.random.default_rng(0).random(MANY + 1).tolist()
    losses[1:4] = float("inf"), float("nan"), 5e-324
    checkpoint = TrainingCheckpoint(tmp_path / "run", {}, MANY, open_ended=True)
    optimizer = AdamW([np.ones(3)])
    checkpoint.save_when_due(optimizer, History(losses, 1.25, 2.5, 5.0))
    history = checkpoint.read_history()
    np.testing.assert_array_equal(history.losses, losses)
    assert all(type(loss) is float for loss in history.losses)
    assert (history.forward_seconds, history.backward_seconds) == (1.25, 2.5)
    assert (history.optimizer_seconds, history.resumed_from) == (5.0, MANY)


def test_the_history_is_read_without_the_parameters(tmp_path):
    checkpoint = TrainingCheckpoint(tmp_path / "run", {}, 2, open_ended=True)
    checkpoint.save_when_due(AdamW([np.ones(1_000_000)]), History([3.0, 2.0, 1.0]))
    tracemalloc.start()
    history = checkpoint.read_history()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert history.losses == [3.0, 2.0, 1.0]
    assert peak < 1_000_000  # of a file of 24 MB


def test_the_history_does_not_need_all_of_the_steps(tmp_path):
    checkpoint = TrainingCheckpoint(tmp_path / "run", {"lr": 0.1}, 9, open_ended=False, every=2)
    optimizer = AdamW([np.ones(3)])
    checkpoint.save_when_due(optimizer, History([3.0, 2.0]))
    assert not checkpoint.path.exists()
    checkpoint.save_when_due(optimizer, History([3.0, 2.0, 1.0]))
    assert checkpoint.read_history().steps == 2
    other = TrainingCheckpoint(checkpoint.path, {"lr": 0.1}, 10, open_ended=False)
    with pytest.raises(ValueError, match=r"different options: steps 9 \(now 10\)$"):
        other.read_history()


def test_options_are_compared_as_a_file_returns_them(tmp_path):
    options = {"betas": (0.9, 0.99), "by_size": {8: (1,)}, "unknown": math.nan}
    checkpoint = TrainingCheckpoint(tmp_path / "run", options, 2, open_ended=False)
    checkpoint.save_when_due(AdamW([np.ones(3)]), History([3.0, 2.0, 1.0]))
    assert checkpoint.read_history().losses == [3.0, 2.0, 1.0]
    other = TrainingCheckpoint(checkpoint.path, {**options, "betas": (0.9, 0.9)}, 2, False)
    with pytest.raises(ValueError, match=r"different options: betas \[0.9, 0.99\]"):
        other.read_history()


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("steps", -1, ValueError, "steps must be 0 or more; got -1"),
        ("steps", 2.0, TypeError, "steps must be an integer; got 2.0"),
        ("every", 0, ValueError, "every must be 1 or more; got 0"),
        ("every", "3", TypeError, "every must be an integer or None; got '3'"),
        ("options", [1], TypeError, "options must be a mapping; got list"),
        ("options", {"a": {1}}, TypeError, "options must be serializable as JSON: Object of"),
        ("options", {1: 1, "1": 2}, ValueError, "options must have keys that differ as text"),
    ],
)
def test_wrong_arguments(tmp_path, argument, value, error, message):
    arguments = {"options": {}, "steps": 2, "open_ended": True, argument: value}
    with pytest.raises(error) as raised:
        TrainingCheckpoint(tmp_path / "run", **arguments)
    assert str(raised.value).startswith(message)


@needs_linux
def test_the_history_is_in_the_header_and_one_array(tmp_path):
    """Resuming reads no parameter twice: once for the optimizer, after this."""
    checkpoint = TrainingCheckpoint(tmp_path / "run", {}, 2, open_ended=True)
    checkpoint.save_when_due(AdamW([np.ones(100_000)]), History([3.0, 2.0, 1.0]))
    header = 8 + int.from_bytes(checkpoint.path.read_bytes()[:8], "little")
    checkpoint.read_history()
    assert bytes_read(checkpoint.read_history) == 2 * header + 3 * 8


SECONDS = {"forward_seconds": 1.0, "backward_seconds": 2.0, "optimizer_seconds": 3.0}
TRAINING = {"options": {"steps": 2}, **SECONDS}


@pytest.mark.parametrize(
    ("training", "losses"),
    [
        (None, [1.0]),
        ([TRAINING], [1.0]),
        (TRAINING | {"options": []}, [1.0]),
        (TRAINING | {"options": [["steps", 2]]}, [1.0]),
        *((TRAINING | {name: x}, [1.0]) for name in SECONDS for x in (None, True, 1, "1.0", -1.0)),
        (TRAINING | {"forward_seconds": float("nan")}, [1.0]),
        (TRAINING | {"forward_seconds": float("inf")}, [1.0]),
        (TRAINING, []),
        (TRAINING, [[1.0]]),
        (TRAINING, 1.0),
        (TRAINING, [1]),
        (TRAINING, [True]),
        (TRAINING, np.ones(2, np.float32)),
        (TRAINING, None),
    ],
    ids=repr,
)
def test_what_is_no_training(tmp_path, training, losses):
    checkpoint = TrainingCheckpoint(tmp_path / "run", {}, 2, open_ended=True)
    arrays = {} if losses is None else {"losses": np.array(losses)}
    save_checkpoint(
        checkpoint.path, AdamW([np.ones(3)]), extra={"training": training}, arrays=arrays
    )
    with pytest.raises(ValueError, match="must be the checkpoint of a training run"):
        checkpoint.read_history()


@pytest.mark.parametrize(
    "array", [None, np.ones((2, 2)), np.ones(2, np.float32), np.ones(2, int), np.ones(())], ids=repr
)
def test_norms_and_held_out_losses_in_another_form_are_left_out(tmp_path, array):
    arrays = {"losses": np.array([3.0, 2.0, 1.0])}
    if array is not None:
        arrays |= {"gradient_norms": array, "held_out_losses": array}
    path, extra = tmp_path / "run", {"training": TRAINING}
    save_checkpoint(path, AdamW([np.ones(3)]), extra=extra, arrays=arrays)
    history = TrainingCheckpoint(path, {}, 2, open_ended=True).read_history()
    assert history.steps == 2
    np.testing.assert_array_equal(history.gradient_norms, [np.nan] * 2)
    assert history.held_out_losses == []


@pytest.mark.parametrize("count", [1, 3])
def test_norms_of_another_number_of_steps_are_left_out(tmp_path, count):
    arrays = {"losses": np.array([3.0, 2.0, 1.0]), "gradient_norms": np.ones(count)}
    path, extra = tmp_path / "run", {"training": TRAINING}
    save_checkpoint(path, AdamW([np.ones(3)]), extra=extra, arrays=arrays)
    history = TrainingCheckpoint(path, {}, 2, open_ended=True).read_history()
    np.testing.assert_array_equal(history.gradient_norms, [np.nan] * 2)


@needs_locks
def test_one_training_at_a_time(tmp_path):
    """Whatever the path is called; and the next one when it has ended. No file stays open."""
    free = next_descriptor()
    (tmp_path / "link").symlink_to("run")
    for other in ("run", "link"):
        with checkpoint_lock(tmp_path / "run"):
            for _ in range(2):
                with pytest.raises(ValueError, match="another training run saves to it"):
                    checkpoint_lock(tmp_path / other).__enter__()
            with checkpoint_lock(tmp_path / "run2"):
                assert sorted(os.listdir(tmp_path)) == [".run.lock", ".run2.lock", "link"]
    assert os.listdir(tmp_path) == ["link"]
    assert next_descriptor() == free


@needs_locks
def test_a_lock_is_free_after_an_error_and_a_leftover(tmp_path):
    (tmp_path / ".run.lock").touch()
    with pytest.raises(KeyError), checkpoint_lock(tmp_path / "run"):
        raise KeyError
    with checkpoint_lock(tmp_path / "run"):
        pass
    assert os.listdir(tmp_path) == []


@needs_locks
def test_a_lock_that_was_removed_while_it_was_waited_for(tmp_path, monkeypatch):
    """A training that ends removes its file: a lock on that excludes nobody."""
    path = tmp_path / ".run.lock"
    lock, removed = file_lock.try_lock, []

    def lock_too_late(descriptor):
        if not removed:
            removed.append(path.unlink())
        return lock(descriptor)

    monkeypatch.setattr(file_lock, "try_lock", lock_too_late)
    with checkpoint_lock(tmp_path / "run"):
        assert removed
        assert path.exists()
        with pytest.raises(ValueError, match="another training run saves to it"):
            checkpoint_lock(tmp_path / "run").__enter__()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs files that are not followed")
def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / ".run.lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)), checkpoint_lock(tmp_path / "run"):
        pass
    assert os.listdir(tmp_path) == [".run.lock"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_no_two_processes_have_the_lock(tmp_path):
    """Although each removes the file when it releases the lock."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count(increments):
        while increments:
            with suppress(ValueError), checkpoint_lock(tmp_path / "run"):
                counter.write_text(str(int(counter.read_text()) + 1))
                increments -= 1

    statuses = start_children(count, [200] * 4)
    assert statuses() == [0] * 4
    assert counter.read_text() == "800"
    assert os.listdir(tmp_path) == ["counter"]
