"""What the tiny transformer refuses."""

from typing import Any

import numpy as np
import pytest

from fused_adamw.tiny import PAD, TinyTransformer

MASKED = np.ma.masked_array([1, 3], [False, True])


@pytest.mark.parametrize(
    ("error", "message", "tokens", "targets"),
    [
        (ValueError, "tokens must be between 0 and 5; got 6", [1, 6], [3]),
        (ValueError, "tokens must be between 0 and 5; got -1", [1, -1], [3]),
        (
            ValueError,
            f"tokens must be between 0 and 5; got {2**64 - 1}",
            np.array([1, 2**64 - 1], dtype=np.uint64),
            [3],
        ),
        (ValueError, "targets must be between 0 and 5; got 6", [1, 3], [3, 6]),
        (ValueError, "targets must be between 0 and 5; got -1", [1, 3], [-1]),
        (
            ValueError,
            r"tokens must not be longer than max_length \(5\); got 6",
            [1] * 6,
            [3],
        ),
        (ValueError, "tokens must not contain an empty sequence", [], [3]),
        (
            ValueError,
            r"tokens must not contain an empty sequence; got lengths \[2, 0\]",
            [[1, 3], []],
            [[3], [3]],
        ),
        (
            ValueError,
            "tokens must not contain an empty sequence",
            np.empty((0, 5), dtype=int),
            [[3]],
        ),
        (TypeError, "tokens must contain integers; got dtype float64", [1.0, 3.0], [3]),
        (TypeError, "tokens must contain integers; got dtype bool", [True, False], [3]),
        (TypeError, "tokens must contain integers; got dtype <U4", "like", [3]),
        (TypeError, r"tokens\[0\] must contain integers; got dtype <U4", ["like"], [3]),
        (TypeError, "tokens must contain integers; got dtype object", [None, 3], [3]),
        (TypeError, "tokens must be a plain array; got a masked array", MASKED, [3]),
        (TypeError, r"tokens\[0\] must be a plain array; got a masked array", [MASKED], [3]),
        (TypeError, "targets must be a plain array; got a masked array", [1, 3], MASKED),
        (
            TypeError,
            r"tokens\[1\] must contain integers; got dtype float64",
            [[1], [3.5]],
            [[3], [3]],
        ),
        (TypeError, "targets must contain integers; got dtype float64", [1, 3], [3.0]),
        (ValueError, "tokens must have 1 dimension, or 2 for a batch; got 0", 3, [3]),
        (
            ValueError,
            "tokens must have 1 dimension, or 2 for a batch; got 3",
            np.ones((1, 1, 1), dtype=int),
            [3],
        ),
        (ValueError, r"tokens\[1\] must have 1 dimension; got 0", [[1, 3], 4], [[3], [3]]),
        (ValueError, r"tokens\[0\] must be an array of integers", [[[1], [1, 3]]], [[3]]),
        (
            ValueError,
            r"targets must have as many sequences as tokens \(2\); got 1",
            [[1], [3]],
            [[3]],
        ),
        (
            ValueError,
            r"targets must have as many sequences as tokens \(1\); got 2",
            [1, 3],
            [[3], [4]],
        ),
        (
            ValueError,
            r"targets must not be longer than tokens \(length 2 in sequence 0\); got 3",
            [1, 3],
            [3, 4, 5],
        ),
        (
            ValueError,
            r"targets must not be longer than tokens \(length 1 in sequence 1\); got 2",
            [[1, 3], [1]],
            [[3, 4], [3, 4]],
        ),
        (ValueError, "targets must contain at least one token other than PAD", [1, 3], []),
        (ValueError, "targets must contain at least one token other", [1, 3], [PAD, PAD]),
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
        with pytest.raises(ValueError, match=f"^{name} must be 1 or more; got {size}"):
            build(size)
    for size in (2.0, True):
        with pytest.raises(TypeError, match=f"^{name} must be an integer; got {size}$"):
            build(size)


def test_heads_divide_the_width() -> None:
    with pytest.raises(
        ValueError, match=r"^d_model must be a multiple of the number of heads \(3\); got 16"
    ):
        TinyTransformer(n_heads=3)


def test_the_size_of_a_causal_mask() -> None:
    model = TinyTransformer()
    np.testing.assert_array_equal(np.isinf(model.causal_mask(2)), [[False, True], [False, False]])
    for n, message in ((0, "n must be 1 or more"), (6, r"n must be at most max_length \(5\)")):
        with pytest.raises(ValueError, match=f"^{message}; got {n}$"):
            model.causal_mask(n)
