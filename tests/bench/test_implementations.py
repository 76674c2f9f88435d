"""All implementations do the same step, and loading them leaves the process as it was."""

import os
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from fused_adamw.bench.implementations import IMPLEMENTATIONS, Implementation, Loader
from fused_adamw.bench.implementations.base import LR
from fused_adamw.bench.runner import BASELINE, on_moments_of_optimizer, prepare_class
from fused_adamw.bench.workloads import draw_with_optimizer
from fused_adamw.reference import adamw_update_list

SHAPES = [(3, 5), (64,), (1,)]
STEPS = 5
BOUND = "bandwidth-bound"
LOW_PRECISION = [i.name for i in IMPLEMENTATIONS.values() if i.bytes_per_parameter]
FULL_PRECISION = [name for name in IMPLEMENTATIONS if name not in (BOUND, *LOW_PRECISION)]
RETURN_PARAMETERS = ("optax", "pure-python", *(n for n in LOW_PRECISION if "all-bfloat16" in n))


def param(name):
    """A parameter of a test; slow where the import of a library is."""
    fast = {"numpy", "ml_dtypes"}.issuperset(IMPLEMENTATIONS[name].packages)
    return pytest.param(name, marks=() if fast else pytest.mark.slow)


def reference(params, grads, m, v):
    """The parameters after all steps, in float64, by the definition in pure Python."""
    lists = [[a.ravel().tolist() for a in role] for role in (params, grads, m, v)]
    for t in range(1, STEPS + 1):
        for i, tensor in enumerate(zip(*lists, strict=True)):
            lists[0][i], lists[2][i], lists[3][i] = adamw_update_list(*tensor, t)
    return np.concatenate(lists[0])


def parameters_after(step, params, name):
    for _ in range(STEPS):
        returned = step()
    ends = returned if name in RETURN_PARAMETERS else params
    return np.concatenate([np.ravel(np.asarray(end)).astype(params[0].dtype) for end in ends])


def load(loader, name, dtype):
    if name == BASELINE:
        return prepare_class
    implementation = IMPLEMENTATIONS[name]
    if dtype not in implementation.dtypes:
        pytest.skip(f"{name} does not support {dtype}")
    prepare = loader.load(implementation)
    if prepare is None:
        pytest.skip(f"{name}: {loader.unavailable[name]}")
    return on_moments_of_optimizer(prepare)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [BASELINE, *map(param, FULL_PRECISION)])
def test_all_do_the_same_step(loader, name, dtype):
    prepare = load(loader, name, dtype)
    params, grads, optimizer = draw_with_optimizer(SHAPES, dtype)
    expected = reference(params, grads, optimizer.m, optimizer.v)
    found = parameters_after(prepare(params, grads, optimizer), params, name)
    # Parameters up to 1 are rounded at most three times a step, by half of eps or less. What the
    # rounded betas change is smaller: 1e-5 of an update of 1e-3.
    tolerance = STEPS * 3 * np.finfo(dtype).eps / 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [param(name) for name in LOW_PRECISION])
def test_low_precision_does_the_same_step_from_zeros(loader, name):
    prepare = load(loader, name, "float32")
    params, grads, optimizer = draw_with_optimizer([(64, 64), (8192,)], "float32")
    for p in params:
        p *= 0.1
    zeros = [np.zeros_like(p) for p in params]
    expected = reference(params, grads, zeros, zeros)
    moments = [moment.copy() for moment in (*optimizer.m, *optimizer.v)]
    found = parameters_after(prepare(params, grads, optimizer), params, name)
    # Every element moves by about lr in each step. 8-bit state costs a few percent of that for the
    # smallest gradients of a block; the mean error of ours is 0.5 %. Parameters in bfloat16, up to
    # 0.1, are rounded by less than 0.00025 each time, or twice that with stochastic rounding.
    share = 0.05 if "all-bfloat16" in name else 0.01
    assert np.abs(found - expected).mean() < share * STEPS * LR
    for moment, before in zip((*optimizer.m, *optimizer.v), moments, strict=True):
        np.testing.assert_array_equal(moment, before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bandwidth_bound_does_not_change_the_arrays(loader, dtype):
    prepare = load(loader, BOUND, dtype)
    params, grads, optimizer = draw_with_optimizer(SHAPES, dtype)
    arrays = (*params, *grads, *optimizer.m, *optimizer.v)
    before = [array.copy() for array in arrays]
    prepare(params, grads, optimizer)()
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


# --------------------------------------------------------------------------- loading


def test_the_names_are_those_of_the_rows():
    assert all(name == row.name for name, row in IMPLEMENTATIONS.items())


@pytest.mark.parametrize(
    ("num_parameters", "dtype", "reason"),
    [
        (10, "float32", None),
        (10, "float64", "does not support float64"),
        (9, "float32", "too small"),
        (21, "float32", "takes too long"),
    ],
)
def test_what_suits_an_implementation(num_parameters, dtype, reason):
    row = Implementation(
        *("x", lambda: None),
        min_parameters=10,
        too_small="too small",
        max_parameters=20,
        dtypes=("float32",),
    )
    assert row.unsuitable(num_parameters, dtype) == reason


def test_an_implementation_is_loaded_once_and_its_setup_undone():
    events = []

    @contextmanager
    def setup():
        events.append("enter")
        yield
        events.append("exit")

    def load_row():
        events.append("load")
        return tuple

    rows = [Implementation(name, load_row, setup=setup) for name in "ab"]
    with Loader() as loader:
        for row in (*rows, *rows):
            assert loader.load(row) is tuple
        assert events == ["enter", "load", "load"]
    assert events[3:] == ["exit"]


def test_an_error_of_a_setup_makes_it_unavailable():
    @contextmanager
    def setup():
        raise RuntimeError("broken\nin detail")
        yield

    with Loader() as loader:
        row = Implementation("x", tuple, ("package",), setup=setup)
        assert loader.load(row) is None
        assert loader.unavailable == {"x": "pip install package (broken)"}


@pytest.mark.slow
def test_a_run_leaves_the_process_as_it_was():
    torch = pytest.importorskip("torch")
    before, path = torch.get_num_threads(), os.environ["PATH"]
    torch.set_num_threads(1)
    try:
        with Loader() as loader:
            for name in ("torch-fused", "deepspeed"):
                loader.load(IMPLEMENTATIONS[name])
        assert torch.get_num_threads() == 1
        assert os.environ["PATH"] == path
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", [None, "0"])
def test_deepspeed_does_not_slow_down_steps_of_pytorch(monkeypatch, tmp_path, value):
    """It sets an environment variable that each of PyTorch's steps reads."""
    pytest.importorskip("torch")
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed/__init__.py").write_text(f"import os\nos.environ[{name!r}] = '1'\n")
    (tmp_path / "deepspeed/utils.py").write_text("class logger:\n    disabled = False\n")
    for module in [x for x in sys.modules if x.split(".")[0] == "deepspeed"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    with IMPLEMENTATIONS["deepspeed"].setup():
        assert os.environ.get(name) == value
    for module in ("deepspeed", "deepspeed.utils"):
        del sys.modules[module]
