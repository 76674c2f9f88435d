#!/usr/bin/env -S uv run
# /// script
# dependencies = ["nox>=2025.2.9"]
# ///
"""The checks of .ci/run one by one, for the workflows: ``nox -s NAME``, ``nox --list``."""

import os
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"

ROOT = Path(__file__).parent
EXACT = ["-std=c11", "-ffp-contract=off", "-fopenmp", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
SANITIZED = ["-O1", "-g", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
ADDRESS = "-fsanitize=address,undefined"
NO_OPENMP = {"FUSED_ADAMW_NO_OPENMP": "1"}
MORE_RANDOM_TESTS = {"HYPOTHESIS": "nightly", "MUTATED_FILES": "100000", "MUTATED_SECONDS": "1200"}


@nox.session(default=True)
def tests(session: nox.Session) -> None:
    """The tests; arguments go to pytest."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(default=False)
def torch(session: nox.Session) -> None:
    """The tests beside PyTorch: TORCH is a requirement, else ``torch``; arguments go to pytest."""
    session.install(".[dev]", os.environ.get("TORCH", "torch"))
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(default=False)
def nightly(session: nox.Session) -> None:
    """The tests with what will be the next releases, and more of those that draw random cases;
    NIGHTLY_INDEX has the wheels of NumPy."""
    session.install(".[test]")
    index = os.environ.get("NIGHTLY_INDEX")
    extra = ["--extra-index-url", index] if index else []
    session.install("--pre", "--upgrade", *extra, "numpy")
    session.run("python", "-m", "pytest", *session.posargs, env=MORE_RANDOM_TESTS)


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
    # Old versions use what is deprecated in the newest ones of packages that they depend on.
    session.run("python", "-m", "pytest", "-W", "default", *session.posargs)


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
def no_openmp(session: nox.Session) -> None:
    """The tests of a build for one thread."""
    session.install(".[test]", env=NO_OPENMP)
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
    for program, *arguments in (
        ["models"],
        ["faults"],
        ["operations", folder],
        ["handlers", folder],
    ):
        path = f"tests/distributed/programs/{program}.py"
        session.run("mpiexec", "-n", "2", "python", path, *arguments, env=environment)


@nox.session(venv_backend="none", default=False)
def c_library(session: nox.Session) -> None:
    """The C library: warnings, and its tests under sanitizers."""
    compiler, folder = os.environ.get("CC", "cc"), Path(session.create_tmp())
    sources = [str(path) for path in sorted((ROOT / "csrc").glob("*.c"))]
    programs = [str(path) for path in sorted((ROOT / "csrc" / "tests").glob("*.c"))]
    flags = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-c"]
    for source in sources:
        session.run(compiler, *EXACT, *flags, source, "-o", str(folder / "object.o"))
    program = str(folder / "test_kernels")
    session.run(compiler, *EXACT, *SANITIZED, ADDRESS, *sources, *programs, "-lm", "-o", program)
    session.run(program, env={"OMP_WAIT_POLICY": "passive"})


@nox.session(venv_backend="none", default=False)
@nox.parametrize("sanitizer", ["thread", "memory"])
def c_sanitizer(session: nox.Session, sanitizer: str) -> None:
    """The tests of the C library under ThreadSanitizer or MemorySanitizer (which clang alone has).
    Without OpenMP, whose runtime is not instrumented: several threads call the library."""
    program = str(Path(session.create_tmp()) / "test_kernels")
    compiler = os.environ.get("CC", "clang")
    exact = [flag for flag in EXACT if flag != "-fopenmp"]
    sources = [str(path) for path in sorted((ROOT / "csrc").rglob("*.c"))]
    flag = f"-fsanitize={sanitizer}"
    session.run(compiler, *exact, *SANITIZED, flag, *sources, "-lm", "-o", program)
    session.run(program, *(["threads"] if sanitizer == "thread" else []))


def sanitized_install(session: nox.Session, packages: list[str], flag: str, **env: str) -> None:
    """Install with an extension module that is instrumented. CFLAGS come before the options that
    setup.py adds, of which -O3 takes minutes here."""
    wrapper = Path(session.create_tmp()) / "cc"
    wrapper.write_text(f'#!/bin/sh\nexec gcc "$@" {" ".join(SANITIZED)} {flag}\n')
    wrapper.chmod(0o755)
    session.install(*packages)
    install = ("--force-reinstall", "--no-deps", "--no-cache-dir", ".")
    session.install(*install, env={"CC": str(wrapper), **env})


def preloaded(session: nox.Session, *libraries: str) -> str:
    """The runtimes of sanitizers, which the interpreter does not have itself."""
    paths = [
        session.run("gcc", f"-print-file-name={name}", silent=True, external=True)
        for name in libraries
    ]
    return " ".join(str(path).strip() for path in paths)


@nox.session(default=False)
def sanitized_python(session: nox.Session) -> None:
    """The tests of arrays, state and checkpoints under AddressSanitizer and
    UndefinedBehaviorSanitizer; arguments go to pytest."""
    sanitized_install(session, [".[test]"], ADDRESS)
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
    session.run("python", "-m", "pytest", *options, env=environment)


@nox.session(default=False)
def thread_sanitizer(session: nox.Session) -> None:
    """Tests of the off-loading optimizer, whose updates have a thread of their own, under
    ThreadSanitizer; arguments go to pytest."""
    torch = os.environ.get("TORCH", "torch")
    sanitized_install(session, [".[test]", torch], "-fsanitize=thread", **NO_OPENMP)
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
    sources = [str(path) for path in sorted((ROOT / "csrc").rglob("*.c"))]
    program = os.environ.get("CLANG_TIDY", "clang-tidy")
    for flags in (["-fopenmp"], []):
        session.run(program, "--quiet", *sources, "--", "-std=c11", *flags, external=True)


@nox.session(default=True)
def lint(session: nox.Session) -> None:
    """Linters and type checkers of the sources."""
    session.install(".[dev]", "codespell")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("cython-lint", "src/fused_adamw")
    session.run("codespell")
    session.run(
        "stubtest",
        "fused_adamw._core",
        "--allowlist",
        "tools/stubtest_allowlist.txt",
        "--mypy-config-file",
        "pyproject.toml",
    )


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
