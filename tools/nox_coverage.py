"""For noxfile.py: what the tests run of the C and of the Python code."""

import json
import os
import shutil
from pathlib import Path

import nox
from nox_builds import C_FILES, C_FLAGS, ROOT

# Percent of the lines of csrc, and of the lines and branches of the Python code.
COVERED_C, COVERED_PYTHON = 95.0, 90.0
# Tests that are left out while coverage is measured.
WITHOUT_COUNTS = (
    # They start builds or other tests, none of which count.
    *("core/test_build.py", "core/test_wheel.py", "offload/test_torch_class.py"),
    # They go through the allocations, or the system calls, of a process: the measurement's too.
    *("core/test_no_memory.py", "checkpoint/test_killed_at_calls.py"),
)


def measure(session: nox.Session) -> None:
    """Run the tests and show what they run; less than has to be fails the session."""
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder)
    folder.mkdir()
    session.env["COVERAGE_FILE"] = str(folder / ".coverage")
    build_to_count(session, folder)
    ignored = [f"--ignore=tests/{path}" for path in WITHOUT_COUNTS]
    lost = folder / "lost_counts.txt"
    counting = {
        "PYTHONPATH": str(ROOT / "tools" / "coverage"),
        "OMP_WAIT_POLICY": "passive",
        "GCOV_ERROR_FILE": str(lost),  # not to standard error, which tests compare
    }
    command = ("python", "-m", "coverage", "run", "-m", "pytest", *ignored, *session.posargs)
    session.run(*command, env=counting)
    if lost.exists():
        session.error(f"counts of C code were lost: {lost.read_text()[:1000]}")
    rows = (
        ("C, lines", percent_of_c(session, folder), COVERED_C),
        ("Python, lines and branches", percent_of_python(session, folder), COVERED_PYTHON),
    )
    table = "| code | covered | at least |\n|---|--:|--:|\n"
    table += "".join(f"| {code} | {found:.1f} % | {least:g} % |\n" for code, found, least in rows)
    session.log("coverage:\n" + table)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as file:
            file.write(table)
    if any(found < least for _, found, least in rows):
        session.error("less is covered than has to be")


def build_to_count(session: nox.Session, folder: Path) -> None:
    """Install the package from a build in `folder`, of which each process writes its counts there;
    and the C tests likewise."""
    cc, counting = os.environ.get("CC", "gcc"), "--coverage"
    # The file that Cython makes is large, and its lines are not those of its sources.
    only = "-fprofile-filter-files=csrc/"
    helper = str(folder / "write_counts.o")
    source = "tools/coverage/write_counts.c"
    session.run(cc, "-fPIC", "-c", source, "-o", helper, external=True)
    (folder / "setup.cfg").write_text(f"[build]\nbuild_base = {folder / 'build'}\n")
    environment = {
        "DIST_EXTRA_CONFIG": str(folder / "setup.cfg"),
        "CFLAGS": f"{counting} {only}",
        "LDFLAGS": f"{counting} {helper} -Wl,--exclude-libs,ALL",
    }
    packages = ("coverage>=7.10.7", "gcovr>=8.8", os.environ.get("TORCH", "torch"))
    session.install(".[test,examples]", *packages, env=environment)
    program = str(folder / "test_kernels")
    session.run(cc, *C_FLAGS, "-O2", counting, *C_FILES, "-lm", "-o", program, external=True)
    session.run(program, env={"OMP_WAIT_POLICY": "passive"}, external=True)


def percent_of_c(session: nox.Session, folder: Path) -> float:
    """Of the lines; a line of an .inc file counts once, whichever instruction set runs it."""
    results = folder / "c.json"
    only = ("--filter", "csrc/", "--exclude", "csrc/tests/")
    merged = ("--merge-mode-functions", "separate", "--merge-lines")
    many = "--gcov-suspicious-hits-threshold=0"  # billions of runs of a line are no error here
    output = ("--txt", "-", "--json-summary", str(results))
    session.run("gcovr", "--root", ".", *only, *merged, many, *output, str(folder))
    return float(json.loads(results.read_text())["line_percent"])


def percent_of_python(session: nox.Session, folder: Path) -> float:
    """Of the lines and branches; warnings name files of processes that tests have killed."""
    results = folder / "python.json"
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", "--skip-covered", "--show-missing")
    session.run("coverage", "json", "--quiet", "-o", str(results))
    return float(json.loads(results.read_text())["totals"]["percent_covered"])
