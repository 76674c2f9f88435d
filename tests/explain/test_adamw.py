"""The updates of one parameter, against the formula in 50 decimal digits."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from plain_transformer import plain_loss

from fused_adamw.explain.adamw import (
    BIAS_CORRECTION_STEPS,
    Hyperparameters,
    explain_adamw,
)
from fused_adamw.tiny import TARGETS, TOKENS, TinyTransformer
from fused_adamw.tiny.baselines import ReferenceAdamW

OWN = Hyperparameters(lr=0.02, betas=(0.8, 0.97), eps=1e-3, weight_decay=0.1)
GRADIENTS = (0.3, -0.25, 0.1)


def decimal_adamw(theta, gradients, h, decay_in_gradient=False):
    """theta, m, v, m_hat, v_hat, decayed and update of each step, with 50 digits."""
    with localcontext(prec=50):
        theta, lr, eps, wd = map(Decimal, (theta, h.lr, h.eps, h.weight_decay))
        beta1, beta2 = map(Decimal, h.betas)
        m = v = Decimal(0)
        for t, g in enumerate(map(Decimal, gradients), start=1):
            decayed = theta if decay_in_gradient else theta * (1 - lr * wd)
            g += wd * theta if decay_in_gradient else 0
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
            update = lr * m_hat / (v_hat.sqrt() + eps)
            theta = decayed - update
            yield {
                "theta": float(theta),
                "m": float(m),
                "v": float(v),
                "m_hat": float(m_hat),
                "v_hat": float(v_hat),
                "decayed": float(decayed),
                "update": float(update),
                "effective_lr": float(lr / (v_hat.sqrt() + eps)),
                "multiplier": float(1 / (v_hat.sqrt() + eps)),
            }


@pytest.mark.parametrize("h", [Hyperparameters(), OWN], ids=["defaults", "own"])
def test_every_number_of_every_step(h):
    found = explain_adamw(1.5, GRADIENTS, h, steps=6)
    used = [*GRADIENTS, *GRADIENTS[-1:] * 3]  # the last stays
    expected = list(decimal_adamw(1.5, used, h))
    before, m, v = 1.5, 0.0, 0.0
    for t, (update, numbers) in enumerate(zip(found.updates, expected, strict=True), start=1):
        # Some ten roundings of 1.1e-16 each; m cancels where the gradient changes its sign.
        for name, value in numbers.items():
            assert getattr(update, name) == pytest.approx(value, rel=1e-13, abs=1e-16), (t, name)
        assert (update.t, update.gradient) == (t, used[t - 1])
        assert (update.theta_before, update.m_before, update.v_before) == (before, m, v)
        assert update.shrinkage == pytest.approx(before * h.lr * h.weight_decay, rel=1e-9)
        assert update.change == update.theta - before
        before, m, v = update.theta, update.m, update.v


def test_more_gradients_than_steps():
    found = explain_adamw(1.5, GRADIENTS, steps=2)
    assert [update.gradient for update in found.updates] == [0.3, -0.25]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gradients": ()}, ValueError, "gradients must contain at least one number; got none"),
        ({"gradients": (0.1, "x")}, TypeError, r"gradients\[1\] must be a real number"),
        ({"theta": None}, TypeError, "theta must be a real number"),
        ({"steps": 0}, ValueError, "steps must be 1 or more; got 0"),
        ({"steps": 2.5}, TypeError, "steps must be an integer; got 2.5"),
        ({"hyperparameters": Hyperparameters(eps="x")}, TypeError, "eps must be a real number"),
    ],
)
def test_arguments_of_another_kind(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        explain_adamw(**arguments)


def test_the_compiled_update_is_beside_the_first():
    found = explain_adamw(1.5, GRADIENTS, OWN)
    first = next(decimal_adamw(1.5, GRADIENTS, OWN))
    assert found.kernel == pytest.approx({x: first[x] for x in ("theta", "m", "v")}, rel=1e-14)


def test_without_bias_correction():
    # m is a tenth and the root of v sqrt(0.001) of what the corrected ones are.
    found = explain_adamw(hyperparameters=Hyperparameters(eps=1e-30))
    assert found.uncorrected == pytest.approx(0.1 / 0.001**0.5, rel=1e-13)


def test_bias_corrections():
    found = explain_adamw().bias_corrections
    assert [row.t for row in found] == [1, 2, 3, 10, 100, 1000] == list(BIAS_CORRECTION_STEPS)
    for row in found:
        for value, beta in ((row.of_m, Fraction(9, 10)), (row.of_v, Fraction(999, 1000))):
            assert value == pytest.approx(float(1 / (1 - beta**row.t)), rel=1e-12)


def slope_at_bos(parameters):
    """The gradient of E_token[<BOS>][0] by a complex step through a plain forward pass."""
    p = {name: x.astype(complex) for name, x in parameters.items()}
    p["E_token"][1, 0] += 1e-30j
    return plain_loss(p, [TOKENS], [TARGETS]).imag / 1e-30


def test_the_models_own_gradients_are_those_of_a_training():
    h = Hyperparameters(lr=0.01, weight_decay=0.1)
    found = explain_adamw(hyperparameters=h, steps=3).model_updates
    model = TinyTransformer()
    optimizer = ReferenceAdamW(model.parameters, h.lr, h.weight_decay)
    for update in found:
        # Some hundred roundings of 1e-16, relative to terms that cancel to this gradient.
        assert update.gradient == pytest.approx(slope_at_bos(model.parameters), abs=1e-15)
        assert update.theta_before == pytest.approx(model.parameters["E_token"][1, 0], abs=1e-14)
        _, grads = model.loss_and_gradients(TOKENS, TARGETS)
        optimizer.step(grads)
        assert update.theta == pytest.approx(model.parameters["E_token"][1, 0], abs=1e-14)


def test_other_optimizers_and_what_is_due_to_weight_decay():
    adamw, adam, sgd = explain_adamw(1.5, GRADIENTS, OWN, steps=3).comparisons
    without = Hyperparameters(OWN.lr, OWN.betas, OWN.eps, weight_decay=0.0)
    undecayed = [row["theta"] for row in decimal_adamw(1.5, GRADIENTS, without)]
    for row, in_gradient in ((adamw, False), (adam, True)):
        thetas = [x["theta"] for x in decimal_adamw(1.5, GRADIENTS, OWN, in_gradient)]
        assert (row.after_first, row.after_last) == pytest.approx((thetas[0], thetas[2]), rel=1e-14)
        due = [theta - other for theta, other in zip(thetas, undecayed, strict=True)]
        assert (row.decay_first, row.decay_last) == pytest.approx((due[0], due[2]), abs=1e-14)
    assert [row.optimizer for row in (adamw, adam, sgd)] == ["AdamW", "Adam with L2", "SGD"]
    # 1.5 - 0.02 × 0.3, and - 0.02 × (0.3 - 0.25 + 0.1)
    assert (sgd.after_first, sgd.after_last) == pytest.approx((1.494, 1.497), rel=1e-14)
    assert (sgd.decay_first, sgd.decay_last) == (0.0, 0.0)
    # AdamW takes lr × λ × θ whatever the gradient is; a step later also of what is left.
    assert adamw.decay_first == pytest.approx(-0.02 * 0.1 * 1.5, rel=1e-12)
    assert abs(adam.decay_first) < abs(adamw.decay_first) / 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1.0}, r"^lr must be a finite number, 0 or more; got -1\.0$"),
        ({"betas": (0.9, 1.0)}, r"^betas\[1\] must be at least 0 and less than 1; got 1\.0$"),
        ({"eps": 0.0}, r"^eps must be above 0; got 0\.0$"),
        ({"eps": float("nan")}, r"^eps must be above 0; got nan$"),
        ({"weight_decay": -0.1}, r"^weight_decay must be a finite number, 0 or more; got -0\.1$"),
    ],
)
def test_invalid_hyperparameters(change, message):
    with pytest.raises(ValueError, match=message):
        explain_adamw(hyperparameters=Hyperparameters(**change))


def test_gradients_without_a_square():
    found = explain_adamw(0.5, [1e200], steps=2).updates
    assert [update.effective_lr for update in found] == [0.0, 0.0]
    assert found[0].theta == np.float64(0.5) * (1 - 1e-5)
