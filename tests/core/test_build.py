"""Builds with flags of the user's that would change results, and with sanitizers."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import has_openmp, run_python

Extension = pytest.importorskip("setuptools").Extension
ROOT = Path(__file__).parents[2]
COMPILERS = [compiler for compiler in ("gcc", "clang") if shutil.which(compiler)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"),
        reason="flags of GCC and Clang on Linux",
    ),
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no sources to build"),
]

CHECK = """
import numpy as np
subnormal = np.array([2.0**-1060]), np.array([2.0**-140], np.float32)
def kept():
    return all((x * 0.5 * 2 == x).all() and (x * 0.5 != 0).all() for x in subnormal)
assert kept(), "before the import"
from fused_adamw import _core, fused_adamw
assert kept(), "after it"
from twin import adamw_twin
for isa in _core.available_isas():
    _core._force_isa(isa)
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(5)
        p, g, m, v = (rng.standard_normal(70_001).astype(dtype) for _ in range(4))
        v = v * v
        for array in (p, g, m, v):
            array[::5] *= np.finfo(dtype).tiny
        g[3], g[4], v[7] = np.nan, np.inf, 0
        expected = adamw_twin(p, g, m, v, 3, lr=0.1)
        fused_adamw(p, g, m, v, 3, lr=0.1, num_threads=2)
        for found, twin in zip((p, m, v), expected):
            np.testing.assert_array_equal(found, twin)
print("same bits")
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the sources with what Cython makes of them, which builds have in common."""
    cythonize = pytest.importorskip("Cython.Build").cythonize
    folder = tmp_path_factory.mktemp("sources")
    for name in ("csrc", "src"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / name)
    ext = folder / "src" / "fused_adamw" / "_ext"
    core = Extension("fused_adamw._core", [str(ext / "core.pyx")])
    cythonize([core], language_level=3, include_path=[str(ext)], quiet=True)
    return folder


def build(sources, folder, compiler, **flags):
    shutil.copytree(sources, folder, dirs_exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("CFLAGS", "LDFLAGS")}
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder, capture_output=True, text=True,
        env=environment | {"CC": compiler, "LDSHARED": f"{compiler} -shared"} | flags,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "src"


def check(src, **environment):
    paths = os.pathsep.join([str(src), str(ROOT / "tests" / "oracles")])
    # From another folder than the sources of this one, which are on the path of an installation.
    result = run_python(CHECK, PYTHONPATH=paths, **environment)
    assert result.stdout == "same bits\n", result.stderr


FAST = {
    "CFLAGS": {"CFLAGS": "-Ofast -funsafe-math-optimizations -fsingle-precision-constant"},
    "LDFLAGS": {"CFLAGS": "-ffast-math", "LDFLAGS": "-Ofast -ffast-math"},
}


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_fast_math_is_taken_back(sources, tmp_path, compiler, name):
    if not has_openmp(compiler):
        pytest.skip(f"no OpenMP with {compiler}")
    check(build(sources, tmp_path, compiler, **FAST[name]))


@pytest.mark.skipif("gcc" not in COMPILERS, reason="no GCC")
@pytest.mark.parametrize("variable", ["CFLAGS", "LDFLAGS"])
def test_address_sanitizer(sources, tmp_path, variable):
    command = ["gcc", "-print-file-name=libasan.so"]
    library = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("no AddressSanitizer")
    src = build(sources, tmp_path, "gcc", **{variable: "-fsanitize=address"})
    check(src, LD_PRELOAD=library, ASAN_OPTIONS="detect_leaks=0")


# ---- the flags alone

FLAGS = [
    "-ffast-math",
    "-Ofast",
    "-funsafe-math-optimizations",
    "-fassociative-math -fno-signed-zeros -fno-trapping-math",
    "-freciprocal-math",
    "-ffinite-math-only",
    "-fsingle-precision-constant",
    "-ffp-contract=fast -march=native",
    "-mdaz-ftz",
]
PROBE = """
#include <math.h>
int is_nan(double x) { return x != x; }
double sum(double a, double b) { return (a + b) - b; }
double quotients(double *x, double y) { return x[0] / y + x[1] / y + x[2] / y; }
float tenth(float x) { return x * 0.1; }
double fma_or_not(double a, double b, double c) { return a * b + c; }
"""
LOAD = """
import ctypes, sys
probe = ctypes.CDLL(sys.argv[1])
d = ctypes.c_double
for name, count in (("sum", 2), ("fma_or_not", 3)):
    getattr(probe, name).restype, getattr(probe, name).argtypes = d, [d] * count
probe.is_nan.argtypes = [d]
probe.quotients.restype, probe.quotients.argtypes = d, [ctypes.POINTER(d), d]
probe.tenth.restype, probe.tenth.argtypes = ctypes.c_float, [ctypes.c_float]
assert 2.0**-1060 * 0.5 != 0, "flushes"
assert probe.is_nan(float("nan")) == 1
assert probe.sum(1.0, 1e100) == 0
assert probe.quotients((d * 3)(1, 1, 1), 49.0) == 1 / 49 + 1 / 49 + 1 / 49
assert probe.tenth(3.0) == ctypes.c_float(3 * 0.1).value
assert probe.tenth(7.0) == ctypes.c_float(7 * 0.1).value
x = 1 + 2**-30
assert probe.fma_or_not(x, x, -1.0) == x * x - 1
"""


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_flags_are_taken_back(tmp_path, setup_py, compiler, flag):
    source, library = tmp_path / "probe.c", tmp_path / "probe.so"
    source.write_text(PROBE)

    def compiled(*flags):
        command = [compiler, *flags, source, "-shared", "-fPIC", "-o", library]
        return subprocess.run(command, capture_output=True).returncode == 0

    given = shlex.split(flag)
    if not compiled("-Werror", *given):
        pytest.skip(f"{compiler} does not know {flag}")
    optional = [x for x in setup_py["OPTIONAL_EXACT_FLAGS"] if compiled("-Werror", x)]
    own = [*setup_py["EXACT_FLAGS"], *optional, *setup_py["c_flags"]("unix")]
    own.remove("-fvisibility=hidden")
    assert compiled(*given, *own)
    loaded = subprocess.run([sys.executable, "-c", LOAD, library], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr


# ---- Windows


class VisualC:
    """What setup.py uses of setuptools' compiler of that name."""

    compiler_type = "msvc"
    cc = "cl.exe"

    def __init__(self):
        self.compiled = {}

    def initialize(self):
        self.cc = "cl.exe"

    def compile(self, sources, output_dir=None, *, extra_postargs=None):
        self.compiled |= {Path(source).name: [self.cc, *extra_postargs] for source in sources}
        return [f"{output_dir}/{Path(source).stem}.obj" for source in sources]


@pytest.fixture
def windows(setup_py, monkeypatch):
    """Compiles all sources as setup.py does on Windows; returns the commands by file."""
    from setuptools import Distribution

    def commands(platform="win-amd64", **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        core = Extension("fused_adamw._core", setup_py["C_SOURCES"])
        build = setup_py["BuildExt"](Distribution({"ext_modules": [core]}))
        build.compiler, build.plat_name, build.extensions = VisualC(), platform, [core]
        sources, flags = core.sources, core.extra_compile_args

        def compile_only(self):
            objects = self.compiler.compile(sources, "build", extra_postargs=flags)
            assert objects == [f"build/{Path(source).stem}.obj" for source in sources]

        monkeypatch.setattr("setuptools.command.build_ext.build_ext.build_extensions", compile_only)
        monkeypatch.setenv("FUSED_ADAMW_THREADS", "none")
        build.build_extensions()
        return build.compiler.compiled

    monkeypatch.delenv("CC", raising=False)
    return commands


def test_visual_c_compiles_each_instruction_set_with_its_flag(windows):
    commands = windows()
    assert {"avx2.c", "avx512.c", "baseline.c", "parallel.c"} <= commands.keys()
    arch = {name: [x for x in command if "/arch" in x] for name, command in commands.items()}
    assert arch.pop("avx2.c") == ["/arch:AVX2"]
    assert arch.pop("avx512.c") == ["/arch:AVX512"]
    assert set(map(tuple, arch.values())) == {()}
    assert all(x[0] == "cl.exe" and "/fp:precise" in x for x in commands.values())


def test_no_flag_of_x86_on_arm(windows):
    assert not [x for command in windows("win-arm64").values() for x in command if "/arch" in x]


def test_clang_cl_is_taken_where_cc_names_it(windows):
    for command in windows(CC="clang-cl").values():
        assert command[0] == "clang-cl"
        assert "/clang:-ffp-contract=off" in command
        assert not [x for x in command if "/arch" in x]
