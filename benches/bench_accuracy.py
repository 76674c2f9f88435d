"""What float32 costs in accuracy, and what a step costs in memory beside its four arrays."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from bench_step import contenders_for

from fused_adamw.bench.implementations import BETAS, OURS, numpy_expression

SIZE = 50_021  # a prime: no vector width or thread divides it
CHECKPOINTS = (1_000, 3_000)  # steps
IN_PLACE = (OURS, "torch-fused", "torch-foreach", "numba", "numpy")

MEMORY_SIZE = 2**24
MEMORY_SMALL = 2**20  # bytes: interpreter noise


# ---------------------------------------------------------------------------- accuracy


def trajectory(prepare, dtype):
    """The parameters at the checkpoints of a run on random float32 gradients, new at every step."""
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal(SIZE, np.float32).astype(dtype), np.zeros(SIZE, dtype)
    step = prepare([p], [g], [np.zeros(SIZE, dtype)], [np.zeros(SIZE, dtype)])
    kept = []
    for t in range(1, max(CHECKPOINTS) + 1):
        g[:] = rng.standard_normal(SIZE, np.float32)
        step()
        if t in CHECKPOINTS:
            kept.append(p.astype(np.float64))
    return np.array(kept)  # (checkpoints, SIZE)


def exact(betas):
    """The textbook in float64."""
    return trajectory(lambda *arrays: numpy_expression(*arrays, betas=betas), np.float64)


def bench_accuracy(results):
    """Two float64 runs to compare with: with the betas as the user wrote them, and with the nearest
    float32, which is what a float32 step can be told."""
    contenders = contenders_for(SIZE)
    as_given, rounded = exact(BETAS), exact([float(np.float32(b)) for b in BETAS])
    errors = {}  # (checkpoints,)
    for name in filter(contenders.get, IN_PLACE):
        run = trajectory(contenders[name], np.float32)
        errors[name] = np.abs(run - as_given).mean(axis=1)
        apart = np.abs(run - rounded).mean(axis=1)
        columns = {"": name}
        for k, steps in enumerate(CHECKPOINTS):
            columns[f"{steps:,} steps"] = f"{errors[name][k]:.2e}"
            columns[f"times ours at {steps:,}"] = f"{errors[name][k] / errors[OURS][k]:.1f}"
            columns[f"{steps:,} steps, betas in float32"] = f"{apart[k]:.2e}"
        results.add_row(f"Mean error in float32 against float64, {SIZE:,} parameters", **columns)
    if "torch-fused" in errors:
        assert (errors["torch-fused"] >= 15 * errors[OURS]).all()


# ---------------------------------------------------------------------------- memory


def resident(field):
    """Bytes: VmRSS is what the process holds, VmHWM the most it has held. Linux alone says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def resident_growth(step):
    """By how much a step raises the resident memory at its peak; None where nobody says."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = resident("VmRSS")
    except (OSError, StopIteration):
        return None
    step()
    return max(0, resident("VmHWM") - before)


def traced_growth(step):
    """The same of what Python and NumPy allocated."""
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", contenders_for(MEMORY_SIZE))
def bench_memory(results, name):
    arrays = [[np.full(MEMORY_SIZE, x, np.float32)] for x in (1.0, 0.1, 0.0, 0.0)]
    step = contenders_for(MEMORY_SIZE)[name](*arrays)
    step()
    traced, growth = traced_growth(step), resident_growth(step)
    if name == OURS:
        assert max(traced, growth or 0) < MEMORY_SMALL
    results.add_row(
        f"Memory that a step takes beside the four arrays of {MEMORY_SIZE * 4 // 2**20} MiB",
        **{
            "": name,
            "resident, MiB": "" if growth is None else f"{growth / 2**20:.1f}",
            "of that Python and NumPy, MiB": f"{traced / 2**20:.1f}",
        },
    )
