"""A GPT, and the implementations that bench_offload.py trains it with."""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from fused_adamw import offload

DEVICE = torch.accelerator.current_accelerator(check_available=True)
MIXES = {"float32": 10, "bfloat16": 6, "8bit": 4.03}  # bytes of state a parameter, with masters
MODES = ("plain", "overlapped", "clipped", "clipped, overlapped, module")
HEAD_SIZE = 64


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, -1, HEAD_SIZE))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + self.out(mixed)
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


class Gpt(nn.Module):
    """With a tied head."""

    def __init__(self, layers: int, width: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.head(self.norm(self.blocks(self.embedding(tokens))))
        return cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


class Trained(NamedTuple):
    """How one implementation takes a step."""

    step: Callable[[Tensor], None]  # with forward and backward
    optimizer: Any = None
    lane: offload.CpuLane | None = None


# ---------------------------------------------------------------------------- implementations


def without_optimizer(net: Gpt, options: argparse.Namespace) -> Trained:
    def step(tokens: Tensor) -> None:
        net(tokens).backward()
        net.zero_grad()

    return Trained(step)


def with_optimizer(make: Callable[[Any], Any], net: Gpt, options: argparse.Namespace) -> Trained:
    optimizer = make(net.parameters())

    def step(tokens: Tensor) -> None:
        net(tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Trained(step, optimizer)


def ours(mix: str, mode: str, net: Gpt, options: argparse.Namespace) -> Trained:
    lane = offload.CpuLane(bandwidth=options.bandwidth * 1e9) if DEVICE is None else None
    with nullcontext() if lane is None else offload.simulated(lane):
        optimizer = offload.AdamW(
            net.parameters(),
            lr=1e-4,
            state_dtype=mix,
            max_grad_norm=1.0 if "clipped" in mode else None,
            module=net if "module" in mode else None,
        )

    def step(tokens: Tensor) -> None:
        loss = net(tokens)
        with optimizer.overlapped() if "overlapped" in mode else nullcontext():
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Trained(step, optimizer, lane)


def torchao(offload_gradients: bool, net: Gpt, options: argparse.Namespace) -> Trained:
    kind = import_module("torchao.optim").CPUOffloadOptimizer
    make = partial(kind, optimizer_class=torch.optim.AdamW, offload_gradients=offload_gradients)
    return with_optimizer(partial(make, fused=True), net, options)


def deepspeed(clip: float, net: Gpt, options: argparse.Namespace) -> Trained:
    engine, *_ = import_module("deepspeed").initialize(
        model=net,
        model_parameters=net.parameters(),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": True},
            "gradient_clipping": clip,
            "zero_optimization": {
                "stage": 2,
                "offload_optimizer": {"device": "cpu", "pin_memory": True},
            },
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        },
    )

    def step(tokens: Tensor) -> None:
        engine.backward(engine(tokens))
        engine.step()

    return Trained(step, engine)


def implementations(options: argparse.Namespace) -> dict[str, Callable[..., Trained]]:
    rows: dict[str, Callable[..., Trained]] = {"forward + backward": without_optimizer}
    if options.only != "ours" and DEVICE is not None:
        fused = partial(torch.optim.AdamW, lr=1e-4, fused=True)
        rows["torch fused, on the device"] = partial(with_optimizer, fused)
        rows["torchao"] = partial(torchao, False)
        rows["torchao, gradients off-loaded"] = partial(torchao, True)
        rows["DeepSpeed ZeRO-2"] = partial(deepspeed, 0.0)
        rows["DeepSpeed ZeRO-2, clipped"] = partial(deepspeed, 1.0)
    for mix in MIXES:
        for mode in MODES:
            rows[f"ours, {mix}, {mode}"] = partial(ours, mix, mode)
    return rows
