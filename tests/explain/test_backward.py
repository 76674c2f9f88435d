"""The gradients on the way through the layers, against complex steps from each of them on."""

import math

import numpy as np
import pytest
from plain_transformer import plain_loss

from fused_adamw.explain import backward
from fused_adamw.explain.backward import explain_backward
from fused_adamw.explain.forward import explain_forward
from fused_adamw.tiny import TARGETS, TOKENS, TinyTransformer

pytestmark = pytest.mark.slow  # 7,000 forward passes, two times

STEP = 1e-30  # of complex numbers: no digits are lost


@pytest.fixture(scope="module")
def found():
    return explain_backward()


@pytest.fixture(scope="module")
def p():
    return TinyTransformer().parameters


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def functions_of_position_0(p):
    """What position 0 adds to the loss, as a function of each of its activations.

    After attention no position sees another.
    """
    a = explain_forward()

    def of_logits(logits):
        return (np.log(np.exp(logits).sum()) - logits[TARGETS[0]]) / 4

    def of_normalized(Y):
        return of_logits(p["W_lm"] @ Y)

    def of_total(total):
        centered = total - total.sum() / 16
        return of_normalized(
            centered / np.sqrt((centered**2).sum() / 16 + 1e-5) * p["gamma"] + p["beta"]
        )

    def of_hidden(hidden):
        return of_total(a.H[0] + p["W_2"] @ hidden + p["b_2"])

    def of_before_gelu(x):
        return of_hidden(gelu(x))

    def of_attention(H):
        return of_total(H + p["W_2"] @ gelu(p["W_1"] @ H + p["b_1"]) + p["b_2"])

    def of_concatenated(concatenated):
        return of_attention(p["W_O"] @ concatenated)

    return {
        "dlogits": (of_logits, a.logits[0]),
        "dY": (of_normalized, a.Y[0]),
        "d(H + F)": (of_total, a.H[0] + a.F[0]),
        "dhidden": (of_hidden, a.after_gelu[0]),
        "dgelu": (of_before_gelu, a.before_gelu[0]),
        "dH": (of_attention, a.H[0]),
        "dconcatenated": (of_concatenated, a.concatenated[0]),
    }


def complex_gradient(function, at):
    steps = np.eye(len(at)) * 1j * STEP
    return np.array([function(at + step).imag / STEP for step in steps])


def test_every_stage(found, p):
    stages = {stage.name: stage for stage in found.stages}
    for name, (function, at) in functions_of_position_0(p).items():
        # A few roundings, next to gradients of up to 1.
        np.testing.assert_allclose(
            stages[name].values, complex_gradient(function, at), rtol=0, atol=1e-15, err_msg=name
        )
    assert list(stages) == [*functions_of_position_0(p), "dX"]


def embedding_gradients(p):
    """The gradient of E_token: <BOS> occurs at position 0 only."""
    gradients = np.zeros(16)
    for k in range(16):
        moved = {name: x.astype(complex) for name, x in p.items()}
        moved["E_token"][TOKENS[0], k] += 1j * STEP
        gradients[k] = plain_loss(moved, [TOKENS], [TARGETS]).imag / STEP
    return gradients


def test_the_embedding(found, p):
    expected = embedding_gradients(p)
    np.testing.assert_allclose(found.stages[-1].values, expected, rtol=0, atol=1e-15)
    assert found.gradient == found.stages[-1].values[0]
    assert f"{found.gradient:.10f}" == "-0.0024271762"


def loss_of(p, X_Q, X_K, X_V):
    """The loss with Q, K and V computed from three sets of embedded tokens."""
    total = 0.0
    for i, target in enumerate(TARGETS):
        heads = []
        for W_Q, W_K, W_V in zip(p["W_Q"], p["W_K"], p["W_V"], strict=True):
            weights = np.exp(X_K[: i + 1] @ W_K @ (X_Q[i] @ W_Q) / math.sqrt(8))
            heads.append(weights @ (X_V[: i + 1] @ W_V) / weights.sum())
        H = p["W_O"] @ np.concatenate(heads)
        total_ = H + p["W_2"] @ gelu(p["W_1"] @ H + p["b_1"]) + p["b_2"]
        centered = total_ - total_.sum() / 16
        logits = p["W_lm"] @ (centered / np.sqrt((centered**2).sum() / 16 + 1e-5))
        total += (np.log(np.exp(logits).sum()) - logits[target]) / 4
    return total


def test_the_paths_through_attention(found, p):
    X = explain_forward().X
    moved = X.astype(complex)
    moved[0, 0] += 1j * STEP
    expected = {
        "Q": loss_of(p, moved, X, X).imag / STEP,
        "K": loss_of(p, X, moved, X).imag / STEP,
        "V": loss_of(p, X, X, moved).imag / STEP,
    }
    assert found.paths == pytest.approx(expected, rel=0, abs=1e-15)
    assert found.paths["Q"] == 0.0
    assert sum(found.paths.values()) == pytest.approx(found.gradient, rel=1e-13)


def test_of_the_logits(found):
    P = explain_forward().P[:4]
    onehot = np.zeros((4, 6))
    for i, target in enumerate(TARGETS):
        onehot[i, target] = 1
    np.testing.assert_array_equal(found.onehot, onehot)
    np.testing.assert_array_equal(found.P, P)
    np.testing.assert_allclose(found.dlogits, (P - onehot) / 4, rtol=0, atol=1e-16)


def test_finite_differences(found):
    by_h = {row.h: row for row in found.finite_differences}
    assert by_h.keys() == {1e-2, 1e-3, 1e-4, 1e-5, 1e-6}
    for row in found.finite_differences:
        assert row.error == row.gradient - found.gradient
        # h^2 / 6 of a third derivative of about 3e-5, and a unit of the loss over 2 h.
        assert abs(row.error) < 1e-5 * row.h**2 + 5e-16 / row.h


def test_every_tensor_is_checked(found, p):
    assert {row.tensor: row.count for row in found.tensors} == {
        name: parameter.size for name, parameter in p.items()
    }
    # The bounds of tests/tiny/test_gradients.py.
    assert max(row.largest_error for row in found.tensors) < 1e-9
    assert all(0 < row.largest <= row.norm for row in found.tensors)


def test_a_wrong_gradient_shows(monkeypatch):
    original = TinyTransformer.backward_through_layers

    def wrong(self, cache):
        grads, through = original(self, cache)
        grads["b_2"][3] += 1e-3
        return grads, through

    monkeypatch.setattr(TinyTransformer, "backward_through_layers", wrong)
    check = backward.explain_backward().tensors
    errors = {row.tensor: row.largest_error for row in check}
    assert errors.pop("b_2") == pytest.approx(1e-3, rel=1e-6)
    assert max(errors.values()) < 1e-9


def test_a_finite_difference_leaves_the_model_as_it_was():
    model = TinyTransformer()
    backward.central_difference(model, "W_1", (3, 4), 0.1)
    for name, parameter in TinyTransformer().parameters.items():
        np.testing.assert_array_equal(model.parameters[name], parameter)
