"""Low-precision state: the time of a step, and what it loses compared with float32.

Our class with moments in 8 bits or bfloat16, and with parameters and gradients in bfloat16 too,
against its own step in float32 and against other implementations. Tables of the losses follow: on
random gradients, with outliers, against float64; and for simpler 8-bit formats than ours.
"""

import math
from functools import partial

import numpy as np
import pytest
from quantizers import Quantizer, load_adamw
from tables import OURS

from fused_adamw.bench.harness import Comparison
from fused_adamw.bench.implementations import IMPLEMENTATIONS
from fused_adamw.bench.implementations.base import ADAMW_ARGUMENTS, LR
from fused_adamw.bench.implementations.numpy_ import prepare_expressions
from fused_adamw.bench.implementations.ours import (
    load_all_bfloat16,
    load_function,
    load_with_state,
)
from fused_adamw.bench.runner import on_moments_of_optimizer, prepare_class
from fused_adamw.bench.workloads import ARRAYS_MOVED, draw_with_optimizer

ml_dtypes = pytest.importorskip("ml_dtypes")

OURS_8BIT, OURS_BFLOAT16 = "AdamW-8bit", "AdamW-bfloat16"
OURS_ALL_BFLOAT16 = "AdamW-all-bfloat16"
THEIRS_8BIT = ("bitsandbytes-8bit", "torchao-8bit")
TORCH_ALL_BFLOAT16 = "torch-fused-all-bfloat16"


# ---------------------------------------------------------------------------- speed


def compare(name, title, size, implementations, base=None):
    """``base``: the implementation whose bytes count where one has no number of its own; None: the
    bytes of a step in float32."""
    own_bytes = {
        row.name: size * row.bytes_per_parameter
        for row in IMPLEMENTATIONS.values()
        if row.bytes_per_parameter
    }
    bytes_moved = own_bytes[base] if base else ARRAYS_MOVED * 4 * size
    arguments = partial(draw_with_optimizer, [(size,)], np.float32)
    return Comparison(
        f"state-{name}", title, implementations, arguments, size, bytes_moved, own_bytes
    )


def comparisons(loader):
    def available(*names):
        loaded = {name: loader.load(IMPLEMENTATIONS[name]) for name in names}
        return {name: on_moments_of_optimizer(p) for name, p in loaded.items() if p}

    def first(prepare):
        return {OURS: on_moments_of_optimizer(prepare)}

    for k in (24, 26):
        size, what = 2**k, f"2^{k} float32 parameters"
        names = (OURS_8BIT, OURS_BFLOAT16, OURS_ALL_BFLOAT16, "torch-fused", "bandwidth-bound")
        title = f"AdamW by the storage format of its state, {what}; {OURS}: float32"
        yield compare(f"pow{k}", title, size, {OURS: prepare_class, **available(*names)})
        title = f"AdamW with 8-bit moments, {what}"
        eight = first(load_with_state("8bit")) | available(*THEIRS_8BIT)
        yield compare(f"8bit-pow{k}", title, size, eight, OURS_8BIT)
        title = f"AdamW with parameters, gradients and moments in bfloat16, 2^{k}"
        bfloat16 = first(load_all_bfloat16()) | available(TORCH_ALL_BFLOAT16)
        yield compare(f"all-bfloat16-pow{k}", title, size, bfloat16, OURS_ALL_BFLOAT16)


def bench_state(benchmark, results, comparison, turn, implementation):
    results.time_block(benchmark, comparison, turn, implementation)


# ---------------------------------------------------------------------------- against float32


def arrays(size, start):
    return [[x] for x in (start, *(np.zeros(size, np.float32) for _ in range(3)))]


def after_random_gradients(prepare, size, steps=100):
    """The parameters after gradients from N(0, 0.01^2), new at every step."""
    rng = np.random.default_rng(0)
    all_arrays = arrays(size, rng.standard_normal(size, np.float32))
    (p,), (g,), *_ = all_arrays
    step = prepare(*all_arrays)
    for _ in range(steps):
        g[:] = rng.standard_normal(size, np.float32) * np.float32(0.01)
        step()
    return p


OUTLIER = 256  # one in 256 gradients is 1, the others are 0.0001


def after_outliers(prepare, size, steps=300):
    """The parameters, which start at 0, and the largest step of one of them, in units of lr."""
    all_arrays = arrays(size, np.zeros(size, np.float32))
    (p,), (g,), *_ = all_arrays
    g[:] = 1e-4
    g[::OUTLIER] = 1
    step, largest = prepare(*all_arrays), 0.0
    for _ in range(steps):
        before = p.copy()
        step()
        largest = max(largest, float(np.abs(p - before).max()) / LR)
    return p, largest


class Losses:
    """What implementations lose compared with a float32 run over the same gradients."""

    def __init__(self, float32, size, size_of_outliers):
        self.sizes = size, size_of_outliers
        self.random = after_random_gradients(float32, size)
        self.small = self.small_of(after_outliers(float32, size_of_outliers)[0])

    @staticmethod
    def small_of(p):
        return p.reshape(-1, OUTLIER)[:, 1:]

    def of(self, prepare):
        """(mean difference on random gradients, largest step in units of lr, (least, most) progress
        of an element with a small gradient, relative to float32)"""
        difference = np.abs(after_random_gradients(prepare, self.sizes[0]) - self.random).mean()
        p, largest = after_outliers(prepare, self.sizes[1])
        share = self.small_of(p) / self.small
        return float(difference), largest, (float(share.min()), float(share.max()))


def columns(difference, largest, progress):
    return {
        "mean difference": f"{difference:.2e}",
        "largest step / lr": f"{largest:.2f}",
        "progress of small elements": f"{progress[0]:.3f} to {progress[1]:.3f}",
    }


MAX_STEP, PROGRESS = 1.5, (0.9, 1.1)
BITSANDBYTES = 1.8e-4  # its mean difference, for where it is not installed


def bench_state_against_float32(results, available):
    size = 2**20
    losses = Losses(load_function(), size, size)
    nearest = {
        f"{OURS_8BIT}, to nearest": load_with_state("8bit", seed=None),
        f"{OURS_BFLOAT16}, to nearest": load_with_state("bfloat16", seed=None),
    }
    found = {}
    for name, prepare in (available(OURS_8BIT, OURS_BFLOAT16, *THEIRS_8BIT) | nearest).items():
        found[name] = losses.of(prepare)
        results.add_row(
            "Low-precision state against float32, 2^20 parameters: mean difference after 100 steps "
            f"on random gradients, lr {LR:g}; and 300 steps in which one of {OUTLIER} gradients is "
            "10,000 times the others",
            **{"": name, **columns(*found[name])},
        )
    theirs = found.get(THEIRS_8BIT[0], (BITSANDBYTES,))[0]
    for name in (OURS_8BIT, OURS_BFLOAT16):
        difference, largest, (least, most) = found[name]
        assert difference <= theirs
        assert largest <= MAX_STEP
        assert PROGRESS[0] <= least
        assert most <= PROGRESS[1]


# ---------------------------------------------------------------------------- other formats

QUANTIZERS = (  # one moment quantized, then both; m by root, if v is by root
    *(Quantizer(v, "float32") for v in ("root, E4M4", "root, linear", "linear")),
    *(Quantizer("float32", m) for m in ("by root, linear", "by root, E4M3", "linear", "E4M3")),
    Quantizer("root, E4M4", "by root, linear"),
    Quantizer("root, linear", "by root, linear"),
    Quantizer("root, E4M4", "E4M3", stochastic=False),
    Quantizer("root, linear", "linear", stochastic=False),
    Quantizer("linear", "linear", stochastic=False),
)


def bench_state_quantizers(results):
    """Why the 8-bit format is not a simpler one."""
    losses = Losses(load_adamw(None, ADAMW_ARGUMENTS), 2**16, 2**12)
    title = "8-bit formats, 2^16 parameters: ours, and simpler ones in NumPy; losses as above"
    rows = {
        (OURS_8BIT, "", "stochastic"): load_with_state("8bit"),
        (OURS_8BIT, "", "nearest"): load_with_state("8bit", seed=None),
    }
    for quantizer in QUANTIZERS:
        rounding = "stochastic" if quantizer.stochastic else "nearest"
        rows[quantizer.v, quantizer.m, rounding] = load_adamw(quantizer, ADAMW_ARGUMENTS)
    for (v, m, rounding), prepare in rows.items():
        found = columns(*losses.of(prepare))
        results.add_row(title, **{"v": v, "m": m, "rounding": rounding}, **found)


# ---------------------------------------------------------------------------- all in bfloat16


def bfloat16_run(prepare, dtype, steps=1000, size=50_021):
    """The parameters after gradients from N(0, 1), rounded to bfloat16 for both dtypes."""
    rng = np.random.default_rng(0)

    def draw():
        return rng.standard_normal(size, np.float32).astype(ml_dtypes.bfloat16)

    p, g = draw().astype(dtype), np.zeros(size, dtype)
    step = prepare([p], [g], [np.zeros(size, dtype)], [np.zeros(size, dtype)])
    for _ in range(steps):
        g[:] = draw().astype(dtype)
        step()
    return p.astype(np.float64)


def bench_state_all_bfloat16(results, available):
    exact = bfloat16_run(prepare_expressions, np.float64)
    implementations = {
        OURS_ALL_BFLOAT16: load_all_bfloat16(),
        f"{OURS_ALL_BFLOAT16}, to nearest": load_all_bfloat16(seed=None),
        f"{OURS_ALL_BFLOAT16}, master weights": load_all_bfloat16(master_weights=True),
        f"{OURS_8BIT}, bfloat16 parameters": load_all_bfloat16(state_dtype="8bit"),
        **available(TORCH_ALL_BFLOAT16),
    }
    errors = {"(exact, rounded once)": exact.astype(ml_dtypes.bfloat16).astype(np.float64) - exact}
    for name, prepare in implementations.items():
        errors[name] = bfloat16_run(prepare, ml_dtypes.bfloat16) - exact
    for name, error in errors.items():
        results.add_row(
            "Parameters, gradients and moments in bfloat16 against float64: 50,021 parameters, "
            "1,000 steps",
            **{
                "": name,
                "mean error": f"{np.abs(error).mean():.2e}",
                "root mean square": f"{math.sqrt(np.square(error).mean()):.2e}",
            },
        )
    if TORCH_ALL_BFLOAT16 in errors:
        theirs = np.abs(errors[TORCH_ALL_BFLOAT16]).mean()
        assert np.abs(errors[OURS_ALL_BFLOAT16]).mean() < theirs
