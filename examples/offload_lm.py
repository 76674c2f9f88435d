"""Train a small causal language model whose optimizer state is in host memory.

    python examples/offload_lm.py                        # overlapped with backward
    python examples/offload_lm.py --mode next-forward    # clipped, hidden during the next forward
    python examples/offload_lm.py --all                  # all modes, in one table

The text is that of Python's help topics, which comes with Python: 700 kB, byte by byte. On an
accelerator the model is bfloat16. Without one it is float32, and the CPU takes its place
(``fused_adamw.offload.simulated``): slower than training on the CPU directly, with the same losses.
A mode changes what is hidden during what. On the CPU the losses of the first three are equal to the
bit, and everywhere those of the two that clip, as far as the gradients of the device are.
"""

import argparse
from contextlib import nullcontext
from pydoc_data.topics import topics
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from fused_adamw import offload
from fused_adamw.torch import AdamW as InMemoryAdamW

MODES = {
    "in-memory": "fused_adamw.torch.AdamW: parameters and state on the CPU",
    "plain": "all of the optimizer's work in step()",
    "overlapped": "updates begin during backward",
    "clipped": "the norm is computed during backward, the updates follow in step()",
    "next-forward": "clipped, with the updates during the next forward",
}
CONTEXT, BATCH, WIDTH = 64, 8, 64
MAX_GRAD_NORM = 0.5
DEVICE = torch.accelerator.current_accelerator(check_available=True)
DTYPE = torch.float32 if DEVICE is None else torch.bfloat16


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, WIDTH))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.norms[1](x))


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, windows: Tensor) -> Tensor:
        """The mean loss of the next byte; windows: (N, CONTEXT + 1)."""
        tokens, targets = windows[:, :-1], windows[:, 1:]
        mask = nn.Transformer.generate_square_subsequent_mask(
            CONTEXT, device=tokens.device, dtype=self.head.weight.dtype
        )
        x = self.embedding(tokens) + self.position.weight
        for layer in self.layers:
            x = layer(x, mask)
        return cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), targets.flatten())


def make_optimizer(mode: str, model: nn.Module) -> torch.optim.AdamW:
    if mode == "in-memory":
        return InMemoryAdamW(
            model.parameters(), lr=3e-3, state_dtype="float32", master_weights=True
        )
    with nullcontext() if DEVICE is not None else offload.simulated():
        return offload.AdamW(
            model.parameters(),
            lr=3e-3,
            max_grad_norm=MAX_GRAD_NORM if mode in ("clipped", "next-forward") else None,
            module=model if mode == "next-forward" else None,
        )


def train(mode: str, steps: int, seed: int) -> list[float]:
    """The loss of each step."""
    text = torch.frombuffer(bytearray("\n".join(topics.values()), "utf-8"), dtype=torch.uint8)
    torch.manual_seed(seed)
    model = LanguageModel().to(DTYPE)
    if mode != "in-memory":
        model.to(DEVICE)
    optimizer = make_optimizer(mode, model)
    schedule = OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    starts = torch.randint(len(text) - CONTEXT, (steps, BATCH, 1))
    losses = []
    for start in starts:
        windows = text[start + torch.arange(CONTEXT + 1)].long().to(model.head.weight.device)
        loss = model(windows)
        if mode in ("in-memory", "plain"):
            loss.backward()
        else:
            assert isinstance(optimizer, offload.AdamW)
            with optimizer.overlapped():
                loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", choices=MODES, default="overlapped")
    parser.add_argument("--all", action="store_true", help="all modes, in one table")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps must be 1 or more; got {options.steps}")
    if not 0 <= options.seed < 2**63:
        parser.error(f"--seed must be from 0 to 2**63 - 1; got {options.seed}")
    print(f"device: {DEVICE or 'none: the CPU takes its place'}")
    print(f"{'mode':<14}  first loss  last loss  whole time")
    for mode in MODES if options.all else [options.mode]:
        start = perf_counter()
        losses = train(mode, options.steps, options.seed)
        last = losses[-10:]
        seconds = perf_counter() - start
        mean = sum(last) / len(last)
        print(f"{mode:<14}  {losses[0]:10.4f}  {mean:9.6f}  {seconds:8.1f} s")


if __name__ == "__main__":
    main()
