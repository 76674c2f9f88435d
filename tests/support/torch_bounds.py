"""Bounds on the differences from the steps of PyTorch, and gradients for which they hold.

The bound, to first order in u, the relative error of a rounding (half of ``eps``). Every gradient
that is applied, after clipping and scaling, lies between D and G = R D in magnitude. So
sqrt(v_hat) >= D, |m_hat| <= G, and an update, |m_hat| / (sqrt(v_hat) + eps), is at most R.

m: our b1 m, c1 g and their sum round by at most 2 u G; PyTorch's m + w (g - m) with its three
    roundings and w <= 1/2 by at most 3 u G. These errors decay with the moment, and its bias
    correction is theirs too: they come to at most 5 u G / (1-b1) in m_hat, and in m.
v: a sum of positive terms, of which one k steps old has had 2 k + 3 roundings on either side: they
    differ by at most (4 t + 6) u, relatively; their roots by half of that.
betas: in float64 the same on both sides, and so are their powers. In float32 ours are rounded (off
    by u/2) and all else follows from them; PyTorch rounds 1 - beta apart from beta, and corrects
    the bias with the betas as given.
    The weights of v_hat, c2 b2'^k / (1 - b2^t), then differ by one factor for all k, the product of
    (1-b2) / (1-b2') and (1-b2'^t) / (1-b2^t). The second lies between 1 and the inverse of the
    first, so the product is off by less than u / (1-b2), and u for the rounding of 1-b2.
    The weights of m_hat, (1-b) b^k / (1-b^t), change with b by (k - mean k) / b of themselves: in
    sum at most by the deviation of a geometric distribution, 1 / (sqrt(b) (1-b)). Our b and
    PyTorch's 1 - w are apart by u: that is 1.5 u G / (1-b1) for b >= 1/2, and u G for the rounding
    of w. Of m itself the weights, (1-b) b^k, change in sum by at most 2 u / (1-b1).
factor: of the gradients, with a relative difference of N u between the two sides: it moves m_hat by
    N u G and v_hat relatively by 2 N u.
p: a step rounds at the scale of p at most 5 times: 1 - lr wd (twice), its product and the sum in
    PyTorch, the difference here; and some more for the decay, a hundredth of p. At the scale of an
    update it rounds at most 12 times here and there: roots, correction, eps, quotient, lr.

An update, times lr, differs by lr R u (7 / (1-b1) + 1 + (2 t + 3) + 1 / (2 (1-b2)) + 1 + 24 + 2 N),
and decay only shrinks what there is. Summed over t = 1, ..., T, with P the largest parameter,

    |p - p'| <= T u (5 P + lr R (7 / (1-b1) + 1 / (2 (1-b2)) + T + 30 + 2 N)).
"""

import math

import numpy as np

STEPS = 200
SHAPES = [(4, 3), (3,), (), (5, 2)]
COUNT = sum(math.prod(shape) for shape in SHAPES)
FIRST = {"lr": 3e-3, "betas": (0.85, 0.99), "eps": 1e-3, "weight_decay": 0.1}
SECOND = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-2, "weight_decay": 0.3}
LR, B1, B2 = 1.5e-2, 0.9, 0.99  # the largest of either, with the changes below

# R. Gradients lie between 0.5 and 1.5. A clipping factor is at most 1, and at least MAX_NORM by the
# largest norm: 4 / (1.5 sqrt(26)) > 1/2. A grad_scale that varies by 1.5 changes both by as much.
MAX_NORM = 4.0
SPREAD = {(False, False): 3, (True, False): 3 * 2, (False, True): 4.5, (True, True): 4.5 * 3}

# N, where there is a factor: of COUNT squares and their sum, on both sides, halved by the root;
# another sum and two roots in PyTorch, one here; and 4 each of quotient, products, conversions.
FACTOR_ROUNDINGS = COUNT + 16


def bounds(dtype, options, t, largest):
    """The largest differences of p, of m / G, and relatively of v, after t steps."""
    u = np.finfo(dtype).eps / 2
    clipped, scaled = "max_grad_norm" in options, "grad_scale" in options
    factor = FACTOR_ROUNDINGS if clipped or scaled else 0
    each = 7 / (1 - B1) + 0.5 / (1 - B2) + t + 30 + 2 * factor
    return (
        t * u * (5 * largest + LR * SPREAD[clipped, scaled] * each),
        u * (7 / (1 - B1) + 1 + factor),
        u * (4 * t + 6 + 1 / (1 - B2) + 1 + 2 * factor),
    )


def gradients(rng, t, dtype, options):
    grads = [
        np.asarray(rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape), dtype)
        for shape in SHAPES
    ]
    if "none_grads" in options and t > 1:
        absent = [[0], [1, 2], [2, 3], [1, 2, 3], []][rng.integers(5)]
        grads = [None if i in absent else g for i, g in enumerate(grads)]
    return grads
