"""How many elements make a second thread worthwhile: for two constants of csrc/.

    python benches/bench_threads.py

MIN_ELEMENTS_PER_THREAD and MIN_ELEMENTS_IN_NEW_THREAD keep small steps on one thread, so an
installed package cannot show what they would take on two. This script copies the sources to a
temporary folder, makes both constants small, builds the copy there (setup.py build_ext, with the
Cython and setuptools of this environment), and times one thread against two, in a new process and
in a child that this process forks.

Two threads break even at the smallest size above which they are never slower. It should be at most
2 * MIN_ELEMENTS_PER_THREAD in the parent, and MIN_ELEMENTS_IN_NEW_THREAD in the child, where each
step starts its threads again. Run it on an otherwise idle machine: a second thread that has to wait
for a core makes both numbers too large.
"""

import argparse
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
SMALL = {"MIN_ELEMENTS_PER_THREAD": 512, "MIN_ELEMENTS_IN_NEW_THREAD": 1024}
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


def definition(name):
    """A regular expression for a macro or an enumerator, with or without the prefix of the API."""
    return rf"(\b(?:FUSED_ADAMW_)?{name}(?: =)? )(\d+)"


def read_constants(csrc):
    """{name: (file, value)}; each has to be defined exactly once."""
    files = sorted(path for path in csrc.iterdir() if path.suffix in (".c", ".h", ".inc"))
    constants = {}
    for name in SMALL:
        found = [(f, int(v)) for f in files for _, v in re.findall(definition(name), f.read_text())]
        if len(found) != 1:
            sys.exit(f"{name} must be defined as a number once in csrc/; found {len(found)} times")
        constants[name] = found[0]
    return constants


def build(folder):
    copy_sources(folder)
    for name, (path, _) in read_constants(folder / "csrc").items():
        path.write_text(re.sub(definition(name), rf"\g<1>{SMALL[name]}", path.read_text()))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, check=True)


# ---------------------------------------------------------------------------- the measurement


def measure():
    """{place: {size: seconds of each round on [one, two] threads}}, of the package on the path."""
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
    """The smallest size above which two threads are never slower; None if there is none."""
    found = None
    for size, *_, gain in reversed(list(rows(seconds))):
        if float(gain) < 1:
            return found
        found = size
    return found


def report(measured):
    from tables import table

    columns = ("elements", "1 thread, µs", "2 threads, µs", "gain")
    constants = read_constants(ROOT / "csrc")
    for place, seconds in measured.items():
        texts = ([f"{size:,}", *others] for size, *others in rows(seconds))
        print(f"\n### {place}: break-even at {break_even(seconds)} elements\n")
        print(*table(columns, texts), sep="\n")
    texts = (f"{name} {value} ({path.name})" for name, (path, value) in constants.items())
    print("\nNow in csrc/:", ", ".join(texts))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().measure:
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
