"""Builds the one extension module; everything else is said in pyproject.toml."""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

# Free-threaded CPython has no stable ABI before 3.15: there, a wheel serves one version.
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")

C_SOURCES = ("dispatch", "parallel", "scalars", "formats")

OPENMP_PROBE = """
#include <omp.h>
int main(void)
{
    int threads = 0;
#pragma omp parallel reduction(+ : threads)
    threads += 1;
    return threads < 1 || omp_get_max_threads() < 1;
}
"""

NO_OPENMP = """
fused-adamw splits its work over threads with OpenMP, but here a program that uses it could not be
compiled, linked and run:
    {reason}
Install a C compiler with OpenMP:
    Debian, Ubuntu    apt-get install gcc python3-dev       (with clang: libomp-dev)
    Fedora            dnf install gcc libgomp python3-devel (with clang: libomp-devel)
    macOS             xcode-select --install; brew install libomp
or build for one thread:  FUSED_ADAMW_NO_OPENMP=1 pip install .
"""


def c_flags(compiler_type: str) -> list[str]:
    """Optimise, but keep every rounding of the formula where it is written."""
    if compiler_type == "msvc":
        return ["/O2", "/fp:precise", "/std:c11"]
    # The first takes back what CFLAGS may say.
    return [
        "-fno-fast-math",
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",
        "-fvisibility=hidden",  # csrc/fused_adamw.h marks what is exported
    ]


def openmp_flags(compiler_type: str) -> list[tuple[list[str], list[str]]]:
    """(compile, link) flags, to be tried in turn."""
    if compiler_type == "msvc":
        return [(["/openmp"], [])]
    flags = [(["-fopenmp"], ["-fopenmp"])]
    if sys.platform == "darwin":
        # Apple's clang has neither the driver option nor the library, and Homebrew keeps its libomp
        # out of the search path.
        folders = [Path(p) for p in ("/opt/homebrew/opt/libomp", "/usr/local/opt/libomp")]
        kegs = [folder for folder in folders if folder.is_dir()]
        compile_flags = ["-Xpreprocessor", "-fopenmp", *(f"-I{keg}/include" for keg in kegs)]
        flags.append((compile_flags, [*(f"-L{keg}/lib" for keg in kegs), "-lomp"]))
    return flags


class BuildExt(build_ext):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True  # the flags below are not among the dates that setuptools compares

    def build_extensions(self) -> None:
        compile_flags, link_flags = self.find_openmp()
        for extension in self.extensions:
            extension.extra_compile_args += c_flags(self.compiler.compiler_type) + compile_flags
            extension.extra_link_args += link_flags
        super().build_extensions()

    def find_openmp(self) -> tuple[list[str], list[str]]:
        if os.environ.get("FUSED_ADAMW_NO_OPENMP", "0") not in ("", "0"):
            return [], []
        for flags in openmp_flags(self.compiler.compiler_type):
            try:
                self.run_probe(*flags)
                return flags
            except (CompileError, LinkError, OSError, subprocess.SubprocessError) as error:
                reason = error
        raise BaseError(NO_OPENMP.format(reason=reason))

    def run_probe(self, compile_flags: list[str], link_flags: list[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(OPENMP_PROBE)
            objects = self.compiler.compile([str(source)], folder, extra_postargs=compile_flags)
            program = str(Path(folder, "probe"))
            self.compiler.link_executable(objects, program, extra_postargs=link_flags)
            subprocess.run([program], check=True, timeout=60)


core = Extension(
    "fused_adamw._core",
    sources=["src/fused_adamw/_ext/core.pyx", *(f"csrc/{name}.c" for name in C_SOURCES)],
    depends=sorted(str(path) for path in Path("csrc").rglob("*.[hi]*")),
    include_dirs=["csrc"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if ABI3 else [],
    py_limited_api=ABI3,
)

setup(
    ext_modules=cythonize([core], language_level=3, include_path=["src/fused_adamw/_ext"]),
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
