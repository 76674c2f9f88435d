"""The activations of the forward pass, against the same computed position by position."""

import math

import numpy as np
import pytest
from plain_transformer import plain_logits

from fused_adamw.explain.forward import explain_forward
from fused_adamw.tiny import TARGETS, TOKENS, VOCABULARY, TinyTransformer


@pytest.fixture(scope="module")
def found():
    return explain_forward()


@pytest.fixture(scope="module")
def p():
    return TinyTransformer().parameters


def close(value, expected):
    # A few roundings of numbers of order 1.
    np.testing.assert_allclose(value, expected, rtol=0, atol=5e-15)


def test_embedding(found, p):
    assert (found.tokens, found.targets) == (list(TOKENS), list(TARGETS))
    assert found.vocabulary == list(VOCABULARY)
    for i, token in enumerate(TOKENS):
        close(found.E_token[i], p["E_token"][token])
        close(found.E_pos[i], p["E_pos"][i])
        close(found.X[i], p["E_token"][token] + p["E_pos"][i])


def test_attention(found, p):
    for head in range(2):
        for name, values in (("W_Q", found.Q), ("W_K", found.K), ("W_V", found.V)):
            for i in range(5):
                close(values[head, i], found.X[i] @ p[name][head])
        for i in range(5):
            scores = [found.Q[head, i] @ found.K[head, j] / math.sqrt(8) for j in range(i + 1)]
            close(found.scores[head, i, : i + 1], scores)
            assert (found.scores[head, i, i + 1 :] == -np.inf).all()
            weights = np.exp(scores) / np.exp(scores).sum()
            close(found.attention[head, i, : i + 1], weights)
            assert (found.attention[head, i, i + 1 :] == 0).all()
            close(found.heads[head, i], weights @ found.V[head, : i + 1])


def test_after_attention(found, p):
    for i in range(5):
        close(found.concatenated[i], np.concatenate([found.heads[0, i], found.heads[1, i]]))
        close(found.H[i], p["W_O"] @ found.concatenated[i])
        x = p["W_1"] @ found.H[i] + p["b_1"]
        close(found.before_gelu[i], x)
        close(
            found.after_gelu[i],
            0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        )
        close(found.F[i], p["W_2"] @ found.after_gelu[i] + p["b_2"])
        total = found.H[i] + found.F[i]
        close(found.mean[i], sum(total) / 16)
        close(found.variance[i], sum((total - found.mean[i]) ** 2) / 16)
        normalized = (total - found.mean[i]) / math.sqrt(found.variance[i] + 1e-5)
        # Divided by a standard deviation of 0.1.
        np.testing.assert_allclose(found.normalized[i], normalized, rtol=0, atol=5e-14)
        close(found.Y[i], found.normalized[i] * p["gamma"] + p["beta"])


def test_prediction(found, p):
    for i in range(5):
        np.testing.assert_allclose(found.logits[i], plain_logits(p, TOKENS, i), rtol=0, atol=5e-14)
        close(found.P[i], np.exp(found.logits[i]) / np.exp(found.logits[i]).sum())
    targets = [found.P[i, target] for i, target in enumerate(TARGETS)]
    close(found.target_probabilities, targets)
    close(found.losses, [-math.log(x) for x in targets])
    assert found.loss == pytest.approx(1.8298677505438041, rel=0, abs=2e-15)
    assert found.loss == pytest.approx(sum(found.losses) / 4, rel=1e-15)
    assert (found.perplexity, found.chance) == (math.exp(found.loss), math.log(6))
