"""Threads that cannot be created, numbers of them that make no sense, and waiting for them."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from arrays import PER_THREAD
from processes import has_openmp, run_python
from stalls import FEWEST, MOST, SIZE, assert_serial_for_a_while, serial_steps
from systems import needs_linux
from twin import adamw_twin

from fused_adamw import AdamW, fused_adamw, runtime_info

ROOT = Path(__file__).parents[2]

THREADING = runtime_info()["threading"]
needs_threads = pytest.mark.skipif(THREADING is None, reason="a build for one thread")
needs_openmp = pytest.mark.skipif(THREADING != "OpenMP", reason="a build without OpenMP")


# ---- how many

PRINT_DEFAULT = (
    "import sys, types\n"
    "cgroup = types.ModuleType('fused_adamw._cgroup')\n"
    "cgroup.cpu_quota = lambda: {quota}\n"
    "sys.modules['fused_adamw._cgroup'] = cgroup\n"
    "from fused_adamw import _core; print(_core.default_num_threads())"
)
NOT_A_NUMBER = [
    "0",
    "-1",
    "abc",
    "",
    " ",
    "3abc",
    "0x4",
    "4,abc",
    "4,0",
    "2147483648",
    "4294967298",
]
TOO_MANY = ["1025", "100000", "99999999999999999999"]


def default_threads(quota, **environment):
    return int(run_python(PRINT_DEFAULT.format(quota=quota), **environment).stdout)


@pytest.mark.slow
@needs_threads
@pytest.mark.parametrize("value", [*NOT_A_NUMBER, *TOO_MANY])
def test_a_number_of_threads_that_is_none_leaves_the_quota(value):
    assert default_threads(1, OMP_NUM_THREADS=value) == 1


@pytest.mark.slow
@needs_threads
@pytest.mark.parametrize("value", [*TOO_MANY[:2], "2147483648"])
def test_too_many_threads_are_as_many_as_processors(value):
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    assert default_threads(None, OMP_NUM_THREADS=value) == (processors or os.cpu_count())


@pytest.mark.slow
@needs_threads
@pytest.mark.parametrize(
    ("value", "number"), [("1", 1), ("3", 3), (" +3 ", 3), ("3,2", 3), ("1024", 1024)]
)
def test_a_number_of_threads_outdoes_the_quota(value, number):
    assert default_threads(2, OMP_NUM_THREADS=value) == number


# ---- threads that cannot be created

STEPS = """
import os, sys, json, resource
import numpy as np
from fused_adamw import AdamW, fused_adamw
a = [np.full(1 << 19, x, np.float32) for x in (1, 0.1, 0.01, 0.01)]
optimizer = AdamW(a[0].copy(), max_grad_norm=1.0, num_threads=8)
{limit}
most = 0
for t in (1, 2, 3):
    fused_adamw(*a, t, num_threads=8)
    most = max(most, len(os.listdir("/proc/self/task")))
optimizer.step(a[1])
print(json.dumps([most, float(a[0][0]), float(a[0][-1])]))
"""
LIMITS = {
    "processes": (
        "if os.getuid() == 0: os.setuid(54321)\n"  # root has no limit
        "now = len(os.listdir('/proc/self/task'))\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (now + 2, now + 2))",
        {},
    ),
    "address space": (
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * resource.getpagesize() + (20 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))",
        {"OMP_STACKSIZE": "8M"},
    ),
    "stack": ("", {"OMP_STACKSIZE": "100G"}),
    "stack of libgomp": ("", {"GOMP_STACKSIZE": "100000 m"}),
}


@pytest.mark.slow
@needs_openmp
@needs_linux
@pytest.mark.parametrize("name", LIMITS)
def test_threads_that_cannot_be_created_are_done_without(name):
    limit, environment = LIMITS[name]
    result = run_python(STEPS.format(limit=limit), **environment)
    assert result.returncode == 0, result.stderr
    threads, *found = json.loads(result.stdout)
    assert threads < 8
    p, m, v = (np.full(1, x, np.float32) for x in (1, 0.01, 0.01))
    for t in (1, 2, 3):
        p, m, v = adamw_twin(p, np.full(1, 0.1, np.float32), m, v, t)
    assert found == [p[0], p[0]]


RETRIES = """
import os, json, resource
import numpy as np
from fused_adamw import fused_adamw
a = [np.full(1 << 18, x, np.float32) for x in (1, 0.1, 0.01, 0.01)]
pages = int(open("/proc/self/statm").read().split()[0])
limits = resource.getrlimit(resource.RLIMIT_AS)
few = pages * resource.getpagesize() + (20 << 20)
resource.setrlimit(resource.RLIMIT_AS, (few, limits[1]))
threads = []
for t in range(1, 1101):
    fused_adamw(*a, t, num_threads=8)
    threads.append(len(os.listdir("/proc/self/task")))
    resource.setrlimit(resource.RLIMIT_AS, limits)
print(json.dumps(threads))
"""


@pytest.mark.slow
@needs_openmp
@needs_linux
def test_threads_that_could_not_be_created_are_tried_again_after_many_steps():
    result = run_python(RETRIES, OMP_STACKSIZE="8M", OMP_WAIT_POLICY="passive")
    assert result.returncode == 0, result.stderr
    threads = json.loads(result.stdout)
    assert threads[0] < 8
    assert threads[1000] == threads[0]  # not tried at each step
    assert threads[-1] >= 8


def threads_with_stacks(limit, size):
    result = run_python(STEPS.format(limit=limit), OMP_STACKSIZE=size)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)[0]


@pytest.mark.slow
@needs_openmp
@needs_linux
def test_the_units_of_stack_sizes_are_those_of_the_runtime():
    """Without one: KiB. The address space has room for two stacks of 8 MiB."""
    limit, _ = LIMITS["address space"]
    sizes = ["8M", "8192", "8192 K", "8388608B", "8388608 b", "8\tm"]
    assert len({threads_with_stacks(limit, size) for size in sizes}) == 1


@pytest.mark.slow
@needs_openmp
@needs_linux
def test_a_stack_size_that_no_pointer_can_span_is_ignored():
    assert threads_with_stacks("", str(2**64 - 1024)) >= 8


# ---- fork

needs_clang = pytest.mark.skipif(not shutil.which("clang"), reason="no clang")


@pytest.mark.slow
@needs_linux
@pytest.mark.parametrize("compiler", ["gcc", pytest.param("clang", marks=needs_clang)])
def test_children_of_a_process_with_threads_of_its_own(tmp_path, compiler):
    """LLVM's runtime might wait in the child for a lock that another thread of the parent had: no
    region is opened there."""
    if not has_openmp(compiler):
        pytest.skip(f"no OpenMP with {compiler}")
    program = tmp_path / "fork_stress"
    source = ROOT / "tests" / "core" / "programs" / "fork_stress.c"
    flags = ["-std=c11", "-O1", "-ffp-contract=off", "-fopenmp", "-pthread", f"-I{ROOT / 'csrc'}"]
    command = [compiler, *flags, source, *ROOT.glob("csrc/*.c"), "-lm", "-o", program]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    ran = subprocess.run([program], capture_output=True, text=True, timeout=600, env=environment)
    failed, threads = map(int, ran.stdout.split())
    assert failed == 0
    assert threads == 1 if compiler == "clang" else threads > 1


# ---- threads that are not scheduled

several = pytest.mark.skipif(
    runtime_info()["num_threads"] < 2, reason="there is but one thread to choose"
)


def small_step():
    """A step of a kind that may use several threads, with the least work."""
    fused_adamw(*ARRAYS, 1)


ARRAYS = [np.full(SIZE, 0.5, np.float32) for _ in range(4)]


def norm_stepper():
    optimizer = AdamW(ARRAYS[0].copy(), max_grad_norm=1.0)
    for _ in range(12):  # what an optimizer tries looks at the clock, too
        optimizer.step(ARRAYS[1])
    return lambda: optimizer.step(ARRAYS[1])


STEPPERS = {"function": lambda: small_step, "norm": norm_stepper}


@several
@pytest.mark.parametrize("name", STEPPERS)
def test_after_a_stall_steps_run_on_one_thread_for_a_while(clock, name):
    assert_serial_for_a_while(clock, STEPPERS[name]())


@several
def test_stalls_that_go_on_cost_less_and_less(clock):
    clock.seconds = 1.0
    small_step()
    found = [serial_steps(clock, small_step) for _ in range(10)]
    assert found == [min(FEWEST << k, MOST) for k in range(10)]


@several
def test_a_number_of_threads_that_the_user_chose_is_used(clock):
    fused_adamw(*ARRAYS, 1, num_threads=2)
    assert clock.calls == 0


@several
def test_steps_that_use_one_thread_do_not_look_at_the_clock(clock):
    fused_adamw(*[x[: PER_THREAD + 1] for x in ARRAYS], 1)
    assert clock.calls == 0
