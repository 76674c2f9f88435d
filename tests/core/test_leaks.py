"""What calls leave behind: objects, memory, references to what is passed to them."""

import copy
import gc
import pickle
import sys
import tracemalloc
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

from fused_adamw import AdamW, fused_adamw, runtime_info
from fused_adamw.checkpoint import (
    load_checkpoint,
    read_arrays,
    read_extra,
    read_step,
    save_checkpoint,
)

REPEATS = 4
NOISE = 40  # blocks by which caches grow meanwhile
LEAST_BYTES = 128  # of an object in them
ERRORS = (TypeError, ValueError, KeyError, OSError)


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((7, 5)).astype(np.float32), "b": rng.standard_normal(3)}


def zeros():
    return {name: np.zeros_like(array) for name, array in arrays().items()}


PARAMS, GRADS, M, V = arrays(), arrays(1), zeros(), zeros()
OPTIMIZER = AdamW(PARAMS, max_grad_norm=1.0, ema_decay=0.9)
EIGHT_BITS = AdamW({"w": arrays(2)["w"]}, state_dtype="8bit")
READ_ONLY = np.zeros((7, 5), np.float32)
READ_ONLY.flags.writeable = False
WRONG = [
    *(None, 5, "x", [], {}, [None], {"w": None}, object(), np.float32(1)),
    *({**PARAMS, "w": GRADS["w"][:3]}, {**PARAMS, "w": GRADS["b"]}, {"w": PARAMS["w"]}),
    *({**PARAMS, "w": READ_ONLY}, {**PARAMS, "w": np.zeros((7, 5), ">f4")}, {**PARAMS, "x": M}),
    *({**PARAMS, "b": PARAMS["w"]}, {**PARAMS, "w": np.zeros((7, 5), int)}),
]
NUMBERS = [None, "x", -1, 1.5, float("nan"), float("inf"), True, (0.9, 2), (0.9,), 1e300, object()]


def fails(call):
    """Some of what is tried is no error, as 1.5 for lr."""
    with suppress(*ERRORS):
        call()


def step_function():
    fused_adamw(PARAMS, GRADS, M, V, 1, lr=0.0)


def wrong_arrays_for_the_function():
    for role in range(4):
        for wrong in WRONG:
            roles = [PARAMS, GRADS, M, V]
            roles[role] = wrong
            fails(lambda roles=roles: fused_adamw(*roles, 1, lr=0.0))


def wrong_numbers_for_the_function():
    for name in ("lr", "betas", "eps", "weight_decay", "num_threads"):
        for wrong in NUMBERS:
            fails(partial(fused_adamw, PARAMS, GRADS, zeros(), zeros(), 1, **{name: wrong}))
    for wrong in NUMBERS:
        fails(partial(fused_adamw, PARAMS, GRADS, zeros(), zeros(), wrong, lr=0.0))


def construct():
    AdamW(arrays())
    AdamW([{"params": arrays(), "lr": 0.1}, {"params": [arrays(1)["b"]]}], amsgrad=True)


def wrong_arrays_for_the_constructor():
    for wrong in WRONG:
        fails(lambda wrong=wrong: AdamW(wrong))
        fails(lambda wrong=wrong: AdamW([{"params": PARAMS}, {"params": wrong}]))


def wrong_options_for_the_constructor():
    options = ("lr", "betas", "eps", "weight_decay", "max_grad_norm", "ema_decay", "state_dtype")
    for name in (*options, "amsgrad", "maximize", "skip_nonfinite", "seed", "num_threads", "x"):
        for wrong in NUMBERS:
            fails(lambda name=name, wrong=wrong: AdamW(arrays(), **{name: wrong}))


def step():
    OPTIMIZER.step(GRADS)
    OPTIMIZER.step({**GRADS, "b": None})
    OPTIMIZER.step({**GRADS, "w": np.asfortranarray(GRADS["w"])})
    EIGHT_BITS.step({"w": GRADS["w"]})


def wrong_gradients():
    for wrong in WRONG:
        fails(lambda wrong=wrong: OPTIMIZER.step(wrong))
    for wrong in NUMBERS:
        fails(lambda wrong=wrong: OPTIMIZER.step(GRADS, grad_scale=wrong))


def failing_schedule():
    def schedule(t):
        if t > 1:
            raise KeyError(t)
        return 0.1

    optimizer = AdamW(arrays(), lr=schedule)
    optimizer.step(GRADS)
    fails(lambda: optimizer.step(GRADS))


def state_dicts():
    for optimizer in (OPTIMIZER, EIGHT_BITS):
        optimizer.load_state_dict(optimizer.state_dict())


def wrong_state_dicts():
    saved = EIGHT_BITS.state_dict()
    for wrong in (*WRONG, *NUMBERS):
        fails(lambda wrong=wrong: EIGHT_BITS.load_state_dict(wrong))
        for key in ("state", "param_groups", "t", "seed"):
            fails(partial(EIGHT_BITS.load_state_dict, saved | {key: wrong}))


def copies():
    for optimizer in (OPTIMIZER, EIGHT_BITS):
        copy.deepcopy(optimizer).state_dict()
        pickle.loads(pickle.dumps(optimizer))


def save_and_load(path):
    save_checkpoint(path, OPTIMIZER, extra={"a": [1]}, arrays={"x": np.arange(3)})
    load_checkpoint(path, OPTIMIZER)
    read_extra(path), read_step(path), read_arrays(path)


def wrong_files(path):
    fails(lambda: save_checkpoint(path, OPTIMIZER, extra={"a": object()}))
    fails(lambda: save_checkpoint(path, OPTIMIZER, arrays={"x": np.array([object()])}))
    fails(lambda: save_checkpoint(path / "no" / "folder", OPTIMIZER))
    fails(lambda: save_checkpoint(5, OPTIMIZER))
    save_checkpoint(path, OPTIMIZER)
    for content in (path.read_bytes()[:-1], b"", b"x" * 100):
        path.write_bytes(content)
        for read in (read_extra, read_step, read_arrays):
            fails(lambda read=read: read(path))
        fails(lambda: load_checkpoint(path, OPTIMIZER))
    save_checkpoint(path, EIGHT_BITS)
    fails(lambda: load_checkpoint(path, OPTIMIZER))


# And how often, for a leak to be larger than the noise. Those of wrong input try much in one call.
CALLS = {
    **dict.fromkeys([step_function, construct, step, failing_schedule, runtime_info], 50),
    **dict.fromkeys([state_dicts, copies], 50),
    save_and_load: 20,
    **dict.fromkeys([wrong_arrays_for_the_function, wrong_numbers_for_the_function], 3),
    **dict.fromkeys([wrong_arrays_for_the_constructor, wrong_options_for_the_constructor], 3),
    **dict.fromkeys([wrong_gradients, wrong_state_dicts, wrong_files], 3),
}


def references():
    """To what the calls are given."""
    kept = [PARAMS, GRADS, M, V, WRONG, NUMBERS, READ_ONLY, OPTIMIZER, EIGHT_BITS]
    kept += [*PARAMS.values(), *GRADS.values(), *M.values(), *V.values()]
    kept += [x for x in WRONG if isinstance(x, (np.ndarray, dict))]
    kept += [np.dtype(np.float32), np.dtype(np.float64), AdamW, fused_adamw]
    return [sys.getrefcount(x) for x in kept]


def found():
    """Objects, blocks of Python's allocators, bytes of these and of NumPy's."""
    gc.collect()
    return len(gc.get_objects()), sys.getallocatedblocks(), tracemalloc.get_traced_memory()[0]


def growth(call, times):
    """By how much these calls make each number larger."""
    before = found()
    for _ in range(times):
        call()
    return [new - old for new, old in zip(found(), before, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("call", "times"), CALLS.items(), ids=[call.__name__ for call in CALLS])
def test_nothing_stays_behind(call, times, tmp_path):
    if call in (save_and_load, wrong_files):
        call = partial(call, tmp_path / "file")
    gc.collect()
    gc.freeze()  # what is there already is not looked at each time
    tracemalloc.start()
    try:
        growth(call, times)  # with what is kept for the next call
        before = references()
        grown = [growth(call, times) for _ in range(REPEATS)]
        assert references() == before
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    # Caches grow at times, a leak every time.
    objects, blocks, memory = map(min, zip(*grown, strict=True))
    assert objects < times, grown
    assert blocks < NOISE, grown
    assert memory < NOISE * LEAST_BYTES, grown
