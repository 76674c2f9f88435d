"""The tiny transformer, against published figures and three independent sets of gradients:
finite differences, the complex step of a plain forward pass, and the autograd of PyTorch."""

import doctest
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fused_adamw.tiny import model as tiny_transformer
from fused_adamw.tiny.model import PAD, TARGETS, TOKENS, VOCABULARY, TinyTransformer

Parameters = dict[str, NDArray[Any]]

# Three heads, sequences of unequal length, a token that occurs twice, targets shorter than their
# tokens, a target PAD in the middle, and a PAD that is no padding.
ODD_SIZES: dict[str, Any] = {
    "vocab_size": 7,
    "d_model": 12,
    "n_heads": 3,
    "d_ff": 10,
    "max_length": 6,
}
ODD_TOKENS = [[1, 3, 3, 5, 6], [1, 4], [1, PAD, 2, 6, 5, 4]]
ODD_TARGETS = [[3, 3, PAD, 6], [4, 2], [2, 2, 6, 5, 4]]

CASES: dict[str, tuple[TinyTransformer, Any, Any]] = {
    "default": (TinyTransformer(seed=42), TOKENS, TARGETS),
    "odd": (TinyTransformer(seed=7, **ODD_SIZES), ODD_TOKENS, ODD_TARGETS),
}
for name, shift in (("gamma", 1.0), ("beta", 0.0)):
    # At their ones and zeros an error in gamma or beta could hide.
    parameter = CASES["odd"][0].parameters[name]
    parameter[:] = shift + np.linspace(-0.3, 0.4, parameter.size)


# --------------------------------------------------------------------------- the plain forward


def plain_loss(p: Parameters, tokens: Sequence[Any], targets: Sequence[Any]) -> Any:
    """The loss as the definition reads: one sequence, one head, one position at a time.

    Nothing is padded and nothing is masked: a position looks only at the keys it may see. All of
    it is analytic, so that it also accepts complex parameters.
    """
    total, count = 0.0, 0
    for sequence, labels in zip(tokens, targets, strict=True):
        for i, label in enumerate(labels):
            if label != PAD:
                logits = plain_logits(p, sequence, i)
                total += np.log(np.exp(logits).sum()) - logits[label]
                count += 1
    return total / count


def plain_logits(p: Parameters, tokens: Sequence[int], i: int) -> NDArray[Any]:
    X = [p["E_token"][token] + p["E_pos"][j] for j, token in enumerate(tokens)]
    seen = [j for j in range(i + 1) if tokens[j] != PAD or j == i]
    heads = []
    for W_Q, W_K, W_V in zip(p["W_Q"], p["W_K"], p["W_V"], strict=True):
        q = X[i] @ W_Q
        weights = np.array([np.exp(q @ (X[j] @ W_K) / math.sqrt(len(q))) for j in seen])
        values = np.array([X[j] @ W_V for j in seen])
        heads.append(weights @ values / weights.sum())
    H = p["W_O"] @ np.concatenate(heads)
    x = p["W_1"] @ H + p["b_1"]
    gelu = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    Z = H + p["W_2"] @ gelu + p["b_2"]
    centred = Z - Z.sum() / len(Z)
    Y = centred / np.sqrt((centred**2).sum() / len(Z) + 1e-5) * p["gamma"] + p["beta"]
    logits: NDArray[Any] = p["W_lm"] @ Y
    return logits


def batched(sequences: Any) -> Any:
    return [sequences] if isinstance(sequences[0], int) else sequences


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


# --------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("case", CASES)
def test_loss_is_that_of_the_plain_forward(case: str) -> None:
    model, tokens, targets = CASES[case]
    expected = plain_loss(model.parameters, batched(tokens), batched(targets))
    # As for the first loss: a few units in the last place of a number near 2.
    assert model.loss(tokens, targets) == pytest.approx(expected, rel=0, abs=2e-15)


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


@settings(derandomize=True, deadline=None, max_examples=40)
@given(models_and_batches())
def test_every_size_and_batch(example: tuple[TinyTransformer, Any, Any]) -> None:
    model, tokens, targets = example
    expected = plain_loss(model.parameters, tokens, targets)
    # As for the first loss, with room for the magnification by layernorm.
    assert model.loss(tokens, targets) == pytest.approx(expected, rel=0, abs=1e-14)
    assert_gradients_along_random_directions(model, tokens, targets)


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


# --------------------------------------------------------------------------- dtypes


def arrays_in(cache: Any) -> Iterator[NDArray[Any]]:
    if isinstance(cache, np.ndarray):
        yield cache
    elif isinstance(cache, tuple):
        for item in cache:
            yield from arrays_in(item)


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
    with pytest.raises(TypeError, match=r"^dtype is .*, expected float32 or float64"):
        TinyTransformer(dtype=dtype)


# --------------------------------------------------------------------------- padding and batches


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


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("error", "message", "tokens", "targets"),
    [
        (ValueError, "tokens has a token 6, expected 0 to 5", [1, 6], [3]),
        (ValueError, "tokens has a token -1, expected 0 to 5", [1, -1], [3]),
        (ValueError, "tokens has a token", np.array([1, 2**64 - 1], dtype=np.uint64), [3]),
        (ValueError, "targets has a token 6, expected 0 to 5", [1, 3], [3, 6]),
        (ValueError, "targets has a token -1, expected 0 to 5", [1, 3], [-1]),
        (ValueError, "tokens has a sequence of length 6, expected max_length = 5", [1] * 6, [3]),
        (ValueError, "tokens has no token in a sequence", [], [3]),
        (ValueError, "tokens has no token in a sequence", [[1, 3], []], [[3], [3]]),
        (ValueError, "tokens has no token in a sequence", np.empty((0, 5), dtype=int), [[3]]),
        (TypeError, "tokens has dtype float64, expected integers", [1.0, 3.0], [3]),
        (TypeError, "tokens has dtype bool, expected integers", [True, False], [3]),
        (TypeError, "tokens has dtype <U4, expected integers", "like", [3]),
        (TypeError, r"tokens\[0\] has dtype <U4, expected integers", ["like"], [3]),
        (TypeError, "tokens has dtype object, expected integers", [None, 3], [3]),
        (TypeError, r"tokens\[1\] has dtype float64, expected integers", [[1], [3.5]], [[3], [3]]),
        (TypeError, "targets has dtype float64, expected integers", [1, 3], [3.0]),
        (ValueError, "tokens has 0 dimensions, expected 1, or 2 for a batch", 3, [3]),
        (ValueError, "tokens has 3 dimensions", np.ones((1, 1, 1), dtype=int), [3]),
        (ValueError, r"tokens\[1\] has 0 dimensions, expected 1", [[1, 3], 4], [[3], [3]]),
        (ValueError, r"tokens\[0\] is not an array of integers", [[[1], [1, 3]]], [[3]]),
        (ValueError, "targets has 1 sequences, expected 2, as tokens", [[1], [3]], [[3]]),
        (ValueError, "targets has 2 sequences, expected 1, as tokens", [1, 3], [[3], [4]]),
        (
            ValueError,
            "targets has 3 positions in sequence 0, expected at most 2",
            [1, 3],
            [3, 4, 5],
        ),
        (ValueError, "targets has 2 positions in sequence 1", [[1, 3], [1]], [[3, 4], [3, 4]]),
        (ValueError, "targets has no position that counts", [1, 3], []),
        (ValueError, "targets has no position that counts", [1, 3], [PAD, PAD]),
    ],
)
def test_bad_input_is_named(
    error: type[Exception], message: str, tokens: Any, targets: Any
) -> None:
    model = TinyTransformer()
    with pytest.raises(error, match=f"^{message}"):
        model.loss_and_gradients(tokens, targets)
    if message.startswith("tokens"):
        with pytest.raises(error, match=f"^{message}"):
            model.logits(tokens)


@pytest.mark.parametrize("name", ["vocab_size", "d_model", "n_heads", "d_ff", "max_length"])
def test_bad_sizes_are_named(name: str) -> None:
    def build(size: Any) -> TinyTransformer:
        sizes: dict[str, Any] = {name: size}
        return TinyTransformer(**sizes)

    for size in (0, -2):
        with pytest.raises(ValueError, match=f"^{name} is {size}, expected 1 or more"):
            build(size)
    with pytest.raises(TypeError, match=rf"^{name} is 2\.0, expected an integer"):
        build(2.0)


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"^d_model is 16, expected a multiple of n_heads = 3"):
        TinyTransformer(n_heads=3)


def test_the_examples_in_the_docstrings() -> None:
    results = doctest.testmod(tiny_transformer)
    assert results.attempted > 0
    assert results.failed == 0
