"""Builds the one extension module; everything else is in pyproject.toml."""

import gzip
import itertools
import os
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import BaseError, CompileError, LinkError

# Free-threaded CPython has no stable ABI before 3.15: there, a wheel serves one version.
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")

C_SOURCES = sorted(str(path) for path in Path("csrc").glob("*.c"))

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
or build for one thread:  FUSED_ADAMW_THREADS=none pip install .
"""

DISPATCH_PROBE = """
#include <dispatch/dispatch.h>
static void count(void *counts, size_t part)
{
    ((int *)counts)[part] += 1;
}
int main(void)
{
    int counts[2] = {0, 0};
    dispatch_queue_t any = 0;
    dispatch_apply_f(2, any, counts, count);
    return counts[0] != 1 || counts[1] != 1;
}
"""

NO_DISPATCH = """
FUSED_ADAMW_THREADS=dispatch splits the work of fused-adamw with Grand Central Dispatch, but here a
program that uses it could not be compiled, linked and run:
    {reason}
Outside of macOS install https://github.com/swiftlang/swift-corelibs-libdispatch and name its
folders in CFLAGS and LDFLAGS (CONTRIBUTING.md has the command),
or build with OpenMP:  FUSED_ADAMW_THREADS=openmp pip install .
"""

# Which library provides the threads of a build: the values of FUSED_ADAMW_THREADS.
THREADS = ("openmp", "dispatch", "none")

# These override what CFLAGS and LDFLAGS may set. At the link, too: -ffast-math, -Ofast and
# -funsafe-math-optimizations add an object there that makes every process which loads the module
# flush subnormal numbers to zero.
EXACT_FLAGS = ("-fno-fast-math", "-fno-unsafe-math-optimizations", "-O3")
# The same, where the compiler knows them.
OPTIONAL_EXACT_FLAGS = ("-fno-single-precision-constant", "-mno-daz-ftz")

# Debug information, and with it the build ID, is the same in whatever folder this is built.
REPRODUCIBLE_FLAGS = (f"-ffile-prefix-map={os.getcwd()}=.",)


# Visual C++ has no attribute that lets a function use an instruction set.
VISUAL_C_FLAGS = {"avx2.c": ["/arch:AVX2"], "avx512.c": ["/arch:AVX512"]}

# clang-cl takes those of GCC, too, if they are marked.
CLANG_CL_FLAGS = [
    f"/clang:{flag}" for flag in ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
]


def c_flags(compiler_type: str) -> list[str]:
    """Keep every rounding of the formula where it is written."""
    if compiler_type == "msvc":
        return ["/O2", "/fp:precise", "/std:c11"]
    return [
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",
        "-fvisibility=hidden",  # csrc/fused_adamw.h marks what is exported
    ]


def with_own_flags(compile_files: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """A function that compiles files as this one does, each with its own flags as well."""

    def compile_each(
        sources: list[str], *arguments: Any, extra_postargs: list[str] | None = None, **options: Any
    ) -> list[str]:
        objects = []
        for source in sources:
            flags = [*(extra_postargs or []), *VISUAL_C_FLAGS.get(Path(source).name, [])]
            objects += compile_files([source], *arguments, extra_postargs=flags, **options)
        return objects

    return compile_each


def at_the_same_time(compile_files: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """A function that compiles files as this one does, one for each processor at a time."""

    def compile_all(sources: list[str], *arguments: Any, **options: Any) -> list[str]:
        def compile_one(source: str) -> list[str]:
            return compile_files([source], *arguments, **options)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(itertools.chain.from_iterable(pool.map(compile_one, sources)))

    return compile_all


class BuildExt(build_ext):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True  # the flags below are not among the dates that setuptools compares

    def get_ext_filename(self, fullname: str) -> str:
        """Setuptools under Python 3.15 adds the platform, which older versions do not look for."""
        name = super().get_ext_filename(fullname)
        if not ABI3 or os.name == "nt" or ".abi3" not in name:
            return name
        return name[: name.index(".abi3")] + ".abi3.so"

    def build_extensions(self) -> None:
        more = self.flags_of_windows() if self.compiler.compiler_type == "msvc" else []
        if self.compiler.compiler_type == "unix":  # setuptools compiles one file after the other
            self.compiler.compile = at_the_same_time(self.compiler.compile)
        compile_flags, link_flags = self.thread_flags()
        exact = self.exact_flags()
        for extension in self.extensions:
            extension.extra_compile_args += [
                *exact,
                *self.reproducible_flags(),
                *c_flags(self.compiler.compiler_type),
                *more,
                *compile_flags,
            ]
            extension.extra_link_args += link_flags + exact
        super().build_extensions()

    def flags_of_windows(self) -> list[str]:
        """Take clang-cl where CC names it, which setuptools does not read on Windows; else Visual
        C++, which gets a flag for each file of kernels."""
        compiler = os.environ.get("CC", "")
        if Path(compiler).stem == "clang-cl":
            self.compiler.initialize()  # finds the linker, and Visual C++
            self.compiler.cc = compiler
            return CLANG_CL_FLAGS
        if self.plat_name == "win-amd64":
            self.compiler.compile = with_own_flags(self.compiler.compile)
        return []

    def exact_flags(self) -> list[str]:
        if self.compiler.compiler_type == "msvc":
            return []
        return [*EXACT_FLAGS, *filter(self.is_known, OPTIONAL_EXACT_FLAGS)]

    def reproducible_flags(self) -> list[str]:
        if self.compiler.compiler_type == "msvc":
            return []
        return [*filter(self.is_known, REPRODUCIBLE_FLAGS)]

    def is_known(self, flag: str) -> bool:
        try:
            self.compile_probe("int main(void) { return 0; }", ["-Werror", flag])
        except CompileError:
            return False
        return True

    def thread_flags(self) -> tuple[list[str], list[str]]:
        """Of the compiler, and of the linker."""
        # A libomp on macOS could be the second one in a process with PyTorch, which LLVM's runtime
        # ends; Grand Central Dispatch is part of the system.
        default = "dispatch" if sys.platform == "darwin" else "openmp"
        threads = os.environ.get("FUSED_ADAMW_THREADS") or default
        if threads not in THREADS:
            names = ", ".join(THREADS)
            raise BaseError(f"FUSED_ADAMW_THREADS must be one of {names}; got {threads!r}")
        if threads == "dispatch":
            # Outside of macOS, of https://github.com/swiftlang/swift-corelibs-libdispatch.
            link_flags = [] if sys.platform == "darwin" else ["-ldispatch"]
            return self.tried(DISPATCH_PROBE, ["-DFUSED_ADAMW_DISPATCH"], link_flags, NO_DISPATCH)
        return self.openmp_flags() if threads == "openmp" else ([], [])

    def openmp_flags(self) -> tuple[list[str], list[str]]:
        visual_c = self.compiler.compiler_type == "msvc"
        flags = (["/openmp"], []) if visual_c else (["-fopenmp"], ["-fopenmp"])
        return self.tried(OPENMP_PROBE, *flags, NO_OPENMP)

    def tried(
        self, probe: str, compile_flags: list[str], link_flags: list[str], message: str
    ) -> tuple[list[str], list[str]]:
        """The flags, if a program that is built with them does what it should."""
        try:
            self.compile_probe(probe, compile_flags, link_flags)
        except (CompileError, LinkError, OSError, subprocess.SubprocessError) as error:
            raise BaseError(message.format(reason=error)) from None
        return compile_flags, link_flags

    def compile_probe(
        self, text: str, compile_flags: list[str], link_flags: list[str] | None = None
    ) -> None:
        """Compile a program; with ``link_flags`` link it, too, and run it if it can be started."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(text)
            objects = self.compiler.compile([str(source)], folder, extra_postargs=compile_flags)
            if link_flags is None:
                return
            program = str(Path(folder, "probe"))
            # setuptools links modules with these, but no programs.
            given = [flag for name in ("CFLAGS", "LDFLAGS") for flag in flags_in(name)]
            self.compiler.link_executable(
                objects, program, extra_preargs=given, extra_postargs=link_flags
            )
            try:
                subprocess.run([program], check=True, timeout=60)
            except OSError as error:  # it is for another machine, or the folder for no programs
                print(f"built, but not run: a program of {compile_flags}: {error}")


class SDist(sdist):
    """With SOURCE_DATE_EPOCH the archive depends on the contents of the files only."""

    def make_archive(self, base_name: str, format: str, *args: object, **options: object) -> str:
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None or format != "gztar":
            return super().make_archive(base_name, format, *args, **options)
        folder, path = Path(str(options["base_dir"])), Path(f"{base_name}.tar.gz")
        with (
            open(path, "wb") as file,
            gzip.GzipFile("", "wb", mtime=int(epoch), fileobj=file) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for member in (folder, *sorted(folder.rglob("*"))):
                archive.add(member, recursive=False, filter=lambda found: normalized(found, epoch))
        return str(path)


def normalized(member: tarfile.TarInfo, epoch: str) -> tarfile.TarInfo:
    """Without what depends on the user and on the moment of the build."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = int(epoch)
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def flags_in(variable: str) -> list[str]:
    return shlex.split(os.environ.get(variable, ""))


core = Extension(
    "fused_adamw._core",
    sources=["src/fused_adamw/_ext/core.pyx", *C_SOURCES],
    depends=sorted(str(path) for path in Path("csrc").rglob("*.[hi]*")),
    include_dirs=["csrc"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if ABI3 else [],
    py_limited_api=ABI3,
)

setup(
    ext_modules=cythonize([core], language_level=3, include_path=["src/fused_adamw/_ext"]),
    cmdclass={"build_ext": BuildExt, "sdist": SDist},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
