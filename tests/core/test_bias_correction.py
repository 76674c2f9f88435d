"""1 - beta^t to the last digits, for betas close to 1 and everywhere else."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

from fused_adamw import fused_adamw
from fused_adamw.reference import adamw_update

BETAS = [0.0, 1e-9, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12]
STEPS = [1, 2, 3, 10, 100, 12345]
M, V = 0.3, 0.7


def exact_parameter(beta1, beta2, t):
    """The parameter, from 0, after a step with a gradient of 0, lr = 1, no eps and no decay: in 60
    digits, from the moments as they are rounded."""
    with localcontext(prec=60):
        b1, b2 = Decimal(beta1), Decimal(beta2)
        m, v = Decimal(beta1 * M), Decimal(beta2 * V)
        return -(m / (1 - b1**t)) / (v / (1 - b2**t)).sqrt()


def relative_error(found, exact):
    with localcontext(prec=60):
        return float(abs((Decimal(found) - exact) / exact))


def by_kernel(beta1, beta2, t):
    p, g, m, v = (np.array([x]) for x in (0.0, 0.0, M, V))
    fused_adamw(p, g, m, v, t, lr=1.0, betas=(beta1, beta2), eps=0.0, weight_decay=0.0)
    return p[0]


def by_reference(beta1, beta2, t):
    return adamw_update(0.0, 0.0, M, V, t, lr=1.0, beta1=beta1, beta2=beta2, eps=0.0, wd=0.0)[0]


@pytest.mark.parametrize("step", [by_kernel, by_reference])
@pytest.mark.parametrize("t", STEPS)
@pytest.mark.parametrize("beta", BETAS[1:])
def test_beta1_and_beta2(step, beta, t):
    """A dozen roundings of half a unit, 1.1e-16; in pure Python expm1's, a unit or two."""
    for betas in ((beta, 0.999), (0.9, beta), (beta, beta)):
        found = step(*betas, t)
        assert relative_error(found, exact_parameter(*betas, t)) < 1.2e-15


def test_a_beta_of_0_corrects_nothing():
    p, g, m, v = (np.array([x]) for x in (0.0, 0.25, M, V))
    fused_adamw(p, g, m, v, 5, lr=1.0, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0)
    assert p[0] == -1
    assert adamw_update(0.0, 0.25, M, V, 5, 1.0, 0.0, 0.0, 0.0, 0.0) == (-1, 0.25, 0.0625)


@pytest.mark.parametrize("t", [*STEPS, 2**20 + 1, 10**9, 2**53 - 1])
@pytest.mark.parametrize("beta", [*BETAS, 2**-54, 1.5 * 2**-53, 1 - 2**-53])
def test_nearest_number(beta, t):
    """The kernel's is the nearest double, also where two are as near as each other (to even)."""
    with localcontext(prec=150):
        correction = float(1 - Decimal(beta) ** t)
    p, g, m, v = (np.array([x]) for x in (0.0, 0.0, 1.0, 0.0))
    fused_adamw(p, g, m, v, t, lr=1.0, betas=(beta, 0.0), eps=1.0, weight_decay=0.0)
    assert p[0] == -(1 / correction) * beta
