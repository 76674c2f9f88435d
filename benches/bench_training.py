"""One whole training step of the tiny transformer: forward, backward and update.

The package against the same model in PyTorch: eager, with PyTorch's own layers and fused AdamW. A
model this small gains nothing from several threads, so PyTorch is also timed on one."""

import itertools

import numpy as np
from tables import OURS

from fused_adamw import fused_adamw
from fused_adamw.bench.harness import Comparison
from fused_adamw.bench.implementations import IMPLEMENTATIONS
from fused_adamw.bench.implementations.base import ADAMW_ARGUMENTS, num_threads
from fused_adamw.tiny import PAD, TARGETS, TOKENS, TinyTransformer
from fused_adamw.tiny.layers import LAYERNORM_EPS


def numpy_training(dtype):
    model = TinyTransformer(dtype=dtype)
    m, v = ({k: np.zeros_like(p) for k, p in model.parameters.items()} for _ in range(2))
    tokens, targets = np.array(TOKENS), np.array(TARGETS)
    steps = itertools.count(1)

    def step():
        loss, grads = model.loss_and_gradients(tokens, targets)
        fused_adamw(model.parameters, grads, m, v, next(steps))
        return loss

    return step


def torch_loss(p, tokens, targets):
    """The model of `TinyTransformer` in PyTorch's own layers; p: {name: tensor}."""
    from torch.nn import functional as F  # noqa: N812

    n = len(tokens)
    X = F.embedding(tokens, p["E_token"]) + p["E_pos"][:n]  # (n, D)
    Q, K, V = X @ p["W_Q"], X @ p["W_K"], X @ p["W_V"]  # (heads, n, d_head)
    A = F.scaled_dot_product_attention(Q, K, V, is_causal=True)  # (heads, n, d_head)
    H = F.linear(A.transpose(0, 1).reshape(n, -1), p["W_O"])  # (n, D)
    hidden = F.gelu(F.linear(H, p["W_1"], p["b_1"]), approximate="tanh")  # (n, d_ff)
    residual = H + F.linear(hidden, p["W_2"], p["b_2"])  # (n, D)
    Y = F.layer_norm(residual, residual.shape[-1:], p["gamma"], p["beta"], LAYERNORM_EPS)
    logits = F.linear(Y, p["W_lm"])  # (n, V)
    return F.cross_entropy(logits[: len(targets)], targets, ignore_index=PAD)


def torch_training(dtype):
    import torch

    start = TinyTransformer(dtype=dtype).parameters
    parameters = {name: torch.tensor(p, requires_grad=True) for name, p in start.items()}
    optimizer = torch.optim.AdamW(parameters.values(), **ADAMW_ARGUMENTS, fused=True)
    tokens, targets = torch.tensor(TOKENS), torch.tensor(TARGETS)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = torch_loss(parameters, tokens, targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torch_training_on_one_thread(dtype):
    import torch

    on_all_threads, all_threads = torch_training(dtype), num_threads()

    def step():
        torch.set_num_threads(1)  # takes 0.2 µs
        loss = on_all_threads()
        torch.set_num_threads(all_threads)
        return loss

    return step


def trainers(loader):
    """{name: function of a dtype that returns a training step}"""
    trainers = {OURS: numpy_training}
    if loader.load(IMPLEMENTATIONS["torch-fused"]):
        trainers |= {"torch": torch_training, "torch-1-thread": torch_training_on_one_thread}
    return trainers


def comparisons(loader):
    size = TinyTransformer().n_parameters
    for dtype in (np.float32, np.float64):
        yield Comparison(
            f"training-{dtype.__name__}",
            f"One training step of the tiny transformer, {dtype.__name__}: {size:,} parameters",
            trainers(loader),
            lambda dtype=dtype: (dtype,),
            size,
        )


def bench_training(benchmark, results, comparison, turn, implementation):
    results.time_block(benchmark, comparison, turn, implementation)


def bench_same_model(results):
    """The losses of 20 steps are the same but for what Adam makes of the rounding."""
    steps = [prepare(np.float64) for prepare in trainers(results.loader).values()]
    losses = [[step() for _ in range(20)] for step in steps]
    np.testing.assert_allclose(losses[0], losses[-1], rtol=1e-8)
