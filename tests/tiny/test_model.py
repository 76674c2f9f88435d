"""The tiny transformer: published figures, the random draws, dtypes."""

import doctest
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from plain_transformer import (
    ODD_SIZES,
    ODD_TARGETS,
    ODD_TOKENS,
    arrays_in,
)

from fused_adamw.tiny import PAD, TARGETS, TOKENS, VOCABULARY, TinyTransformer
from fused_adamw.tiny import model as tiny_transformer

# --------------------------------------------------------------------------- published figures


def test_the_first_parameter() -> None:
    assert TinyTransformer(seed=42).parameters["E_token"][1][0] == 0.024634219521120198


def test_the_first_loss() -> None:
    loss = TinyTransformer(seed=42).loss(TOKENS, TARGETS)
    assert type(loss) is float
    # One unit in the last place is 2.2e-16 here. BLAS sums products in an order of its own on
    # each machine; some hundred roundings, mostly cancelling, leave a few units.
    assert loss == pytest.approx(1.8298677505438041, rel=0, abs=2e-15)
    assert f"{math.exp(loss):.4f}" == "6.2331"
    assert f"{math.log(len(VOCABULARY)):.4f}" == "1.7918"


@pytest.mark.parametrize(
    ("position", "loss", "probability"),
    [(0, 1.9033, 0.1491), (1, 1.6123, 0.1994), (2, 1.8479, 0.1576), (3, 1.9560, 0.1414)],
)
def test_the_loss_of_each_position(position: int, loss: float, probability: float) -> None:
    target = [PAD] * position + [TARGETS[position]]
    got = TinyTransformer(seed=42).loss(TOKENS, target)
    # Half of the last digit printed.
    assert got == pytest.approx(loss, abs=5e-5)
    assert math.exp(-got) == pytest.approx(probability, abs=5e-5)


def test_the_logits() -> None:
    expected = [
        [0.3362, -0.1025, -0.0514, -0.0053, 0.2907, 0.0848],
        [0.3332, -0.1114, -0.0743, -0.0182, 0.2730, 0.0714],
        [0.3179, -0.1641, -0.0885, -0.0041, 0.3290, 0.0326],
        [0.3252, -0.1279, -0.0646, -0.0031, 0.3202, 0.0518],
        [0.3209, -0.1388, -0.0673, 0.0066, 0.3317, 0.0356],
    ]
    logits = TinyTransformer(seed=42).logits(TOKENS)
    # Half of the last digit printed.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-5)


def test_the_vocabulary() -> None:
    assert VOCABULARY == ("<PAD>", "<BOS>", "<EOS>", "I", "like", "transformers")
    assert VOCABULARY[PAD] == "<PAD>"
    assert [VOCABULARY[token] for token in TOKENS] == [
        "<BOS>",
        "I",
        "like",
        "transformers",
        "<EOS>",
    ]
    assert tuple(TARGETS) == tuple(TOKENS[1:])


def test_parameter_names_shapes_and_counts() -> None:
    table = {
        "E_token": ((6, 16), 96),
        "E_pos": ((5, 16), 80),
        "W_Q": ((2, 16, 8), 256),
        "W_K": ((2, 16, 8), 256),
        "W_V": ((2, 16, 8), 256),
        "W_O": ((16, 16), 256),
        "W_1": ((64, 16), 1024),
        "b_1": ((64,), 64),
        "W_2": ((16, 64), 1024),
        "b_2": ((16,), 16),
        "W_lm": ((6, 16), 96),
        "gamma": ((16,), 16),
        "beta": ((16,), 16),
    }
    model = TinyTransformer(seed=42)
    assert list(model.parameters) == list(table)
    assert {name: (p.shape, p.size) for name, p in model.parameters.items()} == table
    assert model.n_parameters == 3456
    assert 2 * model.n_parameters == 6912  # the m and v of AdamW


# --------------------------------------------------------------------------- the draws


@pytest.fixture
def global_random() -> Iterator[None]:
    state = random.getstate()
    yield
    random.setstate(state)


@pytest.mark.usefixtures("global_random")
def test_parameters_are_the_draws_of_the_random_module() -> None:
    model = TinyTransformer(seed=42)
    random.seed(42)

    def rows(height: int, width: int) -> list[list[float]]:
        return [[random.gauss(0, 0.1) for _ in range(width)] for _ in range(height)]

    drawn = {
        "E_token": rows(6, 16),
        "E_pos": rows(5, 16),
        "W_Q": [rows(16, 8), rows(16, 8)],
        "W_K": [rows(16, 8), rows(16, 8)],
        "W_V": [rows(16, 8), rows(16, 8)],
        "W_O": rows(16, 16),
        "W_1": rows(64, 16),
        "b_1": rows(1, 64)[0],
        "W_2": rows(16, 64),
        "b_2": rows(1, 16)[0],
        "W_lm": rows(6, 16),
        "gamma": [1.0] * 16,
        "beta": [0.0] * 16,
    }
    assert {name: p.tolist() for name, p in model.parameters.items()} == drawn


@pytest.mark.usefixtures("global_random")
def test_drawing_leaves_the_global_generator_alone() -> None:
    random.seed(1)
    state = random.getstate()
    TinyTransformer(seed=42)
    assert random.getstate() == state


def test_the_seed_decides() -> None:
    a, b, c = (TinyTransformer(seed=seed).parameters for seed in (1, 1, 2))
    assert np.array_equal(a["W_1"], b["W_1"])
    assert not np.array_equal(a["W_1"], c["W_1"])


# --------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("tokens", "targets"), [(TOKENS, TARGETS), ([[1, PAD, 2], [3]], [[2, 2], [4]])]
)
def test_a_model_stays_in_its_dtype(dtype: str, tokens: Any, targets: Any) -> None:
    model = TinyTransformer(dtype=dtype)
    loss, cache = model.forward(tokens, targets)
    floats = [array for array in arrays_in(cache) if array.dtype.kind == "f"]
    grads = model.backward(cache).values()
    arrays = [*model.parameters.values(), *floats, *grads, model.logits(tokens)]
    assert len(floats) > 10
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}
    assert all(parameter.flags.c_contiguous for parameter in model.parameters.values())
    assert type(loss) is float


def test_no_layer_leaves_float32_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    # An upcast in between could be cast back where a gradient is written into its place.
    seen = []

    def watched(layer: Any) -> Any:
        def call(*args: Any) -> Any:
            output = layer(*args)
            seen.extend([*arrays_in(args), *arrays_in(output)])
            return output

        return call

    layers = ["embedding", "linear", "attention", "gelu", "layernorm", "cross_entropy"]
    for layer in layers:
        for name in (f"{layer}_forward", f"{layer}_backward"):
            monkeypatch.setattr(tiny_transformer, name, watched(getattr(tiny_transformer, name)))
    TinyTransformer(dtype=np.float32).loss_and_gradients([[1, PAD, 2], [3]], [[2, 2], [4]])
    floats = [array for array in seen if array.dtype.kind == "f"]
    assert len(floats) > 50
    assert {array.dtype for array in floats} == {np.dtype(np.float32)}


def test_float32_parameters_are_the_float64_draws_rounded() -> None:
    single, double = TinyTransformer(dtype=np.float32), TinyTransformer()
    for name, parameter in double.parameters.items():
        assert np.array_equal(single.parameters[name], parameter.astype(np.float32)), name


@pytest.mark.parametrize(
    ("sizes", "tokens", "targets"), [({}, TOKENS, TARGETS), (ODD_SIZES, ODD_TOKENS, ODD_TARGETS)]
)
def test_float32_is_close_to_float64(sizes: dict[str, Any], tokens: Any, targets: Any) -> None:
    double = TinyTransformer(seed=3, **sizes)
    single = TinyTransformer(seed=3, dtype=np.float32, **sizes)
    loss, grads = double.loss_and_gradients(tokens, targets)
    single_loss, single_grads = single.loss_and_gradients(tokens, targets)

    unit = 2.0**-24
    # Rounding a parameter moves it by one unit; a computed inner product of k terms is the exact
    # one of parameters moved by k units, and k is at most d_ff = 64. To first order the loss
    # moves by the sum of gradient times movement.
    sensitivity = sum(np.abs(p * grads[name]).sum() for name, p in double.parameters.items())
    assert abs(single_loss - loss) <= 65 * unit * sensitivity
    for name, grad in grads.items():
        # Some 300 roundings lie on the way forth and back, in 14 products of 5 to 64 terms. Their
        # signs are as good as random: sqrt(300) = 17 units of the largest entry, doubled.
        assert np.abs(single_grads[name] - grad).max() <= 35 * unit * np.abs(grad).max(), name


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.complex128, ">f8"])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"^dtype must be float32 or float64; got "):
        TinyTransformer(dtype=dtype)


@pytest.mark.parametrize("name", ["vocab_size", "d_model", "n_heads", "d_ff", "max_length"])
def test_sizes_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*1.*; got 0$"):
        TinyTransformer(**{name: 0})


def test_the_examples_in_the_docstrings() -> None:
    results = doctest.testmod(tiny_transformer)
    assert results.attempted > 0
    assert results.failed == 0
