"""The accuracy of a step in float32, and the memory that it needs in addition to its arrays."""

import tracemalloc

import numpy as np
import psutil
import pytest
from tables import OURS

from fused_adamw.bench.implementations import IMPLEMENTATIONS
from fused_adamw.bench.implementations.base import BETAS
from fused_adamw.bench.implementations.numpy_ import prepare_expressions

SIZE = 50_021  # a prime: no vector width or number of threads divides it
CHECKPOINTS = (1_000, 3_000)  # steps
IN_PLACE = (OURS, "torch-fused", "torch-foreach", "numba", "numpy")

MEMORY_SIZE = 2**24
NOISE = 2**20  # bytes, of the interpreter


# ---------------------------------------------------------------------------- accuracy


def trajectory(prepare, dtype):
    """The parameters at the checkpoints of a run on random float32 gradients, new in every step."""
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal(SIZE, np.float32).astype(dtype), np.zeros(SIZE, dtype)
    step = prepare([p], [g], [np.zeros(SIZE, dtype)], [np.zeros(SIZE, dtype)])
    checkpoints = []
    for t in range(1, max(CHECKPOINTS) + 1):
        g[:] = rng.standard_normal(SIZE, np.float32)
        step()
        if t in CHECKPOINTS:
            checkpoints.append(p.astype(np.float64))
    return np.array(checkpoints)  # (checkpoints, SIZE)


def exact(betas):
    """The textbook in float64."""
    return trajectory(lambda *arrays: prepare_expressions(*arrays, betas=betas), np.float64)


def bench_accuracy(results, available):
    """Mean errors relative to two float64 runs: with the betas as given, and with the betas rounded
    to float32, which is all that a float32 step can use."""
    as_given, rounded = exact(BETAS), exact([float(np.float32(b)) for b in BETAS])
    errors = {}  # {name: (checkpoints,)}
    for name, prepare in available(*IN_PLACE).items():
        run = trajectory(prepare, np.float32)
        errors[name] = np.abs(run - as_given).mean(axis=1)
        with_rounded_betas = np.abs(run - rounded).mean(axis=1)
        columns = {"": name}
        for k, steps in enumerate(CHECKPOINTS):
            columns[f"{steps:,} steps"] = f"{errors[name][k]:.2e}"
            columns[f"relative, {steps:,}"] = f"{errors[name][k] / errors[OURS][k]:.1f}"
            columns[f"{steps:,} steps, betas in float32"] = f"{with_rounded_betas[k]:.2e}"
        results.add_row(f"Mean error in float32 against float64, {SIZE:,} parameters", **columns)
    if "torch-fused" in errors:
        assert (errors["torch-fused"] >= 15 * errors[OURS]).all()


# ---------------------------------------------------------------------------- memory


def resident_growth(step):
    """By how much a step raises the peak of the resident memory; None where Linux does not say."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
    except OSError:
        return None
    process = psutil.Process()
    before = process.memory_info().rss
    step()
    return max(0, peak_resident() - before)


def peak_resident():
    """VmHWM, in bytes, which psutil does not have."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


def traced_growth(step):
    """The same of what Python and NumPy allocate."""
    tracemalloc.start()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", [*IN_PLACE, "optax"])
def bench_memory(results, available, name):
    if name not in (loaded := available(name)):
        pytest.skip(results.loader.unavailable[name])
    assert IMPLEMENTATIONS[name].unsuitable(MEMORY_SIZE, "float32") is None
    arrays = [[np.full(MEMORY_SIZE, x, np.float32)] for x in (1.0, 0.1, 0.0, 0.0)]
    step = loaded[name](*arrays)
    step()
    traced, growth = traced_growth(step), resident_growth(step)
    if name == OURS:
        assert max(traced, growth or 0) < NOISE
    results.add_row(
        f"Memory that a step takes besides its four arrays of {MEMORY_SIZE * 4 // 2**20} MiB",
        **{
            "": name,
            "resident, MiB": "" if growth is None else f"{growth / 2**20:.1f}",
            "of that Python and NumPy, MiB": f"{traced / 2**20:.1f}",
        },
    )
