"""For noxfile.py: the files of the C library and their flags, and builds with sanitizers."""

import nox
from c_library import ROOT, SOURCES, TESTS, WARNINGS

C_LIBRARY = list(map(str, SOURCES))
C_FILES = [*C_LIBRARY, *map(str, TESTS)]
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
