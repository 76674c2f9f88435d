"""The checkpoint of a training: its losses, and what reading them costs."""

import tracemalloc

import numpy as np
import pytest

from fused_adamw import AdamW
from fused_adamw.tiny import History, TrainingCheckpoint

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
    with pytest.raises(ValueError, match=r"different options: --steps 9 \(now 10\)$"):
        other.read_history()
