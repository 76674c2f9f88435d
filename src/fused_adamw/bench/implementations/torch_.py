"""``torch.optim.AdamW``, and the adapters for every optimizer with the interface of PyTorch's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from ..harness import Prepare, Step
from ..suppress_output import suppress_output
from ..workloads import Array, Arrays, to_bfloat16
from .base import ADAMW_ARGUMENTS, MAX_OF_SLOW, Implementation, num_threads
from .storage import EVERYTHING_BFLOAT16

MakeOptimizer: TypeAlias = Callable[[list[Any]], Any]
"""Makes a ``torch.optim.Optimizer`` of a list of leaf tensors."""


@contextmanager
def torch_threads() -> Iterator[None]:
    """Give PyTorch as many threads as all implementations have."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------- adapters


def new_step_count() -> object:
    """The step count in the state of PyTorch's own optimizers."""
    import torch

    return torch.tensor(0.0)


def adapt_optimizer(make: MakeOptimizer, make_step_count: Callable[[], object]) -> Prepare:
    """Steps of an optimizer whose state uses the memory of ``m`` and ``v``."""
    import torch

    def prepare(params: Arrays, grads: Arrays, m: Arrays, v: Arrays) -> Step:
        leaves = _leaves(params, grads)
        optimizer = make(leaves)
        for leaf, m_i, v_i in zip(leaves, m, v, strict=True):
            optimizer.state[leaf] = {
                "step": make_step_count(),
                "exp_avg": torch.from_numpy(m_i),
                "exp_avg_sq": torch.from_numpy(v_i),
            }
        step: Step = optimizer.step
        return step

    return prepare


def adapt_optimizer_with_own_state(make: MakeOptimizer) -> Prepare:
    """Steps of an optimizer that makes its own state."""

    def prepare(params: Arrays, grads: Arrays, *_: Arrays) -> Step:
        return _quiet_first_call(make(_leaves(params, grads)).step)

    return prepare


def _leaves(params: Arrays, grads: Arrays) -> list[Any]:
    """Parameters with gradients, as tensors that share the memory of the arrays."""
    import torch

    leaves = [torch.from_numpy(p).requires_grad_() for p in params]
    for leaf, g in zip(leaves, grads, strict=True):
        leaf.grad = torch.from_numpy(g)
    return leaves


def _quiet_first_call(step: Step) -> Step:
    """The same step, whose first call, which may compile something, prints nothing."""
    called = False

    def quiet_step() -> object:
        nonlocal called
        if called:
            return step()
        called = True
        with suppress_output():
            return step()

    return quiet_step


# ---------------------------------------------------------------------------- implementations


def load_adamw(**options: bool) -> Prepare:
    import torch

    return adapt_optimizer(partial(torch.optim.AdamW, **ADAMW_ARGUMENTS, **options), new_step_count)


def load_all_bfloat16() -> Prepare:
    """The fused step with parameters, gradients and moments in bfloat16."""
    import torch

    to_bfloat16([])  # raises where ml_dtypes is not installed

    def as_tensor(array: Array) -> Any:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)

    def prepare(params: Arrays, grads: Arrays, *_: Arrays) -> Step:
        own_params = to_bfloat16(params)
        leaves = [as_tensor(p).requires_grad_() for p in own_params]
        for leaf, g in zip(leaves, to_bfloat16(grads), strict=True):
            leaf.grad = as_tensor(g)
        optimizer = torch.optim.AdamW(leaves, **ADAMW_ARGUMENTS, fused=True)

        def step() -> object:
            optimizer.step()
            return own_params

        return step

    return prepare


FUSED = Implementation(
    "torch-fused", partial(load_adamw, fused=True), ("torch",), setup=torch_threads
)
FOREACH = Implementation(
    "torch-foreach",
    partial(load_adamw, foreach=True),
    ("torch",),
    setup=torch_threads,
    peak_arrays=5,
)
FOR_LOOP = Implementation(
    "torch-for-loop",
    partial(load_adamw, foreach=False, fused=False),
    ("torch",),
    setup=torch_threads,
    max_parameters=MAX_OF_SLOW,
)
FUSED_ALL_BFLOAT16 = Implementation(
    "torch-fused-all-bfloat16",
    load_all_bfloat16,
    ("torch", "ml_dtypes"),
    setup=torch_threads,
    **EVERYTHING_BFLOAT16,
)
