"""The gradients of the tiny transformer, against three independent sets: finite differences, the
complex step of a plain forward pass, and the autograd of PyTorch."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_transformer import (
    CASES,
    arrays_in,
    batched,
    plain_loss,
)

from fused_adamw.tiny import PAD, TARGETS, TOKENS, TinyTransformer


@pytest.mark.parametrize("case", CASES)
def test_loss_is_that_of_the_plain_forward(case: str) -> None:
    model, tokens, targets = CASES[case]
    expected = plain_loss(model.parameters, batched(tokens), batched(targets))
    # As for the first loss: a few units in the last place of a number near 2.
    assert model.loss(tokens, targets) == pytest.approx(expected, rel=0, abs=2e-15)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_agree_with_central_differences(case: str) -> None:
    model, tokens, targets = CASES[case]
    _, grads = model.loss_and_gradients(tokens, targets)
    h = 1e-5
    for name, parameter in model.parameters.items():
        numeric = np.empty_like(parameter)
        for index in np.ndindex(parameter.shape):
            value = parameter[index]
            parameter[index] = value + h
            above = model.loss(tokens, targets)
            parameter[index] = value - h
            below = model.loss(tokens, targets)
            parameter[index] = value
            numeric[index] = (above - below) / (2 * h)
        # The truncation is h^2 / 6 = 1.7e-11 of the third derivative, and that reaches a hundred
        # times the gradient at b_2, which layernorm divides by a small deviation; the loss,
        # rounded to 1e-15, over 2h adds 5e-11.
        np.testing.assert_allclose(grads[name], numeric, rtol=1e-8, atol=2e-10, err_msg=name)


def assert_gradients_along_random_directions(
    model: TinyTransformer, tokens: Any, targets: Any
) -> None:
    """Each gradient, projected on a random direction, against the complex step.

    With an imaginary step of 1e-30 nothing cancels: Im(loss) / 1e-30 is the derivative along the
    direction to rounding, and a wrong entry of the gradient shows in the projection.
    """
    _, grads = model.loss_and_gradients(tokens, targets)
    generator = np.random.default_rng(0)
    for name, parameter in model.parameters.items():
        direction = generator.standard_normal(parameter.shape)
        stepped = {**model.parameters, name: parameter + 1e-30j * direction}
        expected = plain_loss(stepped, batched(tokens), batched(targets)).imag / 1e-30
        terms = grads[name] * direction
        # A hundred units of 1.1e-16, relative to the terms that are summed; 1 stands for what
        # cancelled inside those terms.
        atol = 1e-14 * (1 + np.abs(terms).sum())
        assert terms.sum() == pytest.approx(expected, rel=0, abs=atol), name


@pytest.mark.parametrize("case", CASES)
def test_gradients_agree_with_the_complex_step(case: str) -> None:
    assert_gradients_along_random_directions(*CASES[case])


@st.composite
def models_and_batches(draw: st.DrawFn) -> tuple[TinyTransformer, Any, Any]:
    n_heads = draw(st.integers(1, 3))
    vocab_size = draw(st.integers(2, 8))
    max_length = draw(st.integers(1, 6))
    model = TinyTransformer(
        seed=draw(st.integers(0, 1000)),
        vocab_size=vocab_size,
        # Two or three values may be so close together that layernorm magnifies each rounding a
        # hundredfold: at least four.
        d_model=n_heads * draw(st.integers(4, 6)),
        n_heads=n_heads,
        d_ff=draw(st.integers(1, 9)),
        max_length=max_length,
    )
    token = st.integers(0, vocab_size - 1)
    sequence = st.lists(token, min_size=1, max_size=max_length)
    tokens = draw(st.lists(sequence, min_size=1, max_size=3))
    targets = [draw(st.lists(token, max_size=len(row))) for row in tokens]
    targets[0][:1] = [1]  # at least one counts
    return model, tokens, targets


@settings(derandomize=True, max_examples=40)
@given(models_and_batches())
def test_every_size_and_batch(example: tuple[TinyTransformer, Any, Any]) -> None:
    model, tokens, targets = example
    expected = plain_loss(model.parameters, tokens, targets)
    # As for the first loss, with a margin for the magnification by layernorm.
    assert model.loss(tokens, targets) == pytest.approx(expected, rel=0, abs=1e-14)
    assert_gradients_along_random_directions(model, tokens, targets)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_agree_with_pytorch(case: str) -> None:
    torch = pytest.importorskip("torch")
    model, tokens, targets = CASES[case]
    p = {name: torch.tensor(value, requires_grad=True) for name, value in model.parameters.items()}
    losses = [
        torch_losses(torch, p, list(sequence), list(labels))
        for sequence, labels in zip(batched(tokens), batched(targets), strict=True)
    ]
    count = sum(label != PAD for labels in batched(targets) for label in labels)
    expected = torch.cat(losses).sum() / count
    expected.backward()

    loss, grads = model.loss_and_gradients(tokens, targets)
    # As for the first loss.
    assert loss == pytest.approx(expected.item(), rel=0, abs=2e-15)
    for name, grad in grads.items():
        # Two float64 computations of one formula: a hundred units of 1.1e-16 of the tensor's
        # largest entry, because sums leave that much in its small ones too.
        reference = p[name].grad.numpy()
        atol = 1e-14 * np.abs(reference).max()
        np.testing.assert_allclose(grad, reference, rtol=0, atol=atol, err_msg=name)


def torch_losses(torch: Any, p: Any, tokens: list[int], labels: list[int]) -> Any:
    """The loss of each position of one sequence; 0 where the label is PAD."""
    n = len(tokens)
    X = p["E_token"][tokens] + p["E_pos"][:n]
    is_key = torch.tensor([token != PAD for token in tokens])
    visible = torch.ones(n, n).tril().bool() & (is_key | torch.eye(n).bool())
    heads = []
    for W_Q, W_K, W_V in zip(p["W_Q"], p["W_K"], p["W_V"], strict=True):
        scores = (X @ W_Q) @ (X @ W_K).T / math.sqrt(W_Q.shape[1])
        heads.append(scores.masked_fill(~visible, -math.inf).softmax(dim=-1) @ (X @ W_V))
    H = torch.cat(heads, dim=-1) @ p["W_O"].T
    functional = torch.nn.functional
    hidden = functional.gelu(H @ p["W_1"].T + p["b_1"], approximate="tanh")
    Z = H + hidden @ p["W_2"].T + p["b_2"]
    Y = functional.layer_norm(Z, Z.shape[-1:], p["gamma"], p["beta"], eps=1e-5)
    logits = (Y @ p["W_lm"].T)[: len(labels)]
    return functional.cross_entropy(
        logits, torch.tensor(labels), ignore_index=PAD, reduction="none"
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gradients_are_fresh_contiguous_arrays_like_the_parameters(dtype: type) -> None:
    model = TinyTransformer(dtype=dtype)
    before = {name: p.copy() for name, p in model.parameters.items()}
    _, cache = model.forward(TOKENS, TARGETS)
    first, second = model.backward(cache), model.backward(cache)

    assert list(first) == list(model.parameters)
    for name, grad in first.items():
        parameter = model.parameters[name]
        assert (grad.shape, grad.dtype) == (parameter.shape, parameter.dtype), name
        assert grad.flags.c_contiguous, name
        assert grad.flags.writeable, name
        assert np.array_equal(parameter, before[name]), name
        assert np.array_equal(grad, second[name]), name
    gradients = [*first.values(), *second.values()]
    everything = [*gradients, *model.parameters.values(), *arrays_in(cache)]
    for grad in gradients:
        assert sum(np.shares_memory(grad, other) for other in everything) == 1  # itself


def test_the_parts_are_the_whole() -> None:
    model = TinyTransformer()
    loss, cache = model.forward(TOKENS, TARGETS)
    grads = model.backward(cache)
    whole_loss, whole_grads = model.loss_and_gradients(TOKENS, TARGETS)
    assert loss == whole_loss == model.loss(TOKENS, TARGETS)
    assert all(np.array_equal(grads[name], whole_grads[name]) for name in model.parameters)


def test_parameters_may_be_updated_in_place() -> None:
    model = TinyTransformer()
    loss, grads = model.loss_and_gradients(TOKENS, TARGETS)
    for name, parameter in model.parameters.items():
        parameter -= 0.05 * grads[name]
    assert model.loss(TOKENS, TARGETS) < loss
