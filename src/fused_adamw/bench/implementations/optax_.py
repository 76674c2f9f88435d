"""``optax.adamw``, compiled by XLA."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..harness import Prepare, Step
from ..workloads import Arrays
from .base import BETAS, EPS, LR, WEIGHT_DECAY, Implementation


@contextmanager
def jax_float64() -> Iterator[None]:
    """Let jax compute in float64 where the arrays are."""
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def load_adamw() -> Prepare:
    import jax
    import optax

    adamw = optax.adamw(LR, *BETAS, EPS, weight_decay=WEIGHT_DECAY)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = adamw.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def prepare(*roles: Arrays) -> Step:
        params, grads, m, v = ([jax.numpy.array(array) for array in role] for role in roles)
        first, *rest = adamw.init(params)
        state = first._replace(mu=m, nu=v), *rest

        def step() -> object:
            nonlocal params, state
            params, state = jax.block_until_ready(update(params, state, grads))
            return params

        return step

    return prepare


OPTAX = Implementation(
    "optax", load_adamw, ("jax", "optax"), setup=jax_float64, peak_arrays=10, extra_arrays=4
)
