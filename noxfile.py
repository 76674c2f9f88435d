#!/usr/bin/env -S uv run
# /// script
# dependencies = ["nox>=2025.2.9"]
# ///
"""The checks of .ci/run one by one, for the workflows: ``nox -s NAME``, ``nox --list``."""

import os
import sys
from pathlib import Path

import nox

sys.path.append(str(Path(__file__).parent / "tools"))

import nox_coverage
from nox_builds import C_FILES, C_FLAGS, C_LIBRARY, ROOT, SANITIZED, preloaded, sanitized_install

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"

ONE_THREAD = {"FUSED_ADAMW_THREADS": "none"}
MORE_RANDOM_TESTS = {"HYPOTHESIS": "nightly", "MUTATED_FILES": "100000", "MUTATED_SECONDS": "1200"}


@nox.session(default=True)
def tests(session: nox.Session) -> None:
    """The tests; arguments go to pytest."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(default=False)
def torch(session: nox.Session) -> None:
    """The tests with PyTorch, as the requirement TORCH or ``torch``; arguments go to pytest."""
    session.install(".[dev]", os.environ.get("TORCH", "torch"))
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(default=False)
def nightly(session: nox.Session) -> None:
    """The tests with what will be the next releases, and with more random cases.

    NIGHTLY_INDEX has the wheels of NumPy."""
    session.install(".[test]")
    index = os.environ.get("NIGHTLY_INDEX")
    extra = ["--extra-index-url", index] if index else []
    session.install("--pre", "--upgrade", *extra, "numpy")
    session.run("python", "-m", "pytest", *session.posargs, env=MORE_RANDOM_TESTS)


@nox.session(default=False)
def torch_nightly(session: nox.Session) -> None:
    """The tests of what is on top of PyTorch, with its next release; TORCH_NIGHTLY_INDEX has it."""
    index = os.environ.get("TORCH_NIGHTLY_INDEX")
    if not index:
        session.skip("TORCH_NIGHTLY_INDEX is not set")
    session.install(".[dev]")
    session.install("--pre", "--index-url", index, "torch")
    folders = ("tests/torch", "tests/offload", "tests/test_frameworks.py")
    session.run("python", "-m", "pytest", *session.posargs, *folders)


@nox.session(default=False)
def random_order(session: nox.Session) -> None:
    """The tests in an order that differs each time; ``-- --randomly-seed=N`` repeats one."""
    session.install(".[dev]", os.environ.get("TORCH", "torch"), "pytest-randomly")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python="3.11", default=False)
def lowest(session: nox.Session) -> None:
    """The tests with the lowest versions that pyproject.toml allows; PyTorch's with --torch."""
    constraints = Path(session.create_tmp()) / "lowest.txt"
    lines = session.run("python", "tools/lowest_versions.py", silent=True)
    constraints.write_text(str(lines))
    extras = ["test", "examples"]
    if "--torch" in session.posargs:
        extras.append("torch")
        session.posargs.remove("--torch")
    # Without isolation the build has the lowest versions too.
    session.install("-c", str(constraints), "setuptools", "Cython")
    session.install("-c", str(constraints), "--no-build-isolation", f".[{','.join(extras)}]")
    # Old versions use what is deprecated in the newest ones of packages that they depend on; some
    # tests start pytest themselves.
    options = {"PYTEST_ADDOPTS": "-W default"}
    session.run("python", "-m", "pytest", *session.posargs, env=options)


@nox.session(default=False)
@nox.parametrize("isa", ["baseline", "sse2", "avx2", "avx512", "neon"])
def isa(session: nox.Session, isa: str) -> None:
    """The tests with one instruction set."""
    session.install(".[test]")
    program = "import fused_adamw; print(*fused_adamw.runtime_info()['available_isas'])"
    available = str(session.run("python", "-c", program, silent=True)).split()
    if isa not in available:
        session.skip(f"this machine has {', '.join(available)}")
    session.run("python", "-m", "pytest", *session.posargs, env={"FUSED_ADAMW_ISA": isa})


@nox.session(default=False)
def one_thread(session: nox.Session) -> None:
    """The tests of a build for one thread."""
    session.install(".[test]", env=ONE_THREAD)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(default=False)
def openmpi(session: nox.Session) -> None:
    """The programs of the distributed tests under Open MPI; the tests run under MPICH."""
    session.install("mpi4py>=4.1", "openmpi", ".")
    environment = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    folder = session.create_tmp()
    programs = (["models"], ["faults"], ["operations", folder], ["handlers", folder])
    for program, *arguments in programs:
        path = f"tests/distributed/programs/{program}.py"
        session.run("mpiexec", "-n", "2", "python", path, *arguments, env=environment)


@nox.session(venv_backend="none", default=False)
def c_library(session: nox.Session) -> None:
    """The C library: warnings, and its tests under sanitizers."""
    compiler, folder = os.environ.get("CC", "cc"), Path(session.create_tmp())
    flags = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-c"]
    for source in C_LIBRARY:
        session.run(compiler, *C_FLAGS, *flags, source, "-o", str(folder / "object.o"))
    program, checks = str(folder / "test_kernels"), "-fsanitize=address,undefined"
    session.run(compiler, *C_FLAGS, *SANITIZED, checks, *C_FILES, "-lm", "-o", program)
    session.run(program, env={"OMP_WAIT_POLICY": "passive"})


@nox.session(default=False)
def compile_checks(session: nox.Session) -> None:
    """The C library compiled for macOS, Windows, musl and others, and its tests on some."""
    session.install("ziglang>=0.15")
    session.run("python", "tools/compile_checks.py")


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """What the tests run of the C and of the Python code, with PyTorch; arguments go to pytest."""
    nox_coverage.measure(session)


@nox.session(venv_backend="none", default=False)
@nox.parametrize("sanitizer", ["thread", "memory"])
def c_sanitizer(session: nox.Session, sanitizer: str) -> None:
    """The tests of the C library under ThreadSanitizer or MemorySanitizer (which clang alone has).
    Without OpenMP, whose runtime is not instrumented: several threads call the library."""
    program = str(Path(session.create_tmp()) / "test_kernels")
    compiler = os.environ.get("CC", "clang")
    flags = [*(flag for flag in C_FLAGS if flag != "-fopenmp"), f"-fsanitize={sanitizer}"]
    session.run(compiler, *flags, *SANITIZED, *C_FILES, "-lm", "-o", program)
    session.run(program, *(["threads"] if sanitizer == "thread" else []))


@nox.session(default=False)
def sanitized_python(session: nox.Session) -> None:
    """Tests under AddressSanitizer and UndefinedBehaviorSanitizer; arguments go to pytest.

    Those of arrays, state and checkpoints."""
    sanitized_install(session, [".[test]"], "address,undefined")
    folders = [f"tests/{name}" for name in ("core", "state", "checkpoint", "optimizer")]
    environment = {
        # libstdc++, since a library that throws an exception may be loaded later.
        "LD_PRELOAD": preloaded(session, "libasan.so", "libstdc++.so.6"),
        "PYTHONMALLOC": "malloc",  # one allocation for each object, which can be watched
        "ASAN_OPTIONS": "detect_leaks=0",  # of the interpreter
        "OMP_WAIT_POLICY": "passive",
    }
    # Reports are written to file descriptor 2, which pytest must not hide.
    options = ["-q", "--capture=sys", "-m", "not slow", *(session.posargs or folders)]
    # AddressSanitizer adds symbols of its own.
    exports = "tests/core/test_c_library.py::test_the_extension_exports_only_the_api"
    session.run("python", "-m", "pytest", "--deselect", exports, *options, env=environment)


@nox.session(default=False)
def thread_sanitizer(session: nox.Session) -> None:
    """Tests of the off-loading optimizer under ThreadSanitizer; arguments go to pytest.

    Its updates have a thread of their own."""
    torch = os.environ.get("TORCH", "torch")
    sanitized_install(session, [".[test]", torch], "thread", **ONE_THREAD)
    environment = {
        "LD_PRELOAD": preloaded(session, "libtsan.so"),
        "TSAN_OPTIONS": f"suppressions={ROOT}/tools/tsan_suppressions.txt",
        "OMP_NUM_THREADS": "1",  # of PyTorch
    }
    options = ["-q", "--capture=sys", *(session.posargs or ["tests/offload/test_plain.py"])]
    session.run("python", "-m", "pytest", *options, env=environment)


@nox.session(venv_backend="none", default=False)
def tidy(session: nox.Session) -> None:
    """clang-tidy and Clang's static analyzer, as csrc/.clang-tidy says."""
    program = os.environ.get("CLANG_TIDY", "clang-tidy")
    for flags in (["-fopenmp"], []):
        session.run(program, "--quiet", *C_FILES, "--", "-std=c11", *flags, external=True)


@nox.session(default=True)
def lint(session: nox.Session) -> None:
    """Linters and type checkers of the sources; stubtest imports all modules, PyTorch's too."""
    session.install(".[dev]", "codespell", os.environ.get("TORCH", "torch"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    for system in ("linux", "darwin", "win32"):
        session.run("mypy", "--platform", system)
    session.run("cython-lint", "src/fused_adamw")
    session.run("codespell")
    files = ("--allowlist", "tools/stubtest_allowlist.txt", "--mypy-config-file", "pyproject.toml")
    session.run("stubtest", "fused_adamw", *files)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The documentation site, in build/site; warnings are errors."""
    session.install(".[docs]")
    session.run("sphinx-build", "-qW", "docs", "build/site")


@nox.session(default=False)
def metadata(session: nox.Session) -> None:
    """Checks of what surrounds the sources: metadata, manifest, workflows."""
    session.install(*nox.project.dependency_groups(nox.project.load_toml(), "metadata"))
    session.run("sp-repo-review", ".")
    session.run("validate-pyproject", "pyproject.toml")
    session.run("check-manifest")
    session.run("zizmor", "--offline", ".")
    for schema, files in (
        ("vendor.github-workflows", sorted(ROOT.glob(".github/workflows/*.yml"))),
        ("vendor.dependabot", [ROOT / ".github" / "dependabot.yml"]),
    ):
        session.run("check-jsonschema", "--builtin-schema", schema, *map(str, files))


@nox.session(venv_backend="none", default=False)
def release(session: nox.Session) -> None:
    """All artifacts that this machine can make, checked and installed."""
    session.run("tools/make_release", *session.posargs, external=True)


if __name__ == "__main__":
    nox.main()
