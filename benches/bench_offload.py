"""Off-loading: what a step costs beyond forward and backward, in time and memory.

    python benches/bench_offload.py                                   # a GPT of 1.3 B parameters
    python benches/bench_offload.py --tokens 4096 --tokens 32768 --rounds 9
    python benches/bench_offload.py --layers 12 --width 768 --only ours --table TABLE.md

A GPT in bfloat16 with random weights is trained on random tokens. *Exposed* is the time of a step
beyond that of forward and backward alone, which are the first row. Memory of the host is that of
the state; pinned memory and bytes copied count for ours only.

Without an accelerator the model is small, and the CPU takes the place of a device: copies between
tensors on the CPU, late, and as fast as --bandwidth says. Such times say nothing about a device;
the bytes and the numbers of copies are the same as with one. *Computed* is the time that the step
needs for its traffic to and from host memory, at --memory GB/s, on a device or not.
"""

import argparse
from collections.abc import Callable
from statistics import median
from subprocess import SubprocessError
from time import perf_counter
from typing import Any

import numpy as np
import torch
from offloaded_training import DEVICE, HEAD_SIZE, MIXES, Gpt, Trained, implementations
from option_types import integer, output_file, positive, positive_number
from tables import table
from torch import Tensor

from fused_adamw import offload, runtime_info
from fused_adamw.bench.environment import (
    BackgroundLoad,
    describe,
    get_environment,
    installed_versions,
)
from fused_adamw.bench.implementations.bandwidth_bound import BANDWIDTH_BOUND

WARM_UP_ROUNDS = 2


# ---------------------------------------------------------------------------- measuring


def synchronize() -> None:
    if DEVICE is not None:
        torch.accelerator.synchronize()


def measure(
    make: Callable[..., Trained], tokens: Tensor, options: argparse.Namespace
) -> dict[str, Any]:
    torch.manual_seed(0)
    net = Gpt(options.layers, options.width, options.vocabulary).to(DEVICE, torch.bfloat16)
    trained = make(net, options)
    times = []
    for turn in range(WARM_UP_ROUNDS + options.rounds):
        synchronize()
        if turn == WARM_UP_ROUNDS:
            reset(trained)
        start = perf_counter()
        trained.step(tokens)
        synchronize()
        times.append(perf_counter() - start)
    if isinstance(trained.optimizer, offload.AdamW):
        trained.optimizer.synchronize()
    params = sum(p.numel() for p in net.parameters())
    return {"ms": 1e3 * median(times[WARM_UP_ROUNDS:]), **memory_of(trained, params, options)}


def reset(trained: Trained) -> None:
    if isinstance(trained.optimizer, offload.AdamW):
        trained.optimizer.synchronize()
    if DEVICE is not None:
        torch.accelerator.reset_peak_memory_stats()
    if trained.lane is not None:
        for counts in (trained.lane.num_bytes, trained.lane.num_copies):
            counts.update(dict.fromkeys(counts, 0))


def memory_of(trained: Trained, params: int, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if DEVICE is not None:
        found["device GiB"] = torch.accelerator.max_memory_allocated() / 2**30
    if isinstance(trained.optimizer, torch.optim.Optimizer) and trained.optimizer.state:
        entries = trained.optimizer.state.values()
        tensors = [x for e in entries for x in e.values() if isinstance(x, Tensor)]
        host = sum(x.nbytes for x in tensors if x.device.type == "cpu")
        found["host B a parameter"] = host / params
    if isinstance(trained.optimizer, offload.AdamW):
        found["pinned MiB"] = trained.optimizer.pinned_nbytes / 2**20
    if trained.lane is not None:
        moved = sum(trained.lane.num_bytes.values()) / options.rounds
        found["B copied a parameter"] = moved / params
        found["copies a step"] = sum(trained.lane.num_copies.values()) / options.rounds
    return found


def computed_ms(mix: str, mode: str, params: int, options: argparse.Namespace) -> float:
    """Of the traffic in host memory: state, and parameters and gradients in and out of slots."""
    slots = 2 * 2 * 2 + 2 * 2  # written by copies and read; parameters written and read by copies
    norm = 2 * 2 if "clipped" in mode else 0
    return 1e3 * params * (2 * MIXES[mix] + slots + norm) / (options.memory * 1e9)


def bandwidth_beside_copies() -> list[str]:
    """Of a loop that reads and writes arrays in host memory, alone and beside copies."""
    try:
        loop = BANDWIDTH_BOUND.load()
    except (OSError, SubprocessError) as error:
        return [f"memory bandwidth was not measured: {error}"]
    arrays = [[np.ones(1 << 25, np.float32)] for _ in range(4)]
    step = loop(*arrays)
    nbytes = 7 * arrays[0][0].nbytes
    alone = nbytes / median(timed(step) for _ in range(5)) / 1e9
    lines = [f"memory bandwidth of a loop: {alone:.0f} GB/s"]
    if DEVICE is not None:
        host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
        device = torch.empty_like(host, device=DEVICE)
        stream = torch.Stream(DEVICE)
        with stream:
            for _ in range(200):
                device.copy_(host, non_blocking=True)
        beside = nbytes / median(timed(step) for _ in range(5)) / 1e9
        synchronize()
        lines.append(f"beside copies to the device: {beside:.0f} GB/s")
    return lines


def timed(call: Callable[[], None]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


# ---------------------------------------------------------------------------- the tables


def table_of(tokens: int, options: argparse.Namespace) -> str:
    batch = torch.randint(options.vocabulary, (max(tokens // options.context, 1), options.context))
    batch = batch.to(DEVICE)
    rows, base = [], 0.0
    params = sum(p.numel() for p in Gpt(options.layers, options.width, 8).parameters())
    params += (options.vocabulary - 8) * options.width
    for name, make in implementations(options).items():
        try:
            found = measure(make, batch, options)
        except (ImportError, RuntimeError) as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}")
            continue
        base = base or found["ms"]
        row = {"": name, "ms a step": f"{found.pop('ms'):.1f}"}
        if DEVICE is not None:
            row["exposed"] = f"{float(row['ms a step']) - base:.1f}"
        if name.startswith("ours"):
            _, mix, mode = name.split(", ", 2)
            row["computed ms"] = f"{computed_ms(mix, mode, params, options):.1f}"
        rows.append(row | {column: f"{value:.2f}" for column, value in found.items()})
        print(f"{name}: {row['ms a step']} ms")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return "\n".join(table(columns, [[row.get(x, "") for x in columns] for row in rows]))


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    large = DEVICE is not None
    parser.add_argument("--layers", type=positive, default=24 if large else 4)
    parser.add_argument("--width", type=positive, default=2048 if large else 256)
    parser.add_argument("--vocabulary", type=positive, default=50304 if large else 2000)
    parser.add_argument("--context", type=integer(2), default=1024 if large else 64)
    parser.add_argument("--tokens", type=positive, action="append", help="of a step; repeatable")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--only", choices=["ours"])
    parser.add_argument(
        "--bandwidth", type=positive_number, default=25.0, help="of simulated copies, GB/s"
    )
    parser.add_argument("--memory", type=positive_number, default=134.0, help="host memory, GB/s")
    parser.add_argument(
        "--table", type=output_file, metavar="FILE.md", help="also write the tables to this file"
    )
    options = parser.parse_args(arguments)
    if options.width % HEAD_SIZE:
        parser.error(f"--width must be a multiple of {HEAD_SIZE}; got {options.width}")
    options.tokens = options.tokens or ([4096, 8192, 32768] if large else [128])
    return options


def main(arguments: list[str] | None = None) -> None:
    options, background = parse_options(arguments), BackgroundLoad()
    lines = bandwidth_beside_copies()
    if DEVICE is None:
        lines.insert(0, "No accelerator: the CPU takes its place, and times say nothing about one")
    parts = []
    for tokens in options.tokens:
        parts += [f"## {tokens} tokens a step", table_of(tokens, options)]
    versions = installed_versions(["torch", "torchao", "deepspeed"])
    lines += describe(get_environment(), background.share(), versions)
    lines.append(f"{runtime_info()['num_threads']} threads; device: {DEVICE}")
    markdown = "\n\n".join(["\n".join(f"- {line}" for line in lines), *parts])
    print(f"\n{markdown}")
    if options.table:
        options.table.write_text(markdown + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
