"""The C library without Python: its own tests, its example, its header and its exported symbols."""

import os
import re
import shutil
import subprocess
import sys
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
    passed, failed = output.splitlines()[-1].rpartition(": ")[2].split(", ")
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


# ---- flags that change results

REFUSED = {
    "gcc": [
        "-ffast-math",
        "-ffinite-math-only",
        "-freciprocal-math",
        "-funsafe-math-optimizations",
    ],
    "clang": ["-ffast-math", "-ffinite-math-only"],
}
TAKEN_BACK = [
    "-freciprocal-math",
    "-funsafe-math-optimizations",
    "-fassociative-math -fno-signed-zeros",
]
ROUNDED_PROGRAM = """
#include "internal.h"
double sum(double a, double b) { return (a + b) - b; }
void divide(double *x, int n, double y) { for (int i = 0; i < n; i++) x[i] /= y; }
int main(void)
{
    volatile double one = 1, large = 1e100, five = 5, y = 49;
    double x[8];
    for (int i = 0; i < 8; i++)
        x[i] = five;
    divide(x, (int)(7 + one), y);
    return sum(one, large) != 0 || x[0] != five / y;
}
"""


@pytest.mark.parametrize(("compiler", "flag"), [(c, flag) for c in REFUSED for flag in REFUSED[c]])
def test_flags_that_change_results_are_refused(compiler, flag):
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler}")
    run(compiler, *FLAGS, "-fsyntax-only", "csrc/formats.c")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run(compiler, *FLAGS, flag, "-fsyntax-only", "csrc/formats.c")
    assert "without -ffast-math and its parts" in refused.value.stderr


@pytest.mark.slow
@pytest.mark.parametrize("flag", TAKEN_BACK)
@pytest.mark.skipif(
    not shutil.which("clang") or os.name != "posix" or os.uname().machine != "x86_64",
    reason="needs Clang for x86-64",
)
def test_flags_that_clang_does_not_tell_are_taken_back(tmp_path, flag):
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text(ROUNDED_PROGRAM)
    flags = [*FLAGS, "-Wall", "-Wextra", "-Wno-unused-command-line-argument", "-Werror", "-Icsrc"]
    run("clang", *flags, *flag.split(), "-c", source, "-o", f"{program}.o")
    run("clang", f"{program}.o", "-o", program)
    run(program)


# ---- what other processors have

MADE_UP = """
#include <cpuid.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int lacks(const char *what) { return strcmp(getenv("LACKS"), what) == 0; }
#define UNLESS(what, bits) (lacks(what) ? 0 : (uint32_t)(bits))
#define FUSED_ADAMW_PROCESSOR_H
enum { EAX, EBX, ECX };
static uint32_t cpuid(uint32_t leaf, int index)
{
    if (leaf == 0 && index == EAX)
        return 7 - (uint32_t)lacks("leaf");
    if (leaf == 1 && index == ECX)
        return UNLESS("avx", bit_AVX) | UNLESS("osxsave", bit_OSXSAVE) | UNLESS("fma", bit_FMA);
    if (leaf == 7 && index == EBX)
        return UNLESS("bmi", bit_BMI) | UNLESS("bmi2", bit_BMI2) | UNLESS("avx2", bit_AVX2) |
               UNLESS("avx512f", bit_AVX512F) | UNLESS("avx512dq", bit_AVX512DQ) |
               UNLESS("avx512cd", bit_AVX512CD) | UNLESS("avx512bw", bit_AVX512BW) |
               UNLESS("avx512vl", bit_AVX512VL);
    if (leaf == 0x80000001 && index == ECX)
        return UNLESS("lzcnt", bit_LZCNT);
    return 0;
}
static uint32_t saved_registers(void) { return lacks("ymm") ? 3 : lacks("zmm") ? 7 : 0xe7; }
#if defined(MACOS)
#define __APPLE__ 1
#endif
#include "dispatch.c"
const fused_adamw_kernels fused_adamw_avx2_kernels, fused_adamw_avx512_kernels;
const fused_adamw_kernels fused_adamw_baseline_kernels;
int main(void)
{
    for (int i = 0; fused_adamw_isa_at(i) != NULL; i++)
        if (fused_adamw_isa_available(fused_adamw_isa_at(i)))
            puts(fused_adamw_isa_name(fused_adamw_isa_at(i)));
}
"""
LESS_THAN_AVX2 = ["leaf", "avx", "osxsave", "fma", "bmi", "bmi2", "avx2", "lzcnt", "ymm"]
LESS_THAN_AVX512 = ["avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl", "zmm"]


@needs_cc
@pytest.mark.slow
@pytest.mark.skipif(
    os.name != "posix" or os.uname().machine != "x86_64", reason="features of x86-64"
)
@pytest.mark.parametrize("system", ["", "-DMACOS"], ids=["others", "macOS"])
def test_an_instruction_set_takes_all_that_its_kernels_are_compiled_for(tmp_path, system):
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text(MADE_UP)
    run(CC, *FLAGS, *system.split(), "-Icsrc", source, "-o", program)
    target = re.search(r'USING\("(avx512f[^"]*)"', (ROOT / "csrc" / "avx512.c").read_text())
    assert set(target[1].split(",")) < set(LESS_THAN_AVX512)

    def found(lacks):
        return run(program, env=os.environ | {"LACKS": lacks}).split()

    assert found("nothing") == ["avx512", "avx2", "sse2"]
    expected = {x: ["avx2", "sse2"] for x in LESS_THAN_AVX512}
    if system:  # which saves these registers from their first use on
        expected["zmm"] = ["avx512", "avx2", "sse2"]
    assert {x: found(x) for x in LESS_THAN_AVX512} == expected
    assert {x: found(x) for x in LESS_THAN_AVX2} == {x: ["sse2"] for x in LESS_THAN_AVX2}


# ---- sizes of stacks

STACK_PROGRAM = """
#include "threads.c"
#include <stdio.h>
int main(void) { printf("%zu", stack_size_in("OMP_STACKSIZE")); }
"""
STACKS = {
    "": 0,
    "512": 512 << 10,
    "512k": 512 << 10,
    "4096B": 4096,
    "4096 b": 4096,
    "8M": 8 << 20,
    " 16 m ": 16 << 20,
    "2G": 2 << 30,
    "3\tg": 3 << 30,
    str((1 << 54) - 1): ((1 << 54) - 1) << 10,
    str(1 << 54): 0,
    "many": 0,
}


@needs_cc
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt" or sys.maxsize < 1 << 32, reason="for POSIX with 64 bits")
def test_sizes_of_stacks_are_read_as_openmp_does(tmp_path, openmp):
    if not openmp:
        pytest.skip("needs OpenMP")
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text(STACK_PROGRAM)
    run(CC, *FLAGS, "-fopenmp", "-Icsrc", source, "-o", program)

    def found(value):
        return int(run(program, env=os.environ | {"OMP_STACKSIZE": value}))

    assert {value: found(value) for value in STACKS} == STACKS
