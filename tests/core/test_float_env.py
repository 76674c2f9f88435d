"""The bits of a step do not depend on the floating-point environment of any thread."""

import numpy as np
import pytest
from arrays import PER_THREAD
from float_env import MACHINE, MODES, float_env, needs_fenv
from processes import run_python
from twin import adamw_twin, ema_twin

from fused_adamw import AdamW, _core, fused_adamw

pytestmark = needs_fenv

SIZE = 3 * PER_THREAD + 5


def with_subnormals(x):
    """Every third element of all arrays so small that it, or its square, is subnormal."""
    tiny = np.finfo(x.p.dtype).tiny
    for array, scale in ((x.p, tiny), (x.g, tiny), (x.m, tiny), (x.v, tiny)):
        array[::3] *= scale
    x.g[1::3] *= np.sqrt(tiny)
    return x


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_the_function(tensor, dtype, isa, mode, num_threads):
    x = with_subnormals(tensor(SIZE, dtype))
    expected = adamw_twin(*x.arrays, 3)
    with float_env(mode):
        fused_adamw(*x.arrays, 3, num_threads=num_threads)
    for found, twin in zip((x.p, x.m, x.v), expected, strict=True):
        np.testing.assert_array_equal(found, twin)


@pytest.mark.parametrize("mode", MODES)
def test_clipping_and_averages(tensor, dtype, mode):
    """The norm, its factor, and the numbers that are derived from the hyper-parameters."""
    x = tensor(5000, dtype)
    squares = np.square(x.g, dtype=np.float64)
    norm = 0.3 * np.sqrt(squares.sum())
    options = {"max_grad_norm": 0.1, "ema_decay": 0.99, "weight_decay": 0.3}
    results = []
    for entered in (None, mode):
        w = x.p.copy()
        optimizer = AdamW(w, lr=0.1, **options)
        if entered is None:
            found = optimizer.step(x.g, 0.3)
        else:
            with float_env(entered):
                found = optimizer.step(x.g, 0.3)
        assert found == pytest.approx(norm, rel=1e-14)  # added in another order
        results.append([found, w.tobytes(), optimizer.v.tobytes(), optimizer.ema.tobytes()])
    assert results[1] == results[0]
    zeros = np.zeros_like(x.p)
    scale = 0.3 * _core.clip_factor(results[0][0], 0.1)
    p, _, v = adamw_twin(x.p, x.g, zeros, zeros, 1, lr=0.1, weight_decay=0.3, scale=scale)
    assert results[0][1:] == [p.tobytes(), v.tobytes(), ema_twin(x.p, p, 0.99).tobytes()]


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize("mode", MODES)
def test_low_precision_state(tensor, mode, state_dtype):
    """Stored, and read by way of ``m``, which is decoded."""
    x = with_subnormals(tensor(SIZE, np.float32))
    results = []
    for entered in (None, mode):
        w = x.p.copy()
        optimizer = AdamW(w, state_dtype=state_dtype, num_threads=2)
        for _ in range(3):
            optimizer.step(x.g)
        if entered is None:
            optimizer.step(x.g)
            m = optimizer.m
        else:
            with float_env(entered):
                optimizer.step(x.g)
                m = optimizer.m
        results.append([a.tobytes() for a in (w, m, *optimizer._state[0].arrays.values())])
    assert results[1] == results[0]


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize("mode", MODES)
def test_state_that_is_converted(tensor, mode, state_dtype):
    x = with_subnormals(tensor(SIZE, np.float32))
    source = AdamW(x.p.copy())
    source.step(x.g)
    saved, results = source.state_dict(), []
    for entered in (None, mode):
        optimizer = AdamW(x.p.copy(), state_dtype=state_dtype)
        if entered is None:
            optimizer.load_state_dict(saved, convert=True)
        else:
            with float_env(entered):
                optimizer.load_state_dict(saved, convert=True)
        results.append([a.tobytes() for a in optimizer._state[0].arrays.values()])
    assert results[1] == results[0]


@pytest.mark.slow
def test_threads_that_were_created_in_another_mode():
    """They keep the environment of the thread that opened the first region."""
    code = (
        "import numpy as np; from float_env import float_env; from fused_adamw import fused_adamw\n"
        "from twin import adamw_twin\n"
        "a = [np.full(1 << 17, 1e-41, np.float32) for _ in range(4)]\n"
        "p, m, v = adamw_twin(*a, 1)\n"
        "with float_env('flush'):\n"
        "    fused_adamw(*[x.copy() for x in a], 1, num_threads=2)\n"
        "fused_adamw(*a, 1, num_threads=2)\n"
        "print(np.array_equal(a[0], p), np.array_equal(a[2], m), np.count_nonzero(m))"
    )
    assert run_python(code, paths=("support", "oracles")).stdout == f"True True {1 << 17}\n"


@pytest.mark.slow
@pytest.mark.skipif(MACHINE == "aarch64", reason="most processors have no traps")
def test_traps_do_not_end_a_step_halfway():
    code = (
        "import numpy as np; from float_env import float_env; from fused_adamw import fused_adamw\n"
        "a = [np.full(1 << 17, x, np.float32) for x in (1.0, np.inf, 0.0, 0.0)]\n"
        "a[1][1::2] = 3e38\n"
        "with float_env('trap'):\n"
        "    fused_adamw(*a, 1, num_threads=2)\n"
        "print(np.count_nonzero(np.isnan(a[0])), np.count_nonzero(a[3] == np.inf))"
    )
    assert run_python(code, paths=("support", "oracles")).stdout == f"{1 << 16} {1 << 17}\n"
