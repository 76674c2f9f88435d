"""Fixtures of all tests, and which of them are slow."""

import signal
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from arrays import FORCED, ISAS, Tensor
from stalls import Clock

from fused_adamw import _core

# Folders and files of tests that start processes or threads, compile or train; -m "not slow" leaves
# them out.
SLOW = (
    *("bench/", "cli/", "distributed/"),
    *("checkpoint/test_killed.py", "core/test_runtime.py", "torch/test_threads.py"),
    *("offload/test_example.py", "offload/test_processes.py", "offload/test_torch_class.py"),
    *("test_docs.py", "test_examples.py", "test_frameworks.py", "test_readme.py"),
)


# A slow or busy machine is no fault: no deadlines, and no check of how long it takes to draw.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_configure():
    # A shell that starts a job in the background lets it ignore Ctrl-C, which tests send.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)


def pytest_make_parametrize_id(val, argname):
    """A long string by its length: names of tests are to be read."""
    is_long = isinstance(val, (str, bytes)) and len(val) > 80
    return f"{argname} of {len(val)}" if is_long else None


@pytest.fixture(params=ISAS)
def isa(request):
    """Steps use this instruction set."""
    _core._force_isa(request.param)
    yield request.param
    _core._force_isa(FORCED)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """Of DTensors, with one rank."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch_ranks import only_rank

    with only_rank(tmp_path_factory.mktemp("rank")):
        yield init_device_mesh("cpu", (1,))


@pytest.fixture
def clock(monkeypatch):
    """Steps look at this clock, after which no step has stalled."""
    clock = Clock()
    monkeypatch.setattr(_core, "perf_counter", clock)
    _core._forget_stalls()
    yield clock
    _core._forget_stalls()


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def tensor():
    return Tensor
