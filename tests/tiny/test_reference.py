"""The definition, against worked numbers and against closed forms of the recursion."""

import doctest
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fused_adamw import reference
from fused_adamw.reference import (
    adamw_update,
    adamw_update_list,
    sgd_update,
)

THETA, GRADIENT = 0.024634, -0.352893
LR, BETA1, BETA2, EPS, WD = 0.001, 0.9, 0.999, 1e-8, 0.01


def test_the_worked_update() -> None:
    theta, m, v = adamw_update(THETA, GRADIENT, 0.0, 0.0, t=1)
    decayed, _, _ = adamw_update(THETA, 0.0, 0.0, 0.0, t=1)

    # A format such as .6f is the digits that were published.
    assert f"{m:.7f}" == "-0.0352893"
    assert f"{v:.9f}" == "0.000124533"
    assert f"{m / (1 - BETA1):.6f}" == "-0.352893"
    assert f"{v / (1 - BETA2):.6f}" == "0.124533"
    assert f"{decayed:.9f}" == "0.024633754"
    assert f"{THETA - decayed:.9f}" == "0.000000246"
    assert f"{decayed - theta:.6f}" == "-0.001000"
    assert f"{theta - THETA:+.6f}" == "+0.001000"
    assert f"{theta:.6f}" == "0.025634"
    effective_lr = (theta - decayed) / -GRADIENT
    assert f"{effective_lr:.6f}" == "0.002834"
    assert f"{effective_lr / LR:.2f}" == "2.83"


def test_the_defaults_are_those_of_the_worked_update() -> None:
    spelled_out = adamw_update(
        THETA, GRADIENT, 0.1, 0.2, 3, lr=LR, beta1=BETA1, beta2=BETA2, eps=EPS, wd=WD
    )
    assert adamw_update(THETA, GRADIENT, 0.1, 0.2, 3) == spelled_out
    assert sgd_update(THETA, GRADIENT) == sgd_update(THETA, GRADIENT, lr=LR)


@pytest.mark.parametrize(
    ("gradient", "multiplier"),
    [
        (0.001, "999.99"),
        (0.01, "100.00"),
        (0.1, "10.00"),
        (0.5, "2.00"),
        (1.0, "1.00"),
        (5.0, "0.20"),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_effective_lr_by_gradient_size(gradient: float, multiplier: str, sign: int) -> None:
    theta, _, _ = adamw_update(0.0, sign * gradient, 0.0, 0.0, t=1)
    effective_lr = -theta / (sign * gradient)
    assert f"{effective_lr / LR:.2f}" == multiplier


betas = st.floats(0.0, 0.9999)
gradients = st.lists(st.floats(-100.0, 100.0), min_size=1, max_size=30)


@settings(derandomize=True, max_examples=50)
@given(gradients=gradients, beta1=betas, beta2=betas)
def test_moments_are_the_weighted_sums_they_unroll_to(
    gradients: list[float], beta1: float, beta2: float
) -> None:
    theta = m = v = 0.0
    for t, gradient in enumerate(gradients, start=1):
        theta, m, v = adamw_update(theta, gradient, m, v, t, beta1=beta1, beta2=beta2)

    age = range(len(gradients) - 1, -1, -1)
    first = [(1 - beta1) * beta1**a * g for a, g in zip(age, gradients, strict=True)]
    second = [(1 - beta2) * beta2**a * g * g for a, g in zip(age, gradients, strict=True)]
    # Each of at most 30 steps rounds three times, and the power that replaces them some more:
    # 200 units of 1.2e-16 relative to the absolute terms; 1e-300 where squares underflow.
    assert m == pytest.approx(math.fsum(first), rel=0, abs=2.4e-14 * sum(map(abs, first)) + 1e-300)
    assert v == pytest.approx(math.fsum(second), rel=2.4e-14, abs=1e-300)


@settings(derandomize=True, max_examples=50)
@given(
    gradient=st.floats(0.01, 100.0),
    sign=st.sampled_from([1, -1]),
    steps=st.integers(1, 50),
    beta1=betas,
    beta2=betas,
)
def test_a_constant_gradient_moves_theta_by_lr_at_every_step(
    gradient: float, sign: int, steps: int, beta1: float, beta2: float
) -> None:
    # With bias correction m_hat = g and v_hat = g^2 exactly, whatever the betas and t.
    theta = m = v = 0.0
    for t in range(1, steps + 1):
        theta, m, v = adamw_update(theta, sign * gradient, m, v, t, beta1=beta1, beta2=beta2, wd=0)
    expected = -steps * LR * sign * gradient / (gradient + EPS)
    # 1 - beta^t may be as small as 1e-4 and is then known to 1.1e-16 / 1e-4 = 1.1e-12; the
    # moments add their own rounding of the same size.
    assert theta == pytest.approx(expected, rel=4e-12)


@pytest.mark.parametrize("t", [1, 2, 1000])
def test_weight_decay_is_multiplied_by_lr_and_apart_from_the_gradient(t: int) -> None:
    theta, m, v = adamw_update(2.0, 0.0, 0.0, 0.0, t, lr=0.1, wd=0.5)
    assert (theta, m, v) == (2.0 * (1 - 0.1 * 0.5), 0.0, 0.0)
    with_decay, *moments = adamw_update(2.0, 3.0, 0.1, 0.2, t, lr=0.1, wd=0.5)
    without, *same_moments = adamw_update(2.0, 3.0, 0.1, 0.2, t, lr=0.1, wd=0.0)
    assert moments == same_moments
    # Both are near 2: a few roundings of 2.2e-16 each.
    assert without - with_decay == pytest.approx(2.0 * 0.1 * 0.5, abs=2e-15)


def test_eps_is_added_outside_the_square_root() -> None:
    theta, _, _ = adamw_update(0.0, 2.0, 0.0, 0.0, t=1, lr=1.0, eps=2.0, wd=0.0)
    # 2 / (2 + 2), after some five roundings.
    assert theta == pytest.approx(-0.5, rel=1e-15)


def test_a_gradient_whose_square_overflows_does_not_raise() -> None:
    theta, _, v = adamw_update(1.0, 1e200, 0.0, 0.0, t=1, wd=0.0)
    assert (theta, v) == (1.0, math.inf)


def test_sgd() -> None:
    assert sgd_update(1.0, 4.0, lr=0.25) == 0.0
    assert sgd_update(1.0, -4.0, lr=0.25) == 2.0
    assert f"{sgd_update(THETA, GRADIENT):.6f}" == "0.024987"


def test_lists_are_updated_entry_by_entry_into_new_lists() -> None:
    theta, gradient, m, v = [1.0, -2.0, 3.0], [0.5, -0.25, 0.0], [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    originals = [list(values) for values in (theta, gradient, m, v)]
    options = (0.1, 0.8, 0.95, 1e-6, 0.2)

    updated = adamw_update_list(theta, gradient, m, v, 4, *options)
    entries = zip(theta, gradient, m, v, strict=True)
    expected = zip(*(adamw_update(*entry, 4, *options) for entry in entries), strict=True)
    assert list(updated) == [list(column) for column in expected]
    assert [theta, gradient, m, v] == originals


def test_empty_lists() -> None:
    assert adamw_update_list([], [], [], [], 1) == ([], [], [])


@pytest.mark.parametrize("t", [0, -1, math.nan])
def test_t_counts_from_one(t: int) -> None:
    with pytest.raises(ValueError, match=r"^t must be 1 or more"):
        adamw_update(1.0, 1.0, 0.0, 0.0, t)
    with pytest.raises(ValueError, match=r"^t must be 1 or more"):
        adamw_update_list([], [], [], [], t)


@pytest.mark.parametrize("name", ["gradient", "m", "v"])
@pytest.mark.parametrize("length", [1, 3])
def test_a_wrong_length_is_named(name: str, length: int) -> None:
    lists: dict[str, Any] = {"gradient": [0.0, 0.0], "m": [0.0, 0.0], "v": [0.0, 0.0]}
    lists[name] = [0.0] * length
    with pytest.raises(
        ValueError, match=rf"^{name} must have as many entries as theta \(2\); got {length}"
    ):
        adamw_update_list([1.0, 2.0], **lists, t=1)


def test_the_examples_in_the_docstrings() -> None:
    results = doctest.testmod(reference)
    assert results.attempted > 0
    assert results.failed == 0


@settings(derandomize=True, max_examples=500)
@given(
    gradient=st.floats(-1e3, 1e3),
    m=st.floats(-1.0, 1.0),
    v=st.floats(0.0, 1.0),
    beta1=betas,
    beta2=betas,
)
def test_moments_have_the_bits_of_the_definition(
    gradient: float, m: float, v: float, beta1: float, beta2: float
) -> None:
    """As the top of the file has it: the square of the gradient, times 1 - beta2. ``**`` of floats
    is not always the float nearest to the square."""
    square = float(Fraction(gradient) ** 2)
    _, new_m, new_v = adamw_update(0.0, gradient, m, v, t=1, beta1=beta1, beta2=beta2)
    assert new_m == beta1 * m + (1 - beta1) * gradient
    assert new_v == beta2 * v + (1 - beta2) * square
