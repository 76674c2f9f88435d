"""What tests share: arrays for a step, instruction sets, a runner of the command line."""

import os
import sys

import numpy as np
import pytest

from fused_adamw import runtime_info

# Where the environment forces an instruction set, the tests keep to it.
FORCED = os.environ.get("FUSED_ADAMW_ISA")
ISAS = [FORCED] if FORCED else runtime_info()["available_isas"]


PER_THREAD = 32768  # the fewest elements that another thread is used for


class Tensor:
    """The four arrays of one step, random, as after some steps of training."""

    def __init__(self, shape, dtype, seed=0, place=lambda x: x):
        rng = np.random.default_rng(seed)

        def draw(scale):
            return place(np.array(rng.standard_normal(shape) * scale, dtype))

        self.p, self.g, self.m = draw(1.0), draw(0.1), draw(0.05)
        self.v = place(np.array(np.square(rng.standard_normal(shape) * 0.1), dtype))

    @property
    def arrays(self):
        return self.p, self.g, self.m, self.v

    def bytes(self):
        return [array.tobytes() for array in self.arrays]


def dtype_named(name):
    """A dtype of NumPy; or bfloat16, without which a test is skipped."""
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def command_line(main, monkeypatch, capture, folder):
    """What runs ``main`` with arguments, in this folder; it returns status, standard output and
    error, as ``capture`` has them."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["fused-adamw", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code or 0, *capture.readouterr()

    return command


DELETED = "deleted"


def spoil(state, path, value):
    """Put a value at the end of this path of keys into nested dicts and lists, or delete it."""
    for key in path[:-1]:
        state = state[key]
    if value is DELETED:
        del state[path[-1]]
    else:
        state[path[-1]] = value
