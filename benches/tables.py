"""What the benches measured, as Markdown tables that read well in a terminal too."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles

from peers import LIMIT, MISSING, OURS, RUNTIME, THREADS

PEERS = ("numpy", "torch", "numba", "jax", "optax")

COLUMNS = ("", "time a step", "ns/parameter", "GB/s", "of the limit", "times ours", "quartiles")


class Results:
    def __init__(self):
        self.blocks = {}  # contest: {contender: {round: seconds}}
        self.rows = {}  # title: [{column: text}]

    def add_block(self, contest, contender, turn, seconds):
        if seconds is not None:
            of_contest = self.blocks.setdefault(contest, {})
            of_contest.setdefault(contender, {})[turn] = seconds

    def add_row(self, title, **columns):
        self.rows.setdefault(title, []).append(columns)

    def markdown(self):
        parts = [f"- {line}" for line in machine()]
        for contest, blocks in self.blocks.items():
            parts += ["", f"### {contest.title}", "", *table(COLUMNS, step_rows(contest, blocks))]
        for title, rows in self.rows.items():
            texts = [list(row.values()) for row in rows]
            parts += ["", f"### {title}", "", *table(list(rows[0]), texts)]
        parts += ["", *(f"Left out: {name}; {remedy}" for name, remedy in MISSING.items())]
        return "\n".join(parts)


def step_rows(contest, blocks):
    """A row a contender, in the order of the contest. Speeds are compared within rounds."""
    for contender in filter(blocks.get, contest.contenders):
        seconds = median(blocks[contender].values())
        ours = ratios(blocks[contender], blocks.get(OURS, {}))
        limit = ratios(blocks.get(LIMIT, {}), blocks[contender])
        yield (
            contender,
            duration(seconds),
            f"{seconds / contest.parameters * 1e9:.3f}",
            f"{contest.moved / seconds / 1e9:.1f}" if contest.moved else "",
            f"{median(limit):.2f}" if limit else "",
            f"{median(ours):.2f}" if ours else "",
            " to ".join(f"{q:.2f}" for q in quartiles(ours)) if contender != OURS else "",
        )


def ratios(these, those):
    """these / those, a round each."""
    return [these[turn] / those[turn] for turn in these.keys() & those.keys()]


def quartiles(values):
    return quantiles(values, n=4, method="inclusive")[::2] if len(values) > 1 else values


def duration(seconds):
    unit, scale = ("s", 1) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{seconds * scale:.3g} {unit}"


def table(columns, rows):
    """Lines of Markdown, padded; the first column is text, the others are numbers."""
    rows = [list(columns), *map(list, rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(f"{x:{'>' if i else '<'}{widths[i]}}" for i, x in enumerate(row)) + " |"
        for row in rows
    ]
    rule = "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths))
    return [lines[0], f"|{rule}|", *lines[1:]]


# ---------------------------------------------------------------------------- the machine


def processor_ticks():
    """Ticks since the machine started: busy ones, all, those of this process. Linux alone says."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    ticks = [int(field) for field in first[1:9]]  # user nice system idle iowait irq softirq steal
    own = sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK")
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks), own


START = processor_ticks()


def other_work():
    """The share of the machine that other processes had during this run; None if nobody says."""
    if START is None:
        return None
    busy, total, own = (now - then for now, then in zip(processor_ticks(), START, strict=True))
    return max(0, busy - own) / max(1, total)


def machine():
    isas = ", ".join(RUNTIME["available_isas"])
    yield f"{processor()}, {os.cpu_count()} cores, {THREADS} threads"
    yield f"fused-adamw {RUNTIME['version']}, {RUNTIME['isa']} (of {isas})"
    yield f"{platform.system()}, Python {platform.python_version()}, {compiler()}"
    if (others := other_work()) is not None:
        yield f"other processes had {others:.0%} of the processors meanwhile"
    yield ", ".join(f"{peer} {found}" for peer in PEERS if (found := installed(peer)))


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def compiler():
    command = [*os.environ.get("CC", "cc").split(), "--version"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, IndexError):
        return "no C compiler"


def installed(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None
