"""Why there is no 4-bit format: moments in 4 bits, prototypes in NumPy, in the checks of the 8-bit
format. docs/state-formats.md has the tables and what follows from them."""

from functools import partial

import pytest
from bench_state import BITSANDBYTES, MAX_STEP, OURS_8BIT, PROGRESS, Losses, columns
from bench_state_training import STATES, TASKS, add_rows
from four_bits import Format, StoredAdamW

from fused_adamw.bench.implementations.base import ADAMW_ARGUMENTS
from fused_adamw.bench.implementations.ours import load_function, load_with_state

BY_ROOT, LOGARITHMIC = "4, by root", "8, logarithmic"
OUR_PROTOTYPE = Format("8, by root", LOGARITHMIC, 256)  # as the kernel, to check the prototypes
PUBLISHED = Format("4, dynamic exponent", "4, rank 1, no zero", 128, stochastic=False)
FORMATS = (
    OUR_PROTOTYPE,
    *(Format(BY_ROOT, LOGARITHMIC, block) for block in (256, 128, 64, 32)),
    Format(BY_ROOT, LOGARITHMIC, 128, stochastic=False),
    Format("4, dynamic exponent", LOGARITHMIC, 128, stochastic=False),
    Format("float32", "4, logarithmic", 128),
    Format("float32", "4, logarithmic", 32),
    Format("float32", "4, root, linear", 128),
    Format(BY_ROOT, "4, logarithmic", 128),
    PUBLISHED,
)
TRAINED = (
    OUR_PROTOTYPE,
    *(Format(BY_ROOT, LOGARITHMIC, block) for block in (256, 128, 32)),
    Format(BY_ROOT, LOGARITHMIC, 128, stochastic=False),
    Format("float32", "4, logarithmic", 128),
    Format(BY_ROOT, "4, logarithmic", 128),
    PUBLISHED,
)


def load(format_):
    """AdamW with such moments, as an implementation; for one tensor."""

    def prepare(params, grads, *_):
        hyperparameters = dict(ADAMW_ARGUMENTS)
        lr = hyperparameters.pop("lr")
        optimizer = StoredAdamW({"p": params[0]}, lr, format_, **hyperparameters)
        return lambda: optimizer.step({"p": grads[0]})

    return prepare


def exceeded(difference, largest, progress):
    """Which bounds of bench_state.py the losses are not within."""
    within = {
        "difference": difference <= BITSANDBYTES,
        "step": largest <= MAX_STEP,
        "progress": PROGRESS[0] <= progress[0] and progress[1] <= PROGRESS[1],
    }
    return ", ".join(name for name, is_within in within.items() if not is_within)


def bench_four_bits_against_float32(results):
    losses = Losses(load_function(), 2**16, 2**17)
    rows = {f"{OURS_8BIT}, the kernel": (2.03, load_with_state("8bit"))}
    rows |= {str(f): (f.bytes_per_parameter, load(f)) for f in FORMATS}
    for name, (nbytes, prepare) in rows.items():
        found = losses.of(prepare)
        results.add_row(
            "Moments in 4 bits against float32: mean difference on random gradients, 2^16 "
            "parameters; and outliers, 2^17 parameters, as in bench_state.py",
            **{
                "": name,
                "bytes a parameter": f"{nbytes:.2f}",
                **columns(*found),
                "beyond the bound": exceeded(*found),
            },
        )


@pytest.mark.parametrize("name", TASKS)
def bench_four_bits_training(results, name):
    states = {"float32": STATES["float32"], "8bit": STATES["8bit"]}
    states |= {str(f): partial(StoredAdamW, format_=f) for f in TRAINED}
    add_rows(results, "Final losses with moments in 4 bits", name, states)
