"""For noxfile.py: the sources of the C library and their flags, and builds with sanitizers."""

from pathlib import Path

import nox

ROOT = Path(__file__).parents[1]
C_LIBRARY = [str(path) for path in sorted((ROOT / "csrc").glob("*.c"))]
C_TESTS = [str(path) for path in sorted((ROOT / "csrc" / "tests").glob("*.c"))]
C_FILES = [*C_LIBRARY, *C_TESTS]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
C_FLAGS = ["-std=c11", "-ffp-contract=off", "-fopenmp", *WARNINGS]
SANITIZED = ["-O1", "-g", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def sanitized_install(
    session: nox.Session, packages: list[str], sanitizer: str, **env: str
) -> None:
    """Install with an extension module that is instrumented."""
    session.install(*packages)
    install = ("--force-reinstall", "--no-deps", "--no-cache-dir", ".")
    compiler = str(ROOT / "tools" / "sanitized_cc")
    session.install(*install, env={"CC": compiler, "SANITIZER": sanitizer, **env})


def preloaded(session: nox.Session, *libraries: str) -> str:
    """The runtimes of sanitizers, which the interpreter does not have itself."""
    paths = [
        session.run("gcc", f"-print-file-name={name}", silent=True, external=True)
        for name in libraries
    ]
    return " ".join(str(path).strip() for path in paths)
