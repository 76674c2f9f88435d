"""State in fewer bits: what a step takes, and how far it leads from float32.

Ours, the class, with moments in 8 bits or bfloat16, and with parameters and gradients in bfloat16
too, against its own step in float32 and against the peers. Tables of what is lost follow: on random
gradients, with outliers, against float64; and for the codes and roundings that we did not choose.
"""

import math
from functools import partial

import codes
import numpy as np
import pytest

from fused_adamw.bench.harness import Contest
from fused_adamw.bench.implementations import (
    BETAS,
    CONTENDERS,
    EPS,
    HYPER,
    LIMIT,
    LR,
    OURS,
    OURS_8BIT,
    OURS_ALL_BFLOAT16,
    OURS_BFLOAT16,
    WEIGHT_DECAY,
    loaded,
    numpy_expression,
    ours,
    ours_in_bfloat16,
    ours_with_state,
)
from fused_adamw.bench.runner import on_held_moments, our_class
from fused_adamw.bench.workloads import READ_AND_WRITTEN, held
from fused_adamw.optimizer import AdamW
from fused_adamw.runtime import runtime_info

ml_dtypes = pytest.importorskip("ml_dtypes")

PEERS_8BIT = ("bitsandbytes-8bit", "torchao-8bit")
TORCH_ALL_BFLOAT16 = "torch-fused-all-bfloat16"
BY_NAME = {contender.name: contender for contender in CONTENDERS}


def available(*names):
    """{name: prepare} of those that can be had."""
    return {name: step for name in names if (step := loaded(BY_NAME[name]))}


# ---------------------------------------------------------------------------- speed


def on_one_thread(state_dtype, isa):
    """The step of the class, which has no argument for the instruction set."""

    def prepare(params, grads, optimizer):
        own = AdamW(params, state_dtype=state_dtype)
        hypers = [(LR, BETAS, EPS, WEIGHT_DECAY)]
        return partial(own._tensors.take_step, grads, hypers, 0, 1.0, None, False, False, 1, isa)

    return prepare


def contest(name, title, size, contenders, base=None):
    """`base`: whose bytes count where a contender has none of its own; None: those of float32."""
    own = {n: size * c.bytes_moved for n, c in BY_NAME.items() if c.bytes_moved}
    moved = own[base] if base else READ_AND_WRITTEN * 4 * size
    arguments = partial(held, [(size,)], np.float32)
    return Contest(f"state-{name}", title, contenders, arguments, size, moved, own)


def shared(contenders):
    return {name: on_held_moments(prepare) for name, prepare in contenders.items()}


def contests_of_size(k):
    size, what = 2**k, f"2^{k} float32 parameters"
    others = available(OURS_8BIT, OURS_BFLOAT16, OURS_ALL_BFLOAT16, "torch-fused", LIMIT)
    title = f"AdamW by what its state is kept in, {what}; ours: float32"
    yield contest(f"pow{k}", title, size, {OURS: our_class, **shared(others)})
    title = f"AdamW with its moments in 8 bits, {what}"
    eight = {OURS: ours_with_state("8bit"), **available(*PEERS_8BIT)}
    yield contest(f"8bit-pow{k}", title, size, shared(eight), OURS_8BIT)
    title = f"AdamW with parameters, gradients and moments in bfloat16, 2^{k}"
    bfloat16 = {OURS: ours_in_bfloat16(), **available(TORCH_ALL_BFLOAT16)}
    yield contest(f"all-bfloat16-pow{k}", title, size, shared(bfloat16), OURS_ALL_BFLOAT16)


def contests_of_isas(k):
    names = {runtime_info()["isa"]: OURS}
    names |= {isa: f"{OURS}-{isa}" for isa in runtime_info()["available_isas"] if isa not in names}
    for state_dtype, base in (("8bit", OURS_8BIT), ("bfloat16", OURS_BFLOAT16)):
        contenders = {name: on_one_thread(state_dtype, isa) for isa, name in names.items()}
        title = f"AdamW with its moments in {state_dtype} on one thread, in cache: 2^{k}"
        yield contest(f"isas-{state_dtype}-pow{k}", title, 2**k, contenders, base)


def contests():
    for k in (24, 26):
        yield from contests_of_size(k)
    for k in (14, 16):
        yield from contests_of_isas(k)


def bench_state(benchmark, results, contest, turn, contender):
    results.time_block(benchmark, contest, turn, contender)


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


OUTLIER = 256  # one in so many gradients is 1, the others are 0.0001


def after_outliers(prepare, size, steps=300):
    """The parameters, from 0 on, and the largest step that one of them took, in lr."""
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
    """What contenders lose against a float32 run over the same gradients."""

    def __init__(self, float32, size, size_of_outliers):
        self.sizes = size, size_of_outliers
        self.random = after_random_gradients(float32, size)
        self.small = self.small_of(after_outliers(float32, size_of_outliers)[0])

    @staticmethod
    def small_of(p):
        return p.reshape(-1, OUTLIER)[:, 1:]

    def of(self, prepare):
        """(mean difference on random gradients, largest step in lr, (least, most) way of a small
        element in float32's)"""
        apart = np.abs(after_random_gradients(prepare, self.sizes[0]) - self.random).mean()
        p, largest = after_outliers(prepare, self.sizes[1])
        share = self.small_of(p) / self.small
        return float(apart), largest, (float(share.min()), float(share.max()))


def columns(apart, largest, way):
    return {
        "mean difference": f"{apart:.2e}",
        "largest step, in lr": f"{largest:.2f}",
        "way of small elements, in float32's": f"{way[0]:.3f} to {way[1]:.3f}",
    }


LARGEST_STEP, WAY = 1.5, (0.9, 1.1)
BITSANDBYTES = 1.8e-4  # its mean difference, where it is not installed


def bench_state_against_float32(results):
    size = 2**20
    losses = Losses(ours(), size, size)
    nearest = {
        f"{OURS_8BIT}, to the nearest": ours_with_state("8bit", seed=None),
        f"{OURS_BFLOAT16}, to the nearest": ours_with_state("bfloat16", seed=None),
    }
    found = {}
    for name, prepare in (available(OURS_8BIT, OURS_BFLOAT16, *PEERS_8BIT) | nearest).items():
        found[name] = losses.of(prepare)
        results.add_row(
            f"State in fewer bits against float32, 2^20 parameters: the mean difference after 100 "
            f"steps on random gradients, lr {LR:g}; and 300 steps in which one of {OUTLIER} "
            "gradients is 10,000 times the others",
            **{"": name, **columns(*found[name])},
        )
    theirs = found.get(PEERS_8BIT[0], (BITSANDBYTES,))[0]
    for name in (OURS_8BIT, OURS_BFLOAT16):
        apart, largest, (least, most) = found[name]
        assert apart <= theirs
        assert largest <= LARGEST_STEP
        assert WAY[0] <= least
        assert most <= WAY[1]


# ---------------------------------------------------------------------------- codes, roundings

CHOSEN = codes.Way()
WAYS = (  # the chosen one, then others, most of which differ in one respect
    CHOSEN,
    *(CHOSEN._replace(rounding=rounding) for rounding in ("independent", "nearest")),
    CHOSEN._replace(undone=True),
    *(CHOSEN._replace(block=block) for block in (64, 128, 512)),
    *(CHOSEN._replace(m=m) for m in ("by root, E4M3", "linear", "E4M3")),
    *(CHOSEN._replace(v=v) for v in ("root, E4M4", "root, linear", "linear")),
    codes.Way("root, E4M4", "E4M3", "nearest"),
    codes.Way("root, linear", "linear", "nearest"),
    codes.Way("linear", "linear", "nearest"),
)


def bench_state_codes(results):
    """The table that the code was chosen by."""
    losses = Losses(codes.adamw(None, HYPER), 2**16, 2**12)
    title = "Ways to keep moments in 8 bits, in NumPy: what they lose, as above, 2^16 parameters"
    found = {}
    for way in WAYS:
        found[way] = losses.of(codes.adamw(way, HYPER))
        rounding = f"{way.rounding}, undone in p" if way.undone else way.rounding
        texts = {"code of v": way.v, "code of m": way.m, "rounding": rounding}
        results.add_row(title, **texts, block=f"{way.block}", **columns(*found[way]))
    in_c = losses.of(ours_with_state("8bit"))
    texts = {"code of v": OURS_8BIT, "code of m": "", "rounding": "", "block": ""}
    results.add_row(title, **texts, **columns(*in_c))
    # The same codes; the dither of each element starts elsewhere, which the mean hardly shows.
    np.testing.assert_allclose(found[CHOSEN][0], in_c[0], rtol=0.05)


# ---------------------------------------------------------------------------- all in bfloat16


def bfloat16_run(prepare, dtype, steps=1000, size=50_021):
    """The parameters after gradients from N(0, 1) rounded to bfloat16, which both dtypes hold."""
    rng = np.random.default_rng(0)

    def draw():
        return rng.standard_normal(size, np.float32).astype(ml_dtypes.bfloat16)

    p, g = draw().astype(dtype), np.zeros(size, dtype)
    step = prepare([p], [g], [np.zeros(size, dtype)], [np.zeros(size, dtype)])
    for _ in range(steps):
        g[:] = draw().astype(dtype)
        step()
    return p.astype(np.float64)


def bench_state_all_bfloat16(results):
    exact = bfloat16_run(numpy_expression, np.float64)
    contenders = {
        OURS_ALL_BFLOAT16: ours_in_bfloat16(),
        f"{OURS_ALL_BFLOAT16}, to the nearest": ours_in_bfloat16(seed=None),
        f"{OURS_ALL_BFLOAT16}, master weights": ours_in_bfloat16(master_weights=True),
        f"{OURS_8BIT}, bfloat16 parameters": ours_in_bfloat16(state_dtype="8bit"),
        **available(TORCH_ALL_BFLOAT16),
    }
    errors = {"(exact, rounded once)": exact.astype(ml_dtypes.bfloat16).astype(np.float64) - exact}
    for name, prepare in contenders.items():
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
