"""The step with each instruction set of this machine, on one thread and in cache.

    python benches/bench_isas.py
    python benches/bench_isas.py --rounds 15

The instruction set is chosen when the package is imported, from FUSED_ADAMW_ISA, so each one runs
in a process of its own. The processes take turns, block by block.
"""

import argparse
import json
import os
import subprocess
import sys
from statistics import median

from option_types import positive
from tables import table

from fused_adamw import AdamW, runtime_info
from fused_adamw.bench.harness import time_block
from fused_adamw.bench.report import format_duration, format_ratio
from fused_adamw.bench.statistics import quartiles_of
from fused_adamw.bench.workloads import draw

CASES = {  # title: (number of parameters, dtype, state_dtype)
    f"2^{k} {dtype}, {state_dtype or dtype} moments": (2**k, dtype, state_dtype)
    for k in (14, 16)
    for dtype, state_dtype in (
        ("float32", None),
        ("float64", None),
        ("float32", "bfloat16"),
        ("float32", "8bit"),
    )
}


class Worker:
    """A process that uses one instruction set."""

    def __init__(self, isa):
        environment = {**os.environ, "FUSED_ADAMW_ISA": isa}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def time(self, case):
        """The seconds of a step."""
        self.process.stdin.write(f"{json.dumps(case)}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def work():
    """Answer each case on standard input with the seconds of its step."""
    steps = {}
    for line in sys.stdin:
        if line not in steps:
            steps[line] = make_step(*json.loads(line))
        print(json.dumps(time_block(steps[line])), flush=True)


def make_step(size, dtype, state_dtype):
    params, grads = draw([(size,)], dtype, roles=2)
    optimizer = AdamW(params, state_dtype=state_dtype, num_threads=1)
    return lambda: optimizer.step(grads)


def compare(workers, case, rounds):
    """{instruction set: seconds of each round}"""
    seconds = {isa: [] for isa in workers}
    for _ in range(rounds):
        for isa, worker in workers.items():
            seconds[isa].append(worker.time(case))
    return seconds


def rows(seconds):
    """Relative times are those to the widest instruction set, within rounds."""
    first = next(iter(seconds.values()))
    for isa, times in seconds.items():
        ratios = quartiles_of([a / b for a, b in zip(times, first, strict=True)])
        spread = " to ".join(map(format_ratio, ratios.quartiles))
        yield isa, format_duration(median(times)), format_ratio(ratios.median), spread


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    workers = {isa: Worker(isa) for isa in runtime_info()["available_isas"]}
    try:
        for title, case in CASES.items():
            seconds = compare(workers, case, options.rounds)
            columns = ("", "time per step", "relative time", "quartiles")
            print(f"\n### {title}\n", *table(columns, rows(seconds)), sep="\n")
    finally:
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
