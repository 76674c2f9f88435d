"""What the examples of this folder have in common: a small network, its data, and the table that
they print. Nothing here is about the optimizer."""

import torch

MAX_NORM = 0.2  # of gradients, which most are larger than
RUNS = (("torch.optim", {}), ("fused_adamw", {}), ("fused_adamw", {"state_dtype": "8bit"}))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 4))


def dataset() -> torch.utils.data.TensorDataset:
    """Vectors, and which of their first four elements is the largest."""
    inputs = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.TensorDataset(inputs, inputs[:, :4].argmax(1))


def result(losses: list[float], optimizer: torch.optim.Optimizer) -> dict:
    """What a run is judged by."""
    tensors = [
        x for entry in optimizer.state.values() for name, x in entry.items() if name != "step"
    ]
    return {
        "losses": losses,
        "bytes": sum(x.nbytes for x in tensors),
        "paths": [path.path for path in getattr(optimizer, "last_path", [])],
    }


def print_table(train) -> None:
    """A line for each of RUNS. ``train``: takes the name of a class and its options."""
    print(f"{'AdamW of':32}  first loss  last loss  bytes of state  updated by")
    for name, options in RUNS:
        found = train(name, options)
        described = name + "".join(f", {key}={value!r}" for key, value in options.items())
        losses, by = found["losses"], ", ".join(sorted(set(found["paths"]))) or "PyTorch"
        print(f"{described:32}  {losses[0]:10.5f} {losses[-1]:10.5f}  {found['bytes']:14,}  {by}")
