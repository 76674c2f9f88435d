"""Effective learning rates, against pure Python."""

import math

import pytest

from fused_adamw.explain import rates
from fused_adamw.explain.adamw import Hyperparameters
from fused_adamw.tiny import TARGETS, TOKENS, TinyTransformer
from fused_adamw.tiny.baselines import ReferenceAdamW


def test_by_gradient():
    found = rates.explain_rates(Hyperparameters(lr=0.5, eps=0.25)).by_gradient
    assert [row.gradient for row in found] == [0.001, 0.01, 0.1, 0.5, 1.0, 5.0]
    for row in found:
        assert row.v_hat == pytest.approx(row.gradient**2, rel=1e-14)
        assert row.multiplier == pytest.approx(1 / (row.gradient + 0.25), rel=1e-14)
        assert row.effective_lr == pytest.approx(0.5 * row.multiplier, rel=1e-14)


def test_by_tensor_while_the_model_trains(monkeypatch):
    monkeypatch.setattr(rates, "TRAINING_STEPS", (1, 4))
    found = rates.explain_rates(Hyperparameters(lr=0.01))
    model = TinyTransformer()
    optimizer = ReferenceAdamW(model.parameters, 0.01, 0.01)
    expected = []
    for t in range(1, 5):
        _, grads = model.loss_and_gradients(TOKENS, TARGETS)
        optimizer.step(grads)
        if t in (1, 4):
            assert found.losses[t] == pytest.approx(model.loss(TOKENS, TARGETS), rel=1e-12)
            for name, v in optimizer.v.items():
                roots = sorted(math.sqrt(x / (1 - 0.999**t)) for x in v if x > 0)
                middle = [roots[(len(roots) - 1) // 2], roots[len(roots) // 2]]
                median = sum(1 / (root + 1e-8) for root in middle) / 2
                extremes = (1 / (roots[-1] + 1e-8), 1 / (roots[0] + 1e-8))
                expected.append((t, name, extremes[0], median, extremes[1], len(v) - len(roots)))
    assert len(found.by_tensor) == len(expected) == 2 * 13
    for row, (step, name, least, median, largest, without) in zip(
        found.by_tensor, expected, strict=True
    ):
        assert (row.step, row.tensor, row.without_gradient) == (step, name, without)
        # The smallest gradients are what is left of larger terms, each known to 1e-16.
        assert (row.least, row.median, row.largest) == pytest.approx(
            (least, median, largest), rel=1e-6
        )
    # The embeddings of <PAD> and <EOS>, and of the last position, see no loss.
    missing = {row.tensor: row.without_gradient for row in found.by_tensor if row.without_gradient}
    assert missing == {"E_token": 2 * 16, "E_pos": 16}


def test_the_steps_are_those_of_the_training():
    assert rates.TRAINING_STEPS == (1, 10, 100, 500)


def test_invalid_hyperparameters():
    with pytest.raises(ValueError, match=r"^eps must be above 0; got 0\.0$"):
        rates.explain_rates(Hyperparameters(eps=0.0))
    with pytest.raises(ValueError, match=r"^lr must be "):
        rates.explain_rates(Hyperparameters(lr=-1.0))
