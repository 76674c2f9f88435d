"""From how many elements on a second thread pays: for the constants of csrc/dispatch.c.

    python benches/bench_threads.py

MIN_ELEMENTS_PER_THREAD and MIN_ELEMENTS_AFTER_FORK keep small steps on one thread, so an installed
package cannot show what they would take on two. This script copies the sources to a temporary
folder, writes small numbers for both constants, builds the copy there (setup.py build_ext, with the
Cython and setuptools of this environment), and times one thread against two in a process of its
own and in a child that it forks.

Two threads break even at the size from which on they are never the slower. It should be no more
than 2 * MIN_ELEMENTS_PER_THREAD in the parent, and MIN_ELEMENTS_AFTER_FORK in the child, where a
step makes its threads anew. Run it on an otherwise idle machine: a second thread that has to wait
for a core makes both numbers too large.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
SOURCES = ("csrc", "src", "setup.py", "pyproject.toml", "README.md", "LICENSE")
SMALL = {"MIN_ELEMENTS_PER_THREAD": 512, "MIN_ELEMENTS_AFTER_FORK": 1024}
SIZES = [2**k for k in range(10, 24)]
ROUNDS = 9


# ---------------------------------------------------------------------------- the copy


def copy_sources(folder):
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("*.so", "*.pyd"))
        else:
            shutil.copy(source, folder)


def with_constants(text, constants):
    for name, value in constants.items():
        text, count = re.subn(rf"(#define {name}) \d+", rf"\1 {value}", text)
        if count != 1:
            sys.exit(f"csrc/dispatch.c defines {name} {count} times as a number; expected once")
    return text


def build(folder):
    copy_sources(folder)
    dispatch = folder / "csrc" / "dispatch.c"
    dispatch.write_text(with_constants(dispatch.read_text(), SMALL))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, check=True)


# ---------------------------------------------------------------------------- the measurement


def measure():
    """{place: {size: seconds of each round on [one, two] threads}}, by the package on the path."""
    return {"parent": seconds_by_size(), "forked child": in_forked_child(seconds_by_size)}


def seconds_by_size():
    import numpy as np

    from fused_adamw import fused_adamw
    from fused_adamw.bench.harness import time_block

    seconds = {}
    for size in SIZES:
        arrays = [np.full(size, value, np.float32) for value in (1, 0.1, 0.1, 0.1)]
        steps = [
            lambda threads=threads, arrays=arrays: fused_adamw(*arrays, t=9, num_threads=threads)
            for threads in (1, 2)
        ]
        seconds[size] = [[time_block(step) for step in steps] for _ in range(ROUNDS)]
    return seconds


def in_forked_child(function):
    receive, send = os.pipe()
    if os.fork() == 0:
        with os.fdopen(send, "w") as pipe:
            json.dump(function(), pipe)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        answer = json.load(pipe)
    os.wait()
    return answer


# ---------------------------------------------------------------------------- the table


def rows(seconds):
    for size, rounds in seconds.items():
        one, two = (median(times) for times in zip(*rounds, strict=True))
        gain = median(a / b for a, b in rounds)
        yield int(size), f"{one * 1e6:.2f}", f"{two * 1e6:.2f}", f"{gain:.2f}"


def break_even(seconds):
    """The smallest size from which on two threads are at least as fast; None if there is none."""
    found = None
    for size, *_, gain in reversed(list(rows(seconds))):
        if float(gain) < 1:
            return found
        found = size
    return found


def report(measured):
    from tables import table

    columns = ("elements", "1 thread, µs", "2 threads, µs", "gain")
    constants = re.findall(r"#define (MIN_\w+) (\d+)", (ROOT / "csrc/dispatch.c").read_text())
    for place, seconds in measured.items():
        texts = ([f"{size:,}", *others] for size, *others in rows(seconds))
        print(f"\n### {place}: even from {break_even(seconds)} elements on\n")
        print(*table(columns, texts), sep="\n")
    print("\nNow in csrc/dispatch.c:", ", ".join(f"{name} {value}" for name, value in constants))


def main():
    if sys.argv[1:] == ["--measure"]:
        print(json.dumps(measure()))
        return
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        environment = {**os.environ, "PYTHONPATH": str(Path(folder, "src"))}
        command = [sys.executable, __file__, "--measure"]
        answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    report(json.loads(answer.stdout))


if __name__ == "__main__":
    main()
