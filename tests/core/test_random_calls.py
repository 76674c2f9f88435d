"""The extension, called at random: nothing crashes."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bound_tensors import HYPER, MOMENTS, bound, grads, state_of
from processes import run_python

from fused_adamw import _core
from fused_adamw._core import BoundTensors, TreeSpec

RANDOM_CALLS = """
import random, sys
sys.path[:0] = {paths}
import test_random_calls
print(test_random_calls.call_at_random(random.Random({seed}), {count}))
"""


def values(rng):
    """Arguments of all kinds, right ones among them."""
    return rng.choice(
        [
            None,
            0,
            1,
            -1,
            2**31,
            2**63,
            2**80,
            0.5,
            float("nan"),
            "m",
            "float32",
            "8bit",
            b"ab",
            True,
            (),
            (1,),
            [],
            [None],
            [1, 2],
            {},
            {"m": 1},
            object(),
            int,
            TreeSpec(grads()),
            grads(),
            grads(1),
            grads(2, 9),
            np.zeros(()),
            np.zeros(300),
            np.array(["a"]),
            np.zeros(3, "O"),
            memoryview(b"abc"),
            (ctypes.c_float * 3)(),
            [HYPER],
            [()],
            [(1, 2, 3, 4, 5)],
            HYPER,
            bound,
            bound(),
            (grads(), grads()),
            [(0, 0, 1)],
            [(0, 0, 300), (1, 0, 300)],
            [state_of(300), state_of(300)],
            [state_of(3)],
            MOMENTS,
            SimpleNamespace(params=grads(), grads=grads(), steps=grads(), state={}),
        ]
    )


def call_at_random(rng, count):
    """Call everything that the extension exports; return how many calls were refused."""
    functions = [
        x
        for name, x in vars(_core).items()
        if getattr(x, "__module__", None) == _core.__name__ and not name.startswith("__")
    ]
    names = [
        "grads",
        "hypers",
        "grad_scale",
        "steps",
        "state",
        "slices",
        "moments",
        "decays",
        "seed",
        "roles",
    ]
    refused = 0
    for _ in range(count):
        target = rng.choice(functions)
        if rng.random() < 0.5:
            target = getattr(bound(), rng.choice([x for x in dir(BoundTensors) if x[0] != "_"]))
        if not callable(target):
            continue
        positional = [values(rng) for _ in range(rng.randrange(6))]
        named = {rng.choice(names): values(rng) for _ in range(rng.choice([0, 0, 1, 2]))}
        try:
            target(*positional, **named)
        except (TypeError, ValueError, OverflowError, AttributeError, LookupError):
            # OverflowError: an int that no C type holds; the last two: objects of a wrong kind
            refused += 1
    return refused


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_calls(seed):
    tests = Path(__file__).parents[1]
    paths = [str(tests / name) for name in ("core", "support", "oracles")]
    code = RANDOM_CALLS.format(paths=paths, seed=seed, count=20_000)
    result = run_python(code, OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) > 10_000
