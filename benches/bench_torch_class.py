"""What the class for PyTorch costs beside its kernels: many groups, fallbacks, loading.

- 400 groups of one tensor each, against one group of 400.
- 2^20 parameters, against the class for NumPy.
- Parameters that it leaves to PyTorch's update, against ``torch.optim.AdamW``: views with gaps, and
  tensors on a device that is not the CPU.
- Loading a checkpoint of ``torch.optim.AdamW`` into 8-bit state, against loading it there.
"""

import warnings
from functools import partial

import numpy as np
import pytest
from tables import OURS

from fused_adamw.bench.harness import Comparison
from fused_adamw.bench.implementations import IMPLEMENTATIONS
from fused_adamw.bench.implementations.base import ADAMW_ARGUMENTS
from fused_adamw.bench.runner import on_moments_of_optimizer, prepare_class
from fused_adamw.bench.workloads import (
    ARRAYS_MOVED,
    GPT2_SMALL,
    count_parameters,
    draw_with_optimizer,
)

torch = pytest.importorskip("torch")

import fused_adamw.torch  # noqa: E402 (where PyTorch is there)

FEW, MANY, NUM_ELEMENTS = 200, 400, 64
OURS_IN_TORCH, THEIRS = fused_adamw.torch.AdamW, torch.optim.AdamW


def with_gradients(tensors):
    for tensor in tensors:
        tensor.grad = torch.full_like(tensor, 0.1)
    return tensors


def step_in_groups(number, state_dtype):
    """Of MANY tensors, divided among as many groups."""

    def prepare():
        tensors = with_gradients([torch.zeros(1, requires_grad=True) for _ in range(MANY)])
        size = MANY // number
        groups = [{"params": tensors[k : k + size]} for k in range(0, MANY, size)]
        return OURS_IN_TORCH(groups, **ADAMW_ARGUMENTS, state_dtype=state_dtype).step

    return prepare


def views_with_gaps(dtype):
    whole = [torch.zeros(2 * NUM_ELEMENTS, dtype=dtype) for _ in range(FEW)]
    return with_gradients([x[::2].requires_grad_() for x in whole])


def on_another_device():
    """PyTorch's device without memory: what is left is the work on the CPU."""
    sizes = [NUM_ELEMENTS] * FEW
    return with_gradients([torch.zeros(n, device="meta", requires_grad=True) for n in sizes])


def step_left_to_torch(optimizer_class, make_tensors):
    def prepare():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of ours, at the first step
            optimizer = optimizer_class(make_tensors(), **ADAMW_ARGUMENTS)
            optimizer.step()
        if optimizer_class is OURS_IN_TORCH:
            assert "PyTorch" in repr(optimizer.last_path)
        return optimizer.step

    return prepare


def saved_by_torch():
    """Parameters of the shapes of GPT-2, and the state dict of their optimizer after a step."""
    tensors = with_gradients([torch.zeros(shape, requires_grad=True) for shape in GPT2_SMALL])
    optimizer = THEIRS(tensors, **ADAMW_ARGUMENTS, fused=True)
    optimizer.step()
    for tensor in tensors:
        tensor.grad = None
    return tensors, optimizer.state_dict()


def load_into(make):
    def prepare(tensors, saved):
        optimizer = make(tensors, **ADAMW_ARGUMENTS)

        def load():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of the conversion
                optimizer.load_state_dict(saved)

        return load

    return prepare


# ---------------------------------------------------------------------------- benches


def left_to_torch(name, title, make_tensors):
    return Comparison(
        f"torch-class-left-{name}",
        f"Left to PyTorch's update: {FEW} {title}, {NUM_ELEMENTS} elements each",
        {
            OURS: step_left_to_torch(OURS_IN_TORCH, make_tensors),
            "torch.optim.AdamW": step_left_to_torch(THEIRS, make_tensors),
        },
        tuple,
        FEW * NUM_ELEMENTS,
    )


def comparisons(loader):
    for state_dtype in (None, "bfloat16", "8bit"):
        many = {f"{MANY}-groups": step_in_groups(MANY, state_dtype)}
        yield Comparison(
            f"torch-class-groups-{state_dtype or 'float32'}",
            f"{MANY} tensors of one element, state_dtype={state_dtype!r}",
            {OURS: step_in_groups(1, state_dtype), **many},
            tuple,
            MANY,
        )
    yield left_to_torch("gaps", "views with gaps", partial(views_with_gaps, torch.float32))
    title = "bfloat16 views with gaps"
    yield left_to_torch("gaps-bfloat16", title, partial(views_with_gaps, torch.bfloat16))
    yield left_to_torch("device", "tensors on another device", on_another_device)
    names = ["fused_adamw.torch", "torch-fused"]
    in_torch = {name: loader.load(IMPLEMENTATIONS[name]) for name in names}
    yield Comparison(
        "torch-class-pow20",
        "AdamW on 2^20, float32",
        {OURS: prepare_class} | {name: on_moments_of_optimizer(p) for name, p in in_torch.items()},
        partial(draw_with_optimizer, [(2**20,)], np.float32),
        2**20,
        ARRAYS_MOVED * 4 * 2**20,
    )
    yield Comparison(
        "torch-class-load",
        "A state dict of torch.optim.AdamW, GPT-2 Small, loaded into 8-bit state",
        {
            OURS: load_into(partial(OURS_IN_TORCH, state_dtype="8bit")),
            "torch.optim.AdamW": load_into(THEIRS),
        },
        saved_by_torch,
        count_parameters(GPT2_SMALL),
    )


def bench_torch_class(benchmark, results, comparison, turn, implementation):
    results.time_block(benchmark, comparison, turn, implementation)
