"""Compile the C library for platforms that this machine is not: ``compile_checks.py``.

Its tests are run on those that this machine can run: musl on its own processor, on others with
QEMU (``qemu-user-static``), Windows with Wine (``wine``); without threads.

Warnings are errors. Zig's compiler has the headers of all these systems (``pip install ziglang``).
clang-cl is Clang with the options of Visual C++ (``CLANG``, or clang where there is one); since the
headers of Visual C++ are not free, the few declarations that the library needs are made here. The
side of Visual C++ in the sources is compiled by Clang, too, with a flag for each file. The objects
for x86-64 have to use each instruction set, and no multiplication fused with an addition.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from c_library import SOURCES, TESTS, WARNINGS

FLAGS = "-std=c11 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=off -fvisibility=hidden"
TARGETS = {  # and whether they have OpenMP
    "x86_64-linux-gnu.2.17": True,
    "aarch64-linux-gnu.2.17": True,
    "s390x-linux-gnu": True,
    "x86_64-linux-musl": True,
    "aarch64-linux-musl": True,
    "x86_64-macos": False,
    "aarch64-macos": False,
    "x86_64-windows-gnu": False,
    "aarch64-windows-gnu": False,
}
RUN_BY = {  # targets whose tests are run, and by what
    "x86_64-linux-musl": None,
    "aarch64-linux-musl": "qemu-aarch64-static",
    "s390x-linux-musl": "qemu-s390x-static",
    "x86_64-windows-gnu": "wine",
}
VISUAL_C = ["--driver-mode=cl", "/O2", "/fp:precise", "/std:c11", "/W4", "/WX"]
CLANG_CL = [f"/clang:{x}" for x in ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")]
VISUAL_C_FLAGS = {"avx2.c": ["/arch:AVX2"], "avx512.c": ["/arch:AVX512"]}
HEADERS = {
    "math.h": """
double sqrt(double), fabs(double), log(double), expm1(double);
float sqrtf(float), fabsf(float);
#define isfinite(x) __builtin_isfinite(x)
#define isnan(x) __builtin_isnan(x)
#define NAN __builtin_nanf("")
""",
    "string.h": """
#include <stddef.h>
void *memcpy(void *, const void *, size_t), *memset(void *, int, size_t);
int strcmp(const char *, const char *);
""",
    "stdlib.h": """
#include <stddef.h>
void *malloc(size_t);
void free(void *);
""",
    "malloc.h": """
void *_aligned_malloc(size_t, size_t);
void _aligned_free(void *);
""",
    "setjmp.h": "typedef int jmp_buf[64];",
}
# Vector registers that the kernels of a file have to use; in all others only those of SSE2 may be.
REGISTERS = {"avx2": "ymm", "avx512": "zmm"}


def compile_all(
    name: str, compiler: list[str], folder: Path, flags_of: dict[str, list[str]]
) -> None:
    """Compile all sources to objects in a folder."""
    folder.mkdir()
    for source in SOURCES:
        output = folder / f"{source.stem}.o"
        # "--", since the path may begin like an option, as /Users does.
        to = [f"/Fo{output}", "--"] if "--driver-mode=cl" in compiler else ["-o", output]
        subprocess.run([*compiler, *flags_of.get(source.name, []), "-c", *to, source], check=True)
    if "x86_64" in name and "macos" not in name and shutil.which("objdump"):
        check_instructions(folder)
    print(f"{name}: {len(SOURCES)} files", flush=True)


def check_instructions(folder: Path) -> None:
    for file in sorted(folder.glob("*.o")):
        listing = subprocess.run(
            ["objdump", "-d", file], check=True, capture_output=True, text=True
        )
        used = set(re.findall(r"%([yz]mm)\d", listing.stdout))
        wanted = REGISTERS.get(file.stem)
        if (wanted is None and used) or (wanted is not None and wanted not in used):
            sys.exit(f"{file.parent.name}/{file.stem}.c must use {wanted}; found {sorted(used)}")
        if fused := re.search(r"\bvfn?m(add|sub)\w+", listing.stdout):
            sys.exit(f"{file.parent.name}/{file.stem}.c must not use {fused[0]}")


def zig(target: str, openmp: bool, folder: Path) -> list[str]:
    flags = [*FLAGS.split(), *WARNINGS]
    if "macos" in target:
        flags.append("-DFUSED_ADAMW_DISPATCH")
    if "windows" not in target:
        flags.append("-fPIC")
    found = ["gcc", "-print-file-name=include/omp.h"]
    header = subprocess.run(found, capture_output=True, text=True).stdout.strip() if openmp else ""
    if os.path.isabs(header):  # Zig has none
        (folder / "openmp").mkdir(exist_ok=True)
        shutil.copy(header, folder / "openmp")
        flags += ["-fopenmp", "-isystem", str(folder / "openmp")]
    return [sys.executable, "-m", "ziglang", "cc", "-target", target, *flags]


def run_tests(target: str, runner: str | None, folder: Path) -> None:
    """Compile the tests of the C library for a target, and run them if this machine can."""
    is_own = platform.machine() == target.split("-", 1)[0] and sys.platform == "linux"
    if (runner is None and not is_own) or (runner is not None and shutil.which(runner) is None):
        print(f"{target}: tests not run, no {runner or 'such processor'}", flush=True)
        return
    program = folder / f"{target}.exe"
    compiler = zig(target, openmp=False, folder=folder)
    subprocess.run([*compiler, *SOURCES, *TESTS, "-o", program, "-lm"], check=True)
    environment = os.environ | {"WINEPREFIX": str(folder / "wine"), "WINEDEBUG": "-all"}
    command = [program] if runner is None else [runner, program]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines() or ["no output"]
    print(f"{target}, tests {lines[-1]}", flush=True)
    if done.returncode != 0:
        sys.exit("\n".join(lines))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for target, openmp in TARGETS.items():
            compile_all(target, zig(target, openmp, folder), folder / target, {})
        for target, runner in RUN_BY.items():
            run_tests(target, runner, folder)
        clang = os.environ.get("CLANG", "clang")
        if shutil.which(clang) is None:
            print("clang-cl: skipped, no Clang")
            return
        headers = folder / "headers"
        headers.mkdir()
        for file, text in HEADERS.items():
            (headers / file).write_text(text)
        common = [clang, "--target=x86_64-pc-windows-msvc", *VISUAL_C, "-imsvc", str(headers)]
        compile_all("x86_64, clang-cl", [*common, *CLANG_CL], folder / "clang-cl", {})
        flags = [*CLANG_CL, "-U__clang__", "-Wno-unknown-pragmas"]  # of its fp_contract
        visual_c = "x86_64, as by Visual C++"
        compile_all(visual_c, [*common, *flags], folder / "visual-c", VISUAL_C_FLAGS)


if __name__ == "__main__":
    main()
