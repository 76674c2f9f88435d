"""This package: the function, the class for PyTorch, and the class with low-precision state."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from ..._core import fused_adamw
from ..._optim.state_formats import StateDtype
from ...optimizer import AdamW
from ..harness import Prepare, Step
from ..workloads import Arrays, to_bfloat16
from .base import ADAMW_ARGUMENTS, Implementation, num_threads
from .storage import EVERYTHING_BFLOAT16, MOMENTS_8BIT, MOMENTS_BFLOAT16
from .torch_ import adapt_optimizer, new_step_count, torch_threads


def load_function(**options: Any) -> Prepare:
    """``fused_adamw`` with these keyword arguments."""

    def prepare(*roles: Arrays) -> Step:
        # As a user would call it: a single array by itself, and the defaults omitted.
        p, g, m, v = (arrays[0] if len(arrays) == 1 else arrays for arrays in roles)
        update: Callable[..., None] = partial(fused_adamw, **options) if options else fused_adamw
        count = itertools.count(1)
        return lambda: update(p, g, m, v, next(count))

    return prepare


def load_torch_class() -> Prepare:
    from ...torch import AdamW as TorchAdamW

    return adapt_optimizer(partial(TorchAdamW, **ADAMW_ARGUMENTS, fused=True), new_step_count)


def load_with_state(state_dtype: StateDtype, **options: Any) -> Prepare:
    """The class, whose moments are stored in that format."""

    def prepare(params: Arrays, grads: Arrays, *_: Arrays) -> Step:
        optimizer = AdamW(params, state_dtype=state_dtype, num_threads=num_threads(), **options)
        return lambda: optimizer.step(grads)

    return prepare


def load_all_bfloat16(**options: Any) -> Prepare:
    """The class, with parameters, gradients and moments in bfloat16."""
    to_bfloat16([])  # raises where ml_dtypes is not installed

    def prepare(params: Arrays, grads: Arrays, *_: Arrays) -> Step:
        own_params, own_grads = to_bfloat16(params), to_bfloat16(grads)
        optimizer = AdamW(own_params, num_threads=num_threads(), **options)

        def step() -> object:
            optimizer.step(own_grads)
            return own_params

        return step

    return prepare


FUNCTION = Implementation("fused_adamw", load_function)
TORCH = Implementation("fused_adamw.torch", load_torch_class, ("torch",), setup=torch_threads)
STATE_8BIT = Implementation(
    "AdamW-8bit",
    partial(load_with_state, "8bit"),
    **MOMENTS_8BIT,
)
STATE_BFLOAT16 = Implementation(
    "AdamW-bfloat16", partial(load_with_state, "bfloat16"), **MOMENTS_BFLOAT16
)
ALL_BFLOAT16 = Implementation(
    "AdamW-all-bfloat16", load_all_bfloat16, ("ml_dtypes",), **EVERYTHING_BFLOAT16
)
