"""Numbers out of their range are refused by name, and no byte has changed."""

import numpy as np
import pytest
from refusals import assert_refused, call

from fused_adamw import fused_adamw


@pytest.mark.parametrize("t", [0, -1, -(10**30)])
def test_t_too_small(arrays, t):
    assert_refused(arrays, ValueError, "t must be", t=t)


@pytest.mark.parametrize("t", [1.0, "1", None, np.ones(2), True, np.True_, np.array(True)])
def test_t_not_an_integer(arrays, t):
    assert_refused(arrays, TypeError, "t must be an integer", t=t)


def test_t_beyond_all_numbers(arrays):
    assert_refused(arrays, ValueError, "t must be", t=2**63)


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
@pytest.mark.parametrize("value", [-1e-9, -1, float("nan"), float("inf"), -float("inf")])
def test_number_out_of_range(arrays, name, value):
    assert_refused(arrays, ValueError, name, repr(value), **{name: value})


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
@pytest.mark.parametrize("value", ["0.1", None, 1j, [0.1], np.ones(2)])
def test_not_a_number(arrays, name, value):
    assert_refused(arrays, TypeError, name, **{name: value})


@pytest.mark.parametrize("beta", [-0.1, 1.0, 1.1, float("nan")])
@pytest.mark.parametrize("i", [0, 1])
def test_beta_out_of_range(arrays, beta, i):
    betas = (beta, 0.9) if i == 0 else (0.9, beta)
    assert_refused(arrays, ValueError, f"betas[{i}]", repr(beta), betas=betas)


@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.99, 0.999), None, "ab"])
def test_betas_not_a_pair(arrays, betas):
    assert_refused(arrays, TypeError, "betas", betas=betas)


def test_beta_that_rounds_to_one(arrays, tensor):
    betas = (0.9, 1 - 1e-9)
    assert_refused(
        arrays, ValueError, "betas[1]", "less than 1 once rounded to float32", betas=betas
    )
    fused_adamw(*tensor(3, np.float64).arrays, 1, betas=betas)


@pytest.mark.parametrize(
    ("what", "given", "options"),
    [
        ("lr / (1 - betas[0]**t)", "lr=1e+39", {"lr": 1e39}),
        ("lr / (1 - betas[0]**t)", "lr=1e+38", {"lr": 1e38}),  # which float32 can represent
        ("eps", "1e+39", {"eps": 1e39}),
        ("lr * weight_decay", "weight_decay=1e+39", {"weight_decay": 1e39, "lr": 1.0}),
    ],
)
def test_number_too_large_for_the_dtype(arrays, tensor, what, given, options):
    message = f"{what} must be representable in float32; got {given}"
    assert_refused(arrays, ValueError, message, **options)
    fused_adamw(*tensor(3, np.float64).arrays, 1, **options)


@pytest.mark.parametrize("num_threads", [0, -1, 1025, 10**30])
def test_num_threads_out_of_range(arrays, num_threads):
    assert_refused(arrays, ValueError, "num_threads", num_threads=num_threads)


@pytest.mark.parametrize("num_threads", [1.5, "2", (1,), True, np.True_])
def test_num_threads_not_an_integer(arrays, num_threads):
    assert_refused(arrays, TypeError, "num_threads", num_threads=num_threads)


@pytest.mark.parametrize("name", ["t", "num_threads"])
@pytest.mark.parametrize("value", [10**5000, -(10**5000)], ids=["large", "small"])
def test_integers_that_python_does_not_print(arrays, name, value):
    """Python refuses to write more than 4,300 digits, in a message too."""
    assert_refused(
        arrays, ValueError, f"{name} must be within the range of float64", **{name: value}
    )


def test_numbers_of_other_kinds(arrays, tensor):
    """NumPy scalars, integers and 0-d arrays are numbers too."""
    other = tensor((4, 6), np.float32).arrays
    call(arrays, np.int64(3), lr=np.float64(0.5), betas=[0, np.float64(0.5)], eps=np.array(0.25))
    call(other, 3, lr=0.5, betas=(0.0, 0.5), eps=0.25)
    assert [a.tobytes() for a in arrays] == [a.tobytes() for a in other]


class Interrupting:
    def __float__(self):
        raise KeyboardInterrupt


def test_other_exceptions_pass_through(arrays):
    with pytest.raises(KeyboardInterrupt):
        call(arrays, lr=Interrupting())
