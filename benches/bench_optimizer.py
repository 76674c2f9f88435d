"""The class AdamW: many small tensors, clipping, steps behind products, models of real size."""

import itertools
import math

import numpy as np
from bench_step import MODEL, contenders_for

from fused_adamw import AdamW
from fused_adamw.bench.environment import memory_allows
from fused_adamw.bench.harness import Contest
from fused_adamw.bench.implementations import LIMIT, OURS, threads
from fused_adamw.bench.runner import on_held_moments, our_class
from fused_adamw.bench.workloads import GPT2_LARGE, GPT2_SMALL, READ_AND_WRITTEN, held

MAX_GRAD_NORM = 1.0


def ours_with_fresh_gradients(params, grads, optimizer):
    """In arrays that are other ones in each step, as a backward pass makes them."""
    step, sets = optimizer.step, itertools.cycle([[g.copy() for g in grads] for _ in range(4)])
    return lambda: step(next(sets))


def ours_clipped(params, grads, optimizer):
    clipping = AdamW(params, max_grad_norm=MAX_GRAD_NORM)
    return lambda: clipping.step(grads)


def after_products(num_threads):
    """A step where training code has it: behind matrix products, whose threads spin for a while."""

    def prepare(params, grads, optimizer):
        own = AdamW([p.copy() for p in params], num_threads=num_threads)
        a = np.random.default_rng(0).random((512, 512), np.float32)

        def step():
            a @ a
            a @ a
            own.step(grads)

        for _ in range(20):  # the first steps try both numbers of threads
            step()
        return step

    return prepare


def peer(name):
    """One of the peers, on the moments that our optimizer keeps."""
    prepare = contenders_for(2**16).get(name)
    return {name: on_held_moments(prepare)} if prepare else {}


def torch_clipped():
    try:
        import torch
    except ImportError:
        return {}

    def prepare(params, grads, optimizer):
        leaves = [torch.from_numpy(p).requires_grad_() for p in params]
        for leaf, gradient in zip(leaves, grads, strict=True):
            leaf.grad = torch.from_numpy(gradient.copy())
        fused = torch.optim.AdamW(leaves, fused=True)

        def step():
            torch.nn.utils.clip_grad_norm_(leaves, MAX_GRAD_NORM)
            fused.step()

        return step

    return {"torch-clip-and-fused": prepare}


def contest(name, title, shapes, contenders, moved=True):
    size = sum(map(math.prod, shapes))
    return Contest(
        f"optimizer-{name}",
        f"AdamW on {title}, float32: {size:,} parameters",
        contenders,
        lambda: held(shapes, np.float32),
        size,
        READ_AND_WRITTEN * 4 * size if moved else None,
    )


def contests():
    fused = peer("torch-fused")
    against_torch = {OURS: ours_with_fresh_gradients, **fused}
    yield contest("model", "13 tensors of the tiny transformer", MODEL, against_torch)
    yield contest("1000x64", "1,000 tensors of 64", [(64,)] * 1000, against_torch)
    clipping = {f"{OURS}-no-clipping": our_class, OURS: ours_clipped, **torch_clipped()}
    yield contest("clip-pow24", "2^24, clipped", [(2**24,)], clipping, moved=False)
    products = {
        OURS: after_products(None),
        f"{OURS}-1-thread": after_products(1),
        f"{OURS}-{threads()}-threads": after_products(threads()),
    }
    title = "2^20, with two products of 512 x 512 matrices before each step"
    yield contest("products-pow20", title, [(2**20,)], products, moved=False)
    real = {OURS: our_class, **fused, **peer(LIMIT)}
    yield contest("gpt2-small", "GPT-2 Small, 148 tensors", GPT2_SMALL, real)
    if memory_allows(4 * 4 * sum(map(math.prod, GPT2_LARGE))):
        yield contest("gpt2-large", "GPT-2 Large, 436 tensors", GPT2_LARGE, real)


def bench_optimizer(benchmark, results, contest, turn, contender):
    results.time_block(benchmark, contest, turn, contender)
