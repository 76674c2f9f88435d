"""One whole training step of the tiny transformer: forward, backward and update.

The package against the same model in PyTorch: eager, its own fast layers, fused AdamW. So small a
model gains nothing from several threads, so PyTorch also runs on one."""

import itertools

import numpy as np
from bench_step import contenders_for

from fused_adamw import fused_adamw
from fused_adamw.bench.harness import Contest
from fused_adamw.bench.implementations import HYPER, OURS, threads
from fused_adamw.tiny.model import LAYERNORM_EPS, PAD, TARGETS, TOKENS, TinyTransformer


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
    """The model of `TinyTransformer`, by PyTorch's own layers; p: {name: tensor}."""
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
    optimizer = torch.optim.AdamW(parameters.values(), **HYPER, fused=True)
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

    on_all_threads, all_threads = torch_training(dtype), threads()

    def step():
        torch.set_num_threads(1)  # takes 0.2 µs
        loss = on_all_threads()
        torch.set_num_threads(all_threads)
        return loss

    return step


def trainers(parameters):
    trainers = {OURS: numpy_training}
    if "torch-fused" in contenders_for(parameters):
        trainers |= {"torch": torch_training, "torch-1-thread": torch_training_on_one_thread}
    return trainers


def contests():
    size = TinyTransformer().n_parameters
    for dtype in (np.float32, np.float64):
        yield Contest(
            f"training-{dtype.__name__}",
            f"One training step of the tiny transformer, {dtype.__name__}: {size:,} parameters",
            trainers(size),
            lambda dtype=dtype: (dtype,),
            size,
        )


def bench_training(benchmark, results, contest, turn, contender):
    results.time_block(benchmark, contest, turn, contender)


def bench_same_model():
    """Both learn the same: the losses of 20 steps agree to what Adam makes of the rounding."""
    losses = [[step() for _ in range(20)] for step in (t(np.float64) for t in trainers(1).values())]
    np.testing.assert_allclose(losses[0], losses[-1], rtol=1e-8)
