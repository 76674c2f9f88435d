"""The tiny transformer on padded sequences and batches."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from plain_transformer import (
    CASES,
    Parameters,
    plain_logits,
)

from fused_adamw.tiny import PAD, TARGETS, TOKENS, TinyTransformer


def assert_same(
    a: tuple[float, Parameters], b: tuple[float, Parameters], *, without: Sequence[str] = ()
) -> None:
    """Equal but for the order in which BLAS sums where shapes differ: some units of 1.1e-16."""
    assert a[0] == pytest.approx(b[0], rel=0, abs=2e-15)
    for name in a[1].keys() - set(without):
        atol = 5e-15 * max(1.0, float(np.abs(b[1][name]).max()))
        np.testing.assert_allclose(a[1][name], b[1][name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("targets", [[3, 4, 5], [3, 4, 5, PAD], [3, 4, 5, PAD, PAD]])
def test_padding_on_the_right_changes_nothing(targets: list[int]) -> None:
    model = TinyTransformer()
    plain = model.loss_and_gradients([1, 3, 4], [3, 4, 5])
    padded = model.loss_and_gradients([1, 3, 4, PAD, PAD], targets)
    assert_same(padded, plain)
    assert not padded[1]["E_token"][PAD].any()
    assert not padded[1]["E_pos"][3:].any()


def test_padding_on_the_left_moves_only_the_positions() -> None:
    model = TinyTransformer()
    model.parameters["E_pos"][2:] = model.parameters["E_pos"][:3].copy()
    padded = model.loss_and_gradients([PAD, PAD, 1, 3, 4], [PAD, PAD, 3, 4, 5])
    model.parameters["E_pos"][:3] = model.parameters["E_pos"][2:].copy()
    plain = model.loss_and_gradients([1, 3, 4], [3, 4, 5])
    assert_same(padded, plain, without=["E_pos"])
    # As in assert_same.
    np.testing.assert_allclose(padded[1]["E_pos"][2:], plain[1]["E_pos"][:3], rtol=0, atol=5e-15)
    assert not padded[1]["E_pos"][:2].any()


def test_no_other_position_attends_to_a_pad() -> None:
    model = TinyTransformer()
    before = model.logits([1, PAD, 3, PAD, 4])
    model.parameters["E_token"][PAD, ::2] += 1.0
    after = model.logits([1, PAD, 3, PAD, 4])
    assert np.array_equal(after[[0, 2, 4]], before[[0, 2, 4]])
    assert (after[[1, 3]] != before[[1, 3]]).all()


def test_a_pad_attends_to_itself_and_to_what_came_before() -> None:
    model = TinyTransformer()
    assert np.isfinite(model.logits([PAD, PAD])).all()
    assert (model.logits([1, PAD])[1] != model.logits([2, PAD])[1]).all()


def test_a_position_does_not_see_what_comes_later() -> None:
    model = TinyTransformer()
    assert np.array_equal(model.logits([1, 3, 4, 5, 2])[:3], model.logits([1, 3, 4, 2, 1])[:3])


def test_a_batch_is_the_mean_weighted_by_counted_positions() -> None:
    model, tokens, targets = CASES["odd"]
    counts = [sum(label != PAD for label in labels) for labels in targets]
    assert counts == [3, 2, 5]
    singles = [model.loss_and_gradients(*pair) for pair in zip(tokens, targets, strict=True)]
    loss = np.average([single[0] for single in singles], weights=counts)
    grads = {
        name: np.average([single[1][name] for single in singles], axis=0, weights=counts)
        for name in model.parameters
    }
    assert_same(model.loss_and_gradients(tokens, targets), (float(loss), grads))


def test_large_scores_do_not_overflow() -> None:
    model = TinyTransformer(dtype=np.float32)
    for name in ("E_token", "W_Q", "W_K", "W_lm"):
        model.parameters[name] *= 100
    with np.errstate(over="raise", invalid="raise"):
        loss, grads = model.loss_and_gradients(TOKENS, TARGETS)
    assert math.isfinite(loss)
    assert all(np.isfinite(grad).all() for grad in grads.values())


def test_a_loss_of_zero_has_no_sign() -> None:
    model = TinyTransformer(vocab_size=2)
    model.parameters["beta"][0] = 1e3
    model.parameters["W_lm"][:, 0] = -1.0, 1.0  # the model is certain of token 1
    loss = model.loss([1, 1], [1, 1])
    assert (loss, math.copysign(1, loss)) == (0, 1)


@pytest.mark.parametrize(
    ("tokens", "targets"),
    [
        (list(TOKENS), list(TARGETS)),
        (range(1, 5), range(2, 6)),
        (np.array(TOKENS, dtype=np.uint8), np.array(TARGETS, dtype=np.int32)),
        ([np.array(TOKENS)], [np.array(TARGETS)]),
        (np.array([TOKENS, TOKENS]), np.array([TARGETS, TARGETS])),
        (np.array([TOKENS])[:, ::-1], (TARGETS,)),
    ],
)
def test_forms_of_input(tokens: Any, targets: Any) -> None:
    model = TinyTransformer()
    token_lists, target_lists = np.atleast_2d(tokens).tolist(), np.atleast_2d(targets).tolist()
    assert model.loss(tokens, targets) == model.loss(token_lists, target_lists)


def test_the_shape_of_logits() -> None:
    model = TinyTransformer()
    assert model.logits(TOKENS).shape == (5, 6)
    assert model.logits([TOKENS]).shape == (1, 5, 6)
    assert model.logits([TOKENS, [1, 3]]).shape == (2, 5, 6)
    assert model.logits(np.array([[1, 3], [1, 4], [1, 5]])).shape == (3, 2, 6)


def test_logits_of_a_batch_are_those_of_its_sequences() -> None:
    model, tokens, _ = CASES["odd"]
    logits = model.logits(tokens)
    for row, sequence in zip(logits, tokens, strict=True):
        plain = [plain_logits(model.parameters, sequence, i) for i in range(len(sequence))]
        # Some units of 1.1e-16 in numbers below 1, for the order of sums.
        np.testing.assert_allclose(row[: len(sequence)], plain, rtol=0, atol=5e-15)
