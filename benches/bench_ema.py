"""A step that also averages the weights (``ema_decay``), against a step and a separate average.

    ema <- d ema + (1 - d) p

In one pass, the new p is still in a register: a float32 parameter moves 36 bytes (five arrays read,
four written). A separate pass reads p again: 40 bytes, and a second parallel region. Compared with:

- our step, then the average in NumPy: in place, without temporaries, in blocks that stay in cache;
- our step, then ``torch.Tensor.lerp_`` for each tensor, or ``torch._foreach_lerp_`` for all;
- PyTorch's fused step, then ``AveragedModel`` with ``get_ema_multi_avg_fn``, its fastest way.
"""

import inspect
from functools import partial

import numpy as np
import pytest
from tables import OURS

from fused_adamw import AdamW
from fused_adamw.bench.harness import Comparison
from fused_adamw.bench.implementations import IMPLEMENTATIONS
from fused_adamw.bench.implementations.base import ADAMW_ARGUMENTS, num_threads
from fused_adamw.bench.runner import prepare_class
from fused_adamw.bench.workloads import MANY_SMALL, count_parameters, draw, draw_with_optimizer

if "ema_decay" not in inspect.signature(AdamW).parameters:
    pytest.skip("fused_adamw.AdamW has no ema_decay in this build", allow_module_level=True)

DECAY = 0.999
BLOCK = 2**15  # elements; with the scratch, three arrays of 128 KiB

CASES = {
    "1000x64": ("1,000 tensors of 64", MANY_SMALL),
    **{f"pow{k}": (f"2^{k}", [(2**k,)]) for k in (20, 24, 26)},
}


# ---------------------------------------------------------------------------- averages


def numpy_average(params, averages):
    """The average in NumPy; a product of p and 1 - d needs a scratch, as large as one block."""
    d = np.float32(DECAY)
    rest = np.float32(1 - float(d))
    scratch = np.empty(BLOCK, np.float32)
    blocks = []
    for p, average in zip(params, averages, strict=True):
        for begin in range(0, p.size, BLOCK):
            p_block = p.reshape(-1)[begin : begin + BLOCK]
            average_block = average.reshape(-1)[begin : begin + BLOCK]
            blocks.append((p_block, average_block, scratch[: p_block.size]))

    def update():
        for p_block, average_block, product in blocks:
            np.multiply(p_block, rest, out=product)
            np.multiply(average_block, d, out=average_block)
            np.add(average_block, product, out=average_block)

    return update


def torch_average(params, averages):
    import torch

    own = list(map(torch.from_numpy, averages))
    tensors = list(map(torch.from_numpy, params))

    def update():
        for average, p in zip(own, tensors, strict=True):
            average.lerp_(p, 1 - DECAY)

    return update


def torch_foreach_average(params, averages):
    import torch

    own = list(map(torch.from_numpy, averages))
    tensors = list(map(torch.from_numpy, params))
    return partial(torch._foreach_lerp_, own, tensors, 1 - DECAY)


# ---------------------------------------------------------------------------- steps


def fused_average(params, grads, optimizer):
    own = AdamW(params, num_threads=num_threads(), ema_decay=DECAY)
    return lambda: own.step(grads)


def separate_average(make_average):
    """Our step, then the average."""

    def prepare(params, grads, optimizer):
        update = make_average(params, [p.copy() for p in params])

        def step():
            optimizer.step(grads)
            update()

        return step

    return prepare


def torch_averaged_model(params, grads, optimizer):
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = torch.nn.ParameterList([torch.nn.Parameter(torch.from_numpy(p)) for p in params])
    for leaf, g in zip(model, grads, strict=True):
        leaf.grad = torch.from_numpy(g)
    fused = torch.optim.AdamW(model.parameters(), **ADAMW_ARGUMENTS, fused=True)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))

    def step():
        fused.step()
        averaged.update_parameters(model)

    return step


# ---------------------------------------------------------------------------- benches


def comparisons(loader):
    implementations = {
        OURS: fused_average,
        "step-without-average": prepare_class,
        "step+numpy": separate_average(numpy_average),
    }
    if loader.load(IMPLEMENTATIONS["torch-fused"]):  # which also sets PyTorch's threads
        implementations |= {
            "step+torch-lerp": separate_average(torch_average),
            "step+torch-foreach-lerp": separate_average(torch_foreach_average),
            "torch-fused+AveragedModel": torch_averaged_model,
        }
    for case, (title, shapes) in CASES.items():
        size = count_parameters(shapes)
        own_bytes = {name: 40 * size for name in implementations if name != OURS}
        yield Comparison(
            f"ema-{case}",
            f"AdamW with an average of the weights, {title}, float32: {size:,} parameters",
            implementations,
            partial(draw_with_optimizer, shapes, np.float32),
            size,
            36 * size,
            own_bytes | {"step-without-average": 28 * size},
        )


def bench_ema(benchmark, results, comparison, turn, implementation):
    results.time_block(benchmark, comparison, turn, implementation)


def bench_ema_is_that_of_numpy():
    """To the last bit: one pass computes what the two passes do."""
    params, grads = draw([(1000, 70), (64,)], np.float32, roles=2)
    fused_params = [p.copy() for p in params]
    fused = AdamW(fused_params, num_threads=num_threads(), ema_decay=DECAY)
    averages, plain = [p.copy() for p in params], AdamW(params, num_threads=num_threads())
    update = numpy_average(params, averages)
    for _ in range(5):
        fused.step(grads)
        plain.step(grads)
        update()
    for found, expected in zip((*fused_params, *fused.ema), (*params, *averages), strict=True):
        np.testing.assert_array_equal(found, expected)
