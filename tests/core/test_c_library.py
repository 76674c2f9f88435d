"""The C library without Python: its own tests, its example, its header and its exported symbols."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fused_adamw import _core

ROOT = Path(__file__).parents[2]
CC = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
CXX = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
FLAGS = ["-std=c11", "-O2", "-ffp-contract=off"]

needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler")


def run(*command, **options):
    return subprocess.run(
        list(map(str, command)), check=True, capture_output=True, text=True, cwd=ROOT, **options
    ).stdout


@pytest.fixture(scope="module")
def openmp(tmp_path_factory):
    """The flag of the compiler for OpenMP, where it has that."""
    source = tmp_path_factory.mktemp("openmp") / "probe.c"
    source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
    try:
        run(CC, "-fopenmp", source, "-o", source.with_suffix(""))
    except subprocess.CalledProcessError:
        return []
    return ["-fopenmp"]


@needs_cc
@pytest.mark.slow
def test_the_c_tests_pass(tmp_path, openmp):
    program = tmp_path / "test_kernels"
    sources = [*ROOT.glob("csrc/*.c"), *ROOT.glob("csrc/tests/*.c")]
    run(CC, *FLAGS, *openmp, *sources, "-lm", "-o", program)
    # Waiting threads do not take the processor from others of a busy machine.
    output = run(program, timeout=600, env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    passed, failed = output.splitlines()[-1].split(", ")
    assert failed == "0 failed"
    assert int(passed.removesuffix(" passed")) > 10_000


@needs_cc
@pytest.mark.slow
def test_the_c_example_is_built_by_its_first_line_and_learns(tmp_path, openmp):
    first = (ROOT / "examples" / "linear_model.c").read_text().splitlines()[0]
    command = first.removeprefix("// ").replace("-o linear_model", f"-o '{tmp_path}/linear_model'")
    assert command.startswith("cc ")
    command = f"'{CC}' {command.removeprefix('cc ')}"
    run("sh", "-c", command if openmp else command.replace("-fopenmp ", ""))
    assert run(tmp_path / "linear_model").startswith("y = 3.000 x -2.000, loss ")


@pytest.mark.skipif(CXX is None, reason="no C++ compiler")
def test_the_header_is_one_of_cpp_too(tmp_path):
    source = tmp_path / "header.cc"
    source.write_text('#include "fused_adamw.h"\nint main() { fused_adamw_init(); }\n')
    output = source.with_suffix(".o")
    run(CXX, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Icsrc", "-c", source, "-o", output)
    if nm := shutil.which("nm"):
        assert " fused_adamw_init\n" in run(nm, output).replace(" _fused", " fused")


@pytest.mark.skipif(not shutil.which("nm"), reason="no nm")
@pytest.mark.skipif(os.name != "posix" or os.uname().sysname != "Linux", reason="not ELF")
def test_the_extension_exports_only_the_api():
    defined = run("nm", "-D", "--defined-only", _core.__file__).splitlines()
    names = {line.split()[-1].partition("@")[0] for line in defined}
    assert "PyInit__core" in names
    assert "fused_adamw_step" in names
    assert all(name.startswith("fused_adamw_") for name in names - {"PyInit__core"})
