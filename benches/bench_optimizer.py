"""The class AdamW: many small tensors, clipping, steps after products, models of real size."""

import itertools
from functools import partial

import numpy as np
import pytest
from bench_step import MODEL
from tables import OURS

from fused_adamw import AdamW
from fused_adamw.bench.environment import fits_in_memory
from fused_adamw.bench.harness import Comparison
from fused_adamw.bench.implementations import IMPLEMENTATIONS
from fused_adamw.bench.implementations.base import num_threads
from fused_adamw.bench.runner import on_moments_of_optimizer, prepare_class
from fused_adamw.bench.workloads import (
    ARRAYS_MOVED,
    GPT2_LARGE,
    GPT2_SMALL,
    MANY_SMALL,
    count_parameters,
    draw_with_optimizer,
)

MAX_GRAD_NORM = 1.0


def ours_with_new_gradients(params, grads, optimizer):
    """With different gradient arrays in each step, as a backward pass makes them."""
    step, sets = optimizer.step, itertools.cycle([[g.copy() for g in grads] for _ in range(4)])
    return lambda: step(next(sets))


def ours_clipped(params, grads, optimizer):
    clipping = AdamW(params, max_grad_norm=MAX_GRAD_NORM)
    return lambda: clipping.step(grads)


def after_products(threads):
    """A step in the middle of training code: after matrix products, whose threads still spin."""

    def prepare(params, grads, optimizer):
        own = AdamW([p.copy() for p in params], num_threads=threads)
        a = np.random.default_rng(0).random((512, 512), np.float32)

        def step():
            a @ a
            a @ a
            own.step(grads)

        for _ in range(20):  # the first steps find the number of threads
            step()
        return step

    return prepare


def torch_clipped(params, grads, optimizer):
    import torch

    leaves = [torch.from_numpy(p).requires_grad_() for p in params]
    for leaf, gradient in zip(leaves, grads, strict=True):
        leaf.grad = torch.from_numpy(gradient.copy())
    fused = torch.optim.AdamW(leaves, fused=True)

    def step():
        torch.nn.utils.clip_grad_norm_(leaves, MAX_GRAD_NORM)
        fused.step()

    return step


def compare(name, title, shapes, implementations, moved=True):
    size = count_parameters(shapes)
    return Comparison(
        f"optimizer-{name}",
        f"AdamW on {title}, float32: {size:,} parameters",
        implementations,
        partial(draw_with_optimizer, shapes, np.float32),
        size,
        ARRAYS_MOVED * 4 * size if moved else None,
    )


def comparisons(loader):
    def others(*names):
        """Those that are available, on the moments of our optimizer."""
        loaded = {name: loader.load(IMPLEMENTATIONS[name]) for name in names}
        return {name: on_moments_of_optimizer(p) for name, p in loaded.items() if p}

    fused = others("torch-fused")
    against_torch = {OURS: ours_with_new_gradients, **others("fused_adamw.torch"), **fused}
    yield compare("model", "13 tensors of the tiny transformer", MODEL, against_torch)
    yield compare("1000x64", "1,000 tensors of 64", MANY_SMALL, against_torch)
    clipping = {f"{OURS}-no-clipping": prepare_class, OURS: ours_clipped}
    clipping |= {"torch-clip-and-fused": torch_clipped} if fused else {}
    yield compare("clip-pow24", "2^24, clipped", [(2**24,)], clipping, moved=False)
    products = {
        OURS: after_products(None),
        f"{OURS}-1-thread": after_products(1),
        f"{OURS}-{num_threads()}-threads": after_products(num_threads()),
    }
    title = "2^20, with two products of 512 x 512 matrices before each step"
    yield compare("products-pow20", title, [(2**20,)], products, moved=False)
    real = {OURS: prepare_class, **fused, **others("bandwidth-bound")}
    yield compare("gpt2-small", "GPT-2 Small, 148 tensors", GPT2_SMALL, real)
    yield compare("gpt2-large", "GPT-2 Large, 436 tensors", GPT2_LARGE, real)


def bench_optimizer(benchmark, results, comparison, turn, implementation):
    if not fits_in_memory(4 * 4 * comparison.num_parameters):
        pytest.skip("does not leave a fifth of the memory free")
    results.time_block(benchmark, comparison, turn, implementation)
