"""The class AdamW: many small tensors, clipping, steps behind products, models of real size."""

import itertools
import math
import os

import numpy as np
from bench_step import MODEL, READ_AND_WRITTEN, draw
from contest import Contest, time_block
from peers import LIMIT, OURS, THREADS, all_contenders

from fused_adamw import AdamW

MAX_GRAD_NORM = 1.0


def gpt2(layers, width, vocabulary=50257, context=1024):
    """The shapes of GPT-2's tensors (Radford et al. 2019)."""
    block = [
        *[(width,), (width,)],
        *[(width, 3 * width), (3 * width,), (width, width), (width,)],
        *[(width,), (width,)],
        *[(width, 4 * width), (4 * width,), (4 * width, width), (width,)],
    ]
    return [(vocabulary, width), (context, width), *(block * layers), (width,), (width,)]


def held(shapes):
    """Parameters, gradients, and an optimizer with the moments of a first step."""
    params, grads = draw(shapes, np.float32)[:2]
    optimizer = AdamW(params)
    optimizer.step(grads)
    return params, grads, optimizer


def ours(params, grads, optimizer):
    return lambda: optimizer.step(grads)


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
    """One of peers.py, on the moments that our optimizer keeps."""
    contender = next((c for c in all_contenders() if c.name == name), None)
    if contender is None:
        return {}
    return {name: lambda params, grads, opt: contender.prepare(params, grads, opt.m, opt.v)}


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
        lambda: held(shapes),
        size,
        READ_AND_WRITTEN * 4 * size if moved else None,
    )


def memory_allows(shapes):
    """Whether parameters, gradients and both moments leave a fifth of the memory free."""
    needed = 4 * 4 * sum(map(math.prod, shapes))
    return needed < 0.8 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def contests():
    small, large = gpt2(12, 768), gpt2(36, 1280)
    fused = peer("torch-fused")
    against_torch = {OURS: ours_with_fresh_gradients, **fused}
    yield contest("model", "13 tensors of the tiny transformer", MODEL, against_torch)
    yield contest("1000x64", "1,000 tensors of 64", [(64,)] * 1000, against_torch)
    clipping = {f"{OURS}-no-clipping": ours, OURS: ours_clipped, **torch_clipped()}
    yield contest("clip-pow24", "2^24, clipped", [(2**24,)], clipping, moved=False)
    products = {
        OURS: after_products(None),
        f"{OURS}-1-thread": after_products(1),
        f"{OURS}-{THREADS}-threads": after_products(THREADS),
    }
    title = "2^20, with two products of 512 x 512 matrices before each step"
    yield contest("products-pow20", title, [(2**20,)], products, moved=False)
    real = {OURS: ours, **fused, **peer(LIMIT)}
    yield contest("gpt2-small", "GPT-2 Small, 148 tensors", small, real)
    if memory_allows(large):
        yield contest("gpt2-large", "GPT-2 Large, 436 tensors", large, real)


def bench_optimizer(benchmark, results, contest, turn, contender):
    results.add_block(contest, contender, turn, time_block(benchmark, contest.step(contender)))
