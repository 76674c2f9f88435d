"""What a step runs on: instruction sets, threads, forked children, several callers at once."""

import json
import os
import signal
import sys
import threading
from importlib.metadata import version

import numpy as np
import pytest
from processes import run_python
from systems import needs_linux
from twin import adamw_twin

from fused_adamw import __version__, fused_adamw, runtime_info
from fused_adamw._cgroup import cpu_quota

PRINT_INFO = "import fused_adamw, json; print(json.dumps(fused_adamw.runtime_info()))"
LARGE = 1 << 22  # enough for several threads, in a forked child too


def info_with(**environment):
    return json.loads(run_python(PRINT_INFO, **environment).stdout)


def test_runtime_info():
    info = info_with()
    assert list(info) == ["version", "isa", "available_isas", "threading", "num_threads"]
    assert info["version"] == version("fused-adamw") == __version__
    assert info["isa"] == info["available_isas"][0]
    assert info["num_threads"] >= 1
    assert info["num_threads"] == 1 or info["threading"]


AVX2 = {"avx2", "fma", "bmi1", "bmi2", "abm"}
AVX512 = AVX2 | {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"}


@needs_linux
def test_available_isas_are_those_of_the_processor():
    """Linux lists only features whose registers it saves."""
    with open("/proc/cpuinfo") as file:
        flags = set(file.read().split())
    expected = {
        "x86_64": [
            *(["avx512"] if flags >= AVX512 else []),
            *(["avx2"] if flags >= AVX2 else []),
            "sse2",
        ],
        "aarch64": ["neon"],
    }
    assert runtime_info()["available_isas"] == expected.get(os.uname().machine, ["baseline"])


@pytest.mark.parametrize("name", runtime_info()["available_isas"])
def test_isa_from_the_environment(name):
    assert info_with(FUSED_ADAMW_ISA=name)["isa"] == name


def test_unknown_isa_in_the_environment_is_an_error_when_it_matters():
    code = (
        "import numpy as np, fused_adamw as f; a = [np.ones(3) for _ in range(4)]\n"
        "try: f.fused_adamw(*a, 1)\n"
        "except ValueError as error: print(error)\n"
        "f._core._force_isa(f._core.available_isas()[-1])\n"
        "f.fused_adamw(*a, 1)"
    )
    printed = run_python(code, FUSED_ADAMW_ISA="mmx").stdout
    assert "FUSED_ADAMW_ISA" in printed
    assert "'mmx'" in printed
    assert ", ".join(runtime_info()["available_isas"]) in printed


@pytest.mark.skipif(os.name == "nt", reason="has no bytes in its environment")
def test_an_isa_in_the_environment_that_is_no_text():
    code = "import fused_adamw._core as c\ntry: c._force_isa(c.os.environ['FUSED_ADAMW_ISA'])\n"
    code += "except ValueError as error: print(ascii(str(error)))"
    printed = run_python(code, FUSED_ADAMW_ISA=b"\xff").stdout
    assert "FUSED_ADAMW_ISA must be one of" in printed


several = pytest.mark.skipif(not runtime_info()["threading"], reason="a build for one thread")
openmp = pytest.mark.skipif(
    runtime_info()["threading"] != "OpenMP", reason="a build without OpenMP"
)


@several
def test_omp_num_threads():
    assert info_with(OMP_NUM_THREADS="3")["num_threads"] == 3


@openmp
@pytest.mark.parametrize("limit", [1, 2, 3, 9])
def test_omp_thread_limit(limit):
    found = info_with(OMP_NUM_THREADS="3", OMP_THREAD_LIMIT=str(limit))
    assert found["num_threads"] == min(3, limit)


@openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_affinity():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + PRINT_INFO
    assert json.loads(run_python(code).stdout)["num_threads"] == 1


def cgroup_root(folder, membership, **files):
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(membership)
    for path, text in files.items():
        file = folder / "sys/fs/cgroup" / path.replace("__", "/").replace("--", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return str(folder)


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {"cpu--max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu--max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu--max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a__b__cpu--max": "max 100000\n", "a__cpu--max": "300000 100000\n"}, 3),
        ("0::/a\n", {"a__cpu--max": "400000 100000\n", "cpu--max": "200000 100000\n"}, 2),
        (
            "3:memory:/x\n2:cpu,cpuacct:/job\n",
            {"cpu__job__cpu--cfs_quota_us": "250000", "cpu__job__cpu--cfs_period_us": "100000"},
            3,
        ),
        (
            "2:cpu:/\n",
            {"cpu__cpu--cfs_quota_us": "-1", "cpu__cpu--cfs_period_us": "100000"},
            None,
        ),
        ("0::/\n", {"cpu--max": "nonsense"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_cgroup_quota(tmp_path, membership, files, quota):
    assert cpu_quota(cgroup_root(tmp_path, membership, **files)) == quota


def test_no_cgroups(tmp_path):
    assert cpu_quota(str(tmp_path)) is None


# ---- fork


def step_in_child(arrays, num_threads):
    """Whether a forked child takes the step, with the same bits, before 60 seconds are over."""
    expected = adamw_twin(*arrays, 1)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs is killed, and fails the test
        fused_adamw(*arrays, 1, num_threads=num_threads)
        os._exit(0 if np.array_equal(arrays[0], expected[0]) else 1)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("length", [1000, 1 << 17, LARGE])
def test_fork_after_a_parallel_region(tensor, length):
    arrays = tensor(length, np.float32).arrays
    fused_adamw(*tensor(LARGE, np.float32).arrays, 1, num_threads=4)
    assert step_in_child(arrays, num_threads=4)
    assert step_in_child(arrays, num_threads=None)


@pytest.mark.slow
@openmp
@needs_linux
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(tensor):
    """It makes a team for each large step and gives it up: watched while it steps."""
    arrays = tensor(LARGE, np.float32).arrays
    fused_adamw(*arrays, 1, num_threads=2)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        most = 0
        thread = threading.Thread(
            target=lambda: [fused_adamw(*arrays, 1, num_threads=4) for _ in range(50)]
        )
        thread.start()
        while thread.is_alive():
            most = max(most, len(os.listdir("/proc/self/task")))
        # This thread, the stepping one, the one that opens its region, and the rest of a team of 4.
        os._exit(0 if most >= 6 else 1)
    assert os.waitpid(child, 0)[1] == 0


# ---- several callers


@pytest.mark.parametrize("length", [100, 1 << 20])
def test_threads_step_disjoint_arrays(tensor, length):
    tensors = [tensor(length, np.float32, seed) for seed in range(4)]
    expected = [adamw_twin(*x.arrays, 1) for x in tensors]
    start = threading.Barrier(len(tensors))

    def step(x):
        start.wait()
        fused_adamw(*x.arrays, 1, num_threads=2)

    threads = [threading.Thread(target=step, args=(x,)) for x in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for x, (p, m, v) in zip(tensors, expected, strict=True):
        np.testing.assert_array_equal(x.p, p)
        np.testing.assert_array_equal(x.m, m)
        np.testing.assert_array_equal(x.v, v)


def test_the_gil_is_released(tensor):
    """Another Python thread gets on while steps run. It could not otherwise: nothing takes the GIL
    from this thread before the switch interval is over. Steps go on until it has, or for long."""
    arrays = tensor(1 << 20, np.float32).arrays
    stepping, got_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: stepping.wait() and got_on.set())
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        stepping.set()
        for t in range(1, 10_000):
            fused_adamw(*arrays, t, num_threads=1)
            if got_on.is_set():
                break
        assert got_on.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()
